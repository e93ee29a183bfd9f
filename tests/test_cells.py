"""Packed LSTMCell and GRUCell: torch's semantics, the bits of the kernels, copies, files, and what they refuse."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hostile import Parts
from torch import nn

import pycompress as pc
from pycompress import kernels
from pycompress.artifact import describe
from pycompress.artifact.saving import to_bytes
from pycompress.cells import PackedGRUCell, PackedLSTMCell, PackedRNNCell, obstacle, packed_cell
from pycompress.layers import LayerDecision
from pycompress.recurrent import packed_of

KINDS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
PACKED = {"lstm": PackedLSTMCell, "gru": PackedGRUCell, "rnn": PackedRNNCell}
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


def cell_of(kind, **options):
    torch.manual_seed(3)
    return KINDS[kind](12, 21, **options).eval()


def state_of(kind, shape=(5, 21)):
    h = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (h, -h) if kind == "lstm" else h


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


def same(got, expected):
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(flat(got), flat(expected), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_agrees_with_torch(kind, bias, implementation):
    dense = cell_of(kind, bias=bias)
    packed = packed_cell(dense)
    assert isinstance(packed, PACKED[kind]) and not packed.training
    assert (packed.input_size, packed.hidden_size, packed.bias) == (12, 21, bias)
    first = (state_of(kind)[0][0], state_of(kind)[1][0]) if kind == "lstm" else state_of(kind)[0]
    for x, state in ((X, None), (X, state_of(kind)), (X[0], None), (X[0], first), (X[:0], None)):
        for a, b in zip(flat(packed(x, state)), flat(dense(x, state)), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    keywords = packed(input=X, hx=state_of(kind))
    same(keywords, packed(X, state_of(kind)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_steps_are_those_of_the_sequence(kind, implementation):
    cell = cell_of(kind)
    layer = (nn.LSTM if kind == "lstm" else nn.GRU)(12, 21).eval()
    for name, parameter in cell.named_parameters():
        getattr(layer, f"{name}_l0").data.copy_(parameter)
    sequence, packed = torch.randn(4, 5, 12), packed_cell(cell)
    y, final = packed_of(layer)(sequence)
    state = None
    for step, x in enumerate(sequence):
        state = packed(x, state)
        assert torch.equal(flat(state)[0], y[step])
    same(state, tuple(part[0] for part in final) if kind == "lstm" else final[0])
    one = (kernels.lstm if kind == "lstm" else kernels.gru)(X[None].numpy(), packed.packed)[0]
    np.testing.assert_array_equal(flat(packed(X))[0].numpy(), one[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@torch.no_grad()
def test_a_plain_step_is_the_formula(nonlinearity, implementation):
    dense = cell_of("rnn", nonlinearity=nonlinearity)
    packed, h = packed_cell(dense), state_of("rnn")
    parts = [kernels.pack(getattr(dense, f"weight_{s}"), pc.Int8(), getattr(dense, f"bias_{s}")) for s in ("ih", "hh")]
    expected = getattr(torch, nonlinearity)(kernels.linear(X, parts[0]) + kernels.linear(h, parts[1]))
    assert torch.equal(packed(X, h), expected) and torch.equal(packed(X[1], h[1]), expected[1])
    torch.testing.assert_close(packed(X, h), dense(X, h), atol=0.1, rtol=0.05)
    assert packed.nonlinearity == nonlinearity and packed.kernel == parts[0].kernel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@torch.no_grad()
def test_half_precision(kind, dtype):
    packed = packed_cell(cell_of(kind))
    x = X.to(dtype)
    for got, expected in zip(flat(packed(x)), flat(packed(x.float())), strict=True):
        assert got.dtype == dtype and torch.equal(got, expected.to(dtype))
    plain = packed_cell(cell_of("rnn"))
    got = plain(x, state_of("rnn").to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), plain(X, state_of("rnn")), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_copies_keep_the_bits(kind):
    packed = packed_cell(cell_of(kind))
    packed.decision = LayerDecision("cell", "GRUCell", pc.Int8(), reason="test")
    expected = packed(X)
    same(copy.deepcopy(packed)(X), expected)
    unpickled = pickle.loads(pickle.dumps(packed))
    same(unpickled(X), expected)
    assert unpickled.decision == packed.decision and repr(unpickled) == repr(packed)
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer)
    assert set(cell_of(kind).state_dict()) <= set(state)
    other = packed_cell(type(cell_of(kind))(12, 21).eval())
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    same(other(X), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_compiled_without_a_graph_break_to_the_same_bits(kind):
    torch._dynamo.reset()
    packed = packed_cell(cell_of(kind))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    same(compiled(X, state_of(kind)), packed(X, state_of(kind)))
    same(compiled(X[0]), packed(X[0]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_is_as_exact_as_torchs(kind):
    from torch.ao.quantization import quantize_dynamic as torchs

    torch.manual_seed(5)
    model, x = nn.ModuleList([KINDS[kind](40, 64)]).eval(), torch.randn(32, 40)
    exact = flat(model[0](x))[0]
    theirs = flat(torchs(model, {KINDS[kind]})[0](x))[0]
    ours = flat(pc.quantize_dynamic(model)[0](x))[0]
    assert (ours - exact).abs().max() <= 1.2 * (theirs - exact).abs().max()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTMCell(12, 8), nn.GRUCell(8, 8, bias=False)
        self.third = nn.RNNCell(8, 8, nonlinearity="relu")
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        state, h, r = None, None, None
        for _ in range(3):
            state = self.first(x, state)
            h = self.second(state[0], hx=h)
            r = self.third(h, r)
        return self.head(h + r)


def decoder():
    torch.manual_seed(4)
    return Decoder().eval()


@torch.no_grad()
def test_pack_and_quantize_dynamic(tmp_path):
    model = decoder()
    forced = pc.pack(model, X, pc.Int8(), force=True)
    dynamic = pc.quantize_dynamic(model)
    for packed in (forced, dynamic):
        assert isinstance(packed.first, PackedLSTMCell) and isinstance(packed.second, PackedGRUCell)
        assert isinstance(packed.third, PackedRNNCell) and packed.third.nonlinearity == "relu"
        torch.testing.assert_close(packed(X), model(X), atol=0.05, rtol=0.05)
        assert torch.equal(packed(X), forced(X))
    found = {d.name: (d.kind, d.rows, d.reason) for d in pc.explain(forced)}
    assert found["first"] == ("LSTMCell", 15, "forced, not measured")
    assert found["second"] == ("GRUCell", 15, "forced, not measured")
    assert found["third"] == ("RNNCell", 15, "forced, not measured")
    assert pc.explain(pc.pack(model, X))[0].reason == "packed with Int8() alone"
    only = pc.quantize_dynamic(model, {nn.GRUCell})
    assert isinstance(only.first, nn.LSTMCell) and isinstance(only.second, PackedGRUCell)


def test_why_a_cell_stays():
    class Own(nn.GRUCell):
        def forward(self, input, hx=None):
            return super().forward(input, hx) + 1

    hooked = nn.GRUCell(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert obstacle(Own(2, 2)) == "Own has a forward of its own"
    assert obstacle(hooked) == "it has forward hooks, which must be removed first"
    assert obstacle(nn.LSTMCell(2, 2).double()) == "its weights are float64"
    with pytest.raises(ValueError, match="layer must be one that can be packed: Own has"):
        packed_cell(Own(2, 2))
    with pytest.raises(TypeError, match=r"layer must be an nn\.LSTMCell, nn\.GRUCell or nn\.RNNCell, got RNN"):
        packed_cell(nn.RNN(2, 2))


@pytest.mark.parametrize("into", [Decoder, lambda: pc.quantize_dynamic(Decoder())])
@torch.no_grad()
def test_files_give_the_same_bits(tmp_path, into):
    model = pc.quantize_dynamic(decoder())
    pc.save(model, tmp_path / "model")
    loaded = pc.load(tmp_path / "model", into)
    assert torch.equal(loaded(X), model(X)) and not loaded.training
    assert list(pc.explain(loaded)) == list(pc.explain(model))
    pc.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    names = {tensor.name for tensor in describe(tmp_path / "model").tensors}
    assert {"first.weight_ih", "first.bias_hh", "second.scale_hh"} <= names and "second.bias_ih" not in names


@torch.no_grad()
def test_shared_cells_and_other_places(tmp_path):
    cell = packed_cell(cell_of("gru"))
    pair = nn.ModuleList([cell, PackedGRUCell(cell.packed)])
    pc.save(pair, tmp_path / "pair")
    assert len(to_bytes(pair)) < 1.7 * len(to_bytes(cell))
    loaded = pc.load(tmp_path / "pair", nn.ModuleList([nn.GRUCell(12, 21), nn.GRUCell(12, 21)]))
    assert all(torch.equal(one(X), cell(X)) for one in loaded)
    pc.save(cell, tmp_path / "one")
    for module, message in (
        (nn.LSTMCell(12, 21), "a packed GRUCell in the file and LSTMCell in the model"),
        (nn.GRU(12, 21), "a packed GRUCell in the file and GRU in the model"),
        (nn.GRUCell(12, 20), "hidden_size"),
        (nn.GRUCell(12, 21, bias=False), "'bias'"),
    ):
        with pytest.raises(pc.artifact.ArtifactError, match=message):
            pc.load(tmp_path / "one", module)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("step", 1, "step must be true or false"),
        ("layers", 2, "must be one layer in one direction"),
        ("bidirectional", True, "must be one layer in one direction"),
        ("projection", True, "must be one layer in one direction"),
        ("step", False, "must have a tensor weight_ih_l0"),
        ("cell", "gru", r"3 \* hidden rows"),
        ("cell", "rnn", "must have the activation"),
        ("bias", False, "unexpected in the file"),
    ],
)
def test_hostile_metadata_is_refused(where, value, message, tmp_path):
    parts = Parts(to_bytes(pc.quantize_dynamic(decoder())))
    parts.set(f"metadata/layers/first/packed/recurrent/{where}", value)
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", Decoder)


@torch.no_grad()
def test_plain_cells_in_files(tmp_path):
    cell = packed_cell(cell_of("rnn", nonlinearity="relu"))
    pc.save(cell, tmp_path / "one")
    same(pc.load(tmp_path / "one", nn.RNNCell(12, 21, nonlinearity="relu"))(X), cell(X))
    for module, message in (
        (nn.RNNCell(12, 21), "nonlinearity"),
        (nn.GRUCell(12, 21), "a packed RNNCell in the file and GRUCell in the model"),
        (nn.RNN(12, 21), "a packed RNNCell in the file and RNN in the model"),
    ):
        with pytest.raises(pc.artifact.ArtifactError, match=message):
            pc.load(tmp_path / "one", module)
    for where, value, message in (
        ("recurrent/step", False, "step must be true for 'rnn'"),
        ("activation", "gelu", "must have the activation 'tanh' or 'relu'"),
        ("recurrent/cell", "elman", "cell must be 'lstm', 'gru' or 'rnn'"),
    ):
        parts = Parts(to_bytes(nn.Sequential(cell)))
        parts.set(f"metadata/layers/0/packed/{where}", value)
        (tmp_path / "bad").write_bytes(parts.file())
        with pytest.raises(pc.artifact.ArtifactError, match=message):
            pc.load(tmp_path / "bad", nn.Sequential(nn.RNNCell(12, 21, nonlinearity="relu")))


@torch.no_grad()
def test_cells_are_exported():
    for kind in KINDS:
        packed = packed_cell(cell_of(kind))
        program = torch.export.export(packed, (X, state_of(kind)), strict=False)
        same(program.module()(X, state_of(kind)), packed(X, state_of(kind)))


RNN = packed_cell(nn.RNNCell(3, 2))
GRU, LSTM = packed_cell(nn.GRUCell(3, 2)), packed_cell(nn.LSTMCell(3, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PackedGRUCell(None), TypeError, "packed must be a PackedRecurrent"),
        (lambda: PackedGRUCell(LSTM.packed), ValueError, "packed must be weights of pack_gru"),
        (
            lambda: PackedLSTMCell(kernels.pack_lstm(torch.ones(8, 3), torch.ones(8, 1), weight_hr=torch.ones(1, 2))),
            ValueError,
            "packed must be weights of pack_lstm without a projection",
        ),
        (lambda: PackedRNNCell(RNN.packed[0]), TypeError, "packed must be two PackedWeights"),
        (lambda: PackedRNNCell(RNN.packed[:1]), ValueError, "packed must be weights of the input and of the state"),
        (lambda: PackedRNNCell(RNN.packed[::-1]), ValueError, "packed must be weights of the input and of the state"),
        (lambda: PackedRNNCell(RNN.packed, "gelu"), ValueError, "nonlinearity must be 'tanh' or 'relu'"),
        (lambda: RNN(torch.ones(2, 4)), ValueError, "input must have 3 features"),
        (lambda: RNN(torch.ones(2, 3), torch.ones(2)), ValueError, "hx must have shape"),
        (lambda: RNN(torch.ones(2, 3, requires_grad=True)), ValueError, "input must not require grad"),
        (lambda: GRU(None), TypeError, "input must be"),
        (lambda: GRU(np.ones((2, 3), np.float32)), TypeError, "input must be"),
        (lambda: GRU(torch.ones(1, 2, 3)), ValueError, "input must be 1-D or 2-D"),
        (lambda: GRU(torch.ones(2, 4)), ValueError, "input must have 3 features"),
        (lambda: GRU(torch.ones(2, 3).long()), TypeError, "input must be float32"),
        (lambda: GRU(torch.ones(2, 3, requires_grad=True)), ValueError, "input must not require grad"),
        (lambda: GRU(torch.ones(2, 3), torch.ones(2)), ValueError, "hx must have shape"),
        (lambda: GRU(torch.ones(2, 3), torch.ones(3, 2)), ValueError, "hx must have shape"),
        (lambda: GRU(torch.ones(2, 3), "state"), TypeError, "hx must be"),
        (lambda: LSTM(torch.ones(2, 3), torch.ones(2, 2)), TypeError, r"hx must be a tuple \(h, c\)"),
        (lambda: LSTM(torch.ones(2, 3), (torch.ones(2, 2), None)), TypeError, "hx must be"),
        (lambda: LSTM(torch.ones(2, 3), (torch.ones(2, 2), torch.ones(2, 3))), ValueError, "hx must have shape"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
