"""Move scale from one layer to the next, without changing what the float model computes, so that int8 loses less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import data as data_module
from .data import Data
from .flows import observed
from .masks import has_no_other_hooks
from .recording import run
from .schedules import number
from .scores.running import undisturbed
from .selection import LAYERS, Pattern, WeightOf, check_weights, count_bad, listed, place_of, select, select_weights

_NORMS = (nn.LayerNorm, nn.RMSNorm)
_BATCH_SIZE = 256
_PASSES, _CONVERGED = 100, 1e-3

_ATEN = torch.ops.aten
# f(s x) = s f(x) for s > 0; identities and dropout in eval mode hand on the very tensor that they got.
_HOMOGENEOUS = frozenset({_ATEN.relu, _ATEN.relu_, _ATEN.leaky_relu, _ATEN.leaky_relu_})


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A module whose outputs were divided by factors, and the layers whose weights were multiplied by them.

    Attributes
    ----------
    source : str
        Name of the normalization or layer in front.
    layers : tuple of str
        The layers that take its outputs.
    factors : [channels] float64

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> place = equalize_(model, torch.zeros(1, 2)).places[0]
    >>> place.source, place.layers, place.factors.shape
    ('0', ('2',), torch.Size([4]))
    """

    source: str
    layers: tuple[str, ...]
    factors: Tensor


@dataclass(frozen=True)
class RescaleSummary:
    """What :func:`smooth_` and :func:`equalize_` did; printed, it is a table.

    Attributes
    ----------
    places : tuple of Rescaled

    Examples
    --------
    >>> print(RescaleSummary((Rescaled("norm", ("q", "k"), torch.tensor([0.5, 3.0])),)))
    norm -> q, k  factors from 0.5 to 3
    """

    places: tuple[Rescaled, ...]

    def __str__(self) -> str:
        ways = [f"{place.source} -> {', '.join(place.layers)}" for place in self.places]
        width = max(map(len, ways))
        return "\n".join(
            f"{way:<{width}}  factors from {float(place.factors.min()):.3g} to {float(place.factors.max()):.3g}"
            for way, place in zip(ways, self.places, strict=True)
        )


def smooth_(
    model: nn.Module,
    data: Data,
    alpha: float = 0.5,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> RescaleSummary:
    """Move outliers of activations into the weights behind them, in place: SmoothQuant, before ``pc.quantize_``.

    For each channel j of a LayerNorm (or RMSNorm) whose outputs only Linear layers and self-attention take,
    ``s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)`` (Xiao et al. 2022, arXiv:2211.10438, equation 4), where x are the
    outputs over the data and w the weights of all these layers. The weight and the bias of the normalization are
    divided by s, the input columns of the layers multiplied by it: the float model computes the same, up to rounding,
    and the activations get ranges that one int8 scale serves. A channel with zero for either maximum keeps s = 1.

    Which layers take what is seen as the model runs on the data, whatever its code says: a normalization whose outputs
    anything else reads (a residual sum, say) stays as it is, and so do layers whose weights are shared or read by
    anything but their own forward. Of an ``nn.MultiheadAttention`` whose query, key and value are the outputs, the
    columns of ``in_proj_weight`` are multiplied.

    Parameters
    ----------
    model : Module
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches. The model runs on it in eval mode; targets are not used.
    alpha : float
        From 0 (scale the weights evenly) to 1 (scale the activations evenly); the paper uses 0.5, and up to 0.75 where
        outliers are strong.
    include, exclude : list of str or module types, optional
        Name patterns, or types, of the Linear and attention layers that may change; all of them by default. A
        normalization with any other layer behind it is left out.

    Returns
    -------
    RescaleSummary
        The normalizations, the layers behind each, and the factors.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, weights or activations hold NaN or infinity, there is no such
        normalization, or results are not finite. The model is unchanged then.

    Examples
    --------
    >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 3))
    >>> model[1].weight.data[:] = 1.0
    >>> model[0].weight.data[:] = torch.tensor([1.0, 100.0])
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> smooth_(model, (x, torch.zeros(2))).places[0].factors.round(decimals=1)
    tensor([ 1., 10.], dtype=torch.float64)
    """
    alpha = number(alpha, "alpha", 0, 1)
    layers = {name: layer for name, layer in select_weights(model, include, exclude).items() if _smooths(layer)}
    check_weights(layers)
    data_module.check(data, "data")
    fit, names = _Fit(model), {module: name for name, module in model.named_modules()}
    norms = [module for module in names if type(module) in _NORMS and fit(module) and len(module.normalized_shape) == 1]
    places = (place_of(layer)[0] for layer in layers.values())
    takers = [layer for layer in places if isinstance(layer, (nn.Linear, nn.MultiheadAttention)) and fit(layer)]
    largest: dict[nn.Module, Tensor] = {}

    def look(norm: nn.Module, output: Tensor) -> None:
        if output.numel():
            found = output.abs().flatten(0, -2).amax(0) if output.ndim > 1 else output.abs()
            largest[norm] = torch.maximum(largest.get(norm, found), found)

    with undisturbed(model):
        batches = data_module.batches(data, _BATCH_SIZE, name="data")
        runs = (partial(data_module.forward, model, inputs, "data inputs") for inputs, _ in batches)
        groups = observed(norms, takers, runs, look=look).groups()
    groups = {norm: takers for norm, takers in groups.items() if norm in largest}
    if not groups:
        raise ValueError(
            "model must have a LayerNorm or RMSNorm whose outputs Linear layers or self-attention (which may change) "
            "take and nothing else does, got none of "
            f"{[name for module, name in names.items() if isinstance(module, _NORMS)]}"
        )
    broken = {names[norm]: fault for norm in groups if (fault := _fault(norm))}
    if broken:
        raise ValueError(f"model must have finite weights, got {listed(broken)}")
    bad = {names[norm]: f"{count_bad(largest[norm])} channels" for norm in groups if count_bad(largest[norm])}
    if bad:
        raise ValueError(f"data must give finite activations, got NaN or infinity behind {listed(bad)}")
    changed: dict[nn.Parameter, Tensor] = {}
    done = []
    for norm, behind in groups.items():
        x = largest[norm].double()
        weights = [cast(nn.Parameter, getattr(layer, _taking(layer))) for layer in behind]
        columns = [weight.detach().double().abs().amax(0).to(x.device) for weight in weights if len(weight)]
        w = torch.stack(columns).amax(0) if columns else torch.zeros_like(x)
        s = torch.where((x > 0) & (w > 0), x**alpha / w ** (1 - alpha), 1.0)
        for parameter in norm._parameters.values():
            if parameter is not None:
                changed[parameter] = parameter.detach().double() / s.to(parameter.device)
        for weight in weights:
            changed[weight] = weight.detach().double() * s.to(weight.device)
        done.append(Rescaled(names[norm], tuple(names[layer] for layer in behind), s))
    _write(changed, names)
    return RescaleSummary(tuple(done))


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

    Between the two there may be ReLU, LeakyReLU, Identity and Dropout, as modules or functions, seen as the model runs
    in eval mode; the second layer alone must take the first one's outputs. Batch normalization in between is no such
    pair. What one scale serves gains by it: ``pc.Affine(per_channel=False)``, ``pc.FixedPoint``, and the input scale of
    calibrated ``pc.Int8`` layers.

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
    fit, names = _Fit(model), {module: name for name, module in model.named_modules()}
    able = [layer for layer in layers.values() if fit(layer)]
    with undisturbed(model):
        flow = observed(able, able, [lambda: run(model, example_inputs)], _HOMOGENEOUS)
    pairs = [
        (first, takers[0])
        for first, takers in flow.groups().items()
        if len(takers) == 1 and _kind(first) is _kind(takers[0])
    ]
    if not pairs:
        raise ValueError(
            "model must have two Linear or two convolution layers (which may change) with nothing but ReLU, LeakyReLU, "
            f"Identity or Dropout between them, and no other reader there, got none among {list(layers)}"
        )
    weights = {layer: _weight(layer) for pair in pairs for layer in pair}
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
            weights[first] = weights[first] / s.reshape(-1, *(1,) * (weights[first].ndim - 1))
            by_channel = by_channel * s.reshape(len(by_channel), 1, -1, 1)
            weights[second] = by_channel.reshape(weights[second].shape)
            factors[first, second] *= s.cpu()
            moved = max(moved, float(s.log().abs().amax()))
        if moved <= _CONVERGED:
            break
    changed = {cast(nn.Parameter, layer.weight): weight for layer, weight in weights.items()}
    for first, second in pairs:
        bias = first._parameters["bias"]
        if bias is not None:
            changed[bias] = bias.detach().double() / factors[first, second].to(bias.device)
    _write(changed, names)
    return RescaleSummary(
        tuple(Rescaled(names[first], (names[second],), factors[first, second]) for first, second in pairs)
    )


class _Fit:
    """Says whether a module's parameters are its own, and its forward the one that is known."""

    def __init__(self, model: nn.Module) -> None:
        self.places = Counter(
            parameter
            for module in model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )

    def __call__(self, module: nn.Module) -> bool:
        known = any(type(module).forward is kind.forward for kind in (*LAYERS, *_NORMS, nn.MultiheadAttention))
        own = module._parameters.get(_taking(module)) is not None and (
            "bias" in module._parameters or not hasattr(module, "bias")
        )
        alone = all(self.places[parameter] == 1 for parameter in module._parameters.values() if parameter is not None)
        return known and own and alone and has_no_other_hooks(module)


def _taking(layer: nn.Module) -> str:
    """Return the name of the weight that a layer's inputs are multiplied with."""
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


def _smooths(layer: nn.Module) -> bool:
    return isinstance(layer, LAYERS) or (isinstance(layer, WeightOf) and layer.attribute == "in_proj_weight")


def _fault(module: nn.Module) -> str:
    bad = sum(count_bad(parameter) for parameter in module._parameters.values() if parameter is not None)
    return f"{bad} NaN or infinite entries" if bad else ""


def _kind(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in LAYERS if isinstance(layer, kind))


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight).detach().double()


def _by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a weight as [groups, outputs of one, inputs of one, positions]."""
    groups = cast(int, getattr(layer, "groups", 1))
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _write(changed: dict[nn.Parameter, Tensor], names: dict[nn.Module, str]) -> None:
    """Give parameters new values, all or none."""
    rounded = {parameter: value.to(parameter.dtype) for parameter, value in changed.items()}
    bad = {parameter for parameter, value in rounded.items() if count_bad(value)}
    if bad:
        owners = [name for module, name in names.items() if not bad.isdisjoint(module._parameters.values())]
        raise ValueError(f"model must have weights and biases that stay finite when they are rescaled, got {owners}")
    for parameter, value in rounded.items():
        parameter.data.copy_(value)
