"""Recurrent layers, attention and transposed convolutions: less of them computes what the model does with zeros."""

import copy
import time

import pytest
import torch
from architectures import settle_
from drawn_sequences import DrawnSequence
from sequences import SEQUENCES, lengths
from test_structure_graph import flat
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import artifact, scores
from pycompress.heads import fewer_heads_
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(name):
    make, inputs, sizes = SEQUENCES[name]
    model = settle_(make()).double()
    for parameter in model.parameters():  # layers that are copies of each other, and values of float32, occur twice
        parameter.data = parameter.data * 1.5 + 0.1 * torch.randn_like(parameter)
    return model, inputs(), sizes


def zeroed(model, small):
    """A copy of the model whose weights for what the small one has not taken are 0, found by the values of weights."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        other = small.get_submodule(name)
        for key, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                continue
            groups = getattr(module, "groups", 1)
            transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))
            found = torch.isin(weight, other.get_parameter(key))
            assert int(found.sum()) == other.get_parameter(key).numel()
            if groups == 1 or transposed:
                gone = ~found.transpose(0, 1).flatten(1).any(1) if not transposed else ~found.flatten(1).any(1)
                weight.data.transpose(0, 0 if transposed else 1)[gone] = 0
        if name in ROWS:
            for key, tensor in module.named_parameters(recurse=False):
                tensor.data[~torch.isin(tensor, other.get_parameter(key)).reshape(len(tensor), -1).any(1)] = 0
    return model


ROWS = ("q", "k", "qk", "encoder", "decoder")
"""Layers whose outputs meet each other, and no layer."""


@pytest.mark.parametrize("score", [scores.magnitude, scores.random(seed=3)], ids=["magnitude", "random"])
@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("name", SEQUENCES)
def test_the_result_equals_the_model_with_zeros_for_what_is_removed(name, fraction, score, tmp_path):
    model, inputs, sizes = made(name)
    before = copy.deepcopy(model.state_dict())
    small = simplify(model, inputs, fraction, score)
    outputs = flat(small(*inputs))
    for output, expected in zip(outputs, flat(zeroed(model, small)(*inputs)), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, flat(model(*inputs)), strict=True))
    for path, size in sizes.items():
        name_of, _, attribute = path.rpartition(".")
        now, full = (getattr(m.get_submodule(name_of), attribute) for m in (small, model))
        assert now == (full if size == 0 else size - min(round(fraction * size), size - 1)), path
    assert list(small.state_dict()) == list(model.state_dict()) and type(small) is type(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    artifact.save(small, tmp_path / "small")
    loaded = artifact.load(tmp_path / "small", SEQUENCES[name][0]().double()).eval()
    for output, expected in zip(flat(loaded(*inputs)), outputs, strict=True):
        assert torch.equal(output, expected)
    assert repr(loaded) == repr(small)


def test_networks_drawn_at_random(tmp_path):
    shrunk = 0
    for seed in range(24):
        model = settle_(DrawnSequence(seed).double())
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        inputs = torch.randint(0, 7, (3, 4)), torch.randn(3, 4, 3, dtype=torch.float64)
        small = simplify(model, inputs, 0.5, scores.random(seed=seed))
        expected = zeroed(model, small)(*inputs)
        torch.testing.assert_close(small(*inputs), expected, rtol=1e-8, atol=1e-8, msg=f"seed {seed}")
        shrunk += sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
        artifact.save(small, tmp_path / "small")
        loaded = artifact.load(tmp_path / "small", DrawnSequence(seed).double()).eval()
        assert torch.equal(loaded(*inputs), small(*inputs))
    assert shrunk > 16


@pytest.mark.parametrize("name", ["both ways", "translator", "attending", "torch encoder", "transposed u-net"])
def test_the_result_trains_and_can_be_simplified_again(name):
    model, inputs, _ = made(name)
    small = simplify(model, inputs, 0.25).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    sum(output.square().sum() for output in flat(small(*inputs))).backward()
    optimizer.step()
    again = simplify(small.eval(), inputs, 0.25)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in small.parameters())
    assert repr(copy.deepcopy(again)) == repr(again)


def test_heads_that_are_left_compute_as_torch_does_with_every_argument():
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(8, 4, batch_first=True).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    small = copy.deepcopy(layer)
    fewer_heads_(small, 4)
    causal, padding = torch.ones(5, 5).triu(1) == 1, torch.arange(5) >= torch.tensor([[5], [3], [1]])
    each = torch.randn(12, 5, 5, dtype=torch.float64)
    for options in (
        {}, {"need_weights": False}, {"average_attn_weights": False}, {"attn_mask": causal}, {"attn_mask": each},
        {"key_padding_mask": padding}, {"key_padding_mask": padding, "attn_mask": causal},
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
    ):  # fmt: skip
        for found, expected in zip(small(x, x, x, **options), layer(x, x, x, **options), strict=True):
            assert found is expected is None or torch.allclose(found, expected)
    for one, other in zip(small(x[0], x[1], x[1]), layer(x[0], x[1], x[1]), strict=True):
        torch.testing.assert_close(one, other)
    small.batch_first = layer.batch_first = False
    torch.testing.assert_close(small(x, x, x)[0], layer(x, x, x)[0])


@pytest.mark.parametrize("part", ["lstm", "table", "attend"])
def test_parts_are_chosen_by_name(part):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.attend = nn.Embedding(11, 8), nn.MultiheadAttention(6, 2, batch_first=True)
            self.lstm, self.fc = nn.LSTM(8, 12, 2, batch_first=True), nn.Linear(12, 6)

        def forward(self, x):
            x = self.fc(self.lstm(self.table(x))[0])
            return self.attend(x, x, x)[0]

    def sizes(model):
        return {"table": model.table.embedding_dim, "lstm": model.lstm.hidden_size, "attend": model.attend.num_heads}

    model, x = Parts(), torch.randint(0, 11, (2, 5))
    expected = {name: size // 2 if name == part else size for name, size in sizes(model).items()}
    assert sizes(simplify(model, x, {part: 0.5})) == sizes(simplify(model, x, 0.5, include=[part])) == expected
    with pytest.raises(ValueError, match=r"fc \(Linear\): attend \(MultiheadAttention\) keeps the size"):
        simplify(model, x, 0.5, include=["fc"])


class StartsAtZeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.GRU(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.rnn(x, torch.zeros(1, x.shape[1], 8))[0])


class Zeros(nn.Module):
    """First states of zeros, of a size that the model holds."""

    def __init__(self, kind):
        super().__init__()
        self.hidden, self.depth, self.kind = 8, 2, kind
        self.rnn = nn.GRUCell(5, 8) if kind == "cell" else nn.LSTM(5, 8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def start(self, x):
        return torch.zeros(self.depth, x.size(0), self.hidden, dtype=x.dtype).to(x.device)

    def forward(self, x):
        if self.kind == "cell":
            h = x.new_zeros(x.size(0), self.hidden)
            for t in range(x.size(1)):
                h = self.rnn(x[:, t], h)
            return self.fc(h)
        out, (h, _) = self.rnn(x, (self.start(x), self.start(x)))
        y = self.fc(h[-1] if self.kind == "state" else out[:, -1, :].view(-1, self.hidden))
        return y / self.hidden if self.kind == "divides" else y


@pytest.mark.parametrize("kind", ["cell", "state", "view"])
def test_first_states_of_zeros_follow(kind, tmp_path):
    model, x = Zeros(kind).double().eval(), torch.randn(3, 4, 5, dtype=torch.float64)
    small = simplify(model, x, 0.5)
    assert small.hidden == small.rnn.hidden_size == 4 and model.hidden == 8
    torch.testing.assert_close(small(x), zeroed(model, small)(x))
    artifact.save(small, tmp_path / "small")
    assert torch.equal(artifact.load(tmp_path / "small", Zeros(kind).double())(x), small(x))


class Gathered(nn.Module):
    """Takes the last step of each sequence by gather, and starts a cell with zeros as wide as a layer's outputs."""

    def __init__(self):
        super().__init__()
        self.lstm, self.first = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 6)
        self.cell, self.fc = nn.LSTMCell(8, 6), nn.Linear(6, 3)

    def forward(self, x, n):
        out, _ = self.lstm(x)
        index = (n - 1).view(-1, 1).expand(len(n), out.size(2)).unsqueeze(1)
        last = out.gather(1, index).squeeze(1)
        h = torch.tanh(self.first(last))
        c = torch.zeros(x.size(0), h.size(1)).to(h.dtype) + h.new_zeros(h.shape) + torch.zeros_like(h)
        return self.fc(self.cell(last, (h, c))[0])


def test_sizes_that_count_channels_make_tensors_that_follow():
    model, inputs = Gathered().double().eval(), lengths()
    small = simplify(model, inputs, 0.5)
    assert (small.lstm.hidden_size, small.cell.hidden_size) == (4, 3)
    torch.testing.assert_close(small(*inputs), zeroed(model, small)(*inputs))


class OwnForward(nn.LSTM):
    def forward(self, x):
        return super().forward(x * self.hidden_size)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.one(x)
        return self.two(y if y.size(-1) > 4 else y * 2)


REFUSED = {
    "zeros": (StartsAtZeros, ["rnn (GRU)", "joins its channels with some that stay"]),
    "own forward": (
        lambda: nn.Sequential(nn.Linear(5, 6), OwnForward(6, 8)), ["0 (Linear)", "1 (OwnForward) has a forward of its"]
    ),
    "divides": (lambda: Zeros("divides"), ["rnn (LSTM)", "truediv works with hidden too"]),
    "decides": (Decides, ["one (Linear)", "decides by their number"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_changes_nothing(case):
    make, parts = REFUSED[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"^model must ") as error:
        simplify(model, torch.randn(3, 2, 5), 0.5)
    assert time.perf_counter() - start < 10  # ten times the promise: guards against an accident
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("score", [scores.l2, scores.taylor, scores.fisher, scores.wanda])
def test_scores_see_the_weights_of_recurrent_layers_and_attention(score):
    model, inputs, _ = made("attending")
    data = (inputs[0], torch.zeros(2, 4, 3, dtype=torch.float64))
    chosen = score if score is scores.l2 else score(data) if score is scores.wanda else score(data, F.mse_loss)
    small = simplify(model, inputs, 0.5, chosen)
    assert small.attend.num_heads == 2
    pc.prune_(small, sparsity=0.5, score=chosen)  # attention with fewer heads is scored and pruned, too
    assert bool((small.attend.out_proj.weight == 0).any()) and small(*inputs).isfinite().all()
    with pytest.raises(ValueError, match=r"data must reach every layer .*attend.in_proj_weight"):
        simplify(model, inputs, 0.5, scores.ablation(data, F.mse_loss, progress=False))
