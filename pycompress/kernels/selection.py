"""Scores of weights and selection by them: contract, checks, and the calls of the backend."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from . import arrays, backends
from .arrays import ArrayLike
from .reference.selection import widened

Per = Literal["element", "row", "column"]

_LARGEST = float(np.finfo(np.float32).max)


class Norms(NamedTuple):
    """L1 and L2 norms, of the same rows, columns or blocks.

    Examples
    --------
    >>> Norms(np.array([7.0]), np.array([5.0])).l2
    array([5.])
    """

    l1: Any
    l2: Any


class Kept(NamedTuple):
    """What is above a threshold, in the forms that were asked for; see :func:`above`.

    Examples
    --------
    >>> above(np.array([3.0, 0.5], np.float32), 1.0).zeros
    1
    """

    zeros: int
    mask: Any
    bitmap: Any
    gaps: Any
    values: Any


def norms(
    weight: ArrayLike,
    per: Literal["row", "column"] | tuple[int, int] = "row",
    *,
    gradient: ArrayLike | None = None,
    input_norms: ArrayLike | None = None,
) -> Norms:
    """L1 and L2 norm of each row, column or block, in one pass: ``sum v`` and ``sqrt(sum v^2)``.

    ``v = |w|``; with ``gradient`` ``|w * g|`` (Taylor, Molchanov et al. 2019); with ``input_norms`` ``|w| * norm2(x)``
    of the input that w multiplies (Wanda, Sun et al. 2024). Sums are kept in double precision, in an order that only
    the sizes decide: the same for any number of threads.

    Parameters
    ----------
    weight : [rows, columns] float32, float16 or bfloat16
        Read as it lies, without a copy where it is contiguous.
    per : "row", "column" or (int, int)
        Height and width of blocks; those at the right and lower edge are smaller where it does not divide the weight.
    gradient : [rows, columns], optional
        Best of the type of ``weight``: another one is widened first.
    input_norms : [columns] float32, optional
        0 or more. Give this or ``gradient``.

    Returns
    -------
    Norms
        ``l1`` and ``l2``, float32 [rows], [columns] or [ceil(rows / height), ceil(columns / width)], kind of weight.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or shape, or holds NaN or infinity.

    Examples
    --------
    >>> weight = np.array([[3.0, -4.0, 1.0], [0.0, 0.0, 1.0]], np.float32)
    >>> norms(weight).l2.round(2)
    array([5.1, 1. ], dtype=float32)
    >>> norms(weight, (2, 2)).l1
    array([[7., 2.]], dtype=float32)
    >>> norms(weight, "column", input_norms=np.array([1, 0.5, 2], np.float32)).l1
    array([3., 2., 4.], dtype=float32)
    """
    array = arrays.narrow(weight, "weight")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D, got {arrays.describe(weight)}")
    if gradient is not None and input_norms is not None:
        raise ValueError("gradient and input_norms must not both be given")
    slopes = None if gradient is None else arrays.narrow(gradient, "gradient")
    if slopes is not None and slopes.shape != array.shape:
        raise ValueError(f"gradient must have the shape of weight, {array.shape}, got {arrays.describe(gradient)}")
    if slopes is not None and slopes.dtype != array.dtype:
        array, slopes = widened(array), widened(slopes)
    slopes = None if slopes is None else np.ascontiguousarray(slopes)
    factor = None if input_norms is None else np.ascontiguousarray(arrays.float32(input_norms, "input_norms"))
    if factor is not None:
        if factor.shape != (array.shape[1],):
            raise ValueError(f"input_norms must have shape ({array.shape[1]},), got {arrays.describe(input_norms)}")
        arrays.finite(factor, "input_norms")
        if (factor < 0).any():
            raise ValueError(f"input_norms must be 0 or more, got {factor.min()}")
    height, width = _block(per, array.shape)
    if array.size:
        contiguous = np.ascontiguousarray(array), height, width, slopes, factor
        l1, l2 = backends.backend().block_norms(*contiguous, backends.threads_for(weight))
    else:
        l1, l2 = (np.zeros((-(-array.shape[0] // height), -(-array.shape[1] // width)), np.float32) for _ in range(2))
    if not np.isfinite(l2).all():  # from such an input, or from a sum beyond float32
        arrays.finite(widened(array), "weight")
        if slopes is not None:
            arrays.finite(widened(slopes), "gradient")
    if isinstance(per, str):
        rows_or_columns = array.shape[per == "column"]
        l1, l2 = (part.reshape(-1) if array.size else np.zeros(rows_or_columns, np.float32) for part in (l1, l2))
    return Norms(arrays.like(l1, weight), arrays.like(l2, weight))


def _block(per: object, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the blocks, not above those of the weight."""
    rows, columns = max(1, shape[0]), max(1, shape[1])
    if isinstance(per, str) and per in ("row", "column"):
        return (1, columns) if per == "row" else (rows, 1)
    if not isinstance(per, tuple) or len(per) != 2:
        raise ValueError(f"per must be 'row', 'column' or (height, width), got {per!r}")
    height, width = (arrays.integer(size, f"per[{i}]", 1) for i, size in enumerate(per))
    return min(height, rows), min(width, columns)


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
    """Return the exact k-th smallest magnitude over several arrays, without joining or widening them.

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
    flat = [np.ascontiguousarray(arrays.narrow(a, f"tensors[{i}]")).reshape(-1) for i, a in enumerate(tensors)]
    k = arrays.integer(k, "k", 1, sum(a.size for a in flat))
    value = float(backends.backend().kth_magnitude(flat, k, backends.threads_for(tensors[0])))
    if np.isnan(value):
        i = next(i for i, a in enumerate(flat) if np.isnan(widened(a)).any())
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
    limit = _limit(threshold)
    if np.isnan(view).any():
        raise ValueError("array must not hold NaN")
    if view.flags.c_contiguous:
        return int(backends.backend().apply_threshold(view.reshape(-1), limit, backends.threads_for(array)))
    small = np.abs(view) <= np.float32(limit)
    view[small] = 0
    return int(small.sum())


def above(array: ArrayLike, threshold: float, *, mask: bool = True, bitmap: bool = False, packed: bool = False) -> Kept:
    """Find every entry with ``|a| > threshold``, in the forms that are asked for, in one pass (Han et al. 2015).

    Parameters
    ----------
    array : [any shape] float32, float16 or bfloat16
    threshold : float
        0 or more.
    mask : bool
        Whether ``mask`` is wanted: int8, [shape of array], -1 (all bits set) where an entry is above, else 0.
    bitmap : bool
        Whether ``bitmap`` is wanted: uint8, [ceil(size / 8)]; in C order, entry i is bit ``i % 8`` of byte ``i // 8``.
    packed : bool
        Whether ``gaps`` (uint8) and ``values`` (kind and dtype of array) are wanted, 1-D: each code of 0 to 254 says
        how many other entries stand before the next value in C order; 255 says that 255 do, and no value. It is how
        files hold pruned weights.

    Returns
    -------
    Kept
        ``zeros``, how many entries are not above, and the forms; None for those that were not asked for.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, the array holds NaN, or the threshold is negative or NaN.

    Examples
    --------
    >>> kept = above(np.array([0.5, -2.0, 0.1, 3.0], np.float32), 0.5, bitmap=True, packed=True)
    >>> kept.mask, kept.bitmap
    (array([ 0, -1,  0, -1], dtype=int8), array([10], dtype=uint8))
    >>> kept.gaps, kept.values
    (array([1, 1], dtype=uint8), array([-2.,  3.], dtype=float32))
    """
    flat = np.ascontiguousarray(arrays.narrow(array, "array"))
    shape, flat = flat.shape, flat.reshape(-1)
    wanted = {"mask": mask, "bitmap": bitmap, "packed": packed}
    for name, value in wanted.items():
        arrays.flag(value, name)
    limit = _limit(threshold)
    found = backends.backend().above(flat, limit, mask, bitmap, packed, backends.threads_for(array))
    if found.zeros < 0:
        raise ValueError("array must not hold NaN")
    marks = None if found.mask is None else arrays.like(found.mask.reshape(shape), array)
    bits, gaps = (None if part is None else arrays.like(part, array) for part in (found.bitmap, found.gaps))
    values = None if found.values is None else arrays.restore(found.values, array)
    return Kept(found.zeros, marks, bits, gaps, values)


def nm_mask(weight: ArrayLike, n: int, m: int) -> Any:
    """Mark the n entries of largest magnitude of each m consecutive columns; of equal ones those of higher index.

    A group at the end of a row that is smaller than m keeps n too. Mishra et al. 2021, Accelerating sparse deep neural
    networks.

    Parameters
    ----------
    weight : [rows, columns] float32, float16 or bfloat16
    n : int
        Entries kept, 1 to m - 1.
    m : int
        2 to 32.

    Returns
    -------
    int8, [rows, columns], kind of weight
        -1 (all bits set) where an entry is kept, else 0.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, shape or range, or weight holds NaN.

    Examples
    --------
    >>> nm_mask(np.array([[4.0, -1.0, 3.0, 2.0, 5.0]], np.float32), 2, 4)
    array([[-1,  0, -1,  0, -1]], dtype=int8)
    """
    array = arrays.narrow(weight, "weight")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D, got {arrays.describe(weight)}")
    m = arrays.integer(m, "m", 2, 32)
    n = arrays.integer(n, "n", 1, m - 1)
    mask = backends.backend().nm_mask(np.ascontiguousarray(array), n, m, backends.threads_for(weight))
    if mask is None:
        raise ValueError("weight must not hold NaN")
    return arrays.like(mask, weight)


def _limit(threshold: object) -> float:
    """Return the largest float32 that is not above the threshold."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.floating)):
        raise TypeError(f"threshold must be a float, got {type(threshold).__name__}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}")
    limit = np.inf if threshold == np.inf else float(np.float32(min(threshold, _LARGEST)))
    return float(np.nextafter(np.float32(limit), np.float32(0))) if limit > threshold else float(limit)


def _shares(x: ArrayLike) -> bool:
    return not arrays.is_tensor(x) or (str(x.dtype) == "torch.float32" and not x.is_neg())


def _scores(weight: ArrayLike, per: str, power: int) -> Any:
    if not isinstance(per, str) or per not in ("element", "row", "column"):
        raise ValueError(f"per must be 'element', 'row' or 'column', got {per!r}")
    if per == "element":
        array = arrays.float32(weight, "weight")
        arrays.finite(array, "weight")
        return arrays.like(np.abs(array), weight)
    return norms(weight, "row" if per == "row" else "column")[power - 1]
