"""4-bit weights: checked, or rounded from floats."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats import Int4
from . import arrays
from .arrays import ArrayLike
from .reference import Float, Int4Parts, Int8Array

_OUTPUTS = 256  # rounded at a time: the temporary arrays stay small
_LARGEST = 15  # multiplier: q * m lies within an int8


def parts(
    weight: NDArray[Any],
    format: Int4,
    scale: ArrayLike | None,
    zero_point: ArrayLike | None,
    multiplier: ArrayLike | None,
) -> Int4Parts:
    """Return what a 4-bit weight is made of; ``kernels.pack`` describes the arguments.

    Parameters
    ----------
    weight : [out, in] float32, finite, or int8
    format : Int4
    scale, zero_point, multiplier
        As given to ``pack``.

    Returns
    -------
    Int4Parts

    Raises
    ------
    TypeError, ValueError
        When they do not fit the format or each other.

    Examples
    --------
    >>> parts(np.array([[-8.0, 3.5]], np.float32), Int4(), None, None, None).weight
    array([[-8,  4]], dtype=int8)
    """
    side = (weight.shape[0], -(-weight.shape[1] // format.group))
    integers = weight.dtype == np.int8
    given = scale is not None
    if zero_point is not None and not format.zero_point:
        raise ValueError(f"zero_point must be None with {format}")
    if multiplier is not None and format.scales != "int":
        raise ValueError(f"multiplier must be None with {format}")
    second, name = (multiplier, "multiplier") if format.scales == "int" else (zero_point, "zero_point")
    if (format.zero_point or format.scales == "int") and (second is not None) != given:
        missing, other = ("scale", name) if given is False else (name, "scale")
        raise ValueError(f"{missing} must be given with {other} for {format}")
    if integers and not given:
        raise ValueError("scale must be given with an int8 weight")
    low, high = (0, 15) if format.zero_point else (-8, 7)
    if integers and weight.size and not (weight.min() >= low and weight.max() <= high):
        raise ValueError(
            f"weight must hold integers from {low} to {high} for {format}, got {int(weight.min())} to "
            f"{int(weight.max())}"
        )
    if not given:
        blocks = [_rounded(weight[o : o + _OUTPUTS], format) for o in range(0, max(1, weight.shape[0]), _OUTPUTS)]
        columns = [None if block[0] is None else np.concatenate(block) for block in zip(*blocks, strict=True)]
        return Int4Parts(cast(Int8Array, columns[0]), format.group, *columns[1:])
    if format.scales == "int":
        channel = _floats(cast(ArrayLike, scale), side[:1])
        if not (channel > 0).all():
            raise ValueError(f"scale must be positive, got {float(channel.min())}")
        factors = _bytes(cast(ArrayLike, multiplier), "multiplier", side, 1, _LARGEST)
        made = Int4Parts(np.zeros(weight.shape, np.int8), format.group, multiplier=factors, channel_scale=channel)
        step = made.along(factors) * channel[:, None]
    else:
        half = _half(_floats(cast(ArrayLike, scale), side), "scale")
        zero = None if zero_point is None else _bytes(zero_point, "zero_point", side, 0, 15)
        made = Int4Parts(np.zeros(weight.shape, np.int8), format.group, half, zero)
        step = made.along(half).astype(np.float32)
    if integers:
        q = np.ascontiguousarray(weight)
    else:
        offset = 0 if made.zero_point is None else made.along(made.zero_point)
        with np.errstate(over="ignore"):
            q = np.rint(weight / np.where(step == 0, np.float32(np.inf), step)) + offset
        q = np.clip(q, low, high).astype(np.int8)
    return Int4Parts(q, format.group, made.scale, made.zero_point, made.multiplier, made.channel_scale)


def _rounded(weight: Float, format: Int4) -> tuple[Any, ...]:
    """Round a float weight; returns the fields of Int4Parts behind the group."""
    outputs, inputs = weight.shape
    groups = -(-inputs // format.group)
    w = np.zeros((outputs, groups * format.group), np.float32)
    w[:, :inputs] = weight
    w = w.reshape(outputs, groups, format.group)
    smallest, largest = w.min(axis=2, initial=0), w.max(axis=2, initial=0)
    scale = zero = factors = channel = None
    if format.scales == "int":
        wanted = np.maximum(largest / np.float32(7), smallest / np.float32(-8))
        channel = wanted.max(axis=1, initial=0) / np.float32(_LARGEST)
        channel = np.where(channel < np.finfo(np.float32).tiny, np.float32(1), channel)
        factors, q = _best_factors(w, wanted / channel[:, None], channel)
    elif format.zero_point:
        with np.errstate(over="ignore"):
            scale = _scale_of((largest - smallest) / np.float32(15))
        zero = np.clip(np.rint(-smallest / scale.astype(np.float32)), 0, 15).astype(np.uint8)
        q = np.clip(np.rint(w / scale[:, :, None].astype(np.float32)) + zero[:, :, None], 0, 15)
    else:
        # The extreme becomes -8, the end of the range that reaches further: a fifth less squared error than max|w| / 7.
        scale = _scale_of(np.where(largest > -smallest, largest, smallest) / np.float32(-8))
        q = np.clip(np.rint(w / scale[:, :, None].astype(np.float32)), -8, 7)
    q = np.ascontiguousarray(q.astype(np.int8).reshape(outputs, groups * format.group)[:, :inputs])
    return q, scale, zero, factors, channel


def _best_factors(w: Float, ratio: Float, channel: Float) -> tuple[NDArray[np.uint8], Float]:
    """Round the ratio of each group's scale to its output's up or down, whichever has the smaller squared error."""
    found = []
    for rounding in (np.floor, np.ceil):
        factors = np.clip(rounding(ratio), 1, _LARGEST).astype(np.float32)
        step = (factors * channel[:, None])[:, :, None]
        q = np.clip(np.rint(w / step), -8, 7)
        found.append((factors, q, np.square(((w - q * step) / channel[:, None, None]).astype(np.float64)).sum(axis=2)))
    (low, q_low, low_error), (high, q_high, high_error) = found
    better = low_error < high_error
    return np.where(better, low, high).astype(np.uint8), np.where(better[:, :, None], q_low, q_high)


def _scale_of(scale: Float) -> NDArray[np.float16]:
    """Return scales as float16, 1 where they vanish."""
    half = _half(scale, "weight")
    return np.where(half == 0, np.float16(1), half)


def _half(scale: Float, name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{name} must fit float16 scales, got a scale of {float(np.abs(scale).max()):.3g}")
    return half


def _floats(x: ArrayLike, shape: tuple[int, ...]) -> Float:
    array = arrays.float32(x, "scale")
    arrays.finite(array, "scale")
    if array.shape != shape:
        raise ValueError(f"scale must have shape {shape}, got {arrays.describe(x)}")
    return array.copy()


def _bytes(x: ArrayLike, name: str, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.uint8]:
    array = arrays.view(x, name)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, got {arrays.describe(x)}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {arrays.describe(x)}")
    if array.size and not (array.min() >= low and array.max() <= high):
        raise ValueError(f"{name} must be from {low} to {high}, got {int(array.min())} to {int(array.max())}")
    return np.array(array, order="C")
