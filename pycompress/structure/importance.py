"""How much sets of outputs matter, and which of them go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import scores
from ..calls import copy_of
from ..data import Data, batches, forward, length
from ..progress import track
from ..scores.running import Loss, layer_weight, mean_loss, undisturbed
from ..selection import LAYERS, WeightOf
from .cutting import parts_of
from .groups import Family
from .labels import Coupling

Rate = Callable[[list[Family]], list[Tensor]]
"""Returns the importance of the sets of each family, [sets] float64."""
_BATCH = 256


def lost_units(coupling: Coupling, find: Callable[[], list[Family]], rate: Rate) -> Tensor:
    """Return whether each unit is removed: [units] bool.

    Where the layers of one module would lose different numbers, their units go together instead, those at the same
    positions; then the families are others.

    Examples
    --------
    >>> coupling = Coupling()
    >>> units = coupling.add_layer("0", 3)
    >>> family = Family(0.5, list(units[:, None]))
    >>> lost_units(coupling, lambda: [family], lambda found: [torch.tensor([3.0, 1.0, 2.0])])
    tensor([False,  True,  True])
    """
    while True:
        found = find()
        lost = torch.zeros(coupling.count, dtype=torch.bool)
        for family, values in zip(found, rate(found), strict=True):
            removed = min(round(family.fraction * len(family.sets)), len(family.sets) - 1)
            for index in values.argsort(stable=True)[:removed].tolist():
                lost[family.sets[index]] = True
        uneven = [rows for rows in coupling.even.values() if len({int(lost[row].sum()) for row in rows}) > 1]
        if not uneven:
            return lost
        for rows in uneven:
            coupling.pairs += [torch.stack([rows[0], row]) for row in rows[1:]]


def by_score(model: nn.Module, coupling: Coupling, score: scores.Score) -> Rate:
    """Rate sets by the sum of the scores of their units.

    Examples
    --------
    >>> coupling, model = Coupling(), nn.Sequential(nn.Linear(1, 2))
    >>> model[0].weight.data = torch.tensor([[2.0], [-1.0]])
    >>> units = coupling.add_layer("0", 2)
    >>> by_score(model, coupling, scores.magnitude)([Family(0.5, list(units[:, None]))])
    [tensor([2., 1.], dtype=torch.float64)]
    """
    known: list[Tensor] = []

    def rate(found: list[Family]) -> list[Tensor]:
        if not known:  # later families are made of the same units
            known.append(_unit_scores(model, coupling, found, score))
        return [torch.stack([known[0][members].sum() for members in family.sets]) for family in found]

    return rate


def _unit_scores(model: nn.Module, coupling: Coupling, found: list[Family], score: scores.Score) -> Tensor:
    """Return the score of each unit, [units] float64; 0 for those that stay anyway."""
    keys = [key for key, units in coupling.outputs.items() for _ in range(units.numel())]
    scored = dict.fromkeys(keys[unit] for family in found for members in family.sets for unit in members.tolist())
    every = torch.zeros(coupling.count, dtype=torch.float64)
    places: dict[str, tuple[nn.Module, int, Tensor]] = {}
    for key in scored:
        if not coupling.layers([key]):
            continue
        name = coupling.owner(key)
        own = [part for part in coupling.parts.get(name, ()) if part.key == key]
        if not own:
            places[name] = model.get_submodule(name), 0, coupling.outputs[key]
        for part in own:
            weight = WeightOf(model.get_submodule(name), part.parameter)
            places[f"{name}.{part.parameter}"] = weight, part.dim, part.units
    for name, sums in _values(model, places, score).items():
        every.index_add_(0, places[name][2], sums)
    return every


def _values(
    model: nn.Module, places: dict[str, tuple[nn.Module, int, Tensor]], score: scores.Score
) -> dict[str, Tensor]:
    """Return the score of each position along a dimension of some weights."""
    layers = {name: module for name, (module, _, _) in places.items()}
    given: Any = score(model, dict(layers))
    if not isinstance(given, Mapping):
        raise TypeError(f"score must return a dict of tensors, got {type(given).__name__}")
    sums: dict[str, Tensor] = {}
    problems = []
    for name, (module, dim, _) in places.items():
        values, shape = given.get(name), tuple(layer_weight(module).shape)
        if not isinstance(values, Tensor):
            problems.append(f"{type(values).__name__} for {name}")
        elif tuple(values.shape) not in (shape, shape[dim : dim + 1]):
            problems.append(f"shape {tuple(values.shape)} for {name}, which has a weight of {shape}")
        elif not bool(torch.isfinite(values).all()):
            problems.append(f"NaN or infinity for {name}")
        else:
            found = values.detach().to("cpu", torch.float64)
            sums[name] = found if found.ndim == 1 else found.transpose(0, dim).reshape(shape[dim], -1).sum(1)
    if problems:
        raise ValueError(f"score must return finite tensors, [out] or like the weight, got {'; '.join(problems)}")
    return sums


def by_ablation(model: nn.Module, coupling: Coupling, data: Data, loss: Loss, progress: bool) -> Rate:
    """Rate sets by ``I = L(model without it; data) - L(model; data)``, measured.

    Examples
    --------
    >>> coupling, model = Coupling(), nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.eye(2), torch.tensor([[3.0, 1.0]])
    >>> units = coupling.add_layer("0", 2)
    >>> coupling.enter("1", units, "1 (Linear)")
    >>> rate = by_ablation(model, coupling, (torch.ones(1, 2), torch.tensor([[4.0]])), nn.functional.mse_loss, False)
    >>> rate([Family(0.5, list(units[:, None]))])
    [tensor([9., 1.], dtype=torch.float64)]
    """
    twin = copy_of(model)
    places: dict[int, list[tuple[Tensor, int, int]]] = {}  # of each unit: tensors, dimensions and indices
    none = torch.zeros(coupling.count, dtype=torch.bool)
    for name in coupling.units():
        module = twin.get_submodule(name)
        if name in coupling.parts or isinstance(module, LAYERS):
            for part in parts_of(name, module, coupling, none)[0]:
                tensor = module.get_parameter(part.parameter).detach()
                for index, unit in enumerate(part.units.tolist()):
                    places.setdefault(unit, []).append((tensor, part.dim, index))
    known: dict[tuple[int, ...], float] = {}

    def without(members: tuple[int, ...]) -> float:
        changed = []
        for unit in members:
            for tensor, dim, index in places.get(unit, ()):
                changed.append((tensor.select(dim, index), tensor.select(dim, index).clone()))
                changed[-1][0].zero_()
        try:
            return mean_over(twin, data, loss)
        finally:
            for entries, values in reversed(changed):
                entries.copy_(values)

    def rate(found: list[Family]) -> list[Tensor]:
        sets = [[tuple(members.tolist()) for members in family.sets] for family in found]
        new = dict.fromkeys(members for own in sets for members in own if members not in known)
        with undisturbed(twin), torch.no_grad(), track(len(new), "ablation", progress) as done:
            whole = mean_over(twin, data, loss)
            for members in new:
                known[members] = without(members) - whole
                done.advance()
        return [torch.tensor([known[members] for members in own], dtype=torch.float64) for own in sets]

    return rate


def mean_over(model: nn.Module, data: Data, loss: Loss) -> float:
    """Return the mean loss over data.

    Examples
    --------
    >>> mean_over(nn.Identity(), (torch.ones(2, 1), torch.zeros(2, 1)), nn.functional.mse_loss)
    1.0
    """
    total, items = 0.0, 0
    for inputs, targets in batches(data, _BATCH):
        rows = length(targets)
        total += mean_loss(loss, forward(model, inputs, "data inputs"), targets).item() * rows
        items += rows
    return total / items
