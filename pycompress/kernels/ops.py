"""One function for each operation: its contract, its checks, and the call of the backend."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import Int8
from . import arrays, backends
from .arrays import ArrayLike
from .packed import PackedWeight

Activation = Literal["relu"]
Per = Literal["element", "row", "column"]

_FLOAT32 = np.dtype(np.float32)
_LARGEST = float(np.finfo(np.float32).max)

ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1}


def linear(x: ArrayLike, packed: PackedWeight, activation: Activation | None = None) -> Any:
    """Multiply with a packed weight: ``y = activation(x @ w.T + bias)``.

    Int8: each row of x is quantized, ``m = max|x|``, ``q = clamp(rint(x * (127 / m)), -127, 127)`` (a row with
    ``m < 2^-100`` counts as zeros; with an ``input_scale`` s: ``q = clamp(rint(x * (1 / s)), -127, 127)``), then
    ``y = float(q @ q_w.T) * ((m / 127) * s_w[o]) + bias[o]``, in fp32 with every operation rounded once: the same bits
    on every CPU, with every backend and any number of threads. A row that holds NaN or infinity gives a row of NaN.

    Sparse: fp32 over the stored weights; the order of additions, and so the result, does not depend on the number of
    threads nor on how a batch is cut. A pruned weight times infinity is skipped.

    Parameters
    ----------
    x : [..., in_features] float32, float16 or bfloat16
        NumPy array or torch CPU tensor.
    packed : PackedWeight
    activation : None or "relu"

    Returns
    -------
    [..., out_features], kind and dtype of x

    Raises
    ------
    TypeError, ValueError
        When x has another dtype or its last dimension is not in_features, or the activation is unknown.

    Examples
    --------
    >>> from pycompress.formats import Sparse
    >>> from pycompress.kernels import pack
    >>> weight = pack(np.array([[0.0, 2.0], [-1.0, 0.0]], np.float32), Sparse())
    >>> linear(np.array([[3.0, 4.0]], np.float32), weight, activation="relu")
    array([[8., 0.]], dtype=float32)
    """
    if not isinstance(packed, PackedWeight):
        raise TypeError(f"packed must be a PackedWeight, got {type(packed).__name__}")
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    code = ACTIVATIONS[activation]
    out_features, in_features = packed.shape
    native = packed._native
    if native is not None:  # the short ways of the common cases
        if type(x) is np.ndarray:
            if x.ndim == 2 and x.dtype is _FLOAT32 and x.shape[1] == in_features and x.flags.c_contiguous:
                return native.linear(x, code, backends.get_num_threads())
        elif arrays.is_plain_tensor(x, in_features):
            y = x.new_empty((*x.shape[:-1], out_features))  # float32, whatever the default dtype is
            threads = backends.get_num_threads(for_torch=True)
            native.linear_into(x.data_ptr(), y.data_ptr(), x.numel() // in_features, code, threads)
            return y
    array = arrays.float32(x, "x")
    if array.ndim == 0 or array.shape[-1] != in_features:
        raise ValueError(f"x must have {in_features} features in its last dimension, got {arrays.describe(x)}")
    rows = array if array.ndim == 2 else array.reshape(int(np.prod(array.shape[:-1])), in_features)
    run = packed._module.int8_linear if isinstance(packed.format, Int8) else packed._module.sparse_linear
    y = run(np.ascontiguousarray(rows), packed._state, code, _threads(x))
    return arrays.restore(y if array.ndim == 2 else y.reshape(*array.shape[:-1], out_features), x)


def int8_matmul(a: ArrayLike, b: ArrayLike) -> Any:
    """Multiply int8 matrices exactly: ``c[i, j] = sum over k of a[i, k] * b[k, j]``.

    Parameters
    ----------
    a : [m, k] int8
    b : [k, n] int8

    Returns
    -------
    [m, n] int32, kind of a

    Raises
    ------
    TypeError, ValueError
        When dtypes or shapes do not fit.
    OverflowError
        When a sum does not fit into int32, possible from k = 131 072 on.

    Examples
    --------
    >>> int8_matmul(np.array([[1, -2]], np.int8), np.array([[3], [4]], np.int8))
    array([[-5]], dtype=int32)
    """
    left, right = _int8_matrix(a, "a"), _int8_matrix(b, "b")
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"b must have {left.shape[1]} rows, the columns of a, got {arrays.describe(b)}")
    c = backends.backend().int8_matmul(np.ascontiguousarray(left), np.ascontiguousarray(right), _threads(a))
    if c.dtype != np.int32:
        if c.size and max(int(c.max()), -int(c.min()) - 1) >= 2**31:
            raise OverflowError(f"a @ b must fit into int32, got a sum of magnitude {int(np.abs(c).max())}")
        c = c.astype(np.int32)
    return arrays.like(c, a)


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
    q = backends.backend().quantize(groups, scale, zero_point, low, high, np.dtype(kind), _threads(x))
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
    x = backends.backend().dequantize(groups, *parameters, _threads(values))
    return arrays.like(_ungroup(x, array, order), values)


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
        return int(backends.backend().apply_threshold(view.reshape(-1), limit, _threads(array)))
    small = np.abs(view) <= np.float32(limit)
    view[small] = 0
    return int(small.sum())


def _threads(x: ArrayLike) -> int:
    return backends.get_num_threads(for_torch=arrays.is_tensor(x))


def _shares(x: ArrayLike) -> bool:
    return not arrays.is_tensor(x) or (str(x.dtype) == "torch.float32" and not x.is_neg())


def _int8_matrix(x: ArrayLike, name: str) -> NDArray[np.int8]:
    array = arrays.view(x, name)
    if array.dtype != np.int8:
        raise TypeError(f"{name} must be int8, got {arrays.describe(x)}")
    if array.ndim != 2:
        raise ValueError(f"{name} must be 2-D, got {arrays.describe(x)}")
    return array


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


def _scores(weight: ArrayLike, per: str, power: int) -> Any:
    if not isinstance(per, str) or per not in ("element", "row", "column"):
        raise ValueError(f"per must be 'element', 'row' or 'column', got {per!r}")
    array = arrays.float32(weight, "weight")
    arrays.finite(array, "weight")
    if per == "element":
        return arrays.like(np.abs(array), weight)
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D, got {arrays.describe(weight)}")
    module = backends.backend()
    run = module.row_scores if per == "row" else module.column_scores
    return arrays.like(run(np.ascontiguousarray(array), power, _threads(weight)), weight)
