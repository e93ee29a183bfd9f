"""Convolutions in int64, rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .activations import activate
from .matmul import Float, Int8Array, as_output, quantize_rows

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvState:
    """An int8 convolution as this backend keeps it; sizes are (height, width)."""

    weight: Int8Array  # [out, in / groups, kernel height, kernel width]
    scale: Float  # [out]
    bias: Float  # [out]
    input_scale: float | None
    stride: Pair
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: Pair
    groups: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + self.scale.nbytes + self.bias.nbytes

    def pad(self, q: NDArray[np.int16]) -> NDArray[np.int16]:
        """Put zeros around images [images, channels, height, width]."""
        top, bottom, left, right = self.padding
        return np.pad(q, ((0, 0), (0, 0), (top, bottom), (left, right))) if any(self.padding) else q

    def tap(self, padded: NDArray[np.int16], row: int, column: int, height: int, width: int) -> NDArray[np.int16]:
        """What one weight of the kernel meets: [images, channels, out height, out width]."""
        top, left = row * self.dilation[0], column * self.dilation[1]
        down, right = self.stride
        return padded[:, :, top : top + (height - 1) * down + 1 : down, left : left + (width - 1) * right + 1 : right]


def pack_conv(
    weight: Int8Array,
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    stride: Pair,
    padding: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
) -> ConvState:
    """Keep the integers as they are."""
    kept = np.zeros_like(scale) if bias is None else bias.copy()
    return ConvState(weight.copy(), scale.copy(), kept, input_scale, stride, padding, dilation, groups)


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
