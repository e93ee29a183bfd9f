"""Pruning: score the weights, find which to remove, mask them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import kernels, masks, scores
from .scores.running import wide
from .selection import Pattern, check_weights, count_bad, listed, owners, place_of, select_weights


@dataclass(frozen=True)
class Unstructured:
    """Any single weight may be pruned.

    Examples
    --------
    >>> Unstructured()
    Unstructured()
    """


@dataclass(frozen=True)
class LayerPruning:
    """What became of one layer.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weight.
    zeros : int
        Pruned weights.
    total : int
        All weights.

    Examples
    --------
    >>> LayerPruning("fc", (2, 4), 6, 8).sparsity
    0.75
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    total: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is pruned."""
        return self.zeros / self.total if self.total else 0.0


@dataclass(frozen=True)
class PruneSummary:
    """What :func:`prune_` did, layer by layer; printed, it is a table.

    Attributes
    ----------
    layers : tuple of LayerPruning

    Examples
    --------
    >>> print(PruneSummary((LayerPruning("fc", (2, 4), 6, 8),)))
    fc   (2, 4)             6 of            8 pruned   75.00%
    all                     6 of            8 pruned   75.00%
    """

    layers: tuple[LayerPruning, ...]

    @property
    def zeros(self) -> int:
        """Pruned weights of all layers."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> int:
        """All weights of these layers."""
        return sum(layer.total for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of these weights that is pruned."""
        return self.zeros / self.total if self.total else 0.0

    def __str__(self) -> str:
        rows = [(layer.name, str(layer.shape), layer.zeros, layer.total, layer.sparsity) for layer in self.layers]
        rows.append(("all", "", self.zeros, self.total, self.sparsity))
        width, shape_width = (max(len(str(row[i])) for row in rows) for i in (0, 1))
        return "\n".join(
            f"{name:<{width}}  {shape:<{shape_width}}  {zeros:>12,} of {total:>12,} pruned  {sparsity:7.2%}"
            for name, shape, zeros, total, sparsity in rows
        )


def prune_(
    model: nn.Module,
    sparsity: float | None = None,
    threshold: float | None = None,
    score: scores.Score = scores.magnitude,
    pattern: Unstructured = Unstructured(),
    across_layers: bool = True,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> PruneSummary:
    """Prune the weights of a model, in place, by masks that survive any training.

    These are the weights of Linear, Conv1d and Conv2d layers, and each of the weights that nn.LSTM, nn.GRU, nn.RNN,
    their cells and nn.MultiheadAttention hold, by the names of parameters: ``"lstm.weight_hh_l0"``,
    ``"attention.in_proj_weight"``. Those of an nn.Embedding or nn.EmbeddingBag are pruned only where ``include`` holds
    its exact name or its type.

    With ``sparsity``, exactly ``round(sparsity * total)`` weights are removed, those with the smallest scores over
    all layers together or, with ``across_layers=False``, in each; of equal scores, those with the smaller flat index in
    the order of the layers. With ``threshold``: ``w' = w * 1[score > threshold]`` (Han et al. 2015).

    Weights that are pruned already stay pruned and count: pruning to 0.5 and then to 0.8 gives 0.8. A weight that
    several layers share is pruned and counted once, under its first name. Masks are dropped by ``finalize_``.

    Parameters
    ----------
    model : Module
    sparsity : float, optional
        Fraction of the weights to prune, from 0 to below 1. Give either this or ``threshold``.
    threshold : float, optional
        Score up to which a weight is pruned, 0 or more.
    score : callable
        ``score(model, layers) -> dict`` of scores in the shape of each weight, higher = keep; see ``pc.scores``.
    pattern : Unstructured
        Which weights are pruned together.
    across_layers : bool
        Whether scores compete over all layers, or within each layer. Has no effect with ``threshold``.
    include, exclude : list of str or module types, optional
        Name patterns such as ``"encoder.*"``, or types, of the layers to prune; all of them by default. A weight of a
        layer that holds several is matched by its own name and by its layer's.

    Returns
    -------
    PruneSummary
        Name, shape, pruned weights, all weights and sparsity of each layer.

    Raises
    ------
    TypeError, ValueError
        When an argument is out of range, no layer matches, or weights or scores hold NaN or infinity (all such layers
        are named). The model is unchanged then.

    Warns
    -----
    UserWarning
        When a layer loses all of its weights.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> summary = prune_(model, sparsity=0.75)
    >>> summary.zeros, summary.total
    (30, 40)
    >>> print(prune_(nn.LSTM(4, 2), sparsity=0.75, across_layers=False))
    weight_ih_l0  (8, 4)            24 of           32 pruned   75.00%
    weight_hh_l0  (8, 2)            12 of           16 pruned   75.00%
    all                             36 of           48 pruned   75.00%
    """
    _check_arguments(sparsity, threshold, score, pattern, across_layers)
    by_magnitude = score is scores.magnitude
    layers = select_weights(model, include, exclude)
    weights = check_weights(layers)
    kept = {name: masks.mask_of(*place_of(layer)) for name, layer in layers.items()}
    already = {name: None if mask is None else ~mask for name, mask in kept.items()}
    # Magnitudes are compared as |w| while they are needed, so that no copy of all weights is made.
    values: dict[str, Tensor] = dict(weights) if by_magnitude else _checked(score(model, dict(layers)), weights)
    if threshold is not None:
        pruned = {name: _up_to(value, threshold, by_magnitude, already[name]) for name, value in values.items()}
    else:
        assert sparsity is not None
        groups = [list(layers)] if across_layers else [[name] for name in layers]
        pruned = {}
        for names in groups:
            count = round(float(sparsity) * sum(weights[name].numel() for name in names))
            found = _smallest([values[name] for name in names], [already[name] for name in names], count, by_magnitude)
            pruned.update(zip(names, found, strict=True))
    return _apply_(model, weights, pruned)


def _apply_(model: nn.Module, weights: dict[str, nn.Parameter], pruned: dict[str, Tensor]) -> PruneSummary:
    rows = []
    # Attention never calls its output projection.
    readers: dict[nn.Module, nn.Module] = {
        m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    }
    for name, weight in weights.items():
        zeros = _count(pruned[name])
        rows.append(LayerPruning(name, tuple(weight.shape), zeros, weight.numel()))
        if zeros:
            kept = ~pruned[name]
            for module, attribute in owners(model, weight):
                masks.attach_(module, attribute, kept, readers.get(module))
    empty = [row.name for row in rows if row.zeros == row.total > 0]
    if empty:
        warnings.warn(
            f"these layers lost all of their weights: {empty}; exclude them, prune less, or use across_layers=False",
            stacklevel=3,
        )
    return PruneSummary(tuple(rows))


def _smallest(values: list[Tensor], already: list[Tensor | None], count: int, by_magnitude: bool) -> list[Tensor]:
    """Return masks, True = pruned: those pruned already, and as many of the smallest others as make up the count."""
    missing = count - sum(_count(known) for known in already if known is not None)
    if missing <= 0:
        return [_known(value, known) for value, known in zip(values, already, strict=True)]
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    # What is pruned already counts as the smallest, so that nothing else is taken in its place.
    signed = not by_magnitude and any(value.numel() and float(value.min()) < 0 for value in values)
    lowest = -math.inf if signed else 0.0
    values = [
        value.detach() if known is None else value.detach().masked_fill(known, lowest)
        for value, known in zip(values, already, strict=True)
    ]
    key = _key(by_magnitude, dtype)
    limit = _kth(values, count, key, dtype, signed)
    pruned, ties = [], []
    for value, known in zip(values, already, strict=True):
        keys = key(value)
        below, tied = (keys < limit).contiguous(), keys == limit
        if known is not None:
            below |= known
            tied &= ~known
        pruned.append(below)
        ties.append(tied)
    missing = count - sum(map(_count, pruned))
    for mask, tied in zip(pruned, ties, strict=True):
        first = tied.reshape(-1).nonzero()[:missing, 0] if missing else tied.new_empty(0, dtype=torch.int64)
        mask.view(-1)[first] = True
        missing -= len(first)
    return pruned


def _known(value: Tensor, known: Tensor | None) -> Tensor:
    return torch.zeros(value.shape, dtype=torch.bool, device=value.device) if known is None else known


def _count(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.cpu().numpy()))


def _key(by_magnitude: bool, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What weights are compared by: the scores, or the magnitudes, in a dtype that holds all of them exactly."""
    if by_magnitude:
        return lambda value: value.to(dtype).abs()
    return lambda value: value.to(dtype)


def _kth(values: list[Tensor], k: int, key: Callable[[Tensor], Tensor], dtype: torch.dtype, signed: bool) -> float:
    """Return the exact k-th smallest key (from 1) over tensors; the float32 ones are not joined for it."""
    if dtype == torch.float32 and not signed:
        return kernels.kth_magnitude([value.cpu() for value in values], k)
    joined = torch.cat([key(value).reshape(-1) for value in values]).cpu().numpy()
    return float(np.partition(joined, k - 1)[k - 1])


def _up_to(value: Tensor, threshold: float, by_magnitude: bool, known: Tensor | None) -> Tensor:
    """Mask of the keys up to a threshold, compared exactly; and of what is pruned already."""
    keys = wide(value).abs() if by_magnitude else wide(value)
    if keys.dtype == torch.float32:  # compare with the largest float32 that is not above the threshold
        limit = np.float32(threshold)
        threshold = float(np.nextafter(limit, np.float32(-1)) if float(limit) > threshold else limit)
    below = keys <= threshold
    return below if known is None else below | known


def _checked(result: object, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Check what a score function returned: one finite floating tensor of the right shape for each layer."""
    if not isinstance(result, dict):
        raise TypeError(f"score must return a dict of tensors, got {type(result).__name__}")
    if set(result) != set(weights):
        missing, unknown = sorted(set(weights) - set(result)), sorted(map(str, set(result) - set(weights)))
        raise ValueError(
            f"score must return scores of exactly the given layers, got none of {missing} and {unknown} more"
        )
    faults = {}
    for name, weight in weights.items():
        value = result[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            faults[name] = f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}, not a float tensor"
        elif value.shape != weight.shape:
            faults[name] = f"shape {tuple(value.shape)} for a weight of shape {tuple(weight.shape)}"
        elif bad := count_bad(value):
            faults[name] = f"{bad} NaN or infinite entries"
    if faults:
        raise ValueError(f"score must be finite and in the shape of each weight, got {listed(faults)}")
    return {name: result[name].detach().to(weight.device) for name, weight in weights.items()}


def _check_arguments(
    sparsity: float | None, threshold: float | None, score: object, pattern: object, across_layers: object
) -> None:
    if (sparsity is None) == (threshold is None):
        raise ValueError(f"exactly one of sparsity and threshold must be given, got {sparsity} and {threshold}")
    for name, value in (("sparsity", sparsity), ("threshold", threshold)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating))
        ):
            raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be 0 or more and finite, got {threshold}")
    if not callable(score):
        raise TypeError(f"score must be a function of (model, layers), got {type(score).__name__}")
    if not isinstance(pattern, Unstructured):
        raise TypeError(f"pattern must be Unstructured(), got {pattern!r}")
    if not isinstance(across_layers, bool):
        raise TypeError(f"across_layers must be a bool, got {type(across_layers).__name__}")
