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


def codes_of(integers: NDArray[np.int8], bits: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the table of the numbers that integers take, in order, and the place of each in it.

    Parameters
    ----------
    integers : [any shape] int8
        At most 2^bits different ones.
    bits : 1, 2 or 4

    Returns
    -------
    table : [2^bits] int8
        Its last number again where there are fewer; zeros where there is none.
    codes : [shape of integers] int8

    Raises
    ------
    ValueError
        When there are more different integers.

    Examples
    --------
    >>> codes_of(np.array([5, -3, 5], np.int8), 2)
    (array([-3,  5,  5,  5], dtype=int8), array([1, 0, 1], dtype=int8))
    """
    present = np.bincount(integers.reshape(-1).view(np.uint8), minlength=256)
    found = np.sort(np.flatnonzero(present).astype(np.uint8).view(np.int8))
    if found.size > 2**bits:
        raise ValueError(f"integers must have at most {2**bits} different values, got {found.size}")
    last = found[-1] if found.size else np.int8(0)
    table = np.concatenate([found, np.full(2**bits - found.size, last, np.int8)])
    place = np.zeros(256, np.int8)
    place[found.view(np.uint8)] = np.arange(found.size)
    return table, place[integers.view(np.uint8)]


def encode_codes(integers: NDArray[np.int8], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Code integers that take few values by their places in a table, 8 / bits to a byte.

    In C order, the first one in the lowest bits of a byte; the unused bits of the last byte are 0.

    Parameters
    ----------
    integers : [any shape] int8
    bits : 1, 2 or 4

    Returns
    -------
    codes : [ceil(size * bits / 8)] uint8
    table : [at most 2^bits] int8
        The different integers, in order.

    Raises
    ------
    ValueError
        When there are more of them.

    Examples
    --------
    >>> encode_codes(np.array([5, -3, 5], np.int8), 2)
    (array([17], dtype=uint8), array([-3,  5], dtype=int8))
    """
    table, places = codes_of(integers, bits)
    each = 8 // bits
    codes = np.zeros(-(-integers.size // each) * each, np.uint8)
    codes[: integers.size] = places.reshape(-1)
    coded = np.bitwise_or.reduce(codes.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * bits), axis=1)
    return coded.astype(np.uint8), np.unique(table) if integers.size else table[:0]


def decode_codes(
    codes: NDArray[np.uint8], table: NDArray[np.int8], bits: int, shape: tuple[int, ...]
) -> NDArray[np.int8]:
    """Invert :func:`encode_codes`.

    Parameters
    ----------
    codes : [ceil(size * bits / 8)] uint8
    table : [at most 2^bits] int8
    bits : 1, 2 or 4
    shape : tuple of int
        Shape of the result.

    Returns
    -------
    [shape] int8

    Raises
    ------
    ValueError
        When there are not as many bytes as the shape needs, unused bits are not 0, the table is longer or not in
        order, or a code lies outside of it.

    Examples
    --------
    >>> decode_codes(np.array([17], np.uint8), np.array([-3, 5], np.int8), 2, (3,))
    array([ 5, -3,  5], dtype=int8)
    """
    size, each = int(np.prod(shape, dtype=np.int64)), 8 // bits
    if codes.ndim != 1 or codes.dtype != np.uint8 or codes.size != -(-size // each):
        raise ValueError(f"codes must be {-(-size // each)} uint8, got {codes.shape} {codes.dtype}")
    if table.ndim != 1 or table.dtype != np.int8 or table.size > 2**bits:
        raise ValueError(f"table must be at most {2**bits} int8, got {table.shape} {table.dtype}")
    if (np.diff(table.astype(np.int16)) <= 0).any():
        raise ValueError(f"table must increase, got {table.tolist()}")
    places = codes[:, None] >> (np.arange(each, dtype=np.uint8) * np.uint8(bits)) & np.uint8(2**bits - 1)
    places = places.reshape(-1)
    if places[size:].any():
        raise ValueError(f"codes must end with 0, got {places[-1]}")
    if size and int(places.max()) >= table.size:
        raise ValueError(f"codes must be below {table.size}, the size of the table, got {int(places.max())}")
    integers: NDArray[np.int8] = table[places[:size]].reshape(shape)
    return integers
