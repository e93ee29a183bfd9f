"""Whole blocks are taken out, the least important ones first; files restore the model."""

import copy

import pytest
import torch
from architectures import ResNet, conv_bn, settle_
from sequences import TorchEncoder
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import artifact
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.inner[2].weight.data *= scale
        self.inner[2].bias.data *= scale

    def forward(self, x, scale=1.0):
        return x + scale * self.inner(x)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Residual(scale) for scale in (2.0, 0.01, 1.0, 0.001, 3.0))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.fc(x)


class Numbered(Listed):
    def forward(self, x):
        x = self.stem(x)
        for i in range(5):
            x = self.blocks[i](x)
        return self.fc(x)


def data_for(model, *shape):
    x = torch.randn(shape)
    with torch.no_grad():
        return x, model.eval()(x)


def saved_and_loaded(model, build, tmp_path):
    artifact.save(model, tmp_path / "file")
    return artifact.load(tmp_path / "file", build).eval()


def test_the_least_important_entries_of_a_list_go(tmp_path):
    model = Listed()
    data = data_for(model, 32, 4)
    before = copy.deepcopy(model.state_dict())
    small = simplify(model, data[0], 0, blocks=2, data=data, loss=F.mse_loss, progress=False)
    assert len(small.blocks) == 3 and len(model.blocks) == 5
    for i, j in enumerate((0, 2, 4)):
        assert torch.equal(small.blocks[i].inner[0].weight, model.blocks[j].inner[0].weight)
    expected = copy.deepcopy(model)
    for j in (1, 3):
        expected.blocks[j].inner[2].weight.data.zero_()
        expected.blocks[j].inner[2].bias.data.zero_()
    assert torch.equal(small(data[0]), expected(data[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    loaded = saved_and_loaded(small, Listed, tmp_path)
    assert torch.equal(loaded(data[0]), small(data[0])) and repr(loaded) == repr(small)
    again = simplify(loaded, data[0], 0.5, blocks=1, data=data, loss=F.mse_loss, progress=False)
    assert len(again.blocks) == 2 and again.blocks[0].inner[0].out_features == 4
    loaded = saved_and_loaded(again, Listed(), tmp_path)
    assert torch.equal(loaded(data[0]), again(data[0]))
    assert torch.equal(saved_and_loaded(again, copy.deepcopy(again), tmp_path)(data[0]), again(data[0]))


def test_importance_is_measured_again_after_each_block():
    class Doubles(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(1, 1, bias=False))
            self.inner[0].weight.data.fill_(factor)

        def forward(self, x):
            return self.inner(x)

    # Alone, the third one matters least and then the first; without the third one, it is the second.
    model = nn.Sequential(nn.Sequential(Doubles(2.0), Doubles(0.55), Doubles(1.9)), nn.Linear(1, 1, bias=False))
    model[1].weight.data.fill_(1.0)
    data = torch.ones(4, 1), torch.full((4, 1), 2.09)
    small = simplify(model, data[0], 0, blocks={"0.*": 2}, data=data, loss=F.l1_loss, progress=False)
    kinds = [type(block).__name__ for block in small[0]]
    assert kinds == ["Doubles", "Identity", "Identity"]


def test_residual_blocks_of_a_sequential_become_identities(tmp_path):
    model = settle_(ResNet())
    data = data_for(model, 3, 2, 8, 8)
    small = simplify(model, data[0], 0.25, blocks=2, data=data, loss=F.mse_loss, progress=False)
    assert [type(small[i]).__name__ for i in range(6)] == [
        "Sequential",
        "ReLU",
        "Identity",
        "Basic",
        "Identity",
        "Head",
    ]
    assert small[3].one[0].out_channels == 9
    loaded = saved_and_loaded(small, ResNet, tmp_path)
    assert torch.equal(loaded(data[0]), small(data[0])) and repr(loaded) == repr(small)
    with pytest.raises(ValueError, match=r"blocks must be at most as many .* got 3 for 2, 4"):
        simplify(model, data[0], 0.25, blocks=3, data=data, loss=F.mse_loss, progress=False)
    with pytest.raises(ValueError, match=r"got 2 for 2$"):
        simplify(model, data[0], 0, exclude=["4.*"], blocks=2, data=data, loss=F.mse_loss, progress=False)


def test_layers_of_an_encoder_of_torch_go(tmp_path):
    model = TorchEncoder().eval()
    x = torch.randint(0, 11, (4, 6))
    with torch.no_grad():
        data = x, model(x)
    small = simplify(model, x, 0.5, blocks={"encoder.layers.*": 1}, data=data, loss=F.mse_loss, progress=False)
    assert len(small.encoder.layers) == 1 and small.encoder.layers[0].self_attn.num_heads == 2
    with torch.no_grad():
        assert torch.equal(saved_and_loaded(small, TorchEncoder, tmp_path)(x), small(x))
    packed = pc.pack(small, x, pc.Int8(), force=True)
    assert torch.equal(saved_and_loaded(packed, TorchEncoder, tmp_path)(x), packed(x))


def test_what_cannot_go_is_refused_by_name():
    model = Numbered()
    data = data_for(model, 8, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"blocks must leave a model that runs without them, .* without blocks.3"):
        simplify(model, data[0], 0, blocks=1, data=data, loss=F.mse_loss, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"blocks must be at most as many .* got {'stem': 1} for none"):
        simplify(model, data[0], 0, blocks={"stem": 1}, data=data, loss=F.mse_loss, progress=False)
    with pytest.raises(TypeError, match="data must be given with blocks"):
        simplify(model, data[0], 0, blocks=1)
    with pytest.raises(ValueError, match="loss must come with blocks"):
        simplify(model, data[0], 0.5, loss=F.mse_loss)
    plain = nn.Sequential(conv_bn(2, 4), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="got 1 for none"):
        simplify(plain, torch.zeros(1, 2, 4, 4), 0, blocks=1, data=(torch.zeros(1, 2, 4, 4),) * 2, loss=F.mse_loss)


def test_files_with_other_blocks_do_not_fit_and_change_nothing(tmp_path):
    model = Listed()
    data = data_for(model, 8, 4)
    small = simplify(model, data[0], 0, blocks=2, data=data, loss=F.mse_loss, progress=False)
    artifact.save(small, tmp_path / "file")
    for other, message in (
        (nn.Sequential(nn.Linear(4, 6)), "no module 'blocks'"),
        (Numbered().blocks, "no module 'blocks'"),
        (nn.ModuleDict({"blocks": nn.ModuleList([Residual()])}), "'blocks' has other modules"),
        (nn.ModuleDict({"blocks": Listed().blocks, "more": nn.Linear(2, 2)}), "missing in the file: more"),
    ):
        before = repr(other)
        with pytest.raises(artifact.ArtifactError, match=message):
            artifact.load(tmp_path / "file", other)
        assert repr(other) == before and "_pycompress_removed" not in other.__dict__


def test_without_a_score_all_that_goes_together_is_measured():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm = nn.Embedding(7, 4), nn.LSTM(4, 6, batch_first=True)
            self.up, self.attend = nn.Linear(6, 8), nn.MultiheadAttention(8, 4, batch_first=True)
            self.hidden, self.fc = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.up(self.lstm(self.table(x))[0])
            return self.fc(self.hidden(self.attend(x, x, x)[0]).relu())

    model, x = Parts().double().eval(), torch.randint(0, 7, (16, 5))
    columns = torch.tensor([0, 3])  # what nothing depends on, though its weights are large
    for weight, size in (
        (model.lstm.weight_ih_l0, 1), (model.lstm.weight_hh_l0, 1), (model.up.weight, 1),
        (model.attend.out_proj.weight, 2), (model.fc.weight, 1),
    ):  # fmt: skip
        gone = (columns[:, None] * size + torch.arange(size)).reshape(-1)
        weight.data[:, gone] = 0
    for weight in (model.table.weight.data.T, model.lstm.weight_ih_l0.data.view(4, 6, 4).transpose(0, 1),
                   model.hidden.weight.data):  # fmt: skip
        weight[columns] *= 20
    data = x, model(x).detach()
    before = copy.deepcopy(model.state_dict())
    small = simplify(
        model, x, {"table": 0.5, "lstm": 1 / 3, "attend": 0.5, "hidden": 1 / 3}, None, data=data, loss=F.mse_loss,
        progress=False,
    )  # fmt: skip
    assert (small.table.embedding_dim, small.lstm.hidden_size, small.attend.num_heads, small.hidden.out_features) == (
        2, 4, 2, 4,
    )  # fmt: skip
    torch.testing.assert_close(small(x), model(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(TypeError, match="data must be given with blocks or with score=None"):
        simplify(model, x, 0.5, None)


def test_measuring_ranks_as_the_score_of_single_outputs_does():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    data = data_for(model, 64, 4)
    by_set = simplify(model, data[0], 0.5, None, data=data, loss=F.mse_loss, progress=False)
    by_output = simplify(model, data[0], 0.5, pc.scores.ablation(data, F.mse_loss, progress=False))
    for one, other in zip(by_set.parameters(), by_output.parameters(), strict=True):
        assert torch.equal(one, other)
