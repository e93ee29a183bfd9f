"""Weights of few bits: checked, or found from floats by k-means (2 and 4 bits)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats import Codebook
from . import arrays
from .arrays import ArrayLike
from .reference import CodebookParts, Float, Int8Array

_OUTPUTS = 256  # at a time: the temporary arrays stay small
_SAMPLE = 1 << 20  # weights that the table is found from, about
_BINS = 8192  # of the histogram that k-means runs on
_STEPS = 200  # of k-means, at most; it stops where nothing moves
_ROUNDS = 4  # of finding the table and the scales from each other


def parts(weight: NDArray[Any], format: Codebook, scale: ArrayLike | None) -> CodebookParts:
    """Return what a weight of few bits is made of; ``kernels.pack`` describes the arguments.

    Parameters
    ----------
    weight : [out, in] float32, finite, or int8
    format : Codebook
    scale : as given to ``pack``

    Returns
    -------
    CodebookParts

    Raises
    ------
    TypeError, ValueError
        When they do not fit the format or each other.

    Examples
    --------
    >>> parts(np.array([[-2.0, 1.0, 0.5, 1.0]], np.float32), Codebook(bits=2), None).weight
    array([[-127,   64,   32,   64]], dtype=int8)
    """
    groups = -(-weight.shape[1] // format.group)
    half = None if scale is None else given_scale(scale, (weight.shape[0], groups))
    if weight.dtype == np.int8:
        found = np.flatnonzero(np.bincount(weight.reshape(-1).view(np.uint8), minlength=256))
        if found.size > 2**format.bits:
            raise ValueError(
                f"weight must hold at most {2**format.bits} different integers for {format}, got {found.size}"
            )
        if 128 in found:  # as uint8
            raise ValueError(f"weight must hold integers from -127 to 127 for {format}, got -128")
        return CodebookParts(np.ascontiguousarray(weight), format.bits, format.group, half)
    grouped = [_grouped(weight[o : o + _OUTPUTS], format.group) for o in range(0, max(1, len(weight)), _OUTPUTS)]
    table, start = _table(weight, format, half)
    found_weight, found_scale = [], []
    for i, (w, inside) in enumerate(grouped):
        if half is not None:
            s = half[i * _OUTPUTS : (i + 1) * _OUTPUTS]
        else:
            s = _half(_fitted(w, inside, _largest(w) * start, table.astype(np.float32)) if w.size else _largest(w))
        q = table[_nearest(_scaled(w, s.astype(np.float32)), table.astype(np.float32))]
        found_weight.append(q.reshape(len(w), groups * format.group)[:, : weight.shape[1]])
        found_scale.append(s)
    integers = np.ascontiguousarray(np.concatenate(found_weight))
    return CodebookParts(integers, format.bits, format.group, np.concatenate(found_scale))


def _table(weight: Float, format: Codebook, half: NDArray[np.float16] | None) -> tuple[Int8Array, np.float32]:
    """Return the table of a weight, and what the largest magnitude of a group is to be multiplied by for its scale.

    From evenly chosen outputs: k-means of the weights under their scales, weighted by the squares of these, which is
    the error of the weights themselves; then the scales of least squared error under the table, and again.
    """
    step = max(1, weight.size // _SAMPLE)
    w, inside = _grouped(weight[::step], format.group)
    if not w.any():
        return np.zeros(1, np.int8), np.float32(1 / 127)
    s = _largest(w) if half is None else half[::step].astype(np.float32)
    centroids: NDArray[np.float64] | None = None
    for _ in range(_ROUNDS if half is None else 1):
        centroids = _k_means(
            _scaled(w, s)[inside], np.broadcast_to(np.square(s)[:, :, None], w.shape)[inside], 2**format.bits, centroids
        )
        if half is None:
            s = _fitted(w, inside, s, centroids.astype(np.float32))
    assert centroids is not None
    largest = np.abs(centroids).max()
    factor = 127 / largest if half is None and largest > 0 else 1.0
    table = np.unique(np.clip(np.rint(centroids * factor), -127, 127)).astype(np.int8)
    return table, np.float32(1 / factor)


def _k_means(u: Float, mass: Float, count: int, centroids: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the centroids [count] of numbers with a mass, in order; they begin evenly spaced."""
    low, high = float(u.min()), float(u.max())
    if low == high:
        return np.full(count, low)
    bins = np.minimum(((u - low) * ((_BINS - 1) / (high - low))).astype(np.int64), _BINS - 1)
    masses = np.concatenate([[0], np.cumsum(np.bincount(bins, mass, _BINS))])
    moments = np.concatenate([[0], np.cumsum(np.bincount(bins, mass * u, _BINS))])
    c = np.linspace(low, high, count) if centroids is None else centroids
    for _ in range(_STEPS):
        middles = (c[1:] + c[:-1]) / 2
        ends = np.clip(np.ceil((middles - low) * ((_BINS - 1) / (high - low))), 0, _BINS).astype(np.int64)
        ends = np.concatenate([[0], ends, [_BINS]])
        m = np.diff(masses[ends])
        moved = np.sort(np.where(m > 0, np.diff(moments[ends]) / np.where(m > 0, m, 1), c))
        if np.abs(moved - c).max() <= 1e-5 * (high - low):
            return moved
        c = moved
    return c


def _fitted(w: Float, inside: NDArray[np.bool_], s: Float, centroids: Float) -> Float:
    """Return the scales of least squared error for the numbers that are nearest under the scales s."""
    c = centroids[_nearest(_scaled(w, s), centroids)] * inside
    square = np.square(c).sum(axis=2)
    fitted = (w * c).sum(axis=2) / np.where(square == 0, np.float32(1), square)
    return np.where(fitted > 0, fitted, s).astype(np.float32)


def _scaled(w: Float, s: Float) -> Float:
    return cast("Float", w / np.where(s == 0, np.float32(np.inf), s)[:, :, None])


def _nearest(u: Float, numbers: Float) -> NDArray[np.int64]:
    """Return the place of the number that is nearest to each u; the lower one of two."""
    return np.searchsorted((numbers[1:] + numbers[:-1]) / np.float32(2), u)


def _largest(w: Float) -> Float:
    return cast("Float", np.abs(w).max(axis=2, initial=0))


def _grouped(weight: Float, group: int) -> tuple[Float, NDArray[np.bool_]]:
    """Return the weight as [out, groups, group], and where it is not padded."""
    outputs, inputs = weight.shape
    groups = -(-inputs // group)
    w = np.zeros((outputs, groups * group), np.float32)
    w[:, :inputs] = weight
    inside = np.broadcast_to(np.arange(groups * group) < inputs, w.shape)
    return w.reshape(outputs, groups, group), inside.reshape(outputs, groups, group)


def given_scale(scale: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Return given scales of groups as float16, checked."""
    array = arrays.float32(scale, "scale")
    arrays.finite(array, "scale")
    if array.shape != shape:
        raise ValueError(f"scale must have shape {shape}, got {arrays.describe(scale)}")
    return _half(array, "scale")


def _half(scale: Float, name: str = "weight") -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{name} must fit float16 scales, got a scale of {float(np.abs(scale).max()):.3g}")
    return half
