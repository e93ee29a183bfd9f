"""Scores of weights that are measured on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data as data_module
from ..data import Data
from ..progress import track
from ..selection import check_weights, listed
from .inputs import watched_squares
from .running import Loss, Score, check_arguments, check_reached, layer_weight, mean_loss, undisturbed


def taylor(data: Data, loss: Loss, *, batch_size: int = 128) -> Score:
    """Make the score ``|w * g|``, the first-order change of the loss without the weight (Molchanov et al. 2016, 2019).

    ``g`` is the gradient of the mean loss over the data.

    Parameters
    ----------
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches; a few hundred items are usually enough.
    loss : callable
        ``loss(outputs, targets)``: scalar tensor, the mean over the items.
    batch_size : int
        Items per forward and backward pass.

    Returns
    -------
    Score

    Raises
    ------
    TypeError, ValueError
        When data is not of that form, or loss gives no finite scalar.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> pair = torch.ones(4, 3), torch.tensor([0, 1, 1, 1])
    >>> taylor(pair, nn.functional.cross_entropy)(model, {"0": model[0]})["0"].shape
    torch.Size([2, 3])
    """
    check_arguments(data, loss, batch_size)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        mean = _gradient_means(model, layers, data, loss, batch_size, power=1)
        return {name: (layer_weight(layers[name]).double() * mean[name]).abs().float() for name in layers}

    return score


def snip(data: Data, loss: Loss, *, batch_size: int = 128) -> Score:
    """Make the score ``|w * g| / sum |w * g|``, the connection sensitivity (SNIP, Lee et al. 2019).

    :func:`taylor` as a share of the sum over all scored weights; meant for models that are not trained yet.

    Parameters, result and errors are those of :func:`taylor`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> pair = torch.ones(4, 3), torch.tensor([0, 1, 1, 1])
    >>> round(float(snip(pair, nn.functional.cross_entropy)(model, {"0": model[0]})["0"].sum()), 4)
    1.0
    """
    absolute = taylor(data, loss, batch_size=batch_size)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        scores = {name: values.double() for name, values in absolute(model, layers).items()}
        total = sum(float(values.sum()) for values in scores.values())
        return {name: (values / (total or 1.0)).float() for name, values in scores.items()}

    return score


def fisher(data: Data, loss: Loss, *, progress: bool = True) -> Score:
    """Make the score ``h * w^2 / 2``, the loss of optimal brain damage (LeCun et al. 1990).

    ``h`` is the diagonal of the empirical Fisher information, the mean over *items* of the squared gradient. It takes
    one forward and one backward pass for each item.

    Parameters
    ----------
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches; a few hundred items are usually enough.
    loss : callable
        ``loss(outputs, targets)``: scalar tensor, the mean over the items.
    progress : bool
        Whether progress is shown on stderr.

    Returns
    -------
    Score

    Raises
    ------
    TypeError, ValueError
        When data is not of that form, or loss gives no finite scalar.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> pair = torch.ones(4, 3), torch.tensor([0, 1, 1, 1])
    >>> fisher(pair, nn.functional.cross_entropy)(model, {"0": model[0]})["0"].shape
    torch.Size([2, 3])
    """
    check_arguments(data, loss)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        mean = _gradient_means(model, layers, data, loss, 1, power=2, progress=progress)
        return {name: (layer_weight(layers[name]).double().square() * mean[name] / 2).float() for name in layers}

    return score


def wanda(data: Data, *, batch_size: int = 128) -> Score:
    """Make the score ``|w| * norm2(x)``, x the inputs that a weight multiplies (Wanda, Sun et al. 2024).

    For a convolution, these are all inputs under that place of the kernel, padding included; for ``weight_hh`` of a
    recurrent layer the states that its steps start from; for attention queries, keys, values, and what the output
    projection takes; for a row of an embedding ones, as many as it was looked up. The projection of an LSTM with
    ``proj_size`` has no such score.

    Parameters
    ----------
    data : Data
        A pair ``(inputs, targets)``, a Dataset or batches; the targets are not used.
    batch_size : int
        Items per forward pass.

    Returns
    -------
    Score

    Raises
    ------
    TypeError, ValueError
        When data is not of that form, or does not reach a layer.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -4.0]])
    >>> wanda((torch.tensor([[1.0, 0.5]]), torch.zeros(1)))(layer, {"": layer})
    {'': tensor([[3., 2.]])}
    """
    check_arguments(data, batch_size=batch_size)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        weights = check_weights(layers)
        sums: dict[str, Tensor] = {}

        def add(name: str, squares: Tensor) -> None:
            sums[name] = sums[name] + squares if name in sums else squares

        with undisturbed(model), torch.inference_mode(False), torch.no_grad(), watched_squares(model, layers, add):
            for inputs, _ in data_module.batches(data, batch_size):
                data_module.forward(model, inputs, "data inputs")
        check_reached(layers, sums, "data")
        bad = {name: "NaN or infinity" for name, total in sums.items() if not bool(total.isfinite().all())}
        if bad:
            raise ValueError(f"data must give finite inputs of every layer, got {listed(bad)}")
        return {name: (weight.detach().double().abs() * sums[name].sqrt()).float() for name, weight in weights.items()}

    return score


@torch.inference_mode(False)
def _gradient_means(
    model: nn.Module,
    layers: dict[str, nn.Module],
    data: Data,
    loss: Loss,
    batch_size: int,
    power: int,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Mean over the items of the batches' gradients to a power, float64; batches are cut down to batch_size."""
    weights = check_weights(layers)
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    items = 0
    known = data_module.size(data) if data_module.as_pair(data) is not None else 0
    with undisturbed(model), torch.enable_grad(), track(known, "gradients", progress) as done:
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            for whole_inputs, whole_targets in data_module.batches(data, batch_size):
                for start in range(0, data_module.length(whole_targets), batch_size):
                    part = slice(start, start + batch_size)
                    inputs, targets = data_module.pick(whole_inputs, part), data_module.pick(whole_targets, part)
                    value = mean_loss(loss, data_module.forward(model, inputs, "data inputs"), targets)
                    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                    rows = data_module.length(targets)
                    items += rows
                    done.advance(rows)
                    for total, gradient in zip(sums.values(), gradients, strict=True):
                        if gradient is not None:
                            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
                            total.add_(dense.double() ** power, alpha=rows)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
    return {name: total / items for name, total in sums.items()}
