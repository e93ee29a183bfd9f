"""Scores, selection by magnitude, and masks. Weights of 16 bits are widened first."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference import Float
from ..reference.selection import Above, Narrow, coded, widened
from ..threads import run
from .compiling import as_input, kernel

_LANES = 16  # partial sums of a wide block
_STRIP = 1024  # columns that are summed up before narrow blocks are

_INFINITY = 0x7F800000  # bit pattern
_MAGNITUDE = 0x7FFFFFFF
_LOW_BITS = 15


@kernel
def _wide_blocks(x, gradient, factor, height, width, l1, l2, first, last):
    """Blocks of many columns: in lanes, by the column within the block."""
    across = l1.shape[1]
    firsts, seconds = np.empty(_LANES, np.float64), np.empty(_LANES, np.float64)
    for block in range(first, last):
        top, left = block // across * height, block % across * width
        firsts[:] = 0
        seconds[:] = 0
        for r in range(top, min(top + height, x.shape[0])):
            row = x[r, left : left + width]
            for c in range(row.size):
                value = abs(np.float64(row[c]))
                if gradient.size:
                    value *= abs(np.float64(gradient[r, left + c]))
                if factor.size:
                    value *= np.float64(factor[left + c])
                firsts[c % _LANES] += value
                seconds[c % _LANES] += value * value
        l1[block // across, block % across] = firsts.sum()
        l2[block // across, block % across] = np.sqrt(seconds.sum())


@kernel
def _narrow_blocks(x, gradient, factor, height, width, l1, l2, first, last):
    """Blocks of few columns: first by column, in strips, then from left to right."""
    size = _STRIP // width * width
    strips = (x.shape[1] + size - 1) // size
    firsts, seconds = np.empty(size, np.float64), np.empty(size, np.float64)
    for task in range(first, last):
        band, left = task // strips, task % strips * size
        firsts[:] = 0
        seconds[:] = 0
        for r in range(band * height, min((band + 1) * height, x.shape[0])):
            row = x[r, left : left + size]
            for c in range(row.size):
                value = abs(np.float64(row[c]))
                if gradient.size:
                    value *= abs(np.float64(gradient[r, left + c]))
                if factor.size:
                    value *= np.float64(factor[left + c])
                firsts[c] += value
                seconds[c] += value * value
        for start in range(0, min(size, x.shape[1] - left), width):
            block = (left + start) // width
            l1[band, block] = firsts[start : start + width].sum()
            l2[band, block] = np.sqrt(seconds[start : start + width].sum())


def block_norms(
    x: Narrow, height: int, width: int, gradient: Narrow | None, factor: Float | None, threads: int
) -> tuple[Float, Float]:
    """L1 and L2 norm of |x|, of |x * gradient|, or of |x| * factor[column], of each block of x [rows, columns]."""
    values = as_input(widened(x))
    slopes = as_input(np.empty((0, 0), np.float32) if gradient is None else widened(gradient))
    factors = as_input(np.empty(0, np.float32) if factor is None else factor)
    rows, columns = x.shape
    down, across = -(-rows // height), -(-columns // width)
    l1, l2 = np.empty((down, across), np.float32), np.empty((down, across), np.float32)
    arguments = values, slopes, factors, height, width, l1, l2
    if width >= 64:
        run(_wide_blocks, down * across, 20.0 + height * width, threads, *arguments)
    else:
        strips = -(-columns // (_STRIP // width * width))
        run(_narrow_blocks, down * strips, 20.0 + height * _STRIP, threads, *arguments)
    return l1, l2


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


def kth_magnitude(arrays: list[Narrow], k: int, threads: int) -> float:
    """The k-th smallest (from 1) magnitude over flat arrays, by radix selection on the bits; NaN where there is one."""
    bits = [as_input(widened(array).view(np.uint32)) for array in arrays]
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


@kernel
def _mark_above(flat, threshold, mask, first, last):
    part, marks = flat[first:last], mask[first:last]
    for i in range(part.size):
        marks[i] = np.int8(-1) if abs(part[i]) > threshold else np.int8(0)


def above(flat: Narrow, threshold: float, mask: bool, bitmap: bool, packed: bool, threads: int) -> Above:
    """Mask, bitmap, and gaps and values of what is above; None where it is not asked for. -1 zeros: there is a NaN."""
    if np.isnan(widened(flat)).any():
        return Above(-1, None, None, None, None)
    marks = np.empty(flat.size, np.int8)
    run(_mark_above, flat.size, 0.5, threads, as_input(widened(flat)), np.float32(threshold), marks)
    return coded(flat, marks, mask, bitmap, packed)


@kernel
def _mark_groups(x, n, m, mask, first, last):
    columns = x.shape[1]
    for r in range(first, last):
        row, marks = x[r], mask[r]
        for c in range(columns):
            start = c // m * m
            stop = min(start + m, columns)
            own = abs(row[c])
            smaller = 0
            for other in range(start, stop):
                magnitude = abs(row[other])
                smaller += magnitude < own or (magnitude == own and other < c)
            marks[c] = np.int8(-1) if smaller >= stop - start - n else np.int8(0)


def nm_mask(x: Narrow, n: int, m: int, threads: int) -> NDArray[np.int8] | None:
    """Mark by -1 the n largest magnitudes of each m consecutive columns, of equal ones the later; None: a NaN."""
    if np.isnan(widened(x)).any():
        return None
    mask = np.empty(x.shape, np.int8)
    run(_mark_groups, x.shape[0], 20.0 + x.shape[1] * m, threads, as_input(widened(x)), n, m, mask)
    return mask
