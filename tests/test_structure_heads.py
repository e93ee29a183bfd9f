"""Attention that people write themselves: heads go where the sizes of the forward can follow, by changed attributes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycompress import artifact
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_view(self, x):
    return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def with_two_sizes(self, x):
    batch, length, _ = x.size()
    return x.view(batch, length, self.heads, self.size).transpose(1, 2)


def as_bert(self, x):
    return x.view(x.size()[:-1] + (self.heads, self.size)).permute(0, 2, 1, 3)  # noqa: RUF005


def with_unflatten(self, x):
    return x.unflatten(-1, (self.heads, self.size)).transpose(1, 2)


def fixed(self, x):
    return x.view(*x.shape[:2], 4, 3).transpose(1, 2)


def flat(self, x):
    return x.transpose(1, 2).flatten(2)


def with_width(self, x):
    x = x.transpose(1, 2)
    return x.reshape(*x.shape[:2], self.width)


def with_product(self, x):
    x = x.transpose(1, 2)
    return x.reshape(*x.shape[:2], self.heads * self.size)


def joined_as_bert(self, x):
    x = x.permute(0, 2, 1, 3).contiguous()
    return x.view(x.size()[:-2] + (self.width,))  # noqa: RUF005


def by_hand(self, q, k, v):
    return ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v


def by_einsum(self, q, k, v):
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(self.scale).softmax(-1)
    return torch.einsum("bhqk, bkhd -> bqhd", weights, v)


def in_place(self, x):
    return x.unflatten(-1, (self.heads, self.size))


def by_torch(self, q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    def __init__(self, split, join, attend=by_torch, fused=False, outer=5, width=12, heads=4):
        super().__init__()
        self.split, self.join, self.attend, self.fused = split, join, attend, fused
        self.heads, self.size, self.width, self.scale = heads, width // heads, width, (width // heads) ** -0.5
        if fused:
            self.qkv = nn.Linear(outer, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(outer, width) for _ in range(3))
        self.o = nn.Linear(width, outer)

    def forward(self, x):
        if self.fused == "reshape":
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.fused:
            q, k, v = (self.split(self, part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            q, k, v = (self.split(self, layer(x)) for layer in (self.q, self.k, self.v))
        return x + self.o(self.join(self, self.attend(self, q, k, v)))


class Two(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.blocks, self.fc = nn.ModuleList(Block(**options) for _ in range(2)), nn.Linear(5, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(x)


WRITTEN = {
    "view": {"split": with_view, "join": flat},
    "two sizes": {"split": with_two_sizes, "join": flat, "attend": by_hand},
    "bert": {"split": as_bert, "join": joined_as_bert, "attend": by_hand},
    "unflatten": {"split": with_unflatten, "join": with_width},
    "product": {"split": with_two_sizes, "join": with_product},
    "fused": {"split": with_two_sizes, "join": flat, "fused": True},
    "einsum": {"split": in_place, "join": lambda self, x: x.flatten(2), "attend": by_einsum},
    "fused reshape": {"split": None, "join": flat, "fused": "reshape", "attend": by_hand},
}


@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("name", WRITTEN)
def test_heads_go_and_files_restore_them(name, fraction, tmp_path):
    model, x = Two(**WRITTEN[name]).double().eval(), torch.randn(2, 3, 5, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data += 1e-6 * torch.randn_like(parameter)
    small, zeroed = simplify(model, x, fraction), copy.deepcopy(model)
    for before, after in zip(zeroed.blocks, small.blocks, strict=True):
        before.o.weight.data[:, ~torch.isin(before.o.weight, after.o.weight).any(0)] = 0
        left = 4 - round(4 * fraction)
        assert (after.heads, after.o.in_features) == (left, 3 * left) and before.heads == 4
        assert after.width == (3 * left if name in ("bert", "unflatten") else 12)
    torch.testing.assert_close(small(x), zeroed(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(small(x), model(x), atol=1e-3)

    artifact.save(small, tmp_path / "small")
    loaded = artifact.load(tmp_path / "small", lambda: Two(**WRITTEN[name]).double()).eval()
    assert torch.equal(loaded(x), small(x)) and loaded.blocks[0].heads == small.blocks[0].heads
    again = simplify(loaded, x, 0.5)
    artifact.save(again, tmp_path / "again")
    loaded = artifact.load(tmp_path / "again", Two(**WRITTEN[name]).double()).eval()
    assert torch.equal(loaded(x), again(x)) and sum(p.numel() for p in again.parameters()) < sum(
        p.numel() for p in small.parameters()
    )


def test_sizes_that_no_attribute_holds_are_refused_by_name():
    model = Two(split=fixed, join=flat, attend=by_hand).eval()
    with pytest.raises(ValueError, match=r"blocks.0.q \(Linear\): view in blocks.0 \(Block\) has fixed sizes"):
        simplify(model, torch.randn(2, 3, 5), 0.5)


class MiniLM(nn.Module):
    """Heads and the residual stream meet in a size, and the stream is normalized: the feed-forward part alone goes."""

    def __init__(self, d=12, h=4, f=16):
        super().__init__()
        self.word, self.q, self.k, self.v, self.o = nn.Embedding(11, d), *(nn.Linear(d, d) for _ in range(4))
        self.up, self.down, self.norms, self.h = (
            nn.Linear(d, f), nn.Linear(f, d), nn.ModuleList(nn.LayerNorm(d) for _ in range(3)), h
        )  # fmt: skip

    def forward(self, ids, mask):
        x = self.norms[2](self.word(ids))
        b, t, d = x.shape

        def heads(x):
            return x.view(b, t, self.h, -1).transpose(1, 2)

        a = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)), mask[:, None, None])
        x = self.norms[0](x + self.o(a.transpose(1, 2).reshape(b, t, d)))
        x = self.norms[1](x + self.down(F.gelu(self.up(x))))
        return F.normalize(x.mean(1), dim=1)


def test_heads_that_fill_the_residual_stream_stay():
    model, inputs = MiniLM().eval(), (torch.randint(0, 11, (2, 5)), torch.ones(2, 5) > 0)
    small = simplify(model, inputs, 0.5)
    assert (small.up.out_features, small.q.out_features, small.h) == (8, 12, 4)
    zeroed = copy.deepcopy(model)
    zeroed.down.weight.data[:, ~torch.isin(model.down.weight, small.down.weight).any(0)] = 0
    torch.testing.assert_close(small(*inputs), zeroed(*inputs))
    with pytest.raises(ValueError, match=r"q \(Linear\) and k \(Linear\) and v \(Linear\).* normalizes over"):
        simplify(model, inputs, 0.5, include=["[qkv]"])


class UsesHeadsTwice(Block):
    def forward(self, x):
        return super().forward(x) / self.heads


def with_quotient(self, x):
    return x.view(*x.shape[:2], self.heads, self.width // self.heads).transpose(1, 2)


def test_a_size_that_would_be_another_one_keeps_the_heads():
    model = Two(split=with_quotient, join=flat).eval()
    model.fc = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    small = simplify(model, torch.randn(2, 3, 5), 0.5)
    assert small.blocks[0].heads == 4 and small.fc[0].out_features == 4
    with pytest.raises(ValueError, match=r"view works with blocks.0.heads too"):
        simplify(model, torch.randn(2, 3, 5), 0.5, include=["blocks.0.[qkv]"])


class CountsHeads(Block):
    def forward(self, x):
        y = super().forward(x)
        for _ in range(self.heads):
            y = y * 0.5
        return y


def test_an_attribute_with_another_use_stays():
    for kind, message in (
        (UsesHeadsTwice, "truediv works with 0.heads too"),
        (CountsHeads, "the forward does not work with another 0.heads"),
    ):  # fmt: skip
        model = nn.Sequential(kind(with_view, flat), nn.Linear(5, 2)).eval()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            simplify(model, torch.randn(2, 3, 5), 0.5, include=["0.[qkv]"])
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model[0].heads == 4
        whole = nn.Sequential(model, nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        small = simplify(whole, torch.randn(2, 3, 5), 0.5)
        assert small[0][0].heads == 4 and small[1].out_features == 4


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"heads": 5}, "5 in the file and 4"),
        ({"no": 1}, "no number"),
        ({"training": 1}, "no number"),
        (None, "changed"),
    ],
)
def test_files_with_other_numbers_do_not_fit(numbers, message, tmp_path):
    from pycompress.changes import change_numbers_

    model = Two(**WRITTEN["view"])
    if numbers is None:
        artifact.save(model, tmp_path / "file")
        change_numbers_(model.blocks[1], {"heads": 3})
    else:
        other = copy.deepcopy(model)
        change_numbers_(other.blocks[1], numbers)
        artifact.save(other, tmp_path / "file")
    with pytest.raises(artifact.ArtifactError, match=message):
        artifact.load(tmp_path / "file", model)
