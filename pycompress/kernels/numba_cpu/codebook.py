"""Products with weights of few bits, held one to a byte."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from .. import reference
from ..reference import CodebookParts, CodebookState, Float, Int8Array
from ..threads import run
from .compiling import as_input
from .int4 import int8_outputs
from .matmul import int8_linear, pack_int8, quantize_rows


@dataclass(frozen=True)
class _State(CodebookState):
    integers: Int8Array  # [out, in]
    scale: Float  # [out, groups]


def pack_codebook(parts: CodebookParts, bias: Float | None, input_scale: float | None) -> CodebookState:
    """Keep the integers, and the scales as fp32; with channel scales an int8 weight."""
    bias = as_input(np.zeros(parts.weight.shape[0], np.float32) if bias is None else bias.copy())
    state = reference.pack_codebook(parts, bias, input_scale)
    if state.channels is not None:
        channels = state.channels
        return replace(state, channels=pack_int8(channels.weight, channels.scale, bias, input_scale))
    assert parts.scale is not None
    return _State(parts, bias, input_scale, None, as_input(parts.weight), as_input(parts.scale.astype(np.float32)))


unpack_codebook = reference.unpack_codebook


def codebook_linear(x: Float, state: CodebookState, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias`` with int8 rows, as `reference` writes it."""
    if state.channels is not None:
        return cast(Float, int8_linear(x, state.channels, activation, threads))
    assert isinstance(state, _State)
    rows, features = x.shape
    y = np.empty((rows, state.integers.shape[0]), np.float32)
    q, scales = quantize_rows(x, state.input_scale, threads)
    weight = (state.integers, state.scale, state.parts.group, state.bias, activation)
    run(int8_outputs, y.shape[1], rows * (20 + features / 8) + features + 1, threads, q, scales, *weight, y)
    return y
