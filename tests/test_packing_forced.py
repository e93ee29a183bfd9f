"""Packing without a clock: which ReLUs are fused, which models and inputs are taken, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from test_packing import X, kinds, mlp
from torch import nn

from pycompress.explaining import explain
from pycompress.formats import FixedPoint, Int8, Sparse
from pycompress.layers import PackedLinear
from pycompress.packing import pack


def test_force_does_not_measure():
    def clock():
        raise AssertionError("measured")

    packed = pack(mlp(), X, Sparse(), force=True, _clock=clock)
    assert kinds(packed).count("PackedLinear") == 3
    assert packed[0].decision.reason == "forced, not measured"
    assert (packed[0].decision.rows, packed[0].decision.low) == (6, None)
    torch.testing.assert_close(packed(X), mlp().eval()(X))


class Backbone(nn.Module):
    """Calls parts of its Sequentials by hand, as `mode` says."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.seq = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
        self.act = self.seq[1]

    def forward(self, x):
        if self.mode == "iterated":
            for module in self.seq:
                x = module(x)
            return x
        if self.mode == "first alone":
            return self.seq(x) + self.seq[0](x)
        if self.mode == "relu elsewhere":
            return self.seq(x) - self.seq[1](x)
        return self.seq(x)


@pytest.mark.parametrize("mode", ["iterated", "first alone", "relu elsewhere"])
def test_a_relu_is_fused_only_where_nothing_else_sees_it(mode):
    model = Backbone(mode)
    packed = pack(model, X, Sparse(), force=True)
    assert packed.seq[0].activation is None
    assert isinstance(packed.seq[1], nn.ReLU)
    torch.testing.assert_close(packed(X), model(X).detach())


def test_a_hooked_relu_is_not_fused():
    model = mlp()
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    assert kinds(pack(model, X, Int8(), force=True))[:2] == ["PackedLinear", "ReLU"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, a, b):
        return self.fc(a + b)


@pytest.mark.parametrize("inputs", [(X, X), {"a": X, "b": X}, (X.numpy(), X.reshape(1, 6, 12))])
def test_forms_of_example_inputs(inputs):
    assert isinstance(pack(Two(), inputs, Int8(), force=True).fc, PackedLinear)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models(dtype):
    model = mlp().to(dtype).eval()
    packed = pack(model, X.to(dtype), Int8(), force=True)
    y = packed(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, model(X.to(dtype)).detach(), atol=0.1, rtol=0.1)


def test_double_layers_stay_dense():
    packed = pack(mlp().double(), X.double(), Int8(), force=True)
    assert {decision.reason for decision in explain(packed)} == {"its weight is float64"}


class Checks(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        assert isinstance(self.fc, nn.Linear)
        return self.fc(x)


def nan_model():
    model = mlp()
    with torch.no_grad():
        model[0].weight[1, 1] = torch.nan
        model[5].bias[0] = torch.inf
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack(None, X), TypeError, "model must be a torch.nn.Module, got NoneType"),
        (lambda: pack(mlp(), X, "int8"), TypeError, r"format must be Int8\(\), Int4\(\), .* or None, got"),
        (lambda: pack(mlp(), X, FixedPoint()), TypeError, "format must be"),
        (lambda: pack(mlp(), X, force=1), TypeError, "force must be a bool, got int"),
        (lambda: pack(nn.Sequential(nn.ReLU()), X), ValueError, "must have an nn.Linear, nn.Conv1d, .*got 1 ReLU"),
        (lambda: pack(nan_model(), X), ValueError, "'0': weight with 1 NaN or infinite entries; '5': bias with 1 NaN"),
        (lambda: pack(mlp().to("meta"), X), ValueError, "'0': weight on meta; '3': weight on meta"),
        (lambda: pack(nn.Sequential(nn.LazyLinear(3)), X), ValueError, "'0': weight not initialised"),
        (
            lambda: pack(Checks(), X, Int8(), force=True),
            ValueError,
            r"must run when \['fc'\] are packed, got Assertion",
        ),
        (lambda: explain(1), TypeError, "model must be an nn.Module"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("inputs", [torch.zeros(6, 11), None, (X, X), {"y": X}, X.double()])
def test_inputs_that_do_not_fit_name_example_inputs_and_keep_the_models_error(inputs):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="example_inputs must fit the model, got ") as raised:
        pack(model, inputs, Int8())
    assert isinstance(raised.value.__cause__, (RuntimeError, TypeError, AttributeError))
    assert str(raised.value.__cause__) in str(raised.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {type(module) for module in model} == {nn.Linear, nn.ReLU, nn.Dropout}
