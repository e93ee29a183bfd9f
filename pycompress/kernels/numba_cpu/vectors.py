"""Rounding, scores and selection."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import Float
from ..threads import run
from .compiling import as_input, kernel

_COLUMNS = 1 << 15  # columns of a tile of quantize and dequantize
_LANES = 32  # partial sums of a row score

_INFINITY = 0x7F800000  # bit pattern
_MAGNITUDE = 0x7FFFFFFF
_LOW_BITS = 15


@kernel
def _quantize_tiles(x, scale, zero_point, low, high, q, first, last):
    blocks = (x.shape[1] + _COLUMNS - 1) // _COLUMNS
    for tile in range(first, last):
        g, start = tile // blocks, tile % blocks * _COLUMNS
        source, target = x[g, start : start + _COLUMNS], q[g, start : start + _COLUMNS]
        for i in range(source.size):
            value = np.rint(source[i] / scale[g] + zero_point[g])
            target[i] = np.int32(min(max(value, low), high))


@kernel
def _dequantize_tiles(q, scale, zero_point, x, first, last):
    blocks = (q.shape[1] + _COLUMNS - 1) // _COLUMNS
    for tile in range(first, last):
        g, start = tile // blocks, tile % blocks * _COLUMNS
        source, target = q[g, start : start + _COLUMNS], x[g, start : start + _COLUMNS]
        for i in range(source.size):
            target[i] = (np.float32(source[i]) - zero_point[g]) * scale[g]


def quantize(x: Float, scale: Float, zero_point: Float, low: int, high: int, dtype: Any, threads: int) -> NDArray[Any]:
    """``q = clamp(rint(x / scale + zero_point), low, high)``, x [groups, n], scale and zero_point [groups]."""
    q = np.empty(x.shape, dtype)
    ends = np.float32(low), np.float32(high)
    arguments = (as_input(x), as_input(scale), as_input(zero_point), *ends, q)
    run(_quantize_tiles, *_column_tiles(x.shape), threads, *arguments)
    return q


def dequantize(q: NDArray[Any], scale: Float, zero_point: Float, threads: int) -> Float:
    """``x = (q - zero_point) * scale``, q [groups, n], scale and zero_point [groups]."""
    x = np.empty(q.shape, np.float32)
    run(_dequantize_tiles, *_column_tiles(q.shape), threads, as_input(q), as_input(scale), as_input(zero_point), x)
    return x


def _column_tiles(shape: tuple[int, ...]) -> tuple[int, float]:
    groups, columns = shape
    return groups * -(-columns // _COLUMNS), 10 + min(columns, _COLUMNS) / 2


@kernel
def _row_sums(x, power, sums, first, last):
    lanes = np.empty(_LANES, np.float64)
    whole = x.shape[1] // _LANES * _LANES
    for r in range(first, last):
        lanes[:] = 0
        for start in range(0, whole, _LANES):
            for l in range(_LANES):
                value = abs(np.float64(x[r, start + l]))
                lanes[l] += value if power == 1 else value * value
        for c in range(whole, x.shape[1]):
            value = abs(np.float64(x[r, c]))
            lanes[c - whole] += value if power == 1 else value * value
        sums[r] = lanes.sum()


@kernel
def _column_sums(x, power, sums, first, last):
    part = sums[first:last]
    for r in range(x.shape[0]):
        row = x[r, first:last]
        for c in range(part.size):
            value = abs(np.float64(row[c]))
            part[c] += value if power == 1 else value * value


def row_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each row of x [rows, columns]."""
    sums = np.empty(x.shape[0], np.float64)
    run(_row_sums, x.shape[0], 20 + x.shape[1] / 2, threads, as_input(x), power, sums)
    return _norms(sums, power)


def column_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each column of x [rows, columns]."""
    sums = np.zeros(x.shape[1], np.float64)
    run(_column_sums, x.shape[1], 1 + x.shape[0] / 2, threads, as_input(x), power, sums)
    return _norms(sums, power)


def _norms(sums: NDArray[np.float64], power: int) -> Float:
    return (sums if power == 1 else np.sqrt(sums)).astype(np.float32)


@kernel
def _histogram(bits, shift, prefix, counts, first, last):
    """Count the bits below ``shift`` of the magnitudes that begin with prefix; NaN counts as the largest magnitude."""
    below = max(shift - _LOW_BITS - 1, 0)
    mask = np.uint32(counts.size - 1)
    part = bits[first:last]
    for i in range(part.size):
        magnitude = np.uint32(part[i] & np.uint32(_MAGNITUDE))
        if magnitude > np.uint32(_INFINITY):
            magnitude = np.uint32(_MAGNITUDE)
        if magnitude >> shift == prefix:
            counts[(magnitude >> below) & mask] += 1


def _select(arrays: list[NDArray[np.uint32]], shift: int, prefix: int, k: int, threads: int) -> tuple[int, int, bool]:
    """Return the bin of the k-th magnitude with this prefix, its rank in the bin, and whether the last bin is used."""
    bins = 1 << min(shift, _LOW_BITS + 1)
    spare: list[NDArray[np.int64]] = []  # one histogram for each thread

    for bits in arrays:

        def count(first: int, last: int, bits: NDArray[np.uint32] = bits) -> None:
            try:
                counts = spare.pop()
            except IndexError:
                counts = np.zeros(bins, np.int64)
            _histogram(bits, np.uint32(shift), np.uint32(prefix), counts, first, last)
            spare.append(counts)

        run(count, bits.size, 1.0, threads)
    ends = np.cumsum(np.sum(spare, axis=0))
    chosen = int(np.searchsorted(ends, k))
    return chosen, k - (int(ends[chosen - 1]) if chosen else 0), bool(ends[-1] != ends[-2])


def kth_magnitude(arrays: list[Float], k: int, threads: int) -> float:
    """The k-th smallest (from 1) magnitude over flat arrays, by radix selection on the bits; NaN where there is one."""
    bits = [as_input(array.view(np.uint32)) for array in arrays]
    high, rank, has_nan = _select(bits, 31, 0, k, threads)
    if has_nan:
        return float("nan")
    low, _, _ = _select(bits, _LOW_BITS, high, rank, threads)
    return float(np.uint32(high << _LOW_BITS | low).view(np.float32))


@kernel
def _zero_small(flat, threshold, first, last):
    part = flat[first:last]
    count = 0
    for i in range(part.size):
        small = abs(part[i]) <= threshold
        count += small
        part[i] = np.float32(0) if small else part[i]
    return count


def apply_threshold(flat: Float, threshold: float, threads: int) -> int:
    """Set entries with magnitude <= threshold to 0 in place; return their count."""
    counts: list[int] = []

    def part(first: int, last: int) -> None:
        counts.append(_zero_small(flat, np.float32(threshold), first, last))

    run(part, flat.size, 0.5, threads)
    return sum(counts)
