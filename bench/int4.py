"""Linear layers with 4-bit weights, a float16 scale for each group of inputs, by this package and by its peers.

Weight-only: activations stay float (float32; bfloat16 for torch, which needs it). With int8 activations: ours, and ONNX
Runtime's MatMulNBits of accuracy_level 4. All hold the same integers. Ours as plain int8 stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import measure
import numpy as np
import torch
from contestants import EIGHT_BITS, HALF, Contestant, Point, checked_calls, installed, many
from linears import torch_linear
from measure import OURS
from numpy.typing import NDArray
from runtimes import onnx_model, onnxruntime_call
from torch import Tensor

from pycompress import kernels
from pycompress.formats import Int4, Int8

GROUPS = [32, 128]
ACTIVATIONS = ("float32", "int8")
SLACK = 0.01
"""Float activations: float16 scales, and sums in another order."""


def points(
    shapes: Iterable[tuple[int, int]], rows: Iterable[int], threads: int, groups: Iterable[int] = GROUPS
) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table."""
    for shape in shapes:
        for group in groups:
            for activations in ACTIVATIONS:
                for count in rows:
                    yield partial(point, shape, group, activations, count, threads)


def point(shape: tuple[int, int], group: int, activations: str, rows: int, threads: int) -> Point:
    """Make one line: all contestants, checked."""
    contestants, packed = _contestants(shape, group, activations, threads, threads)
    calls = checked_calls(contestants, *_batch(shape, group, rows), lenient=True)
    work = 2.0 * rows * shape[0] * shape[1], packed.nbytes + 4.0 * rows * sum(shape)
    # MatMulNBits of accuracy_level 4 rounds activations: no peer of float ones, while float ones may be the fastest
    eligible = tuple(name for name in calls if "int4" in name and (activations == "int8" or "level 4" not in name))
    rotated = packed.nbytes * len(contestants[OURS].copies)
    format = f"Int4(group={group}, activations={activations!r})"
    level, kind = packed.kernel.rpartition("/")[2], "fp32" if activations == "float32" else "int8"
    return Point(list(shape), rows, level, format, calls, eligible, work, rotated, kind)


def check_calls(
    shape: tuple[int, int], group: int, activations: str, rows: int, threads: int, pool: int
) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(shape, group, activations, threads, pool)[0], *_batch(shape, group, rows))


@lru_cache(maxsize=2)
def _weight(shape: tuple[int, int], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32], Tensor]:
    """Integers [out, in] from -7 to 7, scales [out, groups] that float16 holds, and the weight that they stand for."""
    out_features, in_features = shape
    generator = torch.Generator().manual_seed(out_features + in_features)
    weight = torch.randn(shape, generator=generator).numpy() / in_features**0.5
    blocks = weight.reshape(out_features, -1, group)
    scale = (np.abs(blocks).max(2) / 7).astype(np.float16).astype(np.float32)
    integers = np.clip(np.rint(blocks / scale[..., None]), -7, 7).astype(np.int8)
    dense = integers * scale[..., None]
    return integers.reshape(shape), scale, torch.from_numpy(dense.reshape(shape))


@lru_cache(maxsize=8)
def _batch(shape: tuple[int, int], group: int, rows: int) -> tuple[Tensor, NDArray[np.float64]]:
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    return x, (x.double() @ _weight(shape, group)[2].double().T).numpy()


@lru_cache(maxsize=1)
def _contestants(
    shape: tuple[int, int], group: int, activations: Any, threads: int, pool: int
) -> tuple[dict[str, Contestant], kernels.PackedWeight]:
    integers, scale, dense = _weight(shape, group)
    nbytes = integers.size // 2 + 2 * scale.size
    no_bias = torch.zeros(shape[0])
    four, eight = Int4(group=group, activations=activations), Int8()
    exact = activations == "float32"
    packed = [kernels.pack(integers, four, scale=scale) for _ in range(measure.copies(nbytes))]
    plain = [kernels.pack(dense, eight) for _ in range(measure.copies(integers.size))]
    contestants = {
        "torch fp32": torch_linear(dense, no_bias, torch.float32, SLACK),
        OURS: Contestant([partial(_linear, p) for p in packed], SLACK if exact else EIGHT_BITS),
        "pycompress Int8": Contestant([partial(_linear, p) for p in plain], EIGHT_BITS),
        "torch bf16": torch_linear(dense, no_bias, torch.bfloat16, HALF),
        "torch int4 bf16": Contestant(
            many(nbytes, partial(_torch_int4, integers, scale, group)), HALF, lambda x: x.to(torch.bfloat16)
        ),
    }
    if installed("onnxruntime") and threads == pool:
        for level in (0, 4):
            copies = many(nbytes, partial(_matmul_nbits, integers, scale, group, level, pool))
            name = f"onnxruntime int4 level {level}"
            contestants[name] = Contestant(copies, EIGHT_BITS if level == 4 else SLACK, Tensor.numpy)
    return contestants, packed[0]


def _linear(packed: kernels.PackedWeight, x: Tensor) -> Any:
    return kernels.linear(x, packed)


def _torch_int4(integers: NDArray[np.int8], scale: NDArray[np.float32], group: int) -> Callable[[Tensor], Tensor]:
    """What torch's int4 weight-only linear calls: w = (q - 8) * scale + zero, activations bfloat16."""
    codes = torch.from_numpy(integers.astype(np.int32) + 8)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    pairs = np.stack([scale.T, np.zeros_like(scale.T)], 2)
    scales = torch.from_numpy(np.ascontiguousarray(pairs)).to(torch.bfloat16)
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, group, scales)


def _matmul_nbits(
    integers: NDArray[np.int8], scale: NDArray[np.float32], group: int, level: int, pool: int
) -> Callable[[NDArray[np.float32]], Any]:
    from onnx import helper

    out_features, in_features = integers.shape
    codes = (integers + 8).astype(np.uint8).reshape(out_features, in_features // group, group)
    constants = {"w": codes[..., ::2] | codes[..., 1::2] << 4, "scale": scale.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "scale"],
        ["y"],
        domain="com.microsoft",
        K=in_features,
        N=out_features,
        bits=4,
        block_size=group,
        accuracy_level=level,
    )
    return onnxruntime_call(onnx_model([node], constants, ["rows", in_features], ["rows", out_features]), pool)
