"""Convolutions in int64 and float64, rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .activations import activate
from .matmul import Float, Int8Array, SparseState, as_output, pack_sparse, quantize_rows, sparse_linear, unpack_sparse

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where the weights of a kernel lie on an image; sizes are (height, width)."""

    stride: Pair
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: Pair
    groups: int

    def pad(self, x: NDArray[Any]) -> NDArray[Any]:
        """Put zeros around images [images, channels, height, width]."""
        top, bottom, left, right = self.padding
        return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))) if any(self.padding) else x

    def tap(self, padded: NDArray[Any], row: int, column: int, height: int, width: int) -> NDArray[Any]:
        """What one weight of the kernel meets: [images, channels, out height, out width]."""
        top, left = row * self.dilation[0], column * self.dilation[1]
        down, right = self.stride
        return padded[:, :, top : top + (height - 1) * down + 1 : down, left : left + (width - 1) * right + 1 : right]


@dataclass(frozen=True)
class ConvState(Window):
    """An int8 convolution as this backend keeps it."""

    weight: Int8Array  # [out, in / groups, kernel height, kernel width]
    scale: Float  # [out]
    bias: Float  # [out]
    input_scale: float | None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + self.scale.nbytes + self.bias.nbytes


@dataclass(frozen=True)
class SparseConvState(Window):
    """A sparse fp32 convolution as this backend keeps it: compressed rows [out / groups, in / groups * kernel]."""

    kernel: Pair
    weights: tuple[SparseState, ...]  # one for each group

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(weight.nbytes for weight in self.weights)


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
    kept = np.zeros_like(scale) if bias is None else bias.copy()
    return ConvState(stride, padding, dilation, groups, weight.copy(), scale.copy(), kept, input_scale)


NAN_BYTE = -128
"""What stands for NaN in int8 images that a kernel wrote."""


def nan_images(x: Float | Int8Array) -> NDArray[np.bool_]:
    """Tell which images count as NaN: those that hold NaN or infinity, or int8 ones whose first value says so."""
    flat = x.reshape(len(x), int(np.prod(x.shape[1:])))
    nan = flat[:, 0] == NAN_BYTE if x.dtype == np.int8 else ~np.isfinite(flat).all(axis=1)
    return cast("NDArray[np.bool_]", nan)


def to_channels_last(y: Float, nan: NDArray[np.bool_], output_scale: float) -> NDArray[Any]:
    """Return outputs [images, channels, height, width] as [images, height, width, channels], int8 with a scale."""
    y = np.ascontiguousarray(y.transpose(0, 2, 3, 1))
    if not output_scale:
        return y
    q = as_output(y, "int8", output_scale)
    q[nan] = NAN_BYTE
    return q


def on_channels_last(convolve: Callable[..., Float]) -> Callable[..., NDArray[Any]]:
    """Return int8_conv_last of a backend, made of its int8_conv."""

    def int8_conv_last(
        x: Float | Int8Array,
        state: ConvState,
        height: int,
        width: int,
        activation: int,
        threads: int,
        output_scale: float = 0.0,
    ) -> NDArray[Any]:
        """Convolve images [images, height, width, channels], float32 or int8; int8 results with an output scale."""
        planes = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        y = convolve(planes, state, height, width, activation, threads)
        return to_channels_last(y, nan_images(x), output_scale)

    return int8_conv_last


def int8_conv(x: Float | Int8Array, state: ConvState, height: int, width: int, activation: int, threads: int) -> Float:
    """``y = float(sum of q_x * q_w) * (s_x[n] * s_w[o]) + bias[o]``; height and width are those of the output."""
    if x.dtype == np.int8:
        q = cast(Int8Array, x)
        scale = np.where(nan_images(x), np.float32(np.nan), np.float32(state.input_scale or 0))
    else:
        q, scale = quantize_rows(cast(Float, x).reshape(len(x), int(np.prod(x.shape[1:]))), state.input_scale)
    padded = state.pad(q.reshape(x.shape).astype(np.int16))
    groups, pixels = state.groups, height * width
    out, channels, rows, columns = state.weight.shape
    sums = np.zeros((len(x), groups, out // groups, pixels), np.int64)
    for row in range(rows):
        for column in range(columns):
            values = state.tap(padded, row, column, height, width).reshape(len(x), groups, channels, pixels)
            weight = state.weight[:, :, row, column].reshape(groups, out // groups, channels)
            sums += weight.astype(np.int64) @ values.astype(np.int64)
    sums = sums.reshape(len(x), out, height, width)
    with np.errstate(over="ignore", invalid="ignore"):
        y = sums.astype(np.float32) * (scale[:, None] * state.scale[None, :])[:, :, None, None]
        y = y + state.bias[:, None, None]
    return activate(y, activation)


pack_conv_last = pack_conv
int8_conv_last = on_channels_last(int8_conv)


def pack_sparse_conv(
    weight: Float,
    bias: Float | None,
    height: int,
    stride: Pair,
    padding: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
    pack: Callable[[Float, Float | None, int], SparseState] = pack_sparse,
) -> SparseConvState:
    """Compress the rows of weight [out, in / groups, kernel height, kernel width], group by group."""
    out = len(weight) // groups
    rows = weight.reshape(len(weight), weight[0].size)
    parts = [slice(g * out, (g + 1) * out) for g in range(groups)]
    weights = tuple(pack(rows[part], None if bias is None else bias[part], height) for part in parts)
    return SparseConvState(stride, padding, dilation, groups, (weight.shape[2], weight.shape[3]), weights)


def unpack_sparse_conv(state: SparseConvState) -> Float:
    """Return the dense weight [out, in / groups * kernel]."""
    return np.concatenate([unpack_sparse(weight) for weight in state.weights])


def sparse_conv(x: Float, state: SparseConvState, height: int, width: int, activation: int, threads: int) -> Float:
    """``y = conv(x, w) + bias`` over the stored weights only, in float64; height and width are those of the output."""
    padded = state.pad(x)
    taps = [state.tap(padded, r, c, height, width) for r in range(state.kernel[0]) for c in range(state.kernel[1])]
    columns = np.stack(taps, axis=2)  # [images, channels, taps, height, width]
    images, channels, pixels = len(x), x.shape[1] // state.groups, height * width
    found = []
    for g, weight in enumerate(state.weights):
        part = columns[:, g * channels : (g + 1) * channels].reshape(images, weight.shape[1], pixels)
        rows = part.transpose(0, 2, 1).reshape(images * pixels, weight.shape[1])
        y = sparse_linear(rows, weight, activation, threads)
        found.append(y.reshape(images, pixels, weight.shape[0]).transpose(0, 2, 1))
    together = np.ascontiguousarray(np.concatenate(found, axis=1))
    return together.reshape(images, together.shape[1], height, width)
