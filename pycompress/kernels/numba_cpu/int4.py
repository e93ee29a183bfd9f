"""Products with 4-bit weights, held one to a byte."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from .. import reference
from ..reference import Float, Int4Parts, Int4State, Int8Array
from ..threads import run
from .activations import activate
from .compiling import as_input, kernel
from .matmul import int8_linear, pack_int8, quantize_rows

_LANES = 16
"""Partial sums of an fp32 dot product: as many as a vector holds."""


@dataclass(frozen=True)
class _State(Int4State):
    centred: Int8Array  # [out, in]: q - z
    scale: Float  # [out, groups]


def pack_int4(parts: Int4Parts, bias: Float | None, int8_activations: bool, input_scale: float | None) -> Int4State:
    """Keep q - z and the scales as fp32; with multipliers the int8 weight that they make."""
    bias = as_input(np.zeros(parts.weight.shape[0], np.float32) if bias is None else bias.copy())
    state = reference.pack_int4(parts, bias, int8_activations, input_scale)
    if state.expanded is not None:
        expanded = state.expanded
        return replace(state, expanded=pack_int8(expanded.weight, expanded.scale, bias, input_scale))
    assert parts.scale is not None
    scale = as_input(parts.scale.astype(np.float32))
    return _State(parts, bias, int8_activations, input_scale, None, as_input(parts.centred()), scale)


unpack_int4 = reference.unpack_int4


@kernel
def _float_outputs(x, weight, scale, group, bias, activation, y, first, last):
    """Each output is expanded once for all rows; the order of additions is the same for every row."""
    features = weight.shape[1]
    padded = (features + _LANES - 1) // _LANES * _LANES
    w = np.zeros(padded, np.float32)
    for o in range(first, last):
        for g in range(scale.shape[1]):
            part = weight[o, g * group : (g + 1) * group]
            to = w[g * group : g * group + part.size]
            s = scale[o, g]
            for k in range(part.size):
                to[k] = np.float32(part[k]) * s
        for r in range(x.shape[0]):
            sums = np.zeros(_LANES, np.float32)
            for start in range(0, padded - _LANES + 1, _LANES):
                a, b = x[r, start : start + _LANES], w[start : start + _LANES]
                if a.size == _LANES:
                    for l in range(_LANES):
                        sums[l] += a[l] * b[l]
                else:
                    for l in range(a.size):
                        sums[l] += a[l] * b[l]
            total = np.float32(0)
            for l in range(_LANES):
                total += sums[l]
            y[r, o] = activate(total + bias[o], activation)


@kernel
def int8_outputs(q, row_scales, weight, scale, group, bias, activation, y, first, last):
    """Outputs [first, last) of int8 rows, under the scales of groups."""
    for o in range(first, last):
        for r in range(q.shape[0]):
            total = np.float32(0)
            for g in range(scale.shape[1]):
                a, b = q[r, g * group : (g + 1) * group], weight[o, g * group : (g + 1) * group]
                part = np.int32(0)
                for k in range(a.size):
                    part = np.int32(part + np.int32(a[k]) * np.int32(b[k]))
                total = total + np.float32(part) * scale[o, g]
            y[r, o] = activate(total * row_scales[r] + bias[o], activation)


def int4_linear(x: Float, state: Int4State, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias``, with fp32 rows or with int8 rows as `reference` writes it."""
    if state.expanded is not None:
        return cast(Float, int8_linear(x, state.expanded, activation, threads))
    assert isinstance(state, _State)
    rows, features = x.shape
    y = np.empty((rows, state.centred.shape[0]), np.float32)
    weight = (state.centred, state.scale, state.parts.group, state.bias, activation)
    item_ns = rows * (20 + features / 8) + features + 1
    if state.int8_activations:
        q, scales = quantize_rows(x, state.input_scale, threads)
        run(int8_outputs, y.shape[1], item_ns, threads, q, scales, *weight, y)
    else:
        run(_float_outputs, y.shape[1], item_ns, threads, as_input(x), *weight, y)
    return y
