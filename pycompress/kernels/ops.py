"""Matrix products: their contracts, their checks, and the calls of the backend."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..formats import Int8
from . import arrays, backends
from .arrays import ArrayLike
from .packed import PackedWeight
from .reference.activations import CODES

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]

_FLOAT32 = np.dtype(np.float32)


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
    activation : None, "relu", "gelu", "silu", "tanh" or "sigmoid"
        GELU is ``y * Phi(y)`` with the normal distribution function itself, not with its tanh approximation.

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
    code = activation_code(activation)
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
    y = run(np.ascontiguousarray(rows), packed._state, code, backends.threads_for(x))
    return arrays.restore(y if array.ndim == 2 else y.reshape(*array.shape[:-1], out_features), x)


def activation_code(activation: object, name: str = "activation") -> int:
    """Return what kernels call an activation; a ValueError where there is no such activation."""
    code = CODES.get(activation) if activation is None or isinstance(activation, str) else None
    if code is None:
        raise ValueError(f"{name} must be one of {list(CODES)}, got {activation!r}")
    return code


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
    c = backends.backend().int8_matmul(np.ascontiguousarray(left), np.ascontiguousarray(right), backends.threads_for(a))
    if c.dtype != np.int32:
        if c.size and max(int(c.max()), -int(c.min()) - 1) >= 2**31:
            raise OverflowError(f"a @ b must fit into int32, got a sum of magnitude {int(np.abs(c).max())}")
        c = c.astype(np.int32)
    return arrays.like(c, a)


def _int8_matrix(x: ArrayLike, name: str) -> NDArray[np.int8]:
    array = arrays.view(x, name)
    if array.dtype != np.int8:
        raise TypeError(f"{name} must be int8, got {arrays.describe(x)}")
    if array.ndim != 2:
        raise ValueError(f"{name} must be 2-D, got {arrays.describe(x)}")
    return array
