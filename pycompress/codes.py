"""The coding of weights in files and pickles: nonzeros, and integers of a few bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SKIP = 255


def encode_nonzeros(dense: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Code an array as the distances between its nonzeros, and their values.

    Each code of 0..254 says how many zeros precede the next value in C order; 255 says that 255 zeros follow and no
    value. Trailing zeros are not coded. Decoding needs the shape.

    Parameters
    ----------
    dense : [any shape] any numeric dtype
        The array.

    Returns
    -------
    gaps : [nonzeros + skips] uint8
    values : [nonzeros], dtype of ``dense``

    Examples
    --------
    >>> encode_nonzeros(np.array([0, 0, 7, 0, -3], np.int8))
    (array([2, 1], dtype=uint8), array([ 7, -3], dtype=int8))
    """
    flat = np.ascontiguousarray(dense).reshape(-1)
    positions = np.flatnonzero(flat)
    distances = np.diff(positions, prepend=-1) - 1
    skips = distances // _SKIP
    gaps = np.full(positions.size + int(skips.sum()), _SKIP, np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = distances % _SKIP
    return gaps, flat[positions]


def decode_nonzeros(gaps: NDArray[np.uint8], values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Invert :func:`encode_nonzeros`.

    Parameters
    ----------
    gaps : [nonzeros + skips] uint8
    values : [nonzeros]
    shape : tuple of int
        Shape of the result.

    Returns
    -------
    [shape], dtype of ``values``

    Raises
    ------
    ValueError
        When the number of values is not the number of codes below 255, or a position lies outside the shape.

    Examples
    --------
    >>> decode_nonzeros(np.array([2, 1], np.uint8), np.array([7, -3], np.int8), (5,))
    array([ 0,  0,  7,  0, -3], dtype=int8)
    """
    if gaps.ndim != 1 or gaps.dtype != np.uint8:
        raise ValueError(f"gaps must be 1-D uint8, got {gaps.shape} {gaps.dtype}")
    if values.ndim != 1:
        raise ValueError(f"values must be 1-D, got {values.shape}")
    is_value = gaps != _SKIP
    if int(is_value.sum()) != values.size:
        raise ValueError(f"gaps must hold one code for each of the {values.size} values, got {int(is_value.sum())}")
    ends = np.cumsum(gaps.astype(np.int64) + is_value)
    size = int(np.prod(shape, dtype=np.int64))
    if ends.size and int(ends[-1]) > size:
        raise ValueError(f"gaps must stay inside shape {shape}, got position {int(ends[-1]) - 1}")
    dense = np.zeros(size, values.dtype)
    dense[ends[is_value] - 1] = values
    return dense.reshape(shape)


def encode_nibbles(integers: NDArray[np.int8], offset: int) -> NDArray[np.uint8]:
    """Code integers two to a byte, as ``q + offset`` from 0 to 15: in C order, the first one in the low half.

    Parameters
    ----------
    integers : [any shape] int8
    offset : int

    Returns
    -------
    [ceil(size / 2)] uint8

    Examples
    --------
    >>> encode_nibbles(np.array([-8, 7, 0], np.int8), 8)
    array([240,   8], dtype=uint8)
    """
    codes = np.zeros((integers.size + 1) // 2 * 2, np.uint8)
    codes[: integers.size] = integers.reshape(-1) + np.int8(offset)
    return codes[::2] | codes[1::2] << np.uint8(4)


def decode_nibbles(nibbles: NDArray[np.uint8], offset: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Invert :func:`encode_nibbles`.

    Parameters
    ----------
    nibbles : [ceil(size / 2)] uint8
    offset : int
    shape : tuple of int
        Shape of the result.

    Returns
    -------
    [shape] int8

    Raises
    ------
    ValueError
        When there are not as many bytes as the shape needs, or the unused half of the last one is not 0.

    Examples
    --------
    >>> decode_nibbles(np.array([240, 8], np.uint8), 8, (3,))
    array([-8,  7,  0], dtype=int8)
    """
    size = int(np.prod(shape, dtype=np.int64))
    if nibbles.ndim != 1 or nibbles.dtype != np.uint8 or nibbles.size != (size + 1) // 2:
        raise ValueError(f"nibbles must be {(size + 1) // 2} uint8, got {nibbles.shape} {nibbles.dtype}")
    codes = np.stack([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=1).reshape(-1)
    if codes[size:].any():
        raise ValueError(f"nibbles must end with 0, got {codes[-1]}")
    return (codes[:size].view(np.int8) - np.int8(offset)).reshape(shape)
