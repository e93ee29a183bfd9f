"""Convolving images with packed weights: the contract, the checks, and the calls of the backend."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import arrays, backends
from .arrays import ArrayLike
from .convolution import PackedConv
from .geometry import LARGEST
from .ops import Activation, activation_code
from .packed import positive


def conv(
    x: ArrayLike, packed: PackedConv, activation: Activation | None = None, *, output_scale: float | None = None
) -> Any:
    """Convolve images (or signals) with a packed weight: ``y = activation(conv(x, w) + bias)``, as torch's conv does.

    Each image is quantized, ``m = max|x|`` over its channels and pixels, ``q = clamp(rint(x * (127 / m)), -127, 127)``
    (an image with ``m < 2^-100`` counts as zeros; with an ``input_scale`` s: ``q = clamp(rint(x * (1 / s)), -127,
    127)``), then ``y = float(sum of q * q_w) * ((m / 127) * s_w[o]) + bias[o]``, in fp32 with every operation rounded
    once: the same bits on every CPU, with every backend, in both memory formats and with any number of threads. An
    image that holds NaN or infinity gives NaN.

    With a :class:`Sparse` weight of Float32 values images stay float32, and only the stored weights are multiplied: one
    chain of fused multiply-adds for each result, in ascending order of channels, rows and columns of the kernel (zero
    times infinity is left out where a weight was pruned).

    Parameters
    ----------
    x : [images, channels, (height,) width] or [channels, (height,) width] float32, float16 or bfloat16; or int8
        NumPy array or torch CPU tensor, in any memory format. int8, for a ``channels_last`` weight with an
        ``input_scale``: the integers q themselves; an image that begins with -128 counts as NaN.
    packed : PackedConv
    activation : None, "relu", "gelu", "silu", "tanh", "sigmoid" or "relu6"
    output_scale : float, optional
        Return ``clamp(rint(y * (1 / output_scale)), -127, 127)`` as int8 instead of y, an image of NaN as -128; for
        ``channels_last`` weights.

    Returns
    -------
    [images, out_channels, (out height,) out width] or without images, kind and dtype of x (float32 where x is int8), or
        int8 with ``output_scale``; in the memory format of the weight where it is ``channels_last``, else in that of x

    Raises
    ------
    TypeError, ValueError
        When x has another dtype, number of dimensions or channels, or is smaller than the kernel; the activation is
        unknown, or output_scale is not positive or not for this weight.

    Examples
    --------
    >>> from .convolution import pack_conv
    >>> packed = pack_conv(np.array([[[1.0, 0.0, -1.0]]], np.float32), padding=1)
    >>> conv(np.array([[127.0, 1.0, 0.0, 3.0]], np.float32), packed)
    array([[ -1., 127.,  -2.,   0.]], dtype=float32)
    """
    if not isinstance(packed, PackedConv):
        raise TypeError(f"packed must be a PackedConv, got {type(packed).__name__}")
    code = activation_code(activation)
    if output_scale is not None:
        output_scale = positive(output_scale, "output_scale")
        if not packed.channels_last:
            raise ValueError("output_scale must be None for a weight that was not packed with channels_last=True")
    native, dimensions = packed._native, len(packed.shape)
    if native is not None:  # the short ways of the common cases
        if packed.channels_last:
            if arrays.is_plain_image(x) and (x.element_size() == 4 or packed.input_scale is not None):
                return _conv_last(x, packed, native, code, output_scale or 0.0)
        elif arrays.is_plain_tensor(x) and x.ndim == dimensions and x.shape[-1] > 0:
            height, width = _out_sizes(x, packed)
            y = x.new_empty((x.shape[0], packed.out_channels, *(height, width)[4 - dimensions :]))
            rows = x.shape[2] if dimensions == 4 else 1
            threads = backends.get_num_threads(for_torch=True)
            native.into(x.data_ptr(), y.data_ptr(), x.shape[0], rows, x.shape[-1], height * width, code, threads)
            return y
    array = arrays.view(x, "x")
    if array.dtype != np.int8 or not packed.channels_last or packed.input_scale is None:
        array = arrays.float32(x, "x")
    if array.ndim not in (dimensions - 1, dimensions):
        form = "[images, channels, height, width]" if dimensions == 4 else "[images, channels, width]"
        raise ValueError(f"x must be {form}, or without images, got {arrays.describe(x)}")
    batch = array if array.ndim == dimensions else array[None]
    height, width = _out_sizes(batch, packed)
    four = batch if dimensions == 4 else batch[:, :, None]
    threads = backends.threads_for(x)
    if packed.channels_last:
        images = np.ascontiguousarray(four.transpose(0, 2, 3, 1))
        y = packed._module.int8_conv_last(images, packed._state, height, width, code, threads, output_scale or 0.0)
        y = y.transpose(0, 3, 1, 2)
        y = y if array.ndim == dimensions else y[0]
        return arrays.like(y, x) if output_scale else arrays.restore(y, x)
    convolve = packed._module.sparse_conv if packed.scale is None else packed._module.int8_conv
    y = convolve(np.ascontiguousarray(four), packed._state, height, width, code, threads)
    y = y if dimensions == 4 else y[:, :, 0]
    result = arrays.restore(y if array.ndim == dimensions else y[0], x)
    if arrays.is_tensor(x) and x.ndim == 4 and not x.is_contiguous():
        torch = sys.modules["torch"]
        if x.is_contiguous(memory_format=torch.channels_last):
            return result.contiguous(memory_format=torch.channels_last)
    return result


def _conv_last(x: Any, packed: PackedConv, native: Any, code: int, output_scale: float) -> Any:
    torch = sys.modules["torch"]
    height, width = _out_sizes(x, packed)
    dtype = torch.int8 if output_scale else torch.float32
    sizes = (x.shape[0], packed.out_channels, height, width)
    y = torch.empty(sizes, dtype=dtype, memory_format=torch.channels_last)
    kinds = 2 if x.dtype is torch.int8 else 0, 2 if output_scale else 0
    threads = backends.get_num_threads(for_torch=True)
    pixels = x.shape[0], x.shape[2], x.shape[3], height, width
    native.into(x.data_ptr(), y.data_ptr(), *pixels, code, threads, *kinds, output_scale)
    return y


def _out_sizes(x: Any, packed: PackedConv) -> tuple[int, int]:
    """Check the channels and sizes of a batch; return the height and width of the output."""
    if x.shape[1] != packed.in_channels:
        raise ValueError(f"x must have {packed.in_channels} channels, got {arrays.describe(x)}")
    sizes, lanes = [1], packed.in_channels
    for side, kernel in enumerate(packed.shape[2:]):
        padded = x.shape[2 + side] + sum(packed.padding[side])
        reach = (kernel - 1) * packed.dilation[side] + 1
        if x.shape[2 + side] == 0 or padded < reach:
            raise ValueError(
                f"x must have at least {max(1, reach - sum(packed.padding[side]))} entries in dimension {2 + side}, "
                f"got {arrays.describe(x)}"
            )
        sizes.append((padded - reach) // packed.stride[side] + 1)
        lanes *= padded + packed.stride[side]
    if lanes > LARGEST:
        raise ValueError(f"x must have padded images of less than 2^31 values, got {arrays.describe(x)}")
    return sizes[-2], sizes[-1]
