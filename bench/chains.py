"""Four FFN blocks 768-3072-768 with ReLU, int8, as one call by each library.

Static: every layer has a scale for its activations, fixed beforehand from the largest values of a calibration batch.
Dynamic: scales are found at run time. The eight weights have 19 MB as int8, so that one copy streams from L3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from contestants import EXACT, Contestant, Point, checked_calls, installed
from int8_peers import dynamic_model, openvino_linear, qdq_linear, rounded
from linears import is_int8
from measure import OURS
from numpy.typing import NDArray
from runtimes import onnx_model, onnxruntime_call, openvino_call
from torch import Tensor, nn

from pycompress import kernels
from pycompress.formats import Int8

SIZES = (768, 3072, 768, 3072, 768, 3072, 768, 3072, 768)
ROWS = [1, 32, 128, 512]
FORMATS = ("static", "dynamic")
TOLERANCE = {"static": 0.4, "dynamic": 0.4, "bf16": 0.2}  # eight layers of rounding


def points(rows: list[int], threads: int) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table."""
    for format in FORMATS:
        for count in rows:
            yield partial(point, format, count, threads)


def point(format: str, rows: int, threads: int) -> Point:
    """Make one line: all contestants, checked."""
    contestants, nbytes, level = _contestants(format, threads, threads)
    calls = checked_calls(contestants, *_batch(rows), lenient=True)
    weights = sum(a * b for a, b in pairwise(SIZES))
    work = 2.0 * rows * weights, nbytes + 4.0 * rows * (SIZES[0] + SIZES[-1])
    eligible = tuple(name for name in calls if is_int8(name))
    return Point(list(SIZES), rows, level, f"Int8, {format}", calls, eligible, work, nbytes)


def check_calls(format: str, rows: int, threads: int, pool: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(format, threads, pool)[0], *_batch(rows))


@lru_cache(maxsize=1)
def _model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        dense = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(dense.weight)
        nn.init.normal_(dense.bias, std=0.1)
        layers += [dense, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


@lru_cache(maxsize=len(ROWS))
def _batch(rows: int) -> tuple[Tensor, NDArray[np.float64]]:
    x = torch.randn(rows, SIZES[0], generator=torch.Generator().manual_seed(rows))
    right = x.double()
    for layer in _model():
        right = layer(right) if isinstance(layer, nn.ReLU) else right @ layer.weight.double().T + layer.bias.double()
    return x, right.numpy()


@lru_cache(maxsize=1)
def _largest() -> list[float]:
    """Largest magnitudes of the inputs of the layers, on a calibration batch."""
    x, found = torch.randn(1024, SIZES[0], generator=torch.Generator().manual_seed(7)), []
    for layer in _model():
        if isinstance(layer, nn.Linear):
            found.append(float(x.abs().max()))
        x = layer(x)
    return found


@lru_cache(maxsize=2)
def _contestants(format: str, threads: int, pool: int) -> tuple[dict[str, Contestant], int, str]:
    model = _model()
    dense = [layer for layer in model if isinstance(layer, nn.Linear)]
    static = format == "static"
    scales = [largest / 127 if static else None for largest in _largest()]
    packed = [
        kernels.pack(layer.weight, Int8(), layer.bias, input_scale=scale)
        for layer, scale in zip(dense, scales, strict=True)
    ]
    activations: list[Any] = ["relu"] * (len(dense) - 1) + [None]
    half = nn.Sequential(*(layer for layer in _copy_of(model))).to(torch.bfloat16)
    tolerance = TOLERANCE[format]
    contestants = {
        "torch fp32": Contestant([lambda x: model(x)], EXACT),
        OURS: Contestant([lambda x: kernels.linear_chain(x, packed, activations)], tolerance),
        "torch bf16": Contestant([lambda x: half(x)], TOLERANCE["bf16"], lambda x: x.to(torch.bfloat16)),
    }
    if not static:
        for engine in ("x86", "onednn"):
            contestants[f"torch int8 {engine}"] = Contestant([dynamic_model(model, {nn.Linear}, engine)], tolerance)
    if installed("onnxruntime") and threads == pool:
        contestants["onnxruntime int8"] = Contestant([_onnxruntime(dense, static, pool)], tolerance, Tensor.numpy)
    if installed("openvino"):
        contestants["openvino int8"] = Contestant([_openvino(dense, static, threads)], tolerance, Tensor.numpy)
    level = packed[0].kernel.rpartition("/")[2]
    return contestants, sum(weight.nbytes for weight in packed), level


def _copy_of(model: nn.Sequential) -> Iterator[nn.Module]:
    for layer in model:
        if isinstance(layer, nn.Linear):
            copy = nn.Linear(layer.in_features, layer.out_features)
            copy.load_state_dict(layer.state_dict())
            yield copy.requires_grad_(False)
        else:
            yield nn.ReLU()


def _onnxruntime(dense: list[nn.Linear], static: bool, pool: int) -> Callable[[NDArray[np.float32]], Any]:
    from onnx import helper

    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    x = "x"
    for i, (layer, largest) in enumerate(zip(dense, _largest(), strict=True)):
        integers, last = rounded(layer.weight, layer.bias), i + 1 == len(dense)
        y = "y" if last else f"y{i}"
        if static:  # after ReLU there are 8 bits for positive values
            more, named = qdq_linear(integers, largest / 127, x, y, signed=i == 0)
        else:
            named = {
                f"{y}.w": np.ascontiguousarray(integers.values.T),
                f"{y}.s": integers.scale,
                f"{y}.b": integers.bias,
            }
            names = [x, f"{y}.w", f"{y}.s", "", f"{y}.b"]
            more = [helper.make_node("DynamicQuantizeMatMul", names, [y], domain="com.microsoft")]
        nodes += more
        constants |= named
        if not last:
            nodes.append(helper.make_node("Relu", [y], [f"x{i}"]))
            x = f"x{i}"
    return onnxruntime_call(onnx_model(nodes, constants, ["rows", SIZES[0]], ["rows", SIZES[-1]]), pool)


def _openvino(dense: list[nn.Linear], static: bool, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    import openvino
    from openvino import opset13 as op

    start = x = op.parameter([-1, SIZES[0]], np.float32)
    for i, (layer, largest) in enumerate(zip(dense, _largest(), strict=True)):
        x = openvino_linear(x, rounded(layer.weight, layer.bias), largest if static else None, signed=i == 0)
        x = op.relu(x) if i + 1 < len(dense) else x
    # dynamic: per row, one group as wide as the widest layer
    settings = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0 if static else max(SIZES)}
    return openvino_call(openvino.Model([x], [start]), threads, settings)
