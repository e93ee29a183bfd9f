"""The verb: score the weights, find which to remove, mask them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from .. import masks, scores
from ..selection import Pattern, check_weights, count_bad, listed, owners, place_of, select_weights
from .grouped import smallest_blocks, smallest_of_nm
from .patterns import NM, Structure, Unstructured
from .smallest import count_true, smallest, up_to
from .summary import LayerPruning, PruneSummary

_ANY = Unstructured()


def prune_(
    model: nn.Module,
    sparsity: float | None = None,
    threshold: float | None = None,
    score: scores.Score = scores.magnitude,
    pattern: Structure = _ANY,
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

    ``pattern`` says which weights go together. ``pc.Blocks``, ``pc.Rows`` and ``pc.Columns`` are removed by their mean
    scores, in the number that brings the pruned weights closest to ``sparsity``, or where the mean is not above
    ``threshold``. ``pc.NM(n, m)`` removes all but the n largest of each m consecutive inputs, and takes no ``sparsity``
    or one of up to ``1 - n / m``: less removes the smallest of those (steps of a gradual schedule).

    Weights that are pruned already stay pruned and count: pruning to 0.5 and then to 0.8 gives 0.8. A weight that
    several layers share is pruned and counted once, under its first name. Masks are dropped by ``finalize_``.

    Parameters
    ----------
    model : Module
    sparsity : float, optional
        Fraction of the weights to prune, from 0 to below 1. Give either this or ``threshold`` (with NM, or neither).
    threshold : float, optional
        Score up to which a weight is pruned, 0 or more.
    score : callable
        ``score(model, layers) -> dict`` of scores in the shape of each weight, higher = keep; see ``pc.scores``.
    pattern : Unstructured, Blocks, Rows, Columns or NM
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
    >>> import pycompress as pc
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> summary = prune_(model, sparsity=0.75)
    >>> summary.zeros, summary.total
    (30, 40)
    >>> print(prune_(nn.LSTM(4, 2), sparsity=0.75, across_layers=False))
    weight_ih_l0  (8, 4)            24 of           32 pruned   75.00%
    weight_hh_l0  (8, 2)            12 of           16 pruned   75.00%
    all                             36 of           48 pruned   75.00%
    >>> prune_(nn.Linear(8, 8), sparsity=0.5, pattern=pc.Blocks(4, 2)).zeros
    32
    >>> prune_(nn.Conv2d(4, 8, 3), pattern=pc.NM(2, 4)).sparsity
    0.5
    """
    _check_arguments(sparsity, threshold, score, pattern, across_layers)
    by_magnitude = score is scores.magnitude
    layers = select_weights(model, include, exclude)
    weights = check_weights(layers)
    kept = {name: masks.mask_of(*place_of(layer)) for name, layer in layers.items()}
    already = {name: None if mask is None else ~mask for name, mask in kept.items()}
    # Magnitudes are compared as |w| while they are needed, so that no copy of all weights is made.
    values: dict[str, Tensor] = dict(weights) if by_magnitude else _checked(score(model, dict(layers)), weights)
    pruned: dict[str, Tensor] = {}
    for names in [list(layers)] if across_layers else [[name] for name in layers]:
        total = sum(weights[name].numel() for name in names)
        count = None if sparsity is None else round(float(sparsity) * total)
        given = [values[name] for name in names], [already[name] for name in names]
        found = _found(*given, pattern, by_magnitude, count, threshold)
        pruned.update(zip(names, found, strict=True))
    return _apply_(model, weights, pruned)


def _found(
    values: list[Tensor],
    already: list[Tensor | None],
    pattern: Structure,
    by_magnitude: bool,
    count: int | None,
    threshold: float | None,
) -> list[Tensor]:
    """Masks of weights that compete with each other, True = pruned."""
    if isinstance(pattern, NM):
        return smallest_of_nm(values, already, pattern, by_magnitude, count, threshold)
    if not isinstance(pattern, Unstructured):
        return smallest_blocks(values, already, pattern, by_magnitude, count, threshold)
    if threshold is not None:
        pairs = zip(values, already, strict=True)
        return [up_to(value, threshold, by_magnitude, known) for value, known in pairs]
    assert count is not None
    return smallest(values, already, count, by_magnitude)


def _apply_(model: nn.Module, weights: dict[str, nn.Parameter], pruned: dict[str, Tensor]) -> PruneSummary:
    rows = []
    # Attention never calls its output projection.
    readers: dict[nn.Module, nn.Module] = {
        m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    }
    for name, weight in weights.items():
        zeros = count_true(pruned[name])
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
    if not isinstance(pattern, Structure):
        raise TypeError(f"pattern must be Unstructured, Blocks, Rows, Columns or NM, got {pattern!r}")
    if sparsity is None and threshold is None and isinstance(pattern, NM):
        sparsity = pattern.sparsity
    if (sparsity is None) == (threshold is None):
        raise ValueError(f"exactly one of sparsity and threshold must be given, got {sparsity} and {threshold}")
    for name, value in (("sparsity", sparsity), ("threshold", threshold)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating))
        ):
            raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    if sparsity is not None and isinstance(pattern, NM) and sparsity > pattern.sparsity + 1e-9:
        raise ValueError(f"sparsity must be at most 1 - n / m = {pattern.sparsity:.6g} with {pattern}, got {sparsity}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be 0 or more and finite, got {threshold}")
    if not callable(score):
        raise TypeError(f"score must be a function of (model, layers), got {type(score).__name__}")
    if not isinstance(across_layers, bool):
        raise TypeError(f"across_layers must be a bool, got {type(across_layers).__name__}")
