"""Matrix products: their contracts, their checks, and the calls of the backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..formats import Binary, Codebook, Float32, Int4, Sparse, has_bfloat16_weights, has_int8_weights
from . import arrays, backends
from .arrays import ArrayLike
from .packed import PackedWeight, positive
from .reference.activations import CODES

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "relu6"]

_FLOAT32 = np.dtype(np.float32)
_KERNELS = {Int4: "int4_linear", Codebook: "codebook_linear", Binary: "codebook_linear", Sparse: "sparse_linear"}


def linear(
    x: ArrayLike,
    packed: PackedWeight,
    activation: Activation | None = None,
    *,
    residual: ArrayLike | None = None,
    output_scale: float | None = None,
) -> Any:
    """Multiply with a packed weight: ``y = activation(x @ w.T + bias + residual)``.

    Int8: each row of x is quantized, ``m = max|x|``, ``q = clamp(rint(x * (127 / m)), -127, 127)`` (a row with
    ``m < 2^-100`` counts as zeros; with an ``input_scale`` s: ``q = clamp(rint(x * (1 / s)), -127, 127)``), then
    ``y = float(q @ q_w.T) * ((m / 127) * s_w[o]) + bias[o]``, in fp32 with every operation rounded once: the same bits
    on every CPU, with every backend and any number of threads. A row that holds NaN or infinity gives a row of NaN.

    Int4 with float32 activations: ``y = sum over groups of s_g * (sum over the group of (q - z) * x) + bias[o]`` in
    fp32; the order of additions depends neither on the number of threads nor on how a batch is cut. With int8
    activations rows are quantized as above; A_g is the exact sum of a group; from ``t = 0``, for each group in order
    ``t = t + float(A_g) * s_g``; ``y = t * (m / 127) + bias[o]``, every operation rounded once: the same bits
    everywhere. With ``scales="int"``: as Int8, with the weights ``q * multiplier``. Codebook: as Int4 with int8
    activations, with the numbers of the table in the place of q - z. Binary: as Int8 with weights -1 and 1; with
    binary activations ``y = float(in - 2 * d) * (K * alpha[o]) + bias[o]``, where d counts the inputs whose sign is not
    that of the weight and K is the mean of |x| over the row.

    Sparse with Int8 values: the numbers of Int8, bit for bit. Else Sparse: fp32 over the stored weights; the order of
    additions, and so the result, does not depend on the number of threads nor on how a batch is cut. A pruned weight
    times infinity is skipped, unless it lies in a block that is kept. With BFloat16 values x is rounded to bfloat16
    first, and pruned weights are multiplied as zeros: :class:`pycompress.BFloat16` has the formula and its bounds.

    Parameters
    ----------
    x : [..., in_features] float32, float16 or bfloat16; or int8
        NumPy array or torch CPU tensor. int8, for Int8 with an ``input_scale``: the integers q themselves.
    packed : PackedWeight
    activation : None, "relu", "gelu", "silu", "tanh" or "sigmoid"
        GELU is ``y * Phi(y)`` with the normal distribution function itself, not with its tanh approximation.
    residual : [..., out_features] float32, float16 or bfloat16, optional
        Added before the activation; Int8 weights only.
    output_scale : float, optional
        Return ``clamp(rint(y * (1 / output_scale)), -127, 127)`` as int8 (0 for NaN) instead of y; Int8 weights only.

    Returns
    -------
    [..., out_features], kind and dtype of x (float32 where x is int8), or int8 with ``output_scale``

    Raises
    ------
    TypeError, ValueError
        When x has another dtype or its last dimension is not in_features, the activation is unknown, residual has
        another shape, or output_scale is not positive.

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
    code = 0 if activation is None else activation_code(activation)
    out_features, in_features = packed.shape
    native = packed._native
    if native is not None and residual is None and output_scale is None:  # the short ways of the common cases
        if type(x) is np.ndarray:
            if x.ndim == 2 and x.dtype is _FLOAT32 and x.shape[1] == in_features and x.flags.c_contiguous:
                return native.linear(x, code, backends.get_num_threads())
        elif arrays.is_plain_tensor(x):
            *leading, features = x.shape or (0,)
            if features == in_features > 0:
                y = x.new(*leading, out_features)  # float32, whatever the default dtype is; half the time of new_empty
                threads = backends.get_num_threads(True)
                native.linear_into(x.data_ptr(), y.data_ptr(), x.numel() // features, code, threads)
                return y
    array = _rows(x, packed)
    rows = np.ascontiguousarray(array.reshape(int(np.prod(array.shape[:-1])), in_features))
    if has_int8_weights(packed.format):
        added = None if residual is None else _residual(residual, (*array.shape[:-1], out_features))
        scale = 0.0 if output_scale is None else positive(output_scale, "output_scale")
        kind = "int8" if scale else "bfloat16" if arrays.is_bfloat16(x) else "float32"
        y = packed._module.int8_linear(rows, packed._state, code, backends.threads_for(x), added, kind, scale)
        y = y.reshape(*array.shape[:-1], out_features)
        return arrays.like(y, x) if scale else arrays.restore(y, x)
    for name, value in (("residual", residual), ("output_scale", output_scale)):
        if value is not None:
            raise ValueError(f"{name} must be None with {packed.format}: the int8 kernels take it")
    signs = packed.format == Binary("binary")
    name = "bf16_linear" if has_bfloat16_weights(packed.format) else _KERNELS[type(packed.format)]
    run = packed._module.binary_linear if signs else getattr(packed._module, name)
    y = run(rows, packed._state, code, backends.threads_for(x))
    return arrays.restore(y.reshape(*array.shape[:-1], out_features), x)


def _rows(x: ArrayLike, packed: PackedWeight) -> NDArray[Any]:
    """Return x as an array [..., in_features], float32 or, where the weight takes integers, int8."""
    array = arrays.view(x, "x")
    if array.dtype != np.int8 or not has_int8_weights(packed.format) or packed.input_scale is None:
        array = arrays.float32(x, "x")
    if array.ndim == 0 or array.shape[-1] != packed.shape[1]:
        raise ValueError(f"x must have {packed.shape[1]} features in its last dimension, got {arrays.describe(x)}")
    return array


def _residual(residual: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = arrays.float32(residual, "residual")
    if array.shape != shape:
        raise ValueError(f"residual must have the shape of the result, {shape}, got {arrays.describe(residual)}")
    return np.ascontiguousarray(array)


def linear_chain(
    x: ArrayLike, packed: Sequence[PackedWeight], activations: Sequence[Activation | None] | None = None
) -> Any:
    """Run layers one after the other: the numbers of :func:`linear` called once for each in float32, faster.

    Where all weights are Int8, or all are Sparse with fp32 values, and have the native backend, it is one call: what
    lies between two layers stays in the cache, and becomes int8 at once where the next layer has an ``input_scale``, or
    stays transposed, as the sparse kernels take it.

    Parameters
    ----------
    x : [..., in_features of the first weight] float32, float16 or bfloat16
        NumPy array or torch CPU tensor.
    packed : sequence of PackedWeight
        At least one; each takes as many features as the one before gives.
    activations : sequence, optional
        One for each weight, as in :func:`linear`; by default none.

    Returns
    -------
    [..., out_features of the last weight], kind and dtype of x

    Raises
    ------
    TypeError, ValueError
        When x does not fit, the sizes of two weights do not fit, or activations has another length or an unknown name.

    Examples
    --------
    >>> from pycompress.formats import Sparse
    >>> from pycompress.kernels import pack
    >>> double = pack(np.array([[2.0]], np.float32), Sparse())
    >>> linear_chain(np.array([[3.0]], np.float32), [double, double], [None, "relu"])
    array([[12.]], dtype=float32)
    """
    weights, codes = chain_arguments(packed, activations)
    array = _rows(x, weights[0])
    one_call = all(w._native is not None for w in weights) and _are_alike(weights)
    if one_call and array.dtype == np.float32:
        rows = np.ascontiguousarray(array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1]))
        states, out_features = [weight._native for weight in weights], weights[-1].shape[0]
        y = weights[0]._module.int8_chain(rows, states, codes, out_features, backends.threads_for(x))
        return arrays.restore(y.reshape(*array.shape[:-1], out_features), x)
    names = activations or [None] * len(weights)
    half = str(x.dtype).endswith("float16")  # bfloat16 too: between layers everything stays float32
    y = arrays.like(np.ascontiguousarray(array), x) if half else x
    for weight, name in zip(weights, names, strict=True):
        y = linear(y, weight, name)
    return arrays.restore(np.asarray(y), x) if half else y


def _are_alike(packed: Sequence[PackedWeight]) -> bool:
    """Whether one kernel runs all weights, and one call of it can: int8 layers, or sparse fp32 ones."""
    kinds = {has_int8_weights(w.format) for w in packed}
    fp32 = all(isinstance(w.format, Sparse) and isinstance(w.format.values, Float32) for w in packed)
    return len({w.kernel for w in packed}) == 1 and (kinds == {True} or (kinds == {False} and fp32))


def chain_call(packed: Sequence[PackedWeight], activations: Sequence[Activation | None]) -> Callable[[Any], Any] | None:
    """Return a function that runs a chain in one call, or None where the kernels have no such call for it.

    It takes what :func:`pycompress.kernels.arrays.is_plain_tensor` accepts, and returns None for another number of
    features than that of the first weight.
    """
    states = [weight._native for weight in packed]
    fit = all(a.shape[0] == b.shape[1] for a, b in itertools.pairwise(packed))
    if None in states or not fit or packed[0].shape[1] == 0 or not _are_alike(packed):
        return None
    into = packed[0]._module.bound_chain(states, [activation_code(each) for each in activations])
    in_features, out_features = packed[0].shape[1], packed[-1].shape[0]

    def call(x: Any) -> Any:
        *leading, features = x.shape or (0,)
        if features != in_features:
            return None
        y = x.new(*leading, out_features)
        into(x.data_ptr(), y.data_ptr(), x.numel() // features, backends.get_num_threads(True))
        return y

    return call


def chain_arguments(packed: object, activations: object) -> tuple[list[PackedWeight], list[int]]:
    """Return the weights of a chain and the codes of its activations, checked."""
    if not isinstance(packed, (list, tuple)):
        raise TypeError(f"packed must be a list of PackedWeight, got {type(packed).__name__}")
    if not packed:
        raise ValueError("packed must hold at least one PackedWeight, got none")
    for i, weight in enumerate(packed):
        if not isinstance(weight, PackedWeight):
            raise TypeError(f"packed must be a list of PackedWeight, got {type(weight).__name__} at {i}")
        if i and weight.shape[1] != packed[i - 1].shape[0]:
            outputs, inputs = packed[i - 1].shape[0], weight.shape[1]
            raise ValueError(f"packed must fit together, got {outputs} outputs at {i - 1} for {inputs} inputs")
    if activations is None:
        return list(packed), [0] * len(packed)
    if not isinstance(activations, (list, tuple)):
        raise TypeError(f"activations must be a list or None, got {type(activations).__name__}")
    if len(activations) != len(packed):
        raise ValueError(f"activations must have {len(packed)} entries, one for each weight, got {len(activations)}")
    return list(packed), [activation_code(each, "activations") for each in activations]


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
