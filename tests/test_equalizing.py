"""Cross-layer equalization: the formula, where it applies and where not, and what int8 gains."""

import copy

import numpy as np
import pytest
import torch
from test_rescaling import same, state
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress.flows import observed


class Plain(nn.Module):
    """Linear and convolution layers with homogeneous functions between them, as modules and as functions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.c, self.d = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 3, groups=3, padding=1, padding_mode="reflect")
        self.e, self.f, self.g = nn.Linear(6, 10), nn.Linear(10, 7), nn.Linear(7, 4)
        self.between = nn.Sequential(nn.Dropout(), nn.Identity(), nn.LeakyReLU(0.1, inplace=True))

    def forward(self, x):
        x = self.c(F.relu6(self.b(torch.relu_(self.a(x)))))  # not over b -> c: ReLU6
        x = self.d(self.between(x)).amax((2, 3))
        return self.g(self.f(self.e(x)).relu())


def uneven(model, seed=0):
    """Channels of very different ranges."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            factor = torch.exp(2 * torch.randn(len(layer.weight), generator=generator))
            layer.weight.data *= factor.reshape(-1, *(1,) * (layer.weight.ndim - 1))
            if layer.bias is not None:
                layer.bias.data.normal_(generator=generator)
    return model


IMAGES = torch.randn(5, 3, 9, 8, generator=torch.Generator().manual_seed(0))


def by_channel(layer, side):
    """Largest magnitude of the weights of each output, or of each input, of a layer."""
    w = np.abs(layer.weight.detach().double().numpy())
    w = w.reshape(*w.shape[:2], -1).max(2)
    if side == "out":
        return w.max(1)
    groups = getattr(layer, "groups", 1)
    return np.concatenate([part.max(0) for part in np.split(w, groups)])


def test_one_pair_is_the_formula():
    for kind, x in ((nn.Linear, torch.randn(6, 5)), (lambda i, o: nn.Conv1d(i, o, 2), torch.randn(6, 5, 7))):
        torch.manual_seed(0)
        model = uneven(nn.Sequential(kind(5, 9), nn.ReLU(), kind(9, 4)))
        model[0].weight.data[3] = 0
        model[2].weight.data[:, 5] = 0
        old = copy.deepcopy(model)
        place = pc.equalize_(model, x).places[0]
        r1, r2 = by_channel(old[0], "out"), by_channel(old[2], "in")
        with np.errstate(invalid="ignore", divide="ignore"):
            s = np.where((r1 > 0) & (r2 > 0), np.sqrt(r1 * r2) / r2, 1)
        np.testing.assert_allclose(place.factors.numpy(), s, rtol=1e-12)
        shape = (-1, *(1,) * (model[0].weight.ndim - 1))
        np.testing.assert_allclose(
            model[0].weight.detach(), old[0].weight.detach().numpy() / s.reshape(shape), rtol=1e-6
        )
        np.testing.assert_allclose(model[0].bias.detach(), old[0].bias.detach().numpy() / s, rtol=1e-6)
        columns = s.reshape(1, -1, *shape[2:])
        np.testing.assert_allclose(model[2].weight.detach(), old[2].weight.detach().numpy() * columns, rtol=1e-6)
        assert torch.equal(model[2].bias, old[2].bias)
        np.testing.assert_allclose(by_channel(model[0], "out")[:3], by_channel(model[2], "in")[:3], rtol=1e-6)
        torch.testing.assert_close(model(x), old(x), rtol=1e-4, atol=1e-4)


def test_chains_and_triples_converge_and_keep_the_outputs():
    torch.manual_seed(0)
    model = uneven(Plain()).train()
    old = copy.deepcopy(model).eval()
    summary = pc.equalize_(model, IMAGES)
    pairs = [(place.source, *place.layers) for place in summary.places]
    assert pairs == [("a", "b"), ("c", "d"), ("e", "f"), ("f", "g")]
    for first, second in pairs:
        r1, r2 = by_channel(model.get_submodule(first), "out"), by_channel(model.get_submodule(second), "in")
        np.testing.assert_allclose(r1, r2, rtol=5e-3)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    expected = old(IMAGES).detach()
    torch.testing.assert_close(model.eval()(IMAGES), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    again = pc.equalize_(model, IMAGES)
    assert all(bool(((place.factors - 1).abs() < 0.01).all()) for place in again.places)


def test_equalization_lowers_the_error_of_one_scale_for_all():
    torch.manual_seed(0)
    original = uneven(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)))
    x = torch.randn(200, 16)
    errors = {}
    for format in (pc.Affine(bits=8, per_channel=False), pc.Int8()):
        for equalized in (False, True):
            model = copy.deepcopy(original)
            if equalized:
                pc.equalize_(model, x[:1])
            pc.quantize_(model, format, (x, x) if isinstance(format, pc.Int8) else None)
            runs = pc.pack(model, x, force=True) if isinstance(format, pc.Int8) else model
            with torch.no_grad():
                errors[format, equalized] = float((runs(x) - original(x)).norm() / original(x).norm())
    for format in (pc.Affine(bits=8, per_channel=False), pc.Int8()):
        assert errors[format, True] < 0.6 * errors[format, False], errors


class Ways(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode, self.a, self.b = mode, nn.Linear(4, 4), nn.Linear(4, 4)
        if mode == "tied":
            self.c = nn.Linear(4, 4)
            self.c.bias = self.a.bias
        if mode == "norm":
            self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.a(x)
        if self.mode == "gelu":
            return self.b(F.gelu(y))
        if self.mode == "norm":
            return self.b(self.norm(y))
        if self.mode == "sum":
            return self.b(y.relu()) + y
        if self.mode == "view":
            return self.b(y.relu()) + y.view(-1, 4)
        if self.mode == "returned":
            return self.b(y.relu()), y
        if self.mode == "in an object":
            return self.b(y), Holder(y)
        if self.mode == "another input":
            return self.b(y.relu()) + self.b(x)
        if self.mode == "bias read":
            return self.b(y.relu()) + self.a.bias
        if self.mode == "mixed":
            return self.b(y.mT)
        return self.c(self.b(y)) if self.mode == "tied" else self.b(y.relu())


class Holder:
    def __init__(self, hidden):
        self.hidden = hidden


@pytest.mark.parametrize(
    "mode", ["gelu", "sum", "view", "returned", "in an object", "another input", "bias read", "mixed"]
)
def test_no_pair(mode):
    model = Ways(mode)
    before = state(model)
    with pytest.raises(
        ValueError, match=r"model must have two Linear or two convolution .* got none among \['a', 'b'\]"
    ):
        pc.equalize_(model, torch.randn(4, 4))
    assert same(model, before)
    assert [p.source for p in pc.equalize_(Ways("plain"), torch.randn(4, 4)).places] == ["a"]


class Normed(nn.Module):
    """Convolutions with normalizations and poolings between them, a depthwise one, and rows with a normalization."""

    def __init__(self):
        super().__init__()
        self.a, self.one = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b, self.two = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8)
        self.c, self.d, self.e = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
        self.pool, self.f, self.three, self.g = nn.MaxPool2d(2), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.b(self.pool(torch.relu(self.one(self.a(x)))))
        x = self.c(F.avg_pool2d(self.two(x), 2, padding=1))
        x = self.d(F.max_pool2d(F.leaky_relu(x), 2, stride=1))
        x = self.e(F.adaptive_avg_pool2d(x, (2, 2)))
        return self.g(self.three(self.f(x.amax((2, 3)))).relu())


def folded(model, layer, norm):
    w = model.get_submodule(layer).weight.detach().double()
    if norm is not None:
        bn = model.get_submodule(norm)
        f = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
        w = w * f.reshape(-1, *(1,) * (w.ndim - 1))
    found = copy.deepcopy(model.get_submodule(layer))
    found.weight.data = w.float()
    return found


def test_normalizations_count_with_their_layers_and_poolings_are_passed():
    torch.manual_seed(0)
    model, x = uneven(Normed()), torch.randn(5, 3, 18, 18)
    for norm in (model.one, model.two, model.three):
        nn.init.uniform_(norm.weight, -3, 3)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 9)
    model.train()
    before, old = state(model), copy.deepcopy(model)
    summary = pc.equalize_(model, x)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    pairs = [(place.source, *place.layers) for place in summary.places]
    assert pairs == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("f", "g")]
    assert torch.equal(model.a.weight, old.a.weight), "its normalization changes"
    norms = {"a": "one", "b": "two", "f": "three"}
    for first, second in pairs:
        r1 = by_channel(folded(model, first, norms.get(first)), "out")
        r2 = by_channel(folded(model, second, norms.get(second)), "in")
        np.testing.assert_allclose(r1, r2, rtol=5e-3)
    for mode in (True, False):  # in training the statistics of a batch take the place of the recorded ones
        one, two = copy.deepcopy(model).train(mode), copy.deepcopy(old).train(mode)
        expected = two(x).detach()
        torch.testing.assert_close(one(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_one_pair_with_a_normalization_is_the_formula():
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))).eval()
    nn.init.uniform_(model[1].weight, 0.1, 3)
    nn.init.uniform_(model[1].running_var, 0.1, 9)
    old = copy.deepcopy(model)
    place = pc.equalize_(model, torch.randn(4, 5)).places[0]
    f = old[1].weight.detach() / (old[1].running_var + old[1].eps).sqrt()
    r1, r2 = (f[:, None] * old[0].weight.detach()).abs().amax(1), old[3].weight.detach().abs().amax(0)
    s = ((r1 * r2).sqrt() / r2).double()
    torch.testing.assert_close(place.factors, s, rtol=1e-5, atol=0)
    torch.testing.assert_close(model[1].weight, old[1].weight / s.float())
    torch.testing.assert_close(model[1].bias, old[1].bias / s.float())
    torch.testing.assert_close(model[3].weight, old[3].weight * s.float())
    assert torch.equal(model[0].weight, old[0].weight) and torch.equal(model[0].bias, old[0].bias)


@pytest.mark.parametrize("mode", ["no scale", "no statistics", "other channels", "rows pooled", "hook", "shared"])
def test_normalizations_that_are_no_part_of_a_layer(mode):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.randn(3, 4)
    if mode == "no scale":
        model[1] = nn.BatchNorm1d(4, affine=False)
    elif mode == "no statistics":
        model[1] = nn.BatchNorm1d(4, track_running_stats=False)
    elif mode == "other channels":
        x = torch.randn(3, 4, 4)
    elif mode == "rows pooled":
        model[1] = nn.MaxPool2d(1)
        x = torch.randn(3, 4, 4)
    elif mode == "hook":
        model[1].register_forward_hook(lambda *_: None)
    else:
        model = nn.Sequential(model[0], model[1], nn.Linear(4, 4), model[1])
    before = state(model)
    with pytest.raises(ValueError, match="model must have two Linear or two convolution"):
        pc.equalize_(model, x)
    assert same(model, before)
    broken = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    broken[1].running_var[2] = torch.nan
    with pytest.raises(ValueError, match="'1': 1 NaN"):
        pc.equalize_(broken, torch.randn(3, 4))


def test_a_tied_bias_keeps_its_layer_out():
    model = Ways("tied")
    with pytest.raises(ValueError, match="model must have two Linear"):
        pc.equalize_(model, torch.randn(4, 4))  # a and c share a bias: neither may change, and b has no partner left


def test_convolution_and_linear_are_no_pair():
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Linear(6, 3))  # the linear layer works on positions, not on channels
    with pytest.raises(ValueError, match="model must have two Linear"):
        pc.equalize_(model, torch.randn(1, 2, 6))


@pytest.mark.parametrize("inputs", [None, "x", torch.randn(3, 5), torch.randn(3, 4, device="meta")])
def test_wrong_inputs(inputs):
    model = Ways("plain")
    before = state(model)
    with pytest.raises((TypeError, ValueError), match="example_inputs"):
        pc.equalize_(model, inputs)
    assert same(model, before) and not model.a._forward_hooks and not model.b._forward_pre_hooks


def test_a_layer_that_runs_twice():
    """Both calls hand their outputs to one layer: the factors are the same for both."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x).relu()) + self.b(F.leaky_relu(self.a(2 * x), 0.2))

    model, x = uneven(Twice()), torch.randn(3, 4)
    expected = model(x).detach()
    assert len(pc.equalize_(model, x).places) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_nothing_stays_behind_when_a_run_fails():
    layer = nn.Linear(2, 2)

    def fails():
        layer(torch.ones(1, 2))
        raise KeyError("run")

    with pytest.raises(KeyError):
        observed([layer], [layer], [fails])
    assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert layer(torch.ones(1, 2)).requires_grad
