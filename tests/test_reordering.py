"""Channel permutation: the function stays, and blocks keep more."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import masks
from pycompress.structure import permute_channels


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.Conv2d(16, 24, 1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.down = nn.Conv2d(24, 16, 1)
        self.fc = nn.Linear(16 * 4, 20)
        self.out = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.down(F.silu(self.depth(F.relu6(self.up(x)))))
        return self.out(F.gelu(self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 24, 2, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0].mean(1))


MODELS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 33), nn.Tanh(), nn.Linear(33, 4)),
        (7, 20),
        ["0", "2"],
    ),
    "residual": (Residual, (2, 3, 8, 8), ["stem", "up", "down", "fc"]),
    "lstm": (Recurrent, (2, 5, 6), ["rnn"]),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (2, 5, 32), ["linear1"]),
}


def clustered_(model):
    """Give each weight rows of four kinds that keep different inputs, in random order."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            with torch.no_grad():
                kinds = torch.rand(4, *parameter.shape[1:]) < 0.3
                kinds[:, ..., -1] |= torch.rand(kinds[:, ..., -1].shape) < 0.1
                chosen = kinds[torch.randint(4, parameter.shape[:1])]
                parameter.mul_(torch.where(chosen, 1.0, 0.05))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.weight.data.uniform_(0.5, 2)


def kept(model, block, sparsity, names):
    """The score that is left of some layers after pruning by blocks."""
    pruned = copy.deepcopy(model)
    pc.prune_(
        pruned, sparsity=sparsity, pattern=pc.Blocks(*block), include=[f"{n}*" for n in names], across_layers=False
    )
    whole = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    left = {name: parameter for name, parameter in pruned.named_parameters() if parameter.ndim > 1}
    chosen = [name for name in whole if name.split(".")[0] in names]
    return sum(float(left[name].detach().abs().sum() / whole[name].detach().abs().sum()) for name in chosen) / len(
        chosen
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block", [(4, 1), (8, 2)])
def test_the_function_stays_and_blocks_keep_more(name, block):
    make, shape, names = MODELS[name]
    model = make().eval()
    clustered_(model)
    x = torch.randn(shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = permute_channels(model, x, block, 0.7)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)
    y = torch.randn(shape)
    torch.testing.assert_close(found(y), model(y), rtol=1e-4, atol=1e-5)
    # The gates and both weights of an LSTM want orders of their own, and its inputs move with its outputs.
    assert kept(found, block, 0.7, names) > kept(model, block, 0.7, names) * (0.9 if name == "lstm" else 1.02)


def test_rows_of_one_kind_come_together():
    kinds = torch.eye(4).repeat(4, 1)[torch.randperm(16)]
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    model[0].weight.data = kinds.clone()
    found = permute_channels(model, torch.randn(3, 4), (4, 1), 0.75)
    assert kept(found, (4, 1), 0.75, ["0"]) == 1


def test_what_must_stay_stays():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    clustered_(model)
    found = permute_channels(model, torch.randn(2, 8), (4, 1), 0.5)
    assert torch.equal(found[2].bias, model[2].bias)
    assert sorted(found[0].bias.tolist()) == sorted(model[0].bias.tolist())
    excluded = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    clustered_(excluded)
    found = permute_channels(excluded, torch.randn(2, 8), (4, 1), 0.5, exclude=["0"])
    assert torch.equal(found[0].weight, excluded[0].weight) and not torch.equal(found[2].weight, excluded[2].weight)


def test_masks_and_grids_move_with_their_weights():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    clustered_(model)
    pc.prune_(model, sparsity=0.5)
    pc.quantize_(model, pc.Int8())
    x = torch.randn(5, 8)
    found = permute_channels(model, x, (4, 1), 0.5)
    assert not torch.equal(found[0].weight, model[0].weight)
    for layer in (found[0], found[2], found[4]):
        assert torch.equal(masks.mask_of(layer), layer.weight != 0) or layer.weight.count_nonzero() > 0
    packed = [pc.explain(pc.pack(each, x, pc.Int8(), force=True)) for each in (found, model)]
    assert [d.format for d in packed[0]] == [d.format for d in packed[1]] == [pc.Int8()] * 3
    assert "changed" not in "".join(d.reason for d in packed[0])
    torch.testing.assert_close(found(x), model(x))


class Slices(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 16), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.second(x[:, :8]) + self.third(x[:, 8:])


def test_a_model_that_would_compute_something_else_is_refused():
    model = Slices()
    clustered_(model)
    with pytest.raises(ValueError, match=r"^model must be one in which .* first"):
        permute_channels(model, torch.randn(3, 4), (4, 1), 0.5)
    with pytest.raises(ValueError, match="score must return"):
        permute_channels(MODELS["mlp"][0](), torch.randn(2, 20), (4, 1), 0.5, score=lambda model, layers: {})
