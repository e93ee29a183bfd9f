"""Rounding."""

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
