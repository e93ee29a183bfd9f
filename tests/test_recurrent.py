"""Packed LSTM and GRU modules: torch's semantics, copies, and what they refuse."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from pycompress import kernels
from pycompress.formats import Int8
from pycompress.kernels import recurrent
from pycompress.layers import LayerDecision
from pycompress.recurrent import PackedGRU, PackedLSTM, obstacle, packed_of

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


def layer_of(kind, inputs=12, hidden=21, **arguments):
    torch.manual_seed(3)
    return KINDS[kind](inputs, hidden, **arguments).eval()


def flat(result):
    y, states = result
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(states if isinstance(states, tuple) else (states,))]


def close(got, expected):
    """int8 stays within a few per cent of outputs that lie between -1 and 1."""
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), atol=0.05), (a.float() - b.float()).abs().max()


def same(got, expected):
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(expected), strict=True))


VARIANTS = [
    ("lstm", {}),
    ("gru", {}),
    *itertools.product(
        ("lstm", "gru"),
        (
            {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.5},
            {"bias": False, "num_layers": 2},
        ),
    ),
    ("lstm", {"proj_size": 7}),
    ("lstm", {"proj_size": 7, "num_layers": 2, "bidirectional": True}),
]


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
@torch.no_grad()
def test_agrees_with_torch(kind, arguments, implementation):
    dense = layer_of(kind, **arguments)
    packed = packed_of(dense)
    assert isinstance(packed, PackedLSTM if kind == "lstm" else PackedGRU) and not packed.training
    for name in ("input_size", "hidden_size", "num_layers", "proj_size", "bias", "batch_first", "bidirectional"):
        assert getattr(packed, name) == getattr(dense, name), name
    for shape in ((5, 4, 12), (1, 1, 12), (5, 12)):
        x = torch.randn(shape)
        close(packed(x), dense(x))
        y, states = dense(x)
        given = tuple(torch.randn_like(s) for s in states) if kind == "lstm" else torch.randn_like(states)
        close(packed(x, given), dense(x, given))
        assert packed(x)[0].shape == y.shape


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@torch.no_grad()
def test_sequences_of_several_lengths(kind, arguments, enforce_sorted):
    dense = layer_of(kind, **arguments)
    packed = packed_of(dense)
    lengths = [6, 4, 4, 1] if enforce_sorted else [4, 1, 6, 4]
    parts = [torch.randn(n, 12) for n in lengths]
    x = pack_sequence(parts, enforce_sorted=enforce_sorted)
    y, states = packed(x)
    close((y, states), dense(x))
    assert isinstance(y, PackedSequence) and torch.equal(y.batch_sizes, x.batch_sizes)
    padded, found = pad_packed_sequence(y)
    assert found.tolist() == lengths
    for i, part in enumerate(parts):  # a sequence does not depend on those beside it
        alone = packed(part[None] if packed.batch_first else part[:, None])
        own = alone[0][0] if packed.batch_first else alone[0][:, 0]
        assert torch.equal(padded[: len(part), i], own)
        assert torch.equal(flat((y, states))[1][:, i], flat(alone)[1][:, 0])
    given = tuple(torch.randn_like(s) for s in states) if kind == "lstm" else torch.randn_like(states)
    close(packed(x, given), dense(x, given))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_is_the_kernels_layer_by_layer(kind, implementation):
    dense = layer_of(kind, num_layers=2, bidirectional=True)
    packed, x = packed_of(dense), torch.randn(4, 3, 12)
    run = kernels.lstm if kind == "lstm" else kernels.gru
    rows = x
    for layer in range(2):
        ways = [run(rows, packed.packed[2 * layer + way], backwards=way == 1)[0] for way in (0, 1)]
        rows = torch.cat(ways, dim=2)
    assert torch.equal(packed(x)[0], rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_half_precision_inputs(kind, dtype):
    packed = packed_of(layer_of(kind))
    x = torch.randn(3, 2, 12).to(dtype)
    for got, expected in zip(flat(packed(x)), flat(packed(x.float())), strict=True):
        assert got.dtype == dtype and torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize(("kind", "options"), [("lstm", {}), ("gru", {}), ("lstm", {"proj_size": 7})])
@torch.no_grad()
def test_plain_tensors_and_others_give_the_same_bits(kind, options):
    """Plain tensors go to the kernel by their addresses; strided ones, and states of another dtype, by arrays."""
    packed = packed_of(layer_of(kind, num_layers=2, bidirectional=True, **options))
    x, h = torch.randn(5, 3, 12), torch.randn(4, 3, options.get("proj_size", 21)).bfloat16()
    state = (h, torch.randn(4, 3, 21).bfloat16()) if kind == "lstm" else h
    plain = tuple(s.float() for s in state) if kind == "lstm" else state.float()
    kept = copy.deepcopy(plain)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    expected = packed(x, plain)
    same(packed(strided, plain), expected)
    same(packed(x, state), expected)
    assert all(map(torch.equal, flat((x, plain)), flat((x, kept))))  # a given state is not written to
    packed.batch_first = True
    y, finals = packed(strided.transpose(0, 1), plain)
    same((y.transpose(0, 1), finals), expected)


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
@torch.no_grad()
def test_copies_keep_the_bits(kind, arguments):
    packed, x = packed_of(layer_of(kind, **arguments)), torch.randn(3, 2, 12)
    packed.decision = LayerDecision("rnn", "LSTM", Int8(), reason="test")
    expected = packed(x)
    same(copy.deepcopy(packed)(x), expected)
    unpickled = pickle.loads(pickle.dumps(packed))
    same(unpickled(x), expected)
    assert unpickled.decision == packed.decision and repr(unpickled) == repr(packed)
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    other = packed_of(type(layer_of(kind, **arguments))(12, 21, **arguments).eval())
    assert not torch.equal(other(x)[0], expected[0])
    assert str(other.load_state_dict(torch.load(buffer))) == "<All keys matched successfully>"
    same(other(x), expected)


def test_state_dict_is_canonical():
    with kernels.use_backend("reference"):
        expected = packed_of(layer_of("lstm", num_layers=2, bidirectional=True, proj_size=5)).state_dict()
    found = packed_of(layer_of("lstm", num_layers=2, bidirectional=True, proj_size=5)).state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)
    weight = layer_of("lstm", num_layers=2, bidirectional=True, proj_size=5).weight_hh_l1_reverse.detach()
    largest = weight.abs().amax(1)
    assert torch.allclose(found["scale_hh_l1_reverse"], largest / 127)
    assert torch.equal(found["weight_hh_l1_reverse"].abs().amax(1), torch.full((84,), 127, dtype=torch.int8))


def test_a_wrong_state_dict_is_refused():
    packed = packed_of(layer_of("gru"))
    state = packed.state_dict()
    for name, value, word in (
        ("weight_hh_l0", state["weight_hh_l0"][1:], "size mismatch"),
        ("weight_hh_l0", state["weight_hh_l0"].float(), "int8"),
        ("scale_ih_l0", -state["scale_ih_l0"], "positive"),
        ("bias_hh_l0", state["bias_hh_l0"] * float("nan"), "finite"),
    ):
        with pytest.raises(RuntimeError, match=word):
            packed.load_state_dict({**state, name: value})
    with pytest.raises(RuntimeError, match="Missing"):
        packed.load_state_dict({name: value for name, value in state.items() if name != "bias_hh_l0"})
    with pytest.raises(RuntimeError, match="Unexpected"):
        packed.load_state_dict({**state, "weight_hr_l0": state["scale_ih_l0"]})


def test_refused_inputs():
    packed, gru = packed_of(layer_of("lstm")), packed_of(layer_of("gru"))
    x = torch.zeros(3, 2, 12)
    state = torch.zeros(1, 2, 21)
    for wrong, error in (
        (x.numpy(), TypeError),
        (None, TypeError),
        (x.double(), TypeError),
        (torch.zeros(12), ValueError),
        (torch.zeros(3, 2, 13), ValueError),
        (torch.zeros(0, 2, 12), ValueError),
        (torch.zeros(3, 2, 2, 12), ValueError),
        (x.clone().requires_grad_(), ValueError),
        (x.to("meta"), ValueError),
    ):
        with pytest.raises(error, match=r"^x "):
            packed(wrong)
    for wrong, error in (
        ([state, state], TypeError),
        (state, TypeError),
        ((state,), TypeError),
        ((state, None), TypeError),
        ((state, state[:, :1]), ValueError),
        ((state[0], state[0]), ValueError),
        ((state, torch.zeros(2, 2, 21)), ValueError),
        ((state.clone().requires_grad_(), state), ValueError),
    ):
        with pytest.raises(error, match=r"^state "):
            packed(x, wrong)
    with pytest.raises(TypeError, match=r"^state "):
        gru(x, (state, state))


def test_refused_constructions():
    part = kernels.pack_lstm(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32))
    other = kernels.pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    for arguments, error in (
        ({"packed": part}, TypeError),
        ({"packed": []}, ValueError),
        ({"packed": [other]}, ValueError),
        ({"packed": [part, part]}, ValueError),
        ({"packed": [part], "bidirectional": True}, ValueError),
        ({"packed": [None]}, TypeError),
    ):
        with pytest.raises(error, match=r"^packed"):
            PackedLSTM(**arguments)
    with pytest.raises(TypeError, match=r"^batch_first "):
        PackedLSTM([part], batch_first=1)
    with pytest.raises(TypeError, match=r"^bidirectional "):
        PackedLSTM([part], bidirectional=None)
    with pytest.raises(TypeError, match=r"^layer "):
        packed_of(nn.RNN(2, 3))
    with pytest.raises(ValueError, match="float64"):
        packed_of(nn.GRU(2, 3).double())


def test_obstacles():
    class Own(nn.LSTM):
        def forward(self, x, state=None):
            return x

    assert "forward of its own" in obstacle(Own(2, 3))
    assert obstacle(nn.RNN(2, 3)) == "RNN has no kernel"
    hooked = nn.GRU(2, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert "hooks" in obstacle(hooked)
    nn.utils.parametrizations.weight_norm(normed := nn.GRU(2, 3), "weight_hh_l0")
    assert "parametrization" in obstacle(normed)


@torch.no_grad()
def test_nan_stays_in_its_row():
    packed, x = packed_of(layer_of("lstm")), torch.randn(4, 3, 12)
    expected = packed(x)
    x[1, 2, 5] = float("nan")
    y, (h, c) = packed(x)
    assert torch.equal(y[:, :2], expected[0][:, :2]) and torch.equal(y[:1], expected[0][:1])
    assert y[1:, 2].isnan().all() and h[0, 2].isnan().all() and c[0, 2].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_same_bits_however_a_sequence_is_cut(kind, implementation):
    dense = layer_of(kind, 33, 70)
    [packed] = packed_of(dense).packed
    x = torch.randn(9, 5, 33)
    run = kernels.lstm if kind == "lstm" else kernels.gru
    y, final = run(x, packed)
    for cut in range(1, 9):
        first, state = run(x[:cut], packed)
        second, last = run(x[cut:], packed, state)
        assert torch.equal(torch.cat([first, second]), y)
        same((second, last), (y[cut:], final))
    lengths = torch.tensor([9, 7, 7, 2, 1])
    sequence = pack_padded_sequence(x, lengths)
    y, _ = run(sequence.data, packed, batch_sizes=sequence.batch_sizes)
    for i, n in enumerate(lengths.tolist()):
        alone, _ = run(x[:n, i : i + 1], packed)
        assert torch.equal(pad_packed_sequence(sequence._replace(data=y))[0][:n, i], alone[:, 0])


def test_starts():
    assert recurrent.uniform_starts(2, 3).tolist() == [0, 3, 6]
    starts, batch = recurrent.packed_starts([3, 1], 4)
    assert starts.tolist() == [0, 3, 4] and batch == 3
