"""Packed embeddings and bags: torch's semantics bit for bit on the rounded table, copies, refusals."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress.embeddings import PackedEmbedding, PackedEmbeddingBag, candidates, obstacle, packed_like
from pycompress.layers import LayerDecision
from pycompress.rows import pack_rows
from pycompress.validation.cost import count_parameters

IDS = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))


def embedding(kind=nn.Embedding, dtype=torch.float32, **options):
    torch.manual_seed(1)
    return kind(50, 12, **options).to(dtype).eval()


def packed_of(layer):
    [packed], note = candidates(layer, pc.Int8(), None, {})
    assert note == ""
    return packed


def rounded(layer):
    """What the table stands for, by the written formula."""
    weight = layer.weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    scale = torch.where(scale < 2.0**-107, torch.ones(()), scale)
    return torch.round(weight / scale) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding", [None, 0, 7])
def test_an_embedding_gives_the_rounded_rows(dtype, padding):
    dense = embedding(dtype=dtype, padding_idx=padding)
    packed = packed_of(dense)
    assert isinstance(packed, PackedEmbedding) and not packed.training
    for ids in (IDS, IDS.int(), IDS[0, 0], IDS[:0], IDS.t(), IDS[..., None]):
        got = packed(ids)
        assert torch.equal(got, F.embedding(ids, rounded(dense)).to(dtype)) and got.dtype == dtype
        assert got.shape == dense(ids).shape
    for name in ("num_embeddings", "embedding_dim", "padding_idx"):
        assert getattr(packed, name) == getattr(dense, name)
    error = (packed(IDS).float() - dense(IDS).float()).abs()
    assert bool(
        (error <= dense(IDS).float().abs().amax(-1, keepdim=True) / 254 * 1.001 + 2e-2 * (dtype != torch.float32)).all()
    )
    assert packed.packed.nbytes == 50 * 12 + 50 * 4
    assert padding is None or torch.equal(packed(torch.tensor(padding)), torch.zeros(12, dtype=dtype))


@pytest.mark.parametrize(
    ("mode", "padding", "last", "weighted"),
    [
        case
        for case in itertools.product(("sum", "mean", "max"), (None, 3), (False, True), (False, True))
        if case[0] == "sum" or not case[3]
    ],
)
def test_a_bag_reduces_the_rounded_rows(mode, padding, last, weighted):
    dense = embedding(nn.EmbeddingBag, mode=mode, padding_idx=padding, include_last_offset=last)
    packed = packed_of(dense)
    assert isinstance(packed, PackedEmbeddingBag)
    table = copy.deepcopy(dense)
    table.weight.data = rounded(dense)
    flat = IDS.reshape(-1).clone()
    flat[5:9] = 3
    weights = torch.randn(flat.shape) if weighted else None
    offsets = torch.tensor([0, 5, 5, 9, 28] if last else [0, 5, 5, 9])  # an empty bag, and one of nothing but padding
    with torch.no_grad():
        for ids, cut in ((flat, offsets), (flat.int(), offsets.int()), (IDS, None)):
            own = None if weights is None else weights.reshape(ids.shape)
            torch.testing.assert_close(packed(ids, cut, own), table(ids, cut, own), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(packed(ids, cut, own), dense(ids, cut, own), rtol=0.05, atol=0.1)
        if padding is None and not weighted:
            assert torch.equal(packed(flat, offsets), table(flat, offsets))
    assert packed(IDS[:, :0]).tolist() == [[0.0] * 12] * 4
    assert packed(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 12)


def test_half_precision_bags_round_once():
    dense = embedding(nn.EmbeddingBag, torch.bfloat16, mode="sum")
    packed = packed_of(dense)
    exact = F.embedding_bag(IDS, rounded(dense), mode="sum")
    assert torch.equal(packed(IDS), exact.bfloat16())
    weights = torch.rand(IDS.shape, dtype=torch.bfloat16)
    exact = F.embedding_bag(IDS, rounded(dense), mode="sum", per_sample_weights=weights.float())
    assert torch.equal(packed(IDS, None, weights), exact.bfloat16())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_is_about_as_exact_as_torchs(kind):
    from torch.ao.quantization import float_qparams_weight_only_qconfig
    from torch.ao.quantization import quantize_dynamic as torchs

    dense = nn.Sequential(embedding(kind, **({"mode": "sum"} if kind is nn.EmbeddingBag else {})))
    with torch.no_grad():
        theirs = torchs(dense, {kind: float_qparams_weight_only_qconfig}, torch.quint8)
        # Their scale spans minimum to maximum of a row, ours the largest magnitude: at most twice as coarse.
        limit = 2 * (theirs(IDS) - dense(IDS)).abs().max()
        assert (pc.quantize_dynamic(dense, {kind})(IDS) - dense(IDS)).abs().max() <= limit


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_copies_keep_the_bits(kind):
    packed = packed_of(embedding(kind, torch.float16, padding_idx=4))
    packed.decision = LayerDecision("table", kind.__name__, pc.Int8(), reason="test")
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(IDS), packed(IDS))
        assert other.decision == packed.decision and repr(other) == repr(packed)
    assert copy.deepcopy(packed).packed is packed.packed
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    other = packed_like(embedding(kind, torch.float16, padding_idx=4), pack_rows(torch.ones(50, 12)))
    state = torch.load(buffer)
    assert {name: tensor.dtype for name, tensor in state.items()} == {"weight": torch.int8, "scale": torch.float32}
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(other(IDS), packed(IDS))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        other.load_state_dict(state | {"weight": torch.zeros(3, 2, dtype=torch.int8)})
    with pytest.raises(RuntimeError, match="-128"):
        other.load_state_dict(state | {"weight": torch.full((50, 12), -128, dtype=torch.int8)})
    assert torch.equal(other(IDS), packed(IDS))


def test_outputs_follow_half_and_float():
    packed = packed_of(embedding())
    model = nn.Sequential(packed)
    assert model.half()(IDS).dtype == torch.float16
    assert model.to(torch.bfloat16)(IDS).dtype == torch.bfloat16
    assert model.double()(IDS).dtype == torch.bfloat16  # there is no float64 table
    assert torch.equal(model.float()(IDS), packed_of(embedding())(IDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_exported_models_give_the_same_bits(dtype):
    torch._dynamo.reset()
    for kind in (nn.Embedding, nn.EmbeddingBag):
        packed = packed_of(embedding(kind, dtype, padding_idx=3))
        with torch.no_grad():
            compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(IDS), packed(IDS))
            program = torch.export.export(packed, (IDS,), strict=False)
            assert torch.equal(program.module()(IDS), packed(IDS))


class Language(nn.Module):
    """A language model whose head shares its table."""

    def __init__(self, tie=True, dtype=None):
        super().__init__()
        self.table = nn.Embedding(50, 12, padding_idx=0, dtype=dtype)
        self.bag = nn.EmbeddingBag(50, 12, mode="sum", include_last_offset=True)
        self.hidden = nn.Linear(12, 12)
        self.head = nn.Linear(12, 50, bias=False, dtype=dtype)
        if tie:
            self.head.weight = self.table.weight

    def forward(self, ids):
        cut = torch.arange(0, ids.numel() + 1, ids.shape[1])
        extra = self.bag(ids.reshape(-1), offsets=cut)[:, None]
        return self.head(torch.tanh(self.hidden(self.table(ids) + extra)))


def language(**options):
    torch.manual_seed(2)
    return Language(**options).eval()


class Slow:
    """A clock in which every call takes equally long: nothing is faster."""

    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@torch.no_grad()
def test_pack_replaces_embeddings_where_faster_or_forced():
    model = language()
    forced = pc.pack(model, IDS, pc.Int8(), force=True)
    assert isinstance(forced.table, PackedEmbedding) and isinstance(forced.bag, PackedEmbeddingBag)
    torch.testing.assert_close(forced(IDS), model(IDS), atol=0.5, rtol=0.1)
    reasons = {d.name: (d.kind, d.rows, d.reason) for d in pc.explain(forced)}
    assert reasons["table"] == ("Embedding", 28, "forced, not measured")
    assert reasons["bag"] == ("EmbeddingBag", 28, "forced, not measured")
    timed = pc.pack(model, IDS, pc.Int8(), _clock=Slow())
    assert isinstance(timed.table, nn.Embedding) and "Int8 not faster" in pc.explain(timed)[0].reason
    reasons = {d.name: d.reason for d in pc.explain(pc.pack(model, IDS))}
    assert reasons["table"] == "an embedding is packed with Int8() alone"
    reasons = {d.name: d.reason for d in pc.explain(pc.pack(model, IDS, pc.Sparse(), force=True))}
    assert reasons["table"] == "Sparse has no kernel for embeddings"


@torch.no_grad()
def test_quantize_dynamic_replaces_embeddings_only_where_asked_for():
    model = language()
    for spec, expected in (
        (None, set()),
        ({""}, set()),
        ({nn.Linear}, set()),
        ({nn.Embedding}, {"table"}),
        ({nn.EmbeddingBag}, {"bag"}),
        ({"bag", "hidden"}, {"bag"}),
        ({nn.Embedding: 1, nn.EmbeddingBag: 1, "table": None}, {"bag"}),
    ):
        packed = pc.quantize_dynamic(model, spec)
        kinds = (PackedEmbedding, PackedEmbeddingBag)
        assert {name for name, module in packed.named_modules() if isinstance(module, kinds)} == expected
    alone = pc.quantize_dynamic(embedding(), {nn.Embedding})
    assert isinstance(alone, PackedEmbedding)
    with pytest.raises(ValueError, match="inplace must be False"):
        pc.quantize_dynamic(embedding(), {nn.Embedding}, inplace=True)
    with pytest.raises(ValueError, match="'table': it has a max_norm"):
        pc.quantize_dynamic(nn.ModuleDict({"table": embedding(max_norm=1.0)}), {"table"})


def test_why_an_embedding_stays():
    class Own(nn.Embedding):
        def forward(self, input):
            return super().forward(input) * 2

    hooked = embedding()
    hooked.register_forward_hook(lambda *_: None)
    parametrized = nn.utils.parametrizations.weight_norm(embedding())
    for layer, reason in (
        (Own(50, 12), "Own has a forward of its own"),
        (embedding(max_norm=2.0), "it has a max_norm, by which every call changes its weight"),
        (embedding(nn.EmbeddingBag, max_norm=2.0), "it has a max_norm, by which every call changes its weight"),
        (embedding(dtype=torch.float64), "its weight is float64"),
        (hooked, "it has forward hooks, which must be removed first"),
        (parametrized, "its weight is computed by a parametrization, which must be removed first"),
        (embedding(sparse=True, scale_grad_by_freq=True), ""),
    ):
        assert obstacle(layer) == reason, layer
        packed = pc.pack(nn.Sequential(layer), IDS, pc.Int8(), force=True)
        assert [d.reason for d in pc.explain(packed)][:1] == [reason or "forced, not measured"]
    assert [d.reason for d in pc.explain(embedding())] == ["not packed yet"]


def test_a_table_that_is_read_by_hand_stays():
    class ByHand(Language):
        def forward(self, ids):
            return F.linear(self.hidden(self.table(ids)), self.table.weight)

    packed = pc.pack(ByHand(tie=False).eval(), IDS, pc.Int8(), force=True)
    assert type(packed.table) is nn.Embedding
    assert pc.explain(packed)[0].reason == "its weight is read outside its own forward"


# Wrong arguments.

TABLE = pack_rows(torch.ones(5, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_rows(None), TypeError, "weight must be"),
        (lambda: pack_rows(torch.ones(3)), ValueError, "weight must be 2-D"),
        (lambda: pack_rows(torch.ones(3, 2).long()), TypeError, "weight must be float32"),
        (lambda: pack_rows(torch.full((3, 2), torch.nan)), ValueError, "weight must be finite"),
        (lambda: pack_rows(np.ones((3, 2), np.int8)), ValueError, "scale must be given"),
        (lambda: pack_rows(np.full((3, 2), -128, np.int8), np.ones(3, np.float32)), ValueError, "weight must .* -128"),
        (lambda: pack_rows(np.ones((3, 2), np.int8), np.zeros(3, np.float32)), ValueError, "scale must be positive"),
        (lambda: pack_rows(np.ones((3, 2), np.int8), np.ones(2, np.float32)), ValueError, "scale must have shape"),
        (lambda: PackedEmbedding(None), TypeError, "packed must be PackedRows"),
        (lambda: PackedEmbedding(TABLE, 5), ValueError, "padding_idx must be"),
        (lambda: PackedEmbedding(TABLE, True), TypeError, "padding_idx must be"),
        (lambda: PackedEmbedding(TABLE, dtype=torch.float64), ValueError, "dtype must be"),
        (lambda: PackedEmbeddingBag(TABLE, "min"), ValueError, "mode must be"),
        (lambda: PackedEmbeddingBag(TABLE, include_last_offset=1), TypeError, "include_last_offset must be"),
        (lambda: PackedEmbedding(TABLE)(None), TypeError, "input must be a torch"),
        (lambda: PackedEmbedding(TABLE)(np.zeros(3, int)), TypeError, "input must be a torch"),
        (lambda: PackedEmbedding(TABLE)(torch.zeros(3)), TypeError, "input must be int64"),
        (
            lambda: PackedEmbedding(TABLE)(torch.tensor([5])),
            ValueError,
            "input must be indices from 0 to 4, got 5 to 5",
        ),
        (lambda: PackedEmbedding(TABLE)(torch.tensor([-1])), ValueError, "input must be indices from 0 to 4, got -1"),
        (lambda: PackedEmbedding(TABLE)(torch.zeros(3, device="meta").long()), ValueError, "input must be a dense CPU"),
        (lambda: PackedEmbeddingBag(TABLE)(torch.zeros(2, 2, 2).long()), ValueError, "input must be 1-D or 2-D"),
        (lambda: PackedEmbeddingBag(TABLE)(torch.zeros(2).long()), ValueError, "offsets must be given"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[:, :1] % 5, torch.tensor([0])), ValueError, "offsets must be given"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[0] % 5, torch.tensor([1])), ValueError, "offsets must run from 0"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[0] % 5, torch.tensor([0, 8])), ValueError, "offsets must run from 0"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[0] % 5, torch.tensor([0, 3, 2])), ValueError, "offsets must run from 0"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[0] % 5, torch.tensor([[0]])), ValueError, "offsets must be 1-D"),
        (lambda: PackedEmbeddingBag(TABLE)(IDS[0] % 5, torch.tensor([0.0])), TypeError, "offsets must be int64"),
        (
            lambda: PackedEmbeddingBag(TABLE)(IDS % 5, None, torch.ones(4, 7)),
            ValueError,
            "per_sample_weights must be None",
        ),
        (
            lambda: PackedEmbeddingBag(TABLE, "sum")(IDS % 5, None, torch.ones(4)),
            ValueError,
            "per_sample_weights must be floats of shape",
        ),
        (
            lambda: PackedEmbeddingBag(TABLE, "sum")(IDS % 5, None, torch.ones(4, 7, requires_grad=True)),
            ValueError,
            "per_sample_weights must not require grad",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_parameters_of_packed_tables_are_counted():
    assert count_parameters(packed_of(embedding())) == count_parameters(embedding())
