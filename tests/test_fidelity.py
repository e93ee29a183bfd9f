"""Fidelity: the error of each layer by hand, and which layers cannot be compared."""

import copy
import json
import math

import pytest
import torch
from test_validate import model
from torch import nn

from pycompress import kernels
from pycompress.formats import Int8
from pycompress.layers import PackedLinear
from pycompress.validation.fidelity import layer_errors

__all__ = ["model"]


def test_layer_errors_by_hand(model):
    inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= 1.1
        other[0].bias *= 1.1
        other[2].bias += 1
    fidelity = layer_errors(model, other, inputs)
    with torch.no_grad():
        before, after = model(inputs), other(inputs)
    expected = {"0": 0.1, "2": float((after - before).norm() / before.norm())}
    assert {row.name: row.error for row in fidelity.layers} == pytest.approx(expected, rel=1e-5)
    assert [row.name for row in fidelity.layers] == sorted(expected, key=expected.get, reverse=True)
    assert fidelity.not_comparable == ()


def test_fused_activation_is_not_taken_for_an_error(model):
    packed = PackedLinear(kernels.pack(model[0].weight.detach(), Int8(), bias=model[0].bias.detach()), "relu")
    fidelity = layer_errors(model, nn.Sequential(packed, nn.Identity(), model[2]), torch.randn(50, 6))
    assert max(row.error for row in fidelity.layers) < 0.03


def test_layers_that_cannot_be_compared():
    before = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    after = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(5, 2))
    after.extra = nn.Linear(1, 1)
    after = Partly(after)
    fidelity = layer_errors(Partly(before), after, torch.randn(3, 4))
    assert [row.name for row in fidelity.layers] == ["body.2"]
    reasons = dict(fidelity.not_comparable)
    assert reasons == {
        "body.0": "output (3, 8) became (3, 5)",
        "body.1": "not in the compressed model",
        "body.extra": "not in the original model",
    }
    idle = Partly(before)
    idle.unused = nn.Linear(1, 1)
    assert "called 0 times" in dict(layer_errors(idle, idle, torch.randn(3, 4)).not_comparable)["unused"]


class Partly(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        for name, layer in self.body.named_children():
            if name != "extra":
                x = layer(x)
        return x


def test_recurrent_layers_and_zero_outputs():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.head = nn.Linear(4, 2, bias=False)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    first = Recurrent()
    second = copy.deepcopy(first)
    nn.init.ones_(second.head.weight)
    fidelity = layer_errors(first, second, torch.randn(2, 5, 3))
    assert [(row.name, row.error) for row in fidelity.layers] == [("head", math.inf), ("lstm", 0.0)]
    json.dumps(fidelity.to_dict(), allow_nan=False)
