"""Matrix products: int8 exactly, sparse in fp32."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..reference import ZERO_ROW, Float, Int8Array, Int8State, Output, SparseState
from ..threads import run
from . import int8_blocks
from .activations import activate
from .compiling import as_input, inlined, kernel

_ROWS, _OUTPUTS = 64, 16  # tile of an int8 product: 16 rows of weights stay in the L1 cache
_PANEL = 32  # rows that a sparse weight is multiplied with at a time
_FEW_ROWS = 2  # rows that are not worth a panel
_GROUP = 4  # outputs of a block that are computed together
_PART = 1 << 16  # products that an int32 sum surely holds: 2^16 * 2^14 < 2^31

_INFINITY = 0x7F800000  # bit pattern
_MAGNITUDE = 0x7FFFFFFF


def pack_int8(
    weight: Int8Array,
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    block: tuple[int, int] | None = None,
) -> Int8State:
    """Keep the integers as they are, or those of the blocks that are not zero."""
    state = reference.pack_int8(weight, scale, _bias(bias, weight.shape[0]), input_scale)
    kept = None if block is None else int8_blocks.kept_of(weight, block)
    return replace(state, weight=as_input(state.weight), scale=as_input(state.scale), kept=kept)


def pack_sparse(weight: Float, bias: Float | None, height: int) -> SparseState:
    """Compress the rows of weight [out, in]; whole blocks share the loads of activations."""
    state = reference.pack_sparse(weight, _bias(bias, weight.shape[0]), height)
    if height % _GROUP == 0 and _are_whole(weight != 0):
        state = replace(state, height=_GROUP)
    # Numba tests every signed index for being negative; unsigned ones are free.
    columns = as_input(state.columns.view(np.uint32))
    return replace(state, starts=as_input(state.starts), columns=columns, values=as_input(state.values))


def _are_whole(used: NDArray[np.bool_]) -> bool:
    """Whether all outputs of each group have the same columns: else sums would be grouped differently."""
    groups, height = len(used) // _GROUP, len(used) // _GROUP * _GROUP
    grouped = used[:height].reshape(groups, _GROUP, used.shape[1])
    return len(used) == height > 0 and bool((grouped == grouped[:, :1]).all())


def _bias(bias: Float | None, out_features: int) -> Float:
    return as_input(np.zeros(out_features, np.float32) if bias is None else bias.copy())


unpack_int8 = reference.unpack_int8
unpack_sparse = reference.unpack_sparse


@kernel
def _quantize_rows(x, bits, static_scale, q, scales, first, last):
    """Quantize rows to int8 values, held as int16: that is the operand of the multiply-add that LLVM picks."""
    one, limit = np.float32(1), np.float32(127)
    scale_bits = scales.view(np.uint32)
    for r in range(first, last):
        largest = np.uint32(0)
        for k in range(x.shape[1]):  # integers: a float maximum would not be vectorised
            largest = max(largest, np.uint32(bits[r, k] & np.uint32(_MAGNITUDE)))
        if largest >= np.uint32(_INFINITY):
            scales[r] = np.float32(np.nan)
            q[r] = 0
            continue
        factor = np.float32(0)
        if static_scale > 0:
            factor = one / static_scale
            scales[r] = static_scale
        else:
            scale_bits[r] = largest
            m = scales[r]
            scales[r] = np.float32(0)
            if m >= ZERO_ROW:
                factor = limit / m
                scales[r] = m / limit
        for k in range(x.shape[1]):
            q[r, k] = np.int16(min(max(np.rint(x[r, k] * factor), -limit), limit))


@inlined
def _dot(q, w, r, o):
    """Exact sum over k of q[r, k] * w[o, k]."""
    total = np.int64(0)
    for start in range(0, q.shape[1], _PART):
        a, b = q[r, start : start + _PART], w[o, start : start + _PART]
        part = np.int32(0)
        for k in range(a.size):
            part = np.int32(part + np.int32(a[k]) * np.int32(b[k]))
        total += part
    return total


@kernel
def _int8_tiles(q, row_scales, weight, scales, bias, residual, activation, y, first, last):
    row_blocks = (y.shape[0] + _ROWS - 1) // _ROWS
    for tile in range(first, last):
        o0, r0 = tile // row_blocks * _OUTPUTS, tile % row_blocks * _ROWS
        for r in range(r0, min(r0 + _ROWS, y.shape[0])):
            for o in range(o0, min(o0 + _OUTPUTS, y.shape[1])):
                value = np.float32(_dot(q, weight, r, o)) * (row_scales[r] * scales[o]) + bias[o]
                if residual.size:
                    value += residual[r, o]
                y[r, o] = activate(value, activation)


@kernel
def _matmul_tiles(a, b, c, first, last):
    row_blocks = (c.shape[0] + _ROWS - 1) // _ROWS
    for tile in range(first, last):
        o0, r0 = tile // row_blocks * _OUTPUTS, tile % row_blocks * _ROWS
        for r in range(r0, min(r0 + _ROWS, c.shape[0])):
            for o in range(o0, min(o0 + _OUTPUTS, c.shape[1])):
                c[r, o] = _dot(a, b, r, o)


def quantize_rows(x: Float, input_scale: float | None, threads: int) -> tuple[NDArray[np.int16], Float]:
    """Quantize rows [rows, in] to int8 values, held as int16, with a scale [rows]."""
    rows, features = x.shape
    static_scale = np.float32(0 if input_scale is None else input_scale)
    q, scales = np.empty((rows, features), np.int16), np.empty(rows, np.float32)
    x = as_input(x)
    run(_quantize_rows, rows, 20 + features / 2, threads, x, x.view(np.uint32), static_scale, q, scales)
    return as_input(q), as_input(scales)


def _tiles(rows: int, outputs: int, features: int) -> tuple[int, float]:
    """Return the number of tiles of an int8 product and the nanoseconds that one takes."""
    count = -(-rows // _ROWS) * -(-outputs // _OUTPUTS)
    return count, min(rows, _ROWS) * min(outputs, _OUTPUTS) * (10 + features / 40) + 1


def int8_linear(
    x: Float | Int8Array,
    state: Int8State,
    activation: int,
    threads: int,
    residual: Float | None = None,
    output: Output = "float32",
    output_scale: float = 0.0,
) -> NDArray[Any]:
    """``y = activation(float(q_x @ q_w.T) * (s_x * s_w) + bias + residual)``, in fp32, each operation rounded once."""
    rows, features = x.shape
    if x.dtype == np.int8:
        q, scales = as_input(x.astype(np.int16)), as_input(np.full(rows, state.input_scale, np.float32))
    else:
        q, scales = quantize_rows(cast(Float, x), state.input_scale, threads)
    y = np.empty((rows, state.weight.shape[0]), np.float32)
    added = as_input(np.empty((0, 0), np.float32) if residual is None else residual.reshape(y.shape))
    if isinstance(state.kept, int8_blocks.Kept):
        int8_blocks.multiply(q, scales, state.kept, (state.scale, state.bias, added, activation, y), threads)
        return reference.as_output(y, output, output_scale)
    arguments = (q, scales, state.weight, state.scale, state.bias, added, activation, y)
    run(_int8_tiles, *_tiles(rows, y.shape[1], features), threads, *arguments)
    return reference.as_output(y, output, output_scale)


def int8_matmul(a: Int8Array, b: Int8Array, threads: int) -> NDArray[np.int64] | NDArray[np.int32]:
    """``a [m, k] @ b [k, n]``, exact; int64 where an int32 might not hold it."""
    rows, features = a.shape
    c = np.empty((rows, b.shape[1]), np.int32 if features < 1 << 17 else np.int64)
    left, right = as_input(a.astype(np.int16)), as_input(np.ascontiguousarray(b.T))
    run(_matmul_tiles, *_tiles(rows, c.shape[1], features), threads, left, right, c)
    return c


# Sparse products: for every row they are summed in the same order: four at a time, then one by one.


@kernel
def _sparse_row(x, starts, columns, values, bias, activation, y, first, last):
    for o in range(first, last):
        tail = starts[o + 1] - (starts[o + 1] - starts[o]) % 4
        for r in range(x.shape[0]):
            total = np.float32(0)
            for j in range(starts[o], tail, 4):
                pair = values[j] * x[r, columns[j]] + values[j + 1] * x[r, columns[j + 1]]
                total += pair + (values[j + 2] * x[r, columns[j + 2]] + values[j + 3] * x[r, columns[j + 3]])
            for j in range(tail, starts[o + 1]):
                total += values[j] * x[r, columns[j]]
            total += bias[o]
            y[r, o] = activate(total, activation)


@kernel
def _transpose_panels(x, panels, first, last):
    """panels[p, i, l] = x[p * _PANEL + l, i], 0 behind the last row."""
    for p in range(first, last):
        rows = min(_PANEL, x.shape[0] - p * _PANEL)
        for l in range(_PANEL):
            for i in range(x.shape[1]):
                panels[p, i, l] = x[p * _PANEL + l, i] if l < rows else np.float32(0)


@kernel
def _sparse_panels(panels, starts, columns, values, bias, activation, y, first, last):
    totals = np.empty(_PANEL, np.float32)
    blocks = (y.shape[1] + _OUTPUTS - 1) // _OUTPUTS
    for tile in range(first, last):
        p, o0 = tile // blocks, tile % blocks * _OUTPUTS
        rows = min(_PANEL, y.shape[0] - p * _PANEL)
        for o in range(o0, min(o0 + _OUTPUTS, y.shape[1])):
            tail = starts[o + 1] - (starts[o + 1] - starts[o]) % 4
            totals[:] = 0
            for j in range(starts[o], tail, 4):
                v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
                x0, x1 = panels[p, columns[j]], panels[p, columns[j + 1]]
                x2, x3 = panels[p, columns[j + 2]], panels[p, columns[j + 3]]
                for l in range(_PANEL):
                    totals[l] += (v0 * x0[l] + v1 * x1[l]) + (v2 * x2[l] + v3 * x3[l])
            for j in range(tail, starts[o + 1]):
                v0, x0 = values[j], panels[p, columns[j]]
                for l in range(_PANEL):
                    totals[l] += v0 * x0[l]
            for l in range(rows):
                total = totals[l] + bias[o]
                y[p * _PANEL + l, o] = activate(total, activation)


@kernel
def _sparse_groups(panels, starts, columns, values, bias, activation, y, first, last):
    """As _sparse_panels, for _GROUP outputs with the same columns at a time."""
    totals = np.empty((_GROUP, _PANEL), np.float32)
    blocks = (y.shape[1] + _OUTPUTS - 1) // _OUTPUTS
    for tile in range(first, last):
        p, o0 = tile // blocks, tile % blocks * _OUTPUTS
        rows = min(_PANEL, y.shape[0] - p * _PANEL)
        for o in range(o0, min(o0 + _OUTPUTS, y.shape[1]), _GROUP):
            count = starts[o + 1] - starts[o]
            tail = starts[o + 1] - count % 4
            t0, t1, t2, t3 = totals[0], totals[1], totals[2], totals[3]
            totals[:] = 0
            for j in range(starts[o], tail, 4):
                x0, x1 = panels[p, columns[j]], panels[p, columns[j + 1]]
                x2, x3 = panels[p, columns[j + 2]], panels[p, columns[j + 3]]
                a, b = values[j : j + 4], values[j + count : j + count + 4]
                c, d = values[j + 2 * count : j + 2 * count + 4], values[j + 3 * count : j + 3 * count + 4]
                a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
                b0, b1, b2, b3 = b[0], b[1], b[2], b[3]
                c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
                d0, d1, d2, d3 = d[0], d[1], d[2], d[3]
                for l in range(_PANEL):
                    t0[l] += (a0 * x0[l] + a1 * x1[l]) + (a2 * x2[l] + a3 * x3[l])
                    t1[l] += (b0 * x0[l] + b1 * x1[l]) + (b2 * x2[l] + b3 * x3[l])
                    t2[l] += (c0 * x0[l] + c1 * x1[l]) + (c2 * x2[l] + c3 * x3[l])
                    t3[l] += (d0 * x0[l] + d1 * x1[l]) + (d2 * x2[l] + d3 * x3[l])
            for j in range(tail, starts[o + 1]):
                x0 = panels[p, columns[j]]
                for k in range(_GROUP):
                    v0, total = values[j + k * count], totals[k]
                    for l in range(_PANEL):
                        total[l] += v0 * x0[l]
            for k in range(_GROUP):
                for l in range(rows):
                    total = totals[k, l] + bias[o + k]
                    y[p * _PANEL + l, o + k] = activate(total, activation)


def sparse_linear(x: Float, state: SparseState, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias`` over the stored weights only, in fp32."""
    rows, features = x.shape
    out_features = state.shape[0]
    y = np.empty((rows, out_features), np.float32)
    weight = (state.starts, state.columns, state.values, state.bias, activation)
    average = state.values.size / max(1, out_features)
    in_panels = rows if rows % _PANEL > _FEW_ROWS else rows // _PANEL * _PANEL
    x = as_input(x)
    if in_panels:
        panels = np.empty((-(-in_panels // _PANEL), features, _PANEL), np.float32)
        run(_transpose_panels, len(panels), 20 + features * _PANEL, threads, x[:in_panels], panels)
        count = len(panels) * -(-out_features // _OUTPUTS)
        tile_ns = _OUTPUTS * (50 + average * 3)
        run(
            _sparse_groups if state.height > 1 else _sparse_panels,
            count,
            tile_ns,
            threads,
            as_input(panels),
            *weight,
            y[:in_panels],
        )
    if in_panels < rows:
        item_ns = (rows - in_panels) * (5 + average)
        run(_sparse_row, out_features, item_ns, threads, x[in_panels:], *weight, y[in_panels:])
    return y
