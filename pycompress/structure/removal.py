"""Removal of the least important outputs of layers, physically, from everything that is coupled with them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import grids, masks, scores
from ..data import Tree, forward
from ..selection import LAYERS, Pattern, select
from .chain import follow, layers_before_last, trace


def simplify(
    model: nn.Module,
    example_inputs: Tree,
    fraction: float | Mapping[str, float],
    score: scores.Score = scores.magnitude,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> nn.Module:
    """Return a smaller dense copy of a model, without its least important neurons and channels.

    Of a layer (Linear, Conv1d, Conv2d) with n outputs, the ``min(round(fraction * n), n - 1)`` outputs of lowest score
    are removed, the first ones among equals: their rows of the weight and the bias, their entries in the batch
    normalizations and PReLUs that follow, and the next layer's weights for them. A removed output counts as 0 where it
    enters that next layer: the result computes what the model computes with those inputs of the next layer set to 0.
    So also the constant is gone that a bias, a batch normalization or an activation with f(0) != 0 gave the next layer.

    Between a layer and the next one there may be element-wise activations, dropout, BatchNorm1d/2d, PReLU, max, average
    and adaptive pooling, and flattening (``nn.Flatten``, ``flatten(1)``, ``view(x.size(0), -1)``), as modules or
    functions, in any nesting that ``torch.fx`` can trace. The last layer keeps its outputs.

    Pruning masks (:func:`pycompress.prune_`) and quantization grids (:func:`pycompress.quantize_`) stay on what is
    kept. So do training mode, ``requires_grad``, dtype and device; gradients and the state of an optimizer do not.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    example_inputs : tensor, or tuple or dict of tensors
        Inputs that the model accepts. Their shapes tell which inputs of a layer behind a flattening belong to one
        channel; and the result is run on them, to see that it works.
    fraction : float, or dict of layer name to float
        Part of each layer's outputs to remove, from 0 to below 1. With a dict, other layers keep their outputs.
    score : function
        ``score(model, layers) -> dict[str, Tensor]``. Either a tensor like the layer's weight, of which the entries of
        each output are summed (:func:`pycompress.scores.magnitude`: the L1 norm), or one value for each output
        (:func:`pycompress.scores.ablation`). Higher = keep.
    include, exclude : list of name patterns or module types, optional
        Which layers lose outputs: ``["features.*", nn.Conv2d]``.

    Returns
    -------
    nn.Module
        Of the class of ``model``, with smaller layers and the same ``state_dict`` keys.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When no layer is left to simplify, a fraction or a score is out of range, or the outputs of a layer cannot be
        followed through the model (all places are named).

    References
    ----------
    Li, H. et al. (2017). Pruning Filters for Efficient ConvNets. ICLR.
    Molchanov, P. et al. (2017). Pruning Convolutional Neural Networks for Resource Efficient Inference. ICLR.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3))
    >>> small = simplify(model, torch.zeros(1, 1, 4, 4), fraction=0.75)
    >>> small[0], small[1].num_features
    (Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1)), 2)
    >>> small[4]
    Linear(in_features=8, out_features=3, bias=True)
    """
    selected = select(model, include, exclude)
    if not callable(score):
        raise TypeError(f"score must be a function of (model, layers), got {type(score).__name__}")
    _check_fraction(fraction)
    graph = trace(model, example_inputs)
    fractions = _fractions(model, layers_before_last(graph), selected, fraction)
    followers = follow(model, graph, list(fractions))
    kept = _kept(model, fractions, score)

    rows, columns = dict(kept), dict[str, Tensor]()
    for layer, sources in followers.items():
        for name, source in sources.items():
            part = columns if isinstance(model.get_submodule(name), LAYERS) else rows
            part[name] = torch.isin(source, kept[layer]).nonzero()[:, 0]
    result = copy.deepcopy(model)
    for name in rows | columns:
        _resize_(result.get_submodule(name), rows.get(name), columns.get(name))
    _check_runs(result, model, example_inputs)
    return result


def _check_fraction(fraction: object) -> None:
    values = fraction if isinstance(fraction, Mapping) else {None: fraction}
    for name, value in values.items():
        where = "fraction" if name is None else f"fraction[{name!r}]"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{where} must be a number, got {type(value).__name__}")
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ValueError(f"{where} must be at least 0 and below 1, got {value}")


def _fractions(
    model: nn.Module, layers: list[str], selected: dict[str, nn.Module], fraction: float | Mapping[str, float]
) -> dict[str, float]:
    """Return the fraction of each layer that loses outputs."""
    # Layers that share a weight are selected together, under the name of the first.
    weights = {id(module._parameters.get("weight", module)) for module in selected.values()}
    modules = {name: model.get_submodule(name) for name in layers}
    layers = [name for name in layers if id(modules[name]._parameters.get("weight", modules[name])) in weights]
    if not layers:
        raise ValueError(
            "model must have a Linear, Conv1d or Conv2d layer with another one behind it, among the layers that include"
            f" and exclude select, got {', '.join(selected)}"
        )
    if not isinstance(fraction, Mapping):
        return dict.fromkeys(layers, float(fraction))
    unknown = [str(name) for name in fraction if name not in layers]
    if unknown or not fraction:
        raise ValueError(f"fraction must name layers among {', '.join(layers)}, got {', '.join(unknown) or 'none'}")
    return {name: float(fraction[name]) for name in layers if name in fraction}


def _kept(model: nn.Module, fractions: dict[str, float], score: scores.Score) -> dict[str, Tensor]:
    """Return the indices of the outputs that each layer keeps, ascending."""
    layers = {name: model.get_submodule(name) for name in fractions}
    given: Any = score(model, dict(layers))
    if not isinstance(given, Mapping):
        raise TypeError(f"score must return a dict of tensors, got {type(given).__name__}")
    kept: dict[str, Tensor] = {}
    problems = []
    for name, module in layers.items():
        values, shape = given.get(name), _shapes(module.weight)
        if not isinstance(values, Tensor):
            problems.append(f"{type(values).__name__} for {name}")
        elif tuple(values.shape) not in (shape, shape[:1]):
            problems.append(f"shape {tuple(values.shape)} for {name}, which has a weight of {shape}")
        elif not bool(torch.isfinite(values).all()):
            problems.append(f"NaN or infinity for {name}")
        else:
            removed = min(round(fractions[name] * shape[0]), shape[0] - 1)
            sums = values.detach().to("cpu", torch.float64).reshape(shape[0], -1).sum(1)
            kept[name] = sums.argsort(stable=True)[removed:].sort().values
    if problems:
        raise ValueError(f"score must return finite tensors, [out] or like the weight, got {'; '.join(problems)}")
    return kept


def _resize_(module: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
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
    sizes = {"out_features": rows, "out_channels": rows, "num_features": rows, "num_parameters": rows}
    for name, index in {**sizes, "in_features": columns, "in_channels": columns}.items():
        if index is not None and hasattr(module, name):
            setattr(module, name, index.numel())


def _check_runs(result: nn.Module, model: nn.Module, example_inputs: Tree) -> None:
    shapes = []
    for candidate in (model, result):
        with torch.no_grad():
            outputs = forward(copy.deepcopy(candidate).eval(), example_inputs, "example_inputs")
        shapes.append(_shapes(outputs))
    if shapes[0] != shapes[1]:
        raise ValueError(f"model must give outputs of {shapes[0]} also without its channels, got {shapes[1]}")


def _shapes(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {key: _shapes(value) for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return [_shapes(value) for value in outputs]
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
