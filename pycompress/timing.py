"""Time functions against each other on a machine that does other things too.

Absolute times drift: clocks change, neighbours come and go. So contestants take turns in one run, each block of calls
is compared with the block of the other contestant next to it, and the interval of the median ratio says what is known.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]
"""Returns seconds, from any start."""

_MAX_REPEATS = 100_000
_LOOKS = (6, 16, 32, 64)  # samples; 6 are the fewest that have a 95 % interval, 8 the fewest of 99 %
_ENOUGH_SECONDS = 1.0


def paired_times(
    functions: Sequence[Callable[[], object]],
    *,
    samples: int,
    min_block_seconds: float = 2e-4,
    clock: Clock = time.perf_counter,
) -> NDArray[np.float64]:
    """Time functions in turns: sample ``i`` of one is taken right beside sample ``i`` of the others.

    A sample is the mean over a block of calls. A block lasts at least ``min_block_seconds``; how many calls that takes
    is found for each function beforehand. Before each block its function is called once untimed, so that caches hold
    what it needs and not what the contestant left. The order is turned round for every second sample.

    Parameters
    ----------
    functions : sequence of callables without arguments
    samples : int
        1 or more.
    min_block_seconds : float
        0 or more, in seconds.
    clock : callable
        Returns seconds.

    Returns
    -------
    [functions, samples] float64
        Seconds for one call.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range.

    Examples
    --------
    >>> paired_times([lambda: sum(range(10)), lambda: sum(range(1000))], samples=3).shape
    (2, 3)
    """
    functions = _checked_functions(functions, "functions")
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(f"samples must be an int, got {type(samples).__name__}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 <= min_block_seconds < math.inf:
        raise ValueError(f"min_block_seconds must be 0 or more and finite, got {min_block_seconds}")
    turns = [(i, function, _repeats(function, min_block_seconds, clock)) for i, function in enumerate(functions)]
    seconds = np.empty((len(functions), samples))
    for sample in range(samples):
        for i, function, repeats in turns:
            function()
            seconds[i, sample] = _block_seconds(function, repeats, clock) / repeats
        turns.reverse()
    return seconds


def ratio_interval(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Median of the paired ratios and its distribution-free interval.

    With the ratios ``r_i = numerator_i / denominator_i`` sorted, the interval is ``[r_(k), r_(n+1-k)]`` for the largest
    ``k`` with ``P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2`` (the sign test turned round; Thompson 1936). Nothing
    is assumed about how times are distributed, and a few calls that were interrupted don't move it.

    Parameters
    ----------
    numerator, denominator : [samples] float64, positive
        Times taken in turns.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    (median, low, high) : floats

    Raises
    ------
    ValueError
        When the shapes differ, a time is not positive and finite, or there are too few samples for the confidence.

    Examples
    --------
    >>> dense, packed = np.array([4.0, 4.2, 3.9, 4.1, 9.0, 4.0]), np.full(6, 2.0)
    >>> ratio_interval(dense, packed)
    (2.025, 1.95, 4.5)
    """
    if numerator.ndim != 1 or numerator.shape != denominator.shape:
        raise ValueError(f"denominator must be 1-D of shape {numerator.shape}, got {denominator.shape}")
    for name, times in (("numerator", numerator), ("denominator", denominator)):
        if not ((times > 0) & (times < math.inf)).all():
            raise ValueError(f"{name} must hold positive and finite times, got {times}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    n = len(numerator)
    k = _interval_rank(n, (1 - confidence) / 2)
    if k == 0:
        raise ValueError(f"numerator must hold more than {n} samples for an interval of {confidence:.1%}")
    ratios = np.sort(numerator / denominator)
    return float(np.median(ratios)), float(ratios[k - 1]), float(ratios[n - k])


@dataclass(frozen=True)
class Speedup:
    """How a contestant compares with a baseline that it was timed against.

    Attributes
    ----------
    baseline_seconds, seconds : float
        Median seconds for one call.
    median, low, high : float
        Median of the paired ratios baseline / contestant (above 1: the contestant is faster), its 95 % interval.

    Examples
    --------
    >>> Speedup(baseline_seconds=4e-6, seconds=2e-6, median=2.0, low=1.9, high=2.1).low > 1
    True
    """

    baseline_seconds: float
    seconds: float
    median: float
    low: float
    high: float


def compare(
    baseline: Callable[[], object], contestants: Sequence[Callable[[], object]], *, clock: Clock = time.perf_counter
) -> list[Speedup]:
    """Time contestants against a baseline, with as few calls as a clear answer needs.

    6 samples become 16, 32 and at most 64, until a second has passed or the 99 % interval of every speedup lies on
    one side of 1. Looking early uses 99 % so that stopping where luck shows a winner stays rare.

    Parameters
    ----------
    baseline : callable without arguments
    contestants : sequence of callables without arguments
    clock : callable
        Returns seconds.

    Returns
    -------
    list of Speedup
        One for each contestant.

    Raises
    ------
    TypeError, ValueError
        When a contestant is not callable, there is none, or the clock stands still.

    Examples
    --------
    >>> [speedup] = compare(lambda: sum(range(10_000)), [lambda: sum(range(10))])
    >>> speedup.low > 1
    True
    """
    functions = [baseline, *_checked_functions(contestants, "contestants")]
    for function in functions:
        function()  # a first call may compile, and says nothing about later ones
    start = clock()
    seconds = np.empty((len(functions), 0))
    for samples in _LOOKS:
        if seconds.shape[1] and (clock() - start >= _ENOUGH_SECONDS or _is_clear(seconds)):
            break
        more = paired_times(functions, samples=samples - seconds.shape[1], clock=clock)
        seconds = np.concatenate([seconds, more], axis=1)
    medians = [float(np.median(row)) for row in seconds]
    return [
        Speedup(medians[0], median, *ratio_interval(seconds[0], row))
        for median, row in zip(medians[1:], seconds[1:], strict=True)
    ]


def _is_clear(seconds: NDArray[np.float64]) -> bool:
    if seconds.shape[1] < 8:
        return False
    intervals = [ratio_interval(seconds[0], row, confidence=0.99) for row in seconds[1:]]
    return all(low > 1 or high < 1 for _, low, high in intervals)


def _checked_functions(functions: object, name: str) -> list[Callable[[], object]]:
    if not isinstance(functions, Sequence) or not all(callable(f) for f in functions):
        raise TypeError(f"{name} must be a sequence of callables, got {functions!r}")
    if not functions:
        raise ValueError(f"{name} must hold at least one function, got none")
    return list(functions)


def _block_seconds(function: Callable[[], object], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in itertools.repeat(None, repeats):
        function()
    return clock() - start


def _repeats(function: Callable[[], object], min_seconds: float, clock: Clock) -> int:
    """Calls that last min_seconds; few enough to end also under a clock that stands still."""
    function()
    repeats = 1
    while repeats < _MAX_REPEATS:
        seconds = _block_seconds(function, repeats, clock)
        if seconds >= min_seconds:
            break
        factor = 10.0 if seconds <= 0 else min(10.0, 1.1 * min_seconds / seconds)
        repeats = min(_MAX_REPEATS, math.ceil(repeats * max(factor, 1.1)))
    return repeats


def _interval_rank(n: int, tail: float) -> int:
    """Return the largest k with P(Binomial(n, 1/2) < k) <= tail; 0 when there is none."""
    below, k = 0, 0
    while k <= n // 2:
        below += math.comb(n, k)
        if below > tail * 2**n:
            break
        k += 1
    return k
