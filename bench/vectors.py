"""Operations on whole weights: selection, scores, threshold, quantization, exact int8 products; ours and peers.

Each function makes a problem: a dict of contestants by name, functions without arguments. Results were checked against
each other before it is returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure import OURS
from torch import Tensor

from pycompress import kernels

WEIGHTS = 25_000_000
LAYERS = 5
WIDE = (4096, 4096)


@dataclass(frozen=True)
class Problem:
    """Contestants with the same result, the peer to beat right after ours, and the bytes that they must move."""

    shape: tuple[int, ...]
    nbytes: float
    calls: dict[str, Callable[[], object]]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _expect(name: str, right: bool) -> None:
    if not right:
        raise AssertionError(f"{name} gives a result of its own")


def kth_magnitude(weights: int = WEIGHTS) -> Problem:
    """Select the 90th percentile of |w| over five layers; for the peers the magnitudes are joined beforehand."""
    layers = [_random(weights // LAYERS) * (i + 1) for i in range(LAYERS)]
    joined = torch.cat(layers).abs()
    k = round(0.9 * joined.numel())
    calls = {
        OURS: lambda: kernels.kth_magnitude(layers, k),
        "torch kthvalue": lambda: torch.kthvalue(joined, k).values.item(),
        "numpy partition": lambda: np.partition(joined.numpy(), k - 1)[k - 1],
    }
    values = {name: call() for name, call in calls.items()}
    for name, value in values.items():
        _expect(name, value == values["torch kthvalue"])
    return Problem((weights,), 4.0 * weights, calls)


def scores(per: str, power: int, shape: tuple[int, int] = WIDE) -> Problem:
    """L1 or L2 norms of the rows or columns of a weight."""
    weight = _random(*shape)
    axis = 1 if per == "row" else 0
    ours = kernels.l1_scores if power == 1 else kernels.l2_scores
    array = weight.numpy()
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: ours(weight, per=per),
        "torch vector_norm": lambda: torch.linalg.vector_norm(weight, power, dim=axis),
        "numpy norm": lambda: np.linalg.norm(array, power, axis=axis),
    }
    right = torch.linalg.vector_norm(weight.double(), power, dim=axis)
    for name, call in calls.items():
        _expect(name, torch.allclose(torch.as_tensor(call()).double(), right, rtol=1e-4))
    return Problem(shape, 4.0 * weight.numel(), calls)


def threshold(shape: tuple[int, int] = WIDE) -> Problem:
    """Zero the weights up to a magnitude, in place, and count them."""
    limit = 0.5
    tensors = [_random(*shape) for _ in range(3)]
    array = tensors[2].numpy()

    def with_torch() -> int:
        small = tensors[1].abs() <= limit
        tensors[1].masked_fill_(small, 0)
        return int(small.sum())

    def with_numpy() -> int:
        small = np.abs(array) <= limit
        array[small] = 0
        return int(np.count_nonzero(small))

    calls = {
        OURS: lambda: kernels.apply_threshold(tensors[0], limit),
        "torch masked_fill_": with_torch,
        "numpy mask": with_numpy,
    }
    right = int((tensors[0].abs() <= limit).sum())
    for (name, call), tensor in zip(calls.items(), tensors, strict=True):
        _expect(name, call() == right and torch.equal(tensor, tensors[0]))
    return Problem(shape, 8.0 * tensors[0].numel(), calls)


def quantize(shape: tuple[int, int] = WIDE) -> Problem:
    """Round a weight to int8 with a scale for each row, found on the way."""
    weight = _random(*shape)
    zeros = torch.zeros(shape[0], dtype=torch.int64)

    def with_torch() -> Tensor:
        scale = weight.abs().amax(1) / 127
        return torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)

    calls = {OURS: lambda: kernels.quantize(weight, axis=0), "torch quantize_per_channel": with_torch}
    ours = calls[OURS]().values.int()
    peer = with_torch().int_repr().int()
    # torch multiplies by 1 / scale: a few values in the middle between two integers go the other way
    _expect(OURS, int((ours - peer).abs().max()) <= 1 and bool((ours == peer).float().mean() > 0.999))
    return Problem(shape, 5.0 * weight.numel(), calls)


def dequantize(shape: tuple[int, int] = WIDE) -> Problem:
    """Turn int8 values with a scale for each row back into floats."""
    quantized = kernels.quantize(_random(*shape), axis=0)
    zeros = torch.zeros(shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = torch._make_per_channel_quantized_tensor(quantized.values, quantized.scale, zeros, 0)
    calls = {OURS: lambda: kernels.dequantize(*quantized, axis=0), "torch dequantize": peer.dequantize}
    _expect(OURS, torch.equal(calls[OURS](), peer.dequantize()))
    return Problem(shape, 5.0 * quantized.values.numel(), calls)


def int8_matmul(shape: tuple[int, int, int] = (512, 768, 3072)) -> Problem:
    """Multiply int8 matrices [m, k] and [k, n] exactly; fp32 holds these sums without rounding too."""
    m, k, n = shape
    a, b = ((_random(*s) * 40).clamp(-127, 127).to(torch.int8) for s in ((m, k), (k, n)))
    calls = {
        OURS: lambda: kernels.int8_matmul(a, b),
        "torch _int_mm": lambda: torch._int_mm(a, b),
        "numpy fp32": lambda: a.numpy().astype(np.float32) @ b.numpy().astype(np.float32),
    }
    right = a.double() @ b.double()
    for name, call in calls.items():
        _expect(name, torch.equal(torch.as_tensor(call()).double(), right))
    return Problem(shape, float(m * k + k * n + 4 * m * n), calls)
