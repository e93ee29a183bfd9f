"""Scores of weights and selection by them: contract, checks, and the calls of the backend."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from . import arrays, backends
from .arrays import ArrayLike

Per = Literal["element", "row", "column"]

_LARGEST = float(np.finfo(np.float32).max)


def l1_scores(weight: ArrayLike, per: Per = "element") -> Any:
    """L1 norm of each element, ``|w|``, or of each row or column, ``sum |w|``.

    Parameters
    ----------
    weight : [rows, columns] float32, float16 or bfloat16; any shape per element
    per : "element", "row" or "column"

    Returns
    -------
    float32, [shape of weight], [rows] or [columns], kind of weight

    Raises
    ------
    TypeError, ValueError
        When weight is no such matrix, or holds NaN or infinity.

    Examples
    --------
    >>> l1_scores(np.array([[3.0, -4.0], [0.0, 1.0]], np.float32), per="row")
    array([7., 1.], dtype=float32)
    """
    return _scores(weight, per, 1)


def l2_scores(weight: ArrayLike, per: Per = "element") -> Any:
    """L2 norm of each element, ``|w|``, or of each row or column, ``sqrt(sum w^2)``.

    Parameters, result and errors are those of :func:`l1_scores`.

    Examples
    --------
    >>> l2_scores(np.array([[3.0, -4.0], [0.0, 1.0]], np.float32), per="row")
    array([5., 1.], dtype=float32)
    """
    return _scores(weight, per, 2)


def kth_magnitude(tensors: list[ArrayLike], k: int) -> float:
    """Return the exact k-th smallest magnitude over several arrays, without joining them.

    Parameters
    ----------
    tensors : list of float32, float16 or bfloat16 arrays of any shape
    k : int
        1 for the smallest, up to the total number of elements.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, k is out of range, or an array holds NaN (infinity is allowed).

    Examples
    --------
    >>> kth_magnitude([np.array([3.0, -1.0], np.float32), np.array([[2.0]], np.float32)], 2)
    2.0
    """
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"tensors must be a list of arrays, got {type(tensors).__name__}")
    flat = [np.ascontiguousarray(arrays.float32(a, f"tensors[{i}]")).reshape(-1) for i, a in enumerate(tensors)]
    k = arrays.integer(k, "k", 1, sum(a.size for a in flat))
    value = float(backends.backend().kth_magnitude(flat, k, backends.get_num_threads()))
    if np.isnan(value):
        i = next(i for i, a in enumerate(flat) if np.isnan(a).any())
        raise ValueError(f"tensors[{i}] must not hold NaN")
    return value


def apply_threshold(array: ArrayLike, threshold: float) -> int:
    """Set every entry with ``|a| <= threshold`` to 0, in place (Han et al. 2015).

    Parameters
    ----------
    array : [any shape] float32, writable
    threshold : float
        0 or more.

    Returns
    -------
    int
        Number of entries that are zero now.

    Raises
    ------
    TypeError, ValueError
        When the array is not writable float32, holds NaN, or the threshold is negative or NaN. Nothing is changed then.

    Examples
    --------
    >>> a = np.array([0.5, -2.0, 0.1], np.float32)
    >>> apply_threshold(a, 0.5), a
    (2, array([ 0., -2.,  0.], dtype=float32))
    """
    view = arrays.view(array.detach() if arrays.is_tensor(array) else array, "array")
    if view.dtype != np.float32 or not view.dtype.isnative or not _shares(array):
        raise TypeError(f"array must be float32, and no lazily negated view, got {arrays.describe(array)}")
    if not view.flags.writeable:
        raise ValueError("array must be writable")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.floating)):
        raise TypeError(f"threshold must be a float, got {type(threshold).__name__}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}")
    if np.isnan(view).any():
        raise ValueError("array must not hold NaN")
    limit = np.inf if threshold == np.inf else float(np.float32(min(threshold, _LARGEST)))
    if limit > threshold:  # compare with the largest float32 that is not above the threshold
        limit = float(np.nextafter(np.float32(limit), np.float32(0)))
    if view.flags.c_contiguous:
        return int(backends.backend().apply_threshold(view.reshape(-1), limit, backends.threads_for(array)))
    small = np.abs(view) <= np.float32(limit)
    view[small] = 0
    return int(small.sum())


def _shares(x: ArrayLike) -> bool:
    return not arrays.is_tensor(x) or (str(x.dtype) == "torch.float32" and not x.is_neg())


def _scores(weight: ArrayLike, per: str, power: int) -> Any:
    if not isinstance(per, str) or per not in ("element", "row", "column"):
        raise ValueError(f"per must be 'element', 'row' or 'column', got {per!r}")
    array = arrays.float32(weight, "weight")
    if per == "element":
        arrays.finite(array, "weight")
        return arrays.like(np.abs(array), weight)
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D, got {arrays.describe(weight)}")
    module = backends.backend()
    run = module.row_scores if per == "row" else module.column_scores
    scores = run(np.ascontiguousarray(array), power, backends.threads_for(weight))
    if not np.isfinite(scores).all():  # from such a weight, or from a sum beyond float32
        arrays.finite(array, "weight")
    return arrays.like(scores, weight)
