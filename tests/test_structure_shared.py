"""Weights that modules share lose the same entries everywhere, and stay shared; masks and grids stay, too."""

import copy

import pytest
import torch
from sequences import SEQUENCES
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import artifact, grids, masks
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rnn, self.back = nn.Embedding(11, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.back(self.rnn(self.table(x))[0]))


class TwoBiases(nn.Module):
    """Layers with one weight and a bias each, one behind the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.last = (
            nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        )  # fmt: skip
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.last(self.two(self.one(self.stem(x)).relu()).tanh())


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(2, 8, 3, padding=2, dilation=2),
            nn.Linear(16, 3),
        )
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(torch.cat([self.a(x), self.b(x)], 1).relu().mean((2, 3)))


SHARED = {
    "language model": (TiedLanguageModel, lambda: torch.randint(0, 11, (2, 5)), ("table.weight", "head.weight"), 4),
    "two biases": (TwoBiases, lambda: torch.randn(3, 5), ("one.weight", "two.weight"), 4),
    "branches": (Branches, lambda: torch.randn(2, 2, 6, 6), ("a.weight", "b.weight"), 4),
}


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_shared_weights_stay_shared(name, measured, tmp_path):
    build, inputs, (first, second), size = SHARED[name]
    model, x = build().eval(), inputs()
    options = {"score": None, "data": (x, model(x).detach()), "loss": F.mse_loss} if measured else {}
    small = simplify(model, x, 0.5, **options, progress=False)
    assert small.get_parameter(first) is small.get_parameter(second)
    assert size in small.get_parameter(first).shape
    zeroed = copy.deepcopy(model)
    for layer in ("head", "back", "two", "one", "last", "fc", "rnn"):
        module = getattr(zeroed, layer, nn.Identity())
        for key, weight in module.named_parameters():
            if weight.ndim > 1 and key != "weight_ih_l0" and layer != "head":
                other = small.get_submodule(layer).get_parameter(key)
                weight.data[:, ~torch.isin(weight, other).any(0)] = 0
    if name == "language model":  # columns of the table are what the GRU takes and the head is given
        gone = ~torch.isin(model.table.weight, small.table.weight).any(0)
        zeroed.table.weight.data[:, gone] = 0
    torch.testing.assert_close(small(x), zeroed(x))
    artifact.save(small, tmp_path / "small")
    loaded = artifact.load(tmp_path / "small", build).eval()
    assert torch.equal(loaded(x), small(x)) and loaded.get_parameter(first) is loaded.get_parameter(second)


class Foreign(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.other = weight

    def forward(self, x):
        return x @ self.other


def test_a_weight_that_something_unknown_shares_keeps_its_size():
    one = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), one, Foreign(one.weight), nn.Linear(8, 2))
    small = simplify(model, torch.randn(2, 4), 0.5)
    assert small[0].out_features == 3 and small[3].weight.shape == (8, 8) and small[4].other is small[3].weight
    with pytest.raises(ValueError, match=r"2 .Linear.: the weight that 3 and 4 share joins"):
        simplify(model, torch.randn(2, 4), 0.5, include=["2"])


def test_masks_and_grids_of_recurrent_layers_and_attention_stay_on_what_is_kept():
    model = nn.ModuleDict({name: SEQUENCES[name][0]() for name in ("vowels", "attending")})
    inputs = {name: SEQUENCES[name][1]() for name in model}
    for name, whole in model.items():
        x = tuple(t.float() if t.is_floating_point() else t for t in inputs[name])
        pc.prune_(whole, sparsity=0.5)
        pc.quantize_(whole, pc.Int8())
        small = simplify(whole.eval(), x, 0.5)
        found = masks.masked(small)
        assert found.keys() == masks.masked(whole).keys()
        for key, mask in found.items():
            assert mask.shape == small.get_parameter(key).shape and bool((small.get_parameter(key)[~mask] == 0).all())
        for path, module in small.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                record = grids.grid_of(module, key)
                assert (record is None) == (grids.grid_of(whole.get_submodule(path), key) is None)
                assert record is None or grids.integers(parameter, record) is not None
