"""How far rounding a layer moves its outputs, seen on calibration data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data as data_module
from .data import Data
from .scores.running import undisturbed, watched_inputs

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Rounded:
    """What a layer becomes.

    Attributes
    ----------
    weight : [shape of the weight]
    bias : [outputs] or None
    input_scale : float or None
        Of int8 inputs; None: they are not rounded.
    """

    weight: Tensor
    bias: Tensor | None
    input_scale: float | None


def output_errors(
    model: nn.Module, layers: Mapping[str, nn.Module], calibration: Data, rounded: Mapping[nn.Module, Rounded]
) -> dict[nn.Module, float]:
    """Return ``norm(y - y') / norm(y)`` of each layer over calibration data; nothing of the model changes.

    y are the layer's outputs in the float model, y' those of the rounded layer on the same inputs, which are rounded
    too, where it has an ``input_scale`` s: ``x' = clamp(rint(x / s), -127, 127) * s``.

    Parameters
    ----------
    model : Module
    layers : dict of name to Linear, Conv1d or Conv2d
    calibration : pair, Dataset or batches
    rounded : mapping of layer to Rounded

    Returns
    -------
    dict of layer to float
        Infinity where outputs that were all zero are not any more.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[1.0, 1.0]])
    >>> data = torch.tensor([[1.0, 3.0]]), torch.zeros(1)
    >>> output_errors(model, {"0": model[0]}, data, {model[0]: Rounded(torch.tensor([[1.0, 0.5]]), None, None)})
    {Linear(in_features=2, out_features=1, bias=False): 0.375}
    """
    lost = dict.fromkeys(rounded, 0.0)
    whole = dict.fromkeys(rounded, 0.0)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        new = rounded[module]
        wide = torch.promote_types(x.dtype, torch.float32)
        x = x.detach().to(wide)
        y = _outputs(module, x, cast(Tensor, module.weight), cast("Tensor | None", module.bias))
        if new.input_scale is not None:
            x = torch.clamp(torch.round(x / new.input_scale), -127, 127) * new.input_scale
        lost[module] += _squares(y - _outputs(module, x, new.weight, new.bias))
        whole[module] += _squares(y)

    with undisturbed(model), torch.no_grad(), watched_inputs(dict(layers), see):
        for inputs, _ in data_module.batches(calibration, _BATCH_SIZE, name="calibration"):
            data_module.forward(model, inputs, "calibration inputs")
    return {
        module: math.sqrt(lost[module] / whole[module]) if whole[module] else math.inf if lost[module] else 0.0
        for module in rounded
    }


def _outputs(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return cast(Tensor, cast(nn.Conv2d, module)._conv_forward(x, weight, bias))


def _squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
