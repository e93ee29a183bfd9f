"""SmoothQuant: the formula, where it applies and where not, and what int8 gains."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import masks


class Block(nn.Module):
    """A transformer's block with its norms in front, attention written by hand; `mode` says what else there is."""

    def __init__(self, mode="plain", width=16):
        super().__init__()
        self.mode = mode
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width, bias=mode != "no bias")
        if mode == "rms":
            self.norm1 = nn.RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if mode == "tied":
            self.other = nn.Embedding(4 * width, width)
            self.other.weight = self.up.weight
        if mode == "hook":
            self.up.register_forward_pre_hook(lambda module, args: None)

    def forward(self, x):
        y = self.norm1(x)
        a = F.scaled_dot_product_attention(self.q(y), self.k(input=y), self.v(y))
        x = x + self.out(a)
        y = self.norm2(x)
        if self.mode == "residual":
            x = y
        h = self.up(y)
        if self.mode == "weight read":
            h = h + F.linear(x, self.up.weight)
        if self.mode == "two sources":
            h = h + self.up(x)
        x = x + self.down(F.gelu(h))
        return (x, y) if self.mode == "returned" else x


def outlying(mode="plain"):
    """A block two of whose channels are far larger than the others behind each norm, as in language models."""
    torch.manual_seed(0)
    model = Block(mode)
    for norm in (model.norm1, model.norm2):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.weight.data[[3, 11]] *= 60
        if getattr(norm, "bias", None) is not None:
            norm.bias.data.normal_()
        for layer in (model.q, model.k, model.v, model.up):
            layer.weight.data[:, [3, 11]] /= 8  # once for each norm
    return model


X = torch.randn(9, 7, 16, generator=torch.Generator().manual_seed(0))
DATA = [(X[:4], X[:4]), (X[4:], X[4:])]


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("mode", ["plain", "rms", "no bias"])
def test_smoothing_follows_the_formula_and_keeps_the_outputs(mode, alpha):
    model = outlying(mode).train()
    seen = {}
    original = copy.deepcopy(model).eval()
    for name in ("norm1", "norm2"):
        original.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.update({name: y.detach()}))
    expected = original(X).detach()
    summary = pc.smooth_(model, DATA, alpha)
    groups = {"norm1": ("q", "k", "v"), "norm2": ("up",)}
    assert [(place.source, place.layers) for place in summary.places] == list(groups.items())
    assert str(summary).splitlines()[0].startswith("norm1 -> q, k, v  factors from ")
    for place in summary.places:
        x = np.abs(seen[place.source].double().numpy()).reshape(-1, 16).max(0)
        old = [original.get_submodule(name).weight.detach().double().numpy() for name in place.layers]
        w = np.abs(np.concatenate(old)).max(0)
        s = x**alpha / w ** (1 - alpha)
        np.testing.assert_allclose(place.factors.numpy(), s, rtol=1e-5)
        s = place.factors.numpy()
        for name, weight in zip(place.layers, old, strict=True):
            np.testing.assert_array_equal(model.get_submodule(name).weight.detach(), (weight * s).astype(np.float32))
        for name, parameter in original.get_submodule(place.source).named_parameters():
            new = model.get_submodule(place.source).get_parameter(name).detach().numpy()
            np.testing.assert_array_equal(new, (parameter.detach().double().numpy() / s).astype(np.float32))
    assert torch.equal(model.out.weight, original.out.weight) and torch.equal(model.down.weight, original.down.weight)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model.eval()(X), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_smoothing_lowers_the_int8_error_where_channels_are_outliers():
    original = outlying().eval()
    with torch.no_grad():
        expected = original(X)
        errors = {}
        for smoothed in (False, True):
            model = copy.deepcopy(original)
            if smoothed:
                pc.smooth_(model, DATA)
            pc.quantize_(model, pc.Int8(), DATA)
            packed = pc.pack(model, X, force=True)
            errors[smoothed] = float((packed(X) - expected).norm() / expected.norm())
    assert errors[True] < 0.5 * errors[False], errors


@pytest.mark.parametrize("mode", ["residual", "weight read", "two sources", "returned", "tied", "hook"])
def test_norms_that_others_read_are_left_alone(mode):
    model = outlying(mode)
    before = state(model)
    summary = pc.smooth_(model, DATA)
    assert [place.source for place in summary.places] == ["norm1"]
    assert torch.equal(model.norm2.weight, before["norm2.weight"]) and torch.equal(model.up.weight, before["up.weight"])


def test_torch_s_own_encoder_layer():
    """Its first norm feeds nn.MultiheadAttention, the second one a Linear."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
    model.norm1.weight.data[3] = 50
    old = copy.deepcopy(model).eval()
    expected = model.eval()(X).detach()
    summary = pc.smooth_(model, DATA)
    assert [(p.source, p.layers) for p in summary.places] == [("norm1", ("self_attn",)), ("norm2", ("linear1",))]
    s = summary.places[0].factors.float()
    x = old.norm1(X).abs().reshape(-1, 16).amax(0)
    torch.testing.assert_close(s, (x / old.self_attn.in_proj_weight.abs().amax(0)).sqrt().detach())
    torch.testing.assert_close(model.self_attn.in_proj_weight, old.self_attn.in_proj_weight * s)
    torch.testing.assert_close(model.norm1.weight, old.norm1.weight / s)
    assert torch.equal(model.self_attn.out_proj.weight, old.self_attn.out_proj.weight)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)  # on its fast path, as before
    behind = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)  # norms behind: their outputs are summed too
    with pytest.raises(ValueError, match=r"model must have a LayerNorm .* got none of \['norm1', 'norm2'\]"):
        pc.smooth_(behind, DATA)


def test_attention_that_takes_something_else_too_is_left_alone():
    class Cross(nn.Module):
        def __init__(self, mode):
            super().__init__()
            self.mode, self.norm, self.fc = mode, nn.LayerNorm(16), nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True, kdim=16 if mode == "same" else None)

        def forward(self, x):
            y = self.norm(x)
            if self.mode == "cross":
                return self.attention(y, x, x)[0]
            if self.mode == "weight read":
                return self.attention(y, y, y)[0] + self.attention.in_proj_weight.sum()
            return self.attention(query=y, key=y, value=y, need_weights=False)[0] + self.fc(y)

    for mode in ("cross", "weight read"):
        with pytest.raises(ValueError, match="model must have a LayerNorm"):
            pc.smooth_(Cross(mode), DATA)
    model = Cross("same").eval()
    expected = model(X).detach()
    assert [place.layers for place in pc.smooth_(model, DATA).places] == [("attention", "fc")]
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    for include in (["fc"], ["attention.out_proj", "fc"]):
        with pytest.raises(ValueError, match="model must have a LayerNorm"):
            pc.smooth_(Cross("same"), DATA, include=include)
    model = Cross("same")
    model.attention.in_proj_weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"'attention\.in_proj_weight': 1 NaN"):
        pc.smooth_(model, DATA)


@pytest.mark.parametrize("seed", [0, 1])
def test_smoothing_attention_lowers_its_int8_error(seed):
    torch.manual_seed(seed)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)

        def forward(self, x):
            y = self.norm(x)
            return x + self.attention(y, y, y)[0]

    model = Attends().eval()
    x, errors = torch.randn(8, 9, 32), {}
    model.norm.weight.data[[3, 20]] = 80
    model.attention.in_proj_weight.data[:, [3, 20]] /= 80
    for smoothed in (False, True):
        twin = copy.deepcopy(model)
        if smoothed:
            pc.smooth_(twin, (x, x))
        with torch.no_grad():
            expected, packed = model(x), pc.pack(twin, x, pc.Int8(), force=True)
            errors[smoothed] = float((packed(x) - expected).norm())
    assert errors[True] < 0.7 * errors[False], errors


def test_channels_without_a_maximum_and_pruned_weights_stay():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    model[0].weight.data[1] = 0
    model[1].weight.data[:, 2] = 0
    pc.prune_(model, sparsity=0.5)
    kept = masks.mask_of(model[1])
    place = pc.smooth_(model, (X[..., :4], X), 0.5).places[0]
    assert place.factors[1] == place.factors[2] == 1
    assert torch.equal(masks.mask_of(model[1]), kept) and bool((model[1].weight[~kept] == 0).all())


def test_included_layers_only():
    model = outlying()
    assert [place.source for place in pc.smooth_(model, DATA, exclude=["k"]).places] == ["norm2"]
    assert [place.source for place in pc.smooth_(model, DATA, include=["q", "k", "v"]).places] == ["norm1"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_changes_nothing(bad):
    for place in ("data", "norm", "layer"):
        model, x = outlying(), X.clone()
        if place == "data":
            x[7, 3, 2] = bad
        if place == "norm":
            model.norm2.bias.data[2] = bad
        if place == "layer":
            model.up.weight.data[2, 2] = bad
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(
            ValueError, match={"data": "data must give finite", "norm": "'norm2': 1 NaN", "layer": "'up'"}[place]
        ):
            pc.smooth_(model, [(X, X), (x, x)])
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_values_that_no_float_holds_are_refused():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).half()
    model[0].weight.data[0] = 500
    model[1].weight.data[:] = 200
    before = state(model)
    with pytest.raises(ValueError, match=r"stay finite when they are rescaled, got \['1'\]"):
        pc.smooth_(model, (X[..., :4].half(), X), 1.0)
    assert same(model, before)
