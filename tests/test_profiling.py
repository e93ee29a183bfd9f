"""Profiles: counts against formulas, times under a clock that only modules move; nothing of the model changes."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from wrong_values import INPUTS, model, state

import pycompress as pc
from pycompress.layers import PackedLayer
from pycompress.profiling import Amount, Gain, LayerProfile, Profile
from pycompress.profiling.counting import counted
from pycompress.profiling.times import module_times
from pycompress.validation.cost import count_parameters, packed_parts, stored


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quick(made, inputs, **options):
    return pc.profile(made, inputs, **{"seconds": 0.005, "progress": False, "gains": False} | options)


def row(profile, name):
    [found] = [layer for layer in profile.layers if layer.name == name]
    return found


class Calls(nn.Module):
    """What users write in a forward, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


E, S, B = 8, 5, 3
ATTENTION = 4 * E * E * B * S + 2 * E * B * S * S  # four projections, scores and the product with the values
OPERATIONS = {
    "linear": (lambda: nn.Linear(7, 3), [(B, 7)], B * 7 * 3),
    "linear of many dimensions": (lambda: nn.Linear(7, 3, bias=False), [(B, 2, 4, 7)], B * 8 * 21),
    "linear of one row": (lambda: nn.Linear(7, 3), [(7,)], 21),
    "linear of one row without a bias": (lambda: nn.Linear(7, 3, bias=False), [(7,)], 21),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), [(B, 4, 9)], B * 5 * 6 * 4 * 3),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), groups=2), [(B, 4, 8, 8)], B * 6 * 7 * 6 * 2 * 3 * 2),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), [(B, 4, 8, 8)], B * 64 * 4 * 9),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), [(B, 4, 5, 5)], B * 25 * 4 * 6 * 9),
    "transposed in groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), [(B, 4, 5)], B * 5 * 4 * 3 * 3),
    "lstm": (lambda: nn.LSTM(7, 4), [(S, B, 7)], B * S * 16 * (7 + 4)),
    "deep lstm": (
        lambda: nn.LSTM(7, 4, num_layers=2, bidirectional=True, batch_first=True),
        [(B, S, 7)],
        B * S * 2 * 16 * ((7 + 4) + (8 + 4)),
    ),
    "projected lstm": (lambda: nn.LSTM(7, 4, proj_size=2), [(S, B, 7)], B * S * (16 * (7 + 2) + 2 * 4)),
    "gru": (lambda: nn.GRU(7, 4, bias=False), [(S, B, 7)], B * S * 12 * (7 + 4)),
    "rnn": (lambda: nn.RNN(7, 4), [(S, B, 7)], B * S * 4 * (7 + 4)),
    "lstm cell": (lambda: nn.LSTMCell(7, 4), [(B, 7)], B * 16 * 11),
    "gru cell": (lambda: nn.GRUCell(7, 4), [(B, 7)], B * 12 * 11),
    "attention": (lambda: Attention(), [(B, S, E)], ATTENTION),
    "attention with weights": (lambda: Attention(need_weights=True), [(B, S, E)], ATTENTION),
    "slow attention": (lambda: Attention(num_heads=1, bias=False), [(B, S, E)], ATTENTION),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(E, 2, 16, batch_first=True),
        [(B, S, E)],
        ATTENTION + 2 * B * S * E * 16,
    ),
    "matmul": (lambda: Calls(lambda a, b: a @ b), [(B, 4, 7), (B, 7, 5)], B * 4 * 7 * 5),
    "vectors": (lambda: Calls(lambda a, b: a @ b), [(7,), (7,)], 7),
    "einsum": (lambda: Calls(lambda a, b: torch.einsum("bij,kj->bik", a, b)), [(B, 4, 7), (5, 7)], B * 4 * 7 * 5),
    "scaled dot product": (
        lambda: Calls(F.scaled_dot_product_attention),
        [(B, 2, S, 4), (B, 2, 6, 4), (B, 2, 6, 3)],
        B * 2 * S * 6 * (4 + 3),
    ),
    "nothing": (lambda: nn.Sequential(nn.BatchNorm1d(7), nn.GELU(), nn.Softmax(-1)), [(B, 7)], 0),
}


class Attention(nn.Module):
    def __init__(self, num_heads=2, need_weights=False, bias=True):
        super().__init__()
        self.inner, self.need_weights = nn.MultiheadAttention(E, num_heads, bias=bias, batch_first=True), need_weights

    def forward(self, x):
        return self.inner(x, x, x, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_are_those_of_the_formulas(case):
    make, shapes, expected = OPERATIONS[case]
    torch.manual_seed(0)
    found = quick(make(), tuple(torch.randn(shape) for shape in shapes))
    assert not found.notes
    assert found.layers[0].total.operations == expected
    assert sum(layer.own.operations for layer in found.layers) == expected


@pytest.mark.parametrize(
    "case",
    [name for name in OPERATIONS if name.split()[0] in ("linear", "conv1d", "conv2d", "depthwise", "deep", "gru")],
)
def test_packed_layers_count_what_dense_ones_do(case):
    make, shapes, expected = OPERATIONS[case]
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape) for shape in shapes)
    packed = pc.pack(nn.Sequential(make()) if len(inputs) == 1 else make(), inputs, pc.Int8(), force=True)
    assert any(isinstance(module, PackedLayer) for module in packed.modules())
    found = quick(packed, inputs)
    assert found.layers[0].total.operations == expected


def test_packed_attention_and_cells():
    torch.manual_seed(0)
    x = torch.randn(B, S, E)
    for made in (Attention(), Attention(need_weights=True), nn.TransformerEncoderLayer(E, 2, 16, batch_first=True)):
        packed = pc.pack(made, x, pc.Int8(), force=True)
        assert quick(packed, x).layers[0].total.operations == quick(made, x).layers[0].total.operations
    cells = nn.Sequential(nn.GRUCell(7, 4))
    packed = pc.pack(cells, torch.ones(B, 7), pc.Int8(), force=True)
    assert quick(packed, torch.ones(B, 7)).layers[0].total.operations == B * 12 * 11
    mixed = nn.MultiheadAttention(E, 2, kdim=6, vdim=4)
    inputs = torch.randn(S, B, E), torch.randn(9, B, 6), torch.randn(9, B, 4)
    dense = quick(mixed, inputs).layers[0].total.operations
    assert dense == B * (2 * S * E * E + 9 * E * 6 + 9 * E * 4 + 2 * S * 9 * E)
    assert quick(pc.pack(mixed, inputs, pc.Int8(), force=True), inputs).layers[0].total.operations == dense


def test_a_sparse_layer_counts_its_nonzeros_and_an_embedding_nothing():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(9, 32), nn.Linear(32, 16))
    pc.prune_(made, sparsity=0.75)
    ids = torch.arange(6)
    assert quick(made, ids).layers[0].total.operations == 6 * 32 * 16, "as it runs: dense"
    packed = pc.pack(made, ids, pc.Sparse(), force=True)
    assert row(quick(packed, ids), "1").own.operations == 6 * 32 * 16 // 4
    packed = pc.pack(nn.Sequential(nn.Embedding(9, 32)), ids, pc.Int8(), force=True)
    assert quick(packed, ids).layers[0].total.operations == 0


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(10, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.again, self.head, self.idle = self.body, nn.Linear(6, 10, bias=False), nn.Linear(3, 3)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.again(self.body(self.table(ids)))
        return self.head(x) + self.body[0](x).sum()


def test_what_is_shared_counts_once_and_calls_where_they_happen():
    found = quick(Shared(), torch.arange(4))
    whole = found.layers[0]
    assert whole.total.parameters == 60 + 42 + 12 and whole.own.parameters == 0
    assert [layer.name for layer in found.layers] == ["", "table", "body", "body.0", "body.1", "head", "idle"]
    assert {layer.name: layer.calls for layer in found.layers} == {
        "": 1,
        "table": 1,
        "body": 2,
        "body.0": 3,
        "body.1": 2,
        "head": 1,
        "idle": 0,
    }
    assert row(found, "head").own.parameters == row(found, "table").own.parameters == 60
    assert row(found, "body").total.operations == 2 * 4 * 36 and row(found, "body").own.operations == 0
    assert row(found, "body.0").own.operations == 3 * 4 * 36
    assert whole.total.operations == 3 * 4 * 36 + 4 * 60 and whole.own.operations == 0
    assert row(found, "idle").own == Amount(12, 12, 48, 0, 0.0)
    assert row(found, "table").activation_bytes == 4 * 6 * 4
    assert count_parameters(Shared()) == whole.total.parameters


def test_bytes_are_those_in_memory():
    torch.manual_seed(0)
    x = torch.randn(2, 64)
    dense = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 16))
    size = 4 * (64 * 32 + 32 + 4 * 32 + 32 * 16 + 16) + 8
    found = quick(dense, x)
    assert found.layers[0].total.bytes == size and row(found, "1").own.bytes == 4 * 4 * 32 + 8
    assert [layer.format for layer in found.layers] == ["", "float32", "float32", "float32"]
    half = quick(copy.deepcopy(dense).bfloat16(), x.bfloat16())
    assert row(half, "0").own.bytes == 2 * (64 * 32 + 32) and row(half, "0").format == "bfloat16"
    for format in (pc.Int8(), pc.Int4(), pc.Int4(group=32, zero_point=True), pc.Sparse()):
        packed = pc.pack(dense, x, format, force=True)
        found = row(quick(packed, x), "2")
        assert found.own.bytes == packed[2].packed.nbytes and found.format == repr(format)
        assert found.kernel == packed[2].packed.kernel and found.kind == "PackedLinear"
        assert found.own.parameters == 32 * 16 + 16
    grid = copy.deepcopy(dense)
    pc.quantize_(grid, pc.Int8(), include=["0"])
    assert row(quick(grid, x), "0").format == "float32 on Int8()"
    lstm = nn.LSTM(4, 3)
    pc.quantize_(lstm, pc.Int8())
    assert quick(lstm, torch.ones(2, 1, 4)).layers[0].format == "float32 on Int8()"


def test_pruned_weights_are_seen():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.LSTM(32, 16))
    pc.prune_(made, sparsity=0.8, across_layers=False)
    x = torch.randn(5, 3, 64)
    for final in (False, True):
        found = quick(pc.finalize_(made) if final else made, x)
        assert row(found, "0").own.nonzero == round(0.2 * 64 * 32) + 32
        masks = 0 if final else 64 * 32
        assert row(found, "0").own.bytes == 4 * (64 * 32 + 32) + masks
    assert "(80 % zero)" in str(found) and row(found, "0").sparsity == pytest.approx(0.8, abs=1e-3)
    packed = pc.pack(made, x, pc.Int8(), force=True)
    lstm = row(quick(packed, x), "2")
    assert lstm.own.parameters == 64 * (32 + 16 + 2) and lstm.own.bytes == packed[2].packed[0].nbytes
    assert lstm.own.nonzero <= 615 + 128 and 1 > lstm.sparsity >= 0.799
    assert count_parameters(packed) == count_parameters(made)


@pytest.mark.parametrize(
    "format", [pc.Int8(), pc.Int4(), pc.Int4(zero_point=True), pc.Int4(scales="int", activations="int8")]
)
def test_nonzeros_of_packed_weights(format):
    weight = torch.zeros(4, 64)
    weight[:2] = torch.linspace(1, 2, 128).reshape(2, 64)
    packed = pc.kernels.pack(weight, format, bias=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert stored(packed).nonzero == 128 + 3 and stored(packed).parameters == 4 * 64 + 4


class Clock:
    """Seconds that only pass where somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_times_are_own_and_with_what_runs_inside():
    clock = Clock()

    class Takes(nn.Module):
        def __init__(self, seconds, *inside):
            super().__init__()
            self.seconds, self.inside = seconds, nn.ModuleList(inside)

        def forward(self, depth=0):
            clock.now += self.seconds
            for module in self.inside:
                module()
            if depth:
                self(depth - 1)

    leaf = Takes(1.0)
    middle = Takes(0.25, leaf, leaf)
    made = Takes(0.5, middle, leaf)
    found = module_times(list(made.modules()), lambda: lambda: made(1), 100.0, clock, False)
    once = 0.5 + 2.25 + 1.0
    assert found.total[made] == pytest.approx(2 * once * 1e6) and found.own[made] == pytest.approx(1e6)
    assert found.total[middle] == pytest.approx(4.5e6) and found.own[middle] == pytest.approx(0.5e6)
    assert found.total[leaf] == found.own[leaf] == pytest.approx(6e6)
    assert found.plain == found.watched == pytest.approx(2 * once * 1e6) and found.runs == 3
    quick_clock = Clock()
    quick_clock.now = 5.0  # stands still
    assert module_times([leaf], lambda: lambda: None, 1.0, quick_clock, False).runs == 200


def test_a_module_that_fails_inside_another_leaves_the_rest_right():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.fc = Fails(), nn.Linear(3, 2)

        def forward(self, x):
            try:
                return self.fails(x)
            except KeyError:
                return self.fc(x)

    found = quick(Catches(), torch.ones(4, 3))
    assert {layer.name: layer.calls for layer in found.layers} == {"": 1, "fails": 1, "fc": 1}
    assert found.layers[0].total.operations == 24
    assert found.layers[0].total.microseconds >= row(found, "fc").total.microseconds > 0


def test_shares_add_up_and_parts_are_not_longer_than_the_whole():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(256, 256), nn.Sequential(nn.Linear(256, 256), nn.GELU()), nn.Linear(256, 8))
    found = quick(made, torch.randn(32, 256), seconds=0.05)
    assert sum(map(found.share, found.layers)) == pytest.approx(1)
    assert found.runs >= 3 and found.microseconds > 0 and found.threads == 1
    inside = sum(row(found, name).total.microseconds for name in ("0", "1", "2"))
    assert inside <= found.layers[0].total.microseconds * 1.2
    assert row(found, "0").gflops == pytest.approx(2 * 32 * 65536 / row(found, "0").total.microseconds / 1e3)
    assert row(found, "1.1").gflops is None
    assert found.share(row(found, "0")) > found.share(row(found, "1.1"))


@pytest.mark.parametrize("gains", [False, True])
def test_nothing_of_the_model_changes(gains):
    made = model().train()
    made[4].register_forward_hook(lambda *_: None)
    made.register_buffer("seen", torch.zeros(1))
    made.register_forward_pre_hook(lambda module, args: module.seen.add_(1) and None)
    before, random, threads = state(made), torch.get_rng_state(), torch.get_num_threads()
    inputs = INPUTS.clone()
    quick(made, inputs, gains=gains, sparsity=0.5 if gains else None)
    assert state(made) == before and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(inputs, INPUTS) and torch.get_num_threads() == threads


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, a, b, scale=1.0):
        return {"y": self.fc(a.add_(b)) * scale, "x": (a, [b])}


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(4, 3), torch.ones(4, 3)),
        (torch.ones(4, 3), torch.ones(4, 3), 2.0),
        {"a": torch.ones(4, 3), "b": torch.ones(4, 3), "scale": 0.5},
        (np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)),
    ],
    ids=["tuple", "with a number", "dict", "arrays"],
)
def test_inputs_are_those_of_pack(inputs):
    found = quick(Two(), inputs, gains=True)
    assert row(found, "fc").own.operations == 24 and row(found, "fc").gains
    assert found.layers[0].activation_bytes == 4 * 2 * 4, "the others are inputs"


def test_scripted_modules_are_one_row():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    made = nn.Sequential(torch.jit.script(inner.eval()), nn.Linear(4, 2))
    found = quick(made, torch.randn(3, 6), gains=True)
    assert [layer.name for layer in found.layers] == ["", "0", "1"]
    assert row(found, "0").total.parameters == 35 + 24 and row(found, "0").total.bytes == 4 * 59
    assert row(found, "0").own.operations == 3 * (30 + 20) and row(found, "1").own.operations == 24
    assert quick(torch.jit.script(inner), torch.randn(3, 6)).layers[0].total.operations == 150


def test_chains_and_fused_layers_of_packed_models():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    packed = pc.pack(made, torch.randn(4, 64), pc.Int8(), force=True)
    assert type(packed).__name__ == "ChainedSequential"
    found = quick(packed, torch.randn(4, 64))
    assert found.layers[0].total.operations == 4 * (2 * 64 * 64 + 64 * 8) and row(found, "2").calls == 1
    images = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    x = torch.randn(2, 3, 12, 12)
    pc.quantize_(images, pc.Int8(), calibration=(x, torch.zeros(2)))
    packed = pc.pack(images, x, force=True)
    assert quick(packed, x).layers[0].total.operations == quick(images, x).layers[0].total.operations


def test_encoders_with_padding_and_nested_tensors():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    found = quick(encoder, {"src": x, "src_key_padding_mask": padding}, gains=True)
    assert row(found, "layers.0.linear1").calls == 1
    assert row(found, "layers.0.linear1").gains and row(found, "layers.1.self_attn").gains
    assert not row(found, "layers.0.self_attn.out_proj").gains, "it is packed with its attention"
    assert not any(layer.note for layer in found.layers)
    rows = 3 * 5  # the hidden ones included
    assert found.layers[0].total.operations == 2 * (rows * (4 * 64 + 2 * 8 * 16) + 2 * 8 * 3 * 25)
    assert encoder.use_nested_tensor and not found.notes


def test_nested_tensors_are_not_counted_and_that_is_told():
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    found = quick(nn.Sequential(nn.Linear(8, 8)), nested)
    assert found.layers[0].total.operations is None and "NestedTensor" in found.notes[0]
    assert row(found, "0").calls == 1 and row(found, "0").total.microseconds > 0


def test_gains_are_those_of_the_packed_layer():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(0), nn.Linear(4 * 254, 4))
    made.append(nn.Bilinear(2, 2, 1))
    made.append(nn.Identity())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle, self.wide = made[:5], nn.Linear(3, 3), nn.Linear(2, 2).double()

        def forward(self, x):
            self.wide(x[0, :2].double())
            return self.body(x)

    net, x = Net(), torch.randn(4, 256)
    found = quick(net, x, gains=True, sparsity=0.9)
    packed = pc.pack(net, x, pc.Int8(), force=True)
    linear = row(found, "body.0")
    int8, sparse = linear.gains
    assert (int8.format, int8.sparsity, sparse.format, sparse.sparsity) == ("Int8()", None, "Sparse()", 0.9)
    assert int8.now_bytes == 4 * (256 * 256 + 256) and int8.then_bytes == packed.body[0].packed.nbytes
    assert sparse.then_bytes < 0.4 * sparse.now_bytes and sparse.saved_bytes == sparse.now_bytes - sparse.then_bytes
    assert int8.low <= int8.speedup <= int8.high and int8.saved_us == int8.now_us - int8.then_us
    assert [gain.format for gain in row(found, "body.2").gains] == ["Int8()"], "no sparse kernel"
    assert row(found, "idle").note == "never called by example_inputs" and not row(found, "idle").gains
    assert row(found, "wide").note == "its weight is float64"
    text = str(found)
    assert "Sparse()" in text and "Not tried: idle (never called by example_inputs)." in text


def test_a_sparse_candidate_keeps_the_largest_weights():
    from pycompress.profiling.gains import _sparse

    torch.manual_seed(0)
    layer = nn.Linear(32, 16).requires_grad_(False)
    before = layer.weight.clone()
    packed = _sparse(layer, 0.9).packed
    kept = 512 - round(0.9 * 512)
    assert torch.equal(layer.weight, before)
    limit = layer.weight.abs().flatten().sort(descending=True).values[kept - 1]
    assert torch.equal(torch.from_numpy(packed.unpack()), layer.weight * (layer.weight.abs() >= limit))


def test_gains_count_all_calls_of_a_layer():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x):
            for _ in range(40):
                x = self.fc(x)
            return x

    found = row(quick(Often(), torch.randn(2, 64), gains=True, seconds=0.05), "fc")
    assert found.calls == 40
    assert found.gains[0].now_us == pytest.approx(found.total.microseconds, rel=0.9)
    assert found.gains[0].now_us > 5 * found.total.microseconds / 40


def test_models_of_other_things_have_no_gains():
    found = quick(nn.Sequential(nn.ReLU(), nn.Softmax(-1)), torch.ones(2, 3), gains=True)
    assert all(not layer.gains and not layer.note for layer in found.layers) and found.savings == {}
    assert found.layers[0].total == Amount(0, 0, 0, 0, found.layers[0].total.microseconds)
    packed = pc.pack(nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8), pc.Int8(), force=True)
    assert not quick(packed, torch.ones(1, 8), gains=True).layers[1].gains


def test_json():
    torch.manual_seed(0)
    found = quick(nn.Sequential(nn.Linear(64, 32), nn.ReLU()), torch.randn(8, 64), gains=True)
    plain = found.to_dict()
    assert json.loads(found.to_json()) == plain
    assert set(plain) == {"microseconds", "watched_microseconds", "runs", "threads", "savings", "notes", "layers"}
    first = plain["layers"][1]
    assert first["name"] == "0" and first["total"]["operations"] == 8 * 64 * 32 and first["calls"] == 1
    assert first["gains"][0]["saved_bytes"] == found.layers[1].gains[0].saved_bytes
    assert sum(layer["share"] for layer in plain["layers"]) == pytest.approx(1)


def made_profile(**changes):
    """A profile with all that can be shown."""
    cost = Amount(1_234_567, 123_456, 4_938_268, 987_654_321, 1234.5)
    leaf = Amount(1000, 1000, 4000, None, 12.3)
    gain = Gain("Int8()", None, 1200.0, 400.0, 3.0, 2.9, 3.1, 4_938_268, 1_240_000)
    slow = Gain("Int8()", None, 12.0, 14.0, 0.9, 0.8, 1.1, 4000, 1100)
    layers = (
        LayerProfile("", "Net", "", None, 1, 0.9, 0, Amount(0, 0, 0, 0, 1.0), cost),
        LayerProfile("body", "Sequential", "", None, 1, 0.9, 0, Amount(0, 0, 0, 0, 2.0), cost),
        LayerProfile("body.0", "Linear", "float32", None, 2, 0.9, 4096, cost, cost, (gain,)),
        LayerProfile("body.1", "Linear", "float32", None, 1, 0.0, 10, leaf, leaf, (slow,)),
        LayerProfile("idle", "Linear", "float32", None, 0, 0.0, 0, leaf, Amount(9, 9, 36, 0, 0.0), (), "never called"),
    )
    return Profile(
        **{"layers": layers, "microseconds": 1200.0, "watched_microseconds": 1234.5, "runs": 7, "threads": 2} | changes
    )


def test_the_tree():
    text = str(made_profile())
    lines = text.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[2:7]] == [
        "(the model)",
        "├─ body",
        "│",
        "│",
        "└─ idle",
    ]
    assert "├─ 0" in lines[4] and "└─ 1" in lines[5]
    assert "1.23 M (90 % zero)" in lines[4] and "4.94 MB" in lines[4] and "987.65 M" in lines[4]
    assert "1.23 ms" in lines[4] and "-800.0 us" in lines[4] and "no faster" in lines[5] and "?" in lines[5]
    assert "1.20 ms for one run, 1.23 ms while every module is watched (medians of 7 runs each, 2 threads)." in text
    assert "Int8() would save about 800.0 us and 3.70 MB of memory" in text
    assert "Not tried: idle (never called)." in text
    assert max(map(len, lines)) <= 140 and "\x1b" not in text
    assert str(made_profile(notes=("Operations are not known.",))).endswith("Operations are not known.")


@pytest.mark.parametrize("name", ["[red]layer[/red]", "[/]", ":warning:", "\x1b[2J", "a\u202eb"])
def test_names_are_shown_as_they_are(name):
    made = nn.Sequential()
    made.add_module(name, nn.Linear(3, 2))
    text = str(quick(made, torch.ones(1, 3)))
    assert "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name) in text
    assert not {c for c in text if not c.isprintable()} - {"\n"}


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width, monkeypatch):
    from pycompress import tables

    monkeypatch.setattr(tables, "width", lambda: width)
    text = str(made_profile())
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    for number in ("1.23 ms", "98 %", "-800.0 us", "no faster", "12.3 us"):
        assert number in text
    assert ("GFLOP/s" in text) == (width >= 100) and ("Linear" in text) == (width == 140)


def test_rich_shows_it_too():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    console.print(made_profile())
    assert "\x1b[" in console.file.getvalue() and "body" in console.file.getvalue()


def test_what_cannot_be_profiled_is_refused():
    made = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for layer in made:
        layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model must have finite weights, got 0.weight: 1.*1.weight: 1"):
        quick(made, torch.ones(1, 3))
    with pytest.raises(ValueError, match="sparsity must be None with gains=False"):
        quick(nn.Linear(3, 2), torch.ones(1, 3), sparsity=0.5)
    with pytest.raises(ValueError, match=r"example_inputs must fit the model, got \(1, 4\) float32"):
        quick(nn.Linear(3, 2), torch.ones(1, 4))

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.cache = self.fc(torch.ones(1, 3))

    with pytest.raises(ValueError, match="model must be one that can be copied"):
        quick(Holds(), torch.ones(1, 3))


def test_what_torch_cannot_count_is_told(monkeypatch):
    from pycompress.profiling import counting

    def fails(*args, **kwargs):
        raise AssertionError("no such shapes")

    monkeypatch.setitem(counting._FORMULAS, torch.ops.aten.addmm, fails)
    found = quick(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3))
    assert found.layers[0].total.operations is None and row(found, "0").calls == 1
    assert "torch's counter says AssertionError('no such shapes')" in found.notes[0] and found.notes[0] in str(found)
    assert json.loads(found.to_json())["layers"][0]["gflops"] is None


def test_counting_by_itself():
    made = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Dropout(), nn.ReLU(inplace=True)).eval()
    found = counted(list(made.modules()), lambda: made(torch.ones(5, 3)))
    outputs = [found.outputs[module] for module in made]
    assert outputs == [80, 0, 0, 0], "what gives out its input's memory makes nothing"
    assert math.prod([found.calls[m] for m in itertools.chain([made], made)]) == 1
    assert packed_parts(made[0]) == ()
