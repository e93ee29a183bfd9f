"""SmoothQuant: outliers of activations move into the weights behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from .. import data as data_module
from ..data import Data
from ..flows import observed
from ..schedules import number
from ..scores.running import undisturbed
from ..selection import LAYERS, Pattern, WeightOf, check_weights, count_bad, listed, place_of, select_weights
from .shared import NORMS, Fit, Rescaled, RescaleSummary, taking, write

_BATCH_SIZE = 256


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
    fit, names = Fit(model), {module: name for name, module in model.named_modules()}
    norms = [module for module in names if type(module) in NORMS and fit(module) and len(module.normalized_shape) == 1]
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
            f"{[name for module, name in names.items() if isinstance(module, NORMS)]}"
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
        weights = [cast(nn.Parameter, getattr(layer, taking(layer))) for layer in behind]
        columns = [weight.detach().double().abs().amax(0).to(x.device) for weight in weights if len(weight)]
        w = torch.stack(columns).amax(0) if columns else torch.zeros_like(x)
        s = torch.where((x > 0) & (w > 0), x**alpha / w ** (1 - alpha), 1.0)
        for parameter in norm._parameters.values():
            if parameter is not None:
                changed[parameter] = parameter.detach().double() / s.to(parameter.device)
        for weight in weights:
            changed[weight] = weight.detach().double() * s.to(weight.device)
        done.append(Rescaled(names[norm], tuple(names[layer] for layer in behind), s))
    write(changed, names)
    return RescaleSummary(tuple(done))


def _smooths(layer: nn.Module) -> bool:
    return isinstance(layer, LAYERS) or (isinstance(layer, WeightOf) and layer.attribute == "in_proj_weight")


def _fault(module: nn.Module) -> str:
    bad = sum(count_bad(parameter) for parameter in module._parameters.values() if parameter is not None)
    return f"{bad} NaN or infinite entries" if bad else ""
