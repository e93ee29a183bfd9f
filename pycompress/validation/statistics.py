"""What a finite test set says: intervals, tests and verdicts, on NumPy arrays.

Which interval, and why
-----------------------
- A share of items (accuracy): Wilson's score interval.
- A difference of two shares on the same items: Tango's score interval. It is the interval of the score test that is
  standard for non-inferiority of paired shares; with *no* item on which two models differ it is
  ``+-z^2 / (n + z^2)``, close to the rule of three, where a bootstrap would say that the difference is exactly zero.
- A mean of other values, or a difference of such means: a bootstrap of the mean with two pseudo-items, and percentiles
  widened for few items (:func:`.bootstrap.mean_interval`).
- Any other metric: the percentile bootstrap over items, widened for few items (:func:`.bootstrap.metric_interval`).

Items of one group (one patient, one author) are not independent. With ``groups`` the group is the unit: its items
enter together, and the interval is wide when there are few groups.

All intervals are about drawing the *items*. The randomness of training is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .arguments import check_between
from .bootstrap import Interval

Decision = Literal["non-inferior", "inferior", "undecided"]


def wilson_interval(successes: int, items: int, confidence: float = 0.95) -> Interval:
    """Interval of a share, by inverting the score test.

    ``(p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)`` (Wilson 1927, JASA 22:209).

    Parameters
    ----------
    successes, items : int
        ``0 <= successes <= items``, at least one item.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    (low, high) : floats in [0, 1]

    Raises
    ------
    ValueError
        When an argument is out of range.

    Examples
    --------
    >>> low, high = wilson_interval(95, 100)
    >>> f"{low:.4f} {high:.4f}"
    '0.8882 0.9785'
    """
    if not 0 <= successes <= items or items < 1:
        raise ValueError(f"successes must be from 0 to items with 1 or more items, got {successes} of {items}")
    z = normal_quantile(confidence)
    share = successes / items
    centre = share + z * z / (2 * items)
    half = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == items else (centre + half) / scale
    return low, high


def tango_interval(gained: int, lost: int, items: int, confidence: float = 0.95) -> Interval:
    """Interval of a difference between two shares of the same items, by inverting the score test.

    All d with ``|gained - lost - n d| <= z sqrt(n (2 q + d (1 - d)))``, where q, the share of lost items, is its
    maximum likelihood estimate at d (Tango 1998, Statistics in Medicine 17:891).

    Parameters
    ----------
    gained : int
        Items that are right only with the second model.
    lost : int
        Items that are right only with the first model.
    items : int
        All items, at least one.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    (low, high) : floats in [-1, 1]
        Of second share - first share.

    Raises
    ------
    ValueError
        When an argument is out of range.

    Examples
    --------
    >>> low, high = tango_interval(gained=0, lost=0, items=100)
    >>> f"{low:.4f} {high:.4f}"
    '-0.0370 0.0370'
    """
    if min(gained, lost) < 0 or gained + lost > items or items < 1:
        raise ValueError(
            f"gained and lost must be 0 or more and together at most items, got {gained} and {lost} of {items}"
        )
    z = normal_quantile(confidence)

    def is_plausible(d: float) -> bool:
        b = -gained - lost + (2 * items - gained + lost) * d
        c = -lost * d * (1 - d)
        share = (math.sqrt(max(b * b - 8 * items * c, 0.0)) - b) / (4 * items)
        variance = max(items * (2 * share + d * (1 - d)), 0.0)
        return (gained - lost - items * d) ** 2 <= z * z * variance

    observed = (gained - lost) / items
    return plausible_end(is_plausible, observed, -1.0), plausible_end(is_plausible, observed, 1.0)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Exact p value of the hypothesis that two models are right equally often (McNemar 1947).

    Two-sided binomial test of ``gained`` among the ``gained + lost`` items on which exactly one model is right.

    Parameters
    ----------
    gained, lost : int
        0 or more.

    Returns
    -------
    float in (0, 1]
        1 when there are no such items.

    Raises
    ------
    ValueError
        When a count is negative.

    Examples
    --------
    >>> mcnemar_exact(gained=1, lost=9)
    0.021484375
    """
    if min(gained, lost) < 0:
        raise ValueError(f"gained and lost must be 0 or more, got {gained} and {lost}")
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def decide(interval: Interval, margin: float) -> Decision:
    """Turn the interval of a difference (compressed - original) into a verdict.

    Parameters
    ----------
    interval : (low, high)
        Of the difference, higher is better.
    margin : float
        The largest loss that is accepted, positive.

    Returns
    -------
    "non-inferior"
        When ``low > -margin``: a loss of the margin is not plausible.
    "inferior"
        When ``high < -margin``: only larger losses are plausible.
    "undecided"
        Otherwise: there are too few items for this margin.

    Raises
    ------
    ValueError
        When the margin is not positive and finite, or the interval is not two ordered numbers.

    Examples
    --------
    >>> decide((-0.004, 0.001), margin=0.01)
    'non-inferior'
    >>> decide((-0.012, 0.001), margin=0.01)
    'undecided'
    """
    check_between(margin, "margin", 0)
    low, high = interval
    if not low <= high:
        raise ValueError(f"interval must be (low, high) with low <= high, got {interval}")
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "undecided"


def required_items(
    variance: float, margin: float, difference: float = 0.0, *, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Number of items that a verdict needs.

    ``n = v (z_c + z_p)^2 / (margin + difference)^2``, with ``z_c`` and ``z_p`` the normal quantiles of
    ``(1 + confidence) / 2`` and of ``power`` (for paired shares: Nam 1997, Biometrics 53:1422). A normal approximation:
    where few items differ, the power is some points lower.

    Parameters
    ----------
    variance : float
        Of the paired differences of single items. For shares: (share of items that are gained or lost) -
        difference^2.
    margin : float
        As in :func:`decide`.
    difference : float
        The true difference. Above -margin: items for "non-inferior"; below: for "inferior".
    power : float
        Probability of that verdict.
    confidence : float
        Of the interval.

    Returns
    -------
    int
        At least 2.

    Raises
    ------
    ValueError
        When an argument is out of range, or the difference is -margin, which no number of items tells apart.

    Examples
    --------
    >>> required_items(variance=0.02, margin=0.01)
    1570
    """
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be 0 or more and finite, got {variance}")
    check_between(margin, "margin", 0)
    if not math.isfinite(difference) or difference == -margin:
        raise ValueError(f"difference must be finite and not -margin, got {difference} with margin {margin}")
    check_between(power, "power", 0, 1)
    from scipy.special import ndtri

    z = normal_quantile(confidence) + float(ndtri(power))
    return max(2, math.ceil(variance * z * z / (margin + difference) ** 2))


def unseen_share(items: int, confidence: float = 0.95) -> float:
    """Largest plausible share of what was seen in none of the items, ``1 - ((1 - confidence) / 2)^(1 / n)``.

    The upper end of Clopper and Pearson's interval at zero (the rule of three: Hanley and Lippman-Hand 1983).

    Parameters
    ----------
    items : int
        1 or more.
    confidence : float

    Returns
    -------
    float

    Examples
    --------
    >>> round(unseen_share(100), 4)
    0.0362
    """
    if items < 1:
        raise ValueError(f"items must be at least 1, got {items}")
    normal_quantile(confidence)
    return 1.0 - float(((1 - confidence) / 2) ** (1 / items))


def is_binary(values: ArrayLike) -> bool:
    """Say whether all values are 0 or 1.

    Examples
    --------
    >>> is_binary([0.0, 1.0]), is_binary([0.5])
    (True, False)
    """
    array = np.asarray(values)
    return bool(((array == 0) | (array == 1)).all())


def normal_quantile(confidence: float) -> float:
    """Return z with ``P(|standard normal| <= z) = confidence``.

    Examples
    --------
    >>> round(normal_quantile(0.95), 3)
    1.96
    """
    check_between(confidence, "confidence", 0, 1)
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def plausible_end(is_plausible: Callable[[float], bool], inside: float, end: float) -> float:
    """Return the last plausible value on the way from a plausible one to ``end``, which may be ``end`` itself.

    Examples
    --------
    >>> round(plausible_end(lambda x: x * x <= 2, 0.0, 9.0), 3)
    1.414
    """
    if is_plausible(end):
        return end
    for _ in range(60):
        middle = (inside + end) / 2
        inside, end = (middle, end) if is_plausible(middle) else (inside, middle)
    return inside
