"""Cross-validation of a whole pipeline: each item is judged by models that never saw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..calls import applied, real
from ..data import Data, Tree, gather, length, pick
from ..kernels.arrays import flag
from ..progress import track
from .bootstrap import Interval, group_members
from .cost import Cost, measure_cost, measure_latency
from .metrics import Metric, accuracy
from .predictions import predict_each
from .statistics import Decision
from .verdict import Verdict, check_margin, check_options, compare_outputs

Pipeline = Callable[[tuple[Tree, Tree], int], tuple[nn.Module, nn.Module]]
"""``pipeline(train, seed) -> (original, compressed)``; train is a pair ``(inputs, targets)``."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class LeaveOneOut:
    """As many folds as items: each item alone is held out (with groups: each group).

    Examples
    --------
    >>> LeaveOneOut()
    LeaveOneOut()
    """


@dataclass(frozen=True)
class Fold:
    """One fold: models that its pipeline made, on the items held out.

    Attributes
    ----------
    seed : int
        What the pipeline was given.
    items : int
        Items held out.
    original, compressed : float or None
        The metric on them; None where the metric has no value for so few items.
    original_bytes, compressed_bytes : int
        Size on disk.

    Examples
    --------
    >>> Fold(seed=0, items=20, original=0.95, compressed=0.9, original_bytes=1000, compressed_bytes=100).compressed
    0.9
    """

    seed: int
    items: int
    original: float | None
    compressed: float | None
    original_bytes: int
    compressed_bytes: int


@dataclass(frozen=True)
class CrossValidation:
    """What :func:`cross_validate` returns.

    Attributes
    ----------
    verdict : Verdict
        Of the held-out predictions of all folds together: each item counts once. Its cost has the median bytes and
        parameters over the folds, and the latency of the first fold's models where that was asked for.
    folds : tuple of Fold

    Examples
    --------
    >>> outputs = torch.eye(2).repeat(50, 1)
    >>> CrossValidation(compare_outputs(outputs, outputs, torch.arange(2).repeat(50)), ()).items
    100
    """

    verdict: Verdict
    folds: tuple[Fold, ...]

    @property
    def items(self) -> int:
        """Items, all of them held out once."""
        return self.verdict.items

    @property
    def difference(self) -> float:
        """Of the pooled metric, compressed - original."""
        return self.verdict.difference

    @property
    def interval(self) -> Interval:
        """Of the difference."""
        return self.verdict.interval

    @property
    def decision(self) -> Decision:
        """Of the pooled predictions."""
        return self.verdict.decision

    @property
    def summary(self) -> str:
        """One line."""
        return f"{len(self.folds)} folds, held-out predictions pooled: {self.verdict.summary}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        return {"verdict": self.verdict.to_dict(), "folds": [asdict(fold) for fold in self.folds]}


def cross_validate(
    pipeline: Pipeline,
    data: Data,
    folds: int | LeaveOneOut = 5,
    *,
    stratify: bool | None = None,
    groups: ArrayLike | None = None,
    metric: Metric = accuracy,
    margin: float = 0.01,
    confidence: float = 0.95,
    resamples: int | None = None,
    batch_size: int = 256,
    latency: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> CrossValidation:
    """Repeat a whole pipeline in each fold and compare the two models on the items that it did not see.

    Everything that learns from data (training, compression, fine-tuning, calibration, early stopping) belongs inside
    the pipeline: it gets copies of the training items of the fold and nothing else. The held-out predictions of all
    folds are pooled, so that each item counts once. The interval says how the result would change with other items; how
    it would change with other training sets is not in it (Bengio and Grandvalet 2004, JMLR 5:1089): look at the folds.

    Parameters
    ----------
    pipeline : callable
        ``pipeline(train, seed) -> (original, compressed)`` with ``train = (inputs, targets)`` and another seed in each
        fold: ``seed + fold``. torch's random numbers are seeded with it as well, and go on as before afterwards.
    data : pair, Dataset or batches
        Gathered in memory.
    folds : int or LeaveOneOut
        2 up to the number of items (of groups).
    stratify : bool, optional
        Whether each fold gets its share of each class. Default: when targets are class indices.
    groups : [items], optional
        Label of the group of each item: a group is never split, and intervals take groups as units.
    metric, margin, confidence, resamples, batch_size
        As in :func:`pycompress.validate`.
    latency : bool
        Whether to measure latency, with the first fold's models.
    seed : int
        Of the folds, the pipelines and the bootstrap.
    progress : bool
        Whether to show progress.

    Returns
    -------
    CrossValidation

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, the pipeline returns something else than two models, or their
        outputs have different shapes or hold NaN.

    Examples
    --------
    >>> def pipeline(train, seed):
    ...     inputs, targets = train
    ...     model = nn.Linear(2, 2)
    ...     return model, model
    >>> data = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
    >>> cross_validate(pipeline, data, folds=3, margin=0.1).decision
    'non-inferior'
    """
    if not callable(pipeline):
        raise TypeError(f"pipeline must be a function of (train, seed), got {type(pipeline).__name__}")
    check_margin(margin, metric)
    check_options(confidence, resamples, batch_size, seed)
    flag(latency, "latency")
    inputs, targets = gather(data)
    parts = fold_indices(targets, folds, stratify=stratify, groups=groups, seed=seed)
    pooled: dict[str, Tensor] = {}
    rows: list[Fold] = []
    costs: list[Cost] = []
    everything = np.arange(length(targets))
    for number, held_out in enumerate(track(parts, "cross-validating", progress)):
        inside, outside = torch.from_numpy(np.setdiff1d(everything, held_out)), torch.from_numpy(held_out)
        train = pick(inputs, inside), pick(targets, inside)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((seed + number) % 2**63)
            original, compressed = _models(pipeline(train, seed + number), number)
        test = pick(inputs, outside), pick(targets, outside)
        models = {"original": original, "compressed": compressed}
        outputs, _ = predict_each(models, test, batch_size, name=f"fold {number}")
        for name, part in outputs.items():
            whole = pooled.setdefault(name, part.new_empty((len(everything), *part.shape[1:])))
            if part.shape[1:] != whole.shape[1:]:
                raise ValueError(
                    f"pipeline must make models of one output shape, {tuple(whole.shape[1:])}, "
                    f"got {tuple(part.shape[1:])} for {name} in fold {number}"
                )
            whole[outside] = part.to(whole.dtype)
        timed = measure_latency(original, compressed, test[0]) if latency and number == 0 else ()
        costs.append(measure_cost(original, compressed, timed))
        rows.append(
            Fold(
                seed=seed + number,
                items=len(held_out),
                original=_value(metric, outputs["original"], test[1]),
                compressed=_value(metric, outputs["compressed"], test[1]),
                original_bytes=costs[-1].original_bytes,
                compressed_bytes=costs[-1].compressed_bytes,
            )
        )
    verdict = compare_outputs(
        pooled["original"],
        pooled["compressed"],
        targets,
        metric=metric,
        margin=margin,
        groups=groups,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return CrossValidation(replace(verdict, cost=_median_cost(costs)), tuple(rows))


def fold_indices(
    targets: Tree,
    folds: int | LeaveOneOut,
    *,
    stratify: bool | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> list[Indices]:
    """Cut items into folds at random: the indices that each fold holds out, ascending.

    Sizes differ by at most one item, and when stratified so do the numbers of each class. Groups are handed out whole,
    the largest first, each to the fold that it leaves most even in size (when stratified: in classes).

    Parameters
    ----------
    targets : [items]
    folds, stratify, groups, seed
        As in :func:`cross_validate`.

    Returns
    -------
    list of [items held out] int64

    Raises
    ------
    TypeError, ValueError
        When folds is out of range, or stratify is True and targets are no class indices.

    Examples
    --------
    >>> [part.tolist() for part in fold_indices(torch.tensor([0, 0, 1, 1]), 2, seed=1)]
    [[0, 2], [1, 3]]
    """
    items = length(targets)
    members = [np.array([i]) for i in range(items)] if groups is None else group_members(groups, items)
    if isinstance(folds, LeaveOneOut):
        return [np.asarray(index, np.int64) for index in members]
    if isinstance(folds, bool) or not isinstance(folds, int):
        raise TypeError(f"folds must be an int or LeaveOneOut(), got {type(folds).__name__}")
    if not 2 <= folds <= len(members):
        of = "items" if groups is None else "groups"
        raise ValueError(f"folds must be from 2 to the number of {of}, {len(members)}, got {folds}")
    if stratify is not None:
        flag(stratify, "stratify")
    are_classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    if stratify and not are_classes:
        raise ValueError("stratify must be False or None unless targets are class indices [items] of an integer type")
    labels = np.zeros(items, np.int64)
    if are_classes and stratify is not False:
        labels = np.unique(targets.numpy(force=True), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(items)
        order = order[np.argsort(labels[order], kind="stable")]
        return [np.sort(order[start::folds]) for start in range(folds)]
    counts = np.stack([np.bincount(labels[index], minlength=int(labels.max()) + 1) for index in members])
    shares = counts / counts.sum(axis=0)
    order = rng.permutation(len(members))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, shares.shape[1]))
    held: list[list[Any]] = [[] for _ in range(folds)]
    for group in order:
        # What the sum of squares over folds grows by; an empty fold wins a draw.
        growth = ((filled + shares[group]) ** 2 - filled**2).sum(axis=1)
        fold = min(range(folds), key=lambda f: (round(float(growth[f]), 12), len(held[f])))
        filled[fold] += shares[group]
        held[fold].append(members[group])
    return [np.sort(np.concatenate(parts)) for parts in held]


def _models(made: Any, number: int) -> tuple[nn.Module, nn.Module]:
    pair = isinstance(made, tuple) and len(made) == 2 and all(isinstance(model, nn.Module) for model in made)
    if not pair:
        kinds = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        raise TypeError(f"pipeline must return two models (original, compressed), got {kinds} in fold {number}")
    return made[0], made[1]


def _value(metric: Metric, outputs: Tensor, targets: Tree) -> float | None:
    try:
        value = real(applied(metric, "metric", outputs, targets), "metric")
    except ValueError:  # of few items, some metrics have no value: the pooled one counts
        return None
    return value if np.isfinite(value) else None


def _median_cost(costs: list[Cost]) -> Cost:
    names = ("original_bytes", "compressed_bytes", "original_parameters", "compressed_parameters")
    middle = {name: round(float(np.median([getattr(cost, name) for cost in costs]))) for name in names}
    return Cost(**middle, latency=costs[0].latency)
