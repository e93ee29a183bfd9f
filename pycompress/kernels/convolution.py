"""Weights of convolutions, packed once; what multiplies with them is in convolving.py."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats import Int8, Sparse, has_bfloat16_weights, has_int8_weights
from . import arrays, backends
from .arrays import ArrayLike
from .geometry import LARGEST, Padding, Sizes, borders, each_side
from .immutable import Numbered
from .packed import checked_bias, checked_scale, integers_of, positive, stored_floats


class PackedConv(Numbered):
    """The weight of a convolution in the layout of the kernel that this CPU runs best, with the convolution's geometry.

    Made by :func:`pack_conv`. Immutable; validated once, when packed. Pickles, copies and files hold the canonical form
    (integers or nonzeros, scales, bias, geometry) and are packed again where they are opened.

    Attributes
    ----------
    format : Int8 or Sparse
        What the weight computes.
    shape : tuple of int
        Shape of the weight: (out_channels, in_channels / groups, *kernel_size).
    weight : [out_channels, in_channels / groups, *kernel_size] int8, or float32 and made anew each time, read-only
    scale : [out_channels] float32, read-only, or None
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
        "_weight",
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
        "shape",
        "stride",
    )

    _module: Any  # the backend
    _native: Any  # the state where it is a native one; else None
    _state: Any
    _weight: NDArray[np.int8] | None  # None: the state holds it
    format: Int8 | Sparse
    shape: tuple[int, ...]
    scale: NDArray[np.float32] | None
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
    def weight(self) -> NDArray[Any]:
        """The weight as files hold it."""
        if self._weight is not None:
            return self._weight
        weight = self._module.unpack_sparse_conv(self._state).reshape(self.shape)
        weight.flags.writeable = False
        return cast("NDArray[Any]", weight)

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups

    def canonical_weight(self) -> NDArray[Any]:
        """Return what files hold, a copy: the integers, or the float32 weight.

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
        weight = self.canonical_weight()
        return weight if self.scale is None else weight * self.scale.reshape(-1, *[1] * (weight.ndim - 1))


def _unpickle(
    weight: Any, format: Int8 | Sparse, bias: Any, scale: Any, input_scale: Any, *geometry: Any
) -> PackedConv:
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
    format: Int8 | Sparse = Int8(),  # noqa: B008 (frozen)
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
    of zeros) or with the given ``scale``; an int8 weight is kept as exactly those integers. With :class:`Sparse` the
    nonzero weights are kept, in fp32 (an int8 weight as the products ``q * scale``) or, with ``values=Int8()``, as the
    integers that Int8 has, and the numbers are its own. Blocks are those of the weight as [out_channels, in_channels /
    groups * kernel size]. (int8 kernels skip four channels at one place of the kernel where their weights are zero, of
    one output, or with blocks of 16; weights of one channel a group, and of more than 2^16 inputs, they keep dense.)

    Parameters
    ----------
    weight : [out_channels, in_channels / groups, (height,) width] float32, float16, bfloat16, or int8 with ``scale``
    format : Int8 or Sparse
    bias : [out_channels] float, optional
    scale : [out_channels] or one float, optional
        Scale of the integers, positive.
    input_scale : float, optional
        Fixed scale of int8 activations; by default it is found per image at run time.
    stride, dilation : int or one int for each spatial dimension
    padding : "same", "valid", int, one int or one pair (before, after) for each spatial dimension
        Zeros around the images. "same" keeps their size and needs stride 1; an odd number has its larger part behind.
    groups : int
        Divides the channels of both sides; group by group they are convolved.
    channels_last : bool
        Pack for images whose channels lie side by side in memory, as torch.channels_last has them. Such a weight also
        takes and gives int8 images. For 2-D Int8 convolutions with one group, or with one channel and one output in
        each.

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
    if not isinstance(format, (Int8, Sparse)):
        raise TypeError(f"format must be Int8() or Sparse(), got {format!r}")
    if has_bfloat16_weights(format):
        raise ValueError(f"format must have Float32() or Int8() values for convolutions, got {format!r}")
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
        if not has_int8_weights(format):
            raise ValueError(f"input_scale must be None with {format}: its activations do not become int8")
        input_scale = positive(input_scale, "input_scale")
    dense_or_depthwise = groups == 1 or (groups == out and array.shape[1] == 1)
    if arrays.flag(channels_last, "channels_last") and (sides == 1 or not dense_or_depthwise or format != Int8()):
        raise ValueError(
            "channels_last must be False but for 2-D Int8 convolutions that are dense or depthwise, "
            f"got a weight {array.shape} with {groups} groups and {format}"
        )

    module = backends.backend()
    flat_image = (1,) * (2 - sides)  # a signal is an image of height 1
    shape = (*array.shape[:2], *flat_image, *array.shape[2:])
    geometry = (
        (*flat_image, *strides),
        tuple(n for pair in (*[(0, 0)] * (2 - sides), *ends) for n in pair),
        (*flat_image, *dilations),
        groups,
    )
    integers = None
    if isinstance(format, Sparse) and not has_int8_weights(format):
        kept = stored_floats(array.reshape(out, -1), scale_array)
        scale_array, nonzeros = None, int(np.count_nonzero(kept))
        state = module.pack_sparse_conv(kept.reshape(shape), bias_array, format.block[0], *geometry)
    else:
        flat, scale_array = integers_of(array.reshape(out, -1), scale_array)
        integers = np.array(flat, np.int8, order="C").reshape(array.shape)
        nonzeros = int(np.count_nonzero(integers))
        values = integers.reshape(shape), scale_array, bias_array, input_scale
        if channels_last:
            state = module.pack_conv_last(*values, *geometry)
        else:
            state = module.pack_conv(*values, *geometry, format.block if isinstance(format, Sparse) else None)
    for field in (integers, bias_array, scale_array):
        if field is not None:
            field.flags.writeable = False
    return PackedConv(
        _module=module,
        _state=state,
        _native=state if hasattr(state, "into") else None,
        _weight=integers,
        format=format,
        shape=array.shape,
        scale=scale_array,
        bias=bias_array,
        input_scale=input_scale,
        stride=strides,
        padding=ends,
        dilation=dilations,
        groups=groups,
        channels_last=channels_last,
        nbytes=int(state.nbytes) + (0 if integers is None else integers.nbytes),
        density=nonzeros / array.size,
        kernel=backends.kernel_name(module, state),
    )
