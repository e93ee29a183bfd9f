"""Scores: each against its formula, computed another way; and that nothing of the model changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycompress import prune_, scores

LOSS = F.cross_entropy


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(8, 3))


def cnn(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 4, 3, stride=2, padding=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def pair(shape, rows=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


CASES = {"mlp": (mlp, (6,)), "cnn": (cnn, (2, 8, 8))}


def layers_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}


FACTORIES = {
    "magnitude": lambda data: scores.magnitude,
    "l2": lambda data: scores.l2,
    "lamp": lambda data: scores.lamp,
    "random": lambda data: scores.random(5),
    "taylor": lambda data: scores.taylor(data, LOSS, batch_size=4),
    "snip": lambda data: scores.snip(data, LOSS, batch_size=4),
    "fisher": lambda data: scores.fisher(data, LOSS),
    "wanda": lambda data: scores.wanda(data, batch_size=4),
    "ablation": lambda data: scores.ablation(data, LOSS, batch_size=4),
    "activation": lambda data: scores.activation(data, batch_size=4),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("case", CASES)
def test_nothing_of_the_model_changes(name, case):
    make, shape = CASES[case]
    model = make().train()
    model[1].eval()
    model[-1].weight.requires_grad_(False)
    LOSS(model(pair(shape)[0]), pair(shape)[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    state, data = torch.get_rng_state(), pair(shape)
    with torch.no_grad():
        first = FACTORIES[name](data)(model, layers_of(model))
    with torch.inference_mode():
        second = FACTORIES[name](data)(model, layers_of(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert flags == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert wants == [p.requires_grad for p in model.parameters()]
    for key, parameter in model.named_parameters():
        assert parameter.grad is gradients[key][0]
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[key][1])
    assert list(first) == list(layers_of(model))
    for key, layer in layers_of(model).items():
        expected = layer.weight.shape[:1] if name in ("ablation", "activation") else layer.weight.shape
        assert first[key].shape == expected and first[key].is_floating_point()
        assert bool(torch.isfinite(first[key]).all()) and not first[key].requires_grad
        assert torch.equal(first[key], second[key])  # the same again


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["pair", "batches", "dataset"])
def test_gradient_scores(case, form):
    make, shape = CASES[case]
    model, (x, y) = make(), pair(shape)
    data = {
        "pair": (x, y),
        "batches": [(x[:7], y[:7]), (x[7:], y[7:])],
        "dataset": torch.utils.data.TensorDataset(x, y),
    }[form]
    layers = layers_of(model)
    weights = [layer.weight for layer in layers.values()]
    twin = model.eval()
    mean = torch.autograd.grad(LOSS(twin(x), y), weights)
    items = [torch.autograd.grad(LOSS(twin(x[i : i + 1]), y[i : i + 1]), weights) for i in range(len(x))]
    total = sum((w * g).abs().sum().item() for w, g in zip(weights, mean, strict=True))
    found = {name: FACTORIES[name](data)(model.train(), layers) for name in ("taylor", "snip", "fisher")}
    for i, (name, w) in enumerate(zip(layers, weights, strict=True)):
        h = sum(g[i] ** 2 for g in items) / len(items)
        torch.testing.assert_close(found["taylor"][name], (w * mean[i]).abs().detach(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found["snip"][name], (w * mean[i]).abs().detach() / total, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found["fisher"][name], (h * w**2 / 2).detach(), rtol=1e-4, atol=1e-9)


def test_fisher_predicts_the_loss_of_a_removal_near_a_minimum():
    """OBD: for a fitted linear-Gaussian model the score is the rise of the loss, up to the noise of the data."""
    torch.manual_seed(0)
    x = torch.randn(4000, 5)
    true = torch.tensor([[2.0, -1.0, 0.5, 0.3, 0.1]])
    y = x @ true.T + torch.randn(4000, 1)
    model = nn.Linear(5, 1, bias=False)
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()

    def likelihood(outputs, targets):
        return F.mse_loss(outputs, targets) / 2

    found = scores.fisher((x, y), likelihood, progress=False)(model, {"": model})[""][0]
    for i in range(5):
        without = model.weight.detach().clone()
        without[0, i] = 0
        rise = likelihood(x @ without.T, y) - likelihood(model(x), y)
        assert found[i].item() == pytest.approx(rise.item(), rel=0.2)


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "groups": nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1),
    "depthwise": nn.Conv2d(4, 4, (3, 2), groups=4, dilation=2),
    "same": nn.Conv2d(4, 2, 3, padding="same"),
    "reflect": nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"),
    "one": nn.Conv1d(4, 3, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_wanda_of_a_convolution(name):
    """The norm of the inputs under each place of the kernel, from the output's dependence on a single weight."""
    layer = copy.deepcopy(CONVOLUTIONS[name])
    torch.manual_seed(0)
    x = torch.randn(5, 4, *(9,) * (layer.weight.ndim - 2))
    found = scores.wanda((x, torch.zeros(5)), batch_size=2)(layer, {"": layer})[""]
    weight = layer.weight.detach().clone()
    probe = copy.deepcopy(layer).requires_grad_(False)
    probe.bias.zero_()
    for index in [(0,) * weight.ndim, (1, 0, *(1,) * (weight.ndim - 2)), tuple(n - 1 for n in weight.shape)]:
        probe.weight.zero_()
        probe.weight[index] = weight[index]
        assert found[index].item() == pytest.approx(probe(x).norm().item(), rel=1e-5)


def test_wanda_of_a_linear():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 5, 3)
    found = scores.wanda([(x[:3], torch.zeros(3)), (x[3:], torch.zeros(1))])(layer, {"": layer})[""]
    torch.testing.assert_close(found, layer.weight.detach().abs() * x.reshape(-1, 3).norm(dim=0))


def test_wanda_names_layers_that_are_not_reached():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ValueError, match=r"data must reach every layer.*\['idle'\]"):
        prune_(model, sparsity=0.5, score=scores.wanda((torch.ones(2, 3), torch.ones(2))))


def test_lamp_formula():
    model = cnn()
    found = scores.lamp(model, layers_of(model))
    for name, layer in layers_of(model).items():
        w = layer.weight.detach().flatten()
        expected = [float(u**2 / (w[w.abs() >= u.abs()] ** 2).sum()) for u in w]
        torch.testing.assert_close(found[name].flatten(), torch.tensor(expected), rtol=1e-5, atol=0)
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    assert scores.lamp(zero, {"": zero})[""].tolist() == [[0, 0], [0, 0]]


def test_random_is_the_seed_s():
    model = mlp()
    a, b, c = (scores.random(seed)(model, layers_of(model)) for seed in (1, 1, 2))
    assert all(torch.equal(a[n], b[n]) and not torch.equal(a[n], c[n]) for n in a)


def test_l2_sums_to_the_norm_of_a_row():
    layer = nn.Linear(5, 4)
    found = scores.l2(layer, {"": layer})[""]
    torch.testing.assert_close(found.sum(1).sqrt(), layer.weight.detach().double().norm(dim=1))


def without(model, position, channel, x):
    """Run a Sequential with one channel zeroed behind module `position`."""
    for i, module in enumerate(model):
        x = module(x)
        if i == position:
            x = x.clone()
            x[:, channel] = 0
    return x


def test_ablation_takes_an_output_away_where_it_ends():
    cases = [(mlp(), (6,), {"0": 2}), (cnn(), (2, 8, 8), {"0": 3, "4": 5, "7": 7})]
    for model, shape, ends in cases:
        x, y = pair(shape)
        found = scores.ablation((x, y), LOSS, batch_size=4)(model, {n: model[int(n)] for n in ends})
        model.eval()
        with torch.no_grad():
            base = LOSS(model(x), y)
            for name, position in ends.items():
                expected = [LOSS(without(model, position, c, x), y) - base for c in range(len(found[name]))]
                torch.testing.assert_close(found[name], torch.stack(expected).double(), rtol=1e-3, atol=1e-6)


class Twice(nn.Module):
    """A layer that is called twice, an activation shared by both, and a second reader of a layer's output."""

    def __init__(self):
        super().__init__()
        self.inner, self.other, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Sigmoid()

    def forward(self, x):
        x = self.act(self.inner(self.act(self.inner(x))))
        y = self.other(x)
        return self.act(y) + nn.functional.relu(self.inner(y))


def test_ablation_of_layers_that_are_called_twice_or_read_twice():
    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(6, 4)
    y = torch.randn(6, 4)
    found = scores.ablation((x, y), F.mse_loss)(model, {"inner": model.inner, "other": model.other})

    def run(c, of):
        def cut(value, name):
            return value.index_fill(-1, torch.tensor([c]), 0) if of == name else value

        h = torch.sigmoid(cut(model.inner(torch.sigmoid(cut(model.inner(x), "inner"))), "inner"))
        z = cut(model.other(h), "other")
        return F.mse_loss(torch.sigmoid(z) + torch.relu(cut(model.inner(z), "inner")), y)

    with torch.no_grad():
        for name in found:
            expected = torch.stack([run(c, name) - run(0, "") for c in range(4)])
            torch.testing.assert_close(found[name], expected.double(), rtol=1e-4, atol=1e-6)


def test_masked_weights_score_zero_and_stay_pruned():
    model = mlp()
    prune_(model, sparsity=0.5)
    zeros = {n: layer.weight == 0 for n, layer in layers_of(model).items()}
    for name in ("magnitude", "taylor", "snip", "fisher", "wanda", "lamp", "l2"):
        found = FACTORIES[name](pair((6,)))(model, layers_of(model))
        assert all(bool((found[n][zeros[n]] == 0).all()) for n in zeros)
    assert prune_(model, sparsity=0.75, score=FACTORIES["taylor"](pair((6,)))).sparsity == pytest.approx(0.75)
    assert all(bool((layer.weight[zeros[n]] == 0).all()) for n, layer in layers_of(model).items())


def test_inputs_may_be_a_tuple_or_a_dict():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, a, b):
            return self.fc(a + b)

    model = Two()
    a, b, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    found = [
        FACTORIES[name](((a, b) if kind is tuple else {"a": a, "b": b}, y))(model, {"fc": model.fc})["fc"]
        for name in ("taylor", "fisher", "wanda", "ablation")
        for kind in (tuple, dict)
    ]
    assert all(torch.equal(found[i], found[i + 1]) for i in range(0, len(found), 2))


@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "wanda", "ablation", "activation"])
def test_bad_data(name):
    with pytest.raises(TypeError, match="data must be"):
        FACTORIES[name](iter([(torch.ones(1), torch.ones(1))]))
    with pytest.raises(ValueError, match="data must"):
        FACTORIES[name]((torch.ones(3, 6), torch.ones(2)))


@pytest.mark.parametrize("make", [scores.taylor, scores.snip, scores.fisher, scores.ablation])
def test_bad_losses(make):
    model, data = mlp().train(), pair((6,))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="loss must be a function"):
        make(data, "cross_entropy")
    for loss, kind, message in [
        (lambda outputs, _: outputs, TypeError, r"loss must return a scalar tensor, got Tensor of shape \(\d+, 3\)"),
        (lambda outputs, _: 0.5, TypeError, "scalar tensor, got float"),
        (lambda outputs, _: outputs.sum() * torch.nan, ValueError, "loss must be finite"),
    ]:
        with pytest.raises(kind, match=message):
            make(data, loss)(model, layers_of(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_options():
    data = pair((6,))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        scores.taylor(data, LOSS, batch_size=0)
    with pytest.raises(TypeError, match="batch_size must be an int"):
        scores.wanda(data, batch_size=2.0)
    with pytest.raises(TypeError, match="seed must be an int, got str"):
        scores.random("1")
