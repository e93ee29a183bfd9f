"""The score of whole outputs: neurons of a Linear, channels of a convolution."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import data as data_module
from ..data import Data
from ..flows import observed
from ..progress import track
from ..recording import copied, run
from ..selection import check_weights, count_bad, listed
from .running import Loss, Score, check_arguments, check_reached, layer_weight, mean_loss, undisturbed

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Threshold),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign),
    *(nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Identity),
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NORMS = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.LPPool1d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)


def ablation(data: Data, loss: Loss, *, batch_size: int = 256, progress: bool = True) -> Score:
    """Make the score ``I_c = L(model without output c of the layer) - L(model)``, measured for each output.

    L is the mean loss over the data, in eval mode. An output is taken away where it ends: behind the batch norm,
    activation, dropout and pooling modules that directly follow its layer, so that ``I_c`` is what removing it does
    (a batch norm turns a zero before it into another value). It takes one forward pass over the data for each output of
    each layer.

    Parameters
    ----------
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches.
    loss : callable
        ``loss(outputs, targets)``: scalar tensor, the mean over the items.
    batch_size : int
        Items per forward pass.
    progress : bool
        Whether progress is shown on stderr.

    Returns
    -------
    Score
        That gives one value for each output: dict of name to [out] float64. Negative where the model is better without.

    Raises
    ------
    TypeError, ValueError
        When data is not of that form or does not reach a layer, or loss gives no finite scalar.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[2].weight.data = torch.eye(2), torch.tensor([[3.0, 1.0]])
    >>> pair = torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0]])
    >>> ablation(pair, nn.functional.mse_loss)(model, {"0": model[0]})["0"].tolist()
    [9.0, 1.0]
    """
    check_arguments(data, loss, batch_size)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        check_weights(layers)
        outputs = {name: layer_weight(layer).shape[0] for name, layer in layers.items()}
        sums = {name: torch.zeros(count, dtype=torch.float64) for name, count in outputs.items()}
        items = 0
        sites: dict[str, _Site] = {}
        known = data_module.size(data) if data_module.as_pair(data) is not None else 0
        steps = -(-known // batch_size) * sum(outputs.values())
        with undisturbed(model), torch.no_grad(), track(steps, "ablation", progress) as done:
            for inputs, targets in data_module.batches(data, batch_size):
                if not sites:
                    sites = _sites(model, layers, inputs)
                rows = data_module.length(targets)
                whole = mean_loss(loss, data_module.forward(model, inputs, "data inputs"), targets).item()
                for name, total in sums.items():
                    for c in range(outputs[name]):
                        with _Without(sites[name], c):
                            part = mean_loss(loss, data_module.forward(model, inputs, "data inputs"), targets).item()
                        total[c] += (part - whole) * rows
                        done.advance()
                items += rows
        return {name: total / items for name, total in sums.items()}

    return score


def activation(data: Data, *, batch_size: int = 256) -> Score:
    """Make the score ``mean |a_c|``, the mean magnitude of each output c of a layer over the data.

    As in :func:`ablation` an output is looked at where it ends, behind the batch norm, activation, dropout and pooling
    modules that directly follow its layer: behind a ReLU it is how strongly a neuron fires (compare Hu et al. 2016,
    network trimming, arXiv:1607.03250, where it is how often). It takes one forward pass over the data.

    Parameters
    ----------
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches; the targets are not used.
    batch_size : int
        Items per forward pass.

    Returns
    -------
    Score
        That gives one value for each output: dict of name to [out] float64.

    Raises
    ------
    TypeError, ValueError
        When data is not of that form, does not reach a layer, or gives outputs that are not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> model[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    >>> activation((torch.ones(4, 2), torch.zeros(4)))(model, {"0": model[0]})["0"].tolist()
    [3.0, 0.0]
    """
    check_arguments(data, batch_size=batch_size)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        check_weights(layers)
        sums = {name: torch.zeros(layer_weight(layer).shape[0], dtype=torch.float64) for name, layer in layers.items()}
        counts = dict.fromkeys(layers, 0)
        sites: dict[str, _Site] = {}
        with undisturbed(model), torch.no_grad():
            for inputs, _ in data_module.batches(data, batch_size):
                if not sites:
                    sites = _sites(model, layers, inputs)
                with ExitStack() as stack:
                    for name, site in sites.items():
                        look = _Look(site, name, sums, counts)
                        stack.callback(site.module.register_forward_hook(look).remove)
                    data_module.forward(model, inputs, "data inputs")
        found = {name: total / max(counts[name], 1) for name, total in sums.items()}
        bad = {name: "NaN or infinity" for name, value in found.items() if not bool(value.isfinite().all())}
        if bad:
            raise ValueError(f"data must give finite outputs of every layer, got {listed(bad)}")
        return found

    return score


class _Look:
    """Adds up the magnitudes of the channels at a site."""

    def __init__(self, site: _Site, name: str, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        self.site, self.name, self.sums, self.counts, self.calls = site, name, sums, counts, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.calls += 1
        if self.site.call in (None, self.calls - 1):
            values = output.detach().movedim(self.site.axis, 0).flatten(1).double().abs()
            self.sums[self.name] += values.sum(1).cpu()
            self.counts[self.name] += values.shape[1]


def bn_scale(example_inputs: Any) -> Score:
    """Make the score ``|gamma_c|``, the scale of the batch normalization behind each output c of a layer.

    Network slimming (Liu et al. 2017, arXiv:1708.06519); it is meant for models that were trained with an L1 penalty on
    these scales. Which normalization takes the outputs of a layer is seen as the model runs.

    Parameters
    ----------
    example_inputs : tensor, array, or tuple or dict of them
        What the model is called with.

    Returns
    -------
    Score
        That gives one value for each output: dict of name to [out] float64.

    Raises
    ------
    TypeError, ValueError
        When example_inputs do not fit the model, or layers have no batch normalization with a scale directly behind
        them, which alone takes their outputs (all are named), or scales are not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    >>> model[1].weight.data = torch.tensor([-0.5, 2.0])
    >>> bn_scale(torch.zeros(1, 1, 4, 4))(model, {"0": model[0]})["0"].tolist()
    [0.5, 2.0]
    """
    copied(example_inputs)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        check_weights(layers)
        norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m._parameters.get("weight") is not None]
        ranks: dict[nn.Module, int] = {}
        with undisturbed(model):
            flow = observed(
                layers.values(),
                norms,
                [lambda: run(model, example_inputs)],
                look=lambda layer, output: ranks.update({layer: output.ndim}),
            )
        behind = {giver: takers[0] for giver, takers in flow.groups().items() if len(takers) == 1}
        # The channels of a norm are the second dimension, the outputs of a Linear the last one.
        fit = {layer for layer in behind if not isinstance(layer, nn.Linear) or ranks[layer] == 2}
        missing = [name for name, layer in layers.items() if layer not in fit]
        if missing:
            raise ValueError(
                "bn_scale needs layers with a batch normalization directly behind them that alone takes their outputs, "
                f"got none behind {missing}: exclude them, or choose another score"
            )
        found = {name: layer_weight(behind[layer]).double().abs() for name, layer in layers.items()}
        bad = {name: f"{count} NaN or infinite scales" for name, value in found.items() if (count := count_bad(value))}
        if bad:
            raise ValueError(f"model must have finite batch normalizations, got {listed(bad)}")
        return found

    return score


class _Site(NamedTuple):
    """Where the outputs of a layer end: the module, which of its calls in a forward (None: all), the channel axis."""

    module: nn.Module
    call: int | None
    axis: int


class _Call(NamedTuple):
    module: nn.Module
    number: int
    input: Any
    output: Any


def _sites(model: nn.Module, layers: dict[str, nn.Module], inputs: Any) -> dict[str, _Site]:
    calls: list[_Call] = []  # holds the tensors, so that none of them can be taken for another

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        number = sum(call.module is module for call in calls)
        calls.append(_Call(module, number, args[0] if args else None, output))

    scored = list(layers.values())
    watched = [module for module in model.modules() if module in scored or not list(module.children())]
    handles = [module.register_forward_hook(record) for module in watched]
    try:
        data_module.forward(model, inputs, "data inputs")
    finally:
        for handle in handles:
            handle.remove()
    check_reached(layers, {name: True for name, layer in layers.items() if _own(calls, layer)}, "data")
    return {name: _site(calls, layer) for name, layer in layers.items()}


def _own(calls: list[_Call], layer: nn.Module) -> list[int]:
    return [i for i, call in enumerate(calls) if call.module is layer]


def _site(calls: list[_Call], layer: nn.Module) -> _Site:
    axis = -1 if isinstance(layer, nn.Linear) else -2 if isinstance(layer, nn.Conv1d) else -3
    own = _own(calls, layer)
    if len(own) > 1:
        return _Site(layer, None, axis)
    end = own[0]
    while True:
        readers = [i for i in range(end + 1, len(calls)) if calls[i].input is calls[end].output]
        if not readers or not _channel_by_channel(calls[readers[0]].module, layer, calls[end].output):
            break
        reader = calls[readers[0]]
        if len(readers) > 1 and reader.output is not reader.input:  # an in-place module changes it for the others
            break
        end = readers[0]
    return _Site(calls[end].module, calls[end].number, axis)


def _channel_by_channel(module: nn.Module, layer: nn.Module, x: Any) -> bool:
    """Whether a module keeps the outputs of a layer apart; behind a Linear these are the features, the last axis."""
    if isinstance(module, (*_ACTIVATIONS, *_DROPOUTS)):
        return True
    if isinstance(layer, nn.Linear):
        return isinstance(module, _NORMS) and x.ndim == 2
    return isinstance(module, (*_NORMS, *_POOLS))


class _Without:
    """Zero one channel at a site, inside a block."""

    def __init__(self, site: _Site, channel: int) -> None:
        self.site, self.channel, self.calls = site, channel, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.calls += 1
        if self.site.call not in (None, self.calls - 1):
            return None
        return output.index_fill(self.site.axis, torch.tensor([self.channel], device=output.device), 0)

    def __enter__(self) -> None:
        self.handle = self.site.module.register_forward_hook(self)

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
