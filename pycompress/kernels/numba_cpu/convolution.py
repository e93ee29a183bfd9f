"""Convolutions of int8, exactly, and sparse in fp32: a row of output pixels at a time, so that loops run along rows."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from .. import reference
from ..reference import ConvState, Float, Int8Array, SparseConvState
from ..reference.convolution import Pair, nan_images, on_channels_last
from ..threads import run
from .activations import activate
from .compiling import as_input, kernel
from .matmul import _PART, _quantize_rows, pack_sparse


def pack_conv(
    weight: Int8Array,
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    stride: Pair,
    padding: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
    block: tuple[int, int] | None = None,
) -> ConvState:
    """Keep the integers as they are, also of a sparse weight."""
    del block
    state = reference.pack_conv(weight, scale, bias, input_scale, stride, padding, dilation, groups)
    return replace(state, weight=as_input(state.weight), scale=as_input(state.scale), bias=as_input(state.bias))


@kernel
def _rows(q, image_scales, weight, scales, bias, stride, dilation, group_outputs, activation, y, first, last):
    outputs, height, width = y.shape[1:]
    part = np.empty(width, np.int32)
    total = np.empty(width, np.int64)
    for item in range(first, last):
        n, o, r = item // (outputs * height), item // height % outputs, item % height
        first_channel = o // group_outputs * weight.shape[1]
        part[:] = 0
        total[:] = 0
        products = 0
        for c in range(weight.shape[1]):
            for i in range(weight.shape[2]):
                source = q[n, first_channel + c, r * stride[0] + i * dilation[0]]
                for j in range(weight.shape[3]):
                    w = np.int32(weight[o, c, i, j])
                    values = source[j * dilation[1] :]
                    if stride[1] == 1:
                        for k in range(width):
                            part[k] = np.int32(part[k] + w * np.int32(values[k]))
                    else:
                        for k in range(width):
                            part[k] = np.int32(part[k] + w * np.int32(values[k * stride[1]]))
                    products += 1
                    if products == _PART:
                        total += part
                        part[:] = 0
                        products = 0
        factor = image_scales[n] * scales[o]
        for k in range(width):
            y[n, o, r, k] = activate(np.float32(total[k] + part[k]) * factor + bias[o], activation)


def int8_conv(x: Float | Int8Array, state: ConvState, height: int, width: int, activation: int, threads: int) -> Float:
    """``y = float(sum of q_x * q_w) * (s_x[n] * s_w[o]) + bias[o]``; height and width are those of the output."""
    images = len(x)
    if x.dtype == np.int8:
        q = x.astype(np.int16)
        scales = np.where(nan_images(x), np.float32(np.nan), np.float32(state.input_scale or 0))
    else:
        flat = as_input(x.reshape(images, int(np.prod(x.shape[1:]))))
        q, scales = np.empty(flat.shape, np.int16), np.empty(images, np.float32)
        fixed = np.float32(state.input_scale or 0)
        run(_quantize_rows, images, 20 + flat.shape[1] / 2, threads, flat, flat.view(np.uint32), fixed, q, scales)
    padded = as_input(np.ascontiguousarray(state.pad(q.reshape(x.shape))))
    outputs = state.weight.shape[0]
    y = np.empty((images, outputs, height, width), np.float32)
    arguments = (padded, as_input(scales), state.weight, state.scale, state.bias, state.stride, state.dilation)
    row_ns = 50 + width * state.weight[0].size / 8
    run(_rows, images * outputs * height, row_ns, threads, *arguments, outputs // state.groups, activation, y)
    return y


pack_conv_last = pack_conv
int8_conv_last = on_channels_last(int8_conv)


pack_sparse_conv = partial(reference.pack_sparse_conv, pack=pack_sparse)
unpack_sparse_conv = reference.unpack_sparse_conv


@kernel
def _sparse_rows(padded, kernel, starts, columns, values, bias, stride, dilation, group, activation, y, first, last):
    """Rows of outputs of one group: outputs [group * out, ...) of y, sums in ascending order of weights."""
    outputs, height, width = bias.size, y.shape[2], y.shape[3]
    channels = padded.shape[1] // (y.shape[1] // outputs)
    taps = np.uint32(kernel[0] * kernel[1])
    total = np.empty(width, np.float32)
    for item in range(first, last):
        n, o, r = item // (outputs * height), item // height % outputs, item % height
        total[:] = 0
        for j in range(starts[o], starts[o + 1]):
            channel, tap = np.int64(columns[j] // taps), np.int64(columns[j] % taps)
            source = padded[n, group * channels + channel, r * stride[0] + tap // kernel[1] * dilation[0]]
            line = source[tap % kernel[1] * dilation[1] :]
            w = values[j]
            if stride[1] == 1:
                for k in range(width):
                    total[k] += w * line[k]
            else:
                for k in range(width):
                    total[k] += w * line[k * stride[1]]
        for k in range(width):
            value = total[k] + bias[o]
            y[n, group * outputs + o, r, k] = activate(value, activation)


def sparse_conv(x: Float, state: SparseConvState, height: int, width: int, activation: int, threads: int) -> Float:
    """``y = conv(x, w) + bias`` over the stored weights only, in fp32; height and width are those of the output."""
    padded = as_input(np.ascontiguousarray(state.pad(x)))
    outputs = state.weights[0].shape[0]
    y = np.empty((len(x), state.groups * outputs, height, width), np.float32)
    for group, w in enumerate(state.weights):
        arguments = (padded, state.kernel, w.starts, w.columns, w.values, w.bias, state.stride, state.dilation, group)
        row_ns = 50 + width * w.values.size / outputs / 4
        run(_sparse_rows, len(x) * outputs * height, row_ns, threads, *arguments, activation, y)
    return y
