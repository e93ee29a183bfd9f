"""Which outputs can be removed, and which of them only together."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .cutting import parts_of
from .labels import Coupling, Kind, unlabelled
from .tracing import Trace

_KNOWN_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Family:
    """Sets of outputs that are compared with each other: each has as many outputs of each layer as the others.

    Attributes
    ----------
    fraction : float
        Part of the sets to remove.
    sets : list of [members] int64
        Units that go together, ordered by the first unit.
    """

    fraction: float
    sets: list[Tensor]


def mark_modules(model: nn.Module, traced: Trace, coupling: Coupling) -> None:
    """Mark the units of modules that cannot lose channels: whose tensors are unknown, not finite or used elsewhere.

    The units of weights that modules share are coupled.

    Examples
    --------
    >>> from .following import follow
    >>> from .tracing import trace
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> traced = trace(model, torch.zeros(1, 2))
    >>> coupling, _ = follow(traced)
    >>> mark_modules(model, traced, coupling)
    >>> coupling.marks[-1].reason
    'the weight that 0 and 1 share joins its channels with some that stay'
    """
    used = [node for node in traced.graph.find_nodes(op="get_attr") if node.users]
    direct = {str(node.target).rpartition(".")[0] for node in used}
    _couple_shared(model, coupling)
    for name, every in coupling.units().items():
        module = model.get_submodule(name)
        label = f"{name} ({type(module).__name__})"
        known = _KNOWN_TENSORS | {part.parameter for part in coupling.parts.get(name, ())}
        known |= {"out_proj.bias", "bias_k", "bias_v"} if isinstance(module, nn.MultiheadAttention) else set()
        problems = [f"{label} {problem}" for problem in _problems(module, known)]
        if name in direct:
            problems.append(f"{label} has parameters that are used without calling it")
        for problem in dict.fromkeys(problems):
            for units in every:
                coupling.mark("unknown", units, problem)


def _couple_shared(model: nn.Module, coupling: Coupling) -> None:
    """Let the units along each dimension of a weight that modules share go together."""
    owners: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((path, name))
    none = torch.zeros(coupling.count, dtype=torch.bool)
    for parameter, places in owners.items():
        if len(places) == 1:
            continue
        found = [_units_along(model, coupling, path, name, none) for path, name in places]
        shown = " and ".join(path for path, _ in places)
        for units in found[1:]:
            for dim in range(parameter.ndim):
                size = parameter.shape[dim]
                one, other = (own.get(dim, unlabelled(1)).expand(size) for own in (found[0], units))
                if one.numel() == other.numel() == size:
                    coupling.couple(one, other, f"the weight that {shown} share")


def _units_along(model: nn.Module, coupling: Coupling, path: str, name: str, none: Tensor) -> dict[int, Tensor]:
    """Return the units along the dimensions of a parameter."""
    known = coupling.units()
    holder, _, child = path.rpartition(".")
    if path in known:
        parts = parts_of(path, model.get_submodule(path), coupling, none)[0]
    elif holder in known:  # the output projection of attention
        parts, name = parts_of(holder, model.get_submodule(holder), coupling, none)[0], f"{child}.{name}"
    else:
        return {}
    return {part.dim: part.units for part in parts if part.parameter == name}


def _problems(module: nn.Module, known: set[str]) -> list[str]:
    own = module.state_dict(keep_vars=True)
    if not own.keys() <= known:
        return [f"has tensors of unknown meaning ({', '.join(sorted(own.keys() - known))})"]
    if any(is_lazy(tensor) or tensor.is_meta for tensor in own.values()):
        return ["has parameters without values"]
    if not all(map(_is_finite, own.values())):
        return ["has parameters that are NaN or infinite"]
    return []


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in tensor.detach().aminmax())


def families(
    model: nn.Module,
    coupling: Coupling,
    fractions: dict[str, float],
    ends: Collection[str],
    named: bool,
    includes: bool,
) -> list[Family]:
    """Return the sets of outputs that can be removed, those of the same layers together.

    A set stays when one of its outputs belongs to a layer that is not to lose any, is given out by the model, or is
    joined or normalized with what keeps its size.

    Parameters
    ----------
    model : nn.Module
    coupling : Coupling
    fractions : dict of layer name to float
        The layers that are to lose outputs.
    ends : names of layers
        That have no layer behind them, and so keep their outputs.
    named : bool
        Whether fractions were given by name: then layers that belong together must all be there.
    includes : bool
        Whether the layers were chosen by ``include``: then a set that stays for another reason than that the model
        gives it out is an error.

    Returns
    -------
    list of Family

    Raises
    ------
    ValueError
        When a set is to lose outputs and cannot be followed; when its layers have different fractions; or when all
        sets stay.

    Examples
    --------
    >>> coupling = Coupling()
    >>> coupling.couple(coupling.add_layer("0", 2), coupling.add_layer("1", 2), "add")
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> families(model, coupling, {"0": 0.5, "1": 0.5}, (), False, False)[0].sets
    [tensor([0, 2]), tensor([1, 3])]
    """
    keys = [name for name, units in coupling.outputs.items() for _ in range(units.numel())]
    found: dict[tuple[tuple[str, int], ...], list[Tensor]] = {}
    refused: dict[str, None] = {}
    differing: dict[str, None] = {}
    staying: dict[str, None] = {}

    @functools.cache
    def label(names: tuple[str, ...]) -> str:
        return " and ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in names)

    for units, reasons in _sets(coupling):
        held = Counter(keys[unit] for unit in units.tolist())
        layers = dict.fromkeys(coupling.layers(held))
        if layers.keys().isdisjoint(fractions):
            continue
        others = [name for name in layers if name not in fractions]
        given_out = "output" in reasons or not layers.keys().isdisjoint(ends)
        explicit = named or includes
        stays = given_out or (not explicit and bool(others or "fixed" in reasons))
        found_reasons = [reason for kind in ("unknown", "fixed", "output") for reason in reasons.get(kind, ())]
        if others:
            found_reasons.append(f"{label(tuple(others))} {'keeps' if len(others) == 1 else 'keep'} all outputs")
        line = f"{label(tuple(layers))}: {', '.join(dict.fromkeys(found_reasons)) or 'no layer behind'}"
        if stays:
            staying[line] = None
        elif named and len({fractions.get(name) for name in layers}) > 1:
            differing[" and ".join(f"{name}: {fractions.get(name, 'none')}" for name in layers)] = None
        elif found_reasons:
            refused[line] = None
        else:
            found.setdefault(tuple(sorted(held.items())), []).append(units)
    if refused:
        raise ValueError(
            "model must be one in which the outputs that are to be removed can be followed and taken away"
            f" (exclude=[...] leaves layers as they are); cannot follow: {'; '.join(refused)}"
        )
    if differing:
        raise ValueError(f"fraction must be the same for layers that lose outputs together, got {'; '.join(differing)}")
    if not found and staying:
        raise ValueError(f"model must have a layer that can lose outputs, got {'; '.join(staying)}")
    return [Family(fractions[coupling.layers(key for key, _ in held)[0]], sets) for held, sets in found.items()]


def _sets(coupling: Coupling) -> list[tuple[Tensor, dict[Kind, dict[str, None]]]]:
    """Return the sets of units that go together, each with the reasons why it cannot go."""
    component = coupling.components()
    order = component.argsort(stable=True)
    sizes = torch.bincount(component).tolist()
    reasons: list[dict[Kind, dict[str, None]]] = [{} for _ in sizes]
    for mark in coupling.marks:
        for index in set(component[mark.units].tolist()):
            reasons[index].setdefault(mark.kind, {})[mark.reason] = None
    return list(zip(torch.split(order, sizes), reasons, strict=True))
