"""LSTM and GRU on int8 weights. Rows of the batch are independent: threads take groups of them, for all steps."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import reference
from ..reference import Cell, Float, Int8Array, Int8State, RecurrentState, Starts
from ..reference.activations import CODES
from ..threads import run
from .activations import activate
from .compiling import as_input, function, kernel
from .matmul import _dot, _quantize_rows, int8_linear, pack_int8

_GROUP = 8  # rows of the batch that share a pass over the weights
_SIGMOID, _TANH = CODES["sigmoid"], CODES["tanh"]


def pack_recurrent(
    cell: Cell,
    input_weight: Int8Array,
    input_weight_scale: Float,
    input_bias: Float,
    input_scale: float | None,
    recurrent_weight: Int8Array,
    recurrent_scale: Float,
    recurrent_bias: Float,
    projection_weight: Int8Array | None,
    projection_scale: Float | None,
) -> RecurrentState:
    """Keep the integers as they are."""
    projection = None
    if projection_weight is not None and projection_scale is not None:
        projection = pack_int8(projection_weight, projection_scale, None, None)
    return RecurrentState(
        cell,
        pack_int8(input_weight, input_weight_scale, input_bias, input_scale),
        pack_int8(recurrent_weight, recurrent_scale, recurrent_bias, None),
        projection,
    )


unpack_recurrent = reference.unpack_recurrent


@function
def _one_nan(x):
    """The sign of a NaN depends on the order of operands, which compilers choose: there is one NaN in states."""
    return x if x == x else np.float32(np.nan)


@kernel
def _lstm_groups(
    inputs,
    starts,
    backwards,
    weight,
    scale,
    bias,
    project,
    projection,
    projection_scale,
    h,
    c,
    y,
    first_group,
    last_group,
):
    """All steps of the rows first_group * _GROUP to last_group * _GROUP of the batch."""
    hidden, out = c.shape[1], h.shape[1]
    first, last = first_group * _GROUP, min(last_group * _GROUP, h.shape[0])
    q, scales = np.empty((last - first, out), np.int16), np.empty(last - first, np.float32)
    full = np.empty((last - first, hidden), np.float32)
    full_q = np.empty((last - first, hidden if project else 0), np.int16)
    zero = np.float32(0)
    for step in range(starts.size - 1):
        t = starts.size - 2 - step if backwards else step
        start, rows = starts[t], min(starts[t + 1] - starts[t], last) - first
        if rows <= 0:
            continue
        state = h[first : first + rows]
        _quantize_rows(state, state.view(np.uint32), zero, q, scales, 0, rows)
        for unit in range(hidden):
            for r in range(rows):
                v = inputs[start + first + r]
                i, f, g, o = unit, hidden + unit, 2 * hidden + unit, 3 * hidden + unit
                u_i = np.float32(_dot(q, weight, r, i)) * (scales[r] * scale[i]) + bias[i]
                u_f = np.float32(_dot(q, weight, r, f)) * (scales[r] * scale[f]) + bias[f]
                u_g = np.float32(_dot(q, weight, r, g)) * (scales[r] * scale[g]) + bias[g]
                u_o = np.float32(_dot(q, weight, r, o)) * (scales[r] * scale[o]) + bias[o]
                kept = activate(u_f + v[f], _SIGMOID) * c[first + r, unit]
                added = activate(u_i + v[i], _SIGMOID) * activate(u_g + v[g], _TANH)
                after = _one_nan(kept + added)
                c[first + r, unit] = after
                full[r, unit] = _one_nan(activate(u_o + v[o], _SIGMOID) * activate(after, _TANH))
        if project:
            _quantize_rows(full, full.view(np.uint32), zero, full_q, scales, 0, rows)
            for o in range(out):
                for r in range(rows):
                    total = np.float32(_dot(full_q, projection, r, o))
                    h[first + r, o] = total * (scales[r] * projection_scale[o]) + zero
        else:
            h[first : first + rows] = full[:rows]
        for r in range(rows):
            y[start + first + r] = h[first + r]


@kernel
def _gru_groups(inputs, starts, backwards, weight, scale, bias, h, y, first_group, last_group):
    """All steps of the rows first_group * _GROUP to last_group * _GROUP of the batch."""
    hidden = h.shape[1]
    first, last = first_group * _GROUP, min(last_group * _GROUP, h.shape[0])
    q, scales = np.empty((last - first, hidden), np.int16), np.empty(last - first, np.float32)
    for step in range(starts.size - 1):
        t = starts.size - 2 - step if backwards else step
        start, rows = starts[t], min(starts[t + 1] - starts[t], last) - first
        if rows <= 0:
            continue
        state = h[first : first + rows]
        _quantize_rows(state, state.view(np.uint32), np.float32(0), q, scales, 0, rows)
        for unit in range(hidden):
            for row in range(rows):
                v = inputs[start + first + row]
                r, z, n = unit, hidden + unit, 2 * hidden + unit
                u_r = np.float32(_dot(q, weight, row, r)) * (scales[row] * scale[r]) + bias[r]
                u_z = np.float32(_dot(q, weight, row, z)) * (scales[row] * scale[z]) + bias[z]
                u_n = np.float32(_dot(q, weight, row, n)) * (scales[row] * scale[n]) + bias[n]
                product = activate(u_r + v[r], _SIGMOID) * u_n
                new = activate(product + v[n], _TANH)
                change = (h[first + row, unit] - new) * activate(u_z + v[z], _SIGMOID)
                h[first + row, unit] = _one_nan(change + new)
        for row in range(rows):
            y[start + first + row] = h[first + row]


def int8_recurrent(
    x: Float, starts: Starts, h: Float, c: Float, y: Float, state: RecurrentState, backwards: bool, threads: int
) -> None:
    """Run a sequence x [rows, in]; updates h [batch, out] and c [batch, hidden], writes y [rows, out]."""
    inputs = as_input(int8_linear(x, state.input, 0, threads))
    weight = state.recurrent
    groups = -(-h.shape[0] // _GROUP)
    group_ns = 100 + (len(starts) - 1) * _GROUP * (20 + weight.weight.size / 40)
    steps = as_input(starts.astype(np.int64))
    result = np.empty((len(x), h.shape[1]), np.float32)
    arguments = (inputs, steps, backwards, weight.weight, weight.scale, weight.bias)
    if state.cell == "gru":
        run(_gru_groups, groups, group_ns, threads, *arguments, h, result)
    else:
        none = Int8State(np.empty((0, 0), np.int8), np.empty(0, np.float32), None, None)
        projection = state.projection or replace(none, weight=as_input(none.weight), scale=as_input(none.scale))
        more = (state.projection is not None, projection.weight, projection.scale)
        run(_lstm_groups, groups, group_ns, threads, *arguments, *more, h, c, result)
    y[...] = result
