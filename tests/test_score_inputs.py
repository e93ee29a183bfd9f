"""Scores of recurrent layers, attention and embeddings, and of whole outputs, against plain references."""

import copy

import pytest
import torch
from test_prune_recurrent import CLASSES, IDS, Tagger, parameter
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import pycompress as pc
from pycompress import scores
from pycompress.selection import select_weights


def make(seed=0):
    torch.manual_seed(seed)
    return Tagger()


ALL = ["*", "table"]
DATA = IDS, CLASSES
FACTORIES = {
    "magnitude": scores.magnitude,
    "l2": scores.l2,
    "lamp": scores.lamp,
    "random": scores.random(5),
    "taylor": scores.taylor(DATA, F.cross_entropy, batch_size=4),
    "snip": scores.snip(DATA, F.cross_entropy, batch_size=4),
    "fisher": scores.fisher(DATA, F.cross_entropy, progress=False),
    "wanda": scores.wanda(DATA, batch_size=4),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_score_takes_every_kind_of_weight_and_changes_nothing(name):
    model = make().train()
    model.gru.eval()
    model.lstm.weight_hh_l0.requires_grad_(False)
    F.cross_entropy(model(IDS), CLASSES).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}

    def flags():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return hooks, [(m.training, sorted(m.__dict__)) for m in model.modules()]

    flags_before = flags()
    state = torch.get_rng_state()
    layers = select_weights(model, include=ALL)
    found = FACTORIES[name](model, layers)
    assert list(found) == list(layers)
    for key, value in found.items():
        assert value.shape == parameter(model, key).shape and bool(value.isfinite().all()), key
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert flags() == flags_before
    assert not model.lstm.weight_hh_l0.requires_grad and model.lstm.weight_hh_l1.requires_grad
    for key, p in model.named_parameters():
        assert p.grad is gradients[key][0] and (p.grad is None or torch.equal(p.grad, gradients[key][1]))
    assert pc.prune_(model, sparsity=0.5, score=FACTORIES[name], include=ALL).sparsity == pytest.approx(0.5, abs=1e-3)


def test_gradient_scores_of_recurrent_layers_and_attention():
    model = make().eval()
    layers = select_weights(model, include=ALL)
    weights = {name: parameter(model, name) for name in layers}
    mean = torch.autograd.grad(F.cross_entropy(model(IDS), CLASSES), list(weights.values()))
    items = [
        torch.autograd.grad(F.cross_entropy(model(IDS[i : i + 1]), CLASSES[i : i + 1]), list(weights.values()))
        for i in range(len(IDS))
    ]
    found = {name: FACTORIES[name](model, layers) for name in ("taylor", "snip", "fisher")}
    total = sum(float((w * g).abs().sum()) for w, g in zip(weights.values(), mean, strict=True))
    for i, (name, w) in enumerate(weights.items()):
        expected = (w * mean[i]).abs().detach()
        torch.testing.assert_close(found["taylor"][name], expected, rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(found["snip"][name], expected / total, rtol=1e-3, atol=1e-8)
        h = sum(g[i] ** 2 for g in items) / len(items)
        torch.testing.assert_close(found["fisher"][name], (h * w**2 / 2).detach(), rtol=1e-3, atol=1e-12)


def test_taylor_predicts_the_change_of_the_loss():
    """For a tiny step along one weight: an independent check that a weight's gradient is that weight's."""
    model = make().eval().double()
    layers = select_weights(model, include=ALL)
    found = scores.taylor(DATA, F.cross_entropy, batch_size=9)(model, layers)
    base = F.cross_entropy(model(IDS), CLASSES).item()
    for name in layers:
        weight = parameter(model, name).data
        index = divmod(int(found[name].argmax()), weight.shape[1])
        value = weight[index].item()
        weight[index] = value * (1 - 1e-6)
        change = abs(F.cross_entropy(model(IDS), CLASSES).item() - base) / 1e-6
        weight[index] = value
        assert change == pytest.approx(found[name][index].item(), rel=1e-2), name


def single(layer, i, way):
    """A cell with the weights of one layer in one direction."""
    kinds = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
    suffix = f"_l{i}" + ("_reverse" if way else "")
    weight = getattr(layer, f"weight_ih{suffix}")
    more = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    cell = kinds[type(layer)](weight.shape[1], layer.hidden_size, **more)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data = getattr(layer, name + suffix).data
    return cell


def stepwise(layer, sequences, states):
    """Squared norms of what each weight multiplies: one item, layer, direction and step after the other."""
    found = {}
    ways = (0, 1) if layer.bidirectional else (0,)
    for item, x in enumerate(sequences):
        for i in range(layer.num_layers):
            outputs = []
            for way in ways:
                cell, suffix = single(layer, i, way), f"_l{i}" + ("_reverse" if way else "")
                place = i * len(ways) + way
                state = [s[place, item][None] for s in states]
                rows = []
                for step in reversed(x) if way else x:
                    for name, value in (("weight_ih", step), ("weight_hh", state[0][0])):
                        found[name + suffix] = found.get(name + suffix, 0) + value.double() ** 2
                    after = cell(step[None], tuple(state) if len(state) > 1 else state[0])
                    state = list(after) if isinstance(after, tuple) else [after]
                    rows.append(state[0][0])
                outputs.append(torch.stack(rows[::-1] if way else rows))
            x = torch.cat(outputs, -1)
    return found


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "gru": lambda: nn.GRU(3, 4, num_layers=3, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("form", ["padded", "packed", "with states", "unbatched"])
def test_wanda_of_recurrent_layers(name, form):
    torch.manual_seed(0)
    layer = RECURRENT[name]()
    lengths = [6, 4, 3] if form == "packed" else [6, 6, 6]
    sequences = [torch.randn(n, 3) for n in lengths]
    ways = (2 if layer.bidirectional else 1) * layer.num_layers
    draw = torch.randn if form == "with states" else torch.zeros
    states = [draw(ways, 3, 4) for _ in range(2 if name == "lstm" else 1)]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=layer.batch_first)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, items):  # the data only say that it runs once
            if form == "packed":
                return self.layer(pack_padded_sequence(padded, lengths, batch_first=layer.batch_first))[0].data
            if form == "unbatched":
                outputs = [self.layer(x)[0] for x in sequences]
                return outputs[0]
            given = tuple(states) if name == "lstm" else states[0]
            return self.layer(padded, hx=given)[0] if form == "with states" else self.layer(input=padded)[0]

    model = Net()
    layers = select_weights(model)
    found = scores.wanda((torch.zeros(1, 1), torch.zeros(1)))(model, layers)
    with torch.no_grad():
        expected = stepwise(layer, sequences, states)
    assert {f"layer.{key}" for key in expected} == set(found)
    for key, squares in expected.items():
        value = getattr(layer, key).detach().abs() * squares.sqrt().float()
        torch.testing.assert_close(found[f"layer.{key}"], value, rtol=1e-4, atol=1e-6)


def test_wanda_of_cells_attention_and_embeddings():
    model = make().eval()
    found = scores.wanda(DATA, batch_size=4)(model, select_weights(model, include=ALL))
    seen = {}

    def keep(name, value):
        seen[name] = seen.get(name, 0) + value.detach().reshape(-1, value.shape[-1]).double().square().sum(0)

    # Attention written out: the product with the values, head by head, is what the output projection takes.
    def attend(layer, name, query, key, value):
        if layer._qkv_same_embed_dim:
            parts = layer.in_proj_weight.chunk(3)
        else:
            parts = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
        biases = layer.in_proj_bias.chunk(3)
        for part, x in zip("qkv", (query, key, value), strict=True):
            keep(f"{name}.{part}", x)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), parts, biases, strict=True))
        heads = [x.unflatten(-1, (2, 3)).transpose(1, 2) for x in (q, k, v)]
        y = torch.softmax(heads[0] @ heads[1].mT / 3**0.5, -1) @ heads[2]
        y = y.transpose(1, 2).flatten(2)
        keep(f"{name}.out_proj", y)
        return layer.out_proj(y)

    with torch.no_grad():
        embedded = model.table(IDS)
        deep, _ = model.lstm(embedded)
        x, _ = model.gru(deep)
        x = x + attend(model.attention, "attention", x, x, x) + attend(model.mixed, "mixed", x, deep, deep)
        h, c = model.cell(x[:, -1])
        keep("cell.weight_ih", torch.cat([x[:, -1], x[:, 0]]))
        keep("cell.weight_hh", h)
        h, _ = model.cell(x[:, 0], (h, c))
        y = model.step(h, x[:, 1])
        keep("step.weight_ih", h)
        keep("step.weight_hh", x[:, 1])
        keep("head", y)
    rows = torch.stack([seen[f"attention.{part}"] for part in "qkv"]).repeat_interleave(6, 0)
    seen["attention.in_proj_weight"] = rows
    for part in "qkv":
        seen[f"mixed.{part}_proj_weight"] = seen[f"mixed.{part}"]
    # The table is looked up, and multiplied as the weight of the second head.
    looked_up = torch.bincount(IDS.flatten(), minlength=11).double()[:, None]
    seen["table"] = looked_up + x.reshape(-1, 6).double().square().sum(0)
    checked = 0
    for name, squares in seen.items():
        if name in found:
            expected = parameter(model, name).detach().abs() * squares.sqrt().float()
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
            checked += 1
    assert checked == 5 + 2 + 4 + 1, "cells and head, attention, mixed attention, table"


def test_wanda_sums_the_inputs_of_all_layers_that_share_a_weight():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    x = torch.randn(5, 3)
    found = scores.wanda((x, torch.zeros(5)))(model, select_weights(model))
    with torch.no_grad():
        inner = torch.tanh(model[0](x))
    expected = model[0].weight.detach().abs() * torch.cat([x, inner]).norm(dim=0)
    torch.testing.assert_close(found["0"], expected)


def test_wanda_names_the_projections_that_it_cannot_see():
    model = nn.Sequential(nn.LSTM(3, 4, proj_size=2))
    data = torch.randn(2, 5, 3), torch.zeros(2)
    with pytest.raises(ValueError, match=r"data must reach every layer.*\['0.weight_hr_l0'\]"):
        pc.prune_(model, sparsity=0.5, score=scores.wanda(data))
    pc.prune_(model, sparsity=0.5, score=scores.wanda(data), exclude=["*.weight_hr_*"])


def test_wanda_in_torch_s_encoder_with_padding():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, items, padding):
            return self.encoder(items, src_key_padding_mask=padding)

    found = scores.wanda(((x, padding), torch.zeros(3)))(Net(), select_weights(Net()))
    assert all(bool(value.isfinite().all()) and bool((value > 0).any()) for value in found.values())


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)

    def forward(self, ids):
        return self.head(self.table(ids).sum(1))


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_embeddings_with_sparse_gradients(name):
    torch.manual_seed(0)
    model = Sparse()
    dense = copy.deepcopy(model)
    dense.table.sparse = False
    data = torch.randint(0, 5, (6, 4)), torch.arange(6) % 2
    score = getattr(scores, name)(data, F.cross_entropy)
    found, expected = (score(m, select_weights(m, include=["table", "head"])) for m in (model, dense))
    assert all(torch.allclose(found[n], expected[n]) for n in ("table", "head"))


def cnn():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8)),
        *(nn.ReLU(), nn.Linear(8, 3)),
    )
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
    return model


def test_bn_scale_is_that_of_the_norm_behind_a_layer():
    model, x = cnn().train(), torch.randn(3, 2, 8, 8)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    layers = {name: model[int(name)] for name in ("0", "4", "7")}
    found = scores.bn_scale(x)(model, layers)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, norm in (("0", 1), ("4", 5), ("7", 8)):
        assert torch.equal(found[name], model[norm].weight.detach().abs().double())
    with pytest.raises(ValueError, match=r"got none behind \['10'\]"):
        scores.bn_scale(x)(model, {**layers, "10": model[10]})
    model[5] = nn.BatchNorm2d(4, affine=False)
    with pytest.raises(ValueError, match=r"got none behind \['4', '10'\]"):
        scores.bn_scale(x)(model, {**layers, "10": model[10]})
    plain = cnn()[:2].append(nn.Conv2d(6, 2, 1))
    keep = plain[1].weight.detach().abs().topk(3).indices.sort().values
    assert torch.equal(pc.simplify(plain, x, 0.5, scores.bn_scale(x))[1].weight, plain[1].weight[keep])


def test_bn_scale_needs_the_norm_to_be_the_only_reader():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model = Two()
    with pytest.raises(ValueError, match=r"got none behind \['conv'\]"):
        scores.bn_scale(torch.zeros(1, 1, 2, 2))(model, {"conv": model.conv})
    wide = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4)
    )  # over [items, 4, features]: the norm's channels are others
    with pytest.raises(ValueError, match=r"got none behind \['0'\]"):
        scores.bn_scale(torch.zeros(2, 4, 3))(wide, {"0": wide[0]})


def test_activation_is_the_mean_magnitude_where_an_output_ends():
    model, x = cnn().train(), torch.randn(7, 2, 8, 8)
    before = copy.deepcopy(model.state_dict())
    layers = {name: model[int(name)] for name in ("0", "4", "7", "10")}
    found = scores.activation((x, torch.zeros(7)), batch_size=3)(model, layers)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    model.eval()
    with torch.no_grad():
        values, ends = x, {"0": 3, "4": 5, "7": 9, "10": 10}
        for i, module in enumerate(model):
            values = module(values)
            for name, end in ends.items():
                if i == end:
                    mean = values.double().abs().movedim(1, 0).flatten(1).mean(1)
                    torch.testing.assert_close(found[name], mean, rtol=1e-5, atol=1e-7)
    plain = cnn()[:3].append(nn.Conv2d(6, 2, 1)).eval()
    with torch.no_grad():
        keep = plain[:3](x).abs().mean((0, 2, 3)).topk(3).indices.sort().values
    small = pc.simplify(plain, x, 0.5, scores.activation((x, torch.zeros(7))))
    assert torch.equal(small[0].weight, plain[0].weight[keep])
    with pytest.raises(ValueError, match=r"data must give finite outputs.*'0': NaN"):
        scores.activation((x * torch.nan, torch.zeros(7)))(model, layers)


WEIGHT_SCORES = {"magnitude": scores.magnitude, "l2": scores.l2, "lamp": scores.lamp, "random": scores.random(1)}
WEIGHT_SCORES |= {name: getattr(scores, name) for name in ("taylor", "snip", "fisher")}


@pytest.mark.parametrize("name", [*WEIGHT_SCORES, "wanda"])
def test_simplify_sums_every_score_of_weights_over_hidden_units(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(9, 5, 6), torch.arange(9) % 3
    score = scores.wanda((x, y)) if name == "wanda" else WEIGHT_SCORES[name]
    score = score((x, y), F.cross_entropy) if name in ("taylor", "snip", "fisher") else score
    found = score(model, select_weights(model, include=["lstm"]))
    small = pc.simplify(model, x, 0.5, score, include=["lstm"])
    assert small.lstm.hidden_size == 4 and small(x).shape == (9, 3)
    # The rows of the four gates of a unit go together, in both weights.
    sums = sum(value.double().reshape(4, 8, -1).sum((0, 2)) for value in found.values())
    keep = sums.topk(4).indices.sort().values
    rows = torch.cat([gate * 8 + keep for gate in range(4)])
    assert torch.equal(small.lstm.weight_ih_l0, model.lstm.weight_ih_l0[rows])
