"""Grids of the weights that recurrent layers and attention hold: rounding, packing with exactly these integers."""

import copy

import pytest
import torch
from test_prune_recurrent import CLASSES, IDS, NAMES, Tagger, parameter
from torch import nn

import pycompress as pc
from pycompress import grids
from pycompress.selection import place_of, select_weights


def make(seed=0):
    torch.manual_seed(seed)
    return Tagger().eval()


def test_every_weight_lies_on_its_grid():
    model, before = make(), make()
    summary = pc.quantize_(model, pc.Int8())
    assert [layer.name for layer in summary.layers] == NAMES
    for name, layer in select_weights(model).items():
        weight, old = parameter(model, name).detach(), parameter(before, name).detach()
        scale = old.abs().amax(1, keepdim=True) / 127
        torch.testing.assert_close(weight, torch.round(old / scale) * scale)
        integers, recorded = grids.int8_of(*place_of(layer))
        assert torch.equal(integers.float() * recorded[:, None], weight) and integers.dtype == torch.int8
        assert summary.layers[NAMES.index(name)].error == pytest.approx(float((weight - old).norm() / old.norm()))
    rounded = {id(parameter(model, name)) for name in NAMES}
    for after, old in zip(model.parameters(), before.parameters(), strict=True):
        assert id(after) in rounded or torch.equal(after, old)
    assert grids.int8_of(model.table) is not None, "tied with a head that was rounded"
    again = copy.deepcopy(model)
    pc.quantize_(again, pc.Int8())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        model.lstm.weight_hh_l0[0, 0] += 1e-3
    assert grids.int8_of(model.lstm, "weight_hh_l0") is None


@pytest.mark.parametrize("format", [pc.Affine(bits=4), pc.Affine(per_channel=True), pc.FixedPoint(6)])
def test_other_grids(format):
    model = make()
    pc.quantize_(model, format)
    for layer in select_weights(model).values():
        module, name = place_of(layer)
        assert grids.integers(layer.weight, grids.grid_of(module, name)) is not None
    if format == pc.FixedPoint(6):
        assert torch.equal(model.gru.weight_hh_l0 * 64, (model.gru.weight_hh_l0 * 64).round())


def test_pruned_weights_stay_zero():
    model = make()
    pc.prune_(model, sparsity=0.6)
    zeros = {name: parameter(model, name) == 0 for name in NAMES}
    pc.quantize_(model, pc.Int8())
    assert all(bool((parameter(model, name)[where] == 0).all()) for name, where in zeros.items())


def test_pack_uses_exactly_these_integers():
    model = make()
    pc.quantize_(model, pc.Int8())
    integers = {name: grids.int8_of(*place_of(layer)) for name, layer in select_weights(model).items()}
    packed = pc.pack(model, IDS, force=True)
    for prefix in ("lstm", "gru", "cell", "step", "attention", "mixed"):
        held = packed.get_submodule(prefix).state_dict()
        own = {
            name.removeprefix(f"{prefix}."): pair for name, pair in integers.items() if name.startswith(f"{prefix}.")
        }
        for name, (q, scale) in own.items():
            name = name if "weight" in name else f"{name}.weight"
            assert torch.equal(held[name], q), name
            assert torch.equal(held[name.replace("weight", "scale")], scale), name
    with torch.no_grad():
        expected = model(IDS)
        assert float((packed(IDS) - expected).norm() / expected.norm()) < 0.05


def test_without_a_grid_or_off_it_a_layer_stays_dense():
    model = make()
    pc.quantize_(model, pc.Int8(), exclude=["gru", "attention.out_proj", "cell.weight_hh"])
    with torch.no_grad():
        model.step.weight_ih[0, 0] += 1e-3
    packed = pc.pack(model, IDS, force=True)
    kinds = {name: type(packed.get_submodule(name)).__name__ for name in ("lstm", "gru", "cell", "step", "mixed")}
    assert kinds["lstm"] == "PackedLSTM" and kinds["mixed"] == "PackedMultiheadAttention"
    assert kinds["gru"] == "GRU" and kinds["cell"] == "LSTMCell" and kinds["step"] == "GRUCell"
    assert type(packed.attention).__name__ == "MultiheadAttention"


def test_calibration_reaches_what_torch_calls_and_scales_nothing_else():
    model = make()
    summary = pc.quantize_(model, pc.Int8(), calibration=(IDS, CLASSES), bias_correction=True)
    scales = {layer.name: layer.input_scale for layer in summary.layers}
    assert [name for name, scale in scales.items() if scale is not None] == ["head", "tied"]
    assert {layer.name for layer in summary.layers if layer.bias_change is not None} == {"head"}
    model = make()
    summary = pc.quantize_(model, pc.Int8(), calibration=(IDS, CLASSES), max_error=1e-9, exclude=["tied"])
    left = {layer.name for layer in summary.layers if layer.stays_float}
    assert left == {"head"} and torch.equal(model.head.weight, make().head.weight)
    assert grids.int8_of(model.lstm, "weight_ih_l0") is not None


def test_embeddings_are_rounded_where_they_are_asked_for():
    model = nn.Sequential(nn.Embedding(7, 4), nn.LSTM(4, 3))
    pc.quantize_(model, pc.Int8())
    assert grids.grid_of(model[0]) is None
    summary = pc.quantize_(model, pc.Int8(), include=["0"])
    assert [layer.name for layer in summary.layers] == ["0"]
    packed = pc.pack(model, torch.arange(7)[:, None], force=True)
    assert [type(module).__name__ for module in packed] == ["PackedEmbedding", "PackedLSTM"]


def test_compress_prunes_an_lstm_and_runs_it_on_int8(tmp_path):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    x = torch.randn(64, 10, 64)
    data = x, (x[:, -1, 0] > 0).long()
    options = {"sparsity": 0.7, "quantize": pc.Int8(), "epochs": 1, "progress": False}
    result = pc.compress(Net(), data, None, example_inputs=x[:8], **options)
    assert [layer.name for layer in result.summary.quantization.layers] == [
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "head",
    ]
    [lstm] = [layer for layer in result.summary.layers if layer.name == "lstm"]
    assert lstm.speedup is not None, "int8 was measured against the dense layer"
    forced = pc.pack(result.model, x[:8], force=True) if lstm.format is None else result.model
    integers = forced.lstm.state_dict()["weight_hh_l0"]
    assert integers.dtype == torch.int8 and float((integers == 0).float().mean()) > 0.5
    pc.save(result.model, tmp_path / "model")
    again = pc.load(tmp_path / "model", into=Net)
    assert torch.equal(again(x), result.model(x))


def test_loading_forgets_grids(tmp_path):
    model = nn.Sequential(nn.LSTM(4, 3))
    pc.quantize_(model, pc.Int8())
    pc.save(nn.Sequential(nn.LSTM(4, 3)), tmp_path / "other")
    pc.load(tmp_path / "other", into=model)
    assert grids.grid_of(model[0], "weight_ih_l0") is None


def test_bad_weights_are_named():
    model = make()
    model.cell.weight_hh.data[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'cell\.weight_hh': 1 NaN"):
        pc.quantize_(model, pc.Int8())
    assert all(torch.equal(v.nan_to_num(7), before[k].nan_to_num(7)) for k, v in model.state_dict().items())
    assert all(grids.grid_of(*place_of(layer)) is None for layer in select_weights(make()).values())
