"""Sparse weights in bfloat16, summed in float64 and rounded at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activations import activate
from .matmul import Float


@dataclass(frozen=True)
class Bf16State:
    """A weight of bfloat16 numbers, kept as float32."""

    weight: Float  # [out, in]
    bias: Float | None  # [out]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def to_bfloat16(x: Float) -> Float:
    """Round to the nearest bfloat16, ties to even; magnitudes below 2^-126 become 0, from 2^128 - 2^119 on infinity."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) & np.uint32(0xFFFF0000)
    rounded = np.where(magnitude > 0x7F800000, (bits | np.uint32(0x400000)) & np.uint32(0xFFFF0000), rounded)
    return np.where(magnitude < 0x00800000, np.uint32(0), rounded).astype(np.uint32).view(np.float32)


def pack_bf16(weight: Float, bias: Float | None) -> Bf16State:
    """Keep a weight [out, in] whose numbers are bfloat16."""
    return Bf16State(weight.copy(), None if bias is None else bias.copy())


def unpack_bf16(state: Bf16State) -> Float:
    """Return the dense weight [out, in]."""
    return state.weight.copy()


def bf16_linear(x: Float, state: Bf16State, activation: int, threads: int) -> Float:
    """``y = bfloat16(x) @ w.T + bias`` over all weights, zeros too, in float64, rounded at the end."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = to_bfloat16(x).astype(np.float64) @ state.weight.astype(np.float64).T
        if state.bias is not None:
            y += state.bias
        return activate(y.astype(np.float32), activation)
