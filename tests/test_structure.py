import copy

import pytest
import torch
from architectures import settle_
from torch import nn
from torch.nn import functional as F

from pycompress import grids, masks, scores
from pycompress.formats import Int8
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_scores(model, layers):
    generator = torch.Generator().manual_seed(7)
    return {name: torch.rand(layer.weight.shape[0], generator=generator) for name, layer in layers.items()}


def zeroed(model, zeros):
    """A copy of the model where some inputs of some modules are set to 0: {module: (dimension, indices)}."""
    model = copy.deepcopy(model)
    for name, (dim, indices) in zeros.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, dim=dim, indices=indices: args[0].index_fill(dim, indices, 0)
        )
    return model


def removed_by(model, fraction, names):
    scores = random_scores(model, {name: model.get_submodule(name) for name in names})
    return {name: value.argsort()[: round(fraction * value.numel())].sort().values for name, value in scores.items()}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.second = nn.Conv2d(6, 8, 3)
        self.inner = nn.ModuleDict({"hidden": nn.Linear(8 * 4, 20)})
        self.last = nn.Linear(20, 3)
        self.act = nn.ReLU()

    def forward(self, x, scale=None):
        n, _, _, _ = x.shape
        x = F.max_pool2d(self.act(self.first(x)), 2)
        x = F.avg_pool2d(torch.sigmoid(self.second(x)), kernel_size=2, stride=1)
        x = F.dropout(x.view(n, -1), training=self.training)
        x = self.last(self.act(self.inner["hidden"](x)))
        return F.log_softmax(x if scale is None else x * scale, dim=1)


class MyConv(nn.Conv2d):
    pass


def repeat(indices, factor):
    return (indices[:, None] * factor + torch.arange(factor)).reshape(-1)


CHAINS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(1)),
        (5,),
        {"0": ("2", 1, 1), "2": ("4", 1, 1)},
    ),
    "constants": (  # what the removed channels gave as a constant is removed too
        lambda: nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Sigmoid(), nn.Linear(9, 3)),
        (5,),
        {"0": ("3", 1, 1)},
    ),
    "nested cnn": (
        lambda: nn.Sequential(
            nn.Sequential(MyConv(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.PReLU(6), nn.MaxPool2d(2)),
            nn.Sequential(nn.Sequential(nn.Conv2d(6, 10, 3), nn.PReLU()), nn.Dropout2d(), nn.AdaptiveAvgPool2d((1, 2))),
            nn.Flatten(),
            nn.BatchNorm1d(20),
            nn.Linear(20, 7),
            nn.Tanh(),
            nn.Linear(7, 2),
        ),
        (2, 8, 8),
        {"0.0": ("1.0.0", 1, 1), "1.0.0": ("4", 1, 2), "4": ("6", 1, 1)},
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8 * 4, 2)
        ),
        (3, 10),
        {"0": ("5", 1, 4)},
    ),
    "functional": (
        Functional,
        (1, 12, 12),
        {"first": ("second", 1, 1), "second": ("inner.hidden", 1, 4), "inner.hidden": ("last", 1, 1)},
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.75])
def test_the_result_equals_the_model_with_the_removed_channels_at_zero(chain, fraction):
    make, shape, next_layers = CHAINS[chain]
    model = settle_(make()).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    small = simplify(model, x, fraction, random_scores)
    removed = removed_by(model, fraction, next_layers)
    zeros = {after: (dim, repeat(removed[name], factor)) for name, (after, dim, factor) in next_layers.items()}
    torch.testing.assert_close(small(x), zeroed(model, zeros)(x), rtol=1e-12, atol=1e-12)
    for name in next_layers:
        outputs = model.get_submodule(name).weight.shape[0]
        assert small.get_submodule(name).weight.shape[0] == outputs - round(fraction * outputs)
    assert list(small.state_dict()) == list(model.state_dict())
    assert type(small) is type(model)
    if fraction:
        assert not torch.allclose(small(x), model(x), atol=1e-4)


def test_features_in_the_last_dimension_are_followed_through_a_flattening():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5, 2))
    x = torch.randn(6, 4, 3)
    small = simplify(model, x, 0.4, random_scores)
    removed = removed_by(model, 0.4, ["0"])["0"]
    inputs = (torch.arange(4)[:, None] * 5 + removed).reshape(-1)
    torch.testing.assert_close(small(x), zeroed(model, {"3": (1, inputs)})(x))


def test_tuple_and_dict_inputs():
    model = settle_(Functional())
    x, scale = torch.randn(2, 1, 12, 12), torch.tensor(2.0)
    from_tuple = simplify(model, (x, scale), 0.5)
    from_dict = simplify(model, {"scale": scale, "x": x}, 0.5)
    assert from_tuple.first.out_channels == 3
    torch.testing.assert_close(from_tuple(x, scale), from_dict(x=x, scale=scale))


def test_weight_scores_are_summed_over_each_output_and_the_lowest_go_first():
    model = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.ReLU(), nn.Conv2d(4, 1, 1))
    sizes = torch.tensor([3.0, 1.0, -2.0, 1.0])
    model[0].weight.data = sizes.reshape(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    small = simplify(model, torch.zeros(1, 1, 3, 3), 0.5, scores.magnitude)
    assert small[0].weight[:, 0, 0, 0].tolist() == [3.0, -2.0]
    # Of equal scores the first is removed.
    assert simplify(model, torch.zeros(1, 1, 3, 3), 0.25)[0].weight[:, 0, 0, 0].tolist() == [3.0, -2.0, 1.0]


def test_ablation_removes_what_the_loss_does_not_need():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight.data[:, [1, 4]] = 0
    model[0].weight.data[[1, 4]] *= 100  # magnitude would keep these
    x = torch.randn(32, 4)
    score = scores.ablation((x, model(x).detach()), F.mse_loss, progress=False)
    small = simplify(model, x, 2 / 6, score)
    assert small[0].out_features == 4
    torch.testing.assert_close(small(x), model(x))


def test_a_layer_keeps_at_least_one_output_and_the_last_keeps_all():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.LayerNorm(2))
    small = simplify(model, torch.zeros(1, 4), 0.99)
    assert [small[0].out_features, small[2].in_features, small[2].out_features] == [1, 1, 2]


def test_a_dict_of_fractions_and_name_patterns_choose_the_layers():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.zeros(1, 4)

    def sizes(**options):
        small = simplify(model, x, **options)
        return [small[i].out_features for i in (0, 2, 4)]

    assert sizes(fraction={"2": 0.5}) == [8, 3, 2]
    assert sizes(fraction={"0": 0.25, "2": 0.5}) == [6, 3, 2]
    assert sizes(fraction=0.5, exclude=["2"]) == [4, 6, 2]
    assert sizes(fraction=0.5, include=["2", "4"]) == [8, 3, 2]
    with pytest.raises(ValueError, match=r"fraction must name layers among 0, got 2, 4, typo"):
        sizes(fraction={"0": 0.1, "2": 0.1, "4": 0.1, "typo": 0.1}, exclude=["2"])
    with pytest.raises(ValueError, match="among the layers that include and exclude select, got 4"):
        sizes(fraction=0.5, include=["4"])


def test_the_model_is_untouched_and_the_copy_is_an_ordinary_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    model[0].weight.requires_grad = False
    model[1].eval()
    model[0](torch.zeros(1, 4, dtype=torch.bfloat16)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    small = simplify(model, torch.zeros(3, 4, dtype=torch.bfloat16), 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert [module.training for module in small.modules()] == [True, True, False, True, True]
    assert not small[0].weight.requires_grad and small[0].bias.requires_grad and small[0].bias.grad is None
    assert {tensor.dtype for tensor in small.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert small[1].num_features == small[0].out_features == small[3].in_features == 4
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(torch.randn(5, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    fresh.load_state_dict(small.state_dict())


def test_masks_stay_on_what_is_kept():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    kept = {0: torch.rand(8, 6) > 0.5, 2: torch.rand(3, 8) > 0.5}
    for index, mask in kept.items():
        masks.attach_(model[index], "weight", mask)
    small = simplify(model, torch.zeros(1, 6), 0.5, random_scores)
    rows = torch.tensor([i for i in range(8) if i not in removed_by(model, 0.5, ["0"])["0"]])
    expected = {"0.weight": kept[0][rows], "2.weight": kept[2][:, rows]}
    assert list(small.state_dict()) == list(model.state_dict())

    def check_masks():
        found = masks.masked(small)
        assert found.keys() == expected.keys()
        for name, mask in expected.items():
            assert torch.equal(found[name], mask)
            assert bool((small.get_parameter(name)[~mask] == 0).all())

    check_masks()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        small(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        check_masks()
    assert torch.equal(masks.masked(model)["0.weight"], kept[0])


@pytest.mark.parametrize("per_output", [True, False])
def test_grids_stay_on_what_is_kept(per_output):
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 1))
    for layer in (model[0], model[2]):
        scale = torch.rand(layer.out_channels) + 0.5 if per_output else torch.tensor(0.5)
        grids.set_grid(layer, grids.GridRecord(Int8(), scale, torch.zeros_like(scale), input_scale=0.25))
        values = torch.randint(-127, 128, layer.weight.shape)
        layer.weight.data = values * (scale.reshape(-1, 1, 1) if per_output else scale)
    small = simplify(model, torch.zeros(1, 2, 5), 0.5, random_scores)
    rows = torch.tensor([i for i in range(8) if i not in removed_by(model, 0.5, ["0"])["0"]])
    for before, after, index in ((model[0], small[0], (rows,)), (model[2], small[2], (slice(None), rows))):
        record = grids.grid_of(after)
        assert record.input_scale == 0.25 and record.format == Int8()
        expected = grids.integers(before.weight, grids.grid_of(before))[index]
        assert torch.equal(grids.integers(after.weight, record), expected)


class Direct(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x)) + self.a.weight.sum()


class FixedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv1d(3, 4, 1), nn.GroupNorm(2, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.conv(x).view(-1, 8))


class ReadsChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv1d(3, 4, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.last((x / x.shape[1]).flatten(1))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else self.a(x)


def tied():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[4].weight = model[2].weight
    return model


def with_nan():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].running_mean[0] = torch.nan
    model[2].weight.data[0, 0] = torch.inf
    return model


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


REFUSED = {
    "unsupported": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)),
        ["3 (Softmax)"],
    ),
    "mixed": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Linear(2, 2)), ["1 (Unflatten)"]),
    "not the features": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Linear(1, 2)),
        ["3 (Linear)"],
    ),
    "pools over features": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 2)),
        ["1 (MaxPool1d)"],
    ),
    "tied": (tied, ["model must have a layer that can lose outputs, got 0 (Linear) and 2 (Linear) and 4 (Linear)"]),
    "direct": (Direct, ["a (Linear) has parameters that are used without calling it"]),
    "nan": (with_nan, ["1 (BatchNorm1d) has parameters that are NaN", "2 (Linear) has parameters that are NaN"]),
    "parametrized": (parametrized, ["0 (ParametrizedLinear) has tensors of unknown meaning"]),
    "lazy": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LazyLinear(2)), ["without values"]),
    "control flow": (Branches, ["model must be one that torch.fx can trace"]),
    "one layer": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), ["with another one behind it"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_changes_nothing(case):
    make, parts = REFUSED[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError) as error:
        simplify(model, torch.randn(2, 3), 0.5)
    for part in parts:
        assert part in str(error.value)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, nn.UninitializedParameter):
            assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))


@pytest.mark.parametrize(
    ("make", "part"), [(FixedView, "view"), (ReadsChannels, "truediv computes with the number of channels")]
)
def test_sizes_that_would_change_with_the_channels_are_refused(make, part):
    with pytest.raises(ValueError, match=part):
        simplify(make(), torch.randn(2, 3, 2), 0.5)


@pytest.mark.parametrize(
    ("score", "part"),
    [
        (lambda model, layers: {"0": torch.full((4, 3), torch.nan)}, "NaN or infinity for 0"),
        (lambda model, layers: {"0": torch.zeros(3)}, r"shape \(3,\) for 0, which has a weight of \(4, 3\)"),
        (lambda model, layers: {}, "NoneType for 0"),
        (lambda model, layers: None, "dict of tensors, got NoneType"),
        ("magnitude", "function of"),
    ],
)
def test_wrong_scores_are_errors(score, part):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises((TypeError, ValueError), match=part):
        simplify(model, torch.zeros(1, 3), 0.5, score)


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ({"model": "a model"}, TypeError, "model must be"),
        ({"example_inputs": torch.zeros(1, 4)}, ValueError, "example_inputs must fit the model"),
        ({"example_inputs": None}, ValueError, "example_inputs must fit the model"),
        ({"fraction": 1.0}, ValueError, "fraction must be at least 0 and below 1, got 1.0"),
        ({"fraction": -0.1}, ValueError, "fraction must be"),
        ({"fraction": float("nan")}, ValueError, "fraction must be"),
        ({"fraction": True}, TypeError, "fraction must be"),
        ({"fraction": None}, TypeError, "fraction must be"),
        ({"fraction": {"0": 2}}, ValueError, r"fraction\['0'\] must be"),
        ({"fraction": {}}, ValueError, "fraction must name"),
        ({"include": ["typo*"]}, ValueError, "include must match"),
        ({"exclude": "0"}, TypeError, "exclude must be"),
    ],
)
def test_wrong_arguments_are_errors(arguments, error, part):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(error, match=part):
        simplify(**({"model": model, "example_inputs": torch.zeros(1, 3), "fraction": 0.5} | arguments))
