"""Observers: each limit against a plain computation on all inputs at once; batches; what quantize_ makes of them."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import grids
from pycompress.observers import BINS, MSE, Entropy, Histogram, MinMax, MovingAverage, Percentile

ALL = [MinMax(), MovingAverage(), Percentile(), Percentile(90), Percentile(99.9), MSE(), Entropy()]


def inputs(kind, size=20_011, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator)
    if kind == "half zero":
        return x.relu()
    if kind == "outliers":
        x[::5000] *= 40
    if kind == "heavy tail":
        return x * torch.randn(size, generator=generator).exp()
    if kind == "pixels":
        return torch.randint(0, 256, (size,), generator=generator) / 255
    if kind == "one value":
        return torch.full((size,), -0.37)
    if kind == "tiny":
        return x * 1e-20
    if kind == "huge":
        return x * 1e37
    return x


KINDS = ["normal", "half zero", "outliers", "heavy tail", "pixels", "one value", "tiny", "huge"]


def limit(observer, *batches):
    seen = observer.start()
    for batch in batches:
        seen.see(batch)
    return seen.limit()


def binned(x):
    """Counts of all magnitudes at once, and the width of a bin: a power of two, at least half of the bins below max."""
    magnitudes = np.abs(x.double().numpy())
    width = 2.0 ** (math.floor(math.log2(magnitudes.max())) + 1) / BINS
    return np.bincount(np.floor(magnitudes / width).astype(int), minlength=BINS), width, magnitudes


def tries(counts, width, largest):
    used = int(np.flatnonzero(counts)[-1]) + 1
    for k in range(256, 15, -1):
        bins = math.ceil(used * k / 256)
        yield bins, min(bins * width, largest)


def least(found):
    """The limit of the least cost; of equal ones the largest, which comes first."""
    return min(found, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_magnitude(kind):
    x = inputs(kind)
    assert limit(MinMax(), x) == float(x.abs().max())
    assert limit(Percentile(100), x) == float(x.abs().max())


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_moving_average(momentum):
    batches = inputs("outliers").split(1500)
    expected = None
    for batch in batches:
        largest = batch.abs().max().item()
        expected = largest if expected is None else momentum * expected + (1 - momentum) * largest
    assert limit(MovingAverage(momentum), *batches, torch.zeros(0, 3)) == pytest.approx(expected, rel=1e-12)
    assert limit(MovingAverage(momentum), batches[0]) == batches[0].abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [0.01, 37.0, 75.0, 99.0, 99.99, 100.0])
def test_percentile(kind, percent):
    x = inputs(kind)
    _, width, magnitudes = binned(x)
    exact = np.percentile(magnitudes, percent, method="inverted_cdf")
    found = limit(Percentile(percent), x)
    if exact == 0:
        assert found == 0
    else:
        assert found == min((math.floor(exact / width) + 1) * width, magnitudes.max())
        assert exact <= found <= exact + magnitudes.max() / 2048
    assert (magnitudes <= found).mean() >= percent / 100


@pytest.mark.parametrize("kind", KINDS)
def test_least_squared_error(kind):
    x = inputs(kind)
    counts, width, magnitudes = binned(x)
    counts[0] -= (magnitudes == 0).sum()
    centres = (np.arange(BINS) + 0.5) * width

    def error(t):
        q = np.clip(np.rint(centres / (t / 127)), -127, 127) * (t / 127)
        return np.sum(counts[: len(q)] * (centres - q) ** 2)

    candidates = [t for _, t in tries(counts, width, magnitudes.max())]
    found = limit(MSE(), x)
    assert found in candidates
    assert error(found) == pytest.approx(min(map(error, candidates)), rel=1e-9, abs=1e-300)

    def true_error(t):  # on the inputs themselves, not on the histogram
        return np.sum((magnitudes - np.clip(np.rint(magnitudes / (t / 127)), -127, 127) * (t / 127)) ** 2)

    assert true_error(found) <= min(map(true_error, candidates)) * 1.05 + 1e-300


@pytest.mark.parametrize("kind", KINDS)
def test_least_divergence(kind):
    x = inputs(kind)
    counts, width, magnitudes = binned(x)
    counts[0] -= (magnitudes == 0).sum()

    def divergence(bins):
        """As the slides of Migacz 2017 have it, bin by bin."""
        p = counts[:bins].astype(float)
        p[-1] += counts[bins:].sum()
        q = np.zeros(bins)
        for group in range(128):
            inside = [j for j in range(bins) if j * 128 // bins == group]
            filled = [j for j in inside if p[j]]
            for j in filled:
                q[j] = counts[inside].sum() / len(filled)
        if any(q[j] == 0 for j in range(bins) if p[j]):
            return math.inf
        p, q = p / p.sum(), q / q.sum()
        return sum(p[j] * math.log(p[j] / q[j]) for j in range(bins) if p[j])

    every = list(tries(counts, width, magnitudes.max()))
    found = limit(Entropy(), x)
    chosen = next(bins for bins, t in every if t == found)
    some = [bins for bins, _ in every[::20]]
    assert divergence(chosen) <= min(map(divergence, some)) + 1e-12


def test_divergence_and_error_clip_outliers_and_keep_what_is_dense():
    outliers, normal = inputs("outliers"), inputs("normal")
    largest = outliers.abs().max().item()
    for observer in (Entropy(), Percentile(99.9)):
        assert limit(observer, outliers) < 0.75 * largest
        assert 2.5 < limit(observer, normal) <= normal.abs().max().item()
    many = torch.cat([inputs("normal", 200_000), torch.tensor([8.0])])
    assert limit(MSE(), many) < 5  # one outlier costs less than finer steps gain
    assert limit(Entropy(), inputs("half zero")) > 2.5  # the zeros do not count


@pytest.mark.parametrize("observer", [o for o in ALL if not isinstance(o, MovingAverage)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_batches_give_the_limit_of_all_at_once(observer, kind):
    x = inputs(kind)
    whole = limit(observer, x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        order = x[torch.randperm(len(x), generator=generator)]
        cuts = torch.randint(0, len(x), (6,), generator=generator).sort().values
        assert limit(observer, *torch.tensor_split(order, cuts)) == whole
    rising = x[x.abs().argsort()]
    assert limit(observer, *rising.reshape(1, -1, 1).split(500, 1)) == whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("observer", ALL, ids=str)
def test_other_dtypes(observer, dtype):
    x = inputs("normal").to(dtype)
    assert limit(observer, x) == limit(observer, x.float() if dtype != torch.float64 else x.float().double())


def test_a_histogram_grows_from_nothing_to_anything():
    seen = Histogram(lambda histogram: 0.0)
    for value in (0.0, 1e-40, 1e-25, 1.0, 3e38, 1.0):
        seen.see(torch.tensor([value]))
        assert int(seen.counts.sum()) > 0
    assert int(seen.counts.sum()) == 6 and seen.zeros == 1 and seen.counts[0] == 5
    assert seen.largest == pytest.approx(3e38)
    assert seen.counts[math.floor(3e38 / seen.width)] == 1


@pytest.mark.parametrize("observer", ALL, ids=str)
def test_zeros_and_nothing(observer):
    assert limit(observer) == 0
    assert limit(observer, torch.zeros(0, 4)) == 0
    assert limit(observer, torch.zeros(5, 4), torch.zeros(0)) == 0
    assert limit(observer, torch.full((3,), 1e-38)) < 2.0**-99


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("observer", ALL, ids=str)
def test_what_is_not_finite_is_refused(observer, bad):
    x = torch.randn(10, 3)
    x[4, 1] = bad
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for batches in ([(x, x)], [(x, x), (torch.ones(2, 3), x[:2])]):
        with pytest.raises(ValueError, match="calibration must give finite inputs of every layer, got '0'"):
            pc.quantize_(model, pc.Int8(), batches, observer=observer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(grids.grid_of(layer) is None and not layer._forward_pre_hooks for layer in model)


@pytest.mark.parametrize("observer", ALL, ids=str)
def test_quantize_takes_the_observer_s_limit(observer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    batches = [(x, x) for x in torch.randn(10, 100, 6)]
    with torch.no_grad():
        hidden = [model[1](model[0](x)) for x, _ in batches]
    summary = pc.quantize_(model, pc.Int8(), batches, observer=observer)
    for layer, seen in zip(summary.layers, ([x for x, _ in batches], hidden), strict=True):
        assert layer.input_scale == float(np.float32(limit(observer, *seen)) / np.float32(127))
        assert grids.grid_of(model.get_submodule(layer.name)).input_scale == layer.input_scale


def test_a_limit_of_zero_leaves_the_scale_to_run_time():
    x = torch.randn(100, 3).relu() * (torch.rand(100, 3) > 0.9)
    model = nn.Sequential(nn.Linear(3, 2))
    assert pc.quantize_(model, pc.Int8(), (x, x), observer=Percentile(50)).layers[0].input_scale is None


def test_rare_outliers_cost_less_with_clipping():
    """The output error of packed layers with a static scale: an input that hardly matters has rare outliers."""
    torch.manual_seed(0)
    x = torch.randn(2000, 64)
    x[::100, 0] *= 60
    original = nn.Sequential(nn.Linear(64, 32))
    original[0].weight.data[:, 0] *= 0.01
    errors = {}
    for observer in ALL:
        model = copy.deepcopy(original)
        pc.quantize_(model, pc.Int8(), (x, x), observer=observer)
        with torch.no_grad():
            expected = original(x)
            errors[observer] = float((pc.pack(model, x, force=True)(x) - expected).norm() / expected.norm())
    assert errors[Percentile(99.9)] < 0.3 * errors[MinMax()], errors
    assert errors[Entropy()] < 0.5 * errors[MinMax()], errors
