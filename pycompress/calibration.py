"""What calibration data says about layers: the limit of their int8 inputs, and how rounding moves their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from . import data as data_module
from .data import Data
from .observers import Magnitudes, Observer
from .scores.running import check_reached, undisturbed, watched_inputs
from .selection import count_bad, listed

_BATCH_SIZE = 256


@dataclass
class Drift:
    """Sum over inputs of ``(W - Wq) x`` for each output, and over how many; layers that share a bias share it."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, layer: nn.Module, change: Tensor, x: Tensor) -> None:
        """Add the inputs x of one call; a convolution's outputs at each position count by themselves."""
        if isinstance(layer, nn.Linear):
            rows = x.detach().flatten(0, -2) if x.ndim > 1 else x.detach().unsqueeze(0)
            if len(rows):
                self.total = self.total + (change @ _mean(rows, change)[0]).double() * len(rows)
                self.count += len(rows)
            return
        images = x.detach() if x.ndim == change.ndim else x.detach().unsqueeze(0)
        if images.numel():  # linear in x: the outputs' mean is the output of the mean image
            y = cast(nn.Conv2d, layer)._conv_forward(_mean(images, change), change, None)[0].double().flatten(1)
            self.total = self.total + y.sum(1) * len(images)
            self.count += len(images) * y.shape[1]

    def mean(self) -> Tensor:
        """Return the mean; zero where nothing was seen."""
        return torch.as_tensor(self.total) / max(self.count, 1)


def _mean(x: Tensor, like: Tensor) -> Tensor:
    return x.mean(0, keepdim=True, dtype=torch.float64).to(like.dtype)


def calibrate(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Data,
    observer: Observer,
    changes: Mapping[nn.Module, Tensor],
) -> tuple[dict[nn.Module, float], dict[nn.Parameter, Drift]]:
    """Run a model on calibration data in eval mode and see the inputs of layers; nothing of it changes.

    Parameters
    ----------
    model : Module
    layers : dict of name to Linear, Conv1d or Conv2d
    calibration : pair, Dataset or batches
    observer : Observer
    changes : mapping of layer to [shape of its weight] float32 or float64
        ``W - Wq`` of the layers with a bias to correct.

    Returns
    -------
    (dict of layer to float, dict of bias to Drift)
        The magnitude that 127 stands for in each layer's inputs.

    Raises
    ------
    TypeError, ValueError
        When calibration is no data of the model, does not reach a layer, or inputs are not finite (all are named).

    Examples
    --------
    >>> from pycompress.observers import MinMax
    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> data = torch.tensor([[1.0, 3.0], [2.0, -5.0]]), torch.zeros(2)
    >>> limits, drifts = calibrate(model, {"0": model[0]}, data, MinMax(), {model[0]: torch.tensor([[0.1, 0.0]])})
    >>> limits[model[0]], drifts[model[0].bias].mean()
    (5.0, tensor([0.1500], dtype=torch.float64))
    """
    data_module.check(calibration, "calibration")
    seen: dict[str, Magnitudes] = {}
    drifts: dict[nn.Parameter, Drift] = {}

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        if name not in seen:
            seen[name] = observer.start()
        seen[name].see(x)
        if module in changes:
            drift = drifts.setdefault(cast(nn.Parameter, module.bias), Drift())
            drift.add(module, changes[module], x)

    with undisturbed(model), torch.no_grad(), watched_inputs(dict(layers), see):
        for inputs, _ in data_module.batches(calibration, _BATCH_SIZE, name="calibration"):
            data_module.forward(model, inputs, "calibration inputs")
    check_reached(dict(layers), seen, "calibration")
    bad = {
        name: f"largest magnitude {found.largest}"
        for name, found in seen.items()
        if not np.isfinite(np.float32(found.largest))
    }
    if bad:
        raise ValueError(f"calibration must give finite inputs of every layer, got {listed(bad)}")
    return {layers[name]: found.limit() for name, found in seen.items()}, drifts


def corrected(drifts: Mapping[nn.Parameter, Drift], names: Mapping[nn.Parameter, str]) -> dict[nn.Parameter, Tensor]:
    """Return the biases with the mean drift added, in their own dtypes.

    Raises
    ------
    ValueError
        When one is not finite; all are named.

    Examples
    --------
    >>> bias = nn.Parameter(torch.ones(1))
    >>> corrected({bias: Drift(torch.tensor([0.5]), 2)}, {bias: "0"})[bias]
    tensor([1.2500])
    """
    found = {
        bias: (bias.detach().double() + drift.mean().to(bias.device)).to(bias.dtype) for bias, drift in drifts.items()
    }
    bad = {names[bias]: f"{count} NaN or infinite entries" for bias, new in found.items() if (count := count_bad(new))}
    if bad:
        raise ValueError(f"model must have biases that stay finite with bias_correction, got {listed(bad)}")
    return found
