"""What profiles count, against formulas: operations, calls, parameters, bytes; also of packed layers."""

import copy
import itertools
import json
import math

import pytest
import torch
from test_profiling import _one_thread, quick, row
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress.layers import PackedLayer
from pycompress.profiling import Amount
from pycompress.profiling.counting import counted
from pycompress.validation.cost import count_parameters, packed_parts, stored

__all__ = ["_one_thread"]


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
    for format in (pc.Int8(), pc.Int4(), pc.Int4(group=32, zero_point=True), pc.Codebook(), pc.Binary(), pc.Sparse()):
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
    "format",
    [pc.Int8(), pc.Int4(), pc.Int4(zero_point=True), pc.Int4(scales="int", activations="int8"), pc.Codebook()],
)
def test_nonzeros_of_packed_weights(format):
    weight = torch.zeros(4, 64)
    weight[:2] = torch.linspace(1, 2, 128).reshape(2, 64)
    packed = pc.kernels.pack(weight, format, bias=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert stored(packed).nonzero == 128 + 3 and stored(packed).parameters == 4 * 64 + 4


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
