"""Packed attention: torch's arguments, bits of the written formula, encoder layers, copies, refusals."""

import copy
import io
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import grids, kernels
from pycompress.attention import PackedMultiheadAttention, obstacle, packed_attention
from pycompress.layers import LayerDecision, PackedLinear
from pycompress.validation.cost import count_parameters

E, H = 16, 4


def attention(**options):
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(E, H, **options).eval()
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return layer


def inputs(batch_first, kdim=E, vdim=E, batch=3, queries=5, keys=7):
    generator = torch.Generator().manual_seed(2)
    shapes = [(batch, queries, E), (batch, keys, kdim), (batch, keys, vdim)]
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    return found if batch_first else [x.transpose(0, 1) for x in found]


def close(got, expected):
    assert (got[1] is None) == (expected[1] is None)
    for a, b in zip(got, expected, strict=True):
        if a is not None:
            assert a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=0.06, rtol=0.06)


PADDING = torch.zeros(3, 7, dtype=torch.bool)
PADDING[0, 5:] = PADDING[2, 1:4] = True
CAUSAL = torch.triu(torch.ones(5, 7, dtype=torch.bool), 1)
PER_HEAD = torch.randn(3 * H, 5, 7, generator=torch.Generator().manual_seed(3))
MASKS = [
    {},
    {"key_padding_mask": PADDING},
    {"attn_mask": CAUSAL},
    {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    {"attn_mask": CAUSAL, "is_causal": True},
    {"attn_mask": CAUSAL, "is_causal": True, "key_padding_mask": PADDING},
    {"attn_mask": PER_HEAD},
    {"attn_mask": PER_HEAD[0], "key_padding_mask": PADDING.float() * -3},
]


@pytest.mark.parametrize("masks", MASKS, ids=[str(i) for i in range(len(MASKS))])
@pytest.mark.parametrize(("batch_first", "bias"), list(itertools.product((False, True), (False, True))))
@torch.no_grad()
def test_agrees_with_torch(batch_first, bias, masks):
    for sizes in ({}, {"kdim": 6, "vdim": 9}):
        dense = attention(batch_first=batch_first, bias=bias, dropout=0.3, **sizes)
        packed = packed_attention(dense)
        assert isinstance(packed, PackedMultiheadAttention) and not packed.training
        for name in ("embed_dim", "num_heads", "kdim", "vdim", "head_dim", "batch_first", "_qkv_same_embed_dim"):
            assert getattr(packed, name) == getattr(dense, name)
        given = inputs(batch_first, **sizes)
        for options in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            close(packed(*given, **masks, **options), dense(*given, **masks, **options))


@torch.no_grad()
def test_self_attention_and_unbatched_inputs():
    for batch_first in (False, True):
        dense = attention(batch_first=batch_first)
        packed = packed_attention(dense)
        x = torch.randn(3, 5, E)
        mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1) if batch_first else None
        for need in (True, False):
            close(packed(x, x, x, need_weights=need), dense(x, x, x, need_weights=need))
            close(packed(x[0], x[0], x[0], need_weights=need), dense(x[0], x[0], x[0], need_weights=need))
        padding = torch.tensor([False, False, True, False, True])
        got = packed(x[0], x[1], x[1], key_padding_mask=padding, attn_mask=mask, average_attn_weights=False)
        close(got, dense(x[0], x[1], x[1], key_padding_mask=padding, attn_mask=mask, average_attn_weights=False))
        assert packed(x[:, :0] if batch_first else x[:0], x, x)[0].numel() == 0
        assert packed.packed[0].shape == (3 * E, E)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", MASKS, ids=[str(i) for i in range(len(MASKS))])
@torch.no_grad()
def test_is_torchs_attention_between_the_kernels(masks, need_weights):
    """With identities as projections, torch's function is the formula on what the kernels projected."""
    packed = packed_attention(attention())
    query, key, value = inputs(False)
    whole = packed.packed[0]
    q, k, v = (kernels.linear(x, whole)[..., i * E : (i + 1) * E] for i, x in enumerate((query, key, value)))
    eye, none = torch.eye(E), None
    attended, weights = F.multi_head_attention_forward(
        *(q, k, v, E, H, none, none, none, none, False, 0.0, eye, none),
        training=False,
        need_weights=need_weights,
        use_separate_proj_weight=True,
        **{"q_proj_weight": eye, "k_proj_weight": eye, "v_proj_weight": eye, **masks},
    )
    y, found = packed(query, key, value, need_weights=need_weights, **masks)
    torch.testing.assert_close(y, kernels.linear(attended.contiguous(), packed.packed[1]), atol=2e-2, rtol=1e-2)
    if need_weights:
        torch.testing.assert_close(found, weights, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_one_projection_and_three_give_the_same_bits():
    packed, x = packed_attention(attention(batch_first=True)), torch.randn(2, 5, E)
    joined, apart = packed(x, x, x), packed(x, x.clone(), x)
    assert torch.equal(joined[0], apart[0]) and torch.equal(joined[1], apart[1])
    before = len(pickle.dumps(packed_attention(attention(batch_first=True))))
    assert abs(len(pickle.dumps(packed)) - before) < 50  # what was cut is not pickled
    other = packed_attention(nn.MultiheadAttention(E, H, batch_first=True).eval())
    other(x, x.clone(), x)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x, x.clone(), x)[0], joined[0])  # nor kept when the weights change


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype):
    packed, x = packed_attention(attention()), torch.randn(5, 3, E)
    y, weights = packed(x.to(dtype), x.to(dtype), x.to(dtype))
    assert y.dtype == weights.dtype == dtype
    torch.testing.assert_close(y.float(), packed(x, x, x)[0], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 9}, {"bias": False}])
@torch.no_grad()
def test_copies_keep_the_bits(options):
    packed = packed_attention(attention(**options))
    packed.decision = LayerDecision("attn", "MultiheadAttention", pc.Int8(), reason="test")
    given = inputs(False, **{name: size for name, size in options.items() if name != "bias"})
    expected = packed(*given)[0]
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(*given)[0], expected)
        assert other.decision == packed.decision and repr(other) == repr(packed)
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    other = packed_attention(nn.MultiheadAttention(E, H, **options).eval())
    assert str(other.load_state_dict(torch.load(buffer))) == "<All keys matched successfully>"
    assert torch.equal(other(*given)[0], expected)
    assert count_parameters(packed) == count_parameters(attention(**options))


@torch.no_grad()
def test_compiled_and_exported():
    torch._dynamo.reset()
    packed = packed_attention(attention(batch_first=True))
    x, y = torch.randn(2, 5, E), torch.randn(2, 7, E)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    for given in ((x, x, x), (x, y, y)):
        torch.testing.assert_close(compiled(*given), packed(*given), atol=1e-2, rtol=1e-2)
    program = torch.export.export(packed, (x, x, x), strict=False)
    torch.testing.assert_close(program.module()(x, x, x), packed(x, x, x), atol=1e-2, rtol=1e-2)


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(E, H, batch_first=True, **options)
        self.cross = nn.MultiheadAttention(E, H, batch_first=True, kdim=6, vdim=6, bias=False)
        self.fc = nn.Linear(E, 3)

    def forward(self, x):
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.fc(x + self.cross(x, x[..., :6], value=x[..., :6])[0])


X = torch.randn(3, 5, E, generator=torch.Generator().manual_seed(4))


def block(**options):
    torch.manual_seed(5)
    return Block(**options).eval()


@torch.no_grad()
def test_pack():
    model = block()
    packed = pc.pack(model, X, pc.Int8(), force=True)
    assert isinstance(packed.attn, PackedMultiheadAttention) and isinstance(packed.cross, PackedMultiheadAttention)
    torch.testing.assert_close(packed(X), model(X), atol=0.1, rtol=0.1)
    found = {d.name: (d.kind, d.rows, d.reason) for d in pc.explain(packed)}
    assert found["attn"] == ("MultiheadAttention", 15, "forced, not measured")
    assert found["cross"] == ("MultiheadAttention", 15, "forced, not measured")
    assert set(found) == {"attn", "cross", "fc"}
    dense = {d.name: d.reason for d in pc.explain(pc.pack(model, X))}
    assert dense["attn"] == "packed with Int8() alone"
    dense = {d.name: d.reason for d in pc.explain(pc.pack(model, X, pc.Sparse(), force=True))}
    assert dense["attn"] == "Sparse has no attention kernel"
    timed = pc.pack(model, X, pc.Int8())
    assert pc.explain(timed)[0].speedup is not None


def test_an_output_projection_on_a_grid_keeps_its_integers():
    model = block()
    pc.quantize_(model, pc.Int8(), include=["attn.out_proj"])
    grid = grids.grid_of(model.attn.out_proj)
    grids.set_grid(model.attn.out_proj, replace(grid, scale=grid.scale * 2))
    with torch.no_grad():
        model.attn.out_proj.weight.mul_(2).clamp_(-100 * grid.scale.min(), 100 * grid.scale.min())
        grid = grids.grid_of(model.attn.out_proj)
        model.attn.out_proj.weight.copy_(grids.weight_from(grids.nearest(model.attn.out_proj.weight, grid), grid))
    packed = pc.pack(model, X, pc.Int8(), force=True)
    out = packed.attn.packed[1]
    assert torch.equal(torch.tensor(out.scale), grid.scale)
    assert torch.equal(torch.tensor(out.canonical_weight()), grids.integers(model.attn.out_proj.weight, grid))


def test_quantize_dynamic():
    model = block()
    for spec, expected in (
        (None, {"fc"}),
        ({""}, {"fc"}),
        ({nn.MultiheadAttention}, {"attn", "cross"}),
        ({"attn", "attn.out_proj"}, {"attn"}),
        ({nn.MultiheadAttention: 1, "cross": None, nn.Linear: 1}, {"attn", "fc"}),
    ):
        packed = pc.quantize_dynamic(model, spec)
        kinds = (PackedMultiheadAttention, PackedLinear)
        assert {name for name, module in packed.named_modules() if isinstance(module, kinds)} == expected
    assert isinstance(pc.quantize_dynamic(attention(), {nn.MultiheadAttention}), PackedMultiheadAttention)
    with pytest.raises(ValueError, match="inplace must be False"):
        pc.quantize_dynamic(attention(), {""}, inplace=True)
    with pytest.raises(ValueError, match="'attn': it adds a key of zeros"):
        pc.quantize_dynamic(block(add_zero_attn=True), {"attn"})


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_encoder_layers_take_their_ordinary_path(batch_first, norm_first):
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(E, H, 24, batch_first=batch_first, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first).eval()
    attended = pc.quantize_dynamic(model, {nn.MultiheadAttention})
    both = pc.quantize_dynamic(model, {nn.MultiheadAttention, nn.Linear})
    first = pc.quantize_dynamic(model, {"layers.0.self_attn", nn.Linear})
    assert isinstance(both.layers[0].linear1, PackedLinear) and isinstance(attended.layers[1].linear1, nn.Linear)
    assert isinstance(first.layers[0].linear1, PackedLinear) and isinstance(first.layers[1].linear1, PackedLinear)
    x = X if batch_first else X.transpose(0, 1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    for packed in (attended, both, first):
        for options in ({}, {"mask": causal, "is_causal": True}, {"mask": causal}, {"src_key_padding_mask": padding}):
            got, expected = packed(x, **options), model(x, **options)
            if "src_key_padding_mask" in options:  # torch's fused path gives zeros there, its ordinary one does not
                kept = ~padding if batch_first else ~padding.t()
                got, expected = got[kept], expected[kept]
            torch.testing.assert_close(got, expected, atol=0.3, rtol=0.1)
    with torch.enable_grad():
        both(x, src_key_padding_mask=padding)


@torch.no_grad()
def test_pack_takes_encoder_layers_off_their_fused_path():
    torch.manual_seed(6)
    model = nn.TransformerEncoderLayer(E, H, 24, batch_first=True).eval()
    packed = pc.pack(model, X, pc.Int8(), force=True)
    assert isinstance(packed.self_attn, PackedMultiheadAttention) and isinstance(packed.linear1, PackedLinear)
    torch.testing.assert_close(packed(X), model(X), atol=0.3, rtol=0.1)


def test_why_attention_stays():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    hooked = attention()
    hooked.out_proj.register_forward_hook(lambda *_: None)
    for layer, reason in (
        (Own(E, H), "Own has a forward of its own"),
        (attention(add_bias_kv=True), "it adds a learned key (bias_k, bias_v)"),
        (attention(add_zero_attn=True), "it adds a key of zeros (add_zero_attn)"),
        (attention().double(), "its weights are float64"),
        (hooked, "it has forward hooks, which must be removed first"),
        (nn.utils.parametrizations.weight_norm(attention(), "in_proj_weight"), "its weights are computed by"),
        (attention(), ""),
    ):
        assert obstacle(layer).startswith(reason) and bool(obstacle(layer)) == bool(reason)
        if reason:
            with pytest.raises(ValueError, match="layer must be one that can be packed"):
                packed_attention(layer)
    with pytest.raises(TypeError, match=r"layer must be an nn\.MultiheadAttention"):
        packed_attention(nn.Linear(2, 2))


# Wrong arguments.

LAYER = packed_attention(attention())
IN, OUT = LAYER.packed
Q = torch.ones(5, 3, E)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PackedMultiheadAttention(None, H), TypeError, "packed must be a tuple"),
        (lambda: PackedMultiheadAttention((IN,), H), ValueError, "packed must be"),
        (lambda: PackedMultiheadAttention((OUT, OUT), H), ValueError, "packed must have shapes"),
        (lambda: PackedMultiheadAttention((IN, OUT), 3), ValueError, "num_heads must divide"),
        (lambda: PackedMultiheadAttention((IN, OUT), 0), ValueError, "num_heads must be"),
        (lambda: PackedMultiheadAttention((IN, OUT), True), TypeError, "num_heads must be"),
        (lambda: PackedMultiheadAttention((IN, OUT), H, 1), TypeError, "batch_first must be"),
        (
            lambda: PackedMultiheadAttention((IN, kernels.pack(torch.ones(E, E), pc.Sparse(), torch.ones(E))), H),
            ValueError,
            "packed must be of format Int8",
        ),
        (
            lambda: PackedMultiheadAttention((IN, kernels.pack(torch.ones(E, E), pc.Int8())), H),
            ValueError,
            "all with a bias or none",
        ),
        (lambda: LAYER(None, Q, Q), TypeError, "query must be"),
        (lambda: LAYER(Q, np.ones((5, 3, E), np.float32), Q), TypeError, "key must be"),
        (lambda: LAYER(Q, Q, Q.long()), TypeError, "value must be float32"),
        (lambda: LAYER(Q, Q.half(), Q), TypeError, "key must be float32, float16 or bfloat16 as query is"),
        (lambda: LAYER(Q, Q[..., :3], Q), ValueError, "key must be 2-D or 3-D as query is with size 16"),
        (lambda: LAYER(Q, Q[0], Q[0]), ValueError, "key must be 2-D or 3-D as query is"),
        (lambda: LAYER(Q, Q, Q[:2]), ValueError, "value must have as many rows as key"),
        (lambda: LAYER(Q, Q[:, :1], Q[:, :1]), ValueError, "key must have the batch of query"),
        (lambda: LAYER(Q.clone().requires_grad_(), Q, Q), ValueError, "query must not require grad"),
        (lambda: LAYER(Q, Q, Q, is_causal=True), ValueError, "attn_mask must be given"),
        (lambda: LAYER(Q, Q, Q, attn_mask=torch.ones(5, 4)), ValueError, "attn_mask must have shape"),
        (lambda: LAYER(Q, Q, Q, attn_mask=torch.ones(5, 5).long()), TypeError, "attn_mask must be bool or float"),
        (lambda: LAYER(Q, Q, Q, attn_mask=[[True]]), TypeError, "attn_mask must be a tensor"),
        (lambda: LAYER(Q, Q, Q, key_padding_mask=torch.ones(5)), ValueError, "key_padding_mask must have shape"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
