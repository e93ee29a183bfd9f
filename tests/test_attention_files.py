"""Packed attention in artifacts: it comes back bit for bit, and files that are wrong are refused."""

import pytest
import torch
from hostile import Parts
from test_attention import Block, E, H, X, attention, block
from torch import nn

import pycompress as pc
from pycompress.artifact import describe
from pycompress.artifact.saving import to_bytes
from pycompress.attention import PackedMultiheadAttention, packed_attention


@pytest.mark.parametrize("into", [Block, lambda: pc.quantize_dynamic(Block(), {nn.MultiheadAttention, nn.Linear})])
@torch.no_grad()
def test_files_give_the_same_bits(tmp_path, into):
    model = pc.quantize_dynamic(block(), {nn.MultiheadAttention, nn.Linear})
    pc.save(model, tmp_path / "model")
    loaded = pc.load(tmp_path / "model", into)
    assert torch.equal(loaded(X), model(X)) and not loaded.training
    assert list(pc.explain(loaded)) == list(pc.explain(model))
    pc.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    names = {tensor.name for tensor in describe(tmp_path / "model").tensors}
    assert {"attn.in_proj_scale", "attn.out_proj.bias", "cross.k_proj_weight"} <= names


@torch.no_grad()
def test_encoders_and_shared_attention_come_back(tmp_path):
    torch.manual_seed(6)

    def build():
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 24, batch_first=True), 2)

    model = pc.quantize_dynamic(build(), {nn.MultiheadAttention, nn.Linear})
    pc.save(model, tmp_path / "model")
    loaded = pc.load(tmp_path / "model", build)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    assert torch.equal(loaded(X, src_key_padding_mask=padding), model(X, src_key_padding_mask=padding))
    one = packed_attention(attention())
    pair = nn.ModuleList([one, one, PackedMultiheadAttention(one.packed, H)])
    pc.save(pair, tmp_path / "pair")
    same = attention()
    loaded = pc.load(tmp_path / "pair", nn.ModuleList([same, same, attention()]))
    assert loaded[0] is loaded[1]
    assert all(torch.equal(layer(X, X, X)[0], one(X, X, X)[0]) for layer in loaded)
    pc.save(one, tmp_path / "one")
    assert torch.equal(pc.load(tmp_path / "one", attention())(X, X, X)[0], one(X, X, X)[0])


def test_files_and_models_that_do_not_fit(tmp_path):
    packed = pc.quantize_dynamic(nn.Sequential(attention()), {nn.MultiheadAttention})
    pc.save(packed, tmp_path / "packed")
    for module, message in (
        (nn.MultiheadAttention(E, 2), "num_heads"),
        (nn.MultiheadAttention(8, H), "embed_dim"),
        (nn.MultiheadAttention(E, H, kdim=5), "kdim"),
        (nn.MultiheadAttention(E, H, batch_first=True), "batch_first"),
        (nn.MultiheadAttention(E, H, bias=False), "bias"),
        (nn.MultiheadAttention(E, H, add_zero_attn=True), "adds keys in the model"),
        (nn.MultiheadAttention(E, H, add_bias_kv=True), "adds keys in the model"),
        (nn.Linear(E, E), "packed attention in the file and Linear in the model"),
    ):
        with pytest.raises(pc.artifact.ArtifactError, match=message):
            pc.load(tmp_path / "packed", nn.Sequential(module))
    pc.save(nn.Sequential(attention()), tmp_path / "dense")
    with pytest.raises(pc.artifact.ArtifactError, match="packed attention in the model and another layer in the file"):
        pc.load(tmp_path / "dense", packed)


WHERE = "metadata/layers/attn/packed"
WRONG = {
    "must be a JSON object": [(f"{WHERE}/attention", value) for value in (None, 1, [], "a")],
    "must have the keys": [(f"{WHERE}/attention/more", 1), (f"{WHERE}/attention", {})],
    "heads must be": [(f"{WHERE}/attention/heads", value) for value in (0, -1, 2.0, True, None, 2**31)],
    "must be true or false": [
        (f"{WHERE}/attention/{name}", value) for name in ("batch_first", "apart", "bias") for value in (1, None, "true")
    ],
    "heads divide": [(f"{WHERE}/attention/heads", 3)],
    "must have a tensor q_proj_weight": [(f"{WHERE}/attention/apart", True)],
    "unexpected in the file": [(f"{WHERE}/attention/bias", False)],
    "num_heads": [(f"{WHERE}/attention/heads", 8)],
    "must be Int8": [
        (f"{WHERE}/activation", "relu"),
        (f"{WHERE}/embedding", {}),
        (f"{WHERE}/recurrent", {"cell": "gru", "layers": 1}),
        (f"{WHERE}/format", {"name": "Sparse", "block": [1, 1], "values": {"name": "Float32"}}),
    ],
    "must not have an input_scale or groups": [
        ("metadata/layers/attn/input_scale", 0.5),
        ("metadata/layers/attn/groups", 2),
    ],
    "must have in_proj_weight of shape": [
        ("header/attn.in_proj_weight/shape", [16, 48]),
        ("header/attn.out_proj.weight/shape", [256]),
        ("header/attn.out_proj.weight/shape", [8, 32]),
    ],
    "must have in_proj_scale of shape": [("header/attn.in_proj_scale/shape", [24, 2])],
    "must have out_proj.weight of shape": [("header/attn.out_proj.weight/shape", [16, 16, 1])],
    "must have weights I8": [("header/attn.in_proj_weight/dtype", "U8"), ("header/attn.out_proj.scale/dtype", "I32")],
}


@pytest.mark.parametrize(
    ("message", "where", "value"), [(message, *case) for message, found in WRONG.items() for case in found]
)
def test_hostile_metadata_is_refused(message, where, value, tmp_path):
    parts = Parts(to_bytes(pc.quantize_dynamic(block(), {nn.MultiheadAttention, nn.Linear})))
    parts.set(where, value)
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match=message):
        pc.load(tmp_path / "bad", Block)


def test_hostile_numbers_are_refused(tmp_path):
    parts = Parts(to_bytes(pc.quantize_dynamic(block(), {nn.MultiheadAttention, nn.Linear})))
    begin = parts.header["attn.in_proj_weight"]["data_offsets"][0]
    parts.data[begin : begin + 1] = b"\x80"
    (tmp_path / "bad").write_bytes(parts.file())
    with pytest.raises(pc.artifact.ArtifactError, match="from -127 to 127"):
        pc.load(tmp_path / "bad", Block)
