"""Rounding in plain NumPy."""

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
