"""How good outputs are: metrics, higher is better.

A metric is a function ``metric(outputs, targets) -> float`` over all items, higher is better. Where it is a mean over
items, it has an attribute ``per_item``: a function of the same arguments that returns one value for each item
([items] float64). With it a comparison needs no second call of the metric. Any function of this form is a metric;
:func:`item_mean` makes one from a function of items.

Outputs of a classifier are logits ``[items, ..., classes]`` with class indices ``[items, ...]`` as targets; for two
classes also one logit ``[items]`` or ``[items, 1]``, positive for class 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .predictions import class_indices, predicted_classes

Metric = Callable[[Tensor, Tensor], float]
"""``metric(outputs, targets)``, higher is better."""

PerItem = Callable[[Tensor, Tensor], Tensor]
"""``per_item(outputs, targets)`` -> [items] float64."""

Function = TypeVar("Function", bound=Callable[..., Any])


def item_mean(per_item: PerItem, *, fraction: bool = False, name: str | None = None) -> Metric:
    """Make a metric, the mean over items of ``per_item(outputs, targets)``.

    Parameters
    ----------
    per_item : callable
        Returns [items] values, higher is better.
    fraction : bool
        Whether values lie in [0, 1]; a margin of 1 or more is then an error.
    name : str, optional
        The metric's ``__name__``; default: that of per_item.

    Returns
    -------
    callable
        ``metric(outputs, targets) -> float`` with attributes ``per_item`` and ``fraction``.

    Examples
    --------
    >>> within_one = item_mean(lambda outputs, targets: (outputs - targets).abs() <= 1, fraction=True, name="within")
    >>> within_one(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 2.0]))
    0.5
    """

    def metric(outputs: Tensor, targets: Tensor) -> float:
        return float(per_item(outputs, targets).double().mean())

    metric.__name__ = metric.__qualname__ = getattr(per_item, "__name__", "metric") if name is None else name
    return _marked(per_item=per_item, fraction=fraction)(metric)


def per_item_of(metric: Metric) -> PerItem | None:
    """Return the metric's ``per_item``, None where it has none.

    Examples
    --------
    >>> per_item_of(f1_macro) is None
    True
    """
    function: PerItem | None = getattr(metric, "per_item", None)
    return function


def _marked(**attributes: Any) -> Callable[[Function], Function]:
    def mark(function: Function) -> Function:
        for name, value in attributes.items():
            setattr(function, name, value)
        return function

    return mark


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    predicted, classes = predicted_classes(outputs, targets)
    return _item_means(predicted == classes)


@_marked(per_item=_correct, fraction=True)
def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of items whose class is predicted: the largest logit, the first one of equals.

    An item with several targets counts with its share of right ones. Has ``per_item``.

    Parameters
    ----------
    outputs : [items, ..., classes] float
        Or [items] or [items, 1]: the logit of class 1 of two.
    targets : [items, ...] int
        Class indices from 0.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    return float(_correct(outputs, targets).mean())


def top_k(k: int) -> Metric:
    """Make the metric: share of items whose class is among the k largest logits. Has ``per_item``.

    Parameters
    ----------
    k : int
        1 or more; fewer than the classes.

    Returns
    -------
    metric

    Raises
    ------
    TypeError, ValueError
        When k is no positive int; in the metric, when there are not more than k classes.

    Examples
    --------
    >>> top_k(2)(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]))
    1.0
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    def per_item(outputs: Tensor, targets: Tensor) -> Tensor:
        classes = class_indices(outputs, targets)
        if outputs.ndim != targets.ndim + 1 or outputs.shape[-1] <= k:
            raise ValueError(f"outputs must have more than {k} classes for top_k({k}), got {tuple(outputs.shape)}")
        best = outputs.topk(k, dim=-1).indices
        return _item_means((best == classes.unsqueeze(-1)).any(dim=-1))

    return item_mean(per_item, fraction=True, name=f"top_{k}")


@_marked(fraction=True)
def f1_macro(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of ``F1 = 2 TP / (2 TP + FP + FN)``, over the classes that occur or are predicted.

    Parameters
    ----------
    outputs : [items, ..., classes] float
        Or [items] or [items, 1]: the logit of class 1 of two.
    targets : [items, ...] int

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> round(f1_macro(torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]]), torch.tensor([1, 0, 0])), 4)
    0.6667
    """
    predicted, classes = (part.flatten() for part in predicted_classes(outputs, targets))
    count = int(torch.maximum(predicted.max(), classes.max())) + 1
    hits = torch.bincount(classes[predicted == classes], minlength=count).double()
    total = torch.bincount(classes, minlength=count) + torch.bincount(predicted, minlength=count)
    present = total > 0
    return float((2 * hits[present] / total[present]).mean())


@_marked(fraction=True)
def auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve for two classes: ``P(score of a 1 > score of a 0) + P(equal) / 2``.

    Parameters
    ----------
    outputs : [items, 2], [items, 1] or [items] float
        Two logits (their difference is the score) or the score of class 1.
    targets : [items] int
        0 or 1, both present.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        When targets are not classes 0 and 1, or one of the two is absent.

    Examples
    --------
    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    classes = class_indices(outputs, targets).flatten()
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        scores = (outputs[:, 1].double() - outputs[:, 0].double()).flatten()
    elif outputs.numel() == classes.numel():
        scores = outputs.double().flatten()
    else:
        raise ValueError(f"outputs must be logits of 2 classes for auc, got {tuple(outputs.shape)}")
    positives = int(classes.sum())
    negatives = classes.numel() - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"targets must hold both classes for auc, got {positives} ones and {negatives} zeros")
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(scores.numpy(force=True)))
    rank_sum = float(ranks[classes.cpu() == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _neg_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return -_item_means(_residuals(outputs, targets).square())


@_marked(per_item=_neg_squared)
def neg_mse(outputs: Tensor, targets: Tensor) -> float:
    """Mean squared error with the sign changed, so that higher is better. Has ``per_item``.

    Parameters
    ----------
    outputs, targets : [items, ...] float
        Of one shape; [items] and [items, 1] go together.

    Returns
    -------
    float, 0 or less

    Raises
    ------
    ValueError
        When the shapes differ.

    Examples
    --------
    >>> neg_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    -2.0
    """
    return float(_neg_squared(outputs, targets).mean())


def _neg_absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return -_item_means(_residuals(outputs, targets).abs())


@_marked(per_item=_neg_absolute)
def neg_mae(outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute error with the sign changed, so that higher is better. Has ``per_item``.

    Parameters
    ----------
    outputs, targets : [items, ...] float
        Of one shape; [items] and [items, 1] go together.

    Returns
    -------
    float, 0 or less

    Raises
    ------
    ValueError
        When the shapes differ.

    Examples
    --------
    >>> neg_mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    -1.0
    """
    return float(_neg_absolute(outputs, targets).mean())


def _log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    classes = class_indices(outputs, targets)
    logits = outputs.double()
    if outputs.ndim == classes.ndim + 1 and outputs.shape[-1] > 1:
        picked = logits.log_softmax(dim=-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    else:
        logits = logits.reshape(classes.shape)
        picked = torch.nn.functional.logsigmoid(torch.where(classes == 1, logits, -logits))
    return _item_means(picked)


@_marked(per_item=_log_likelihood)
def log_likelihood(outputs: Tensor, targets: Tensor) -> float:
    """Mean log probability of the right class: cross-entropy with the sign changed, in nats. Has ``per_item``.

    Parameters
    ----------
    outputs : [items, ..., classes] float
        Or [items] or [items, 1]: the logit of class 1 of two.
    targets : [items, ...] int

    Returns
    -------
    float, 0 or less

    Raises
    ------
    TypeError, ValueError
        When targets are no class indices for these outputs.

    Examples
    --------
    >>> round(log_likelihood(torch.zeros(3, 2), torch.tensor([0, 1, 0])), 4)
    -0.6931
    """
    return float(_log_likelihood(outputs, targets).mean())


def _residuals(outputs: Tensor, targets: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise TypeError(f"outputs and targets must be tensors, got {type(outputs).__name__}, {type(targets).__name__}")
    column = {tuple(outputs.shape), tuple(targets.shape)} == {(len(targets),), (len(targets), 1)}
    if outputs.shape != targets.shape and not column:
        raise ValueError(f"outputs must have the shape of targets, {tuple(targets.shape)}, got {tuple(outputs.shape)}")
    return outputs.double().reshape(targets.shape) - targets.double()


def _item_means(values: Tensor) -> Tensor:
    return values.double().flatten(1).mean(dim=1) if values.ndim > 1 else values.double()
