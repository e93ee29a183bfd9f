"""quantize_dynamic: torch's arguments and what each layer becomes; small layers, measured ones; a script of a user."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from test_packing import Own, Renamed, Tied, X, mlp, pruned_, quantized_
from torch import nn

from pycompress import masks
from pycompress.dynamic import quantize_dynamic
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
