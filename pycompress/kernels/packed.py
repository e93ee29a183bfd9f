"""Weights packed once for a kernel."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..codes import decode_codes, decode_nibbles, decode_nonzeros, encode_codes, encode_nibbles, encode_nonzeros
from ..formats import (
    Binary,
    Codebook,
    Format,
    Int4,
    Int8,
    Sparse,
    code_bits,
    has_bfloat16_weights,
    has_int8_activations,
    has_int8_weights,
)
from . import arrays, backends, binary, codebook, int4
from .arrays import ArrayLike
from .immutable import Numbered
from .reference import ZERO_ROW, CodebookParts, Int4Parts, to_bfloat16


class PackedWeight(Numbered):
    """A weight [out_features, in_features] in the layout of the kernel that this CPU runs best.

    Made by :func:`pack`. Immutable; validated once, when packed. Pickles, copies and files hold the canonical form
    (integers or coded nonzeros, scales, bias) and are packed again where they are opened.

    Attributes
    ----------
    format : Int8, Int4, Codebook, Binary or Sparse
        What the weight computes.
    shape : (int, int)
        (out_features, in_features).
    nbytes : int
        Bytes that the packed weight holds in memory.
    density : float
        Fraction of the weights that are not zero.
    kernel : str
        The kernel that runs, such as ``"native/avx2"``.
    scale : [out_features] float32, read-only, or None
        Scale of the integers; of Codebook, and of Int4 with float16 scales, [out_features, groups]
        float16.
    zero_point, multiplier : [out_features, groups] uint8, read-only, or None
        Of Int4: zero points, and integer scales of groups.
    bias : [out_features] float32, read-only, or None
    input_scale : float or None
        Scale of the activations; None when it is found per row at run time.
    number : int
        No other packed weight of this process ever has it.

    Examples
    --------
    >>> packed = pack(np.eye(2, dtype=np.float32), Sparse())
    >>> packed.shape, packed.density
    ((2, 2), 0.5)
    """

    __slots__ = (
        "_module",
        "_native",
        "_state",
        "bias",
        "density",
        "format",
        "input_scale",
        "kernel",
        "multiplier",
        "nbytes",
        "scale",
        "shape",
        "zero_point",
    )

    _module: Any  # the backend
    _native: Any  # the state where it is a native one, which has a short way in; else None
    _state: Any
    format: Format
    shape: tuple[int, int]
    nbytes: int
    density: float
    kernel: str
    scale: NDArray[np.floating[Any]] | None
    zero_point: NDArray[np.uint8] | None
    multiplier: NDArray[np.uint8] | None
    bias: NDArray[np.float32] | None
    input_scale: float | None

    def __repr__(self) -> str:
        return f"PackedWeight({self.format}, shape={self.shape}, density={self.density:.3g}, kernel={self.kernel!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.format, Int4):
            nibbles = encode_nibbles(self.canonical_weight(), 0 if self.format.zero_point else 8)
            fields = self.bias, self.scale, self.input_scale, self.zero_point, self.multiplier
            return _unpickle_int4, (self.format, self.shape, nibbles, *fields)
        bits = code_bits(self.format)
        if bits is not None:
            codes, table = encode_codes(self.canonical_weight(), bits)
            return _unpickle_codes, (
                self.format,
                self.shape,
                bits,
                codes,
                table,
                self.bias,
                self.scale,
                self.input_scale,
            )
        gaps, values = encode_nonzeros(self.canonical_weight())
        return _unpickle, (self.format, self.shape, gaps, values, self.bias, self.scale, self.input_scale)

    def canonical_weight(self) -> NDArray[Any]:
        """Return what files hold: the integers [out, in] int8 where there is a scale, else the float32 weight.

        Examples
        --------
        >>> pack(np.array([[0.0, 127.0]], np.float32), Int8()).canonical_weight()
        array([[  0, 127]], dtype=int8)
        """
        if has_int8_weights(self.format):
            return cast("NDArray[Any]", self._module.unpack_int8(self._state))
        if isinstance(self.format, Int4):
            return cast("NDArray[Any]", self._module.unpack_int4(self._state))
        if self.format == Binary("binary"):
            return cast("NDArray[Any]", self._module.unpack_binary(self._state))
        if code_bits(self.format) is not None:
            return cast("NDArray[Any]", self._module.unpack_codebook(self._state))
        module = self._module
        unpack = module.unpack_bf16 if has_bfloat16_weights(self.format) else module.unpack_sparse
        dense = unpack(self._state)
        if self.scale is None:
            return cast("NDArray[Any]", dense)
        return cast("NDArray[Any]", np.rint(dense / self.scale[:, None]).astype(np.int8))

    def unpack(self) -> NDArray[np.float32]:
        """Return the weight [out_features, in_features] float32 that the kernel multiplies with.

        Examples
        --------
        >>> pack(np.array([[0.0, 2.0]], np.float32), Sparse()).unpack()
        array([[0., 2.]], dtype=float32)
        """
        weight = self.canonical_weight()
        if isinstance(self.format, Int4):
            scale: Any = self.scale
            half, channel = (scale, None) if self.multiplier is None else (None, scale)
            return Int4Parts(weight, self.format.group, half, self.zero_point, self.multiplier, channel).floats()
        if isinstance(self.format, Codebook):
            return CodebookParts(weight, self.format.bits, self.format.group, cast(Any, self.scale)).floats()
        return weight if self.scale is None else weight.astype(np.float32) * self.scale[:, None]


def _unpickle(
    format: Format,
    shape: tuple[int, int],
    gaps: NDArray[np.uint8],
    values: NDArray[Any],
    bias: NDArray[np.float32] | None,
    scale: NDArray[np.float32] | None,
    input_scale: float | None,
) -> PackedWeight:
    return pack(decode_nonzeros(gaps, values, shape), format, bias, scale, input_scale)


def _unpickle_int4(
    format: Int4,
    shape: tuple[int, int],
    nibbles: NDArray[np.uint8],
    bias: NDArray[np.float32] | None,
    scale: NDArray[Any],
    input_scale: float | None,
    zero_point: NDArray[np.uint8] | None,
    multiplier: NDArray[np.uint8] | None,
) -> PackedWeight:
    weight = decode_nibbles(nibbles, 0 if format.zero_point else 8, shape)
    return pack(weight, format, bias, scale, input_scale, zero_point=zero_point, multiplier=multiplier)


def _unpickle_codes(
    format: Format,
    shape: tuple[int, int],
    bits: int,
    codes: NDArray[np.uint8],
    table: NDArray[np.int8],
    bias: NDArray[np.float32] | None,
    scale: NDArray[Any],
    input_scale: float | None,
) -> PackedWeight:
    return pack(decode_codes(codes, table, bits, shape), format, bias, scale, input_scale)


def pack(
    weight: ArrayLike,
    format: Format,
    bias: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    input_scale: float | None = None,
    *,
    zero_point: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
) -> PackedWeight:
    """Pack a weight for :func:`linear`.

    With :class:`Int8` a float weight is rounded, ``q = clamp(rint(w / s), -127, 127)``, with ``s[o] = max|w[o]| / 127``
    (1 for a row of zeros) or with the given ``scale``; an int8 weight is kept as exactly those integers. With
    :class:`Sparse` the nonzero weights are kept, in fp32 (an int8 weight as the products ``q * scale``) or, with
    ``values=Int8()``, as the integers that Int8 has, or with ``values=BFloat16()`` rounded to bfloat16.

    With :class:`Int4` a float weight is rounded group by group, ``q = clamp(rint(w / s), -8, 7)`` with ``s`` the entry
    of largest magnitude / -8 (so that it becomes -8), or with zero points ``q = clamp(rint(w / s) + z, 0, 15)`` with
    ``s = (max - min) / 15`` and ``z = rint(-min / s)``, where min <= 0 <= max; s is rounded to float16 first. Integers
    that something else made, such as GPTQ or MatMulNBits (whose symmetric codes are ``q + 8``), are given as an int8
    weight with ``scale``, and ``zero_point`` where the format has them.

    With :class:`Codebook` a float weight gets the nearest numbers of a table that k-means finds; an int8 weight of at
    most ``2^bits`` different integers from -127 to 127 is kept as it is. With :class:`Binary` a float weight gives its
    signs, and the mean of its magnitudes per output as the scale; an int8 weight holds -1 and 1.

    Parameters
    ----------
    weight : [out_features, in_features] float32, float16, bfloat16, or int8 with ``scale``
    format : Int8, Int4, Codebook, Binary or Sparse
    bias : [out_features] float, optional
    scale : [out_features] or one float, optional
        Scale of the integers, positive. Of Int4 and Codebook: [out_features, groups], any sign, rounded to float16; of
        Int4 with ``scales="int"`` [out_features], positive.
    input_scale : float, optional
        Fixed scale of int8 activations; by default it is found per row at run time.
    zero_point : [out_features, groups] uint8, optional
        Given with ``scale`` for Int4 with zero points, 0 to 15.
    multiplier : [out_features, groups] uint8, optional
        Given with ``scale`` for Int4 with ``scales="int"``, 1 to 15: the scale of a group is ``multiplier * scale``.

    Returns
    -------
    PackedWeight

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype, shape or range, or holds NaN or infinity.

    Examples
    --------
    >>> pack(np.eye(3, dtype=np.float32), Sparse()).density
    0.3333333333333333
    """
    if not isinstance(format, (Int8, Int4, Codebook, Binary, Sparse)):
        raise TypeError(f"format must be Int8(), Int4(), Codebook(), Binary() or Sparse(), got {format!r}")
    array = arrays.view(weight, "weight")
    if array.dtype != np.int8:
        array = arrays.float32(weight, "weight")
        arrays.finite(array, "weight")
    elif scale is None:
        raise ValueError("scale must be given with an int8 weight")
    for name, value in (("zero_point", zero_point), ("multiplier", multiplier)):
        if value is not None and not isinstance(format, Int4):
            raise ValueError(f"{name} must be None with {format}: Int4 has it")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D [out_features, in_features], got {arrays.describe(weight)}")
    out_features, in_features = array.shape
    bias_array = checked_bias(bias, "bias", out_features)
    if input_scale is not None:
        if not has_int8_activations(format):
            raise ValueError(f"input_scale must be None with {format}: its activations do not become int8")
        input_scale = positive(input_scale, "input_scale")
    parts = int4.parts(array, format, scale, zero_point, multiplier) if isinstance(format, Int4) else None
    coded = None
    if isinstance(format, Codebook):
        coded = codebook.parts(array, format, scale)
    elif isinstance(format, Binary):
        coded = binary.parts(array, format, scale)
    scale_array: Any
    if coded is not None:
        scale_array = coded.scale if coded.channel_scale is None else coded.channel_scale
    elif parts is not None:
        scale_array = parts.scale if parts.channel_scale is None else parts.channel_scale
    else:
        scale_array = checked_scale(scale, "scale", out_features)

    module = backends.backend()
    if has_int8_weights(format):
        integers, scale_array = integers_of(array, scale_array)
        block = format.block if isinstance(format, Sparse) else None
        state = module.pack_int8(np.ascontiguousarray(integers), scale_array, bias_array, input_scale, block)
        nonzeros = int(np.count_nonzero(integers))
    elif parts is not None and isinstance(format, Int4):
        state = module.pack_int4(parts, bias_array, format.activations == "int8", input_scale)
        nonzeros = parts.nonzeros()
    elif coded is not None and format == Binary("binary"):
        state = module.pack_binary(coded.weight, scale_array, bias_array)
        nonzeros = array.size
    elif coded is not None:
        state = module.pack_codebook(coded, bias_array, input_scale)
        nonzeros = coded.nonzeros()
    else:
        array = stored_floats(array, scale_array)
        if has_bfloat16_weights(format):
            largest, array = np.abs(array).max(initial=0), to_bfloat16(array)
            if not np.isfinite(array).all():
                raise ValueError(f"weight must be below 2^128 - 2^119 with BFloat16(), got {largest}")
            state = module.pack_bf16(array, bias_array)
        else:
            state = module.pack_sparse(array, bias_array, format.block[0] if isinstance(format, Sparse) else 1)
        nonzeros = int(np.count_nonzero(array))
    sides = (None, None) if parts is None else (parts.zero_point, parts.multiplier)
    for field in (bias_array, scale_array, *sides):
        if field is not None:
            field.flags.writeable = False
    return PackedWeight(
        _module=module,
        _state=state,
        _native=state if hasattr(state, "linear_into") else None,
        format=format,
        shape=(out_features, in_features),
        nbytes=int(state.nbytes),
        density=nonzeros / array.size if array.size else 0.0,
        kernel=backends.kernel_name(module, state),
        scale=scale_array,
        zero_point=sides[0],
        multiplier=sides[1],
        bias=bias_array,
        input_scale=input_scale,
    )


def int8_scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the symmetric int8 scale [out] of a float weight [out, in]: ``max|w[o]| / 127``, 1 for a row of zeros."""
    largest = np.abs(weight).max(axis=1, initial=0).astype(np.float32)
    return np.where(largest < ZERO_ROW, np.float32(1), largest / np.float32(127)).astype(np.float32)


def integers_of(
    weight: NDArray[Any], scale: NDArray[np.float32] | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the integers [out, in] and the scales [out] of a weight, which is rounded where it is a float one."""
    if scale is None:
        scale = int8_scale(weight)
    if weight.dtype == np.int8:
        return weight, scale
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8), scale


def stored_floats(weight: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the values [out, in] of a sparse weight: with a scale those of its integers; denormals, slow, as zeros."""
    if scale is not None:
        weight = integers_of(weight, scale)[0].astype(np.float32) * scale[:, None]
    return np.ascontiguousarray(np.where(np.abs(weight) < np.finfo(np.float32).tiny, np.float32(0), weight))


def checked_bias(bias: ArrayLike | None, name: str, size: int) -> NDArray[np.float32] | None:
    """Return a copy of a bias [size], without -0.0."""
    return None if bias is None else _vector(bias, name, size) + np.float32(0)


def checked_scale(scale: ArrayLike | None, name: str, size: int) -> NDArray[np.float32] | None:
    """Return a copy of the scale of integers [size]; one number stands for all."""
    if scale is None:
        return None
    array = _vector(scale, name, size, one_for_all=True)
    if not (array > 0).all():
        raise ValueError(f"{name} must be positive, got {float(array.min())}")
    return array


def _vector(x: ArrayLike, name: str, size: int, one_for_all: bool = False) -> NDArray[np.float32]:
    array = np.asarray(_number(x, name)) if isinstance(x, (int, float, np.floating)) else arrays.float32(x, name)
    arrays.finite(array, name)
    if one_for_all and array.size == 1:
        array = np.broadcast_to(array.reshape(1), (size,))
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {array.shape}")
    return array.copy()


def _number(value: object, name: str) -> np.float32:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    try:
        with np.errstate(over="ignore"):
            return np.float32(value)
    except OverflowError:  # an int beyond every float
        return np.float32(np.inf)


def positive(value: object, name: str) -> float:
    """Return value as a float32 that can be a scale."""
    if type(value) is float and 1e-20 < value < 1e20:  # the short way
        return float(np.float32(value))
    number = float(_number(value, name))
    if not ZERO_ROW <= number < np.inf:
        raise ValueError(f"{name} must be finite and at least 2^-100, got {value}")
    return number
