"""Resampling: how much a number would change with other items from the same source."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import check_between, check_integer

Interval = tuple[float, float]
Floats = NDArray[np.float64]

_CHUNK = 500_000
_FEW_VALUES = 64
_MANY_UNITS = 20_000
_TOO_MANY_FAILED = 0.05


def mean_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
    unseen: float | None = None,
) -> Interval:
    """Bootstrap interval of a mean that stays honest when values rarely differ, and for few items.

    The percentile bootstrap (Efron 1979) with two changes. *Two pseudo-items* at ``mean +- r``, ``r`` the largest
    deviation from the mean, join the items: as the interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37:479)
    does for paired shares, they stand for what was rare and not seen. *The percentiles are widened* for few items to
    ``Phi(+-t sqrt(n / (n - 1)))``, t the Student quantile with n - 1 degrees of freedom (Hesterberg 2015, Am. Stat.
    69:371). Where all values are equal, ``r`` is ``unseen``. More than 20 000 items of many
    different values are first put at random into 10 000 groups, to draw those.

    Parameters
    ----------
    values : [items] float64
        Finite.
    confidence : float
    resamples : int, optional
        Default 10 000.
    seed : int
    groups : [items], optional
        Label of the group of each item: the groups are the units (linearised ratio of group sums to group sizes).
    unseen : float, optional
        How far an item not seen may lie from the mean when all values are equal; default: the largest absolute value.

    Returns
    -------
    (low, high) : floats

    Raises
    ------
    ValueError
        When there are fewer than 2 items or groups, values are not finite, or an argument is out of range.

    Examples
    --------
    >>> low, high = mean_interval(np.arange(100.0))
    >>> f"{low:.1f} {high:.1f}"
    '43.7 55.4'
    """
    array = checked_values(values, "values")
    units = array if groups is None else _group_values(array, groups)
    if units.size > _MANY_UNITS and np.unique(units).size > _FEW_VALUES:
        units = _group_values(units, np.random.default_rng(seed).permutation(units.size) % (_MANY_UNITS // 2))
    mean = float(array.mean())
    reach = float(np.abs(units - mean).max())
    if reach <= 1e-12 * float(np.abs(units).max()):
        reach = float(np.abs(array).max()) if unseen is None else unseen
    if reach == 0:
        return mean, mean
    extended = np.append(units, (mean - reach, mean + reach))
    means = bootstrap_means(extended, 10_000 if resamples is None else resamples, seed)
    low, high = np.quantile(means, _wide_percentiles(units.size, confidence))
    return float(low), float(high)


def bootstrap_means(values: Floats, resamples: int, seed: int = 0) -> Floats:
    """Return means of ``resamples`` samples drawn with replacement, each of as many items as there are values.

    Few different values: their counts are drawn, which are multinomial; else indices are drawn.

    Parameters
    ----------
    values : [items] float64
    resamples : int
        1 or more.
    seed : int

    Returns
    -------
    [resamples] float64

    Examples
    --------
    >>> bootstrap_means(np.array([0.0, 1.0]), resamples=4, seed=1).shape
    (4,)
    """
    check_integer(resamples, "resamples", 1)
    check_integer(seed, "seed", 0)
    rng = np.random.default_rng(seed)
    items = values.size
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= _FEW_VALUES:
        picked = rng.multinomial(items, counts / items, size=resamples)
        return np.asarray(picked @ distinct / items, np.float64)
    means = np.empty(resamples)
    rows = min(max(1, _CHUNK // items), resamples)
    drawn = np.empty((rows, items))
    for start in range(0, resamples, rows):
        part = drawn[: min(rows, resamples - start)]
        np.take(values, rng.integers(0, items, part.shape), out=part, mode="clip")
        part.mean(axis=1, out=means[start : start + rows])
    return means


def metric_interval(
    statistic: Callable[[NDArray[np.int64]], ArrayLike],
    items: int,
    *,
    confidence: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Floats:
    """Percentile bootstrap intervals of statistics that are no means, widened for few items.

    Parameters
    ----------
    statistic : callable
        Takes the indices of the items of a sample ([n] int64, with repeats), returns [k] floats.
    items : int
        2 or more.
    confidence : float
    resamples : int, optional
        Default 1 000.
    seed : int
    groups : [items], optional
        Label of the group of each item; whole groups are drawn.

    Returns
    -------
    [k, 2] float64
        Low and high end for each statistic; equal where no sample changed it.

    Raises
    ------
    ValueError
        When an argument is out of range, or the statistic raises ValueError (only one class drawn, say) or is not
        finite for more than 1 of 20 samples. Fewer are drawn again.

    Examples
    --------
    >>> data = np.arange(100.0)
    >>> metric_interval(lambda i: [np.median(data[i])], 100).round()
    array([[40., 58.]])
    """
    if items < 2:
        raise ValueError(f"items must be at least 2, got {items}")
    wanted = 1_000 if resamples is None else resamples
    check_integer(wanted, "resamples", 1)
    check_integer(seed, "seed", 0)
    members = None if groups is None else group_members(groups, items)
    units = items if members is None else len(members)
    rng = np.random.default_rng(seed)
    rows: list[Floats] = []
    failures = 0
    while len(rows) < wanted:
        drawn = rng.integers(0, units, units)
        indices = drawn if members is None else np.concatenate([members[i] for i in drawn])
        try:
            row = np.asarray(statistic(indices), np.float64)
            if not np.isfinite(row).all():
                raise ValueError(f"{row[~np.isfinite(row)][0]}")
        except ValueError as error:
            failures += 1
            if failures > max(1.0, _TOO_MANY_FAILED * wanted):
                raise ValueError(
                    f"metric must work on samples drawn from the {items} items, got for more than 1 of 20: {error}"
                ) from error
        else:
            rows.append(row)
    low, high = np.quantile(np.stack(rows), _wide_percentiles(units, confidence), axis=0)
    return np.stack([low, high], axis=1)


def checked_values(values: ArrayLike, name: str) -> Floats:
    """Return values as 1-D float64, or raise ValueError.

    Examples
    --------
    >>> checked_values([1, 2], "values")
    array([1., 2.])
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"{name} must be 1-D with at least 2 items, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values")
    return array


def group_members(groups: ArrayLike, items: int) -> list[NDArray[np.int64]]:
    """Return the indices of the items of each group, groups in the order of their labels.

    Parameters
    ----------
    groups : [items]
        Labels: numbers or strings.
    items : int

    Raises
    ------
    ValueError
        When there is not one label for each item, or only one group.

    Examples
    --------
    >>> group_members(["b", "a", "b"], 3)
    [array([1]), array([0, 2])]
    """
    labels = np.asarray(groups)
    if labels.shape != (items,):
        raise ValueError(f"groups must hold one label for each of the {items} items, got shape {labels.shape}")
    _, index = np.unique(labels, return_inverse=True)
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    if len(members) < 2:
        raise ValueError(f"groups must hold at least 2 different labels, got {len(members)}")
    return members


def _group_values(values: Floats, groups: ArrayLike) -> Floats:
    """Return one value for each group, so that their mean is the mean of values and their spread its uncertainty."""
    members = group_members(groups, values.size)
    mean = values.mean()
    sums = np.array([(values[index] - mean).sum() for index in members])
    return np.asarray(mean + sums * (len(members) / values.size), np.float64)


def _wide_percentiles(units: int, confidence: float) -> Interval:
    check_between(confidence, "confidence", 0, 1)
    from scipy.special import ndtr, stdtrit

    t = float(stdtrit(units - 1, (1 + confidence) / 2)) * math.sqrt(units / (units - 1))
    return float(ndtr(-t)), float(ndtr(t))
