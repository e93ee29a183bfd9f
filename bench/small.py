"""Linear layers whose weights share few numbers or are signs, beside torch and this package's own wider formats.

No other library at hand has such layers on CPUs. Inputs are fp32; for rows of signs they are signs times one magnitude
for each row, so that all contestants have the same product to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from contestants import EIGHT_BITS, Contestant, Point, checked_calls, many
from linears import torch_linear
from measure import OURS
from numpy.typing import NDArray
from torch import Tensor

from pycompress import kernels
from pycompress.formats import Binary, Codebook, Format, Int4, Int8

FORMATS: tuple[Format, ...] = (Codebook(), Codebook(bits=2), Binary(), Binary("binary"))
ROUNDED = 1.0
"""4-bit integers stand for other weights than the ones that are multiplied."""


def points(shapes: Iterable[tuple[int, int]], rows: Iterable[int], threads: int) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table."""
    for shape in shapes:
        for format in FORMATS:
            for count in rows:
                yield partial(point, shape, format, count, threads)


def point(shape: tuple[int, int], format: Format, rows: int, threads: int) -> Point:
    """Make one line: all contestants, checked."""
    contestants, packed = _contestants(shape, format, threads)
    calls = checked_calls(contestants, *_batch(shape, format, rows), lenient=True)
    signs = format == Binary("binary")  # no probe multiplies bits: the limit is reading
    work = 0.0 if signs else 2.0 * rows * shape[0] * shape[1], packed.nbytes + 4.0 * rows * sum(shape)
    rotated = packed.nbytes * len(contestants[OURS].copies)
    eligible = tuple(name for name in calls if name != OURS)
    return Point(list(shape), rows, packed.kernel.rpartition("/")[2], repr(format), calls, eligible, work, rotated)


def check_calls(
    shape: tuple[int, int], format: Format, rows: int, threads: int, pool: int
) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(shape, format, threads)[0], *_batch(shape, format, rows))


@lru_cache(maxsize=2)
def _packed(shape: tuple[int, int], format: Format) -> kernels.PackedWeight:
    generator = torch.Generator().manual_seed(sum(shape))
    return kernels.pack(torch.randn(shape, generator=generator) / shape[1] ** 0.5, format)


@lru_cache(maxsize=8)
def _batch(shape: tuple[int, int], format: Format, rows: int) -> tuple[Tensor, NDArray[np.float64]]:
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    if format == Binary("binary"):
        x = torch.where(x >= 0, 0.5, -0.5)
    dense = torch.from_numpy(_packed(shape, format).unpack())
    return x, (x.double() @ dense.double().T).numpy()


@lru_cache(maxsize=1)
def _contestants(
    shape: tuple[int, int], format: Format, threads: int
) -> tuple[dict[str, Contestant], kernels.PackedWeight]:
    packed = _packed(shape, format)
    dense = packed.unpack()
    integers, scale = packed.canonical_weight(), packed.scale

    def copies(form: Format, *weight: Any) -> list[Callable[[Any], Any]]:
        nbytes = kernels.pack(weight[0], form, None, *weight[1:]).nbytes
        return many(nbytes, lambda: partial(_linear, kernels.pack(weight[0], form, None, *weight[1:])))

    contestants = {
        "torch fp32": torch_linear(torch.from_numpy(dense), torch.zeros(shape[0]), torch.float32, 0.01),
        OURS: Contestant(copies(format, integers, scale), EIGHT_BITS),
        "pycompress Int8": Contestant(copies(Int8(), dense), EIGHT_BITS),
        "pycompress Int4": Contestant(copies(Int4(64, activations="int8"), dense), ROUNDED),
    }
    return contestants, packed


def _linear(packed: kernels.PackedWeight, x: Tensor) -> Any:
    return kernels.linear(x, packed)
