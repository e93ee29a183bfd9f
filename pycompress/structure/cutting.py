"""Modules that lose some of their outputs and inputs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from .. import grids, masks
from ..selection import LAYERS
from .labels import Coupling


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
    for parameter in model.parameters():
        parameter.grad = None
    for name in dict.fromkeys([*coupling.outputs, *coupling.inputs]):
        given, taken = _kept(coupling.outputs.get(name), lost), _kept(coupling.inputs.get(name), lost)
        if given is not None or taken is not None:
            _cut_module_(model.get_submodule(name), given, taken)


def _kept(units: Tensor | None, lost: Tensor) -> Tensor | None:
    """Return which outputs or inputs stay, [outputs] bool; None when all do."""
    if units is None:
        return None
    kept = ~torch.isin(units, lost.nonzero()[:, 0])
    return None if bool(kept.all()) else kept


def _cut_module_(module: nn.Module, given: Tensor | None, taken: Tensor | None) -> None:
    sizes: dict[str, int] = {}
    if not isinstance(module, LAYERS):  # what it takes is what it gives
        given, taken = taken, None
        assert given is not None
        count = int(given.sum())
        names = ["num_features", "num_parameters", "num_channels"]
        sizes = {name: count for name in names if hasattr(module, name)}
        if isinstance(module, nn.GroupNorm):
            sizes["num_groups"] = count * module.num_groups // given.numel()
    else:
        kind = "features" if isinstance(module, nn.Linear) else "channels"
        if given is not None:
            sizes[f"out_{kind}"] = int(given.sum())
        if taken is not None:
            sizes[f"in_{kind}"] = int(taken.sum())
            groups = getattr(module, "groups", 1)
            if groups > 1 and groups == taken.numel():
                sizes["groups"], taken = int(taken.sum()), None  # a depthwise weight has one input for each output
            elif groups > 1:
                taken = taken.reshape(groups, -1)[0]
    _cut_tensors_(module, _indices(given), _indices(taken))
    for name, size in sizes.items():
        setattr(module, name, size)


def _indices(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.nonzero()[:, 0]


def _cut_tensors_(module: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
    """Keep some entries along the first (rows) and the second dimension (columns) of all tensors of a module."""

    def cut(tensor: Tensor) -> Tensor:
        if rows is not None and tensor.ndim > 0:
            tensor = tensor.index_select(0, rows.to(tensor.device))
        if columns is not None and tensor.ndim > 1:
            tensor = tensor.index_select(1, columns.to(tensor.device))
        return tensor

    attached = {name: mask for name in module._parameters if (mask := masks.mask_of(module, name)) is not None}
    masks.finalize_(module)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(cut(parameter.detach()).clone(), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = cut(buffer)
    for name, mask in attached.items():
        masks.attach_(module, name, cut(mask))
    grid = grids.grid_of(module)
    if grid is not None:
        cut_grid = dataclasses.replace(grid, scale=cut(grid.scale), zero_point=cut(grid.zero_point))
        grids.set_grid(module, cut_grid)
