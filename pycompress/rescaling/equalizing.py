"""Cross-layer equalization: scale moves between layers that follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..flows import observed
from ..recording import run
from ..scores.running import undisturbed
from ..selection import LAYERS, Pattern, check_weights, count_bad, listed, select
from .shared import BATCH_NORMS, Fit, Rescaled, RescaleSummary, write

_PASSES, _CONVERGED = 100, 1e-3

_ATEN = torch.ops.aten
# f(s x) = s f(x) for s > 0; identities and dropout in eval mode hand on the very tensor that they got.
_HOMOGENEOUS = frozenset({_ATEN.relu, _ATEN.relu_, _ATEN.leaky_relu, _ATEN.leaky_relu_})
_POOLING = frozenset(
    {
        *(_ATEN.max_pool2d, _ATEN.max_pool2d_with_indices, _ATEN.avg_pool2d),
        *(_ATEN._adaptive_avg_pool2d, _ATEN.adaptive_avg_pool2d, _ATEN.adaptive_max_pool2d),
    }
)

Pair = tuple[nn.Module, nn.Module]
"""A layer and the one behind it."""


def equalize_(
    model: nn.Module,
    example_inputs: Any,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> RescaleSummary:
    """Make the weights of layers that follow each other equally large, channel by channel, in place, before rounding.

    For each channel i between two Linear, two Conv1d or two Conv2d layers (any groups),
    ``s_i = sqrt(r1_i * r2_i) / r2_i`` with r1_i the largest magnitude of the first layer's weights that make the
    channel and r2_i that of the second layer's which take it (Nagel et al. 2019, arXiv:1906.04721, section 4.1). The
    first layer's weights and bias are divided by s, the second's weights multiplied: both ranges become
    ``sqrt(r1_i * r2_i)``, and the float model computes the same up to rounding. A channel with r1_i or r2_i zero keeps
    s = 1. Pairs that share a layer (the paper's triples around a depthwise convolution, longer chains) are equalized in
    turn until no factor moves by more than 0.1 %, at most 100 times.

    Between the two there may be ReLU, LeakyReLU, Identity and Dropout, and max and average pooling between Conv2d
    layers, as modules or functions, seen as the model runs in eval mode; the second layer alone must take the first
    one's outputs. A batch normalization directly behind a layer counts as a part of it, as it is when the two are
    folded: with ``f = gamma / sqrt(var + eps)`` r1 and r2 are those of ``f * W``, and gamma and beta are divided by s
    in the place of the first layer's weights and bias. What one scale serves gains by it:
    ``pc.Affine(per_channel=False)``, ``pc.FixedPoint``, and the input scale of calibrated ``pc.Int8`` layers.

    Parameters
    ----------
    model : Module
    example_inputs : tensor, array, or tuple or dict of them
        What the model is called with.
    include, exclude : list of str or module types, optional
        Name patterns, or types, of the layers that may change; all of them by default.

    Returns
    -------
    RescaleSummary
        The pairs and the factors of all passes together.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, weights hold NaN or infinity, example_inputs do not fit the model, there is
        no such pair, or results are not finite. The model is unchanged then.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data[:] = torch.tensor([[8.0], [1.0]])
    >>> model[2].weight.data[:] = torch.tensor([[0.5, 1.0]])
    >>> print(equalize_(model, torch.zeros(1, 1)))
    0 -> 2  factors from 1 to 4
    >>> model[0].weight.tolist(), model[2].weight.tolist()
    ([[2.0], [1.0]], [[2.0, 1.0]])
    """
    layers = select(model, include, exclude)
    check_weights(layers)
    fit, names = Fit(model), {module: name for name, module in model.named_modules()}
    able = [layer for layer in layers.values() if fit(layer)]
    norms = [m for m in names if isinstance(m, BATCH_NORMS) and fit(m) and m.running_var is not None]
    broken = {names[norm]: f"{bad} NaN or infinite entries" for norm in norms if (bad := _bad(norm))}
    if broken:
        raise ValueError(f"model must have finite weights, got {listed(broken)}")
    ranks: dict[nn.Module, int] = {}

    def look(module: nn.Module, output: Tensor) -> None:
        ranks[module] = output.ndim

    with undisturbed(model):
        groups = observed(
            (*able, *norms), (*able, *norms), [lambda: run(model, example_inputs)], _passes, look
        ).groups()
    pairs, behind = _pairs(able, groups, ranks)
    if not pairs:
        raise ValueError(
            "model must have two Linear or two convolution layers (which may change) with nothing but batch "
            "normalization, ReLU, LeakyReLU, Identity, Dropout or pooling of images between them, and no other reader "
            f"there, got none among {list(layers)}"
        )
    weights = {layer: _weight(layer, behind.get(layer)) for pair in pairs for layer in pair}
    factors = {pair: torch.ones(len(weights[pair[0]]), dtype=torch.float64) for pair in pairs}
    for _ in range(_PASSES):
        moved = 0.0
        for first, second in pairs:
            by_channel = _by_input(second, weights[second])
            r1 = weights[first].abs().flatten(1).amax(1) if weights[first].numel() else None
            r2 = by_channel.abs().amax((1, 3)).flatten() if by_channel.numel() else None
            if r1 is None or r2 is None:
                continue
            s = torch.where((r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r2, 1.0)
            weights[first] = weights[first] / _rows(s, weights[first])
            weights[second] = (by_channel * s.reshape(len(by_channel), 1, -1, 1)).reshape(weights[second].shape)
            factors[first, second] *= s.cpu()
            moved = max(moved, float(s.log().abs().amax()))
        if moved <= _CONVERGED:
            break
    write(_changed(pairs, behind, factors), names)
    return RescaleSummary(
        tuple(Rescaled(names[first], (names[second],), factors[first, second]) for first, second in pairs)
    )


def _passes(operation: Any, giver: nn.Module) -> bool:
    """Whether the result of an operation counts as the output of a layer, ``f(s x) = s f(x)`` for each channel."""
    return operation in _HOMOGENEOUS or (operation in _POOLING and isinstance(giver, (nn.Conv2d, nn.BatchNorm2d)))


def _pairs(
    able: Sequence[nn.Module], groups: Mapping[nn.Module, list[nn.Module]], ranks: Mapping[nn.Module, int]
) -> tuple[list[Pair], dict[nn.Module, nn.Module]]:
    """Return the layers that follow each other, and the batch normalizations behind layers."""
    behind: dict[nn.Module, nn.Module] = {}
    for layer in able:
        taker = groups[layer][0] if len(groups.get(layer, ())) == 1 else None
        # The channels of a normalization are the second dimension: the layer's in a batch of rows or images.
        if isinstance(taker, BATCH_NORMS) and ranks[layer] == cast(Tensor, layer.weight).ndim:
            behind[layer] = taker
    ends = {layer: groups.get(behind.get(layer, layer), []) for layer in able}
    pairs = [
        (layer, takers[0])
        for layer, takers in ends.items()
        if len(takers) == 1 and takers[0] in ends and _kind(layer) is _kind(takers[0])
    ]
    order = {layer: place for place, layer in enumerate(groups)}
    return sorted(pairs, key=lambda pair: order[pair[0]]), behind


def _changed(
    pairs: Sequence[Pair], behind: Mapping[nn.Module, nn.Module], factors: Mapping[Pair, Tensor]
) -> dict[nn.Parameter, Tensor]:
    """Return the new values of all parameters that change."""
    changed: dict[nn.Parameter, Tensor] = {}

    def now(parameter: nn.Parameter) -> Tensor:
        return changed.get(parameter, parameter.detach().double())

    for first, second in pairs:
        s = factors[first, second].to(cast(nn.Parameter, first.weight).device)
        for parameter in behind.get(first, first)._parameters.values():
            if parameter is not None:
                changed[parameter] = now(parameter) / _rows(s, parameter)
        weight = cast(nn.Parameter, second.weight)
        by_channel = _by_input(second, now(weight))
        columns = s.to(weight.device).reshape(len(by_channel), 1, -1, 1)
        changed[weight] = (by_channel * columns).reshape(weight.shape)
    return changed


def _rows(s: Tensor, weight: Tensor) -> Tensor:
    return s.reshape(-1, *(1,) * (weight.ndim - 1))


def _bad(norm: nn.Module) -> int:
    tensors = (*norm._parameters.values(), *norm._buffers.values())
    return sum(count_bad(tensor) for tensor in tensors if tensor is not None and tensor.is_floating_point())


def _kind(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in LAYERS if isinstance(layer, kind))


def _weight(layer: nn.Module, norm: nn.Module | None) -> Tensor:
    """Return the weight of a layer, with the batch normalization behind it."""
    weight = cast(Tensor, layer.weight).detach().double()
    if norm is None:
        return weight
    variance, eps = cast(Tensor, norm.running_var).double(), cast(float, norm.eps)
    return weight * _rows(cast(Tensor, norm.weight).detach().double() / (variance + eps).sqrt(), weight)


def _by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a weight as [groups, outputs of one, inputs of one, positions]."""
    groups = cast(int, getattr(layer, "groups", 1))
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
