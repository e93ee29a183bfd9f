"""Bias correction: the formula against a plain computation, what it gains, and what is left alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import grids

FORMATS = [pc.Int8(), pc.Affine(bits=4), pc.Affine(bits=3, per_channel=False), pc.FixedPoint(3)]


class Net(nn.Module):
    """Grouped, strided and dilated convolutions, 3-D and 1-D inputs, a layer that runs twice, layers without a bias."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="reflect")
        self.conv1 = nn.Conv1d(6, 5, 2, dilation=2)
        self.twice = nn.Linear(5, 5)
        self.plain = nn.Linear(5, 4, bias=False)
        self.end = nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv1(self.conv(x).relu().flatten(2)).relu().mT
        y = self.twice(self.twice(y).relu())
        return self.end(self.plain(y).mean((0, 1))) + y.sum()


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


def batches(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(5 + i, 4, 7, 6, generator=generator), torch.zeros(5 + i)) for i in range(count)]


def seen(model, data):
    """The inputs of each layer in the float model."""
    found = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.setdefault(name, []).append(args[0].clone()))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    ]
    with torch.no_grad():
        for x, _ in data:
            model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_formula(format):
    model, data = make().train(), batches()
    original = copy.deepcopy(model)
    inputs = seen(copy.deepcopy(model).eval(), data)
    summary = pc.quantize_(model, format, data, bias_correction=True)
    for layer in summary.layers:
        old, new = original.get_submodule(layer.name), model.get_submodule(layer.name)
        if old.bias is None:
            assert new.bias is None and layer.bias_change is None
            continue
        wide, total, count = copy.deepcopy(old).double(), 0, 0
        wide.weight.data -= new.weight.detach().double()
        wide.bias.data.zero_()
        for x in inputs[layer.name]:
            y = wide(x.double()).detach()
            rows = (
                y.reshape(-1, y.shape[-1])
                if y.ndim < 3 or isinstance(old, nn.Linear)
                else y.transpose(0, 1).flatten(1).T
            )
            total, count = total + rows.sum(0), count + len(rows)
        expected = (total / count).numpy()
        moved = (new.bias - old.bias).detach().numpy()
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=2e-7)
        assert layer.bias_change == pytest.approx(np.abs(moved).max()) and layer.bias_change > 0
        assert (layer.input_scale is not None) == isinstance(format, pc.Int8)
        plain = copy.deepcopy(original)
        pc.quantize_(plain, format)
        assert torch.equal(plain.get_submodule(layer.name).weight, new.weight)
    lines = str(summary).splitlines()
    assert lines[0].endswith(f"bias moved by up to {summary.layers[0].bias_change:.3g}")
    assert lines[3].endswith("no bias of its own")
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_mean_outputs_come_back():
    """Inputs far from zero and coarse weights: rounding moves the mean outputs, the correction brings them back."""
    torch.manual_seed(0)
    x = torch.rand(500, 30) + 1
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    errors, means = {}, {}
    for corrected in (False, True):
        rounded = copy.deepcopy(model)
        pc.quantize_(rounded, pc.Affine(bits=4), (x, x) if corrected else None, bias_correction=corrected)
        with torch.no_grad():
            difference = rounded(x) - model(x)
        errors[corrected], means[corrected] = float(difference.norm()), float(difference.mean(0).norm())
    assert means[True] < 0.1 * means[False] and errors[True] < 0.5 * errors[False], (errors, means)


def test_batches_and_one_pair_agree_and_a_second_call_moves_nothing():
    x = torch.cat([batch for batch, _ in batches()])
    one = nn.Sequential(make().conv, nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    many = copy.deepcopy(one)
    pc.quantize_(one, pc.Int8(), (x, x), bias_correction=True)
    pc.quantize_(many, pc.Int8(), [(part, part) for part in x.split(4)], bias_correction=True)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    before = copy.deepcopy(one.state_dict())
    again = pc.quantize_(one, pc.Int8(), (x, x), bias_correction=True)
    assert all(torch.equal(value, before[key]) for key, value in one.state_dict().items())
    assert [layer.bias_change for layer in again.layers] == [0, 0]


class Shared(nn.Module):
    """Two layers share a bias, two a weight; one bias belongs to something else too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.b.bias = self.a.bias
        self.c.weight = self.a.weight
        self.norm = nn.LayerNorm(4)
        self.norm.bias = self.d.bias

    def forward(self, x):
        return self.d(self.norm(self.c(self.b(self.a(x)))))


def test_shared_biases_and_weights():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(50, 4) + 2
    original = copy.deepcopy(model)
    inputs = seen(model, [(x, x)])
    summary = pc.quantize_(model, pc.Int8(), (x, x), bias_correction=True)
    assert [(layer.name, layer.bias_change is None) for layer in summary.layers] == [
        ("a", False), ("b", False), ("d", True),
    ]  # fmt: skip
    means = {
        name: (original.get_submodule(name).weight - model.get_submodule(name).weight) @ inputs[name][0].mean(0)
        for name in "abc"
    }
    torch.testing.assert_close(model.a.bias - original.a.bias, (means["a"] + means["b"]) / 2, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(model.c.bias - original.c.bias, means["c"], rtol=1e-3, atol=1e-7)
    assert torch.equal(model.d.bias, original.d.bias) and model.b.bias is model.a.bias
    partly = copy.deepcopy(original)  # b is not quantized: the bias that it shares stays
    pc.quantize_(partly, pc.Int8(), (x, x), exclude=["b"], bias_correction=True)
    assert torch.equal(partly.a.bias, original.a.bias) and not torch.equal(partly.c.bias, original.c.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4)).to(dtype),
        torch.rand(20, 3, 6).to(dtype),
    )
    bias = model[0].bias.detach().clone()
    pc.quantize_(model, pc.Affine(bits=3), (x, x), bias_correction=True)
    assert model[0].bias.dtype == dtype and not torch.equal(model[0].bias, bias)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_of_no_size_and_inputs_of_no_rows():
    model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2), nn.Linear(2, 2))
    data = [(torch.ones(4, 3), torch.ones(4)), (torch.ones(4, 0, 3), torch.ones(4))]
    summary = pc.quantize_(model, pc.Int8(), data, bias_correction=True)
    assert [layer.bias_change for layer in summary.layers][:2] == [0, 0]
    single = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(0), nn.Linear(12, 1))  # the items of one batch as one image
    pc.quantize_(single, pc.Int8(), (torch.ones(2, 4), torch.ones(2)), bias_correction=True)
    assert grids.grid_of(single[0]).input_scale == float(np.float32(1) / np.float32(127))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"bias_correction": True, "calibration": None}, ValueError, "bias_correction must come with calibration data"),
        ({"bias_correction": "yes"}, TypeError, "bias_correction must be a bool"),
        ({"observer": "mse"}, TypeError, r"observer must be MinMax\(\)"),
        ({"observer": pc.observers.MSE}, TypeError, r"observer must be MinMax\(\)"),
        ({"observer": pc.observers.MSE(), "calibration": None}, ValueError, "observer must come with calibration"),
        ({"include": ["plain"], "bias_correction": True}, ValueError, r"needs a layer with a bias .* \['plain'\]"),
        ({"format": pc.FixedPoint(3)}, ValueError, "calibration must be None with FixedPoint"),
    ],
)
def test_refused(options, kind, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        pc.quantize_(model, **({"format": pc.Int8(), "calibration": batches()} | options))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(grids.grid_of(module) is None and not module._forward_pre_hooks for module in model.modules())


def test_a_bias_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.data[0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match="model must have biases that stay finite with bias_correction, got '1': 1 NaN"
    ):
        pc.quantize_(model, pc.Int8(), (torch.ones(3, 2), torch.ones(3)), bias_correction=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
