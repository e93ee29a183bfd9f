"""The Conv1D of transformers (GPT-2), a linear layer whose weight is [in, out], becomes a PackedLinear."""

import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress.layers import PackedLinear
from pycompress.linears import is_conv1d, obstacle


class Conv1D(nn.Module):
    """As ``transformers.pytorch_utils.Conv1D``, which is not installed here."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


def look_alike(name="Conv1D", **changes):
    return type(name, (Conv1D,), changes)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(36, 12), Conv1D(12, 36)
        self.act = nn.GELU()

    def forward(self, x):
        return x + self.c_proj(self.act(self.c_attn(x)))


X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def block():
    torch.manual_seed(1)
    model = Block().eval()
    nn.init.normal_(model.c_attn.bias)
    return model


@pytest.mark.parametrize("format", [pc.Int8(), pc.Int4(), pc.Sparse()])
@torch.no_grad()
def test_pack_turns_the_weight(format):
    model = block()
    packed = pc.pack(model, X, format, force=True)
    assert type(packed.c_attn) is type(packed.c_proj) is PackedLinear
    assert (packed.c_attn.in_features, packed.c_attn.out_features) == (12, 36)
    torch.testing.assert_close(packed(X), model(X), atol=0.02, rtol=0.02)
    linear = nn.Linear(12, 36)
    linear.weight.data, linear.bias.data = model.c_attn.weight.t().clone(), model.c_attn.bias.clone()
    [expected] = pc.pack(nn.Sequential(linear), X, format, force=True)
    packed.c_attn.activation = None
    assert torch.equal(packed.c_attn(X), expected(X))
    assert [(d.name, d.kind) for d in pc.explain(packed)] == [("c_attn", "Conv1D+GELU"), ("c_proj", "Conv1D")]


def test_explain_and_quantize_dynamic():
    model = block()
    assert [d.reason for d in pc.explain(model)] == ["not packed yet"] * 2
    assert pc.explain(pc.pack(model, X))[0].reason == "neither quantized to Int8 nor pruned"
    for spec in (None, {nn.Linear}, {Conv1D}, {"c_attn", "c_proj"}, {""}):
        packed = pc.quantize_dynamic(model, spec)
        assert type(packed.c_attn) is type(packed.c_proj) is PackedLinear
        assert torch.equal(packed(X), pc.quantize_dynamic(model)(X))
    only = pc.quantize_dynamic(model, {nn.Linear: 1, Conv1D: None, "c_proj": 1})
    assert type(only.c_attn) is Conv1D and type(only.c_proj) is PackedLinear
    with pytest.raises(ValueError, match="inplace must be False"):
        pc.quantize_dynamic(Conv1D(2, 2), inplace=True)


def test_pruned_by_hand_is_packed_sparse():
    model = block()
    for layer in (model.c_attn, model.c_proj):
        layer.weight.data *= torch.rand_like(layer.weight) > 0.9
    seen = []
    packed = pc.pack(model, X, force=False)
    seen += [d.reason for d in pc.explain(packed)]
    assert all("Sparse not faster" in reason or "faster" in reason for reason in seen)


@pytest.mark.parametrize("into", [Block, lambda: pc.quantize_dynamic(Block())])
@torch.no_grad()
def test_files_load_into_a_factorys_model(tmp_path, into):
    for model in (pc.quantize_dynamic(block()), pc.pack(block(), X, pc.Int8(), force=True)):
        pc.save(model, tmp_path / "model")
        loaded = pc.load(tmp_path / "model", into)
        assert torch.equal(loaded(X), model(X)) and type(loaded.c_proj) is PackedLinear
        assert list(pc.explain(loaded)) == list(pc.explain(model))


def test_files_that_do_not_fit(tmp_path):
    pc.save(pc.quantize_dynamic(nn.Sequential(Conv1D(36, 12))), tmp_path / "model")
    for layer in (Conv1D(12, 36), Conv1D(36, 11), nn.Conv1d(12, 36, 1), look_alike("Other")(36, 12)):
        with pytest.raises(pc.artifact.ArtifactError, match="in the file and"):
            pc.load(tmp_path / "model", nn.Sequential(layer))
    pc.load(tmp_path / "model", nn.Sequential(nn.Linear(12, 36)))


@torch.no_grad()
def test_a_shared_weight_is_packed_once():
    model = nn.Sequential(Conv1D(12, 12), Conv1D(12, 12)).eval()
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    packed = pc.pack(model, X, pc.Int8(), force=True)
    assert packed[0].packed is packed[1].packed
    crossed = nn.ModuleDict({"a": Conv1D(12, 12), "b": nn.Linear(12, 12)}).eval()
    crossed["b"].weight, crossed["b"].bias = crossed["a"].weight, crossed["a"].bias
    packed = pc.quantize_dynamic(crossed)
    assert packed["a"].packed is not packed["b"].packed


def test_what_only_looks_like_one_stays():
    def twice(self, x):
        return 2 * Conv1D.forward(self, x)

    def fails(self, x):
        raise RuntimeError

    def halves(self, x):
        return Conv1D.forward(self, x).half()

    hooked = Conv1D(2, 3)
    hooked.register_forward_hook(lambda *_: None)
    own = Conv1D(2, 3)
    own.forward = lambda x: x
    for layer, reason in (
        (Conv1D(2, 3), ""),
        (Conv1D(2, 3).half(), ""),
        (Conv1D(2, 3).bfloat16(), ""),
        (Conv1D(2, 3).double(), "its weight is float64"),
        (look_alike(forward=twice)(2, 3), "Conv1D does not compute x @ weight + bias"),
        (look_alike(forward=fails)(2, 3), "Conv1D does not compute x @ weight + bias"),
        (look_alike(forward=halves)(2, 3), "Conv1D does not compute x @ weight + bias"),
        (hooked, "it has forward hooks, which must be removed first"),
        (own, "Conv1D has a forward of its own"),
    ):
        nn.init.normal_(layer.bias.data)
        assert is_conv1d(layer) and obstacle(layer) == reason, reason
    assert not is_conv1d(look_alike("Other")(2, 3)) and not is_conv1d(nn.Linear(2, 3))
    other = Conv1D(2, 3)
    other.nf = 3
    assert not is_conv1d(other)
    with pytest.raises(ValueError, match="'0': Conv1D does not compute"):
        pc.quantize_dynamic(nn.Sequential(look_alike(forward=twice)(2, 3)), {"0"})
    with pytest.raises(ValueError, match="weight with 6 NaN"):
        broken = Conv1D(2, 3)
        broken.weight.data.fill_(torch.nan)
        pc.quantize_dynamic(nn.Sequential(broken))
