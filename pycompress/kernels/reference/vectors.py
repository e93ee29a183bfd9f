"""Rounding, scores and selection in plain NumPy."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .matmul import Float


def quantize(x: Float, scale: Float, zero_point: Float, low: int, high: int, dtype: Any, threads: int) -> NDArray[Any]:
    """``q = clamp(rint(x / scale + zero_point), low, high)``, x [groups, n], scale and zero_point [groups]."""
    with np.errstate(over="ignore"):
        q = np.rint(x / scale[:, None] + zero_point[:, None])
    return cast(NDArray[Any], np.clip(q, low, high).astype(dtype))


def dequantize(q: NDArray[Any], scale: Float, zero_point: Float, threads: int) -> Float:
    """``x = (q - zero_point) * scale``, q [groups, n], scale and zero_point [groups]."""
    return (q.astype(np.float32) - zero_point[:, None]) * scale[:, None]


def row_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each row of x [rows, columns]."""
    wide = x.astype(np.float64)
    sums = np.abs(wide).sum(axis=1) if power == 1 else np.sqrt(np.square(wide).sum(axis=1))
    return cast(Float, sums.astype(np.float32))


def column_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each column of x [rows, columns]."""
    return row_scores(x.T, power, threads)


def kth_magnitude(arrays: list[Float], k: int, threads: int) -> float:
    """Return the k-th smallest (from 1) magnitude over flat arrays; NaN when there is one."""
    magnitudes = np.abs(np.concatenate(arrays))
    return float("nan") if np.isnan(magnitudes).any() else float(np.partition(magnitudes, k - 1)[k - 1])


def apply_threshold(flat: Float, threshold: float, threads: int) -> int:
    """Set entries with magnitude <= threshold to 0 in place; return their count."""
    small = np.abs(flat) <= np.float32(threshold)
    flat[small] = 0
    return int(small.sum())
