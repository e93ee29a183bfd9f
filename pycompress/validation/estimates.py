"""Numbers with intervals: which interval a value or a difference gets, as :mod:`.statistics` says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import Floats, Interval, checked_values, group_members, mean_interval, metric_interval
from .statistics import is_binary, tango_interval, unseen_share, wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and how the interval was made.

    Examples
    --------
    >>> Estimate(0.5, (0.4, 0.6), "Wilson score").interval
    (0.4, 0.6)
    """

    value: float
    interval: Interval
    method: str


def share_estimate(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Estimate:
    """Mean of per-item values: Wilson's interval where all are 0 or 1, else :func:`.bootstrap.mean_interval`.

    Parameters
    ----------
    values : [items] float64
    confidence : float
    resamples, seed, groups
        As in :func:`.bootstrap.mean_interval`. With groups Wilson's interval is not used.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> share_estimate([1, 1, 0, 1]).method
    'Wilson score'
    """
    array = checked_values(values, "values")
    if is_binary(array) and groups is None:
        interval = wilson_interval(int(array.sum()), array.size, confidence)
        return Estimate(float(array.mean()), interval, "Wilson score")
    low, high = mean_interval(array, confidence=confidence, resamples=resamples, seed=seed, groups=groups)
    if array.min() >= 0 and array.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(float(array.mean()), (low, high), "bootstrap")


def paired_difference(
    original: ArrayLike,
    compressed: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Estimate:
    """Mean of ``compressed - original`` over items, with the interval for a verdict.

    Tango's score interval where all values are 0 or 1, else :func:`.bootstrap.mean_interval` of the differences.

    Parameters
    ----------
    original, compressed : [items] float64
        Values of the same items.
    confidence : float
    resamples, seed, groups
        As in :func:`.bootstrap.mean_interval`. With groups Tango's interval is not used.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        When the shapes differ or there are fewer than 2 items.

    Examples
    --------
    >>> estimate = paired_difference([1, 1, 1, 0], [1, 1, 1, 1])
    >>> estimate.value, estimate.method
    (0.25, 'Tango score')
    """
    first, second = checked_values(original, "original"), checked_values(compressed, "compressed")
    if first.shape != second.shape:
        raise ValueError(f"compressed must have the shape of original, {first.shape}, got {second.shape}")
    differences = second - first
    value = float(differences.mean())
    if is_binary(first) and is_binary(second) and groups is None:
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        return Estimate(value, tango_interval(gained, lost, first.size, confidence), "Tango score")
    unseen = max(float(np.abs(first).max()), float(np.abs(second).max()))
    interval = mean_interval(
        differences, confidence=confidence, resamples=resamples, seed=seed, groups=groups, unseen=unseen
    )
    return Estimate(value, interval, "bootstrap")


class Estimates(NamedTuple):
    """The values of two models and their difference, compressed - original."""

    original: Estimate
    compressed: Estimate
    difference: Estimate


def item_estimates(
    original: ArrayLike,
    compressed: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Estimates:
    """Means of both models' per-item values and their difference: :func:`share_estimate`, :func:`paired_difference`.

    Examples
    --------
    >>> item_estimates([1, 1, 1, 0], [1, 1, 1, 1]).difference.value
    0.25
    """
    single = [
        share_estimate(values, confidence=confidence, resamples=resamples, seed=seed, groups=groups)
        for values in (original, compressed)
    ]
    difference = paired_difference(
        original, compressed, confidence=confidence, resamples=resamples, seed=seed, groups=groups
    )
    return Estimates(single[0], single[1], difference)


def metric_estimates(
    values: Callable[[NDArray[np.int64]], tuple[float, float]],
    items: int,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Estimates:
    """Values of a metric that is no mean over items, from calling it on samples of the items.

    Intervals are those of :func:`.bootstrap.metric_interval`. One that no sample changed is widened to +- the largest
    plausible share of items unlike those seen times the larger absolute value.

    Parameters
    ----------
    values : callable
        ``values(indices)`` -> (of original, of compressed), for the items with these indices ([n] int64).
    items : int
        2 or more.
    confidence, resamples, seed, groups
        As in :func:`.bootstrap.metric_interval`.

    Returns
    -------
    Estimates

    Raises
    ------
    ValueError
        When a value is not finite, or as :func:`.bootstrap.metric_interval`.

    Examples
    --------
    >>> data = np.arange(100.0)
    >>> estimates = metric_estimates(lambda i: (float(np.median(data[i])), float(np.median(data[i]))), 100)
    >>> low, high = estimates.difference.interval
    >>> f"{low:.2f} {high:.2f}"
    '-1.79 1.79'
    """
    first, second = values(np.arange(items))
    for name, value in (("original", first), ("compressed", second)):
        if not math.isfinite(value):
            raise ValueError(f"metric must return a finite number, got {value} for {name}")

    def statistic(indices: NDArray[np.int64]) -> list[float]:
        one, two = values(indices)
        return [one, two, two - one]

    ends = metric_interval(statistic, items, confidence=confidence, resamples=resamples, seed=seed, groups=groups)
    units = items if groups is None else len(group_members(groups, items))
    reach = unseen_share(units, confidence) * max(abs(first), abs(second))
    return Estimates(
        _widened(first, ends[0], reach), _widened(second, ends[1], reach), _widened(second - first, ends[2], reach)
    )


def _widened(value: float, ends: Floats, reach: float) -> Estimate:
    low, high = float(ends[0]), float(ends[1])
    return Estimate(value, (low, high) if low < high else (low - reach, high + reach), "bootstrap")
