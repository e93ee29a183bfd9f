"""Pruning: exact counts, ties, thresholds, shared weights, bad input."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import masks

pytestmark = pytest.mark.filterwarnings("ignore:these layers lost", "ignore:Initializing zero-element")


class Custom(nn.Linear):
    """A subclass is found too."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.ModuleDict({"in": nn.Conv1d(3, 5, 2)}))
        self.head = nn.ModuleList([Custom(7, 11), nn.Linear(11, 3)])


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


LAYERS = {"body.0": 108, "body.2.in": 30, "head.0": 77, "head.1": 33}
TOTAL = sum(LAYERS.values())


def weights(model):
    return {name: model.get_submodule(name).weight.detach().clone() for name in LAYERS}


def expected(keys, count, already=None):
    """Which weights go: a stable sort over all of them, those pruned already first."""
    flat = np.concatenate([key.double().reshape(-1).numpy() for key in keys])
    if already is not None:
        flat = np.where(np.concatenate([a.reshape(-1).numpy() for a in already]), -np.inf, flat)
    gone = np.zeros(flat.size, bool)
    gone[np.argsort(flat, kind="stable")[:count]] = True
    parts = np.split(gone, np.cumsum([key.numel() for key in keys])[:-1])
    return [torch.from_numpy(part).view(key.shape) for part, key in zip(parts, keys, strict=True)]


@pytest.mark.parametrize("sparsity", [0.0, 0.003, 0.1, 0.5, 1 / 3, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("across_layers", [True, False])
def test_the_count_is_exact_and_kept_weights_are_untouched(sparsity, across_layers):
    model = make()
    before = weights(model)
    with pytest.warns(UserWarning) if sparsity > 0.999 else _nothing():
        summary = pc.prune_(model, sparsity=sparsity, across_layers=across_layers)
    assert {layer.name: layer.total for layer in summary.layers} == LAYERS
    zeros = {name: int((weight == 0).sum()) for name, weight in weights(model).items()}
    assert {layer.name: layer.zeros for layer in summary.layers} == zeros
    if across_layers:
        gone = expected([w.abs() for w in before.values()], round(sparsity * TOTAL))
        assert summary.zeros == round(sparsity * TOTAL) and summary.total == TOTAL
    else:
        gone = [expected([w.abs()], round(sparsity * w.numel()))[0] for w in before.values()]
        assert zeros == {name: round(sparsity * total) for name, total in LAYERS.items()}
    for (name, weight), where in zip(before.items(), gone, strict=True):
        assert torch.equal(model.get_submodule(name).weight, weight.masked_fill(where, 0)), name
    assert summary.sparsity == pytest.approx(summary.zeros / TOTAL)
    assert str(summary).count("\n") == len(LAYERS)


class _nothing:
    def __enter__(self): ...

    def __exit__(self, *error): ...


@pytest.mark.parametrize("across_layers", [True, False])
@pytest.mark.parametrize("kind", ["magnitude", "signed", "float64"])
def test_ties_go_by_flat_index_in_layer_order(across_layers, kind):
    model = make()
    for p in model.parameters():
        p.data = torch.randint(-2, 3, p.shape).float()
    if kind == "float64":
        model.double()
    before = weights(model)
    keys = [w if kind == "signed" else w.abs() for w in before.values()]
    score = pc.scores.magnitude if kind != "signed" else lambda _, layers: {n: m.weight for n, m in layers.items()}
    pc.prune_(model, sparsity=0.37, across_layers=across_layers, score=score)
    if across_layers:
        gone = expected(keys, round(0.37 * TOTAL))
    else:
        gone = [expected([key], round(0.37 * key.numel()))[0] for key in keys]
    for name, where in zip(LAYERS, gone, strict=True):
        mask = masks.mask_of(model.get_submodule(name))
        assert torch.equal(~mask if mask is not None else torch.zeros_like(where), where), name


def test_half_and_mixed_precision():
    model = make()
    model.head.bfloat16()
    model.body[0].half()
    before = weights(model)
    summary = pc.prune_(model, sparsity=0.6)
    gone = expected([w.abs() for w in before.values()], round(0.6 * TOTAL))
    for (name, weight), where in zip(before.items(), gone, strict=True):
        assert torch.equal(model.get_submodule(name).weight, weight.masked_fill(where, 0))
    assert summary.zeros == round(0.6 * TOTAL)


def test_channels_last_weights_are_counted_in_logical_order():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3)
    conv.weight.data.fill_(0.5)
    other = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    pc.prune_(conv, sparsity=0.3)
    pc.prune_(other, sparsity=0.3)
    assert torch.equal(conv.weight, other.weight)


def test_pruning_again_keeps_what_is_pruned_and_counts_it():
    model = make()
    pc.prune_(model, sparsity=0.5)
    first = {name: ~mask for name, mask in masks.masked(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    before = weights(model)
    summary = pc.prune_(model, sparsity=0.8)
    gone = expected([w.abs() for w in before.values()], round(0.8 * TOTAL), first.values())
    for name, where, known in zip(LAYERS, gone, first.values(), strict=True):
        assert torch.equal(~masks.mask_of(model.get_submodule(name)), where)
        assert bool(where[known].all())
    assert summary.zeros == round(0.8 * TOTAL)
    assert pc.prune_(model, sparsity=0.1).zeros == summary.zeros  # never fewer
    assert pc.prune_(model, threshold=0.0).zeros == summary.zeros
    scored = pc.prune_(model, sparsity=0.9, score=pc.scores.random(3))
    assert scored.zeros == round(0.9 * TOTAL)


def test_natural_zeros_do_not_take_the_place_of_pruned_ones():
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[0.0, 0.0, 3.0, 4.0]])
    masks.attach_(layer, "weight", torch.tensor([[True, True, True, False]]))
    assert pc.prune_(layer, sparsity=0.5).zeros == 2
    assert masks.mask_of(layer).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25, 1e-30, 3.4e38])
def test_threshold_is_compared_exactly(threshold):
    model = make()
    above = np.nextafter(np.float32(threshold), np.float32(np.inf))
    model.head[1].weight.data[0, :4] = torch.tensor(
        [threshold, -threshold, float(above) if np.isfinite(above) else 0, 0.0]
    )
    before = weights(model)
    with pytest.warns(UserWarning) if threshold > 1 else _nothing():
        summary = pc.prune_(model, threshold=threshold)
    for name, weight in before.items():
        keep = weight.double().abs() > threshold
        assert torch.equal(model.get_submodule(name).weight, weight * keep)
    assert summary.zeros == sum(int((w.double().abs() <= threshold).sum()) for w in before.values())
    assert all(torch.equal(model.get_submodule(n).weight, w) for n, w in weights(model).items())


def test_threshold_on_another_score():
    model = make()
    before = weights(model)
    pc.prune_(model, threshold=0.01, score=pc.scores.l2)
    for name, weight in before.items():
        assert torch.equal(model.get_submodule(name).weight, weight * (weight.double() ** 2 > 0.01))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.embedding.weight
        self.again = nn.Linear(6, 6)
        self.again.weight = self.hidden.weight
        self.shared = self.hidden


def test_shared_weights_are_pruned_and_counted_once():
    torch.manual_seed(0)
    model = Tied()
    summary = pc.prune_(model, sparsity=0.5)
    assert [(layer.name, layer.total) for layer in summary.layers] == [("hidden", 36), ("out", 60)]
    assert summary.zeros == 48
    for module in (model.embedding, model.hidden, model.out, model.again):
        assert torch.equal(masks.mask_of(module), module.weight != 0)
    assert model.out.weight is model.embedding.weight
    pc.finalize_(model)
    assert not masks.masked(model)
    excluded = pc.prune_(Tied(), sparsity=0.5, exclude=["again"])
    assert [layer.name for layer in excluded.layers] == ["out"]


def test_include_and_exclude():
    def names(**options):
        return [layer.name for layer in pc.prune_(make(), sparsity=0.5, **options).layers]

    assert names(include=["head.*"]) == ["head.0", "head.1"]
    assert names(include=[nn.Linear]) == ["head.0", "head.1"]
    assert names(include=[Custom, "body.0"]) == ["body.0", "head.0"]
    assert names(exclude=[nn.Conv1d, "head.1"]) == ["body.0", "head.0"]
    assert names(include=("head.?",), exclude=["*.0"]) == ["head.1"]
    root = nn.Linear(4, 4)
    assert [layer.name for layer in pc.prune_(root, sparsity=0.5).layers] == [""]


def test_lamp_leaves_no_layer_empty():
    model = make()
    model.head[1].weight.data *= 1e-6
    pc.prune_(model, sparsity=0.95, score=pc.scores.lamp)
    assert bool((model.head[1].weight != 0).any())
    other = make()
    other.head[1].weight.data *= 1e-6
    with pytest.warns(UserWarning, match=r"lost all of their weights: \['head.1'\]"):
        pc.prune_(other, sparsity=0.6)


def test_scores_that_a_user_wrote():
    model = make()
    before = weights(model)
    summary = pc.prune_(model, sparsity=0.25, score=lambda _, layers: {n: -m.weight for n, m in layers.items()})
    gone = expected([-w for w in before.values()], round(0.25 * TOTAL))
    for (name, weight), where in zip(before.items(), gone, strict=True):
        assert torch.equal(model.get_submodule(name).weight, weight.masked_fill(where, 0))
    assert summary.zeros == round(0.25 * TOTAL)


def replaced(**values):
    return lambda model, layers: {**pc.scores.magnitude(model, layers), **values}


BAD_SCORES = {
    "missing": (lambda model, layers: {}, ValueError, "exactly the given layers"),
    "more": (replaced(other=torch.ones(1)), ValueError, "other"),
    "no dict": (lambda model, layers: [torch.ones(1)], TypeError, "score must return a dict"),
    "shape": (replaced(**{"head.1": torch.ones(3)}), ValueError, r"'head.1': shape \(3,\)"),
    "integers": (replaced(**{"head.1": torch.ones(3, 11, dtype=torch.int32)}), ValueError, "int32, not a float"),
    "array": (replaced(**{"head.1": np.ones((3, 11))}), ValueError, "ndarray"),
    "nan": (
        replaced(**{"head.0": torch.full((11, 7), torch.nan), "head.1": torch.full((3, 11), torch.inf)}),
        ValueError,
        "'head.0': 77 NaN or infinite entries; 'head.1': 33",
    ),
    "not a function": ("magnitude", TypeError, "score must be a function"),
}
BAD_ARGUMENTS = {
    "neither": ({}, ValueError, "exactly one of sparsity and threshold"),
    "both": ({"sparsity": 0.5, "threshold": 0.5}, ValueError, "exactly one of sparsity and threshold"),
    "one": ({"sparsity": 1.0}, ValueError, "sparsity must be at least 0 and below 1, got 1.0"),
    "negative": ({"sparsity": -0.1}, ValueError, "sparsity must"),
    "nan": ({"sparsity": float("nan")}, ValueError, "sparsity must"),
    "text": ({"sparsity": "0.5"}, TypeError, "sparsity must be a float, got str"),
    "bool": ({"sparsity": True}, TypeError, "sparsity must be a float, got bool"),
    "negative threshold": ({"threshold": -1}, ValueError, "threshold must be 0 or more"),
    "nan threshold": ({"threshold": float("nan")}, ValueError, "threshold must"),
    "infinite threshold": ({"threshold": float("inf")}, ValueError, "threshold must"),
    "pattern": ({"sparsity": 0.5, "pattern": "unstructured"}, TypeError, "pattern must be"),
    "across": ({"sparsity": 0.5, "across_layers": 1}, TypeError, "across_layers must be a bool"),
    "nothing": ({"sparsity": 0.5, "include": ["tail*"]}, ValueError, "include must match layers.*got 'tail\\*'"),
    "half matches": ({"sparsity": 0.5, "exclude": ["head.0", "hed.1"]}, ValueError, "exclude must.*'hed.1'"),
    "type": ({"sparsity": 0.5, "include": [nn.Bilinear]}, ValueError, "Bilinear"),
    "no list": ({"sparsity": 0.5, "include": "head.*"}, TypeError, "include must be a list"),
    "no pattern": ({"sparsity": 0.5, "include": [3]}, TypeError, "include must hold"),
    "all excluded": ({"sparsity": 0.5, "exclude": ["*"]}, ValueError, "must leave a layer"),
    **{name: ({"sparsity": 0.5, "score": score}, kind, text) for name, (score, kind, text) in BAD_SCORES.items()},
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_change_nothing(case):
    options, kind, message = BAD_ARGUMENTS[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        pc.prune_(model, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not masks.masked(model) and not list(model.buffers())


def test_a_score_of_outputs_is_no_score_of_weights():
    layer = nn.Linear(3, 2)
    score = pc.scores.ablation((torch.ones(4, 3), torch.ones(4, 2)), nn.functional.mse_loss)
    with pytest.raises(ValueError, match=r"'': shape \(2,\) for a weight of shape \(2, 3\)"):
        pc.prune_(layer, sparsity=0.5, score=score)
    assert layer.training and not masks.masked(layer)


def test_bad_models():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        pc.prune_([make()], sparsity=0.5)
    with pytest.raises(ValueError, match="must have a Linear, Conv1d, Conv2d, recurrent or attention layer"):
        pc.prune_(nn.Sequential(nn.ReLU(), nn.Embedding(2, 2)), sparsity=0.5)
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.LazyLinear(4),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.Linear(3, 3, device="meta"),
        nn.Linear(3, 3, dtype=torch.complex64),
        nn.Linear(3, 3),
    )
    model[0].weight.data[1, 1] = torch.nan
    model[5].weight.data[0] = torch.inf
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError) as caught:
        pc.prune_(model, sparsity=0.5)
    text = str(caught.value)
    assert "'0': 1 NaN or infinite entries" in text and "'5': 3 NaN" in text and "'1': not initialised" in text
    assert "'2': not a parameter" in text and "'3': on the meta device" in text and "'4': torch.complex64" in text
    assert torch.equal(model[0].weight.nan_to_num(7), before.nan_to_num(7)) and not masks.masked(model)


def test_empty_layers():
    model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 4))
    assert pc.prune_(model, sparsity=0.5).zeros == 6
    assert pc.prune_(nn.Linear(0, 3), sparsity=0.5).sparsity == 0


def test_millions_of_weights_are_not_joined(monkeypatch):
    """The magnitude score hands the weights themselves to the kernel."""
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    monkeypatch.setattr(torch, "cat", lambda *_: pytest.fail("weights were joined"))
    assert pc.prune_(model, sparsity=0.9).zeros == round(0.9 * 2 * 512 * 512)
