"""Batch normalization that a packed layer computes itself: part of its scales and its bias."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import grids
from .activations import NORMS, fused_identity
from .flows import observed
from .formats import Int8
from .kernels.reference import ZERO_ROW
from .linears import obstacle, replaced

_FOLLOWS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
}


@dataclass(frozen=True)
class Fold:
    """A layer that became one with the normalization behind it, and what was there before.

    Attributes
    ----------
    name, norm_name : str
        Their names in the model.
    layer, norm : nn.Module
        The originals.
    """

    name: str
    layer: nn.Module
    norm_name: str
    norm: nn.Module


def fold_(model: nn.Module, run: Callable[[], Any], wanted: Callable[[nn.Module], bool]) -> dict[nn.Module, Fold]:
    """Fold batch normalizations in eval mode into the layers in front of them, in place.

    ``BN(x w + b) = x (w g) + (b g + h)`` with ``g = gamma / sqrt(var + eps)`` and ``h = beta - mean g``, in float64,
    rounded once. On an Int8 grid the integers stay, with their sign turned where g is negative, and the scale of each
    output is multiplied by ``|g|``. A normalization is folded where, as the model runs, it alone takes the outputs of a
    Linear, Conv1d or Conv2d layer, and takes nothing else; whatever was written beside it in the code does not count.

    Parameters
    ----------
    model : nn.Module
        In eval mode. Each folded layer is replaced by a new one, each normalization by an identity.
    run : callable
        Runs the model.
    wanted : callable
        Says of a layer whether it is to be folded.

    Returns
    -------
    dict of new layer to Fold
        What :func:`unfold_` needs.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)).eval()
    >>> folds = fold_(model, lambda: model(torch.ones(1, 2)), lambda layer: True)
    >>> model[0].bias is None, type(model[1]).__name__, [fold.norm_name for fold in folds.values()]
    (False, 'Identity', ['1'])
    """
    places = Counter(child for module in model.modules() for child in module._modules.values())
    names = {module: name for name, module in model.named_modules() if places[module] == 1}
    layers = [module for module in names if _kind(module) is not None and wanted(module) and not obstacle(module)]
    norms = [module for module in names if type(module) in NORMS and _is_fixed(module)]
    folds: dict[nn.Module, Fold] = {}
    if not layers or not norms:
        return folds
    for layer, takers in observed(layers, norms, [run]).groups().items():
        norm = cast(nn.BatchNorm1d, takers[0])
        if len(takers) > 1 or _kind(layer) is not type(norm) or norm.num_features != len(cast(Tensor, layer.weight)):
            continue
        new = _folded(layer, norm)
        if new is not None:
            folds[new] = Fold(names[layer], layer, names[norm], norm)
            replaced(model, {layer: new, norm: fused_identity()})
    return folds


def unfold_(model: nn.Module, folds: Iterable[Fold]) -> None:
    """Put layers and their normalizations back.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    >>> unfold_(model, fold_(model, lambda: model(torch.ones(1, 2)), lambda layer: True).values())
    >>> [type(module).__name__ for module in model]
    ['Linear', 'BatchNorm1d']
    """
    for fold in folds:
        for name, module in ((fold.name, fold.layer), (fold.norm_name, fold.norm)):
            parent, _, key = name.rpartition(".")
            model.get_submodule(parent)._modules[key] = module


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    return next((norm for kind, norm in _FOLLOWS.items() if isinstance(layer, kind)), None)


def _is_fixed(norm: nn.Module) -> bool:
    """Whether a normalization multiplies and adds numbers that no input changes."""
    hooks = norm._forward_hooks or norm._forward_pre_hooks or "forward" in norm.__dict__
    tensors = [t for t in (*norm._parameters.values(), *norm._buffers.values()) if t is not None]
    known = all(t.device.type == "cpu" and not nn.parameter.is_lazy(t) for t in tensors)
    return not norm.training and norm.running_mean is not None and not hooks and known


def _folded(layer: nn.Module, norm: nn.BatchNorm1d) -> nn.Module | None:
    """Return a layer with a normalization in it; None where its numbers would not be representable."""
    weight, bias = cast(Tensor, layer.weight).detach(), layer._parameters["bias"]
    factor = torch.rsqrt(cast(Tensor, norm.running_var).double() + norm.eps)
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    added = torch.zeros_like(factor) if bias is None else bias.detach().double()
    added = (added - cast(Tensor, norm.running_mean).double()) * factor
    added = added if norm.bias is None else added + norm.bias.detach().double()
    shape = (-1, *(1,) * (weight.ndim - 1))
    record = grids.grid_of(layer)
    new_record = None
    if record is None or not isinstance(record.format, Int8) or (q := grids.integers(weight, record)) is None:
        new = (weight.double() * factor.reshape(shape)).to(weight.dtype)
        if record is not None:
            return None
    else:
        scale = (record.scale.double() * factor.abs()).float()
        scale = torch.where(factor == 0, torch.ones_like(scale), scale)
        new_record = grids.GridRecord(record.format, scale, record.zero_point, record.input_scale)
        q = q * torch.sign(factor).to(q.dtype).reshape(shape)
        new = grids.weight_from(q, new_record).to(weight.dtype)
        if not bool((scale >= float(ZERO_ROW)).all()) or grids.integers(new, new_record) is None:
            return None
    if not bool(torch.isfinite(new).all()) or not bool(torch.isfinite(added.float()).all()):
        return None
    result = copy.copy(layer)  # its own tables of parameters, no copies of hooks: there are none
    result._parameters = dict(layer._parameters)
    result._parameters["weight"] = nn.Parameter(new, requires_grad=False)
    result._parameters["bias"] = nn.Parameter(added.to(weight.dtype), requires_grad=False)
    grids.set_grid(result, new_record)
    return result
