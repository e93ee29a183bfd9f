"""Embeddings of 4-bit rows: the formula, memory, copies, files, compiled models, and what is refused."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hostile import Parts
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import kernels
from pycompress.artifact import describe
from pycompress.artifact.saving import to_bytes
from pycompress.embeddings import PackedEmbedding, PackedEmbeddingBag
from pycompress.rows import pack_rows

IDS = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))


def table(columns=71, kind=nn.Embedding, dtype=torch.float32, **options):
    torch.manual_seed(1)
    return kind(50, columns, **options).to(dtype).eval()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("columns", [1, 2, 31, 32, 71, 128])
def test_rows_are_those_of_a_linear_weight(group, columns):
    weight = table(columns).weight.detach()
    packed, linear = pack_rows(weight, format=pc.Int4(group)), kernels.pack(weight, pc.Int4(group))
    np.testing.assert_array_equal(packed.canonical_weight(), linear.canonical_weight())
    np.testing.assert_array_equal(packed.scale.numpy(), linear.scale)
    assert torch.equal(packed.gather(IDS), F.embedding(IDS, torch.from_numpy(linear.unpack())))
    groups = -(-columns // group)
    assert packed.nbytes == 50 * -(-columns // 2) + 2 * 50 * groups and packed.shape == (50, columns)
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(again.weight, packed.weight) and again.format == packed.format


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@torch.no_grad()
def test_models(tmp_path, kind, dtype):
    def build():
        return nn.Sequential(table(kind=kind, dtype=dtype, padding_idx=3))

    dense = build()
    packed = pc.quantize_dynamic(dense, {kind}, dtype=torch.quint4x2)
    assert isinstance(packed[0], PackedEmbedding if kind is nn.Embedding else PackedEmbeddingBag)
    assert packed[0].format == pc.Int4() and pc.explain(packed)[0].format == pc.Int4()
    y = packed(IDS)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), dense(IDS).float(), atol=0.4, rtol=0.1)
    forced = pc.pack(dense, IDS, pc.Int4(), force=True)
    pc.save(packed, tmp_path / "model")
    assert {t.coding for t in describe(tmp_path / "model").tensors} == {"nibbles", "plain"}
    assert (tmp_path / "model").stat().st_size < 50 * 71 * 0.6 + 2000
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    filled = pc.quantize_dynamic(nn.Sequential(kind(50, 71, padding_idx=3).to(dtype)), {kind}, dtype=torch.quint4x2)
    filled.load_state_dict(torch.load(buffer))
    loaded = [pc.load(tmp_path / "model", into) for into in (build, lambda: copy.deepcopy(packed))]
    for other in (forced, filled, *loaded, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(IDS), y) and repr(other) == repr(packed)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(IDS), y)
    assert torch.equal(torch.export.export(packed, (IDS,)).module()(IDS), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@torch.no_grad()
def test_is_as_exact_as_torchs():
    from torch.ao.quantization import quantize_dynamic as torchs

    dense = nn.Sequential(table(64, nn.EmbeddingBag, mode="sum"))
    offsets = torch.tensor([0, 5, 9])
    theirs = torchs(dense, dtype=torch.quint4x2)[0](IDS.reshape(-1), offsets)
    ours, exact = (
        model[0](IDS.reshape(-1), offsets) for model in (pc.quantize_dynamic(dense, dtype=torch.quint4x2), dense)
    )
    assert (ours - exact).square().mean() <= 1.2 * (theirs - exact).square().mean()


@pytest.mark.parametrize("format", [pc.Int4(zero_point=True), pc.Int4(scales="int", activations="int8")])
def test_other_4_bit_formats_have_no_rows(format):
    with pytest.raises(ValueError, match="format must be Int4 without zero points"):
        pack_rows(torch.ones(2, 2), format=format)
    reasons = [d.reason for d in pc.explain(pc.pack(nn.Sequential(table()), IDS, format, force=True))]
    assert reasons == [f"{format} has no kernel for embeddings"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_rows(torch.ones(2, 2), format=pc.Sparse()), TypeError, r"format must be Int8\(\) or Int4\(\)"),
        (
            lambda: pack_rows(np.full((2, 2), 8, np.int8), np.ones((2, 1), np.float32), pc.Int4()),
            ValueError,
            "weight must",
        ),
        (lambda: pack_rows(np.ones((2, 2), np.int8), np.ones((2, 2), np.float32), pc.Int4()), ValueError, "scale must"),
        (lambda: pack_rows(np.ones((2, 2), np.int8), None, pc.Int4()), ValueError, "scale must be given"),
        (lambda: pack_rows(torch.full((2, 2), torch.inf), format=pc.Int4()), ValueError, "weight must be finite"),
    ],
)
def test_wrong_tables_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_indices_outside_the_table_are_refused():
    packed = pc.quantize_dynamic(nn.Sequential(table()), {nn.Embedding}, dtype=torch.quint4x2)
    with pytest.raises(ValueError, match="input must be indices from 0 to 49, got 0 to 50"):
        packed(torch.tensor([0, 50]))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("metadata/layers/0/packed/format/zero_point", True, "must be Int8 or plain Int4"),
        ("metadata/layers/0/packed/format/group", 64, "must have a scale F16"),
        ("metadata/layers/0/packed/format", {"name": "Int8"}, "must have a scale F32"),
        ("header/0.scale/shape", [150], "must have a scale F16"),
    ],
)
def test_hostile_files_are_refused(tmp_path, where, value, message):
    parts = Parts(to_bytes(pc.quantize_dynamic(nn.Sequential(table()), {nn.Embedding}, dtype=torch.quint4x2)))
    parts.set(where, value)
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", nn.Sequential(table()))
