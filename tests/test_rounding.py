"""max_error: layers whose outputs rounding would change by too much stay float, by the written formula."""

import copy

import numpy as np
import pytest
import torch
from test_calibration import Net, Shared, batches, make, seen
from torch import nn

import pycompress as pc
from pycompress import grids
from pycompress.layers import PackedLinear


@torch.no_grad()
def errors_of(original, rounded, inputs, names):
    """The formula in float64: relative change of each layer's outputs on the inputs that it saw in the float model."""
    found = {}
    for name in names:
        old, new = (copy.deepcopy(model.get_submodule(name)).double() for model in (original, rounded))
        scale = grids.grid_of(rounded.get_submodule(name)).input_scale
        lost = whole = 0.0
        for x in inputs[name]:
            x = x.double()
            near = x if scale is None else (x / scale).round().clamp(-127, 127) * scale
            lost += float((old(x) - new(near)).square().sum())
            whole += float(old(x).square().sum())
        found[name] = (lost / whole) ** 0.5
    return found


@pytest.mark.parametrize("format", [pc.Int8(), pc.Affine(bits=3), pc.FixedPoint(3)], ids=str)
@pytest.mark.parametrize("correction", [False, True])
def test_the_formula_decides(format, correction):
    model, data = make().train(), batches()
    original, inputs = copy.deepcopy(model), seen(copy.deepcopy(model).eval(), data)
    wide = copy.deepcopy(model)
    every = pc.quantize_(wide, format, data, bias_correction=correction, max_error=1e3)
    expected = errors_of(original, wide, inputs, [layer.name for layer in every.layers])
    for layer in every.layers:
        assert layer.output_error == pytest.approx(expected[layer.name], rel=1e-3) and not layer.stays_float
    bound = 1.001 * float(np.median(list(expected.values())))
    summary = pc.quantize_(model, format, data, bias_correction=correction, max_error=bound)
    for layer in summary.layers:
        module, before = model.get_submodule(layer.name), original.get_submodule(layer.name)
        assert layer.stays_float == (expected[layer.name] > bound)
        if layer.stays_float:
            assert torch.equal(module.weight, before.weight) and grids.grid_of(module) is None
            assert module.bias is before.bias is None or torch.equal(module.bias, before.bias)
            assert layer.input_scale is layer.bias_change is None
        else:
            assert torch.equal(module.weight, wide.get_submodule(layer.name).weight)
    lines = dict(zip((layer.name for layer in summary.layers), str(summary).splitlines(), strict=True))
    for layer in summary.layers:
        said = f"outputs by {layer.output_error:.2%}"
        assert said in lines[layer.name] and ("stays float" in lines[layer.name]) == layer.stays_float
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_an_outlier_keeps_its_layer_float_in_the_packed_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(50, 8)
    x[:, 0] += 0.5
    model[0].weight.data[:, 0] = 0  # an input that counts for nothing, and has all the magnitude
    x[0, 0] = 1e4
    summary = pc.quantize_(model, pc.Int8(), (x, x), max_error=0.1)
    assert [layer.stays_float for layer in summary.layers] == [True, False]
    packed = pc.pack(model, x, force=True)
    assert type(packed[0]) is nn.Linear and isinstance(packed[2], PackedLinear)


def test_shared_weights_and_biases():
    torch.manual_seed(0)
    model, x = Shared(), torch.rand(30, 4)
    with torch.no_grad():
        model.b.weight[:, 0] = 1e3
    before = copy.deepcopy(model)
    summary = pc.quantize_(model, pc.Affine(bits=2), (x, x), bias_correction=True, max_error=0.2)
    stays = {layer.name: layer.stays_float for layer in summary.layers}
    assert any(stays.values()) and not all(stays.values())
    if stays["a"] != stays["b"]:  # they share a bias, which is left alone then
        assert torch.equal(model.a.bias, before.a.bias)
    for name, kept in stays.items():
        assert torch.equal(model.get_submodule(name).weight, before.get_submodule(name).weight) == kept


def test_zero_outputs():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    summary = pc.quantize_(model, pc.Int8(), (torch.zeros(4, 3), torch.zeros(4)), max_error=0.1)
    assert [layer.output_error for layer in summary.layers] == [0, 0]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_error": 1e-9}, ValueError, "max_error must leave a layer to round, got 1e-09 with 'conv': 0"),
        ({"max_error": 0.1, "calibration": None}, ValueError, "max_error must come with calibration data"),
        ({"max_error": 0}, ValueError, "max_error must be above 0"),
        ({"max_error": "1"}, TypeError, "max_error must be a number"),
    ],
)
def test_refused(options, kind, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        pc.quantize_(model, **({"format": pc.Int8(), "calibration": batches()} | options))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(grids.grid_of(module) is None and not module._forward_pre_hooks for module in model.modules())
    assert type(model) is Net
