"""Scores, selection by magnitude, and masks in plain NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...codes import encode_nonzeros
from .matmul import Float

Narrow = NDArray[Any]
"""float32, float16, or uint16: the bits of bfloat16."""


class Above(NamedTuple):
    """What is above a threshold, in the forms that were asked for."""

    zeros: int
    mask: NDArray[np.int8] | None
    bitmap: NDArray[np.uint8] | None
    gaps: NDArray[np.uint8] | None
    values: NDArray[Any] | None


def widened(x: Narrow) -> Float:
    """Return weights as float32, exactly."""
    if x.dtype == np.uint16:
        return cast(Float, (x.astype(np.uint32) << 16).view(np.float32))
    return x.astype(np.float32, copy=False)


def block_norms(
    x: Narrow, height: int, width: int, gradient: Narrow | None, factor: Float | None, threads: int
) -> tuple[Float, Float]:
    """L1 and L2 norm of |x|, of |x * gradient|, or of |x| * factor[column], of each block of x [rows, columns]."""
    values = np.abs(widened(x).astype(np.float64))
    if gradient is not None:
        values *= np.abs(widened(gradient).astype(np.float64))
    if factor is not None:
        values *= factor
    rows, columns = values.shape
    if not values.size:
        empty = np.zeros((-(-rows // height), -(-columns // width)), np.float32)
        return empty, empty.copy()
    tops, lefts = np.arange(0, rows, height), np.arange(0, columns, width)

    def summed(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        return cast(NDArray[np.float64], np.add.reduceat(np.add.reduceat(terms, tops, 0), lefts, 1))

    return summed(values).astype(np.float32), np.sqrt(summed(np.square(values))).astype(np.float32)


def kth_magnitude(arrays: list[Narrow], k: int, threads: int) -> float:
    """Return the k-th smallest (from 1) magnitude over flat arrays; NaN when there is one."""
    magnitudes = np.abs(np.concatenate([widened(array) for array in arrays]))
    return float("nan") if np.isnan(magnitudes).any() else float(np.partition(magnitudes, k - 1)[k - 1])


def apply_threshold(flat: Float, threshold: float, threads: int) -> int:
    """Set entries with magnitude <= threshold to 0 in place; return their count."""
    small = np.abs(flat) <= np.float32(threshold)
    flat[small] = 0
    return int(small.sum())


def above(flat: Narrow, threshold: float, mask: bool, bitmap: bool, packed: bool, threads: int) -> Above:
    """Mask, bitmap, and gaps and values of what is above; None where it is not asked for. -1 zeros: there is a NaN."""
    if np.isnan(widened(flat)).any():
        return Above(-1, None, None, None, None)
    marks = -(np.abs(widened(flat)) > np.float32(threshold)).astype(np.int8)
    return coded(flat, marks, mask, bitmap, packed)


def coded(flat: Narrow, marks: NDArray[np.int8], mask: bool, bitmap: bool, packed: bool) -> Above:
    """Return the forms of what is marked."""
    gaps, values = encode_nonzeros(np.where(marks, flat, flat.dtype.type(0))) if packed else (None, None)
    bits = np.packbits(marks.view(np.bool_), bitorder="little") if bitmap else None
    return Above(int(marks.size - np.count_nonzero(marks)), marks if mask else None, bits, gaps, values)


def nm_mask(x: Narrow, n: int, m: int, threads: int) -> NDArray[np.int8] | None:
    """Mark by -1 the n largest magnitudes of each m consecutive columns, of equal ones the later; None: a NaN."""
    rows, columns = x.shape
    padded = np.full((rows, -(-columns // m) * m), -1, np.float32)  # smaller than any magnitude
    padded[:, :columns] = np.abs(widened(x))
    if np.isnan(padded).any():
        return None
    order = np.argsort(padded.reshape(rows, -(-columns // m), m), axis=2, kind="stable")
    mask = np.full(order.shape, -1, np.int8)
    np.put_along_axis(mask, order[:, :, : m - n], 0, axis=2)
    return np.ascontiguousarray(mask.reshape(padded.shape)[:, :columns])
