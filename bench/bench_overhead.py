"""What a call costs beside its kernel: `pytest bench/bench_overhead.py --benchmark-group-by=group --threads 1`.

The baseline is the extension called with the addresses of the rows, on a weight so small that its kernel takes a
fraction of a microsecond; ``extra_info["over_kernel_us"]`` is what the others take more, and ``"limit_us"`` what they
may take: 1.5 us for ``kernels.linear`` on NumPy arrays, 5 us for a packed ``nn.Module`` on tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import measure
import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import kernels
from pycompress.layers import PackedLinear

pytestmark = pytest.mark.benchmark(max_time=0.05, min_rounds=5)

LIMITS_US = {"kernels.linear, NumPy": 1.5, "nn.Module": 5.0}
FEATURES = 64
CALLS = 500
TURNS = 100


@lru_cache
def contestants(format: pc.Int8 | pc.Sparse) -> dict[str, Callable[[], object]]:
    """All calls of one layer on one row, by name; the kernel alone first."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(FEATURES, FEATURES)).astype(np.float32)
    packed = kernels.pack(weight * (rng.random(weight.shape) < 0.1), format)
    if packed._native is None:
        pytest.skip("the native kernels are not built")
    x, y = rng.normal(size=(1, FEATURES)).astype(np.float32), np.empty((1, FEATURES), np.float32)
    tensor, layer = torch.from_numpy(x), PackedLinear(packed).eval()
    dense = nn.Linear(FEATURES, FEATURES, bias=False).requires_grad_(False)
    into, addresses = packed._native.linear_into, (x.ctypes.data, y.ctypes.data)

    def kernel() -> object:
        into(*addresses, 1, 0, 1)
        return y

    return {
        "kernel": kernel,
        "kernels.linear, NumPy": lambda: kernels.linear(x, packed),
        "kernels.linear, torch": lambda: kernels.linear(tensor, packed),
        "nn.Module": lambda: layer(tensor),
        "dense nn.Linear": lambda: dense(tensor),
    }


def shortest_us(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of one call, the shortest of many blocks taken in turns: what interrupts a block only adds to it."""
    shortest = dict.fromkeys(calls, float("inf"))
    gc.disable()
    try:
        for _ in range(TURNS):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                shortest[name] = min(shortest[name], (time.perf_counter() - start) / CALLS * 1e6)
    finally:
        gc.enable()
    return shortest


@pytest.mark.parametrize(
    "name", ["kernel", "kernels.linear, NumPy", "kernels.linear, torch", "nn.Module", "dense nn.Linear"]
)
@pytest.mark.parametrize("format", [pc.Int8(), pc.Sparse()], ids=["int8", "sparse"])
def test_overhead(benchmark: Any, format: pc.Int8 | pc.Sparse, name: str) -> None:
    calls = contestants(format)
    benchmark.group = f"overhead of a call, {type(format).__name__}"
    with measure.threads(1):
        if name != "dense nn.Linear":
            np.testing.assert_array_equal(np.asarray(calls[name]()), calls["kernel"]())
        if name in LIMITS_US and not benchmark.disabled:
            us = shortest_us(calls)
            benchmark.extra_info.update({"over_kernel_us": us[name] - us["kernel"], "limit_us": LIMITS_US[name]})
        benchmark(calls[name])
