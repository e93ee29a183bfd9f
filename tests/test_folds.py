"""Cross-validation: every item is judged once, by models that never saw it."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pycompress as pc
from pycompress.validation.folds import fold_indices
from pycompress.validation.metrics import auc, neg_mse

INPUTS = torch.arange(60.0)[:, None]
TARGETS = torch.arange(60) % 3


class Seen(nn.Module):
    """Says class 1 for items that it was trained on, else class 0."""

    def __init__(self, inputs):
        super().__init__()
        self.seen = set(inputs.flatten().tolist())

    def forward(self, x):
        known = torch.tensor([float(value) in self.seen for value in x.flatten().tolist()])
        return torch.stack([~known, known], dim=1).float()


@pytest.mark.parametrize("folds", [2, 7, pc.LeaveOneOut()])
@pytest.mark.parametrize("groups", [None, np.arange(60) // 4])
def test_no_model_sees_what_it_is_judged_on(folds, groups):
    given = []

    def pipeline(train, seed):
        inputs, targets = train
        given.append((inputs.clone(), seed))
        assert len(inputs) == len(targets) and torch.equal(targets, torch.zeros(len(inputs), dtype=torch.long))
        model = Seen(inputs)
        inputs.zero_()  # the pipeline owns its copy
        return model, Seen(torch.empty(0))

    data = INPUTS.clone(), torch.zeros(60, dtype=torch.long)
    result = pc.cross_validate(pipeline, data, folds, groups=groups, margin=0.5, seed=5, progress=False)
    assert result.verdict.original.value == 1.0, "class 0 everywhere: no held-out item was trained on"
    assert torch.equal(data[0], INPUTS)
    count = folds if isinstance(folds, int) else (60 if groups is None else 15)
    assert len(result.folds) == count and sum(fold.items for fold in result.folds) == result.items == 60
    assert [fold.seed for fold in result.folds] == [seed for _, seed in given] == list(range(5, 5 + count))
    held_out = np.concatenate([np.setdiff1d(np.arange(60), inputs.flatten().numpy()) for inputs, _ in given])
    assert sorted(held_out.tolist()) == list(range(60))


def test_pooled_is_what_each_fold_predicts():
    class Constant(nn.Module):
        def __init__(self, best):
            super().__init__()
            self.best = best

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), self.best), 3).float()

    result = pc.cross_validate(
        lambda train, seed: (Constant(seed % 3), Constant(0)), (INPUTS, TARGETS), folds=4, margin=0.9
    )
    hits = sum((TARGETS[part] == fold.seed % 3).sum() for part, fold in zip(parts(4), result.folds, strict=True))
    assert result.verdict.original.value == pytest.approx(float(hits) / 60)
    assert result.verdict.compressed.value == pytest.approx(1 / 3)
    assert result.difference == pytest.approx(1 / 3 - float(hits) / 60)
    weighted = sum(fold.original * fold.items for fold in result.folds) / 60
    assert weighted == pytest.approx(result.verdict.original.value)
    assert result.verdict.flips.lost + result.verdict.flips.gained > 0


def parts(folds):
    return fold_indices(TARGETS, folds, seed=0)


def test_a_real_pipeline():
    def pipeline(train, seed):
        torch.manual_seed(seed)
        original = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        pc.fit_(original, train, epochs=10, lr=0.02, seed=seed, progress=False)
        compressed = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        compressed.load_state_dict(original.state_dict())
        pc.prune_(compressed, sparsity=0.5)
        return original, compressed

    inputs = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    data = inputs, (inputs[:, 0] > 0).long()
    first = pc.cross_validate(pipeline, data, folds=3, margin=0.1, seed=1, latency=True, progress=False)
    assert first.verdict.original.value > 0.9
    assert [row.batch for row in first.verdict.cost.latency] == [1, 32]
    assert first.verdict.cost.original_bytes == first.folds[0].original_bytes
    again = pc.cross_validate(pipeline, data, folds=3, margin=0.1, seed=1, progress=False)
    assert again.verdict.interval == first.interval and again.folds == first.folds
    written = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert len(written["folds"]) == 3 and written["verdict"]["decision"] == first.decision
    assert first.summary.startswith("3 folds")


def test_pipelines_draw_random_numbers_of_their_own_seed():
    drawn = []

    def pipeline(train, seed):
        drawn.append(torch.rand(1).item())
        return nn.Linear(1, 3), nn.Linear(1, 3)

    before = torch.get_rng_state()
    first = pc.cross_validate(pipeline, (INPUTS, TARGETS), folds=3, seed=2**70, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert pc.cross_validate(pipeline, (INPUTS, TARGETS), folds=3, seed=2**70, progress=False) == first
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3


def test_batches_and_regression():
    loader = DataLoader(TensorDataset(INPUTS, INPUTS[:, 0] * 2), batch_size=7, shuffle=True)

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    result = pc.cross_validate(
        lambda train, seed: (Double(), nn.Identity()), loader, folds=3, metric=neg_mse, margin=1.0, progress=False
    )
    assert result.verdict.original.value == 0 and result.decision == "inferior"
    assert result.difference == pytest.approx(-float((INPUTS**2).mean()), rel=1e-6)


def test_metric_without_a_value_for_one_item():
    result = pc.cross_validate(
        lambda train, seed: (nn.Identity(), nn.Identity()),
        (INPUTS - 30, (INPUTS[:, 0] > 25).long()),
        pc.LeaveOneOut(),
        metric=auc,
        margin=0.2,
        resamples=100,
        progress=False,
    )
    assert result.folds[0].original is None and result.verdict.original.value == 1.0


def test_plain_folds():
    folds = fold_indices(torch.rand(23), 5, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(23))
    assert sorted(map(len, folds)) == [4, 4, 5, 5, 5]
    assert all((np.diff(part) > 0).all() for part in folds)
    same, other = fold_indices(torch.rand(23), 5, seed=3), fold_indices(torch.rand(23), 5, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(folds, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(folds, other, strict=True))


def test_stratified_folds():
    classes = torch.tensor([0] * 50 + [1] * 13 + [2] * 6)[torch.randperm(69)]
    folds = fold_indices(classes, 5)
    counts = np.stack([np.bincount(classes[torch.from_numpy(part)], minlength=3) for part in folds])
    assert counts.sum(axis=0).tolist() == [50, 13, 6]
    assert (np.ptp(counts, axis=0) <= 1).all() and np.ptp(counts.sum(axis=1)) <= 1
    plain = fold_indices(classes, 5, stratify=False)
    assert any(not np.array_equal(a, b) for a, b in zip(folds, plain, strict=True))


@pytest.mark.parametrize("stratify", [True, False])
def test_grouped_folds(stratify):
    rng = np.random.default_rng(0)
    labels = np.repeat([f"patient {i}" for i in range(40)], rng.integers(1, 12, 40))
    classes = torch.from_numpy((rng.random(labels.size) < np.repeat(rng.random(40), np.unique(
        labels, return_counts=True)[1])).astype(np.int64))  # fmt: skip
    folds = fold_indices(classes, 4, groups=labels, stratify=stratify)
    assert sorted(np.concatenate(folds).tolist()) == list(range(labels.size))
    for a in range(4):
        for b in range(a):
            assert not set(labels[folds[a]]) & set(labels[folds[b]])
    sizes = [len(part) for part in folds]
    assert max(sizes) - min(sizes) <= 0.1 * labels.size
    if stratify:
        rates = [float(classes[torch.from_numpy(part)].double().mean()) for part in folds]
        assert max(rates) - min(rates) < 0.1


def two_models(train, seed):
    return nn.Identity(), nn.Identity()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"folds": 1}, ValueError, "folds must be from 2 to the number of items, 60, got 1"),
        ({"folds": 61}, ValueError, "folds must be from 2 to the number of items, 60, got 61"),
        ({"folds": 5, "groups": [0] * 30 + [1] * 30}, ValueError, "number of groups, 2, got 5"),
        ({"folds": 2.0}, TypeError, "folds must be an int or LeaveOneOut"),
        ({"folds": pc.LeaveOneOut}, TypeError, "folds must be an int or LeaveOneOut"),
        ({"groups": [0] * 60}, ValueError, "at least 2 different labels"),
        ({"groups": [0, 1]}, ValueError, "one label for each of the 60 items"),
        ({"data": (INPUTS, INPUTS[:, 0]), "stratify": True}, ValueError, "stratify must be False or None"),
        ({"pipeline": "train"}, TypeError, "pipeline must be a function"),
        ({"pipeline": lambda train, seed: nn.Identity()}, TypeError, "got Identity in fold 0"),
        ({"pipeline": lambda train, seed: (nn.Identity(), 3)}, TypeError, r"got \['Identity', 'int'\] in fold 0"),
        ({"margin": 2}, ValueError, "margin must be a fraction below 1"),
        ({"seed": None}, TypeError, "seed must be an int"),
        ({"confidence": 0}, ValueError, "confidence must be between 0 and 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"data": (INPUTS[:0], TARGETS[:0])}, ValueError, "data must not be empty"),
    ],
)
def test_wrong_arguments(change, error, message):
    calls = []

    def counted(train, seed):
        calls.append(seed)
        return two_models(train, seed)

    arguments = {"pipeline": counted, "data": (INPUTS, TARGETS), "progress": False, **change}
    with pytest.raises(error, match=message):
        pc.cross_validate(**arguments)
    assert not calls, "refused before any work"


def test_outputs_that_differ_between_folds():
    def pipeline(train, seed):
        return (nn.Linear(1, 3), nn.Linear(1, 3)) if seed < 2 else (nn.Linear(1, 4), nn.Linear(1, 4))

    with pytest.raises(ValueError, match=r"one output shape, \(3,\), got \(4,\) for original in fold 2"):
        pc.cross_validate(pipeline, (INPUTS, TARGETS), folds=3, progress=False)
