"""The kernels compiled by Numba: speed where no C++ compiler was at hand.

The names are those of `reference.py`. Every kernel takes a range of items (rows, tiles, chunks), so that Python threads
share the work: `parallel=True` is never used, because its OpenMP layer hangs in forked children and its workqueue layer
aborts under concurrent callers. No kernel uses fast math: what a row computes depends neither on the number of
threads nor on the rows beside it, and int8 and quantization give the bits of `reference.py`.

Inputs are handed to Numba read-only and aligned, so that each kernel is compiled once. Inner loops count from 0 (over
slices): Numba tests other indices for being negative, and such a loop is not vectorised.
"""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import reference
from .reference import ZERO_ROW, Float, Int8Array, Int8State, SparseState
from .threads import run

_ROWS, _OUTPUTS = 64, 16  # tile of an int8 product: 16 rows of weights stay in the L1 cache
_PANEL = 32  # rows that a sparse weight is multiplied with at a time
_FEW_ROWS = 2  # rows that are not worth a panel
_COLUMNS = 1 << 15  # columns of a tile of quantize and dequantize
_LANES = 32  # partial sums of a row score
_PART = 1 << 16  # products that an int32 sum surely holds: 2^16 * 2^14 < 2^31

_INFINITY = 0x7F800000  # bit pattern
_MAGNITUDE = 0x7FFFFFFF
_LOW_BITS = 15


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile function when it is first called; the machine code is kept on disk where that is possible."""
    try:
        return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # neither __pycache__ nor a user's cache directory can be written
        return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy")(function))


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy function into the kernels that use it: calling it for every sum would cost a fifth of the speed."""
    return cast("Callable[..., Any]", njit(inline="always", error_model="numpy")(function))


def _input(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only, aligned view of a contiguous array (a copy where it is not aligned)."""
    view = np.require(array, requirements="A").view()
    view.flags.writeable = False
    return view


def pack_int8(weight: Int8Array, scale: Float, bias: Float | None, input_scale: float | None) -> Int8State:
    """Keep the integers as they are."""
    state = reference.pack_int8(weight, scale, _bias(bias, weight.shape[0]), input_scale)
    return replace(state, weight=_input(state.weight), scale=_input(state.scale))


def pack_sparse(weight: Float, bias: Float | None) -> SparseState:
    """Compress the rows of weight [out, in]."""
    state = reference.pack_sparse(weight, _bias(bias, weight.shape[0]))
    # Numba tests every signed index for being negative; unsigned ones are free.
    columns = _input(state.columns.view(np.uint32))
    return replace(state, starts=_input(state.starts), columns=columns, values=_input(state.values))


def _bias(bias: Float | None, out_features: int) -> Float:
    return _input(np.zeros(out_features, np.float32) if bias is None else bias.copy())


unpack_int8 = reference.unpack_int8
unpack_sparse = reference.unpack_sparse


@_kernel
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


@_inlined
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


@_kernel
def _int8_tiles(q, row_scales, weight, scales, bias, activation, y, first, last):
    row_blocks = (y.shape[0] + _ROWS - 1) // _ROWS
    for tile in range(first, last):
        o0, r0 = tile // row_blocks * _OUTPUTS, tile % row_blocks * _ROWS
        for r in range(r0, min(r0 + _ROWS, y.shape[0])):
            for o in range(o0, min(o0 + _OUTPUTS, y.shape[1])):
                value = np.float32(_dot(q, weight, r, o)) * (row_scales[r] * scales[o]) + bias[o]
                y[r, o] = np.float32(0) if activation == 1 and value < 0 else value


@_kernel
def _matmul_tiles(a, b, c, first, last):
    row_blocks = (c.shape[0] + _ROWS - 1) // _ROWS
    for tile in range(first, last):
        o0, r0 = tile // row_blocks * _OUTPUTS, tile % row_blocks * _ROWS
        for r in range(r0, min(r0 + _ROWS, c.shape[0])):
            for o in range(o0, min(o0 + _OUTPUTS, c.shape[1])):
                c[r, o] = _dot(a, b, r, o)


def _tiles(rows: int, outputs: int, features: int) -> tuple[int, float]:
    """Return the number of tiles of an int8 product and the nanoseconds that one takes."""
    count = -(-rows // _ROWS) * -(-outputs // _OUTPUTS)
    return count, min(rows, _ROWS) * min(outputs, _OUTPUTS) * (10 + features / 40) + 1


def int8_linear(x: Float, state: Int8State, activation: int, threads: int) -> Float:
    """``y = float(q_x @ q_w.T) * (s_x * s_w) + bias``, all in fp32, each operation rounded once."""
    rows, features = x.shape
    q = np.empty((rows, features), np.int16)
    scales = np.empty(rows, np.float32)
    y = np.empty((rows, state.weight.shape[0]), np.float32)
    x = _input(x)
    static_scale = np.float32(0 if state.input_scale is None else state.input_scale)
    run(_quantize_rows, rows, 20 + features / 2, threads, x, x.view(np.uint32), static_scale, q, scales)
    arguments = (_input(q), _input(scales), state.weight, state.scale, state.bias, activation, y)
    run(_int8_tiles, *_tiles(rows, y.shape[1], features), threads, *arguments)
    return y


def int8_matmul(a: Int8Array, b: Int8Array, threads: int) -> NDArray[np.int64] | NDArray[np.int32]:
    """``a [m, k] @ b [k, n]``, exact; int64 where an int32 might not hold it."""
    rows, features = a.shape
    c = np.empty((rows, b.shape[1]), np.int32 if features < 1 << 17 else np.int64)
    left, right = _input(a.astype(np.int16)), _input(np.ascontiguousarray(b.T))
    run(_matmul_tiles, *_tiles(rows, c.shape[1], features), threads, left, right, c)
    return c


# Sparse products: for every row they are summed in the same order: four at a time, then one by one.


@_kernel
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
            y[r, o] = np.float32(0) if activation == 1 and total < 0 else total


@_kernel
def _transpose_panels(x, panels, first, last):
    """panels[p, i, l] = x[p * _PANEL + l, i], 0 behind the last row."""
    for p in range(first, last):
        rows = min(_PANEL, x.shape[0] - p * _PANEL)
        for l in range(_PANEL):
            for i in range(x.shape[1]):
                panels[p, i, l] = x[p * _PANEL + l, i] if l < rows else np.float32(0)


@_kernel
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
                y[p * _PANEL + l, o] = np.float32(0) if activation == 1 and total < 0 else total


def sparse_linear(x: Float, state: SparseState, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias`` over the stored weights only, in fp32."""
    rows, features = x.shape
    out_features = state.shape[0]
    y = np.empty((rows, out_features), np.float32)
    weight = (state.starts, state.columns, state.values, state.bias, activation)
    average = state.values.size / max(1, out_features)
    in_panels = rows if rows % _PANEL > _FEW_ROWS else rows // _PANEL * _PANEL
    x = _input(x)
    if in_panels:
        panels = np.empty((-(-in_panels // _PANEL), features, _PANEL), np.float32)
        run(_transpose_panels, len(panels), 20 + features * _PANEL, threads, x[:in_panels], panels)
        count = len(panels) * -(-out_features // _OUTPUTS)
        tile_ns = _OUTPUTS * (50 + average * 3)
        run(_sparse_panels, count, tile_ns, threads, _input(panels), *weight, y[:in_panels])
    if in_panels < rows:
        item_ns = (rows - in_panels) * (5 + average)
        run(_sparse_row, out_features, item_ns, threads, x[in_panels:], *weight, y[in_panels:])
    return y


@_kernel
def _quantize_tiles(x, scale, zero_point, low, high, q, first, last):
    blocks = (x.shape[1] + _COLUMNS - 1) // _COLUMNS
    for tile in range(first, last):
        g, start = tile // blocks, tile % blocks * _COLUMNS
        source, target = x[g, start : start + _COLUMNS], q[g, start : start + _COLUMNS]
        for i in range(source.size):
            value = np.rint(source[i] / scale[g] + zero_point[g])
            target[i] = np.int32(min(max(value, low), high))


@_kernel
def _dequantize_tiles(q, scale, zero_point, x, first, last):
    blocks = (q.shape[1] + _COLUMNS - 1) // _COLUMNS
    for tile in range(first, last):
        g, start = tile // blocks, tile % blocks * _COLUMNS
        source, target = q[g, start : start + _COLUMNS], x[g, start : start + _COLUMNS]
        for i in range(source.size):
            target[i] = (np.float32(source[i]) - zero_point[g]) * scale[g]


def quantize(x: Float, scale: Float, zero_point: Float, low: int, high: int, dtype: Any, threads: int) -> NDArray[Any]:
    """``q = clamp(rint(x / scale + zero_point), low, high)``, x [groups, n], scale and zero_point [groups]."""
    q = np.empty(x.shape, dtype)
    ends = np.float32(low), np.float32(high)
    arguments = (_input(x), _input(scale), _input(zero_point), *ends, q)
    run(_quantize_tiles, *_column_tiles(x.shape), threads, *arguments)
    return q


def dequantize(q: NDArray[Any], scale: Float, zero_point: Float, threads: int) -> Float:
    """``x = (q - zero_point) * scale``, q [groups, n], scale and zero_point [groups]."""
    x = np.empty(q.shape, np.float32)
    run(_dequantize_tiles, *_column_tiles(q.shape), threads, _input(q), _input(scale), _input(zero_point), x)
    return x


def _column_tiles(shape: tuple[int, ...]) -> tuple[int, float]:
    groups, columns = shape
    return groups * -(-columns // _COLUMNS), 10 + min(columns, _COLUMNS) / 2


@_kernel
def _row_sums(x, power, sums, first, last):
    lanes = np.empty(_LANES, np.float64)
    whole = x.shape[1] // _LANES * _LANES
    for r in range(first, last):
        lanes[:] = 0
        for start in range(0, whole, _LANES):
            for l in range(_LANES):
                value = abs(np.float64(x[r, start + l]))
                lanes[l] += value if power == 1 else value * value
        for c in range(whole, x.shape[1]):
            value = abs(np.float64(x[r, c]))
            lanes[c - whole] += value if power == 1 else value * value
        sums[r] = lanes.sum()


@_kernel
def _column_sums(x, power, sums, first, last):
    part = sums[first:last]
    for r in range(x.shape[0]):
        row = x[r, first:last]
        for c in range(part.size):
            value = abs(np.float64(row[c]))
            part[c] += value if power == 1 else value * value


def row_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each row of x [rows, columns]."""
    sums = np.empty(x.shape[0], np.float64)
    run(_row_sums, x.shape[0], 20 + x.shape[1] / 2, threads, _input(x), power, sums)
    return _norms(sums, power)


def column_scores(x: Float, power: int, threads: int) -> Float:
    """L1 (power 1) or L2 (power 2) norm of each column of x [rows, columns]."""
    sums = np.zeros(x.shape[1], np.float64)
    run(_column_sums, x.shape[1], 1 + x.shape[0] / 2, threads, _input(x), power, sums)
    return _norms(sums, power)


def _norms(sums: NDArray[np.float64], power: int) -> Float:
    return (sums if power == 1 else np.sqrt(sums)).astype(np.float32)


@_kernel
def _histogram(bits, shift, prefix, counts, first, last):
    """Count the bits below ``shift`` of the magnitudes that begin with prefix; NaN counts as the largest magnitude."""
    below = max(shift - _LOW_BITS - 1, 0)
    mask = np.uint32(counts.size - 1)
    part = bits[first:last]
    for i in range(part.size):
        magnitude = np.uint32(part[i] & np.uint32(_MAGNITUDE))
        if magnitude > np.uint32(_INFINITY):
            magnitude = np.uint32(_MAGNITUDE)
        if magnitude >> shift == prefix:
            counts[(magnitude >> below) & mask] += 1


def _select(arrays: list[NDArray[np.uint32]], shift: int, prefix: int, k: int, threads: int) -> tuple[int, int, bool]:
    """Return the bin of the k-th magnitude with this prefix, its rank in the bin, and whether the last bin is used."""
    bins = 1 << min(shift, _LOW_BITS + 1)
    spare: list[NDArray[np.int64]] = []  # one histogram for each thread

    for bits in arrays:

        def count(first: int, last: int, bits: NDArray[np.uint32] = bits) -> None:
            try:
                counts = spare.pop()
            except IndexError:
                counts = np.zeros(bins, np.int64)
            _histogram(bits, np.uint32(shift), np.uint32(prefix), counts, first, last)
            spare.append(counts)

        run(count, bits.size, 1.0, threads)
    ends = np.cumsum(np.sum(spare, axis=0))
    chosen = int(np.searchsorted(ends, k))
    return chosen, k - (int(ends[chosen - 1]) if chosen else 0), bool(ends[-1] != ends[-2])


def kth_magnitude(arrays: list[Float], k: int, threads: int) -> float:
    """The k-th smallest (from 1) magnitude over flat arrays, by radix selection on the bits; NaN where there is one."""
    bits = [_input(array.view(np.uint32)) for array in arrays]
    high, rank, has_nan = _select(bits, 31, 0, k, threads)
    if has_nan:
        return float("nan")
    low, _, _ = _select(bits, _LOW_BITS, high, rank, threads)
    return float(np.uint32(high << _LOW_BITS | low).view(np.float32))


@_kernel
def _zero_small(flat, threshold, first, last):
    part = flat[first:last]
    count = 0
    for i in range(part.size):
        small = abs(part[i]) <= threshold
        count += small
        part[i] = np.float32(0) if small else part[i]
    return count


def apply_threshold(flat: Float, threshold: float, threads: int) -> int:
    """Set entries with magnitude <= threshold to 0 in place; return their count."""
    counts: list[int] = []

    def part(first: int, last: int) -> None:
        counts.append(_zero_small(flat, np.float32(threshold), first, last))

    run(part, flat.size, 0.5, threads)
    return sum(counts)
