"""Which layers of a model a verb works on, and the checks of their weights."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""The layers that have a weight to prune or quantize, subclasses included."""

HOLDERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers that hold several weights, each of which is pruned by itself."""

TABLES = (nn.Embedding, nn.EmbeddingBag)
"""Layers that are pruned only where they are asked for."""

Pattern = str | type[nn.Module]
"""A name pattern of :mod:`fnmatch`, or a module type."""


class WeightOf(nn.Module):
    """One weight of a layer that holds several, in the form of a layer: its ``weight`` is that very parameter.

    Parameters
    ----------
    layer : nn.Module
    attribute : str
        Name of the parameter in the layer.

    Examples
    --------
    >>> lstm = nn.LSTM(3, 2)
    >>> WeightOf(lstm, "weight_hh_l0").weight is lstm.weight_hh_l0
    True
    """

    layer: nn.Module

    def __init__(self, layer: nn.Module, attribute: str) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # what it belongs to, no module inside it
        self.attribute = attribute
        self.register_parameter("weight", layer._parameters.get(attribute))


def place_of(layer: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that holds the weight of a selected layer, and the weight's name in it.

    Examples
    --------
    >>> cell = nn.GRUCell(3, 2)
    >>> place_of(WeightOf(cell, "weight_ih")) == (cell, "weight_ih")
    True
    """
    return (layer.layer, layer.attribute) if isinstance(layer, WeightOf) else (layer, "weight")


def several_weights(module: nn.Module) -> list[str]:
    """Return the names of the weights of a layer that holds several; [] of any other.

    Examples
    --------
    >>> several_weights(nn.LSTM(3, 2)), several_weights(nn.Linear(3, 2))
    (['weight_ih_l0', 'weight_hh_l0'], [])
    """
    names: list[str] = []
    if isinstance(module, nn.RNNBase):
        names = [name for group in module._all_weights for name in group if name.startswith("weight")]
    elif isinstance(module, nn.RNNCellBase):
        names = ["weight_ih", "weight_hh"]
    elif isinstance(module, nn.MultiheadAttention):
        names = [f"{part}_proj_weight" for part in ("in", "q", "k", "v")]
    return [name for name in names if getattr(module, name, None) is not None]


def select(
    model: nn.Module,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    kinds: tuple[type[nn.Module], ...] = LAYERS,
) -> dict[str, nn.Module]:
    """Return the Linear, Conv1d and Conv2d layers of a model by name, at any depth, one for each weight.

    A weight that several layers share is listed under its first name. It is included when one of its layers is
    included, and excluded when one of them is excluded.

    Parameters
    ----------
    model : Module
    include, exclude : list of str or module types, optional
        Name patterns such as ``"encoder.*"`` (``*``, ``?`` and ``[]`` as in a shell), or types. All layers are
        included by default, and none excluded.
    kinds : tuple of module types
        What counts as a layer.

    Returns
    -------
    dict of name to module, in the model's order

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, an entry matches no layer, or no layer is left.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(select(model)), list(select(model, exclude=["2"]))
    (['0', '2'], ['0'])
    """
    layers: dict[str, nn.Module] = {
        name: module for name, module in _modules(model).items() if isinstance(module, kinds)
    }
    if not layers:
        others = "" if kinds == LAYERS else " (or a recurrent one, an embedding or attention)"
        raise ValueError(f"model must have a Linear, Conv1d or Conv2d layer{others}, got none")
    return _chosen(layers, include, exclude)


def select_weights(
    model: nn.Module, include: Sequence[Pattern] | None = None, exclude: Sequence[Pattern] | None = None
) -> dict[str, nn.Module]:
    """Return what can be pruned in a model by name: :func:`select`, and the weights of recurrent layers and attention.

    Those are named as parameters are (``"lstm.weight_hh_l0"``) and given as :class:`WeightOf`; patterns and types match
    their own name or their layer's. An embedding is selected only where ``include`` holds its exact name or its type.

    Parameters, result and errors are those of :func:`select`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 3))
    >>> list(select_weights(model)), list(select_weights(model, include=[nn.Embedding, "1.weight_ih*"]))
    (['1.weight_ih_l0', '1.weight_hh_l0'], ['0', '1.weight_ih_l0'])
    """
    layers: dict[str, nn.Module] = {}
    for name, module in _modules(model).items():
        if isinstance(module, LAYERS) or (isinstance(module, TABLES) and _asked_for(name, module, include)):
            layers[name] = module
        for attribute in several_weights(module):
            layers[f"{name}.{attribute}" if name else attribute] = WeightOf(module, attribute)
    if not layers:
        raise ValueError(
            "model must have a Linear, Conv1d, Conv2d, recurrent or attention layer (or an embedding that include "
            "names), got none"
        )
    names = {module: name for name, module in model.named_modules()}
    outer = {key: names[layer.layer] for key, layer in layers.items() if isinstance(layer, WeightOf)}
    return _chosen(layers, include, exclude, outer)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return dict(model.named_modules())


def _asked_for(name: str, table: nn.Module, include: object) -> bool:
    wanted = include if isinstance(include, (list, tuple, set, frozenset)) else ()
    return any(entry == name or (isinstance(entry, type) and isinstance(table, entry)) for entry in wanted)


def _chosen(
    layers: dict[str, nn.Module],
    include: Sequence[Pattern] | None,
    exclude: Sequence[Pattern] | None,
    outer: dict[str, str] | None = None,
) -> dict[str, nn.Module]:
    """Return the layers that are included and not excluded, one for each weight; outer names count too."""
    included = set(layers) if include is None else _matches(layers, include, "include", outer or {})
    excluded = set() if exclude is None else _matches(layers, exclude, "exclude", outer or {})
    groups: dict[int, list[str]] = {}
    for name, module in layers.items():
        groups.setdefault(id(weight_or_self(module)), []).append(name)
    chosen = {
        names[0]: layers[names[0]]
        for names in groups.values()
        if not included.isdisjoint(names) and excluded.isdisjoint(names)
    }
    if not chosen:
        raise ValueError(f"include and exclude must leave a layer, got none of {list(layers)}")
    return chosen


def weight_or_self(module: nn.Module) -> object:
    """Return what modules that are selected together share: the weight, or the module itself where it has none.

    Examples
    --------
    >>> layer, cell = nn.Linear(2, 1), nn.GRUCell(2, 1)
    >>> weight_or_self(layer) is layer.weight, weight_or_self(cell) is cell
    (True, True)
    """
    weight = module._parameters.get("weight")
    return module if weight is None else weight


def _matches(
    layers: dict[str, nn.Module], patterns: Sequence[Pattern], argument: str, outer: dict[str, str]
) -> set[str]:
    if isinstance(patterns, (str, type)) or not isinstance(patterns, (list, tuple, set, frozenset)):
        raise TypeError(f"{argument} must be a list of name patterns or module types, got {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        if isinstance(pattern, str):
            names = {
                name
                for name in layers
                if any(fnmatch.fnmatchcase(each, pattern) for each in (name, outer.get(name, name)))
            }
        elif isinstance(pattern, type) and issubclass(pattern, nn.Module):
            names = {name for name, module in layers.items() if isinstance(place_of(module)[0], pattern)}
        else:
            raise TypeError(f"{argument} must hold name patterns or module types, got {pattern!r}")
        if not names:
            shown = pattern if isinstance(pattern, str) else pattern.__name__
            raise ValueError(f"{argument} must match layers of the model ({list(layers)}), got {shown!r}")
        found |= names
    return found


def check_weights(layers: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the weight of each layer, after checking that each can be changed in place.

    Raises
    ------
    TypeError
        When layers is no dict of modules.
    ValueError
        When a weight is not a parameter of its layer (a parametrization, say), not initialised yet, on the meta
        device, not of a real floating dtype, or holds NaN or infinity. All offending layers are named.

    Examples
    --------
    >>> check_weights({"fc": nn.Linear(3, 2)})["fc"].shape
    torch.Size([2, 3])
    """
    if not isinstance(layers, dict):
        raise TypeError(f"layers must be a dict of name to module, got {type(layers).__name__}")
    strange = {name: type(module).__name__ for name, module in layers.items() if not isinstance(module, nn.Module)}
    if strange:
        raise TypeError(f"layers must be torch.nn.Modules, got {listed(strange)}")
    faults = {name: fault for name, module in layers.items() if (fault := _fault(module))}
    if faults:
        raise ValueError("the layers of a model must have finite float parameters as weights, got " + listed(faults))
    return {name: module._parameters["weight"] for name, module in layers.items()}  # type: ignore[misc]


def _fault(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if weight is None and several_weights(module):
        return "several weights in one layer, which are selected one by one"
    if weight is None:
        return "not a parameter (remove its parametrization first)"
    if is_lazy(weight):
        return "not initialised (run the model once)"
    if weight.device.type == "meta":
        return "on the meta device"
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return str(weight.dtype)
    bad = count_bad(weight)
    return f"{bad} NaN or infinite entries" if bad else None


def count_bad(tensor: Tensor) -> int:
    """Return how many entries of a floating tensor are NaN or infinite.

    Examples
    --------
    >>> count_bad(torch.tensor([1.0, float("nan")]))
    1
    """
    tensor = tensor.detach()
    # Both ends are NaN where there is one, and infinite where there is an infinity: 18 times as fast as isfinite.
    if not tensor.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(tensor)):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def listed(faults: dict[str, str]) -> str:
    """Return faults by layer name as one line for a message.

    Examples
    --------
    >>> listed({"a": "torch.int8", "b": "on the meta device"})
    "'a': torch.int8; 'b': on the meta device"
    """
    return "; ".join(f"{name!r}: {fault}" for name, fault in faults.items())


def owners(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Return every module that holds a parameter, with the parameter's name in it (several when it is tied).

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> owners(nn.Sequential(layer), layer.weight) == [(layer, "weight")]
    True
    """
    return [
        (module, name)
        for module in model.modules()
        for name, candidate in module._parameters.items()
        if candidate is parameter
    ]
