"""The attack finds what was memorised and nothing else; its interval covers."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pycompress.validation.privacy import auc_interval, compare_membership, membership_inference


def placement_auc(positives, negatives):
    wins = positives[:, None] > negatives[None, :]
    ties = positives[:, None] == negatives[None, :]
    return float((wins + 0.5 * ties).mean())


def delong_variance(positives, negatives):
    kernel = (positives[:, None] > negatives[None, :]) + 0.5 * (positives[:, None] == negatives[None, :])
    return kernel.mean(1).var(ddof=1) / len(positives) + kernel.mean(0).var(ddof=1) / len(negatives)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_its_variance_by_the_definition(ties):
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(0.4, 1, 70), rng.normal(0, 1.5, 110)
    if ties:
        positives, negatives = positives.round(), negatives.round()
    auc, low, high = auc_interval(positives, negatives)
    assert auc == pytest.approx(placement_auc(positives, negatives))
    half = 1.959963984540054 * math.sqrt(delong_variance(positives, negatives)) / (auc * (1 - auc))
    logit = math.log(auc / (1 - auc))
    assert (low, high) == pytest.approx([1 / (1 + math.exp(-logit + s * half)) for s in (1, -1)])


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.5])
def test_coverage_of_the_auc_interval(shift):
    rng = np.random.default_rng(0)
    truth = 0.5 * math.erfc(-shift / 2)  # P(N(shift, 1) > N(0, 1))
    covered = 0
    for _ in range(500):
        _, low, high = auc_interval(rng.normal(shift, 1, 60), rng.normal(0, 1, 40))
        covered += low <= truth <= high
    assert covered / 500 >= 0.925


def test_perfect_separation_is_not_certain():
    auc, low, high = auc_interval(np.arange(10, 20), np.arange(10))
    assert (auc, high) == (1.0, 1.0) and 0.7 < low < 0.95
    mirrored = auc_interval(np.arange(10), np.arange(10, 20))
    assert mirrored == pytest.approx((0.0, 0.0, 1 - low), abs=1e-9)
    auc, low, high = auc_interval(np.ones(20), np.ones(20))
    assert auc == 0.5 and 0.2 < low < 0.4 and high == pytest.approx(1 - low, abs=1e-9)


class Memory(nn.Module):
    """Is certain of the items that it holds, and undecided about all others."""

    def __init__(self, inputs, targets, strength):
        super().__init__()
        self.items = {tuple(row.tolist()): int(target) for row, target in zip(inputs, targets, strict=True)}
        self.strength = strength

    def forward(self, x):
        logits = torch.zeros(len(x), 3)
        for i, row in enumerate(x):
            if (target := self.items.get(tuple(row.tolist()))) is not None:
                logits[i, target] = self.strength
        return logits


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 4, generator=generator)
    targets = torch.randint(0, 3, (300,), generator=generator)
    return (inputs[:150], targets[:150]), (inputs[150:], targets[150:])


def test_memorised_items_are_found(split):
    members, others = split
    result = membership_inference(Memory(*members, 9.0), members, others)
    assert (result.auc, result.advantage, result.tpr_at_1_percent) == (1.0, 1.0, 1.0)
    assert result.tpr_at_0_1_percent is None, "150 non-members cannot tell 0.1 % from nothing"
    assert result.interval[0] > 0.95 and (result.members, result.non_members) == (150, 150)


def test_a_model_that_saw_neither_side_gives_nothing_away(split):
    torch.manual_seed(0)
    result = membership_inference(nn.Linear(4, 3), *split)
    assert result.interval[0] < 0.5 < result.interval[1]
    assert abs(result.advantage) < 0.2


def test_forgetting_half_lowers_the_auc(split):
    inputs, targets = split[0]
    comparison = compare_membership(Memory(inputs, targets, 9.0), Memory(inputs[::2], targets[::2], 9.0), *split)
    assert comparison.original.auc == 1.0
    assert comparison.compressed.auc == pytest.approx(0.75)
    assert comparison.difference == pytest.approx(-0.25)
    assert comparison.interval[1] < -0.15
    assert comparison.compressed == membership_inference(Memory(inputs[::2], targets[::2], 9.0), *split)
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_equal_ranks_are_not_certain(split):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    comparison = compare_membership(model, model, *split)
    low, high = comparison.interval
    assert comparison.difference == 0 and low == -high and 0.02 < high < 0.06


def test_paired_interval_covers_and_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    covered, paired_width, single_width = 0, 0.0, 0.0

    class Scores(nn.Module):
        def __init__(self, column):
            super().__init__()
            self.column = column

        def forward(self, x):
            return x[:, self.column]

    for _ in range(300):
        base = np.concatenate([rng.normal(0.5, 1, 80), rng.normal(0, 1, 80)])
        both = np.stack([base + rng.normal(0, 0.5, 160), base + rng.normal(0, 0.5, 160)], axis=1)
        sides = (both[:80], np.zeros(80)), (both[80:], np.zeros(80))
        comparison = compare_membership(Scores(0), Scores(1), *sides, score=lambda outputs, targets: outputs)
        low, high = comparison.interval
        covered += low <= 0 <= high
        paired_width += high - low
        single_width += comparison.original.interval[1] - comparison.original.interval[0]
    assert covered / 300 >= 0.92
    assert paired_width < 0.8 * single_width


def test_regression_losses(split):
    (inputs, _), (other_inputs, _) = split
    values = inputs.sum(1, keepdim=True)

    class Regressor(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True)

    noisy = other_inputs.sum(1, keepdim=True) + 5
    assert membership_inference(Regressor(), (inputs, values), (other_inputs, noisy)).auc == 1.0


def test_tpr_at_low_fpr_by_hand():
    scores = torch.cat([torch.full((10,), 5.0), torch.full((190,), -5.0)])  # 10 members stand out
    others = torch.linspace(-1, 1, 2000)

    class Score(nn.Module):
        def forward(self, x):
            return x

    result = membership_inference(
        Score(), (scores, torch.zeros(200)), (others, torch.zeros(2000)), score=lambda outputs, targets: outputs
    )
    assert (result.tpr_at_1_percent, result.tpr_at_0_1_percent) == (0.05, 0.05)
    assert result.auc == pytest.approx(0.05)


@pytest.mark.parametrize("non_members", [99, 100, 199, 200])
def test_false_positives_stay_within_their_share(non_members):
    """Members and non-members alternate: the allowed false positives are the highest-ranked non-members."""
    others = torch.arange(non_members) + 100.0 - non_members  # the highest is 99
    scores = torch.arange(1000) / 10  # 0 to 99.9

    class Score(nn.Module):
        def forward(self, x):
            return x

    sides = (scores, torch.zeros(1000)), (others, torch.zeros(non_members))
    result = membership_inference(Score(), *sides, score=lambda outputs, targets: outputs)
    if non_members < 100:
        assert result.tpr_at_1_percent is None
    else:
        threshold = 99 - math.floor(non_members * 0.01)  # the first non-member that may not be taken for a member
        assert result.tpr_at_1_percent == pytest.approx(float((scores > threshold).double().mean()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module"),
        ({"members": (torch.zeros(1, 4), torch.zeros(1).long())}, ValueError, "score of members must be .* at least 2"),
        ({"non_members": iter([])}, TypeError, "non_members must be"),
        ({"members": (torch.full((3, 4), math.nan), torch.zeros(3).long())}, ValueError, "model must return numbers"),
        ({"confidence": 95}, ValueError, "confidence must be between 0 and 1"),
        ({"score": lambda outputs, targets: outputs[:5, 0]}, ValueError, "one number for each of 150 items, got 5"),
        ({"score": "loss"}, TypeError, "score must be a function"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_wrong_arguments(split, change, error, message):
    arguments = {"model": nn.Linear(4, 3), "members": split[0], "non_members": split[1], **change}
    with pytest.raises(error, match=message):
        membership_inference(**arguments)
