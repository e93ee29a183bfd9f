"""Run models on data, and compare what they predict: classes, flips, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import blame, check_model, forward
from ..data import Data, Tree, batches, gather, length


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run a block with models in eval mode and without gradients.

    Each module's own mode is put back; torch's random numbers, which a DataLoader draws from, go on as before.

    Examples
    --------
    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def predict(model: nn.Module, data: Data, batch_size: int = 256) -> tuple[Tensor, Any]:
    """Outputs of a model for all items, in eval mode and without gradients; the model's modes are put back.

    Parameters
    ----------
    model : torch.nn.Module
        Returns one tensor with one row for each item.
    data : pair, Dataset or batches
    batch_size : int
        Items in a batch, for data that is not in batches.

    Returns
    -------
    outputs : [items, ...]
    targets : [items, ...], or a tuple or dict of such

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, the model returns something else, or outputs hold NaN.

    Examples
    --------
    >>> outputs, targets = predict(nn.Identity(), (torch.eye(2), torch.tensor([0, 1])))
    >>> outputs.argmax(1) == targets
    tensor([True, True])
    """
    outputs, targets = predict_each({"model": model}, data, batch_size)
    return outputs["model"], targets


def predict_each(
    models: dict[str, nn.Module], data: Data, batch_size: int = 256, *, name: str = "data"
) -> tuple[dict[str, Tensor], Any]:
    """Outputs of several models for the same items: data is read once, so that its order may be random.

    Parameters
    ----------
    models : dict of str to torch.nn.Module
        Their names are used in messages.
    data : pair, Dataset or batches
    batch_size : int
    name : str
        The argument's name of data, for messages.

    Returns
    -------
    outputs : dict of str to [items, ...]
    targets : [items, ...], or a tuple or dict of such

    Raises
    ------
    TypeError, ValueError
        As :func:`predict`; when the shapes of the models' outputs differ.

    Examples
    --------
    >>> outputs, _ = predict_each({"a": nn.Identity(), "b": nn.ReLU()}, (-torch.eye(1), torch.tensor([0])))
    >>> outputs["a"], outputs["b"]
    (tensor([[-1.]]), tensor([[0.]]))
    """
    for key, model in models.items():
        check_model(model, key)
    parts: list[tuple[dict[str, Tensor], Any]] = []
    with evaluating(*models.values()):
        for inputs, targets in batches(data, batch_size, name=name):
            items = length(targets)
            given = {key: forward(model, inputs, f"{name} inputs") for key, model in models.items()}
            rows = {key: _one_output(output, items, key, inputs, name) for key, output in given.items()}
            parts.append((rows, targets))
    outputs, targets = gather(parts, name)
    shapes = {tuple(tensor.shape) for tensor in outputs.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in outputs.items())
        raise ValueError(f"models must have outputs of one shape for {name}, got {found}")
    return outputs, targets


def expected_calibration_error(outputs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy: ``sum over bins of n_b / n * |accuracy_b - confidence_b|``.

    Confidence is the softmax probability of the predicted class, bins are of equal width (Guo et al. 2017, ICML).

    Parameters
    ----------
    outputs : [items, ..., classes] float
        Or [items] or [items, 1]: the logit of class 1 of two.
    targets : [items, ...] int
    bins : int
        1 or more.

    Returns
    -------
    float in [0, 1]
        0 is best.

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs, or bins is below 1.

    Examples
    --------
    >>> expected_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    0.0
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    predicted, classes = predicted_classes(outputs, targets)
    logits = outputs.double()
    if outputs.ndim == classes.ndim + 1 and outputs.shape[-1] > 1:
        confidence = logits.softmax(dim=-1).amax(dim=-1)
    else:
        confidence = logits.reshape(classes.shape).abs().sigmoid()
    confidence, hit = confidence.flatten(), (predicted == classes).flatten().double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, hit - confidence)
    return float(gaps.abs().sum()) / hit.numel()


@dataclass(frozen=True)
class Flips:
    """Predictions that two models don't share, as numbers of predictions.

    Attributes
    ----------
    lost : int
        Right with the original, wrong with the compressed model.
    gained : int
        Wrong with the original, right with the compressed model.
    changed : int
        Wrong with both, in different ways.

    Examples
    --------
    >>> Flips(lost=2, gained=1, changed=0).lost
    2
    """

    lost: int
    gained: int
    changed: int


def flips(original: Tensor, compressed: Tensor, targets: Tensor) -> Flips:
    """Count the predictions that change between two models.

    Parameters
    ----------
    original, compressed : [items, ..., classes] float
        Outputs for the same items.
    targets : [items, ...] int

    Returns
    -------
    Flips

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> first, second = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> flips(first, second, torch.tensor([0, 1]))
    Flips(lost=0, gained=1, changed=0)
    """
    before, classes = predicted_classes(original, targets)
    after, _ = predicted_classes(compressed, targets)
    right_before, right_after = before == classes, after == classes
    return Flips(
        lost=int((right_before & ~right_after).sum()),
        gained=int((~right_before & right_after).sum()),
        changed=int((~right_before & ~right_after & (before != after)).sum()),
    )


def predicted_classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return predicted and true class indices, both in the shape of targets.

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> predicted_classes(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([0, 0]))
    (tensor([1, 0]), tensor([0, 0]))
    """
    classes = class_indices(outputs, targets)
    if outputs.ndim == classes.ndim + 1 and outputs.shape[-1] > 1:
        return outputs.argmax(dim=-1), classes
    return (outputs.reshape(classes.shape) > 0).long(), classes


def class_indices(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets as int64 class indices that fit the outputs.

    Parameters
    ----------
    outputs : [items, ..., classes] float
        Or [items] or [items, 1]: the logit of class 1 of two.
    targets : [items, ...] int
        For a single logit also float, 0 or 1.

    Returns
    -------
    [items, ...] int64

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> class_indices(torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0]))
    tensor([1, 0])
    """
    for name, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if not outputs.is_floating_point():
        raise TypeError(f"outputs must be floating logits, got {outputs.dtype}")
    items = targets.shape[0] if targets.ndim else 0
    one_logit = outputs.shape in ((items,), (items, 1)) and targets.shape in ((items,), (items, 1))
    if items == 0 or not (one_logit or outputs.shape[:-1] == targets.shape):
        raise ValueError(
            f"outputs must be logits [items, ..., classes] for targets [items, ...], "
            f"got {tuple(outputs.shape)} for {tuple(targets.shape)}"
        )
    count = 2 if one_logit else outputs.shape[-1]
    whole = targets if not targets.is_floating_point() else targets.round()
    if (targets.is_floating_point() and not one_logit) or targets.is_complex() or bool((whole != targets).any()):
        raise TypeError(f"targets must be class indices, got {targets.dtype} values")
    classes = whole.long()
    if int(classes.min()) < 0 or int(classes.max()) >= count:
        bad = int(classes.min()) if int(classes.min()) < 0 else int(classes.max())
        raise ValueError(f"targets must be class indices from 0 to {count - 1}, got {bad}")
    return classes


def _one_output(outputs: Any, items: int, name: str, inputs: Tree, data: str) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(f"{name} must return one tensor, got {type(outputs).__name__}")
    if outputs.ndim == 0 or outputs.shape[0] != items:
        raise ValueError(f"{name} must return one row for each of {items} items, got shape {tuple(outputs.shape)}")
    if outputs.is_floating_point() and bool(outputs.isnan().any()):
        bad = int(outputs.isnan().flatten(1).any(dim=1).sum()) if outputs.ndim > 1 else int(outputs.isnan().sum())
        reason = blame(inputs, f"{data} inputs")
        raise ValueError(f"{name} must return numbers, got NaN for {bad} of {items} items of a batch{reason}")
    return outputs
