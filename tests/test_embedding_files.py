"""Packed embeddings and bags in artifacts: bit for bit, with weights that layers share; wrong files are refused."""

import copy

import pytest
import torch
from hostile import Parts
from test_embeddings import IDS, Language, embedding, language
from torch import nn

import pycompress as pc
from pycompress.artifact import describe
from pycompress.artifact.saving import to_bytes
from pycompress.embeddings import PackedEmbedding
from pycompress.layers import PackedLinear


@pytest.mark.parametrize("into", ["factory", "packed", "half"])
@torch.no_grad()
def test_files_give_the_same_bits(tmp_path, into):
    model = pc.pack(language(), IDS, pc.Int8(), force=True)
    pc.save(model, tmp_path / "model")
    makers = {"factory": Language, "packed": lambda: copy.deepcopy(model), "half": lambda: Language().half()}
    loaded = pc.load(tmp_path / "model", makers[into])
    assert torch.equal(loaded(IDS), model(IDS)) and not loaded.training
    assert isinstance(loaded.table, PackedEmbedding) and loaded.bag.include_last_offset
    assert list(map(str, pc.explain(loaded))) == list(map(str, pc.explain(model)))
    pc.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    half = pc.pack(nn.Sequential(embedding(dtype=torch.float16)), IDS, pc.Int8(), force=True)
    pc.save(half, tmp_path / "half")
    assert torch.equal(pc.load(tmp_path / "half", nn.Sequential(embedding()))(IDS), half(IDS))


@torch.no_grad()
def test_a_shared_weight_that_is_packed_twice_is_stored_once(tmp_path):
    model = pc.pack(language(), IDS, pc.Int8(), force=True)
    assert isinstance(model.table, PackedEmbedding) and isinstance(model.head, PackedLinear)
    assert torch.equal(model.table.packed.weight, torch.from_numpy(model.head.packed.canonical_weight()))
    pc.save(model, tmp_path / "model")
    found = describe(tmp_path / "model")
    assert found.tied == {"head.weight": "table.weight", "head.scale": "table.scale"}
    apart = pc.load(tmp_path / "model", lambda: Language(tie=False))
    assert torch.equal(apart(IDS), model(IDS))
    twice = nn.ModuleList(
        [model.head, model.table, PackedLinear(pc.kernels.pack(language().head.weight.detach(), pc.Int8()))]
    )
    pc.save(twice, tmp_path / "twice")
    assert set(describe(tmp_path / "twice").tied.values()) == {"0.weight", "0.scale"}
    pc.load(
        tmp_path / "twice",
        nn.ModuleList([nn.Linear(12, 50, bias=False), embedding(padding_idx=0), nn.Linear(12, 50, bias=False)]),
    )


@torch.no_grad()
def test_a_shared_weight_of_which_one_layer_is_packed(tmp_path):
    for spec, left, other in (({nn.Linear}, "table", "head"), ({nn.Embedding}, "head", "table")):
        model = pc.quantize_dynamic(language(), spec)
        reason = next(d.reason for d in pc.explain(model) if d.name == other)
        # named_parameters gives the first name that is left
        assert reason == f"asked for by quantize_dynamic; {left}.weight, which it shared, stays dense beside it"
        pc.save(model, tmp_path / "model")
        assert describe(tmp_path / "model").tied == {}
        for tie in (True, False):
            loaded = pc.load(tmp_path / "model", lambda tie=tie: Language(tie=tie))
            assert torch.equal(loaded(IDS), model(IDS))
            assert torch.equal(loaded.get_submodule(left).weight, language().get_submodule(left).weight)
    dense = pc.quantize_dynamic(language(), {"hidden"})
    pc.save(dense, tmp_path / "dense")
    assert describe(tmp_path / "dense").tied == {"head.weight": "table.weight"}
    loaded = pc.load(tmp_path / "dense", Language)
    assert loaded.head.weight is loaded.table.weight and torch.equal(loaded(IDS), dense(IDS))


@torch.no_grad()
def test_a_shared_weight_on_a_grid_keeps_its_integers():
    model = language()
    pc.quantize_(model, pc.Int8())
    packed = pc.pack(model, IDS, pc.Int8(), force=True)
    assert torch.equal(packed.table(IDS), model.table(IDS))
    assert torch.equal(pc.quantize_dynamic(model, {nn.Embedding}).table(IDS), model.table(IDS))


WHERE = "metadata/layers/table/packed/embedding"
BAG = "metadata/layers/bag/packed/embedding"
WRONG = {
    "must be a JSON object": [(WHERE, value) for value in (None, 1, [], "a")],
    "must have the keys": [(f"{WHERE}/more", 1)],
    "mode must be": [(f"{BAG}/mode", value) for value in ("min", None, 1, [])],
    "padding_idx must be an integer": [(f"{WHERE}/padding_idx", value) for value in (-1, 1.0, True, None, 2**63)],
    "must have a padding_idx below 50": [(f"{WHERE}/padding_idx", 50)],
    "must be true or false": [(f"{BAG}/include_last_offset", value) for value in (1, None, "true")],
    "must have a mode with include_last_offset": [(f"{WHERE}/include_last_offset", True)],
    "dtype must be": [(f"{WHERE}/dtype", value) for value in ("F64", "I8", None, 3)],
    "padding_idx'.* in the model": [(f"{WHERE}/padding_idx", 1)],
    "EmbeddingBag in the file and Embedding in the model": [(f"{WHERE}/mode", "sum")],
    "'mode'.* in the model": [(f"{BAG}/mode", "mean")],
    "must be Int8": [
        ("metadata/layers/table/packed/activation", "relu"),
        ("metadata/layers/table/packed/recurrent", {"cell": "gru", "layers": 1}),
        ("metadata/layers/table/packed/convolution", {"stride": [1], "padding": [[0, 0]], "dilation": [1]}),
        ("metadata/layers/table/packed/format", {"name": "Sparse", "block": [1, 1], "values": {"name": "Float32"}}),
    ],
    "must not have an input_scale or groups": [
        ("metadata/layers/table/input_scale", 0.5),
        ("metadata/layers/table/groups", 2),
    ],
    "must have a weight I8": [("header/bag.weight/shape", [600]), ("header/bag.weight/dtype", "U8")],
    "must have a scale F32": [("header/bag.scale/shape", [25, 2]), ("header/bag.scale/dtype", "I32")],
}


@pytest.mark.parametrize(
    ("message", "where", "value"), [(message, *case) for message, found in WRONG.items() for case in found]
)
def test_hostile_metadata_is_refused(message, where, value, tmp_path):
    parts = Parts(to_bytes(pc.quantize_dynamic(language(), {nn.Embedding, nn.EmbeddingBag})))
    parts.set(where, value)
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", Language)


def test_files_and_models_that_do_not_fit(tmp_path):
    packed = pc.quantize_dynamic(nn.Sequential(embedding()), {nn.Embedding})
    pc.save(packed, tmp_path / "packed")
    for module, message in (
        (nn.Embedding(51, 12), "num_embeddings"),
        (nn.Embedding(50, 11), "embedding_dim"),
        (nn.Linear(12, 50), "a packed Embedding in the file and Linear in the model"),
        (nn.EmbeddingBag(50, 12), "a packed Embedding in the file and EmbeddingBag in the model"),
    ):
        with pytest.raises(pc.artifact.ArtifactError, match=message):
            pc.load(tmp_path / "packed", nn.Sequential(module))
    pc.save(nn.Sequential(embedding()), tmp_path / "dense")
    with pytest.raises(pc.artifact.ArtifactError, match="dense in the file and packed in the model"):
        pc.load(tmp_path / "dense", packed)
    pc.save(pc.quantize_dynamic(nn.Sequential(nn.Linear(12, 50))), tmp_path / "linear")
    with pytest.raises(pc.artifact.ArtifactError, match="linear layer in the file and PackedEmbedding in the model"):
        pc.load(tmp_path / "linear", packed)
