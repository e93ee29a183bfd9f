"""The linear layers of a model: which can be replaced, by which packed weights, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import grids, kernels
from .formats import Format, Int4, Int8, Sparse
from .kernels import PackedWeight
from .selection import count_bad, listed

PRUNED_DENSITY = 0.7
"""A layer counts as pruned when less than this fraction of its weights is not zero."""

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU)
"""The layers that can be packed."""

DYNAMIC = (nn.Linear, nn.LSTM, nn.GRU)
"""The layers that are quantized as they run."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def find_all(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer of a model that there are kernels for by its first name, after the checks of :func:`find`.

    Examples
    --------
    >>> list(find_all(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    return _find(model, KINDS, "an nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM or nn.GRU, the layers")


def find_dynamic(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that ``quantize_dynamic`` replaces, as torch's does, after the checks of :func:`find`.

    Examples
    --------
    >>> list(find_dynamic(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 1), nn.GRU(2, 3))))
    ['1', '2']
    """
    return _find(model, DYNAMIC, "an nn.Linear, nn.LSTM or nn.GRU, the layers")


def find(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every nn.Linear of a model by its first name, after checking that all can be packed as far as numbers go.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of name to nn.Linear, subclasses included

    Raises
    ------
    TypeError
        When model is not a module.
    ValueError
        When there is no nn.Linear, or weights or biases are not on the CPU, not initialised, or hold NaN or infinity.
        All offending layers are named.

    Examples
    --------
    >>> list(find(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    return cast(dict[str, nn.Linear], _find(model, (nn.Linear,), "an nn.Linear, the layer"))


def _find(model: nn.Module, types: tuple[type[nn.Module], ...], described: str) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, types)}
    if not layers:
        kinds = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise ValueError(f"model must have {described} that there are kernels for, got {found}")
    faults = {name: fault for name, layer in layers.items() if (fault := _fault(layer))}
    if faults:
        raise ValueError("model must have finite weights on the CPU, got " + listed(faults))
    return layers


def _fault(layer: nn.Module) -> str:
    for name, parameter in layer._parameters.items():
        if parameter is None:
            continue
        if nn.parameter.is_lazy(parameter):
            return f"{name} not initialised (run the model once)"
        if parameter.device.type != "cpu":
            return f"{name} on {parameter.device}"
        if parameter.is_floating_point() and (bad := count_bad(parameter)):
            return f"{name} with {bad} NaN or infinite entries"
    return ""


def obstacle(layer: nn.Module) -> str:
    """Return why no packed layer can stand in for this one, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.Linear(2, 1)), obstacle(nn.Linear(2, 1).double())
    ('', 'its weight is float64')
    """
    own = isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward  # convolutions are looked at
    if own or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    weight = layer._parameters.get("weight")
    if weight is None or ("bias" not in layer._parameters):
        return "its weight is computed by a parametrization, which must be removed first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which must be removed first"
    if weight.dtype not in _DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    return ""


def grid_records(layers: Iterable[nn.Module]) -> dict[int, grids.GridRecord]:
    """Return the recorded grid of each weight by the weight's id: one record serves all layers that share a weight.

    Examples
    --------
    >>> grid_records([nn.Linear(2, 1)])
    {}
    """
    return {
        id(layer._parameters.get("weight")): record for layer in layers if (record := grids.grid_of(layer)) is not None
    }


Shared = dict[tuple[Any, ...], Any]
"""What was packed already, by weight, bias and format: layers that share a weight get one."""


def candidates(
    layer: nn.Linear,
    format: Format | None,
    records: Mapping[int, grids.GridRecord],
    shared: Shared,
    static: bool = True,
) -> tuple[list[PackedWeight], str]:
    """Pack a layer's weight in the formats worth trying.

    Parameters
    ----------
    layer : nn.Linear
        Without an :func:`obstacle`.
    format : Int8, Int4, Sparse or None
        None: the formats that keep the layer's numbers, Int8 on its recorded grid and Sparse where it is pruned.
    records : mapping
        From :func:`grid_records`.
    shared : dict
        What was packed already; is added to.
    static : bool
        Whether a recorded input scale is used.

    Returns
    -------
    (list of PackedWeight, note)
        The note says why there is none, or which record was ignored; or is "".

    Examples
    --------
    >>> [packed], note = candidates(nn.Linear(2, 1), Sparse(), {}, {})
    >>> packed.shape, note
    ((1, 2), '')
    """
    record = records.get(id(layer.weight))
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    on_grid: Tensor | None = None
    note = ""
    if record is not None and isinstance(record.format, Int8):
        on_grid = grids.integers(weight, record)
        if on_grid is None:
            note = "the weight was changed since it was quantized, so that its Int8 grid no longer holds"
    elif record is not None and format is None:
        note = f"{record.format} has no kernel yet"
    formats: list[Format] = [format] if format is not None else []
    if format is None and on_grid is not None:
        formats.append(Int8())
    if format is None and torch.count_nonzero(weight) < PRUNED_DENSITY * weight.numel():
        formats.append(Sparse())
    if not formats:
        return [], joined("neither quantized to Int8 nor pruned", note)
    found = []
    for each in formats:
        scale = input_scale = None
        if record is not None and on_grid is not None and not isinstance(each, Int4):
            scale = record.scale
            input_scale = record.input_scale if static and isinstance(each, Int8) else None
        key = (id(layer.weight), id(layer.bias), each, scale is None, input_scale)
        if key not in shared:
            values = weight if scale is None or on_grid is None else on_grid
            shared[key] = kernels.pack(values, each, bias, scale, input_scale)
        found.append(shared[key])
    return found, note


def joined(*parts: str) -> str:
    """Return the parts of a reason as one, without the empty ones.

    Examples
    --------
    >>> joined("faster", "")
    'faster'
    """
    return "; ".join(part for part in parts if part)


def replaced(model: nn.Module, substitutes: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put substitutes where modules are, in place and wherever they are used; return the model (or its substitute).

    Examples
    --------
    >>> model = nn.Sequential(nn.ReLU(), nn.Tanh())
    >>> replaced(model, {model[1]: nn.Identity()})
    Sequential(
      (0): ReLU()
      (1): Identity()
    )
    """
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in substitutes:
                parent._modules[key] = substitutes[child]
    return substitutes.get(model, model)
