"""The blocks in which the zeros of a weight come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..formats import BLOCKS, BFloat16, Float32, Int8
from . import arrays
from .arrays import ArrayLike

_FLOAT32 = Float32()

FULL = 0.9
"""A block shape fits where at least this fraction of what its kept blocks hold is not zero."""


def find_block(weight: ArrayLike, values: Float32 | BFloat16 | Int8 = _FLOAT32) -> tuple[int, int]:
    """Return the largest block shape of :class:`pycompress.formats.Sparse` in which a weight was pruned.

    A block is kept where it holds a nonzero weight. A shape fits where ``nonzeros >= 0.9 * weights in kept blocks``:
    the others would be multiplied for nothing. (1, 1) always fits.

    Parameters
    ----------
    weight : [out_features, in_features] float32, float16, bfloat16 or int8
    values : Float32, BFloat16 or Int8
        The type of the kept values: each has blocks of its own.

    Returns
    -------
    (int, int)
        Outputs and inputs of a block.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype or number of dimensions.

    Examples
    --------
    >>> weight = np.zeros((8, 3), np.float32)
    >>> weight[:4, 1] = [1, 2, 3, 4]
    >>> find_block(weight)
    (4, 1)
    """
    if type(values) not in BLOCKS:
        raise TypeError(f"values must be Float32(), BFloat16() or Int8(), got {values!r}")
    array = arrays.view(weight, "weight")
    if array.dtype != np.int8:
        array = arrays.float32(weight, "weight")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D [out_features, in_features], got {arrays.describe(weight)}")
    used = array != 0
    nonzeros = int(np.count_nonzero(used))
    by_size = sorted(BLOCKS[type(values)], key=lambda block: block[0] * block[1], reverse=True)
    return next(block for block in by_size if nonzeros >= FULL * _held(used, block))


def _held(used: NDArray[np.bool_], block: tuple[int, int]) -> int:
    """How many weights the kept blocks hold; those at the edges are smaller."""
    if block == (1, 1) or not used.size:
        return int(np.count_nonzero(used))
    tops, lefts = (np.arange(0, size, step) for size, step in zip(used.shape, block, strict=True))
    kept = np.logical_or.reduceat(np.logical_or.reduceat(used, tops, axis=0), lefts, axis=1)
    heights, widths = (np.diff(np.append(starts, size)) for starts, size in zip((tops, lefts), used.shape, strict=True))
    return int(heights @ kept @ widths)
