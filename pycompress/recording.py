"""What the layers of a model see while example inputs run through it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .activations import activation_of
from .calls import described, forward

_KEPT_CALLS = 16
_TAKE_MORE = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag, nn.MultiheadAttention)  # than one tensor


@dataclass
class Seen:
    """What a layer saw while the example inputs ran.

    Attributes
    ----------
    inputs : list of tensors
        Copies of its inputs in the first 16 calls; tuples of all that they took, of layers that
        take more than one.
    calls : int
    obstacle : str
        Why a module without parameters cannot stand in for it, or "".
    followed : int
        Calls of its follower with the layer's last output itself.
    """

    inputs: list[Any] = field(default_factory=list)
    calls: int = 0
    obstacle: str = ""
    followed: int = 0


def record(
    model: nn.Module,
    example_inputs: Any,
    layers: Iterable[nn.Module],
    followers: Mapping[nn.Module, nn.Module] | None = None,
) -> tuple[dict[nn.Module, Seen], Counter[nn.Module]]:
    """Run a model and note what its layers see. The model is as before afterwards; the inputs are copied first.

    A layer whose weight or bias is read by anything but its own forward (attention, a fused encoder layer, a head that
    shares it by hand) is noted as well: such a layer must keep them.

    Parameters
    ----------
    model : nn.Module
    example_inputs : tensor, array, or tuple or dict of them
    layers : iterable of Module
        Layers of the model without an :func:`obstacle`.
    followers : mapping, optional
        Activation modules that seem to take the outputs of layers, each that of one.

    Returns
    -------
    (dict of Module to Seen, Counter of the calls of each Sequential, each activation in one and each follower)

    Raises
    ------
    TypeError
        When the inputs are arrays of no numbers.
    ValueError
        When the model refuses the inputs; its own error is the cause.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> seen, calls = record(model, torch.zeros(5, 2), [model[0]])
    >>> seen[model[0]].inputs[0].shape, calls[model]
    (torch.Size([5, 2]), 1)
    """
    seen = {layer: Seen() for layer in layers}
    classes = {layer: type(layer) for layer in seen}
    probes = {cls: _probe(cls, seen) for cls in set(classes.values())}
    calls: Counter[nn.Module] = Counter()
    # Hooks on other modules would switch off torch's fast paths, and the model would take another way than later.
    sequentials = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    followers = {layer: module for layer, module in (followers or {}).items() if layer in seen}
    inside = {child for module in sequentials for child in module.children() if activation_of(child)}
    counted = [*sequentials, *(inside | set(followers.values()))]
    handles = [module.register_forward_pre_hook(lambda m, _: calls.update([m])) for module in counted]
    latest: dict[nn.Module, Any] = {}
    for layer, module in followers.items():
        handles.append(layer.register_forward_hook(lambda m, _, output: latest.update({m: output})))
        handles.append(module.register_forward_pre_hook(partial(_follow, seen[layer], layer, latest)))
    try:
        for layer, cls in classes.items():
            layer.__class__ = probes[cls]
        run(model, example_inputs)
    finally:
        for layer, cls in classes.items():
            layer.__class__ = cls
        for handle in handles:
            handle.remove()
    return seen, calls


def _follow(entry: Seen, layer: nn.Module, latest: dict[nn.Module, Any], follower: nn.Module, args: Any) -> None:
    output = latest.pop(layer, None)
    entry.followed += len(args) == 1 and args[0] is output


def run(model: nn.Module, example_inputs: Any) -> Any:
    """Call a model on copies of example inputs, without gradients.

    Raises
    ------
    ValueError
        When the model raises; its own error is the cause.

    Examples
    --------
    >>> run(nn.ReLU(), torch.tensor([-1.0]))
    tensor([0.])
    """
    with torch.no_grad():
        return forward(model, copied(example_inputs), "example_inputs")


def copied(inputs: Any) -> Any:
    """Return example inputs with every tensor copied, and arrays as tensors.

    Raises
    ------
    TypeError
        When an array holds no numbers.

    Examples
    --------
    >>> copied({"x": torch.ones(1)})
    {'x': tensor([1.])}
    """
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    if isinstance(inputs, dict):
        return {key: copied(value) for key, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(copied(value) for value in inputs)
    if not hasattr(inputs, "__array__"):
        return inputs
    try:
        return torch.tensor(inputs)
    except TypeError as error:  # a dtype that torch lacks
        raise TypeError(f"example_inputs must hold numbers, got {described(inputs)}") from error


def _in_order(base: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call without keywords; a call that does not fit is left to the layer."""
    try:
        bound = inspect.signature(base.forward).bind(None, *args, **kwargs)
    except TypeError:
        return args
    if kwargs:
        bound.apply_defaults()
    return bound.args[1:]


def _probe(base: type[nn.Module], seen: dict[nn.Module, Seen]) -> type[nn.Module]:
    """Make a subclass that layers take on for one forward pass: it notes inputs, and who reads the parameters."""

    def note_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        entry = seen[self]
        entry.calls += 1
        if issubclass(base, _TAKE_MORE):
            if issubclass(base, nn.RNNBase) and kwargs:
                entry.obstacle = "it is called with keywords"
            elif entry.calls <= _KEPT_CALLS:
                given = _in_order(base, args, kwargs)
                copies = {id(x): copied(x) for x in given}  # what is one tensor stays one
                entry.inputs.append(tuple(copies[id(x)] for x in given))
        elif kwargs or len(args) != 1 or type(args[0]) not in (Tensor, nn.Parameter) or args[0].layout != torch.strided:
            entry.obstacle = "it is called with other arguments than one plain tensor"
        elif entry.calls <= _KEPT_CALLS:
            entry.inputs.append(args[0].detach().clone())
        self.__class__ = base
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            self.__class__ = probe

    def note_reading(name: str) -> property:
        def read(self: nn.Module) -> Any:
            seen[self].obstacle = f"its {name} is read outside its own forward"
            return self._parameters[name]

        return property(read)

    names: dict[str, Any] = {"forward": note_forward}
    if issubclass(base, nn.RNNCellBase):
        names |= {name: note_reading(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    elif issubclass(base, nn.MultiheadAttention):
        names |= {f"{part}_proj_weight": note_reading(f"{part}_proj_weight") for part in ("in", *"qkv")}
    elif issubclass(base, (nn.Embedding, nn.EmbeddingBag)):
        names["weight"] = note_reading("weight")
    elif not issubclass(base, nn.RNNBase):
        names |= {"weight": note_reading("weight"), "bias": note_reading("bias")}
    probe = type(base.__name__, (base,), names)
    return probe
