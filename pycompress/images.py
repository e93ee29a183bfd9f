"""What packed convolutions hand to each other: int8 images whose channels come last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from . import kernels
from .activations import fused_identity
from .calls import copy_of
from .convolutions import PackedConv2d
from .formats import Int8
from .fusing import Pair
from .kernels.ops import Activation
from .layers import LayerDecision
from .linears import replaced
from .recording import run
from .timing import Clock, Speedup, compare


def alternative(
    model: nn.Module,
    substitutes: Mapping[nn.Module, nn.Module],
    pairs: Mapping[nn.Module, Pair],
    example_inputs: Any,
) -> nn.Module | None:
    """Return a copy of a model with substitutes in it, in which convolutions hand over int8 images; None if none does.

    Parameters
    ----------
    model : nn.Module
        Not changed; the copy shares its parameters.
    substitutes : mapping
        What stands in the places of layers; channels-last convolutions among them.
    pairs : mapping
        Activations that substitutes compute.
    example_inputs : tensor, array, or tuple or dict of them

    Examples
    --------
    >>> weight = kernels.pack_conv(torch.ones(1, 1, 1, 1), input_scale=0.5, channels_last=True)
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    >>> other = alternative(model, {layer: PackedConv2d(weight) for layer in model}, {}, torch.ones(1, 1, 2, 2))
    >>> other[0].output_scale, type(model[0]).__name__
    (0.5, 'Conv2d')
    """
    names = {module: name for name, module in model.named_modules()}
    other = copy_of(model, share=True)
    for layer in substitutes.keys() & pairs.keys():
        pair = pairs[layer]
        other.get_submodule(names[pair.parent])._modules[pair.key] = fused_identity()
    other = replaced(other, {other.get_submodule(names[layer]): new for layer, new in substitutes.items()})
    layers = [new for new in substitutes.values() if isinstance(new, PackedConv2d) and new.packed.channels_last]
    try:
        return other if hand_over_(layers, lambda: run(other, example_inputs)) else None
    except ValueError:  # its forward makes views of images that are possible in one memory format alone
        return None


def faster(model: nn.Module, other: nn.Module, example_inputs: Any, clock: Clock) -> Speedup | None:
    """Return how much faster another model is, or None where it is not for sure.

    Examples
    --------
    >>> import time
    >>> faster(nn.ReLU(), nn.Sequential(*[nn.Tanh()] * 50), torch.ones(9), time.perf_counter)
    """
    [speedup] = compare(lambda: run(model, example_inputs), [lambda: run(other, example_inputs)], clock=clock)
    return speedup if speedup.low > 1 else None


def together(decision: LayerDecision, speedup: Speedup | None) -> LayerDecision:
    """Return the decision on a layer that was taken for the whole model.

    Examples
    --------
    >>> together(LayerDecision("conv", "Conv2d"), Speedup(2.0, 1.0, 2.0, 1.9, 2.1)).reason
    'int8 images, channels last: the model is 2.00x as fast as layer by layer'
    """
    reason = "int8 images, channels last: "
    if speedup is None:
        return replace(decision, reason=reason + "forced, not measured")
    reason += f"the model is {speedup.median:.2f}x as fast as layer by layer"
    return replace(decision, packed_us=None, speedup=None, low=None, high=None, reason=reason)


def channels_last(layer: PackedConv2d) -> PackedConv2d | None:
    """Return a packed convolution for images whose channels come last, with the same numbers; None where there is none.

    Examples
    --------
    >>> layer = PackedConv2d(kernels.pack_conv(torch.ones(2, 3, 1, 1)), "relu")
    >>> channels_last(layer).packed.channels_last
    True
    """
    p = layer.packed
    if p.format != Int8() or (p.groups != 1 and (p.shape[1] != 1 or p.groups != p.out_channels)):
        return None
    geometry: Any = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation, "groups": p.groups}
    weight = kernels.pack_conv(p.weight, p.format, p.bias, p.scale, p.input_scale, **geometry, channels_last=True)
    return PackedConv2d(weight, layer.activation, dtype=layer.dtype).eval()


def hand_over_(layers: Sequence[PackedConv2d], model: Callable[[], Any]) -> int:
    """Let convolutions hand int8 images to those that would quantize their outputs anyway. The numbers stay the same,
    but that values of 16-bit floats are not rounded to these on the way.

    A convolution does where all that its outputs went to while the model ran are packed convolutions with one and the
    same static input scale; a ReLU or ReLU6 between them, also one that other layers share, becomes its own.

    Parameters
    ----------
    layers : sequence of PackedConv2d
        Those of a model that have ``channels_last`` weights, each once.
    model : callable
        Runs the model and returns its result.

    Returns
    -------
    int
        How many do.

    Examples
    --------
    >>> weight = kernels.pack_conv(torch.ones(1, 1, 1, 1), input_scale=0.5, channels_last=True)
    >>> model = nn.Sequential(PackedConv2d(weight), nn.ReLU(), PackedConv2d(weight))
    >>> hand_over_([model[0], model[2]], lambda: model(torch.ones(1, 1, 2, 2))), model[0].output_scale
    (1, 0.5)
    """
    made: dict[int, _Made] = {}
    uses: dict[PackedConv2d, set[tuple[Activation | None, float | None]]] = {layer: set() for layer in layers}
    spoilt: set[PackedConv2d] = set()
    running: list[nn.Module] = []

    def takes(layer: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(layer)
        if args and (found := made.get(id(args[0]))):
            uses[found.layer].add((found.activation, cast(PackedConv2d, layer).packed.input_scale))

    def gives(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        running.pop()
        made[id(output)] = _Made(cast(PackedConv2d, layer), output, cast(PackedConv2d, layer).activation)

    def note(values: Any) -> None:
        spoilt.update(made[id(value)].layer for value in tree_iter(values) if id(value) in made)

    class Others(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes what other operations read."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if running:  # a layer turns 16-bit floats into others
                return func(*args, **kwargs)
            name, found = _clamp(func, args), made.get(id(args[0])) if args else None
            result = func(*args, **kwargs)
            if name is not None and found is not None and found.activation in (None, name):
                made[id(result)] = _Made(found.layer, result, name)
            else:
                note((args, kwargs))
            return result

    handles = [layer.register_forward_pre_hook(takes) for layer in layers]
    handles += [layer.register_forward_hook(gives) for layer in layers]
    try:
        with Others():  # type: ignore[no-untyped-call]
            note(model())
    finally:
        for handle in handles:
            handle.remove()
    count = 0
    for layer, found in uses.items():
        if layer not in spoilt and len(found) == 1:
            [(activation, scale)] = found
            if scale is not None:
                layer.activation, layer.output_scale = activation, scale
                count += 1
    return count


class _Made(NamedTuple):
    """An output of a layer, or what a ReLU made of it; held, so that no other tensor gets its id."""

    layer: PackedConv2d
    tensor: Tensor
    activation: Activation | None


def _clamp(func: Any, args: tuple[Any, ...]) -> Activation | None:
    """Which activation an operator of torch is, if it is ReLU or ReLU6."""
    if func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
        return "relu"
    if func in (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default) and list(args[1:]) == [0, 6]:
        return "relu6"
    return None
