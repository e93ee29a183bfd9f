"""Timing under clocks that the test controls."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pycompress.timing import compare, paired_times, ratio_interval


class FakeClock:
    """Seconds that pass only when a contestant says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, *seconds):
        """Return a function whose calls take the given seconds in turn."""
        state = {"calls": 0}

        def function():
            self.now += seconds[state["calls"] % len(seconds)]
            state["calls"] += 1

        function.state = state
        return function


def test_paired_times_are_seconds_of_one_call():
    clock = FakeClock()
    times = paired_times([clock.work(1e-6), clock.work(3e-3)], samples=5, clock=clock)
    assert times.dtype == np.float64
    np.testing.assert_allclose(times, [[1e-6] * 5, [3e-3] * 5], rtol=1e-6)


def test_every_block_follows_an_untimed_call_of_the_same_function_and_is_long_enough():
    clock, log = FakeClock(), []

    def contestant(name, seconds):
        def function():
            log.append(name)
            clock.now += seconds

        return function

    def reading():
        log.append("clock")
        return clock.now

    paired_times([contestant("a", 1e-5), contestant("b", 1.0)], samples=4, min_block_seconds=1e-4, clock=reading)
    history = "".join("|" if entry == "clock" else entry for entry in log)
    parts = history.split("|")[-17:-1]
    blocks = list(zip(parts[::2], parts[1::2], strict=True))
    assert [warm for warm, _ in blocks] == list("abbaabba")  # in turns, the order turned round
    assert all(set(block) == {warm} for warm, block in blocks)
    assert all(len(block) >= 10 for warm, block in blocks if warm == "a")
    assert all(len(block) == 1 for warm, block in blocks if warm == "b")


def test_a_standing_clock_ends():
    calls = []
    times = paired_times([lambda: calls.append(1)], samples=1, clock=lambda: 0.0)
    assert times[0, 0] == 0
    assert len(calls) < 1_000_000


@pytest.mark.parametrize("n", [6, 7, 8, 16, 25, 64, 101])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_ranks_are_those_of_the_binomial_distribution(n, confidence):
    from scipy.stats import binom

    ratios = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    median, low, high = ratio_interval(ratios, np.ones(n), confidence)
    k = int(low)
    assert (median, high) == (np.median(ratios), n + 1 - k)
    tail = (1 - confidence) / 2
    assert binom.cdf(k - 1, n, 0.5) <= tail < binom.cdf(k, n, 0.5)


def test_interval_covers_the_true_median():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        ratios = np.exp(generator.standard_t(2, 21))  # heavy tails, true median 1
        _, low, high = ratio_interval(ratios, np.ones(21))
        covered += low <= 1 <= high
    assert 935 <= covered <= 995


def test_interval_uses_pairs_not_medians():
    drift = np.linspace(1, 50, 20)  # the machine slows down fifty-fold
    median, low, high = ratio_interval(2 * drift, drift)
    assert (median, low, high) == (2, 2, 2)


def test_interval_ignores_interrupted_calls():
    numerator, denominator = np.full(32, 2.0), np.ones(32)
    denominator[:5] = 1000
    numerator[5:10] = 1000
    assert ratio_interval(numerator, denominator)[:2] == (2.0, 2.0)


def test_compare_stops_early_when_the_answer_is_clear():
    clock = FakeClock()
    baseline, fast, slow = clock.work(4e-5), clock.work(1e-5), clock.work(8e-5)
    speedups = compare(baseline, [fast, slow], clock=clock)
    assert [round(s.median, 6) for s in speedups] == [4, 0.5]
    assert speedups[0].low > 1 > speedups[1].high
    assert math.isclose(speedups[0].baseline_seconds, 4e-5)
    assert math.isclose(speedups[0].seconds, 1e-5)
    assert baseline.state["calls"] < 16 * 10


def test_compare_takes_more_samples_when_it_is_close_and_stays_undecided():
    clock = FakeClock()
    baseline, equal = clock.work(9e-4, 10e-4, 11e-4), clock.work(1e-3)
    [speedup] = compare(baseline, [equal], clock=clock)
    assert speedup.low <= 1 <= speedup.high
    assert baseline.state["calls"] > 100


def test_compare_gives_up_after_a_second():
    clock = FakeClock()
    baseline, equal = clock.work(0.9, 1.0, 1.1), clock.work(1.0)
    compare(baseline, [equal], clock=clock)
    assert baseline.state["calls"] <= 20


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: paired_times([], samples=1), ValueError, "functions must hold at least one"),
        (lambda: paired_times([1], samples=1), TypeError, "functions must be a sequence of callables"),
        (lambda: paired_times([print], samples=0), ValueError, "samples must be at least 1, got 0"),
        (lambda: paired_times([print], samples=1.5), TypeError, "samples must be an int"),
        (lambda: paired_times([print], samples=1, min_block_seconds=-1), ValueError, "min_block_seconds must be 0"),
        (lambda: ratio_interval(np.ones(8), np.ones(7)), ValueError, r"denominator must be 1-D of shape \(8,\)"),
        (lambda: ratio_interval(np.ones(8), np.zeros(8)), ValueError, "denominator must hold positive"),
        (lambda: ratio_interval(np.full(8, np.nan), np.ones(8)), ValueError, "numerator must hold positive"),
        (lambda: ratio_interval(np.ones(5), np.ones(5)), ValueError, "more than 5 samples"),
        (lambda: ratio_interval(np.ones(8), np.ones(8), 1.0), ValueError, "confidence must be between 0 and 1"),
        (lambda: compare(print, []), ValueError, "contestants must hold at least one"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
