"""The operators ``torch.ops.pycompress.*`` that compiled and exported models call in place of packed layers.

Layers call the kernels directly; only what ``torch.compile`` and ``torch.export`` trace goes through the operators:

- ``linear(Tensor x, Tensor packed, int out_features, str? activation) -> Tensor`` takes the weight as bytes (see
  :mod:`pycompress.weight_bytes`), so that an exported program holds it; a program needs ``import pycompress.torch_ops``
  where it is loaded, and packs its weights for the CPU that runs it when they are first used.
- ``linear_here(Tensor x, int number, int out_features, str? activation) -> Tensor`` takes the number of a weight that
  lives in this process, so that a compiled model holds no second copy of it.
- ``conv(Tensor x, Tensor packed, str? activation, int[] shape, int[] stride, int[] padding, int[] dilation, int groups,
  bool channels_last) -> Tensor`` and ``conv_here``, with ``int number`` in place of ``packed``, are those of
  convolutions. The shape of the weight and its geometry must be those of the packed one; padding is (before, after) for
  each spatial dimension, in one list.
- ``recurrent`` and ``recurrent_here``, those of LSTM and GRU: see :mod:`pycompress.sequences`.

What an operator returns has a shape that follows from the call alone: torch keeps compiled code on disk by its calls,
and in the next process a number means another weight.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from . import kernels, sequences
from .kernels.immutable import Numbered, numbered
from .kernels.ops import Activation
from .weight_bytes import exported, found

__all__ = ["sequences", "traced_conv", "traced_linear"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_Kind = TypeVar("_Kind", bound=Numbered)

_library: Any = torch.library.Library("pycompress", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor packed, int out_features, str? activation) -> Tensor")
_library.define("linear_here(Tensor x, int number, int out_features, str? activation) -> Tensor")
_CONV = "str? activation, int[] shape, int[] stride, int[] padding, int[] dilation, int groups, bool channels_last"
_library.define(f"conv(Tensor x, Tensor packed, {_CONV}) -> Tensor")
_library.define(f"conv_here(Tensor x, int number, {_CONV}) -> Tensor")


def traced_linear(x: Tensor, packed: kernels.PackedWeight, activation: Activation | None) -> Tensor:
    """Call the operator that stands for ``kernels.linear`` in what is being traced.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weight into the program.
    """
    if not torch.compiler.is_exporting():
        result: Tensor = torch.ops.pycompress.linear_here(x, packed.number, packed.shape[0], activation)
        return result
    result = torch.ops.pycompress.linear(x, exported(packed), packed.shape[0], activation)
    return result


def traced_conv(x: Tensor, packed: kernels.PackedConv, activation: Activation | None) -> Tensor:
    """Call the operator that stands for ``kernels.conv`` in what is being traced.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weight into the program.
    """
    if not torch.compiler.is_exporting():
        result: Tensor = torch.ops.pycompress.conv_here(x, packed.number, activation, *_geometry(packed))
        return result
    result = torch.ops.pycompress.conv(x, exported(packed), activation, *_geometry(packed))
    return result


def _geometry(packed: kernels.PackedConv) -> tuple[Any, ...]:
    """What the operators of convolutions are told of a weight."""
    padding = [n for pair in packed.padding for n in pair]
    sizes = list(packed.shape), list(packed.stride), padding, list(packed.dilation)
    return *sizes, packed.groups, packed.channels_last


def _linear(x: Tensor, packed: Tensor, out_features: int, activation: Activation | None) -> Tensor:
    in_features = x.shape[-1] if x.ndim else 0
    result: Tensor = kernels.linear(x, found(packed, (out_features, in_features)), activation)
    return result


def _here(number: int, kind: type[_Kind]) -> _Kind:
    packed = numbered(number, kind)
    if packed is None:
        raise ValueError(f"number must be that of a packed weight in this process, got {number}")
    return packed


def _linear_here(x: Tensor, number: int, out_features: int, activation: Activation | None) -> Tensor:
    packed = _here(number, kernels.PackedWeight)
    if packed.shape[0] != out_features:
        raise ValueError(f"out_features must be {packed.shape[0]}, got {out_features}")
    result: Tensor = kernels.linear(x, packed, activation)
    return result


def _linear_fake(x: Tensor, packed: Tensor | int, out_features: int, activation: Activation | None) -> Tensor:
    if x.ndim == 0 or x.dtype not in _FLOATS:
        raise TypeError(f"x must be [..., in_features] float32, float16 or bfloat16, got {kernels.arrays.describe(x)}")
    return x.new_empty((*x.shape[:-1], out_features))


def _conv(x: Tensor, packed: Tensor, activation: Activation | None, shape: list[int], *geometry: Any) -> Tensor:
    return _convolved(x, found(packed, tuple(shape)), activation, (shape, *geometry))


def _conv_here(x: Tensor, number: int, activation: Activation | None, *geometry: Any) -> Tensor:
    return _convolved(x, _here(number, kernels.PackedConv), activation, geometry)


def _convolved(
    x: Tensor, packed: kernels.PackedConv, activation: Activation | None, geometry: tuple[Any, ...]
) -> Tensor:
    if geometry != _geometry(packed):
        raise ValueError(f"shape and geometry must be {_geometry(packed)}, got {geometry}")
    result: Tensor = kernels.conv(x, packed, activation)
    return result


def _conv_fake(
    x: Tensor,
    packed: Tensor | int,
    activation: Activation | None,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    sides = len(shape) - 2
    lead = x.ndim - 1 - sides  # 1 where there is a dimension of images
    dtype = torch.float32 if channels_last and x.dtype == torch.int8 else x.dtype
    if lead not in (0, 1) or dtype not in _FLOATS:
        form = "[images, channels, (height,) width] float32, float16 or bfloat16"
        raise TypeError(f"x must be {form}, got {kernels.arrays.describe(x)}")
    sizes = []
    for side, n in enumerate(x.shape[lead + 1 :]):
        reach = (shape[2 + side] - 1) * dilation[side] + 1
        sizes.append((n + padding[2 * side] + padding[2 * side + 1] - reach) // stride[side] + 1)
    size = *x.shape[:lead], shape[0], *sizes
    if channels_last or (x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)):
        order = *range(lead), lead + 1, lead + 2, lead
        return torch.empty_permuted(size, order, dtype=dtype, device=x.device)
    return x.new_empty(size)


_library.impl("linear", _linear, "CPU")
_library.impl("linear_here", _linear_here, "CPU")
_library.impl("conv", _conv, "CPU")
_library.impl("conv_here", _conv_here, "CPU")
for _name, _fake in (("linear", _linear_fake), ("conv", _conv_fake)):
    for _form in (_name, f"{_name}_here"):
        torch.library.register_fake(f"pycompress::{_form}", _fake, lib=_library)
