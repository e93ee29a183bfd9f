"""Uniform quantization of arrays: contract, checks, and the calls of the backend."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arrays, backends
from .arrays import ArrayLike


class Quantized(NamedTuple):
    """What :func:`quantize` returns, in the order that :func:`dequantize` takes.

    Examples
    --------
    >>> quantize(np.array([-2.0, 1.0], np.float32), bits=2)
    Quantized(values=array([-1,  0], dtype=int8), scale=array(2., dtype=float32), zero_point=array(0., dtype=float32))
    """

    values: Any
    """Integers in the shape of the input: (u)int8 for up to 8 bits, else (u)int16."""
    scale: Any
    """Step between neighbouring values, float32: [] or [size of axis]."""
    zero_point: Any
    """Where zero lies on the integer axis, a real number in float32, shape of scale."""


def quantize(
    x: ArrayLike,
    bits: int = 8,
    *,
    scheme: Literal["symmetric", "affine"] = "symmetric",
    signed: bool = True,
    axis: int | None = None,
) -> Quantized:
    """Round to a uniform grid: ``q = clamp(rint(x / scale + zero_point), low, high)``, each operation in fp32.

    Symmetric: ``scale = max|x| / (2^(bits-1) - 1)``, ``zero_point = 0``, ``high = -low = 2^(bits-1) - 1``.
    Affine: ``scale = (max - min) / (2^bits - 1)``, ``zero_point = low - min / scale``, so that q runs from ``low`` at
    the minimum to ``high`` at the maximum; ``low`` is 0 unsigned and ``-2^(bits-1)`` signed.
    Where all x are equal, the scale is 1. The inverse is :func:`dequantize`.

    Parameters
    ----------
    x : [any shape] float32, float16 or bfloat16
    bits : int
        2 to 16.
    scheme : "symmetric" or "affine"
    signed : bool
        Symmetric grids are signed.
    axis : int, optional
        One scale for each index of this axis, instead of one for the tensor.

    Returns
    -------
    Quantized
        ``values``, ``scale``, ``zero_point``, of the kind of x.

    Raises
    ------
    TypeError, ValueError
        When x is not a float array, holds NaN or infinity, or another argument is out of range.

    Examples
    --------
    >>> quantize(np.array([0.0, 0.2, 1.0], np.float32), scheme="affine", signed=False).values
    array([  0,  51, 255], dtype=uint8)
    """
    array = arrays.float32(x, "x")
    arrays.finite(array, "x")
    bits = arrays.integer(bits, "bits", 2, 16)
    if not isinstance(scheme, str) or scheme not in ("symmetric", "affine"):
        raise ValueError(f"scheme must be 'symmetric' or 'affine', got {scheme!r}")
    if not isinstance(signed, bool):
        raise TypeError(f"signed must be a bool, got {type(signed).__name__}")
    if scheme == "symmetric" and not signed:
        raise ValueError("signed must be True with scheme='symmetric'")
    groups, order = _groups(array, axis)
    if scheme == "symmetric":
        high = 2 ** (bits - 1) - 1
        low = -high
        span = np.abs(groups).max(axis=1, initial=0).astype(np.float32)
        scale = _scale(span, high)
        zero_point = np.zeros_like(scale)
    else:
        low = -(2 ** (bits - 1)) if signed else 0
        high = low + 2**bits - 1
        smallest = groups.min(axis=1) if groups.shape[1] else np.zeros(groups.shape[0], np.float32)
        largest = groups.max(axis=1) if groups.shape[1] else smallest
        with np.errstate(over="ignore"):
            span = largest - smallest
        if not np.isfinite(span).all():
            raise ValueError("x must have a range, max - min, that fits into float32")
        scale = _scale(span, high - low)
        zero_point = np.float32(low) - smallest / scale
    kind = f"{'' if signed else 'u'}int{8 if bits <= 8 else 16}"
    q = backends.backend().quantize(groups, scale, zero_point, low, high, np.dtype(kind), backends.threads_for(x))
    shape: tuple[int, ...] = () if axis is None else (-1,)
    return Quantized(
        arrays.like(_ungroup(q, array, order), x),
        arrays.like(scale.reshape(shape), x),
        arrays.like(zero_point.reshape(shape), x),
    )


def dequantize(values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, *, axis: int | None = None) -> Any:
    """Invert :func:`quantize`: ``x = (q - zero_point) * scale``, each operation in fp32.

    Parameters
    ----------
    values : [any shape] int8, uint8, int16 or uint16
    scale, zero_point : [] or [size of axis] float32
    axis : int, optional
        The axis that scale and zero_point belong to.

    Returns
    -------
    [shape of values] float32, kind of values

    Raises
    ------
    TypeError, ValueError
        When a dtype or shape does not fit, or scale or zero_point holds NaN or infinity.

    Examples
    --------
    >>> x = np.array([-1.0, 0.0, 1.0], np.float32)
    >>> dequantize(*quantize(x))
    array([-1.,  0.,  1.], dtype=float32)
    """
    array = arrays.view(values, "values")
    if array.dtype.newbyteorder("=") not in map(np.dtype, (np.int8, np.uint8, np.int16, np.uint16)):
        raise TypeError(f"values must be int8, uint8, int16 or uint16, got {arrays.describe(values)}")
    groups, order = _groups(array.astype(array.dtype.newbyteorder("="), copy=False), axis)
    parameters = []
    for parameter, name in ((scale, "scale"), (zero_point, "zero_point")):
        vector = arrays.float32(parameter, name)
        arrays.finite(vector, name)
        expected = () if axis is None else (groups.shape[0],)
        if vector.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {vector.shape}")
        parameters.append(np.ascontiguousarray(vector.reshape(-1)))
    x = backends.backend().dequantize(groups, *parameters, backends.threads_for(values))
    return arrays.like(_ungroup(x, array, order), values)


def _groups(array: NDArray[Any], axis: int | None) -> tuple[NDArray[Any], int | None]:
    """Return the array as [groups, n], one group for each index of axis, contiguous."""
    if axis is None:
        return np.ascontiguousarray(array).reshape(1, array.size), None
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis must be an int or None, got {type(axis).__name__}")
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis must be inside the {array.ndim} dimensions, got {axis}")
    axis = int(axis) % array.ndim
    moved = np.moveaxis(array, axis, 0)
    size = moved.shape[0]
    return np.ascontiguousarray(moved).reshape(size, array.size // size if size else 0), axis


def _ungroup(groups: NDArray[Any], array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    if axis is None:
        return groups.reshape(array.shape)
    moved = np.moveaxis(array, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(groups.reshape(moved), 0, axis))


def _scale(span: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Span / steps, but 1 where that is zero or so small that a division by it overflows."""
    scale = span / np.float32(steps)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
