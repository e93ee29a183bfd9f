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
class Sparse:
    """Only the nonzero weights are kept and multiplied.

    A block is kept whole where it holds a nonzero weight; the last blocks are smaller where the height or width does
    not divide the weight. The block shape is a matter of speed: a weight whose zeros do not come in blocks gives the
    same numbers, and is only kept less tightly.

    Parameters
    ----------
    block : (int, int)
        Height (outputs) and width (inputs) of the blocks that are zero or kept together; (1, 1) is unstructured. Of
        Float32 values (1, 1), (4, 1), (8, 1), (16, 1) or (16, 16); of Int8 values (1, 1), (16, 4), (32, 4) or (32, 64).
    values : Float32 or Int8
        The type of the kept values. With Int8 the numbers are those of the format :class:`Int8` with the same integers,
        dynamic or static activations included.

    Examples
    --------
    >>> Sparse()
    Sparse(block=(1, 1), values=Float32())
    >>> Sparse(block=(16, 4), values=Int8())
    Sparse(block=(16, 4), values=Int8())
    """

    block: tuple[int, int] = (1, 1)
    values: Float32 | Int8 = field(default_factory=Float32)

    def __post_init__(self) -> None:
        if type(self.values) not in BLOCKS:
            raise ValueError(f"values must be Float32() or Int8(), got {self.values!r}")
        blocks = BLOCKS[type(self.values)]
        if not isinstance(self.block, tuple) or self.block not in blocks:
            raise ValueError(f"block must be one of {list(blocks)} with {self.values}, got {self.block!r}")


BLOCKS: dict[type[Float32] | type[Int8], tuple[tuple[int, int], ...]] = {
    Float32: ((1, 1), (4, 1), (8, 1), (16, 1), (16, 16)),
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


Format = Int8 | Int4 | Sparse
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


def _check_bits(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
