"""Pruning of layers that hold several weights: LSTM, GRU, RNN and their cells, attention; and of embeddings."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import masks
from pycompress.selection import select_weights

pytestmark = pytest.mark.filterwarnings("ignore:these layers lost")


class Tagger(nn.Module):
    """Embedding, LSTM in two directions and layers, GRU, cells, attention, two heads of which one shares a weight."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 6, batch_first=True)
        self.cell, self.step = nn.LSTMCell(6, 6), nn.GRUCell(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mixed = nn.MultiheadAttention(6, 2, kdim=10, vdim=10, batch_first=True)
        self.head, self.tied = nn.Linear(6, 3), nn.Linear(6, 11, bias=False)
        self.tied.weight = self.table.weight

    def forward(self, ids):
        deep, _ = self.lstm(self.table(ids))
        x, _ = self.gru(deep)
        x = x + self.attention(x, x, x)[0] + self.mixed(x, deep, deep, need_weights=False)[0]
        h, c = self.cell(x[:, -1])
        h, _ = self.cell(x[:, 0], (h, c))
        return self.head(self.step(h, x[:, 1])) + self.tied(x).mean((1, 2))[:, None]


def make(seed=0):
    torch.manual_seed(seed)
    return Tagger()


IDS = torch.randint(0, 11, (9, 7), generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(9) % 3
NAMES = [
    *(f"lstm.weight_{kind}_l{i}{way}" for i in (0, 1) for way in ("", "_reverse") for kind in ("ih", "hh")),
    *("gru.weight_ih_l0", "gru.weight_hh_l0", "cell.weight_ih", "cell.weight_hh", "step.weight_ih", "step.weight_hh"),
    *("attention.in_proj_weight", "attention.out_proj"),
    *("mixed.q_proj_weight", "mixed.k_proj_weight", "mixed.v_proj_weight", "mixed.out_proj", "head", "tied"),
]


def parameter(model, name):
    """The weight of a selected layer, found by name alone."""
    owner, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(owner), last)
    return found.weight if isinstance(found, nn.Module) else found


def test_every_weight_is_found_by_the_name_of_its_parameter():
    summary = pc.prune_(make(), sparsity=0.5)
    assert [layer.name for layer in summary.layers] == NAMES
    assert summary.total == sum(parameter(make(), name).numel() for name in NAMES)
    assert summary.zeros == round(0.5 * summary.total)


@pytest.mark.parametrize("across_layers", [True, False])
def test_the_smallest_weights_go_and_nothing_else_changes(across_layers):
    model, before = make(), make()
    pc.prune_(model, sparsity=0.6, across_layers=across_layers)
    weights = {name: parameter(before, name).detach() for name in NAMES}
    whole = torch.cat([w.abs().flatten() for w in weights.values()])
    for name, weight in weights.items():
        pool = whole if across_layers else weight.abs().flatten()
        limit = pool.sort().values[round(0.6 * len(pool)) - 1]
        assert torch.equal(parameter(model, name), weight.masked_fill(weight.abs() <= limit, 0)), name
    pruned = {id(parameter(model, name)) for name in NAMES}
    for (name, after), original in zip(model.named_parameters(), before.parameters(), strict=True):
        assert id(after) in pruned or torch.equal(after, original), name


def test_layers_are_chosen_by_their_name_their_weight_s_name_and_their_type():
    def names(**options):
        return list(select_weights(make(), **options))

    assert names(include=["gru"]) == names(include=[nn.GRU]) == ["gru.weight_ih_l0", "gru.weight_hh_l0"]
    assert names(include=["lstm.weight_hh_*"], exclude=["*_reverse"]) == ["lstm.weight_hh_l0", "lstm.weight_hh_l1"]
    assert names(include=[nn.RNNBase], exclude=["lstm"]) == ["gru.weight_ih_l0", "gru.weight_hh_l0"]
    assert names(include=["attention*"]) == ["attention.in_proj_weight", "attention.out_proj"]
    assert names(include=[nn.MultiheadAttention]) == [n for n in NAMES if "_proj_weight" in n]
    assert list(select_weights(nn.LSTM(2, 3, proj_size=2))) == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]
    with pytest.raises(ValueError, match=r"include must match layers.*lstm.weight_ih_l0.*got 'lstm.bias\*'"):
        names(include=["lstm.bias*"])


def test_an_embedding_is_pruned_where_it_is_asked_for():
    free = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2))
    assert list(select_weights(free)) == list(select_weights(free, include=["*"])) == ["1"]
    for include in (["0"], [nn.Embedding]):
        model = copy.deepcopy(free)
        assert [layer.name for layer in pc.prune_(model, sparsity=0.5, include=include).layers] == ["0"]
        assert int((model[0].weight == 0).sum()) == 16 and bool((model[1].weight != 0).all())
        model(torch.arange(8)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        assert int((model[0].weight == 0).sum()) == 16
    bags = nn.Sequential(nn.EmbeddingBag(8, 4))
    assert pc.prune_(bags, sparsity=0.5, include=["0"]).zeros == 16
    with pytest.raises(ValueError, match="must have a Linear"):
        pc.prune_(nn.Embedding(8, 4), sparsity=0.5)
    # The weight that a head shares is pruned once, under the first name that is selected.
    assert [layer.name for layer in pc.prune_(make(), sparsity=0.5, include=["table"]).layers] == ["table"]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_survive_training_copies_and_loading(optimizer):
    model = make()
    steps = OPTIMIZERS[optimizer](model.parameters())

    def train(rounds):
        for _ in range(rounds):
            steps.zero_grad()
            loss = F.cross_entropy(model(IDS), CLASSES)
            loss.backward()
            steps.step()
        return loss.item()

    train(2)  # the optimizer has a history of what is pruned next
    pc.prune_(model, sparsity=0.7)
    zeros = {name: parameter(model, name) == 0 for name in NAMES}
    start = train(1)
    assert train(15) < start
    twin = copy.deepcopy(model)
    twin.load_state_dict(make(5).state_dict())
    for each in (model, twin):
        for name, where in zeros.items():
            weight = parameter(each, name)
            assert bool((weight[where] == 0).all()), name
            assert not bool(where.any()) or not bool(where.all()), name
            assert bool((weight[~where] != 0).float().mean() > 0.9), name
    again = pc.prune_(model, sparsity=0.8)
    assert again.zeros == round(0.8 * again.total)
    assert all(bool((parameter(model, name)[where] == 0).all()) for name, where in zeros.items())
    before = {name: parameter(model, name).detach().clone() for name in NAMES}
    pc.finalize_(model)
    assert not masks.masked(model) and all(torch.equal(parameter(model, n), w) for n, w in before.items())


def test_functional_call_is_masked_too():
    model = nn.LSTM(4, 3)
    pc.prune_(model, sparsity=0.5)
    values = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    x = torch.randn(5, 2, 4)
    found, _ = torch.func.functional_call(model, values, (x,))
    expected = pc.finalize_(copy.deepcopy(model))
    expected.load_state_dict({name: v * masks.masked(model).get(name, 1) for name, v in values.items()})
    torch.testing.assert_close(found, expected(x)[0])


@pytest.mark.parametrize("duplicate", [lambda m: m, copy.deepcopy])
def test_the_output_projection_of_attention_is_guarded_though_it_is_never_called(duplicate):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2)
    x, hooks = torch.randn(4, 3, 6), len(model._forward_pre_hooks)
    pc.prune_(model, sparsity=0.5)
    pc.prune_(model, sparsity=0.6)
    model = duplicate(model)
    where = model.out_proj.weight == 0
    with torch.no_grad():
        model.out_proj.weight += 1.0  # by hand: zeroed by the next forward
    values = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    lent, _ = torch.func.functional_call(model, values, (x, x, x))
    dense = pc.finalize_(copy.deepcopy(model))
    dense.load_state_dict({name: v * masks.masked(model).get(name, 1) for name, v in values.items()})
    torch.testing.assert_close(lent, dense(x, x, x)[0])
    model(x, x, x)
    assert bool((model.out_proj.weight[where] == 0).all()) and bool(where.any())
    pc.finalize_(model)
    assert len(model._forward_pre_hooks) == hooks and not model.out_proj._forward_pre_hooks


@pytest.mark.parametrize("make_layer", [lambda: nn.LSTM(32, 24, 2), lambda: nn.GRU(32, 24, bidirectional=True)])
def test_a_pruned_recurrent_layer_runs_on_int8_and_keeps_its_zeros(make_layer, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(make_layer())
    pc.prune_(model, sparsity=0.8)
    zeros = {name: p == 0 for name, p in model[0].named_parameters() if name.startswith("weight")}
    x = torch.randn(6, 2, 32)
    expected = model(x)[0]
    packed = pc.pack(model, x, pc.Int8(), force=True)
    for name, where in zeros.items():
        integers = packed[0].state_dict()[name]
        assert integers.dtype == torch.int8 and bool((integers[where] == 0).all())
        assert float((integers == 0).float().mean()) >= 0.5
    found = packed(x)[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05
    pc.save(packed, tmp_path / "packed")
    again = pc.load(tmp_path / "packed", into=nn.Sequential(make_layer()))
    assert torch.equal(again(x)[0], found)
    pc.save(model, tmp_path / "masked")
    loaded = pc.load(tmp_path / "masked", into=nn.Sequential(make_layer()))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    pc.save(make_dense := nn.Sequential(make_layer()), tmp_path / "dense")
    assert make_dense and (tmp_path / "masked").stat().st_size < 0.6 * (tmp_path / "dense").stat().st_size


def test_pruned_attention_runs_on_int8(tmp_path):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    summary = pc.prune_(model, sparsity=0.5)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
    assert [layer.name for layer in summary.layers] == names
    x = torch.randn(2, 5, 16)
    packed = pc.pack(model, x, pc.Int8(), force=True)
    where = model.self_attn.in_proj_weight == 0
    assert bool((packed.self_attn.state_dict()["in_proj_weight"][where] == 0).all()) and bool(where.any())
    expected = pc.finalize_(copy.deepcopy(model))(x)
    assert float((packed(x) - expected).norm() / expected.norm()) < 0.05


def test_a_score_that_a_user_wrote_sees_each_weight_as_that_of_a_layer():
    model, seen = make(), {}

    def smallest_last(model, layers):
        seen.update({name: tuple(layer.weight.shape) for name, layer in layers.items()})
        return {name: -layer.weight for name, layer in layers.items()}

    summary = pc.prune_(model, sparsity=0.25, score=smallest_last, across_layers=False)
    assert seen == {name: tuple(parameter(model, name).shape) for name in NAMES}
    for layer in summary.layers:
        before, after = parameter(make(), layer.name).flatten(), parameter(model, layer.name).flatten()
        gone = before.argsort(descending=True, stable=True)[: layer.zeros]
        assert bool((after[gone] == 0).all()) and layer.zeros == round(0.25 * layer.total)
    wrong = lambda _, layers: {name: torch.ones(2) for name in layers}  # noqa: E731
    with pytest.raises(ValueError, match=r"'lstm.weight_ih_l0': shape \(2,\) for a weight of shape \(20, 6\)"):
        pc.prune_(make(), sparsity=0.5, score=wrong)


def test_bad_weights_are_all_named_and_nothing_changes():
    model = make()
    model.lstm.weight_hh_l1.data[0, 0] = torch.nan
    model.attention.in_proj_weight.data[1, 1] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'lstm.weight_hh_l1': 1 NaN.*'attention.in_proj_weight': 1 NaN"):
        pc.prune_(model, sparsity=0.5)
    assert all(
        torch.equal(value.nan_to_num(7, 8), before[name].nan_to_num(7, 8)) for name, value in model.state_dict().items()
    )
    assert not masks.masked(model)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.LSTM(3, 2), "weight_hh_l0"))
    with pytest.raises(ValueError, match=r"'0.weight_hh_l0': not a parameter"):
        pc.prune_(normed, sparsity=0.5)
    with pytest.raises(ValueError, match=r"'lstm': several weights in one layer"):
        pc.scores.magnitude(model, {"lstm": model.lstm})


def test_lstm_in_compress():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    x = torch.randn(64, 5, 6)
    data = x, (x[:, -1, 0] > 0).long()
    result = pc.compress(Net(), data, None, sparsity=0.75, epochs=1, progress=False)
    assert [layer.name for layer in result.summary.pruning.layers] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head"]
    assert float((result.model.lstm.weight_hh_l0 == 0).float().mean()) > 0.5
