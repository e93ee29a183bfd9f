"""What a comparison of two models says: its numbers and its decision."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..calls import applied, described, real
from ..data import length, pick
from .arguments import check_between, check_integer
from .bootstrap import Floats, Interval, group_members, mean_interval
from .cost import Cost
from .estimates import Estimate, Estimates, item_estimates, metric_estimates
from .fidelity import Fidelity
from .metrics import Metric, accuracy, per_item_of
from .predictions import Flips, class_indices, expected_calibration_error, flips
from .statistics import Decision, decide, is_binary, mcnemar_exact, normal_quantile, required_items


@dataclass(frozen=True)
class Verdict:
    """A compressed model against its original on the same items.

    Attributes
    ----------
    metric : str
        Name of the metric; higher is better.
    items : int
        Items that both models were run on.
    original, compressed : Estimate
        The metric's ``value``, its ``interval`` and the interval's ``method``.
    difference : float
        compressed - original, a fraction for metrics that are.
    interval : (float, float)
        Two-sided interval of the difference, paired: it decides.
    method : str
        How that interval was made: ``"Tango score"`` or ``"bootstrap"``; see :mod:`pycompress.validation.statistics`.
    bootstrap_interval : (float, float)
        The bootstrap interval of the difference; the same as ``interval`` where that is one.
    confidence : float
        Of all intervals.
    margin : float
        The largest loss that is accepted.
    decision : "non-inferior", "inferior" or "undecided"
        Non-inferior when the interval lies above ``-margin``, inferior when below, undecided otherwise.
    items_needed : int or None
        When undecided: items from the same source that would decide with probability 0.8, should the difference be what
        was seen.
    p_mcnemar : float or None
        Exact McNemar test of "both are right equally often"; None unless each item counts 0 or 1, and with groups.
    agreement : float or None
        Share of predictions that both models share; None where targets are no class indices.
    flips : Flips or None
        Predictions that changed.
    calibration : (float, float) or None
        Expected calibration error of original and compressed; outputs are taken for logits.
    cost : Cost or None
        Bytes on disk, parameters, latency.
    fidelity : Fidelity or None
        Error of each layer's output, worst first.
    external : dict of str to Verdict
        The same comparison on other data sets.
    seed : int
        Of the bootstrap.

    Examples
    --------
    >>> outputs = torch.eye(2).repeat(200, 1)
    >>> verdict = compare_outputs(outputs, outputs, torch.arange(2).repeat(200), margin=0.01)
    >>> verdict.decision, verdict.difference
    ('non-inferior', 0.0)
    """

    metric: str
    items: int
    original: Estimate
    compressed: Estimate
    difference: float
    interval: Interval
    method: str
    bootstrap_interval: Interval
    confidence: float
    margin: float
    decision: Decision
    items_needed: int | None = None
    p_mcnemar: float | None = None
    agreement: float | None = None
    flips: Flips | None = None
    calibration: tuple[float, float] | None = None
    cost: Cost | None = None
    fidelity: Fidelity | None = None
    external: dict[str, Verdict] = field(default_factory=dict)
    seed: int = 0

    @property
    def summary(self) -> str:
        """One line: the metric, its difference with interval, the decision, size and speed."""
        low, high = self.interval
        text = (
            f"{self.metric} {self.original.value:.4g} -> {self.compressed.value:.4g}, "
            f"difference {self.difference:+.4f} ({self.confidence:.0%} interval {low:+.4f} to {high:+.4f}, "
            f"{self.items} items): "
            f"{self.decision} at margin {self.margin:g}"
        )
        if self.items_needed is not None:
            text += f" (about {self.items_needed} items would decide)"
        if self.cost is not None:
            text += f"; {self.cost.size_ratio:.3g}x smaller on disk"
            text += "".join(f", {row.speedup:.3g}x speed at batch {row.batch}" for row in self.cost.latency)
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        sides = {name: _side(getattr(self, name), name, self.cost) for name in ("original", "compressed")}
        speedup: dict[str, Any] = {}
        if self.cost is not None:
            speedup = {
                str(row.batch): {
                    "median": row.speedup,
                    "interval": list(row.speedup_interval),
                    "threads": row.threads,
                    "samples": row.samples,
                }
                for row in self.cost.latency
            }
        return {
            "metric": self.metric,
            "items": self.items,
            **sides,
            "difference": self.difference,
            "interval": list(self.interval),
            "method": self.method,
            "bootstrap_interval": list(self.bootstrap_interval),
            "confidence": self.confidence,
            "margin": self.margin,
            "decision": self.decision,
            "items_needed": self.items_needed,
            "p_mcnemar": self.p_mcnemar,
            "agreement": self.agreement,
            "flips": None if self.flips is None else asdict(self.flips),
            "calibration": None if self.calibration is None else list(self.calibration),
            "speedup": speedup,
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "external": {name: verdict.to_dict() for name, verdict in self.external.items()},
            "seed": self.seed,
        }


def compare_outputs(
    original: Tensor,
    compressed: Tensor,
    targets: Any,
    *,
    metric: Metric = accuracy,
    margin: float = 0.01,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    name: str = "data",
) -> Verdict:
    """Compare the outputs of two models for the same items: the statistical part of :func:`validate`.

    Parameters
    ----------
    original, compressed : [items, ...]
        Outputs.
    targets : [items, ...]
    metric, margin, groups, confidence, resamples, seed
        As in :func:`validate`.
    name : str
        What the data are called in messages.

    Returns
    -------
    Verdict
        Without cost, fidelity and external sets.

    Raises
    ------
    TypeError, ValueError
        As :func:`validate`.

    Examples
    --------
    >>> before, after = torch.eye(2).repeat(50, 1), torch.eye(2).repeat(50, 1).flip(1)
    >>> compare_outputs(before, after, torch.arange(2).repeat(50), margin=0.1).decision
    'inferior'
    """
    check_margin(margin, metric)
    if original.shape != compressed.shape:
        raise ValueError(f"compressed must have outputs {tuple(original.shape)}, got {tuple(compressed.shape)}")
    items = len(original)
    if items < 2 or length(targets) != items:
        raise ValueError(f"{name} must have 2 or more items with one target each, got {items} and {length(targets)}")
    if groups is not None:
        group_members(groups, items)
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed, "groups": groups}
    values = _item_values(metric, {"original": original, "compressed": compressed}, targets, name)
    p_mcnemar = None
    if values is None:

        def both(indices: NDArray[np.int64]) -> tuple[float, float]:
            rows = torch.from_numpy(indices)
            before, after = (
                real(applied(metric, "metric", outputs[rows], pick(targets, rows), name), "metric")
                for outputs in (original, compressed)
            )
            return before, after

        estimates = metric_estimates(both, items, **options)
        bootstrap_interval = estimates.difference.interval
    else:
        before, after = values["original"], values["compressed"]
        estimates = item_estimates(before, after, **options)
        bootstrap_interval = estimates.difference.interval
        if is_binary(before) and is_binary(after) and groups is None:
            bootstrap_interval = mean_interval(after - before, unseen=1.0, **options)
            p_mcnemar = mcnemar_exact(int((after > before).sum()), int((after < before).sum()))
    difference = estimates.difference
    decision = decide(difference.interval, margin)
    changes = _class_changes(original, compressed, targets, metric)
    return Verdict(
        metric=getattr(metric, "__name__", type(metric).__name__),
        items=items,
        original=estimates.original,
        compressed=estimates.compressed,
        difference=difference.value,
        interval=difference.interval,
        method=difference.method,
        bootstrap_interval=bootstrap_interval,
        confidence=confidence,
        margin=margin,
        decision=decision,
        items_needed=_items_needed(estimates, items, margin, confidence) if decision == "undecided" else None,
        p_mcnemar=p_mcnemar,
        **changes,
        seed=seed,
    )


def check_margin(margin: float, metric: Metric) -> None:
    """Raise TypeError or ValueError unless the margin is positive, finite, and below 1 for a metric that is a fraction.

    Examples
    --------
    >>> check_margin(1.5, accuracy)
    Traceback (most recent call last):
        ...
    ValueError: margin must be a fraction below 1 for accuracy (0.01 is one point), got 1.5
    """
    if not callable(metric):
        raise TypeError(f"metric must be a function of (outputs, targets), got {type(metric).__name__}")
    check_between(margin, "margin", 0)
    if getattr(metric, "fraction", False) and margin >= 1:
        name = getattr(metric, "__name__", "this metric")
        raise ValueError(f"margin must be a fraction below 1 for {name} (0.01 is one point), got {margin}")


def check_options(confidence: float, resamples: int | None, batch_size: int, seed: int) -> None:
    """Raise TypeError or ValueError unless the options of a comparison are in range.

    Examples
    --------
    >>> check_options(0.95, None, 256, seed=0)
    """
    check_between(confidence, "confidence", 0, 1)
    if resamples is not None:
        check_integer(resamples, "resamples", 1)
    check_integer(batch_size, "batch_size", 1)
    check_integer(seed, "seed", 0)


def _item_values(metric: Metric, outputs: dict[str, Tensor], targets: Any, data: str) -> dict[str, Floats] | None:
    """Return the metric's value for each item and model; None for a metric that is no mean over items."""
    per_item = per_item_of(metric)
    if per_item is None:
        return None
    values: dict[str, Floats] = {}
    for name, rows in outputs.items():
        result = applied(per_item, "metric", rows, targets, data)
        try:
            array = np.asarray(result.numpy(force=True) if isinstance(result, Tensor) else result, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"metric.per_item must return numbers, got {described(result)}") from None
        if array.shape != (len(rows),):
            raise ValueError(f"metric.per_item must return one value for each of {len(rows)} items, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(
                f"metric must be finite, got {int((~np.isfinite(array)).sum())} items that are not: {name}"
            )
        whole = real(applied(metric, "metric", rows, targets, data), "metric")
        if not math.isclose(whole, array.mean(), rel_tol=1e-5, abs_tol=1e-9):
            raise ValueError(
                f"metric must be the mean of metric.per_item, {array.mean():.6g} for {name}, got {whole:.6g}"
            )
        values[name] = array
    return values


def _class_changes(original: Tensor, compressed: Tensor, targets: Any, metric: Metric) -> dict[str, Any]:
    """Return agreement, flips and calibration where outputs are those of a classifier."""
    if not isinstance(targets, Tensor) or (targets.is_floating_point() and not getattr(metric, "fraction", False)):
        return {}
    try:
        count = class_indices(original, targets).numel()
    except (TypeError, ValueError):  # the targets of some other task, for which these numbers mean nothing
        return {}
    changed = flips(original, compressed, targets)
    return {
        "flips": changed,
        "agreement": 1 - (changed.lost + changed.gained + changed.changed) / count,
        "calibration": (
            expected_calibration_error(original, targets),
            expected_calibration_error(compressed, targets),
        ),
    }


def _items_needed(estimates: Estimates, items: int, margin: float, confidence: float) -> int | None:
    """Items that would decide: the interval's side towards the margin shrinks with the square root of the items."""
    difference, (low, high) = estimates.difference.value, estimates.difference.interval
    if difference == -margin:
        return None
    side = difference - low if difference > -margin else high - difference
    variance = items * (side / normal_quantile(confidence)) ** 2
    return required_items(variance, margin, difference, confidence=confidence)


def _side(estimate: Estimate, name: str, cost: Cost | None) -> dict[str, Any]:
    side: dict[str, Any] = {"value": estimate.value, "interval": list(estimate.interval), "method": estimate.method}
    return side if cost is None else side | cost.side(name)
