"""Products with weights of 1, 2 or 4 bits, by their written formulas, and with binary rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .activations import activate
from .matmul import Float, Int8Array, Int8State, int8_linear, quantize_rows


@dataclass(frozen=True)
class CodebookParts:
    """What a weight of few bits is made of: its integers, of which at most 2^bits are different, and their scales."""

    weight: Int8Array  # [out, in], -127..127
    bits: int
    group: int  # inputs that share a scale
    scale: NDArray[np.float16] | None = None  # [out, groups]
    channel_scale: Float | None = None  # instead: [out]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.weight, self.scale, self.channel_scale)
        return sum(array.nbytes for array in arrays if array is not None)

    def along(self, groups: NDArray[Any]) -> NDArray[Any]:
        """Repeat what there is for each group [out, groups] for each input [out, in]."""
        return np.repeat(groups, self.group, axis=1)[:, : self.weight.shape[1]]

    def nonzeros(self) -> int:
        """Count the weights that are not zero."""
        if self.scale is None:
            return int(np.count_nonzero(self.weight))
        return int(np.count_nonzero((self.weight != 0) & (self.along(self.scale) != 0)))

    def floats(self) -> Float:
        """Return the weight [out, in]: q * s."""
        integers = self.weight.astype(np.float32)
        if self.channel_scale is not None:
            return integers * self.channel_scale[:, None]
        assert self.scale is not None
        return integers * self.along(self.scale).astype(np.float32)


@dataclass(frozen=True)
class CodebookState:
    """A weight of few bits as this backend keeps it."""

    parts: CodebookParts
    bias: Float | None  # [out]
    input_scale: float | None
    channels: Int8State | None  # what a weight with channel scales is

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.parts.nbytes + (0 if self.bias is None else self.bias.nbytes)


def pack_codebook(parts: CodebookParts, bias: Float | None, input_scale: float | None) -> CodebookState:
    """Keep the integers as they are."""
    bias = None if bias is None else bias.copy()
    channels = None
    if parts.channel_scale is not None:
        channels = Int8State(parts.weight, parts.channel_scale, bias, input_scale)
    return CodebookState(parts, bias, input_scale, channels)


def unpack_codebook(state: CodebookState) -> Int8Array:
    """Return the integers [out, in]."""
    return state.parts.weight.copy()


def codebook_linear(x: Float, state: CodebookState, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias`` with int8 rows.

    ``t = t + float(exact sum of a group) * s_g`` for each group in order from t = 0, then ``y = t * s_x + bias``, all
    in fp32, each operation rounded once; with channel scales the formula of int8_linear.
    """
    if state.channels is not None:
        return cast(Float, int8_linear(x, state.channels, activation, threads))
    parts = state.parts
    assert parts.scale is not None
    bias = np.float32(0) if state.bias is None else state.bias
    q, row_scale = quantize_rows(x, state.input_scale)
    weight, scale = parts.weight.astype(np.int64), parts.scale.astype(np.float32)
    total = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for group in range(scale.shape[1]):
        part = slice(group * parts.group, (group + 1) * parts.group)
        sums = q[:, part].astype(np.int64) @ weight[:, part].T
        total = total + sums.astype(np.float32) * scale[:, group]
    with np.errstate(over="ignore", invalid="ignore"):
        return activate(total * row_scale[:, None] + bias, activation)
