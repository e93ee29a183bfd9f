"""Convolutions on packed weights, and how a convolution of a model becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import kernels, torch_ops
from .int8_images import Int8Images, float_images, int8_images
from .kernels.ops import Activation, activation_code
from .kernels.packed import positive
from .layers import LayerDecision, PackedLayer, arrays_like

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class _PackedConv(PackedLayer):
    packed: kernels.PackedConv
    _sides: ClassVar[int]

    def __init__(
        self,
        packed: kernels.PackedConv,
        activation: Activation | None = None,
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, kernels.PackedConv):
            raise TypeError(f"packed must be a PackedConv, got {type(packed).__name__}")
        if len(packed.stride) != self._sides:
            raise ValueError(f"packed must be of a {self._sides}-D convolution, got a weight {packed.shape}")
        activation_code(activation)
        super().__init__(packed, decision)
        self.activation = activation

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.packed.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.packed.out_channels

    @property
    def sizes(self) -> str:
        """Inputs and outputs, for messages."""
        return f"{self.in_channels} -> {self.out_channels}"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x; returns the output in x's dtype and memory format.

        Raises
        ------
        TypeError, ValueError
            When x does not fit, or requires grad while grad mode is on.
        """
        self._check_input(x)
        if torch.compiler.is_compiling():
            return torch_ops.traced_conv(x, self.packed, self.activation)
        return cast(Tensor, kernels.conv(x, self.packed, self.activation))

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        p = self.packed
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={p.shape[2:]}, stride={p.stride}, "
            f"padding={p.padding}, dilation={p.dilation}, groups={p.groups}, format={p.format}, "
            f"bias={p.bias is not None}, activation={self.activation!r}, kernel={p.kernel!r}"
        )

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        tensors = {"weight": torch.from_numpy(self.packed.canonical_weight())}
        for name in ("scale", "bias", "input_scale"):
            value = getattr(self.packed, name)
            if value is not None:
                tensors[name] = torch.tensor(value, dtype=torch.float32)
        return tensors

    def repacked(self, tensors: dict[str, Any]) -> kernels.PackedConv:
        """Pack tensors that stand for the canonical ones."""
        arrays = arrays_like(self.canonical_tensors(), tensors)
        input_scale = float(arrays["input_scale"]) if "input_scale" in arrays else None
        p = self.packed
        return kernels.pack_conv(
            arrays["weight"],
            p.format,
            arrays.get("bias"),
            arrays.get("scale"),
            input_scale,
            stride=p.stride,
            padding=p.padding,
            dilation=p.dilation,
            groups=p.groups,
            channels_last=p.channels_last,
        )


class PackedConv1d(_PackedConv):
    """A 1-D convolution on a packed weight, for inference only; see :class:`PackedConv2d`.

    Parameters
    ----------
    packed : PackedConv
        From :func:`pycompress.kernels.pack_conv`, of a weight [out_channels, in_channels / groups, width].
    activation : None, "relu", "gelu", "silu", "tanh", "sigmoid" or "relu6"
    decision : LayerDecision, optional
        Why the layer is packed.

    Examples
    --------
    >>> layer = PackedConv1d(kernels.pack_conv(torch.tensor([[[1.0, -1.0]]])), "relu")
    >>> layer(torch.tensor([[127.0, 1.0, 3.0]]))
    tensor([[126.,   0.]])
    """

    _sides = 1


class PackedConv2d(_PackedConv):
    """A convolution on a packed weight: ``y = activation(conv(x, w) + bias)``, for inference only.

    Has no parameters and no buffers: ``.to()`` and ``.half()`` leave the weight as it is, and it takes float32, float16
    and bfloat16 inputs, in any memory format. ``state_dict``, pickles and copies hold the canonical form of the weight,
    ``weight`` int8 and ``scale`` [out_channels], of Sparse ``weight`` float32 alone, and, where they exist, ``bias``
    [out_channels] and ``input_scale`` [], float32; it is packed again for the CPU that loads it. Stride, padding,
    dilation and groups are the layer's own.

    Parameters
    ----------
    packed : PackedConv
        From :func:`pycompress.kernels.pack_conv`, of a weight [out_channels, in_channels / groups, height, width].
    activation : None, "relu", "gelu", "silu", "tanh", "sigmoid" or "relu6"
        Applied by the kernel.
    decision : LayerDecision, optional
        Why the layer is packed.
    output_scale : float, optional
        Of a weight that was packed with ``channels_last``: the static input scale of the packed convolutions that take
        the output, which then is handed to them as int8. Anything else that reads it sees float32, and so do all in
        compiled and exported models.
    dtype : torch.dtype
        That of the weight that the layer had, also after ``.half()``: where it is float16 or bfloat16, outputs have it
        even where inputs are int8 images, or the float32 that these are for everything else.

    Attributes
    ----------
    in_channels, out_channels : int

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> layer = PackedConv2d(kernels.pack_conv(torch.ones(1, 1, 2, 2), padding="same"))
    >>> layer(torch.tensor([[[1.0, 2.0], [3.0, 127.0]]]))
    tensor([[[133., 129.],
             [130., 127.]]])
    """

    _sides = 2
    dtype = torch.float32  # also of layers that were pickled without one

    def __init__(
        self,
        packed: kernels.PackedConv,
        activation: Activation | None = None,
        decision: LayerDecision | None = None,
        output_scale: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(packed, activation, decision)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
        self.dtype = dtype
        if output_scale is not None:
            if not packed.channels_last:
                raise ValueError("output_scale must be None for a weight that was not packed with channels_last=True")
            output_scale = positive(output_scale, "output_scale")
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x; returns the output in x's dtype, and in x's memory format or that of the weight.

        Raises
        ------
        TypeError, ValueError
            When x does not fit, or requires grad while grad mode is on.
        """
        if type(x) is Int8Images:
            x = x.integers if x.scale == self.packed.input_scale and self.packed.channels_last else float_images(x)
        if self.output_scale is None:
            y = super().forward(x)
            return y.to(self.dtype) if y.dtype == torch.float32 != self.dtype else y
        self._check_input(x)
        if torch.compiler.is_compiling():  # the next convolution rounds what it gets: float32, as it sees int8 images
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            return torch_ops.traced_conv(x, self.packed, self.activation)
        y = kernels.conv(x, self.packed, self.activation, output_scale=self.output_scale)
        return int8_images(y, self.output_scale, self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self.dtype = dtype if dtype in _DTYPES else self.dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        last = f", channels_last=True, output_scale={self.output_scale}" if self.packed.channels_last else ""
        return super().extra_repr() + last + (f", dtype={self.dtype}" if self.dtype != torch.float32 else "")


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


class Geometry(NamedTuple):
    """What a convolution is beside its weight: a number, or a pair of zeros around, for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def geometry(layer: nn.Module, inputs: list[Tensor]) -> Geometry | str:
    """Return the geometry of a convolution, or why no packed one can stand in for it.

    A subclass with a forward of its own is run on its inputs, and on larger ones: it counts as a convolution when all
    that it does is padding with zeros, the same at every size, and one convolution with its weight and bias.

    Parameters
    ----------
    layer : nn.Conv1d or nn.Conv2d
    inputs : list of tensors
        Inputs that it got.

    Returns
    -------
    Geometry or str

    Examples
    --------
    >>> geometry(nn.Conv2d(1, 1, 3, padding="same"), [])
    Geometry(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    """
    assert isinstance(layer, CONVOLUTIONS)
    base = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    name = type(layer).__name__
    own = {"forward", "_conv_forward"} & layer.__dict__.keys()
    if not own and type(layer).forward is base.forward and type(layer)._conv_forward is base._conv_forward:
        if layer.padding_mode != "zeros":
            return f"its padding_mode is {layer.padding_mode!r}"
        packed = kernels.pack_conv(
            torch.zeros(layer.groups, 1, *layer.kernel_size),
            stride=layer.stride,
            padding=cast(Any, layer.padding),
            dilation=layer.dilation,
            groups=layer.groups,
        )
        return Geometry(packed.stride, packed.padding, packed.dilation, packed.groups)
    found: set[Geometry] = set()
    sides = len(layer.kernel_size)
    for x in inputs:
        for more in ((0,) * sides, (1,) * sides, (0,) * (sides - 1) + (1,), (1,) + (0,) * (sides - 1)):
            larger = x.new_zeros((*x.shape[:-sides], *(n + m for n, m in zip(x.shape[-sides:], more, strict=True))))
            one = _observed(layer, x if not any(more) else larger)
            if one is None:
                return f"{name} has a forward of its own that is more than a convolution"
            found.add(one)
    if len(found) != 1:
        return f"{name} has a forward of its own whose padding depends on the size of the input"
    return found.pop()


class _Spy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, (*args, *(kwargs or {}).values()), result))
        return result


def _observed(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Geometry | None:
    """Return what a layer does to x, where that is zero padding and one convolution."""
    sides = len(layer.kernel_size)
    with torch.no_grad(), _Spy() as spy:
        try:
            result = layer(x)
        except RuntimeError:
            return None
    borders, found, current = [(0, 0)] * sides, None, x
    for func, args, value in spy.calls:
        if not isinstance(args[0], Tensor) or args[0] is not current or found is not None:
            return None
        current = value
        if func is torch.ops.aten.constant_pad_nd.default:
            pads = list(args[1]) + [0] * (2 * sides - len(args[1]))
            if len(pads) > 2 * sides or min(pads) < 0 or (len(args) > 2 and args[2] != 0):
                return None
            borders = [
                (b + pads[2 * i], a + pads[2 * i + 1])
                for (b, a), i in zip(borders, reversed(range(sides)), strict=True)
            ]
        elif func is torch.ops.aten.convolution.default:
            weight, bias, stride, padding, dilation, transposed, _, groups = args[1:9]
            same_bias = bias is layer.bias or (bias is not None and layer.bias is not None and _same(bias, layer.bias))
            if transposed or not same_bias or not _same(weight, layer.weight):
                return None
            borders = [(b + p, a + p) for (b, a), p in zip(borders, padding, strict=True)]
            found = Geometry(tuple(stride), tuple(borders), tuple(dilation), groups)
        else:
            return None
    return found if result is current else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
