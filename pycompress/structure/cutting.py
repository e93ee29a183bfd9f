"""Modules that lose some of their outputs and inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import grids, masks
from ..artifact.places import own_tensors, resize_, smaller
from ..changes import change_numbers_
from ..heads import keep_plain_
from ..selection import LAYERS
from .labels import Coupling, Part


def cut_(model: nn.Module, coupling: Coupling, lost: Tensor) -> None:
    """Take units away from all modules that give or take them. Gradients are dropped.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    coupling : Coupling
        Of this model.
    lost : [units] bool

    Examples
    --------
    >>> coupling, model = Coupling(), nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    >>> coupling.enter("1", coupling.add_layer("0", 2), "1 (Linear)")
    >>> cut_(model, coupling, torch.tensor([True, False]))
    >>> model
    Sequential(
      (0): Linear(in_features=1, out_features=1, bias=True)
      (1): Linear(in_features=1, out_features=3, bias=True)
    )
    """
    made: dict[nn.Parameter, nn.Parameter] = {}  # of weights that modules share
    gone = lost.nonzero()[:, 0]
    for parameter in model.parameters():
        parameter.grad = None
    for name, every in coupling.units().items():
        if not any(_kept(units, lost) is not None for units in every):
            continue
        module = model.get_submodule(name)
        parts, groups = parts_of(name, module, coupling, lost)
        _cut_module_(module, _cuts(parts, lost), groups, made)
        if not own_tensors(module):
            change_numbers_(module, _numbers(module, every[0].numel(), int((~torch.isin(every[0], gone)).sum())))
    keep_plain_(model)


def move_(model: nn.Module, coupling: Coupling, index_of: Callable[[Tensor], Tensor | None]) -> None:
    """Put units into another order in all modules that give or take them. Gradients are dropped.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    coupling : Coupling
        Of this model.
    index_of : function
        From the units along a dimension of a tensor to the positions whose entries come there; None: as they were.

    Examples
    --------
    >>> coupling, model = Coupling(), nn.Sequential(nn.Linear(1, 2))
    >>> units, before = coupling.add_layer("0", 2), model[0].weight.detach().clone()
    >>> move_(model, coupling, lambda units: units.flip(0))
    >>> torch.equal(model[0].weight, before.flip(0))
    True
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    none = torch.zeros(coupling.count, dtype=torch.bool)
    for parameter in model.parameters():
        parameter.grad = None
    for name in coupling.units():
        module = model.get_submodule(name)
        parts, groups = parts_of(name, module, coupling, none)
        moves: _Cuts = {}
        for part in parts:
            index = index_of(part.units)
            if index is not None:
                moves.setdefault(part.parameter, []).append((part.dim, index))
        if moves:
            _cut_module_(module, moves, groups, made)


def _numbers(module: nn.Module, channels: int, left: int) -> dict[str, int]:
    """Return the sizes of a normalization without tensors, from which a file could tell them."""
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": left, "num_groups": left * module.num_groups // channels}
    return {"num_features": left}


def parts_of(name: str, module: nn.Module, coupling: Coupling, lost: Tensor) -> tuple[list[Part], int]:
    """Return which entries of the tensors of a module go with which units, and the groups that are left.

    Examples
    --------
    >>> coupling, none = Coupling(), torch.zeros(2, dtype=torch.bool)
    >>> units = coupling.add_layer("0", 2)
    >>> [(part.parameter, part.dim) for part in parts_of("0", nn.Linear(1, 2), coupling, none)[0]]
    [('weight', 0), ('bias', 0)]
    """
    given, taken = coupling.outputs.get(name), coupling.inputs.get(name)
    if name in coupling.parts:
        return coupling.parts[name], _groups(module, taken, lost)
    names = own_tensors(module)
    if not isinstance(module, LAYERS):  # what it takes is what it gives
        assert taken is not None
        return [Part(name, 0, taken) for name, tensor in names.items() if tensor.ndim > 0], 1
    groups = getattr(module, "groups", 1)
    parts = [] if given is None else [Part(name, 0, given) for name in ("weight", "bias") if name in names]
    if taken is not None and groups > 1 and groups == taken.numel():
        groups = _groups(module, taken, lost)  # a depthwise weight has one input for each output
    elif taken is not None:
        parts.append(Part("weight", 1, taken.reshape(groups, -1)[0]))
    return parts, groups


def _groups(module: nn.Module, taken: Tensor | None, lost: Tensor) -> int:
    groups: int = getattr(module, "groups", 1)
    kept = _kept(taken, lost)
    if taken is None or kept is None or groups == 1 or groups != taken.numel():
        return groups
    return int(kept.sum())


def _kept(units: Tensor | None, lost: Tensor) -> Tensor | None:
    """Return which outputs or inputs stay, [outputs] bool; None when all do."""
    if units is None:
        return None
    kept = ~torch.isin(units, lost.nonzero()[:, 0])
    return None if bool(kept.all()) else kept


_Cuts = dict[str, list[tuple[int, Tensor]]]
"""For each tensor of a module: the indices that stay along some of its dimensions."""


def _cuts(parts: list[Part], lost: Tensor) -> _Cuts:
    cuts: _Cuts = {}
    for part in parts:
        kept = _kept(part.units, lost)
        if kept is not None:
            cuts.setdefault(part.parameter, []).append((part.dim, kept.nonzero()[:, 0]))
    return cuts


def _cut_module_(module: nn.Module, cuts: _Cuts, groups: int, made: dict[nn.Parameter, nn.Parameter]) -> None:
    """Keep some entries of the tensors of a module and of its children; its sizes follow."""
    own: _Cuts = {}
    children: dict[str, _Cuts] = {}
    for name, indices in cuts.items():
        child, _, last = name.rpartition(".")
        (children.setdefault(child, {}) if child else own)[last] = indices
    for child, below in children.items():
        _cut_module_(module.get_submodule(child), below, 1, made)
    shapes = {}
    for name, tensor in own_tensors(module).items():
        shape = list(tensor.shape)
        for dim, kept in own.get(name, ()):
            shape[dim] = kept.numel()
        shapes[name] = tuple(shape)
    sizes = smaller(module, shapes, groups)
    assert sizes is not None, (module, shapes)
    _cut_tensors_(module, own, made)
    resize_(module, sizes)


def _cut_tensors_(module: nn.Module, cuts: _Cuts, made: dict[nn.Parameter, nn.Parameter]) -> None:
    def cut(tensor: Tensor, indices: list[tuple[int, Tensor]]) -> Tensor:
        for dim, kept in indices:
            if dim < tensor.ndim:
                tensor = tensor.index_select(dim, kept.to(tensor.device))
        return tensor

    attached = {
        (owner, name): mask
        for owner in module.modules()
        for name in owner._parameters
        if (mask := masks.mask_of(owner, name)) is not None
    }
    masks.finalize_(module)
    for name, parameter in module._parameters.items():
        if parameter is not None and name in cuts:
            if parameter not in made:
                new = cut(parameter.detach(), cuts[name]).clone()
                made[parameter] = nn.Parameter(new, parameter.requires_grad)
            module._parameters[name] = made[parameter]
    for name, buffer in module._buffers.items():
        if buffer is not None and name in cuts:
            module._buffers[name] = cut(buffer, cuts[name])
    for (owner, name), mask in attached.items():
        masks.attach_(owner, name, cut(mask, cuts.get(name, []) if owner is module else []))
    for name, indices in cuts.items():
        grid, rows = grids.grid_of(module, name), [(dim, kept) for dim, kept in indices if dim == 0]
        if grid is not None:
            grid = dataclasses.replace(grid, scale=cut(grid.scale, rows), zero_point=cut(grid.zero_point, rows))
            grids.set_grid(module, grid, name)
