"""How a weight is stored: tiny frozen descriptions.

A format fixes the numbers that a layer computes, never the memory layout: the layout belongs to the kernel that a
CPU picks when the weight is packed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Float32:
    """IEEE single precision values.

    Examples
    --------
    >>> Sparse(values=Float32())
    Sparse(block=(1, 1), values=Float32())
    """


@dataclass(frozen=True)
class BFloat16:
    """Numbers of 16 bits, the upper half of IEEE single precision, for the values of :class:`Sparse`.

    Weights are rounded when they are packed and activations when they come in, to the nearest, ties to even; magnitudes
    below 2^-126 become 0. Products are summed in fp32: ``y = activation(sum over i of bf16(x[i]) * bf16(w[o, i]) +
    bias[o])``. The order of the sum depends on the instruction set level, not on threads nor on how a batch is cut:
    against the exact sum of the rounded numbers the error is at most ``2 * in * 2^-24 * sum|x * w|``. The rounding
    changes each product by at most 2^-7 of it, and a little (twice 2^-8). Pruned weights are multiplied as zeros: a row
    that holds infinity or NaN gives NaN where they meet.

    Examples
    --------
    >>> Sparse(values=BFloat16())
    Sparse(block=(1, 1), values=BFloat16())
    """


@dataclass(frozen=True)
class Int8:
    """8-bit integer weights, symmetric, one scale for each output: ``w = q * scale[o]``, ``q`` in [-127, 127].

    Activations are quantized to int8 at run time, per row, or by a fixed ``input_scale``.

    Examples
    --------
    >>> Int8()
    Int8()
    """


@dataclass(frozen=True)
class Int4:
    """4-bit integer weights with one scale for each output and group of inputs: ``w = (q - z) * scale[o, i // group]``.

    Symmetric (the default): q in [-8, 7], z = 0. With zero points, as GPTQ and MatMulNBits have them: q and z in
    [0, 15]. Scales are float16. The last group is shorter where ``group`` does not divide in_features.

    Parameters
    ----------
    group : 32, 64 or 128
        Inputs that share a scale: 0.56, 0.53 or 0.52 bytes for each weight.
    zero_point : bool
        Whether groups have zero points: a closer fit to skewed groups, a little slower.
    scales : "float16" or "int"
        "int": the scale of a group is an integer from 1 to 15 times one float32 for each output. Sums are then exact
        integers under one final scale: the int8 formula, for kernels that multiply int8 and know no groups. The coarser
        scales raise the squared rounding error of the weights by some 8 % (more where the groups of one output differ
        by more than 15 times).
        Needs ``activations="int8"`` and no zero points.
    activations : "float32" or "int8"
        "float32": only the weights are quantized. "int8": rows are too, as :class:`Int8` does it; several times faster.

    Examples
    --------
    >>> Int4(group=64)
    Int4(group=64, zero_point=False, scales='float16', activations='float32')
    """

    group: int = 32
    zero_point: bool = False
    scales: Literal["float16", "int"] = "float16"
    activations: Literal["float32", "int8"] = "float32"

    def __post_init__(self) -> None:
        _check_bits("group", self.group, 32, 128)
        if self.group not in (32, 64, 128):
            raise ValueError(f"group must be 32, 64 or 128, got {self.group}")
        if not isinstance(self.zero_point, bool):
            raise TypeError(f"zero_point must be a bool, got {type(self.zero_point).__name__}")
        for name, allowed in (("scales", ("float16", "int")), ("activations", ("float32", "int8"))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
        if self.scales == "int" and (self.zero_point or self.activations != "int8"):
            raise ValueError(f"scales must be 'float16' unless activations='int8' and zero_point=False, got {self!r}")


@dataclass(frozen=True)
class Codebook:
    """Weights that share few int8 numbers, one table for all, with a scale for each output and group of inputs.

    ``w = table[code] * scale[o, i // group]``: codes of 2 or 4 bits, at most 4 or 16 numbers from -127 to 127, scales
    in float16. The last group is shorter where ``group`` does not divide in_features. The integers ``q = table[code]``
    are what a packed weight and its files stand for: an int8 weight of so few different integers is kept as it is.

    Activations are quantized to int8 as :class:`Int8` does it. A_g is the exact sum of a group, ``t = 0``, for each
    group in order ``t = t + float(A_g) * s_g``, and ``y = t * s_x + bias[o]``: the same bits on every CPU.

    From a float weight, k-means finds the table (from evenly spaced numbers, over the weights under their scales), in
    turns with the scales of least squared error. One table for the tensor, not for each output: that is what a byte
    shuffle can look up for 16 outputs at once. Groups whose weights are below 4e-6 vanish.

    Parameters
    ----------
    bits : 2 or 4
    group : 32, 64 or 128
        Inputs that share a scale: at 4 bits 0.56, 0.53 or 0.52 bytes for each weight, at 2 bits 0.31, 0.28 or 0.27.

    References
    ----------
    Han et al. 2016, Deep Compression (arXiv:1510.00149): weights that share values.

    Examples
    --------
    >>> Codebook(bits=2)
    Codebook(bits=2, group=64)
    """

    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        for name, allowed in (("bits", (2, 4)), ("group", (32, 64, 128))):
            _check_bits(name, getattr(self, name), allowed[0], allowed[-1])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Binary:
    """Weights of one bit: ``w = sign(w) * alpha[o]``, ``alpha[o] = mean|w[o]|`` in float32, where the sign of 0 is +.

    The integers -1 and 1 and the scale alpha are what a packed weight and its files stand for.

    Parameters
    ----------
    activations : "int8" or "binary"
        "int8": only the weights are binary. Rows are quantized as by :class:`Int8`, and the numbers are those of Int8
        with the integers -1 and 1. (In the place of float32 activations: 64 products an instruction instead of 16, and
        the same bits on every CPU.)
        "binary": rows become signs too, ``x = sign(x) * K`` with ``K = mean|x|`` of the row, and
        ``y = float(in - 2 * d) * (K * alpha[o]) + bias[o]``, d the number of inputs whose sign is not that of the
        weight: XNOR and popcount. K is summed in float64 by 16 partial sums in a fixed order, so that the bits are the
        same on every CPU. A row that holds NaN or infinity gives a row of NaN.

    References
    ----------
    Rastegari et al. 2016, XNOR-Net (arXiv:1603.05279).

    Examples
    --------
    >>> Binary(activations="binary")
    Binary(activations='binary')
    """

    activations: Literal["int8", "binary"] = "int8"

    def __post_init__(self) -> None:
        if not isinstance(self.activations, str) or self.activations not in ("int8", "binary"):
            raise ValueError(f"activations must be one of ['int8', 'binary'], got {self.activations!r}")


@dataclass(frozen=True)
class Sparse:
    """Only the nonzero weights are kept and multiplied.

    A block is kept whole where it holds a nonzero weight; the last blocks are smaller where the height or width does
    not divide the weight. The block shape is a matter of speed: a weight whose zeros do not come in blocks gives the
    same numbers, and is only kept less tightly.

    Parameters
    ----------
    block : (int, int)
        Height (outputs) and width (inputs) of the blocks that are zero or kept together; (1, 1) is unstructured. Of
        Float32 values (1, 1), (4, 1), (8, 1), (16, 1) or (16, 16); of BFloat16 values (1, 1); of Int8 values (1, 1),
        (16, 4), (32, 4) or (32, 64).
    values : Float32, BFloat16 or Int8
        The type of the kept values. With Int8 the numbers are those of the format :class:`Int8` with the same integers,
        dynamic or static activations included. With :class:`BFloat16` activations are rounded too; 2 bytes a nonzero
        and 1 bit a weight.

    Examples
    --------
    >>> Sparse()
    Sparse(block=(1, 1), values=Float32())
    >>> Sparse(block=(16, 4), values=Int8())
    Sparse(block=(16, 4), values=Int8())
    """

    block: tuple[int, int] = (1, 1)
    values: Float32 | BFloat16 | Int8 = field(default_factory=Float32)

    def __post_init__(self) -> None:
        if type(self.values) not in BLOCKS:
            raise ValueError(f"values must be Float32(), BFloat16() or Int8(), got {self.values!r}")
        blocks = BLOCKS[type(self.values)]
        if not isinstance(self.block, tuple) or self.block not in blocks:
            raise ValueError(f"block must be one of {list(blocks)} with {self.values}, got {self.block!r}")


BLOCKS: dict[type[Float32] | type[BFloat16] | type[Int8], tuple[tuple[int, int], ...]] = {
    Float32: ((1, 1), (4, 1), (8, 1), (16, 1), (16, 16)),
    BFloat16: ((1, 1),),
    Int8: ((1, 1), (16, 4), (32, 4), (32, 64)),
}
"""The blocks (outputs x inputs) that have a kernel, by the type of the values."""


@dataclass(frozen=True)
class Affine:
    """Uniform quantization between the smallest and the largest weight.

    ``scale = (max - min) / (2^bits - 1)``, ``zero_point = low - min / scale`` (a real number: the grid's ends are the
    weights' ends), ``q = clamp(rint(w / scale + zero_point), low, high)`` and ``w' = (q - zero_point) * scale``;
    ``low = 0`` for unsigned, ``-2^(bits-1)`` for signed integers.

    Parameters
    ----------
    bits : int
        2 to 16.
    signed : bool
        Whether the integers are signed.
    per_channel : bool
        One scale and zero point for each output, instead of one for the tensor.

    Examples
    --------
    >>> Affine(bits=4)
    Affine(bits=4, signed=False, per_channel=False)
    """

    bits: int = 8
    signed: bool = False
    per_channel: bool = False

    def __post_init__(self) -> None:
        _check_bits("bits", self.bits, 2, 16)
        for name in ("signed", "per_channel"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")


@dataclass(frozen=True)
class FixedPoint:
    """Fixed point with ``bits`` fractional bits: ``w' = rint(w * 2^bits) / 2^bits``.

    Parameters
    ----------
    bits : int
        Number of fractional bits, 0 to 15.

    Examples
    --------
    >>> FixedPoint(bits=6)
    FixedPoint(bits=6)
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _check_bits("bits", self.bits, 0, 15)


Format = Int8 | Int4 | Codebook | Binary | Sparse
"""The formats that have a kernel."""

Grid = Int8 | Affine | FixedPoint
"""The formats that weights can be rounded to."""


def has_int8_weights(format: object) -> bool:
    """Whether a format computes by the formula of :class:`Int8`: of all its weights, or of the nonzero ones.

    Examples
    --------
    >>> has_int8_weights(Int8()), has_int8_weights(Sparse(values=Int8())), has_int8_weights(Sparse())
    (True, True, False)
    """
    return isinstance(format, Int8) or (isinstance(format, Sparse) and isinstance(format.values, Int8))


def has_bfloat16_weights(format: object) -> bool:
    """Whether a format keeps its weights in bfloat16.

    Examples
    --------
    >>> has_bfloat16_weights(Sparse(values=BFloat16())), has_bfloat16_weights(Sparse())
    (True, False)
    """
    return isinstance(format, Sparse) and isinstance(format.values, BFloat16)


def has_int8_activations(format: object) -> bool:
    """Whether a format quantizes its activations to int8.

    Examples
    --------
    >>> has_int8_activations(Int4()), has_int8_activations(Codebook())
    (False, True)
    """
    chosen = isinstance(format, (Int4, Binary)) and format.activations == "int8"
    return has_int8_weights(format) or isinstance(format, Codebook) or chosen


def code_bits(format: object) -> int | None:
    """Return the bits of the codes that files hold in the place of integers, for a format that has such codes.

    Examples
    --------
    >>> code_bits(Codebook(bits=2)), code_bits(Binary()), code_bits(Int8())
    (2, 1, None)
    """
    if isinstance(format, Binary):
        return 1
    return format.bits if isinstance(format, Codebook) else None


def _check_bits(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
