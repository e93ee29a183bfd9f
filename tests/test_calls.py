"""What a model or a function of the user refuses becomes an error that names the argument, with their own as cause."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycompress.calls import applied, blame, check_model, described, forward, real


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, *rows, **named):
        raise self.error


def raising(error):
    def function(outputs, targets):
        raise error

    return function


@pytest.mark.parametrize("inputs", [torch.ones(2), (torch.ones(2), torch.ones(2)), {"x": torch.ones(2)}])
@pytest.mark.parametrize("error", [RuntimeError("a"), KeyError("a"), AttributeError("a"), NotImplementedError("a")])
def test_what_a_model_refuses(inputs, error):
    with pytest.raises(
        ValueError, match=r"^train inputs must fit the model, got .*\(2,\) float32.*Error: '?a'?$"
    ) as raised:
        forward(Raises(error), inputs, "train inputs")
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt(), SystemExit()])
def test_too_little_memory_and_interrupts_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised:
        forward(Raises(error), torch.ones(2))
    assert raised.value is error
    with pytest.raises(type(error)) as raised:
        applied(raising(error), "loss", torch.ones(2), torch.ones(2))
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TypeError("a"), TypeError),
        (ValueError("a"), ValueError),
        (IndexError("a"), ValueError),
        (RuntimeError("a"), ValueError),
        (ZeroDivisionError("a"), ZeroDivisionError),
        (KeyError("a"), KeyError),
    ],
)
def test_what_a_function_of_outputs_and_targets_refuses(error, kind):
    with pytest.raises(kind) as raised:
        applied(raising(error), "metric", torch.ones(2, 3), torch.ones(2).long(), "members")
    if kind in (TypeError, ValueError):
        words = "metric must take the outputs and the targets of members, got (2, 3) float32 and (2,) int64; it says"
        assert str(raised.value) == f"{words} {type(error).__name__}: a" and raised.value.__cause__ is error
    assert applied(F.mse_loss, "loss", torch.ones(2), torch.zeros(2)) == 1


@pytest.mark.parametrize("value", [None, "good", torch.ones(2), [1.0], 3j])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^metric must return a number, got "):
        real(value, "metric")


def test_models_whose_weights_have_no_finite_values():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LazyLinear(3), nn.Linear(2, 1, device="meta"))
    model[0].weight.data[0] = math.nan
    model[0].bias.data[1] = math.inf
    with pytest.raises(ValueError) as raised:
        check_model(model, "teacher")
    assert str(raised.value) == (
        "teacher must have finite weights, got 0.weight: 2 NaN or infinite entries; 0.bias: 1 NaN or infinite entries; "
        "2.weight: not initialised (run the model once); 2.bias: not initialised (run the model once); "
        "3.weight: on the meta device; 3.bias: on the meta device"
    )
    with pytest.raises(ValueError, match=r"got running_mean: on the meta device"):
        norm = nn.BatchNorm1d(2, affine=False)
        norm.running_mean = norm.running_mean.to("meta")
        check_model(norm)
    for wrong in (None, nn.Linear, "model", lambda x: x):
        with pytest.raises(TypeError, match=r"^teacher must be a torch\.nn\.Module, got "):
            check_model(wrong, "teacher")


def test_models_that_are_unusual_but_right():
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.full((2, 2), -math.inf))
    integers = nn.Module()
    integers.q = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    eight = nn.Module()
    eight.w = nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
    sparse = nn.Module()
    sparse.w = nn.Parameter(torch.eye(2).to_sparse())
    for model in (masked, integers, eight, sparse, nn.Sequential(), nn.Linear(2, 2).bfloat16()):
        check_model(model)


def test_inputs_that_are_to_blame():
    bad = torch.tensor([math.nan, 1, math.inf])
    assert blame(bad, "data inputs") == " (data inputs hold 2 NaN or infinite entries)"
    assert blame({"a": (bad, torch.ones(2)), "b": [bad]}, "x") == " (x hold 4 NaN or infinite entries)"
    assert blame((torch.ones(2), torch.arange(3), None), "x") == ""
    assert described([bad, {"a": 3}]) == "((3,) float32, {'a': int})"
