"""Intervals cover what they say, decisions err as rarely as they say, and closed forms match their definitions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pycompress.validation.bootstrap import bootstrap_means, group_members, mean_interval, metric_interval
from pycompress.validation.estimates import item_estimates, metric_estimates, paired_difference, share_estimate
from pycompress.validation.statistics import (
    decide,
    mcnemar_exact,
    required_items,
    tango_interval,
    unseen_share,
    wilson_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(("successes", "items"), [(0, 1), (0, 30), (30, 30), (7, 20), (950, 1000), (1, 5000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_interval_is_scipys(successes, items, confidence):
    expected = stats.binomtest(successes, items).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, items, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_tango_interval_of_published_data():
    # Airway reactivity of 21 children, 1 and 7 discordant: Fagerland, Lydersen and Laake 2014, Stat. Med. 33:2850.
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def restricted_likelihood_score(gained, lost, items, d):
    """The score statistic at difference d, with the nuisance parameter found by numerical maximisation."""

    def minus_likelihood(q):
        cells = ((gained, q + d), (lost, q), (items - gained - lost, 1 - 2 * q - d))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    low, high = max(0.0, -d), (1 - d) / 2
    q = min(
        [stats_minimum(minus_likelihood, low, high), low, high],
        key=minus_likelihood,
    )
    return (gained - lost - items * d) / math.sqrt(items * (2 * q + d * (1 - d)))


def stats_minimum(function, low, high):
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)


@pytest.mark.parametrize(
    ("gained", "lost", "items"), [(0, 0, 50), (3, 0, 40), (0, 3, 40), (12, 2, 50), (20, 40, 160), (5, 6, 1797)]
)
def test_tango_ends_are_where_the_score_test_just_rejects(gained, lost, items):
    low, high = tango_interval(gained, lost, items)
    assert restricted_likelihood_score(gained, lost, items, low) == pytest.approx(Z, abs=2e-3)
    assert restricted_likelihood_score(gained, lost, items, high) == pytest.approx(-Z, abs=2e-3)


def test_tango_interval_mirrors_and_stays_in_range():
    for gained, lost in itertools.product(range(0, 11, 2), repeat=2):
        if gained + lost > 10:
            continue
        low, high = tango_interval(gained, lost, 10)
        assert -1 <= low <= (gained - lost) / 10 <= high <= 1
        assert tango_interval(lost, gained, 10) == pytest.approx((-high, -low), abs=1e-12)
    assert tango_interval(10, 0, 10)[1] == 1 and tango_interval(0, 10, 10)[0] == -1


def test_no_discordant_item_is_no_proof():
    low, high = tango_interval(0, 0, 100)
    assert (low, high) == pytest.approx((-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)), abs=1e-9)
    assert high == pytest.approx(unseen_share(100), abs=2e-3), "close to the exact bound for what was never seen"


@pytest.mark.parametrize("items", [20, 60, 150])
def test_exact_coverage_and_error_of_the_tango_interval(items):
    """All outcomes enumerated: no simulation noise."""
    pairs = [(g, c) for g in range(min(items, 45) + 1) for c in range(min(items, 45) + 1) if g + c <= items]
    ends = np.array([tango_interval(g, c, items) for g, c in pairs])
    cells = np.array([(g, c, items - g - c) for g, c in pairs])
    coverages = []
    for gain, loss in [(0, 0.01), (0.01, 0.01), (0.005, 0.03), (0.02, 0.05), (0.05, 0.05), (0.03, 0.1), (0.1, 0.1)]:
        chances = stats.multinomial.pmf(cells, items, [gain, loss, 1 - gain - loss])
        assert chances.sum() > 0.999
        d = gain - loss
        coverages.append(chances[(ends[:, 0] <= d + 1e-12) & (d - 1e-12 <= ends[:, 1])].sum())
        wrongly_non_inferior = chances[ends[:, 0] > d + 1e-12].sum()
        assert wrongly_non_inferior <= 0.027, (gain, loss)
    assert min(coverages) >= 0.93 and np.mean(coverages) >= 0.95


def test_mcnemar_counts_binomial_tails():
    for gained, lost in itertools.product(range(6), repeat=2):
        n, k = gained + lost, min(gained, lost)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert mcnemar_exact(gained, lost) == pytest.approx(min(1.0, 2 * tail) if gained != lost else 1.0)


@pytest.mark.parametrize(
    ("interval", "decision"),
    [
        ((-0.009, 0.1), "non-inferior"),
        ((-0.01, 0.1), "undecided"),
        ((-0.5, -0.011), "inferior"),
        ((-0.5, -0.01), "undecided"),
        ((0.1, 0.2), "non-inferior"),
    ],
)
def test_decide(interval, decision):
    assert decide(interval, 0.01) == decision


@pytest.mark.parametrize("margin", [0, -0.1, math.inf, math.nan])
def test_decide_wants_a_positive_margin(margin):
    with pytest.raises(ValueError, match="margin must be above 0"):
        decide((0.0, 1.0), margin)


def test_required_items_give_the_power_they_promise():
    gain = loss = 0.05
    items = required_items(variance=gain + loss, margin=0.02, power=0.8)
    rng = np.random.default_rng(0)
    decisions = {}
    drawn = rng.multinomial(items, [gain, loss, 1 - gain - loss], size=4000)
    for g, c, _ in drawn.tolist():
        if (g, c) not in decisions:
            decisions[g, c] = decide(tango_interval(g, c, items), 0.02)
    power = np.mean([decisions[g, c] == "non-inferior" for g, c, _ in drawn.tolist()])
    assert 0.77 <= power <= 0.83


def test_binary_bootstrap_is_the_multinomial_one():
    values = np.repeat([-1.0, 0.0, 1.0], [30, 900, 70])
    fast = bootstrap_means(values, 20_000, seed=1)
    rng = np.random.default_rng(2)
    slow = values[rng.integers(0, 1000, (4000, 1000))].mean(axis=1)
    assert stats.ks_2samp(fast, slow).pvalue > 0.01
    assert fast.std() == pytest.approx(values.std() / math.sqrt(1000), rel=0.03)


def test_bootstrap_of_many_different_values():
    values = np.random.default_rng(0).normal(size=5000)
    means = bootstrap_means(values, 3000, seed=1)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(5000 * 3000))
    assert means.std() == pytest.approx(values.std() / math.sqrt(5000), rel=0.06)


def test_mean_interval_of_many_items_is_the_normal_one():
    for size in (3000, 60_000):
        values = np.random.default_rng(0).exponential(size=size)
        low, high = mean_interval(values)
        half = Z * values.std(ddof=1) / math.sqrt(size)
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.12 * half)


@pytest.mark.parametrize(
    ("draw", "mean", "items", "least"),
    [
        (lambda rng, n: rng.normal(size=n), 0.0, 10, 0.93),
        (lambda rng, n: rng.exponential(size=n), 1.0, 20, 0.92),
        (lambda rng, n: rng.exponential(size=n), 1.0, 100, 0.93),
        (lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.1), 0.0, 50, 0.93),
        (lambda rng, n: -1.0 * (rng.random(n) < 0.01), -0.01, 50, 0.95),
    ],
    ids=["normal 10", "skewed 20", "skewed 100", "rarely nonzero", "rare loss"],
)
def test_coverage_of_the_bootstrap(draw, mean, items, least):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        low, high = mean_interval(draw(rng, items), resamples=1000, unseen=1.0)
        covered += low <= mean <= high
    assert covered / 600 >= least


def test_items_of_a_group_are_not_independent():
    rng = np.random.default_rng(0)
    covered = {"items": 0, "groups": 0}
    labels = np.repeat(np.arange(30), rng.integers(3, 15, 30))
    for _ in range(300):
        values = rng.normal(size=30)[labels] + rng.normal(size=labels.size)
        for name, groups in (("items", None), ("groups", labels)):
            low, high = mean_interval(values, resamples=1000, groups=groups)
            covered[name] += low <= 0 <= high
    assert covered["groups"] / 300 >= 0.92
    assert covered["items"] / 300 <= 0.7, "or this test shows nothing"


def test_each_item_its_own_group_changes_nothing():
    values = np.random.default_rng(0).normal(size=200)
    assert mean_interval(values, groups=np.arange(200)) == pytest.approx(mean_interval(values), abs=1e-12)


def test_equal_differences_are_not_certain():
    """A zero-width interval would be the bootstrap's answer."""
    loss = np.array([-0.5, -0.1, -0.9, -0.2])
    estimate = paired_difference(loss, loss)
    assert estimate.value == 0
    low, high = estimate.interval
    assert low < -0.2 and high > 0.2
    grouped = paired_difference([1, 1, 1, 1], [1, 1, 1, 1], groups=[0, 0, 1, 1])
    assert grouped.interval[0] < -0.3, "two groups say little"


def test_estimates_choose_the_interval():
    binary, other = [1, 0, 1, 1, 0, 1], [0.5, 1.0, 0.0, 0.2, 0.1, 0.9]
    assert share_estimate(binary).method == "Wilson score"
    assert share_estimate(binary, groups=[0, 0, 1, 1, 2, 2]).method == "bootstrap"
    assert share_estimate(other).method == "bootstrap"
    assert 0 <= share_estimate([1.0, 1.0, 0.9]).interval[1] <= 1
    assert paired_difference(binary, binary).method == "Tango score"
    assert paired_difference(binary, other).method == "bootstrap"
    assert item_estimates(binary, other).difference.value == pytest.approx(np.mean(other) - np.mean(binary))


def test_metric_interval_agrees_with_the_mean():
    values = np.random.default_rng(0).normal(size=400)
    [(low, high)] = metric_interval(lambda index: [values[index].mean()], 400, resamples=4000)
    half = Z * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_percentiles_are_those_of_few_items():
    draws = np.random.default_rng(0)
    [(low, high)] = metric_interval(lambda index: [draws.normal()], 5, resamples=40_000)
    expected = stats.t.ppf(0.975, 4) * math.sqrt(5 / 4)  # 3.10 standard errors instead of 1.96
    assert (low, high) == pytest.approx((-expected, expected), abs=0.2)


def test_metric_interval_draws_whole_groups():
    labels = np.array(["b", "a", "b", "c", "a"])

    def whole(index):
        counts = np.bincount(index, minlength=5)
        assert counts[0] == counts[2] and counts[1] == counts[4]
        return [float(counts.sum())]

    metric_interval(whole, 5, resamples=50, groups=labels)
    assert [index.tolist() for index in group_members(labels, 5)] == [[1, 4], [0, 2], [3]]


def test_metric_that_often_has_no_value_is_an_error():
    def needs_item_zero(index):
        if 0 not in index:
            raise ValueError("no item zero")
        return [1.0]

    with pytest.raises(ValueError, match=r"metric must work on samples .* no item zero"):
        metric_interval(needs_item_zero, 20, resamples=200)
    with pytest.raises(ValueError, match="metric must work on samples"):
        metric_interval(lambda index: [math.nan], 20, resamples=200)


def test_metric_estimates_widen_what_never_changed():
    difference = metric_estimates(lambda index: (0.8, 0.8), 50, resamples=100).difference
    assert difference.interval == pytest.approx((-0.8 * unseen_share(50), 0.8 * unseen_share(50)))
    with pytest.raises(ValueError, match="metric must return a finite number, got nan for compressed"):
        metric_estimates(lambda index: (1.0, math.nan), 50)


def test_everything_is_seeded():
    values = np.random.default_rng(0).normal(size=300)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), "successes must be from 0 to items"),
        (lambda: wilson_interval(0, 0), "1 or more items"),
        (lambda: wilson_interval(1, 2, 95), "confidence must be between 0 and 1, got 95"),
        (lambda: tango_interval(-1, 0, 5), "gained and lost must be 0 or more"),
        (lambda: tango_interval(3, 3, 5), "together at most items, got 3 and 3 of 5"),
        (lambda: mcnemar_exact(-1, 0), "gained and lost"),
        (lambda: decide((1.0, 0.0), 0.1), "interval must be"),
        (lambda: required_items(-1.0, 0.1), "variance must be 0 or more"),
        (lambda: required_items(1.0, 0.1, difference=-0.1), "difference must be finite and not -margin"),
        (lambda: required_items(1.0, 0.1, power=1.0), "power must be between 0 and 1"),
        (lambda: paired_difference([1, 0], [1, 0, 1]), "compressed must have the shape of original"),
        (lambda: mean_interval([1.0]), "at least 2 items"),
        (lambda: mean_interval([1.0, math.nan]), "values must be finite, got 1"),
        (lambda: mean_interval([1.0, 2.0], groups=["a", "a"]), "at least 2 different labels"),
        (lambda: mean_interval([1.0, 2.0], groups=["a"]), "one label for each of the 2 items"),
        (lambda: mean_interval([1.0, 2.0], resamples=0), "resamples must be at least 1"),
        (lambda: mean_interval([1.0, 2.0], seed=-1), "seed must be at least 0"),
        (lambda: metric_interval(lambda i: [0.0], 1), "items must be at least 2"),
        (lambda: unseen_share(0), "items must be at least 1"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
