"""Models packed by `pc.pack` against the dense original: `pytest bench/bench_models.py --benchmark-group-by=group`.

`pack` keeps a layer dense where no packed one is faster, so that no packed model may be slower than its original by
more than the noise. The benchmark of the packed model holds the paired speedup with its 95 % interval in `extra_info`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import measure
import pytest
import torch
from measure import OURS
from torch import nn

import pycompress as pc

pytestmark = pytest.mark.benchmark(max_time=0.1, min_rounds=5)

Sizes = tuple[int, ...]

LENET: Sizes = (784, 300, 100, 10)
DIGITS: Sizes = (64, 512, 512, 10)
FFN: Sizes = (768, 3072, 768, 3072, 768, 3072, 768, 3072, 768)
MODELS = {"LeNet-300-100": LENET, "MLP 64-512-512-10": DIGITS, "FFN 4 x 768-3072-768": FFN}
FORMATS = {"int8": pc.Int8(), "sparse": pc.Sparse()}
SPARSITY = 0.9
LARGEST_ERROR = {"int8": 0.3, "sparse": 1e-3}  # of the root mean square of the output


def _mlp(sizes: Sizes) -> nn.Sequential:
    torch.manual_seed(sum(sizes))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@lru_cache(maxsize=1)
def _calls(model: str, format: str, batch: int, threads: int) -> dict[str, Callable[[], object]]:
    with measure.threads(threads):
        x = torch.randn(batch, MODELS[model][0])
    dense = _mlp(MODELS[model])
    if format == "sparse":
        pc.prune_(dense, sparsity=SPARSITY, across_layers=False)
        pc.finalize_(dense)
    with measure.threads(threads):
        packed = pc.pack(dense, x, FORMATS[format])
        right, got = dense(x), packed(x)
        error = float((got - right).abs().max() / right.square().mean().sqrt())
        if not error <= LARGEST_ERROR[format]:
            raise AssertionError(f"the packed model must be right within {LARGEST_ERROR[format]}, got {error:g}")
        calls: dict[str, Callable[[], object]] = {"torch fp32": lambda: dense(x), OURS: lambda: packed(x)}
        if format == "int8":
            peer = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear})
            calls["torch int8"] = lambda: peer(x)
    return calls


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [OURS, "torch fp32", "torch int8"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_model(model: str, format: str, batch: int, name: str, threads: int, compared: Any) -> None:
    calls = _calls(model, format, batch, threads)
    if name not in calls:
        pytest.skip("torch has no sparse int8 layers")
    group = f"{model}, {format}, batch={batch} threads={threads}"
    compared(group, calls, name, threads, "torch fp32")
