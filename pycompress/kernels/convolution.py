"""Convolutions on weights packed once: the contract, the checks, and the calls of the backend."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats import Int8
from . import arrays, backends
from .arrays import ArrayLike
from .geometry import LARGEST, Padding, Sizes, borders, each_side
from .immutable import Numbered
from .ops import Activation, activation_code
from .packed import checked_bias, checked_scale, integers_of, positive


class PackedConv(Numbered):
    """The weight of a convolution in the layout of the kernel that this CPU runs best, with the convolution's geometry.

    Made by :func:`pack_conv`. Immutable; validated once, when packed. Pickles, copies and files hold the canonical form
    (integers, scales, bias, geometry) and are packed again where they are opened.

    Attributes
    ----------
    format : Int8
        What the weight computes.
    weight : [out_channels, in_channels / groups, *kernel_size] int8, read-only
    scale : [out_channels] float32, read-only
    bias : [out_channels] float32, read-only, or None
    input_scale : float or None
        Scale of the activations; None when it is found per image at run time.
    stride, dilation : tuple of int
        One number for each spatial dimension.
    padding : tuple of (int, int)
        Zeros before and after, for each spatial dimension.
    groups : int
    channels_last : bool
        The memory format that the kernel works in.
    nbytes : int
        Bytes held in memory.
    density : float
        Fraction of the weights that are not zero.
    kernel : str
        The kernel that runs, such as ``"native/avx2"``.
    number : int
        No other packed weight of this process ever has it.

    Examples
    --------
    >>> packed = pack_conv(np.ones((4, 1, 3, 3), np.float32), padding=1, groups=2)
    >>> packed.shape, packed.padding, packed.in_channels
    ((4, 1, 3, 3), ((1, 1), (1, 1)), 2)
    """

    __slots__ = (
        "_module",
        "_native",
        "_state",
        "bias",
        "channels_last",
        "density",
        "dilation",
        "format",
        "groups",
        "input_scale",
        "kernel",
        "nbytes",
        "padding",
        "scale",
        "stride",
        "weight",
    )

    _module: Any  # the backend
    _native: Any  # the state where it is a native one; else None
    _state: Any
    format: Int8
    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    input_scale: float | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool
    nbytes: int
    density: float
    kernel: str

    def __repr__(self) -> str:
        return f"PackedConv({self.format}, shape={self.shape}, stride={self.stride}, kernel={self.kernel!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.channels_last)
        return _unpickle, (self.weight, self.format, self.bias, self.scale, self.input_scale, *geometry)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: (out_channels, in_channels / groups, *kernel_size)."""
        return self.weight.shape

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weight.shape[1]) * self.groups

    def canonical_weight(self) -> NDArray[np.int8]:
        """Return what files hold: the integers, a copy.

        Examples
        --------
        >>> pack_conv(np.array([[[1.0, -0.5]]], np.float32)).canonical_weight()
        array([[[127, -64]]], dtype=int8)
        """
        return self.weight.copy()

    def unpack(self) -> NDArray[np.float32]:
        """Return the weight in float32 that the kernel multiplies with.

        Examples
        --------
        >>> pack_conv(np.array([[[0.0, 127.0]]], np.float32)).unpack()
        array([[[  0., 127.]]], dtype=float32)
        """
        return self.weight.astype(np.float32) * self.scale.reshape(-1, *[1] * (self.weight.ndim - 1))


def _unpickle(weight: Any, format: Int8, bias: Any, scale: Any, input_scale: Any, *geometry: Any) -> PackedConv:
    stride, padding, dilation, groups, channels_last = geometry
    return pack_conv(
        weight,
        format,
        bias,
        scale,
        input_scale,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels_last=channels_last,
    )


def pack_conv(
    weight: ArrayLike,
    format: Int8 = Int8(),  # noqa: B008 (frozen)
    bias: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    input_scale: float | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    channels_last: bool = False,
) -> PackedConv:
    """Pack the weight of a 1-D or 2-D convolution for :func:`conv`.

    A float weight is rounded, ``q = clamp(rint(w / s), -127, 127)``, with ``s[o] = max|w[o]| / 127`` (1 for an output
    of zeros) or with the given ``scale``; an int8 weight is kept as exactly those integers.

    Parameters
    ----------
    weight : [out_channels, in_channels / groups, (height,) width] float32, float16, bfloat16, or int8 with ``scale``
    format : Int8
    bias : [out_channels] float, optional
    scale : [out_channels] or one float, optional
        Scale of the integers, positive.
    input_scale : float, optional
        Fixed scale of the activations; by default it is found per image at run time.
    stride, dilation : int or one int for each spatial dimension
    padding : "same", "valid", int, one int or one pair (before, after) for each spatial dimension
        Zeros around the images. "same" keeps their size and needs stride 1; an odd number has its larger part behind.
    groups : int
        Divides the channels of both sides; group by group they are convolved.
    channels_last : bool
        Pack for images whose channels lie side by side in memory, as torch.channels_last has them. Such a weight also
        takes and gives int8 images. For 2-D convolutions with one group, or with one channel and one output in each.

    Returns
    -------
    PackedConv

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype, shape or range, or holds NaN or infinity.

    Examples
    --------
    >>> pack_conv(np.ones((8, 3, 3, 3), np.float32), stride=2, padding=((0, 1), (0, 1))).padding
    ((0, 1), (0, 1))
    """
    if not isinstance(format, Int8):
        raise TypeError(f"format must be Int8(), got {format!r}")
    array = arrays.view(weight, "weight")
    if array.dtype != np.int8:
        array = arrays.float32(weight, "weight")
        arrays.finite(array, "weight")
    elif scale is None:
        raise ValueError("scale must be given with an int8 weight")
    if array.ndim not in (3, 4) or array.size == 0:
        raise ValueError(
            "weight must be [out_channels, in_channels / groups, (height,) width] and not empty, "
            f"got {arrays.describe(weight)}"
        )
    sides = array.ndim - 2
    groups = arrays.integer(groups, "groups", 1, LARGEST)
    if array.shape[0] % groups:
        raise ValueError(f"groups must divide the {array.shape[0]} out_channels, got {groups}")
    strides, dilations = each_side(stride, "stride", sides, 1), each_side(dilation, "dilation", sides, 1)
    ends = borders(padding, array.shape[2:], strides, dilations)
    out = array.shape[0]
    bias_array = checked_bias(bias, "bias", out)
    scale_array = checked_scale(scale, "scale", out)
    if input_scale is not None:
        input_scale = positive(input_scale, "input_scale")
    flat, scale_array = integers_of(array.reshape(out, -1), scale_array)
    integers = np.array(flat, np.int8, order="C").reshape(array.shape)

    dense_or_depthwise = groups == 1 or (groups == out and array.shape[1] == 1)
    if arrays.flag(channels_last, "channels_last") and (sides == 1 or not dense_or_depthwise):
        raise ValueError(
            "channels_last must be False but for 2-D convolutions that are dense or depthwise, "
            f"got a weight {array.shape} with {groups} groups"
        )

    module = backends.backend()
    flat_image = (1,) * (2 - sides)  # a signal is an image of height 1
    state = (module.pack_conv_last if channels_last else module.pack_conv)(
        integers.reshape(*array.shape[:2], *flat_image, *array.shape[2:]),
        scale_array,
        bias_array,
        input_scale,
        (*flat_image, *strides),
        tuple(n for pair in (*[(0, 0)] * (2 - sides), *ends) for n in pair),
        (*flat_image, *dilations),
        groups,
    )
    for field in (integers, bias_array, scale_array):
        if field is not None:
            field.flags.writeable = False
    return PackedConv(
        _module=module,
        _state=state,
        _native=state if hasattr(state, "into") else None,
        format=format,
        weight=integers,
        scale=scale_array,
        bias=bias_array,
        input_scale=input_scale,
        stride=strides,
        padding=ends,
        dilation=dilations,
        groups=groups,
        channels_last=channels_last,
        nbytes=int(state.nbytes) + integers.nbytes,
        density=int(np.count_nonzero(integers)) / integers.size,
        kernel=backends.kernel_name(module, state),
    )


def conv(
    x: ArrayLike, packed: PackedConv, activation: Activation | None = None, *, output_scale: float | None = None
) -> Any:
    """Convolve images (or signals) with a packed weight: ``y = activation(conv(x, w) + bias)``, as torch's conv does.

    Each image is quantized, ``m = max|x|`` over its channels and pixels, ``q = clamp(rint(x * (127 / m)), -127, 127)``
    (an image with ``m < 2^-100`` counts as zeros; with an ``input_scale`` s: ``q = clamp(rint(x * (1 / s)), -127,
    127)``), then ``y = float(sum of q * q_w) * ((m / 127) * s_w[o]) + bias[o]``, in fp32 with every operation rounded
    once: the same bits on every CPU, with every backend, in both memory formats and with any number of threads. An
    image that holds NaN or infinity gives NaN.

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
    y = packed._module.int8_conv(np.ascontiguousarray(four), packed._state, height, width, code, threads)
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
