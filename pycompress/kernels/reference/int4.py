"""Products with 4-bit weights: fp32 rows in float64, rounded at the end; int8 rows by their written formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .activations import activate
from .matmul import Float, Int8Array, Int8State, int8_linear, quantize_rows


@dataclass(frozen=True)
class Int4Parts:
    """What a 4-bit weight is made of: either ``scale`` (and perhaps ``zero_point``), or ``multiplier`` and
    ``channel_scale``.
    """

    weight: Int8Array  # [out, in]: 0..15 with zero points, else -8..7
    group: int  # inputs that share a scale
    scale: NDArray[np.float16] | None = None  # [out, groups]
    zero_point: NDArray[np.uint8] | None = None  # [out, groups], 0..15
    multiplier: NDArray[np.uint8] | None = None  # [out, groups], 1..15
    channel_scale: Float | None = None  # [out]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.weight, self.scale, self.zero_point, self.multiplier, self.channel_scale)
        return sum(array.nbytes for array in arrays if array is not None)

    def along(self, groups: NDArray[Any]) -> NDArray[Any]:
        """Repeat what there is for each group [out, groups] for each input [out, in]."""
        return np.repeat(groups, self.group, axis=1)[:, : self.weight.shape[1]]

    def centred(self) -> Int8Array:
        """Return q - z [out, in], from -15 to 15."""
        if self.zero_point is None:
            return self.weight
        return self.weight - self.along(self.zero_point).view(np.int8)

    def expanded(self) -> Int8Array:
        """Return q * m [out, in], from -120 to 105."""
        assert self.multiplier is not None
        return self.weight * self.along(self.multiplier).view(np.int8)

    def nonzeros(self) -> int:
        """Count the weights that are not zero."""
        if self.scale is None:
            return int(np.count_nonzero(self.weight))
        return int(np.count_nonzero((self.centred() != 0) & (self.along(self.scale) != 0)))

    def floats(self) -> Float:
        """Return the weight [out, in]; (q - z) * s is exact."""
        if self.channel_scale is not None:
            return self.expanded().astype(np.float32) * self.channel_scale[:, None]
        assert self.scale is not None
        return self.centred().astype(np.float32) * self.along(self.scale).astype(np.float32)


@dataclass(frozen=True)
class Int4State:
    """A 4-bit weight as this backend keeps it."""

    parts: Int4Parts
    bias: Float | None  # [out]
    int8_activations: bool
    input_scale: float | None
    expanded: Int8State | None  # what multipliers make of it

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        added = 0 if self.expanded is None else self.expanded.nbytes
        return self.parts.nbytes + added + (0 if self.bias is None else self.bias.nbytes)


def pack_int4(parts: Int4Parts, bias: Float | None, int8_activations: bool, input_scale: float | None) -> Int4State:
    """Keep the integers as they are."""
    bias = None if bias is None else bias.copy()
    expanded = None
    if parts.channel_scale is not None:
        expanded = Int8State(parts.expanded(), parts.channel_scale, bias, input_scale)
    return Int4State(parts, bias, int8_activations, input_scale, expanded)


def unpack_int4(state: Int4State) -> Int8Array:
    """Return the integers [out, in]."""
    return state.parts.weight.copy()


def int4_linear(x: Float, state: Int4State, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias``.

    int8 rows: ``t = t + float(exact sum of a group) * s_g`` for each group in order from t = 0, then
    ``y = t * s_x + bias``, all in fp32, each operation rounded once.
    """
    parts = state.parts
    if state.expanded is not None:
        return cast(Float, int8_linear(x, state.expanded, activation, threads))
    bias = np.float32(0) if state.bias is None else state.bias
    if not state.int8_activations:
        with np.errstate(invalid="ignore", over="ignore"):
            y = x.astype(np.float64) @ parts.floats().astype(np.float64).T + bias
            return activate(y.astype(np.float32), activation)
    assert parts.scale is not None
    q, row_scale = quantize_rows(x, state.input_scale)
    weight, scale = parts.centred().astype(np.int64), parts.scale.astype(np.float32)
    total = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for group in range(scale.shape[1]):
        part = slice(group * parts.group, (group + 1) * parts.group)
        sums = q[:, part].astype(np.int64) @ weight[:, part].T
        total = total + sums.astype(np.float32) * scale[:, group]
    with np.errstate(over="ignore", invalid="ignore"):
        return activate(total * row_scale[:, None] + bias, activation)
