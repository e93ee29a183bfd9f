"""Scores and selection over one large weight: ours, torch's, NumPy's, and one read of the same data.

"one read" is torch's sum, which memory bandwidth limits: of the weight, for Taylor of weight and gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from contestants import Point
from measure import OURS
from torch import Tensor
from vectors import Problem

from pycompress import kernels

FULL, QUICK = (25_000, 4_000), (6_250, 4_000)
WIDE = (4096, 4096)
READ = "one read"
BLOCK = (16, 4)
SPARSITY = 0.9

Calls = dict[str, Callable[[], Any]]


@lru_cache(maxsize=2)
def _random(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _problem(shape: tuple[int, int], nbytes: float, calls: Calls, tolerance: float = 1e-5) -> Problem:
    """Compare all results with ours."""
    ours = calls[OURS]()
    ours = ours if isinstance(ours, tuple) else (ours,)
    for name, call in calls.items():
        if name in (OURS, READ):
            continue
        found = call()
        for part, right in zip(found if isinstance(found, tuple) else (found,), ours, strict=True):
            part, right = torch.as_tensor(part), torch.as_tensor(right)
            same = torch.allclose(part.double(), right.double(), rtol=tolerance) if tolerance else part.equal(right)
            if not same:
                raise AssertionError(f"{name} gives a result of its own")
    return Problem(shape, nbytes, calls)


def norms(shape: tuple[int, int] = WIDE, dtype: torch.dtype = torch.float32) -> Problem:
    """L1 and L2 norm of each row."""
    weight = _random(shape).to(dtype)

    def with_torch() -> tuple[Tensor, Tensor]:
        l1, l2 = (torch.linalg.vector_norm(weight, power, dim=1, dtype=torch.float32) for power in (1, 2))
        return l1, l2

    calls: Calls = {OURS: lambda: tuple(kernels.norms(weight)), "torch": with_torch, READ: weight.sum}
    return _problem(shape, weight.nbytes, calls)


def taylor(shape: tuple[int, int] = WIDE) -> Problem:
    """Sum of |w * g| of each row."""
    weight, slopes = _random(shape), _random(shape, 1)
    calls: Calls = {
        OURS: lambda: kernels.norms(weight, gradient=slopes).l1,
        "torch": lambda: (weight * slopes).abs().sum(1),
        READ: lambda: (weight.sum(), slopes.sum()),
    }
    return _problem(shape, 2 * weight.nbytes, calls)


def wanda(shape: tuple[int, int] = WIDE) -> Problem:
    """Sum of |w| * norm(x) of each row."""
    weight, factor = _random(shape), torch.rand(shape[1])
    calls: Calls = {
        OURS: lambda: kernels.norms(weight, input_norms=factor).l1,
        "torch": lambda: (weight.abs() * factor).sum(1),
        READ: weight.sum,
    }
    return _problem(shape, weight.nbytes, calls)


def blocks(shape: tuple[int, int] = WIDE) -> Problem:
    """L1 and L2 norm of each block of 16 x 4."""
    (height, width), weight = BLOCK, _random((shape[0] // BLOCK[0] * BLOCK[0], shape[1]))
    tiled = weight.view(-1, height, shape[1] // width, width)

    def with_torch() -> tuple[Tensor, Tensor]:
        return tiled.abs().sum((1, 3)), tiled.square().sum((1, 3)).sqrt()

    calls: Calls = {OURS: lambda: tuple(kernels.norms(weight, BLOCK)), "torch": with_torch, READ: weight.sum}
    return _problem(shape, weight.nbytes, calls)


def kth(shape: tuple[int, int] = WIDE) -> Problem:
    """The 90th percentile of |w|; for the peers the magnitudes are made beforehand."""
    weight = _random(shape)
    magnitudes, k = weight.abs().flatten(), round(SPARSITY * weight.numel())
    calls: Calls = {
        OURS: lambda: kernels.kth_magnitude([weight], k),
        "torch kthvalue": lambda: torch.kthvalue(magnitudes, k).values.item(),
        READ: weight.sum,
        "torch topk": lambda: magnitudes.topk(magnitudes.numel() - k + 1, sorted=False).values.min().item(),
        "numpy partition": lambda: float(np.partition(magnitudes.numpy(), k - 1)[k - 1]),
    }
    return _problem(shape, weight.nbytes, calls, 0)


def mask(shape: tuple[int, int] = WIDE) -> Problem:
    """Mask of what is above a threshold, in bytes with all bits set or none, and how many entries are not."""
    weight = _random(shape)
    limit = 1.645

    def ours() -> tuple[Tensor, int]:
        kept = kernels.above(weight, limit)
        return kept.mask, kept.zeros

    def with_torch() -> tuple[Tensor, int]:
        kept = (weight.abs() > limit).to(torch.int8).neg_()
        return kept, kept.numel() - int(torch.count_nonzero(kept))

    return _problem(shape, 1.25 * weight.nbytes, {OURS: ours, "torch": with_torch, READ: weight.sum}, 0)


def two_of_four(shape: tuple[int, int] = WIDE) -> Problem:
    """Mask of the two largest of each four."""
    weight = _random(shape)

    def with_torch() -> Tensor:
        largest = weight.view(-1, 4).abs().topk(2, sorted=False).indices
        return torch.zeros(largest.shape[0], 4, dtype=torch.int8).scatter_(1, largest, -1).view(shape)

    calls: Calls = {OURS: lambda: kernels.nm_mask(weight, 2, 4), "torch": with_torch, READ: weight.sum}
    return _problem(shape, 1.25 * weight.nbytes, calls, 0)


def bfloat16(shape: tuple[int, int] = WIDE) -> Problem:
    """:func:`norms` of bfloat16 weights."""
    return norms(shape, torch.bfloat16)


# name, what makes it, the peer that the ratio is over, the ratio to reach
LINES: tuple[tuple[str, Callable[[tuple[int, int]], Problem], str, float], ...] = (
    ("rows L1 and L2", norms, READ, 1 / 1.5),
    ("rows L1 and L2, bf16", bfloat16, "torch", 1.0),
    ("rows Taylor", taylor, READ, 1 / 1.3),
    ("rows Wanda", wanda, "torch", 1.0),
    ("blocks 16x4", blocks, "torch", 1.0),
    ("k-th magnitude", kth, READ, 1 / 2.5),
    ("k-th magnitude", kth, "torch kthvalue", 40.0),
    ("mask", mask, "torch", 1.0),
    ("mask 2:4", two_of_four, "torch", 1.0),
)


def points(quick: bool) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of the table."""
    level = kernels.isa_name() if kernels.backend_name() == "native" else kernels.backend_name()
    for name, make, over, goal in LINES:

        def point(
            name: str = name, make: Callable[[tuple[int, int]], Problem] = make, over: str = over, goal: float = goal
        ) -> Point:
            shape = QUICK if quick else FULL
            problem = make(shape)
            return Point(
                [*shape, name], None, level, "scoring", problem.calls, (over,), None, int(problem.nbytes), goal=goal
            )

        yield point
