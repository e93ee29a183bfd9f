"""Verdicts: the right numbers, the right decision, no trace in the models, clear errors."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pycompress as pc
from pycompress import kernels
from pycompress.formats import Int8
from pycompress.layers import PackedLinear
from pycompress.validation.cost import count_parameters, measure_cost, measure_latency
from pycompress.validation.metrics import accuracy, auc, f1_macro, item_mean, log_likelihood, neg_mse
from pycompress.validation.statistics import mcnemar_exact, tango_interval
from pycompress.validation.verdict import check_margin, compare_outputs


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))


@pytest.fixture
def data(model):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 6, generator=generator)
    with torch.no_grad():
        noisy = model(inputs) + 0.2 * torch.randn(400, 3, generator=generator)
    return inputs, noisy.argmax(dim=1)


def damaged(model, noise):
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return copied


def test_numbers_of_a_verdict(model, data):
    other = damaged(model, 0.1)
    verdict = pc.validate(model, other, data, margin=0.05, latency=False)
    with torch.no_grad():
        before, after = model(data[0]).argmax(1) == data[1], other(data[0]).argmax(1) == data[1]
        same = (model(data[0]).argmax(1) == other(data[0]).argmax(1)).double().mean()
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    assert 0 < gained < lost, "or this test shows little"
    assert verdict.original.value == pytest.approx(before.double().mean())
    assert verdict.difference == pytest.approx((gained - lost) / 400)
    assert verdict.interval == tango_interval(gained, lost, 400)
    assert verdict.bootstrap_interval == pytest.approx(verdict.interval, abs=0.01)
    assert verdict.p_mcnemar == mcnemar_exact(gained, lost)
    assert (verdict.flips.gained, verdict.flips.lost) == (gained, lost)
    assert verdict.agreement == pytest.approx(float(same))
    assert (verdict.metric, verdict.items, verdict.margin) == ("accuracy", 400, 0.05)
    assert verdict.cost.latency == () and verdict.cost.size_ratio == 1


def test_the_three_decisions(model, data):
    assert pc.validate(model, model, data, margin=0.02, latency=False).decision == "non-inferior"
    assert pc.validate(model, damaged(model, 2.0), data, margin=0.02, latency=False).decision == "inferior"
    few = data[0][:30], data[1][:30]
    verdict = pc.validate(model, model, few, margin=0.02, latency=False)
    assert verdict.decision == "undecided", "30 items prove no margin of 2 points, whatever was seen"
    assert verdict.interval[0] < -0.1
    enough = verdict.items_needed
    assert 30 < enough < 2000 and f"about {enough} items" in verdict.summary


def test_items_needed_would_decide():
    outputs = torch.eye(2).repeat(100, 1)
    targets = torch.arange(2).repeat(100)
    worse = outputs.clone()
    worse[:6] = worse[:6].flip(1)  # 3 points lost
    first = compare_outputs(outputs, worse, targets, margin=0.04)
    assert first.decision == "undecided"
    times = math.ceil(first.items_needed / 200)
    more = compare_outputs(outputs.repeat(times, 1), worse.repeat(times, 1), targets.repeat(times), margin=0.04)
    assert more.decision == "non-inferior"


def test_models_are_left_as_they_were(model, data):
    model.train()
    model[0].eval()
    other = damaged(model, 0.1)
    states = [{name: tensor.clone() for name, tensor in m.state_dict().items()} for m in (model, other)]
    pc.validate(model, other, data, batch_sizes=[1])
    for m, state in zip((model, other), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in m.state_dict().items())
        assert not any(module._forward_hooks for module in m.modules())
    assert model.training and not model[0].training and model[2].training


def test_same_seed_same_verdict(model, data):
    other = damaged(model, 0.1)
    options = {"metric": f1_macro, "margin": 0.05, "latency": False, "resamples": 200}
    first = pc.validate(model, other, data, seed=1, **options)
    assert first == pc.validate(model, other, data, seed=1, **options)
    assert first.interval != pc.validate(model, other, data, seed=2, **options).interval


def test_confidence_widens_every_interval(model, data):
    other = damaged(model, 0.1)
    options = {"margin": 0.05, "latency": False}
    usual, wide = (pc.validate(model, other, data, confidence=level, **options) for level in (0.95, 0.99))
    assert (usual.confidence, wide.confidence) == (0.95, 0.99) and "99% interval" in wide.summary
    for name in ("interval", "bootstrap_interval"):
        assert getattr(wide, name)[0] < getattr(usual, name)[0] < getattr(usual, name)[1] < getattr(wide, name)[1]
    for name in ("original", "compressed"):
        assert getattr(wide, name).interval[0] < getattr(usual, name).interval[0]


def test_random_order_is_paired(model, data):
    loader = DataLoader(TensorDataset(*data), batch_size=32, shuffle=True)
    verdict = pc.validate(model, copy.deepcopy(model), loader, margin=0.02, latency=False)
    assert verdict.agreement == 1 and verdict.flips.lost == 0
    expected = pc.validate(model, model, data, margin=0.02, latency=False)
    assert verdict.original == expected.original


def test_external_sets_get_verdicts_of_their_own(model, data):
    shifted = data[0] + 3, data[1]
    verdict = pc.validate(
        model, damaged(model, 0.1), data, margin=0.05, external={"data": shifted, "same": data}, latency=False
    )
    assert set(verdict.external) == {"data", "same"}
    assert verdict.external["data"].original.value < verdict.original.value
    assert verdict.external["same"] == replace(verdict, cost=None, fidelity=None, external={})


def test_wrong_external_data_is_named(model, data):
    with pytest.raises(ValueError, match=r"targets of external\['clinic'\].* from 0 to 2, got 3"):
        pc.validate(model, model, data, external={"clinic": (data[0], data[1] + 1)}, latency=False)


def test_random_numbers_go_on_as_before(model, data):
    before = torch.get_rng_state()
    pc.validate(model, model, DataLoader(TensorDataset(*data), batch_size=50, shuffle=True), batch_sizes=[1])
    assert torch.equal(before, torch.get_rng_state())


def test_metric_without_items(model, data):
    verdict = pc.validate(model, damaged(model, 0.1), data, metric=f1_macro, margin=0.05, latency=False, resamples=500)
    low, high = verdict.interval
    assert verdict.method == "bootstrap" and low < verdict.difference < high
    assert verdict.bootstrap_interval == verdict.interval and verdict.p_mcnemar is None
    assert verdict.flips is not None, "flips do not depend on the metric"
    reference = pc.validate(model, damaged(model, 0.1), data, margin=0.05, latency=False)
    assert high - low == pytest.approx(reference.interval[1] - reference.interval[0], rel=0.5)


def test_auc_and_one_logit():
    torch.manual_seed(0)
    inputs = torch.randn(300, 4)
    classes = (inputs[:, 0] + 0.5 * torch.randn(300) > 0).long()
    one, two = nn.Linear(4, 1), nn.Linear(4, 1)
    with torch.no_grad():
        for layer, slope in ((one, 0.0), (two, 0.3)):
            layer.weight.copy_(torch.tensor([[1.0, slope, 0, 0]]))
            layer.bias.zero_()
    verdict = pc.validate(one, two, (inputs, classes), metric=auc, margin=0.1, latency=False, resamples=300)
    assert verdict.original.value > 0.9 and verdict.difference < 0
    assert verdict.flips is not None and verdict.calibration is not None


def test_regression(data):
    torch.manual_seed(0)
    model, inputs = nn.Linear(6, 1), data[0]
    with torch.no_grad():
        values = model(inputs)[:, 0] + 0.1
    verdict = pc.validate(model, damaged(model, 0.05), (inputs, values), metric=neg_mse, margin=2.5, latency=False)
    assert verdict.decision == "non-inferior" and verdict.difference < 0
    assert verdict.original.value == pytest.approx(-0.01, rel=1e-3)
    assert (verdict.agreement, verdict.flips, verdict.calibration, verdict.p_mcnemar) == (None, None, None, None)


def test_groups_widen_the_interval():
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(20), 20)
    right = torch.nn.functional.one_hot(torch.zeros(400, dtype=torch.long), 2).float()
    wrong_groups = torch.rand(20, generator=generator) < 0.3
    after = torch.where(wrong_groups[torch.from_numpy(labels)][:, None], right.flip(1), right)
    options = {"targets": torch.zeros(400, dtype=torch.long), "margin": 0.05}
    single, grouped = compare_outputs(right, after, **options), compare_outputs(right, after, groups=labels, **options)
    assert grouped.difference == single.difference and grouped.p_mcnemar is None
    assert (grouped.interval[1] - grouped.interval[0]) > 2.5 * (single.interval[1] - single.interval[0])


def test_json_and_summary(model, data):
    verdict = pc.validate(model, damaged(model, 0.1), data, margin=0.05, external={"other": data}, batch_sizes=[1, 4])
    written = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert written["original"]["value"] == verdict.original.value
    assert written["compressed"]["bytes"] == verdict.cost.compressed_bytes
    assert set(written["compressed"]["latency_ms"]) == set(written["speedup"]) == {"1", "4"}
    assert written["interval"] == list(verdict.interval)
    assert written["external"]["other"]["decision"] == verdict.decision
    assert "\n" not in verdict.summary
    for part in ("accuracy", verdict.decision, "margin 0.05", "400 items", "smaller on disk", "at batch 4"):
        assert part in verdict.summary


# Cost


def test_parameters_of_packed_layers_are_those_of_the_dense_one(model):
    packed = PackedLinear(kernels.pack(model[0].weight.detach(), Int8(), bias=model[0].bias.detach()))
    assert count_parameters(nn.Sequential(packed, model[2])) == count_parameters(model) == 6 * 16 + 16 + 16 * 3 + 3
    tied = nn.Sequential(model[0], model[0])
    assert count_parameters(tied) == 6 * 16 + 16


def test_latency_with_a_clock_of_its_own():
    now = [0.0]

    class Takes(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            now[0] += self.seconds * len(x)
            return x

    one, many = measure_latency(
        Takes(0.004), Takes(0.001), torch.zeros(3, 2), batch_sizes=(1, 5), seconds=0.5, clock=lambda: now[0]
    )
    assert (one.batch, many.batch, one.threads) == (1, 5, torch.get_num_threads())
    assert (one.original_p50_ms, one.compressed_p90_ms) == pytest.approx((4.0, 1.0))
    assert (many.original_p90_ms, many.compressed_p50_ms) == pytest.approx((20.0, 5.0))
    assert one.speedup == pytest.approx(4) and one.speedup_interval == pytest.approx((4, 4))
    assert 48 <= one.samples <= 50 and many.samples == 20, "half a second, but 20 calls at least"


def test_latency_uses_the_threads_of_the_kernels(model):
    own = torch.get_num_threads()
    seen = set()

    class Threads(nn.Module):
        def forward(self, x):
            seen.add(torch.get_num_threads())
            return x

    try:
        kernels.set_num_threads(own + 1)
        [row] = measure_latency(model, Threads(), torch.zeros(1, 6), batch_sizes=[1], seconds=0.01)
    finally:
        kernels.set_num_threads(None)
    assert row.threads == own + 1 and seen == {own + 1} and torch.get_num_threads() == own


def test_pruned_model_is_smaller_on_disk():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 64))
    pruned = copy.deepcopy(dense)
    pc.prune_(pruned, sparsity=0.9)
    cost = measure_cost(dense, pruned)
    assert cost.original_bytes > 64 * 64 * 4 and cost.size_ratio > 4
    assert cost.original_parameters == cost.compressed_parameters


# Wrong arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"original": "model"}, TypeError, "original must be a torch.nn.Module, got str"),
        ({"compressed": None}, TypeError, "compressed must be a torch.nn.Module, got NoneType"),
        ({"data": (torch.zeros(1, 6), torch.zeros(1).long())}, ValueError, "data must have 2 or more items"),
        ({"data": iter([])}, TypeError, "data must be"),
        ({"margin": 0}, ValueError, "margin must be above 0"),
        ({"margin": 1}, ValueError, "margin must be a fraction below 1 for accuracy .* got 1"),
        ({"margin": "0.1"}, TypeError, "margin must be a number, got str"),
        ({"margin": math.nan}, ValueError, "margin must be above 0"),
        ({"metric": "accuracy"}, TypeError, "metric must be a function"),
        ({"external": [1]}, TypeError, "external must be a dict"),
        ({"external": {"clinic": 3}}, TypeError, r"external\['clinic'\] must be"),
        ({"confidence": 1.0}, ValueError, "confidence must be between 0 and 1"),
        ({"resamples": 0}, ValueError, "resamples must be at least 1"),
        ({"batch_size": True}, TypeError, "batch_size must be an int"),
        ({"batch_sizes": [0]}, ValueError, "batch_sizes must be at least 1"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
        ({"groups": [1, 2]}, ValueError, "groups must hold one label for each of the 400 items"),
        ({"metric": lambda outputs, targets: math.nan}, ValueError, "metric must return a finite number"),
        ({"compressed": nn.Linear(6, 2)}, ValueError, r"original \(400, 3\), compressed \(400, 2\)"),
    ],
)
def test_wrong_arguments(model, data, change, error, message):
    with pytest.raises(error, match=message):
        pc.validate(**{"original": model, "compressed": model, "data": data, "latency": False, **change})


def test_nan_names_the_model(model, data):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[2].bias[0] = math.nan
    with pytest.raises(ValueError, match=r"compressed must have finite weights, got 2\.bias: 1 NaN"):
        pc.validate(model, broken, data, latency=False)
    with pytest.raises(ValueError, match=r"original must have finite weights, got 2\.bias: 1 NaN"):
        pc.validate(broken, model, data, latency=False)


def test_nan_in_outputs_names_the_model_and_data_that_hold_nan(model, data):
    roots = nn.Sequential(model, Root())
    with pytest.raises(ValueError, match=r"compressed must return numbers, got NaN for \d+ of 256 items of a batch$"):
        pc.validate(model, roots, data, latency=False)
    inputs = data[0].clone()
    inputs[5] = math.nan
    with pytest.raises(ValueError, match=r"original must return numbers, .* \(data inputs hold \d+ NaN"):
        pc.validate(model, model, (inputs, data[1]), latency=False)


def test_items_that_contradict_the_metric(model, data):
    def metric(outputs, targets):
        return 0.5

    metric.per_item = lambda outputs, targets: torch.zeros(len(targets))
    with pytest.raises(ValueError, match=r"metric must be the mean of metric.per_item, 0 for original, got 0.5"):
        pc.validate(model, model, data, metric=metric, latency=False)
    short = item_mean(lambda outputs, targets: torch.zeros(2), name="short")
    with pytest.raises(ValueError, match="one value for each of 400 items"):
        pc.validate(model, model, data, metric=short, latency=False)
    endless = item_mean(lambda outputs, targets: torch.full((len(targets),), math.inf), name="endless")
    with pytest.raises(ValueError, match="metric must be finite, got 400 items"):
        pc.validate(model, model, data, metric=endless, latency=False)


def test_margins_of_other_metrics_have_their_own_unit():
    check_margin(5.0, neg_mse)
    check_margin(1.5, log_likelihood)
    with pytest.raises(ValueError, match="fraction below 1 for f1_macro"):
        check_margin(1.5, f1_macro)
    assert accuracy.fraction and not getattr(log_likelihood, "fraction", False)
