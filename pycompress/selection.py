"""Which layers of a model a verb works on, and the checks of their weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""The layers that have a weight to prune or quantize, subclasses included."""

Pattern = str | type[nn.Module]
"""A name pattern of :mod:`fnmatch`, or a module type."""


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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not layers:
        others = "" if kinds == LAYERS else " (or a recurrent one, an embedding or attention)"
        raise ValueError(f"model must have a Linear, Conv1d or Conv2d layer{others}, got none")
    included = set(layers) if include is None else _matches(layers, include, "include")
    excluded = set() if exclude is None else _matches(layers, exclude, "exclude")
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


def _matches(layers: dict[str, nn.Module], patterns: Sequence[Pattern], argument: str) -> set[str]:
    if isinstance(patterns, (str, type)) or not isinstance(patterns, (list, tuple, set, frozenset)):
        raise TypeError(f"{argument} must be a list of name patterns or module types, got {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        if isinstance(pattern, str):
            names = {name for name in layers if fnmatch.fnmatchcase(name, pattern)}
        elif isinstance(pattern, type) and issubclass(pattern, nn.Module):
            names = {name for name, module in layers.items() if isinstance(module, pattern)}
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
    finite = torch.isfinite(tensor.detach())
    return 0 if bool(finite.all()) else int((~finite).sum())


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
