"""quantize_dynamic and pack on encoder and decoder layers: what is packed, and when the fused path is left."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import sizes
from pycompress.attention import PackedMultiheadAttention
from pycompress.dynamic import quantize_dynamic
from pycompress.encoders import is_fused
from pycompress.explaining import explain
from pycompress.formats import Int8
from pycompress.layers import PackedLinear


def encoder(**options):
    torch.manual_seed(3)
    options = {"batch_first": True} | options
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, **options), 2, enable_nested_tensor=False).eval()


PADDING = torch.zeros(3, 5, dtype=torch.bool)
PADDING[1, 3:] = True
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
Y = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
CALLS = [{}, {"mask": CAUSAL}, {"mask": CAUSAL, "is_causal": True}, {"src_key_padding_mask": PADDING}]


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}, {"bias": False}, {"nhead": 1}])
@torch.no_grad()
def test_linear_layers_of_encoder_layers_are_packed(options):
    torch.manual_seed(3)
    options = {"nhead": 4, "batch_first": True, "dropout": 0.3} | options
    layer = nn.TransformerEncoderLayer(16, dim_feedforward=24, **options)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    packed = quantize_dynamic(model)
    for inner in packed.layers:
        assert isinstance(inner.linear1, PackedLinear) and isinstance(inner.linear2, PackedLinear)
        assert type(inner.self_attn) is nn.MultiheadAttention and not is_fused(inner)
    for given in CALLS:
        kept = ~given.get("src_key_padding_mask", torch.zeros(3, 5, dtype=torch.bool))
        for other in (packed, copy.deepcopy(packed)):
            torch.testing.assert_close(other(Y, **given)[kept], model(Y, **given)[kept], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("activation", ["relu", "gelu", F.silu, nn.ReLU(), nn.GELU(), nn.GELU("tanh"), torch.exp])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@torch.no_grad()
def test_packed_layers_compute_the_activations_of_blocks(tmp_path, kind, activation):
    def build():
        torch.manual_seed(3)
        return nn.ModuleList([kind(16, 4, 24, batch_first=True, activation=activation)]).eval()

    model, given = build(), (Y,) * (1 if kind is nn.TransformerEncoderLayer else 2)
    dynamic, packed = quantize_dynamic(model), pc.pack(model[0], given, Int8(), force=True)
    fused = activation is not torch.exp and getattr(activation, "approximate", "none") == "none"
    assert (dynamic[0].linear1.activation is not None) == (packed.linear1.activation is not None) == fused
    y = dynamic[0](*given)
    torch.testing.assert_close(y, model[0](*given), atol=0.1, rtol=0.1)
    torch.testing.assert_close(packed(*given), model[0](*given), atol=0.1, rtol=0.1)
    pc.save(dynamic, tmp_path / "model")
    loaded = [pc.load(tmp_path / "model", into) for into in (build, lambda: quantize_dynamic(build()))]
    copies = [copy.deepcopy(dynamic), pickle.loads(pickle.dumps(dynamic))]
    if kind is nn.TransformerDecoderLayer and not fused:  # copies of torch's own forget an activation that is a module
        copies = []
    for other in (*loaded, *copies):
        assert torch.equal(other[0](*given), y) and other[0].linear1.activation == dynamic[0].linear1.activation


@torch.no_grad()
def test_activations_stay_where_something_else_sees_the_layer():
    class Own(nn.TransformerDecoderLayer):
        def _ff_block(self, x):
            return super()._ff_block(x)

    shared = nn.ModuleList([nn.TransformerDecoderLayer(16, 4, 24) for _ in range(2)])
    shared[1].linear1 = shared[0].linear1
    assert quantize_dynamic(shared)[1].linear1.activation == "relu"
    shared[1].activation = F.gelu
    assert quantize_dynamic(shared)[1].linear1.activation is None
    elsewhere = nn.ModuleList([nn.TransformerDecoderLayer(16, 4, 24), nn.Linear(2, 2)])
    elsewhere[1] = elsewhere[0].linear1
    hooked = nn.TransformerDecoderLayer(16, 4, 24)
    hooked.linear1.register_forward_hook(lambda *_: None)
    for model in (elsewhere, nn.ModuleList([hooked]), nn.ModuleList([Own(16, 4, 24)])):
        packed = quantize_dynamic(model)[0]
        assert isinstance(packed.linear1, PackedLinear) and packed.linear1.activation is None


@torch.no_grad()
def test_encoder_layers_come_back_from_files_without_their_fused_path(tmp_path):
    packed = quantize_dynamic(encoder())
    pc.save(packed, tmp_path / "model")
    loaded = pc.load(tmp_path / "model", encoder)
    assert torch.equal(loaded(Y), packed(Y)) and not any(map(is_fused, loaded.modules()))


@torch.no_grad()
def test_decoder_layers():
    torch.manual_seed(3)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, batch_first=True), 2).eval()
    for spec in (None, {nn.Linear, nn.MultiheadAttention}):
        packed = quantize_dynamic(model, spec)
        assert isinstance(packed.layers[1].linear2, PackedLinear)
        assert isinstance(packed.layers[0].multihead_attn, PackedMultiheadAttention) == bool(spec)
        for given in ({}, {"tgt_mask": CAUSAL, "tgt_is_causal": True}, {"memory_key_padding_mask": PADDING}):
            torch.testing.assert_close(packed(Y, Y + 1, **given), model(Y, Y + 1, **given), atol=0.1, rtol=0.1)
    forced = pc.pack(model, (Y, Y + 1), Int8(), force=True)
    assert isinstance(forced.layers[0].multihead_attn, PackedMultiheadAttention)
    torch.testing.assert_close(forced(Y, Y + 1), model(Y, Y + 1), atol=0.1, rtol=0.1)


@pytest.mark.sizes
def test_small_encoder_layers_stay_on_their_fused_path(monkeypatch):
    for name in ("LINEAR", "OUTPUTS", "INPUTS"):
        monkeypatch.setattr(sizes, name, 0)
    packed = quantize_dynamic(encoder())
    assert all(is_fused(layer) and type(layer.linear1) is nn.Linear for layer in packed.layers)
    reasons = {d.name: d.reason for d in explain(packed)}
    assert (
        reasons["layers.1.linear1"]
        == "at 24 x 16 weights int8 gains less time than its encoder layer's fused path does"
    )
    assert not is_fused(quantize_dynamic(encoder(), {nn.Linear, "layers.0.linear1"}).layers[0])
    apart = quantize_dynamic(encoder(batch_first=False))  # which has no fused path
    assert isinstance(apart.layers[0].linear1, PackedLinear)


class PathClock:
    """A clock in which only attention (20), linear layers (dense 10, packed `packed`) and the fused path take time."""

    def __init__(self, monkeypatch, packed, fused):
        self.now = 0.0
        times = {nn.Linear: 10.0, PackedLinear: packed, nn.MultiheadAttention: 20.0, PackedMultiheadAttention: packed}
        for cls, seconds in times.items():
            monkeypatch.setattr(cls, "forward", self.slow(cls.forward, seconds))
        name = "_transformer_encoder_layer_fwd"
        monkeypatch.setattr(torch, name, self.slow(getattr(torch, name), fused))

    def slow(self, call, seconds):
        @functools.wraps(call)
        def run(*args, **kwargs):
            self.now += seconds
            return call(*args, **kwargs)

        return run

    def __call__(self):
        return self.now


@pytest.mark.parametrize("verb", ["pack", "quantize_dynamic"])
@pytest.mark.parametrize(("packed_seconds", "fused"), [(5.0, 30.0), (5.0, 10.0), (50.0, 30.0)])
@torch.no_grad()
def test_the_whole_model_decides_whether_encoder_layers_leave_their_fused_path(
    monkeypatch, verb, packed_seconds, fused
):
    model = encoder()
    expected = model(Y)
    clock = PathClock(monkeypatch, packed_seconds, fused)
    if verb == "pack":
        packed = pc.pack(model, Y, Int8(), _clock=clock)
    else:
        spec = {nn.Linear, nn.MultiheadAttention}
        packed = quantize_dynamic(model, spec, example_inputs=Y, _clock=clock)
    leaves = packed_seconds < 10 and 3 * packed_seconds < fused
    for layer in packed.layers:
        assert is_fused(layer) != leaves
        assert isinstance(layer.linear1, PackedLinear) == leaves
        assert isinstance(layer.self_attn, PackedMultiheadAttention) == leaves
    reasons = {d.name: d.reason for d in explain(packed)}
    if leaves:
        assert reasons["layers.1.linear2"].startswith("faster")
    else:
        fast = "faster, but for the fused path of its encoder layer"
        assert reasons["layers.1.linear2"] == (fast if packed_seconds < 10 else "Int8 not faster")
    torch.testing.assert_close(packed(Y), expected, atol=0.1, rtol=0.1)
    assert all(is_fused(layer) for layer in model.layers)


@torch.no_grad()
def test_encoder_layers_without_packed_parts_stay_on_their_fused_path():
    model = encoder()
    pc.quantize_(model, Int8(), include=["layers.0.*"])
    packed = pc.pack(model, Y, force=True)
    assert [is_fused(layer) for layer in packed.layers] == [False, True]
    assert isinstance(packed.layers[0].linear2, PackedLinear)
    untouched = pc.pack(encoder(), Y)
    assert all(is_fused(layer) for layer in untouched.layers)
    torch.testing.assert_close(untouched(Y), encoder()(Y))
