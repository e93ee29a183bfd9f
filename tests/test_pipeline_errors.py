"""compress: what fails changes nothing, and what cannot work is refused before any training."""

import copy
import functools

import pytest
import torch
from test_pipeline import INPUTS, LABELS, RECIPE, TEST, TRAIN, _nothing_is_timed, _one_thread, model, spy
from torch import nn
from wrong_values import state

import pycompress as pc
from pycompress import pipeline

__all__ = ["_nothing_is_timed", "_one_thread", "model"]

STAGES = ["simplify_model", "prune_", "distill_", "quantize_", "pack", "stored_bytes", "validate", "explain"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_at_any_stage_changes_nothing(model, monkeypatch, stage, error):
    step, calls = getattr(pipeline, stage), []

    @functools.wraps(step)
    def fail(*arguments, **named):
        step(*arguments, **named)
        calls.append(stage)
        if len(calls) == (2 if stage in ("prune_", "quantize_") else 1):  # the first one is the trial
            raise error

    monkeypatch.setattr(pipeline, stage, fail)
    before, random = state(model), torch.get_rng_state()
    teacher = copy.deepcopy(model).eval()
    taught = state(teacher)
    with pytest.raises(type(error)) as raised:
        pc.compress(model, TRAIN, TEST, teacher=teacher, margin=0.1, **RECIPE)
    assert raised.value is error and calls
    assert state(model) == before and state(teacher) == taught and torch.equal(random, torch.get_rng_state())


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.a(x).softmax(1))


def unfit(outputs, targets):
    raise ValueError("no value for such targets")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Mixing()}, r"^model must be .* cannot follow: a \(Linear\): softmax is not known"),
        ({"simplify": None, "include": ["conv*"]}, "include must match"),
        ({"example_inputs": torch.zeros(1, 7)}, r"example_inputs must fit the model, got \(1, 7\)"),
        ({"train": (INPUTS[:, :7], LABELS)}, r"train inputs must fit the model, got \(1, 7\)"),
        ({"test": (INPUTS[:, :7], LABELS)}, r"test inputs must fit the model, got \(1, 7\)"),
        ({"test": (TEST[0], TEST[1] + 1)}, r"class indices from 0 to 2, got 3 \(data is test\)"),
        ({"test": (TEST[0][:1], TEST[1][:1])}, r"2 or more items .* \(data is test\)"),
        ({"metric": unfit}, r"metric must take .* no value for such targets"),
        ({"margin": 1.0}, "margin must be a fraction"),
        ({"score": pc.scores.ablation(TRAIN, nn.functional.cross_entropy, progress=False)}, "score must be finite and"),
        ({"lr": -1.0}, r"^lr must be above 0 and below inf, got -1\.0$"),
        ({"learning_rate": 0.1}, "learning_rate is no argument of compress nor of distill_, which takes temperature,"),
        ({"quantize": pc.Sparse()}, r"format must be Int8\(\).* \(format is quantize\)"),
        ({"teacher": nn.Linear(8, 4)}, r"student must return .* shape .*, got .* \(student is a copy of model\)$"),
    ],
)
def test_impossible_work_is_refused_before_any_training(model, monkeypatch, change, message):
    steps = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_, **__: steps.append("a step of training"))
    arguments = {"model": model, "train": TRAIN, "test": TEST, **RECIPE, **change}
    before = state(arguments["model"])
    with pytest.raises((TypeError, ValueError), match=message):
        pc.compress(**arguments)
    assert not steps and state(arguments["model"]) == before


def test_weights_beyond_a_grid_are_found_before_training(model, monkeypatch):
    calls = spy(monkeypatch, "distill_")
    model[4].weight.data.fill_(1e8)
    with pytest.raises(ValueError, match=r"'4': a weight of magnitude .*, whose integer needs more than 32 bits"):
        pc.compress(model, TRAIN, None, sparsity=0.5, quantize=pc.FixedPoint(bits=8))
    assert not calls
