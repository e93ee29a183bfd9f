"""The C++ kernels, under the names of `reference`.

A packed state knows its kernel: the level is chosen once, when it is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..codes import codes_of
from . import backends
from .reference import DTYPES, Above, Cell, CodebookParts, Float, Int4Parts, Int8Array, Narrow, Output, Starts


def levels() -> list[str]:
    """Return the instruction set levels that this CPU runs, lowest first."""
    return _native.levels()


def pack_int8(
    weight: NDArray[np.int8],
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    block: tuple[int, int] | None = None,
) -> _native.Int8State:
    """Lay an int8 weight [out, in] out in panels, of a sparse one only what its blocks keep."""
    return _native.pack_int8(weight, scale, bias, input_scale, backends.isa_name(), strip_height(block))


def strip_height(block: tuple[int, int] | None) -> int | None:
    """Return the outputs of a strip of kept lines, 0 for a bitmap and None for a dense weight."""
    return None if block is None else 0 if block == (1, 1) else block[0]


def unpack_int8(state: _native.Int8State) -> NDArray[np.int8]:
    """Return the integers [out, in]."""
    return state.unpack()


def pack_int4(
    parts: Int4Parts, bias: Float | None, int8_activations: bool, input_scale: float | None
) -> _native.Int4State:
    """Lay a 4-bit weight [out, in] out in panels."""
    return _native.pack_int4(
        parts.weight,
        parts.group,
        None if parts.scale is None else parts.scale.view(np.uint16),
        parts.zero_point,
        parts.multiplier,
        parts.channel_scale,
        bias,
        int8_activations,
        input_scale,
        backends.isa_name(),
    )


def unpack_int4(state: _native.Int4State) -> NDArray[np.int8]:
    """Return the integers [out, in]."""
    return state.unpack()


def pack_binary(weight: Int8Array, scale: Float, bias: Float | None) -> _native.BinaryState:
    """Lay a weight of signs [out, in] out in panels of bits."""
    return _native.pack_binary(weight, scale, bias, backends.isa_name())


def unpack_binary(state: _native.BinaryState) -> NDArray[np.int8]:
    """Return the integers [out, in]."""
    return state.unpack()


def pack_codebook(parts: CodebookParts, bias: Float | None, input_scale: float | None) -> _native.CodebookState:
    """Lay a weight of few bits [out, in] out in panels."""
    if parts.bits == 1:  # -1 and 1, also where all are 1
        table, codes = np.array([-1, 1], np.int8), (parts.weight > 0).astype(np.int8)
    else:
        table, codes = codes_of(parts.weight, parts.bits)
    scale = None if parts.scale is None else parts.scale.view(np.uint16)
    sides = scale, parts.channel_scale, bias, input_scale
    return _native.pack_codebook(codes, table, parts.bits, parts.group, *sides, backends.isa_name())


def unpack_codebook(state: _native.CodebookState) -> NDArray[np.int8]:
    """Return the integers [out, in]."""
    return state.unpack()


def pack_sparse(weight: Float, bias: Float | None, height: int) -> _native.SparseState:
    """Lay a pruned weight [out, in] out in tiles; groups of `height` outputs share columns, sorted by their count."""
    return _native.pack_sparse(weight, bias, height, backends.isa_name())


def pack_bf16(weight: Float, bias: Float | None) -> _native.Bf16State:
    """Keep the nonzero weights of [out, in], whose numbers are bfloat16, with a mask."""
    return _native.pack_bf16(weight, bias, backends.isa_name())


def unpack_bf16(state: _native.Bf16State) -> Float:
    """Return the dense weight [out, in]."""
    return state.unpack()


def unpack_sparse(state: _native.SparseState) -> Float:
    """Return the dense weight [out, in]."""
    return state.unpack()


def int8_linear(
    x: Float | Int8Array,
    state: _native.Int8State,
    activation: int,
    threads: int,
    residual: Float | None = None,
    output: Output = "float32",
    output_scale: float = 0.0,
) -> NDArray[Any]:
    """Multiply rows [rows, in], float32 or int8, with an int8 weight."""
    y = np.empty((x.shape[0], state.out_features), DTYPES[output])
    added = 0 if residual is None else residual.ctypes.data
    kinds = 2 if x.dtype == np.int8 else 0, list(DTYPES).index(output)
    state.into(x.ctypes.data, y.ctypes.data, x.shape[0], activation, threads, *kinds, output_scale, added)
    return y


def int8_chain(x: Float, states: list[Any], activations: list[int], out_features: int, threads: int) -> Float:
    """Run layers of one kind one after the other on rows [rows, in]."""
    y = np.empty((x.shape[0], out_features), np.float32)
    bound_chain(states, activations)(x.ctypes.data, y.ctypes.data, x.shape[0], threads)
    return y


def pack_conv(
    weight: NDArray[np.int8],
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    block: tuple[int, int] | None = None,
) -> _native.ConvState:
    """Lay the weight of a convolution [out, in / groups, height, width] out for its kernel, dense or sparse."""
    strip = 0 if block is None else min(block[0], 16)
    geometry = stride, padding, dilation, groups, strip
    return _native.pack_conv(weight, scale, bias, input_scale, *geometry, backends.isa_name())


def int8_conv(x: Float, state: _native.ConvState, height: int, width: int, activation: int, threads: int) -> Float:
    """Convolve images [images, channels, height, width]; height and width are those of the output."""
    y = np.empty((x.shape[0], state.outputs, height, width), np.float32)
    state.into(x.ctypes.data, y.ctypes.data, x.shape[0], x.shape[2], x.shape[3], height * width, activation, threads)
    return y


def pack_sparse_conv(
    weight: Float,
    bias: Float | None,
    height: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> _native.SparseConvState:
    """Lay a pruned weight [out, in / groups, height, width] out as :func:`pack_sparse` does, group by group."""
    return _native.pack_sparse_conv(weight, bias, height, stride, padding, dilation, groups, backends.isa_name())


def unpack_sparse_conv(state: _native.SparseConvState) -> Float:
    """Return the dense weight [out, in / groups * kernel]."""
    return state.unpack()


def sparse_conv(
    x: Float, state: _native.SparseConvState, height: int, width: int, activation: int, threads: int
) -> Float:
    """Convolve images [images, channels, height, width] with a sparse weight; sizes are those of the output."""
    y = np.empty((x.shape[0], state.outputs, height, width), np.float32)
    state.into(x.ctypes.data, y.ctypes.data, x.shape[0], x.shape[2], x.shape[3], height * width, activation, threads)
    return y


def pack_conv_last(
    weight: NDArray[np.int8],
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> _native.DenseState | _native.DepthwiseState:
    """Lay the weight of a convolution with 1 group or as many as channels out for images whose channels come last."""
    geometry = weight.shape[2:], stride, (padding[0], padding[2]), dilation, backends.isa_name()
    if groups == 1:
        rows = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(len(weight), weight[0].size)
        return _native.pack_dense(rows, scale, bias, input_scale, *geometry)
    return _native.pack_depthwise(weight[:, 0], scale, bias, input_scale, *geometry)


def int8_conv_last(
    x: Float | Int8Array,
    state: _native.DenseState | _native.DepthwiseState,
    height: int,
    width: int,
    activation: int,
    threads: int,
    output_scale: float = 0.0,
) -> NDArray[Any]:
    """Convolve images [images, height, width, channels], float32 or int8; the result is int8 with an output scale."""
    y = np.empty((x.shape[0], height, width, state.outputs), np.int8 if output_scale else np.float32)
    kinds = 2 if x.dtype == np.int8 else 0, 2 if output_scale else 0
    sizes = x.shape[0], x.shape[1], x.shape[2], height, width
    state.into(x.ctypes.data, y.ctypes.data, *sizes, activation, threads, *kinds, output_scale)
    return y


def int4_linear(x: Float, state: _native.Int4State, activation: int, threads: int) -> Float:
    """Multiply rows [rows, in] with a 4-bit weight."""
    return state.linear(x, activation, threads)


def binary_linear(x: Float, state: _native.BinaryState, activation: int, threads: int) -> Float:
    """Multiply the signs of rows [rows, in] with a weight of signs."""
    return state.linear(x, activation, threads)


def codebook_linear(x: Float, state: _native.CodebookState, activation: int, threads: int) -> Float:
    """Multiply rows [rows, in] with a weight of few bits."""
    return state.linear(x, activation, threads)


def pack_recurrent(
    cell: Cell,
    input_weight: NDArray[np.int8],
    input_weight_scale: Float,
    input_bias: Float,
    input_scale: float | None,
    recurrent_weight: NDArray[np.int8],
    recurrent_scale: Float,
    recurrent_bias: Float,
    projection_weight: NDArray[np.int8] | None,
    projection_scale: Float | None,
) -> _native.RecurrentState:
    """Lay the weights of an LSTM or GRU out in panels, the recurrent one by blocks of units with all their gates."""
    inputs = (input_weight, input_weight_scale, input_bias, input_scale)
    recurrent = (recurrent_weight, recurrent_scale, recurrent_bias)
    isa = backends.isa_name()
    return _native.pack_recurrent(cell, *inputs, *recurrent, projection_weight, projection_scale, isa)


def unpack_recurrent(
    state: _native.RecurrentState,
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8] | None]:
    """Return the integers of the input, recurrent and projection weights."""
    return state.unpack()


def int8_recurrent(
    x: Float,
    starts: Starts,
    h: Float,
    c: Float,
    y: Float,
    state: _native.RecurrentState,
    backwards: bool,
    threads: int,
) -> None:
    """Run a sequence x [rows, in]; updates h [batch, out] and c [batch, hidden], writes y [rows, out]."""
    state.run(x, starts, h, c, y, backwards, threads)


def bound_chain(states: list[Any], activations: list[int]) -> Callable[[int, int, int, int], None]:
    """Return a function (address of x, address of y, rows, threads) that runs layers of one kind in turn."""
    chain = _native.SparseChain if isinstance(states[0], _native.SparseState) else _native.Int8Chain
    return chain(states, activations).into


def sparse_linear(x: Float, state: _native.SparseState, activation: int, threads: int) -> Float:
    """Multiply rows [rows, in] with a sparse weight."""
    return state.linear(x, activation, threads)


def bf16_linear(x: Float, state: _native.Bf16State, activation: int, threads: int) -> Float:
    """Multiply rows [rows, in], rounded to bfloat16, with a sparse bfloat16 weight."""
    return state.linear(x, activation, threads)


def pack_csr(starts: NDArray[np.int64], indices: NDArray[Any], values: NDArray[Any], inner: int) -> _native.CsrState:
    """Keep a checked matrix; columns of entries are uint16 or uint32."""
    return _native.CsrState(starts.view(np.uint64), indices, values, inner, backends.isa_name())


def unpack_csr(state: _native.CsrState) -> tuple[NDArray[np.uint64], NDArray[Any], NDArray[Any]]:
    """Return starts, indices and values."""
    return state.unpack()


def spmm(state: _native.CsrState, dense: NDArray[Any], threads: int) -> NDArray[Any]:
    """``matrix @ dense``, each result a chain of fused multiply-adds over the entries of a row in their order."""
    return state.multiply(dense, threads)


def int8_matmul(a: NDArray[np.int8], b: NDArray[np.int8], threads: int) -> NDArray[np.int32]:
    """``a [m, k] @ b [k, n]``; raises OverflowError when a sum does not fit into int32."""
    return _native.int8_matmul(a, b, threads, backends.isa_name())


def quantize(x: Float, scale: Float, zero_point: Float, low: int, high: int, dtype: Any, threads: int) -> NDArray[Any]:
    """``q = clamp(rint(x / scale + zero_point), low, high)``, x [groups, n]."""
    q = np.empty(x.shape, dtype)
    _native.quantize(x, q, scale, zero_point, low, high, False, threads, backends.isa_name())
    return q


def dequantize(q: NDArray[Any], scale: Float, zero_point: Float, threads: int) -> Float:
    """``x = (q - zero_point) * scale``, q [groups, n]."""
    x = np.empty(q.shape, np.float32)
    _native.quantize(x, q, scale, zero_point, 0, 0, True, threads, backends.isa_name())
    return x


def block_norms(
    x: Narrow, height: int, width: int, gradient: Narrow | None, factor: Float | None, threads: int
) -> tuple[Float, Float]:
    """L1 and L2 norm of |x|, of |x * gradient|, or of |x| * factor[column], of each block of x [rows, columns]."""
    return _native.scores(x, height, width, gradient, factor, threads, backends.isa_name())


def kth_magnitude(arrays: list[Narrow], k: int, threads: int) -> float:
    """Return the k-th smallest (from 1) magnitude over flat arrays; NaN when there is one."""
    return _native.kth_magnitude(arrays, k, threads, backends.isa_name())[0]


def apply_threshold(flat: Float, threshold: float, threads: int) -> int:
    """Set entries with magnitude <= threshold to 0 in place; return their count."""
    return _native.threshold(flat, threshold, True, None, None, threads, backends.isa_name())


def above(flat: Narrow, threshold: float, mask: bool, bitmap: bool, packed: bool, threads: int) -> Above:
    """Mask, bitmap, and gaps and values of what is above; None where it is not asked for. -1 zeros: there is a NaN."""
    marks = np.empty(flat.size, np.int8) if mask else None
    bits = np.empty(-(-flat.size // 8), np.uint8) if bitmap else None
    if packed:
        gaps, values, nan = _native.packed_above(flat, threshold, marks, bits, threads, backends.isa_name())
        return Above(-1 if nan else flat.size - values.size, marks, bits, gaps, values)
    zeros = _native.threshold(flat, threshold, False, marks, bits, threads, backends.isa_name())
    return Above(zeros, marks, bits, None, None)


def nm_mask(x: Narrow, n: int, m: int, threads: int) -> NDArray[np.int8] | None:
    """Mark by -1 the n largest magnitudes of each m consecutive columns, of equal ones the later; None: a NaN."""
    mask = np.empty(x.shape, np.int8)
    return None if _native.nm_mask(x, n, m, mask, threads, backends.isa_name()) else mask
