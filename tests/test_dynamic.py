"""quantize_dynamic: torch's arguments and what each layer becomes; small layers, measured ones, encoder layers; one
script that runs with torch's function and with ours."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from test_packing import Own, Renamed, Tied, X, mlp, pruned_, quantized_
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import masks, sizes
from pycompress.attention import PackedMultiheadAttention
from pycompress.dynamic import quantize_dynamic
from pycompress.encoders import is_fused
from pycompress.explaining import explain
from pycompress.formats import Int4, Int8
from pycompress.layers import PackedLayer, PackedLinear, decisions
from pycompress.recurrent import PackedGRU


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), Renamed(12, 12))
        self.head = nn.Linear(12, 3)
        self.attention = nn.MultiheadAttention(12, 2)

    def forward(self, x):
        return self.head(self.inner(x))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {"inner.0", "inner.2", "head"}),
        ({nn.Linear}, {"inner.0", "inner.2", "head"}),
        (frozenset({nn.Linear, nn.LSTM}), {"inner.0", "inner.2", "head"}),
        ({Renamed}, {"inner.2"}),
        ({"head"}, {"head"}),
        ({"inner"}, {"inner.0", "inner.2"}),
        ({"inner.0", "head"}, {"inner.0", "head"}),
        ({nn.Linear: 1, "inner.0": None}, {"inner.2", "head"}),
        ({nn.Linear: 1, Renamed: None}, {"inner.0", "head"}),
        ({nn.Sequential: 1, "inner.2": None}, {"inner.0"}),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_quantize_dynamic_replaces_what_is_asked_for(spec, expected, inplace):
    model = Encoder().train()
    dense = copy.deepcopy(model)(X).detach()
    result = quantize_dynamic(model, spec, inplace=inplace)
    assert {name for name, module in result.named_modules() if isinstance(module, PackedLinear)} == expected
    assert (result is model) == inplace
    assert model.training != inplace
    assert not result.training
    torch.testing.assert_close(result(X), dense, atol=0.1, rtol=0.1)
    for name in expected:
        assert decisions(result)[name].reason == "asked for by quantize_dynamic"
        assert decisions(result)[name].format == Int8()
    assert all(p.requires_grad for p in model.parameters()) != inplace


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantize_dynamic_takes_torchs_calls_and_is_as_exact():
    from torch.ao.quantization import default_dynamic_qconfig
    from torch.ao.quantization import quantize_dynamic as torchs

    model = mlp().eval()
    spec = {nn.Linear: default_dynamic_qconfig}
    ours, theirs, exact = quantize_dynamic(model, spec, torch.qint8), torchs(model, spec, torch.qint8), model(X)
    assert (ours(X) - exact).abs().max() <= 1.5 * (theirs(X) - exact).abs().max()


def test_quantize_dynamic_keeps_recorded_integers_and_drops_masks_and_static_scales():
    model = nn.Sequential(quantized_(pruned_(nn.Linear(12, 9)), 0.05))
    weight = model[0].weight.detach().clone()
    packed = quantize_dynamic(model)
    np.testing.assert_array_equal(packed[0].packed.unpack(), weight)
    assert packed[0].packed.input_scale is None
    assert masks.mask_of(model[0]) is not None
    quantize_dynamic(model, inplace=True)
    np.testing.assert_array_equal(model[0].packed.unpack(), weight)


def test_quantize_dynamic_leaves_what_must_keep_its_weight():
    class OwnLayer(nn.TransformerEncoderLayer):
        def forward(self, src):
            return super().forward(src) + self.linear1.weight.sum()

    model = nn.ModuleDict({"encoder": OwnLayer(12, 2, 16), "fc": nn.Linear(12, 3), "own": Own(12, 3)})
    packed = quantize_dynamic(model, {nn.Linear})
    packed["encoder"](X.reshape(1, 6, 12))
    reasons = {decision.name: decision.reason for decision in explain(packed)}
    assert reasons["encoder.linear1"] == "its parent reads its weight"
    assert reasons["own"] == "Own has a forward of its own"
    assert reasons["fc"] == "asked for by quantize_dynamic"


def recurrent():
    return nn.ModuleDict(
        {"fc": nn.Linear(3, 3), "rnn": nn.RNN(3, 3), "cell": nn.RNNCell(3, 3), "conv": nn.Conv1d(1, 1, 1)}
    )


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ({nn.RNN, nn.Conv1d}, {}, NotImplementedError, "got 'rnn': RNN; 'conv': Conv1d$"),
        ({"rnn": 1, nn.Linear: 1}, {}, NotImplementedError, "got 'rnn': RNN$"),
        ({nn.Conv1d}, {}, NotImplementedError, "got 'conv': Conv1d$"),
        ({"fc", "fd", "fe"}, {}, ValueError, r"must name modules of the model, got \['f[de]', 'f[de]'\]"),
        ({Renamed}, {}, ValueError, "must match a layer that can be packed, got none"),
        (set(), {}, ValueError, "must match a layer"),
        ([nn.Linear], {}, TypeError, "qconfig_spec must be None, a set or a dict, got list"),
        ({1}, {}, TypeError, "must hold module types and names, got 1"),
        (None, {"dtype": torch.float16}, NotImplementedError, "dtype must be torch.qint8, .* got torch.float16"),
        ({nn.Linear}, {"dtype": torch.quint4x2}, NotImplementedError, "got 'fc': torch.quint4x2"),
        (
            {nn.Linear},
            {"dtype": torch.quint8},
            NotImplementedError,
            "dtype must be torch.qint8 for .* got 'fc': torch.quint8",
        ),
        (None, {"dtype": torch.int32}, ValueError, "dtype must be torch.qint8, .* got torch.int32"),
        (None, {"dtype": "qint8"}, TypeError, "dtype must be torch.qint8, got 'qint8'"),
        (None, {"mapping": {}}, NotImplementedError, "mapping must be None"),
        (None, {"inplace": 1}, TypeError, "inplace must be a bool"),
    ],
)
def test_quantize_dynamic_refuses_before_any_change(spec, options, error, message):
    model = recurrent()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        quantize_dynamic(model, spec, **{"inplace": True, **options})
    assert isinstance(model["fc"], nn.Linear)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_quantize_dynamic_refuses_a_named_layer_that_cannot_be_packed():
    model = nn.ModuleDict({"a": Own(3, 3), "b": nn.MultiheadAttention(4, 2), "c": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"'a': Own has a forward of its own; 'b\.out_proj': its parent reads"):
        quantize_dynamic(model, {"a", "b.out_proj", "c"})
    with pytest.raises(ValueError, match=r"got 'a': Own has a forward of its own$"):
        quantize_dynamic(model, {Own})
    with pytest.raises(ValueError, match="weight with 1 NaN"):
        broken = nn.Linear(2, 2)
        broken.weight.data[0, 0] = torch.nan
        quantize_dynamic(nn.Sequential(nn.Linear(2, 2), broken), {"0"})


def test_quantize_dynamic_of_a_single_linear():
    layer = nn.Linear(12, 3)
    assert isinstance(quantize_dynamic(layer), PackedLinear)
    with pytest.raises(ValueError, match="inplace must be False"):
        quantize_dynamic(layer, inplace=True)
    with pytest.raises(TypeError, match="model must be a"):
        quantize_dynamic("model")


def test_quantize_dynamic_keeps_sharing():
    packed = quantize_dynamic(Tied())
    assert packed.a.packed is packed.b.packed
    assert packed.c is packed.alias


def test_types_without_a_kernel_stay_and_say_why():
    packed = quantize_dynamic(recurrent(), {nn.Linear, nn.RNN, nn.RNNCell, nn.Conv1d})
    reasons = {decision.name: decision.reason for decision in explain(packed)}
    lacking = "it has no int8 kernel with scales found at run time"
    asked = dict.fromkeys(("fc", "cell"), "asked for by quantize_dynamic")
    assert reasons == {**asked, **dict.fromkeys(("rnn", "conv"), lacking)}
    reasons = {decision.name: decision.reason for decision in explain(quantize_dynamic(recurrent()))}
    assert reasons["rnn"] == "no kernel yet, stays dense"
    assert isinstance(quantize_dynamic(recurrent(), {""})["fc"], PackedLinear)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_qconfigs_say_what_torchs_do():
    from torch.ao import quantization as q

    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "table": nn.Embedding(3, 3)})
    spec = {nn.Linear: q.per_channel_dynamic_qconfig, nn.Embedding: q.float_qparams_weight_only_qconfig, "b": None}
    packed = quantize_dynamic(model, spec, dtype=torch.float16)  # torch looks at the values of a dict alone
    assert {name for name, m in packed.named_modules() if isinstance(m, PackedLayer)} == {"a", "table"}
    with pytest.raises(NotImplementedError, match=r"qconfig_spec must ask for weights of .* torch.float16 for 'a'"):
        quantize_dynamic(model, {"a": q.float16_dynamic_qconfig})
    for wrong in (q.float_qparams_weight_only_qconfig, q.float_qparams_weight_only_qconfig_4bit):
        with pytest.raises(NotImplementedError, match=r"dtype must be torch.qint8 for .* got 'a': torch.quint"):
            quantize_dynamic(model, {"a": wrong})
    four = quantize_dynamic(model, {nn.Embedding: q.float_qparams_weight_only_qconfig_4bit})
    assert four["table"].format == Int4() and type(four["a"]) is nn.Linear
    model["a"].qconfig, model["b"].qconfig = None, q.default_dynamic_qconfig
    packed = quantize_dynamic(model, {nn.Linear: q.default_dynamic_qconfig, "b": None})
    assert {name for name, m in packed.named_modules() if isinstance(m, PackedLayer)} == {"b"}
    assert not any(hasattr(module, "qconfig") for module in packed.modules()) and model["a"].qconfig is None


def test_quint8_is_for_embeddings():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "bag": nn.EmbeddingBag(9, 4), "fc": nn.Linear(4, 4)})
    for spec in (None, {nn.Embedding, nn.EmbeddingBag}):
        packed = quantize_dynamic(model, spec, dtype=torch.quint8)
        assert {name for name, m in packed.named_modules() if isinstance(m, PackedLayer)} == {"table", "bag"}
    four = quantize_dynamic(model, dtype=torch.quint4x2)
    assert [name for name, m in four.named_modules() if isinstance(m, PackedLayer)] == ["bag"]
    four = quantize_dynamic(model, {nn.Embedding, nn.EmbeddingBag}, dtype=torch.quint4x2)
    assert four["bag"].format == four["table"].format == Int4()


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_forward_hooks_go_over_to_the_packed_layers(inplace, measured):
    model, seen = nn.Sequential(nn.Linear(300, 300), nn.GRU(300, 64)), []
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(type(module)), with_kwargs=True)
    model[1].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    x = torch.randn(3, 2, 300, generator=torch.Generator().manual_seed(0))
    expected = model(x)[0].detach()
    more = {"example_inputs": x} if measured else {}
    packed = quantize_dynamic(model, inplace=inplace, **more)
    seen.clear()
    got = packed(x)[0]
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)
    assert seen == [PackedLinear, PackedGRU] and (inplace or isinstance(model[0], nn.Linear))


# Never slower.


def three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 2))


@pytest.mark.sizes
def test_small_layers_stay_unless_they_are_named():
    packed = quantize_dynamic(three())
    assert [type(packed[i]) for i in (0, 2, 4)] == [nn.Linear, PackedLinear, nn.Linear]
    assert [d.reason for d in explain(packed)] == [
        "at 32 x 48 weights int8 gains no time",
        "asked for by quantize_dynamic",
        "at 2 x 512 weights int8 gains no time",
    ]
    packed = quantize_dynamic(three(), {nn.Linear, "0"})
    assert [type(packed[i]) for i in (0, 2, 4)] == [PackedLinear, PackedLinear, nn.Linear]
    small = quantize_dynamic(nn.Linear(2, 2))
    assert type(small) is nn.Linear and not small.training
    again = quantize_dynamic(three())  # what is left alone follows from sizes: numbers of one fit the other
    again.load_state_dict(quantize_dynamic(three()).state_dict())


@pytest.mark.sizes
@pytest.mark.parametrize(
    ("kind", "least"), [(nn.LSTM, 32), (nn.GRU, 16), (nn.LSTMCell, 16), (nn.GRUCell, 16), (nn.RNNCell, 128)]
)
def test_recurrent_layers_of_few_units_stay(kind, least):
    assert isinstance(quantize_dynamic(kind(2, least)), PackedLayer)
    small = quantize_dynamic(kind(2, least - 1))
    assert type(small) is kind
    assert explain(small)[0].reason == f"at 2 inputs and {least - 1} hidden units int8 gains no time"
    assert isinstance(quantize_dynamic(nn.Sequential(kind(2, 2)), {"0"})[0], PackedLayer)


@pytest.mark.parametrize(("packed_us", "kind"), [(50, PackedLinear), (200, nn.Linear)])
@pytest.mark.parametrize("inplace", [False, True])
def test_with_example_inputs_the_clock_decides(monkeypatch, packed_us, kind, inplace):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    def slow(forward, us):
        def run(self, *args):
            clock.now += us * 2.0**-20
            return forward(self, *args)

        return run

    monkeypatch.setattr(PackedLinear, "forward", slow(PackedLinear.forward, packed_us))
    monkeypatch.setattr(nn.Linear, "forward", slow(nn.Linear.forward, 100))
    model = three().train()
    spec = {nn.Linear, "4"}
    packed = quantize_dynamic(model, spec, inplace=inplace, example_inputs=torch.ones(5, 48), _clock=clock)
    assert [type(packed[i]) for i in (0, 2, 4)] == [kind] * 3 and (packed is model) == inplace
    for decision in explain(packed):
        assert decision.rows == 5 and decision.speedup == pytest.approx(100 / packed_us)
        assert decision.reason == ("faster" if packed_us < 100 else "Int8 not faster")
    assert not packed.training


def test_with_example_inputs_layers_that_they_do_not_reach_stay():
    model = nn.Sequential(nn.Linear(12, 3), nn.Tanh())
    model.unused = nn.Linear(12, 3)
    model.forward = lambda x: model[1](model[0](x))
    [_, unused] = explain(quantize_dynamic(model, example_inputs=X))
    assert unused.reason == "never called by example_inputs"
    with pytest.raises(ValueError, match="example_inputs must fit the model"):
        quantize_dynamic(model, example_inputs=X[:, :3])


# Encoder layers.


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


# The script of a user.


def test_one_script_runs_with_the_one_import_changed(tmp_path):
    torchs = (FilePath(__file__).with_name("drop_in_script.py")).read_text()
    line = "from torch.ao.quantization import quantize_dynamic\n"
    assert torchs.count(line) == 1
    ours = torchs.replace(line, "from pycompress import quantize_dynamic\n")
    found = {}
    for name, text in (("torch", torchs), ("ours", ours)):
        (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "-W", "ignore", str(tmp_path / f"{name}.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    assert found["ours"]["replaced"] == found["torch"]["replaced"]
    assert found["ours"]["same"] == found["torch"]["same"] == dict.fromkeys(found["ours"]["same"], True)
    for name, error in found["ours"]["errors"].items():
        assert error <= found["torch"]["errors"][name], name
