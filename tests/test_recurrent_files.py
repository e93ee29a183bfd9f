"""Packed LSTM and GRU layers in artifacts: they come back bit for bit, and files that are wrong are refused."""

import struct

import pytest
import torch
from hostile import Parts
from torch import nn

import pycompress as pc
from pycompress import kernels
from pycompress.artifact import describe
from pycompress.artifact.saving import to_bytes
from pycompress.recurrent import PackedGRU, PackedLSTM, packed_of


class Model(nn.Module):
    def __init__(self, **changes):
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True} | changes
        self.lstm = nn.LSTM(6, 5, **options)
        self.gru = nn.GRU(6, 4, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x)[0])[0])


def built(**changes):
    torch.manual_seed(0)
    return Model(**changes).eval()


def packed():
    return pc.quantize_dynamic(built())


X = torch.randn(3, 4, 6)


@pytest.fixture
def path(tmp_path):
    pc.save(packed(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("into", [Model, packed])
@torch.no_grad()
def test_loading_gives_the_same_bits(path, into):
    model, loaded = packed(), pc.load(path, into)
    assert isinstance(loaded.lstm, PackedLSTM) and isinstance(loaded.gru, PackedGRU)
    assert torch.equal(loaded(X), model(X))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert not loaded.training
    assert [(d.name, d.reason) for d in pc.explain(loaded)] == [(d.name, d.reason) for d in pc.explain(model)]
    again = path.with_name("again.safetensors")
    pc.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()
    names = [tensor.name for tensor in describe(path).tensors]
    assert "lstm.weight_hr_l1_reverse" in str(names) and "gru.scale_hh_l0" in str(names)


@torch.no_grad()
def test_a_model_that_is_one_layer_and_layers_that_are_shared(tmp_path):
    layer = packed_of(nn.GRU(3, 4).eval())
    pc.save(layer, tmp_path / "one.safetensors")
    loaded = pc.load(tmp_path / "one.safetensors", nn.GRU(3, 4))
    assert torch.equal(loaded(X[..., :3])[0], layer(X[..., :3])[0])
    pair = nn.ModuleList([layer, layer, PackedGRU(layer.packed)])
    assert len(to_bytes(pair)) < 1.7 * len(to_bytes(layer))
    pc.save(pair, tmp_path / "pair.safetensors")
    gru = nn.GRU(3, 4)
    loaded = pc.load(tmp_path / "pair.safetensors", nn.ModuleList([gru, gru, nn.GRU(3, 4)]))
    assert loaded[0] is loaded[1]
    assert all(torch.equal(one(X[..., :3])[0], layer(X[..., :3])[0]) for one in loaded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 1}, "mismatched: lstm, .*num_layers"),
        ({"batch_first": False}, "batch_first"),
        ({"proj_size": 0}, "proj_size"),
        ({"bias": False}, "bias"),
    ],
)
def test_another_model_is_refused(path, changes, message):
    model = Model(**changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(path, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_place_of_another_kind_is_refused(path, tmp_path):
    model = Model()
    model.gru = nn.RNN(6, 4, bias=False)
    with pytest.raises(pc.artifact.ArtifactError, match="gru, a packed GRU in the file and RNN in the model"):
        pc.load(path, model)
    pc.save(built(), tmp_path / "dense.safetensors")
    with pytest.raises(pc.artifact.ArtifactError, match="lstm, a packed recurrent layer in the model"):
        pc.load(tmp_path / "dense.safetensors", packed())


def test_what_no_file_can_say_is_refused():
    weights = torch.ones(6, 3), torch.ones(6, 2)
    one_bias = PackedGRU([kernels.pack_gru(*weights, torch.ones(6))])
    static = PackedGRU([kernels.pack_gru(*weights, input_scale=0.1)])
    for layer in (one_bias, static):
        with pytest.raises(pc.artifact.ArtifactError, match="same tensors in all of its parts"):
            to_bytes(layer)


WRONG = {
    "must be 'lstm', 'gru' or 'rnn'": [
        ("metadata/layers/lstm/packed/recurrent/cell", value) for value in ("elman", None, 3, [])
    ],
    "step must be true for 'rnn'": [("metadata/layers/lstm/packed/recurrent/cell", "rnn")],
    "must be a positive integer": [
        ("metadata/layers/lstm/packed/recurrent/layers", value) for value in (0, -1, 2**31, 2**70, 1.0, True, "2", None)
    ],
    "must be true or false": [
        (f"metadata/layers/lstm/packed/recurrent/{name}", value)
        for name in ("bidirectional", "batch_first", "bias", "projection")
        for value in (1, 0, None, "true", [])
    ],
    "projection must be false for a GRU": [("metadata/layers/lstm/packed/recurrent/cell", "gru")],
    "must have a tensor": [
        ("metadata/layers/lstm/packed/recurrent/layers", 3),
        ("metadata/layers/lstm/packed/recurrent/layers", 2**31 - 1),
        ("metadata/layers/gru/packed/recurrent/bidirectional", True),
        ("metadata/layers/gru/packed/recurrent/bias", True),
    ],
    "unexpected in the file": [
        ("metadata/layers/lstm/packed/recurrent/layers", 1),
        ("metadata/layers/lstm/packed/recurrent/bias", False),
    ],
    "must have": [
        ("metadata/layers/lstm/packed/recurrent/bidirectional", False),
        ("metadata/layers/lstm/packed/recurrent/projection", False),
        ("metadata/layers/gru/packed/recurrent/more", 1),
        ("metadata/layers/gru/packed/recurrent", {"cell": "gru"}),
        ("metadata/layers/gru/packed/recurrent", {"layers": 1}),
        ("header/lstm.weight_ih_l0/shape", [60, 2]),
        ("header/lstm.weight_ih_l0/shape", [15, 8]),
        ("header/lstm.weight_ih_l0/shape", [120]),
        ("header/lstm.weight_hr_l0/shape", [5, 3]),
        ("header/lstm.weight_hr_l0/shape", [15]),
        ("header/lstm.weight_hh_l1/shape", [15, 4]),
        ("header/lstm.scale_ih_l0/shape", [4, 5]),
        ("header/lstm.weight_ih_l0/dtype", "U8"),
        ("header/lstm.scale_ih_l0/dtype", "I32"),
    ],
    "must be Int8": [
        ("metadata/layers/gru/packed/activation", "relu"),
        ("metadata/layers/gru/packed/convolution", {"stride": [1], "padding": [[0, 0]], "dilation": [1]}),
        (
            "metadata/layers/gru/packed/format",
            {"name": "Sparse", "block": [1, 1], "values": {"name": "Float32"}},
        ),
    ],
    "input_scale": [("metadata/layers/gru/input_scale", 0.5)],
    "must not have an input_scale or groups": [("metadata/layers/gru/groups", 2)],
    "must be a JSON object": [("metadata/layers/gru/packed/recurrent", value) for value in (None, 3, [], "gru")],
}


@pytest.mark.parametrize(
    ("message", "where", "value"), [(message, *case) for message, found in WRONG.items() for case in found]
)
def test_hostile_metadata_is_refused(message, where, value, tmp_path):
    parts = Parts(to_bytes(packed()))
    parts.set(where, value)
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", Model)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gru.scale_hh_l0", struct.pack("<f", -1), "scale_hh must be positive"),
        ("gru.scale_ih_l0", struct.pack("<f", float("nan")), "scale_ih must be finite"),
        ("lstm.bias_hh_l0", struct.pack("<f", float("inf")), "bias_hh must be finite"),
        ("lstm.weight_hr_l1_reverse", b"\x80", "from -127 to 127"),
    ],
)
def test_hostile_numbers_are_refused(name, value, message, tmp_path):
    parts = Parts(to_bytes(packed()))
    begin = parts.header[name]["data_offsets"][0]
    parts.data[begin : begin + len(value)] = value
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", Model)
