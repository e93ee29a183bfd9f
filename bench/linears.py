"""Int8 linear layers by this package and by its peers; pruned ones stand in pruned.py.

A contestant has as many copies of its weight as fill the memory tier, and gets its input in the form that its library
likes best, made before the timing. Peers that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import measure
import numpy as np
import torch
from contestants import EIGHT_BITS, EXACT, HALF, Contestant, Point, checked_calls, many
from int8_peers import dynamic_peers, static_peers
from measure import OURS
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Int8

SHAPES = [(768, 768), (3072, 768), (768, 3072), (4096, 4096), (11008, 4096)]  # (out_features, in_features)
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 512]
CORNERS = [(768, 768), (11008, 4096)], [1, 16, 512]
"""Shapes and rows of --quick."""

INPUT_SCALE = 4.5 / 127  # of normal activations, where it is fixed
OPERATIONS = ("int8_linear", "int8_linear static")


@dataclass(frozen=True)
class Problem:
    """One weight and everyone who multiplies with it."""

    op: str
    format: str
    shape: tuple[int, int]
    threads: int
    level: str
    weight: Tensor
    bias: Tensor
    nbytes: int
    contestants: dict[str, Contestant]

    def calls(self, rows: int, names: Iterable[str] | None = None) -> dict[str, Callable[[], object]]:
        """Return what is timed for a batch, all contestants or some; their results are checked first."""
        return checked_calls(self.contestants, *_batch(self.shape, rows), names)

    def work(self, rows: int) -> tuple[float, float]:
        """Return the operations (a multiplication and an addition for each weight kept) and bytes of one call."""
        kept = int(torch.count_nonzero(self.weight))
        return 2.0 * rows * kept, self.nbytes + 4.0 * rows * sum(self.shape)

    def point(self, rows: int) -> Point:
        """Return the line of a table for a batch."""
        calls = checked_calls(self.contestants, *_batch(self.shape, rows), lenient=True)
        eligible = tuple(name for name in calls if is_int8(name))
        rotated = self.nbytes * len(self.contestants[OURS].copies)
        level = self.level.rpartition("/")[2]
        return Point(list(self.shape), rows, level, self.format, calls, eligible, self.work(rows), rotated)


def is_int8(name: str) -> bool:
    """Whether a contestant is a peer of int8 layers, and not a float one or ours."""
    return not name.startswith(OURS) and name not in ("torch fp32", "torch bf16")


def points(
    op: str, shapes: Iterable[tuple[int, int]], rows: Iterable[int], threads: int
) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table, one shape after the other."""
    for shape in shapes:
        for count in rows:
            yield partial(_point, op, shape, count, threads)


def _point(op: str, shape: tuple[int, int], rows: int, threads: int) -> Point:
    return problem(op, shape, threads, threads).point(rows)


@lru_cache(maxsize=1)
def _parameters(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    bias = torch.randn(shape[0], generator=generator)
    return weight, bias


@lru_cache(maxsize=len(ROWS))
def _batch(shape: tuple[int, int], rows: int) -> tuple[Tensor, NDArray[np.float64]]:
    weight, bias = _parameters(shape)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    return x, F.linear(x.double(), weight.double(), bias.double()).numpy()


@lru_cache(maxsize=1)
def problem(op: str, shape: tuple[int, int], threads: int, pool: int) -> Problem:
    """Make a weight and its contestants.

    Parameters
    ----------
    op : one of OPERATIONS
    shape : (out_features, in_features)
    threads : int
    pool : int
        The one number of threads that ONNX Runtime can have in this process; it takes part where that is `threads`.
    """
    weight, bias = _parameters(shape)
    static = op.endswith("static")
    scale = INPUT_SCALE if static else None
    packed = [kernels.pack(weight, Int8(), bias, input_scale=scale)]
    more = measure.copies(packed[0].nbytes) - 1
    packed += [kernels.pack(weight, packed[0].format, bias, input_scale=scale) for _ in range(more)]
    contestants = {
        "torch fp32": torch_linear(weight, bias, torch.float32, EXACT),
        OURS: Contestant([_ours(p) for p in packed], EIGHT_BITS),
        "torch bf16": torch_linear(weight, bias, torch.bfloat16, HALF),
    }
    if static:
        contestants |= static_peers(weight, bias, INPUT_SCALE, threads, pool)
    else:
        contestants |= dynamic_peers(weight, bias, threads, pool)
    name = "Int8, static" if static else "Int8"
    level = packed[0].kernel
    return Problem(op, name, shape, threads, level, weight, bias, packed[0].nbytes, contestants)


def _ours(packed: kernels.PackedWeight) -> Callable[[Tensor], Tensor]:
    return lambda x: kernels.linear(x, packed)


def torch_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, tolerance: float) -> Contestant:
    """torch's own layer in a float type, which its input has too."""

    def make() -> Callable[[Tensor], Tensor]:
        w, b = weight.to(dtype, copy=True), bias.to(dtype)
        return lambda x: F.linear(x, w, b)

    return Contestant(many(weight.numel() * dtype.itemsize, make), tolerance, lambda x: x.to(dtype))
