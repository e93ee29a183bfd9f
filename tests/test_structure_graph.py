"""Networks whose channels branch and meet: the smaller network computes what the model does with zeros in it."""

import copy
import functools
import re

import pytest
import torch
from architectures import NETWORKS, Head, conv_bn, settle_
from drawn import Drawn
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import artifact, scores
from pycompress.selection import LAYERS
from pycompress.structure import simplify


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(name, dtype=torch.float64):
    make, shapes, shrinks = NETWORKS[name]
    inputs = tuple(torch.randn(3, *shape, dtype=dtype) for shape in shapes)
    model = settle_(make()).to(dtype)
    for parameter in model.parameters():  # values of float32 occur twice
        parameter.data += 1e-6 * torch.randn_like(parameter)
    return model, inputs, shrinks


def flat(outputs):
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return [x for part in outputs for x in flat(part)] if isinstance(outputs, tuple) else [outputs]


def removed_inputs(before, after):
    """The inputs that a layer has lost: found by the values of its weight, which are all different."""
    found = torch.isin(before.weight, after.weight).flatten(2).any(2) if before.weight.ndim > 2 else None
    found = torch.isin(before.weight, after.weight) if found is None else found
    assert int(found.sum()) == after.weight.shape[0] * after.weight.shape[1]
    groups, inputs = getattr(before, "groups", 1), before.weight.shape[1]
    if groups > 1 and inputs == 1:
        return (~found.reshape(groups, -1).any(1)).nonzero()[:, 0]
    gone = (~found.any(0)).nonzero()[:, 0]
    return torch.cat([gone + i * inputs for i in range(groups)])


def zeroed(model, small):
    """A copy of the model where the inputs that layers of the small one have not are set to 0, as they enter."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            dim = -1 if isinstance(layer, nn.Linear) else 1
            gone = removed_inputs(layer, small.get_submodule(name))
            if name.endswith("out_proj"):  # attention does not call it
                layer.weight.data[:, gone] = 0
            layer.register_forward_pre_hook(lambda _, args, dim=dim, gone=gone: args[0].index_fill(dim, gone, 0))
    return model


@pytest.mark.parametrize("score", [scores.magnitude, scores.random(seed=3)], ids=["magnitude", "random"])
@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_equals_the_model_with_zeros_for_the_removed_channels(name, fraction, score, tmp_path):
    model, inputs, shrinks = made(name)
    before = copy.deepcopy(model.state_dict())
    small = simplify(model, inputs, fraction, score)
    outputs = flat(small(*inputs))
    for output, expected in zip(outputs, flat(zeroed(model, small)(*inputs)), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, flat(model(*inputs)), strict=True))
    for layer, module in model.named_modules():
        if isinstance(module, LAYERS):
            count, together = module.weight.shape[0], shrinks.get(layer, 0)
            gone = together * round(fraction * count / together) if together else 0
            assert small.get_submodule(layer).weight.shape[0] == count - gone, layer
    assert list(small.state_dict()) == list(model.state_dict()) and type(small) is type(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    artifact.save(small, tmp_path / "small")
    loaded = artifact.load(tmp_path / "small", NETWORKS[name][0]().double()).eval()
    for output, expected in zip(flat(loaded(*inputs)), outputs, strict=True):
        assert torch.equal(output, expected)
    assert repr(loaded) == repr(small)


def test_networks_drawn_at_random():
    shrunk = 0
    for seed in range(16):
        model = settle_(Drawn(seed).double())
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
        small = simplify(model, x, 0.5, scores.random(seed=seed))
        torch.testing.assert_close(small(x), zeroed(model, small)(x), rtol=1e-9, atol=1e-9, msg=f"seed {seed}")
        shrunk += small.last[2].in_features < model.last[2].in_features
    assert shrunk > 8


@pytest.mark.parametrize("name", ["resnet", "shuffle", "encoder"])
def test_the_result_trains_and_can_be_simplified_again(name):
    model, inputs, _ = made(name, torch.float32)
    small = simplify(model, inputs, 0.25).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    sum(output.square().sum() for output in flat(small(*inputs))).backward()
    optimizer.step()
    again = simplify(small.eval(), inputs, 0.25)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in small.parameters())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.two(torch.relu(self.one(x)))
        return self.head(x.mean((2, 3)))


def test_the_scores_of_outputs_that_go_together_are_added():
    def score(model, layers):
        values = {"stem": [1.0, 4.0, 2.0, 3.0], "one": [6.0, 5, 4, 3, 2, 1], "two": [9.0, 1.0, 3.0, 2.0]}
        assert set(layers) == set(values)
        return {name: torch.tensor(values[name]) for name in layers}

    model, x = Residual(), torch.randn(2, 1, 3, 3)
    small = simplify(model, x, 0.5, score)  # sums 10, 5, 5, 5: the first of equals go
    assert torch.equal(small.stem.weight, model.stem.weight[[0, 3]])
    assert torch.equal(small.two.weight, model.two.weight[[0, 3]][:, :3])
    assert torch.equal(small.head.weight, model.head.weight[:, [0, 3]])


def test_include_exclude_and_fractions_by_name():
    model, x = Residual(), torch.randn(2, 1, 3, 3)

    def sizes(fraction=0.5, **options):
        small = simplify(model, x, fraction, **options)
        return [getattr(small, name).out_channels for name in ("stem", "one", "two")]

    assert sizes() == [2, 3, 2]
    assert sizes(exclude=["stem"]) == sizes(exclude=["two"]) == sizes(include=["one"]) == [4, 3, 4]
    assert sizes({"one": 0.5}) == [4, 3, 4]
    assert sizes({"stem": 0.25, "one": 0.5, "two": 0.25}) == [3, 3, 3]
    with pytest.raises(ValueError, match=r"fraction must be the same .* got stem: 0.5 and two: 0.25"):
        sizes({"stem": 0.5, "two": 0.25})
    with pytest.raises(ValueError, match=r"fraction must be the same .* got stem: 0.5 and two: none"):
        sizes({"stem": 0.5})
    with pytest.raises(
        ValueError, match=r"cannot follow: stem \(Conv2d\) and two \(Conv2d\): two .* keeps all outputs"
    ):
        sizes(include=["stem", "one"])
    with pytest.raises(ValueError, match=r"must have a layer that can lose outputs, got stem \(Conv2d\) and two"):
        sizes(exclude=["one", "two"])


def test_what_stays_is_an_error_only_where_it_was_chosen():
    model, inputs, _ = made("encoder")
    assert simplify(model, inputs, 0.5).embed.out_features == 8
    with pytest.raises(ValueError, match=r"embed \(Linear\) and down \(Linear\): .*norms.0 \(LayerNorm\) normalizes"):
        simplify(model, inputs, 0.5, include=["embed", "down"])
    with pytest.raises(ValueError, match="add joins its channels with some that stay"):
        simplify(model, inputs, {"embed": 0.5, "down": 0.5})
    with pytest.raises(ValueError, match=r"layer that can lose outputs, got .*LayerNorm"):
        simplify(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(2, 3), 0.5)


def test_compress_takes_networks_with_branches():
    model, (x,), _ = made("inverted residual", torch.float32)
    result = pc.compress(model, None, None, example_inputs=x, simplify=0.5)
    assert result.summary.parameters[1] < 0.5 * result.summary.parameters[0]
    expected = simplify(model, x, 0.5).eval()(x)
    torch.testing.assert_close(result.model(x), expected, rtol=1e-4, atol=1e-4)


class OneCall(nn.Module):
    """A convolution, an operation, and what takes its result."""

    def __init__(self, operation, last=None, channels=8):
        super().__init__()
        self.conv, self.other, self.operation = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1), operation
        self.last = nn.Conv2d(channels, 3, 1) if last is None else last

    def forward(self, x):
        return self.last(self.operation(self.conv(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.last = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = x.flatten(2)
        weights = torch.cdist(self.q(x), self.k(x)).softmax(-1)
        return self.last(torch.cdist(weights, self.v(x).transpose(1, 2)))


class Stretched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(2, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.a(x) * self.b(x).mean(1, keepdim=True))


class WrongSizes(nn.Module):
    """Computes a size of its channels that is only right for all of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.last(x.reshape(x.shape[0], x.shape[1] - 4 + 4, -1, 8).expand(-1, 2 * x.size(1) - 8, -1, -1))


class ReadsLayer(nn.Module):
    """Computes with a size that a module holds, which is another one in the smaller model."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.conv(x) * self.conv.out_channels**-0.5)


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x)) + torch.randn(())


class Shrunk(nn.Module):
    def forward(self, x):
        return x * (x.size(1) ** -0.5)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "softmax over channels": (lambda: OneCall(nn.Softmax(1)), ["conv (Conv2d)", "operation (Softmax)"]),
    "a fixed view": (
        lambda: OneCall(Call(lambda x: x.view(-1, 8, 64)), nn.Conv1d(8, 2, 1)),
        ["conv (Conv2d)", "view in operation (Call) has fixed sizes"],
    ),
    "all sizes fixed": (
        lambda: OneCall(Call(lambda x: x.view(x.size(0), 2, 4, 8, 8).flatten(1, 2))),
        ["view in operation (Call) has fixed sizes"],
    ),
    "fixed parts": (
        lambda: OneCall(Call(lambda x: torch.cat(x.split(4, 1)[::-1], 1))), ["split in operation (Call)"]
    ),
    "other parts": (
        lambda: OneCall(Call(lambda x: torch.cat([x.chunk(3, 1)[i] for i in range(3)], 1))),
        ["chunk in operation (Call) cuts channels into parts of different sizes"],
    ),
    "one channel": (
        lambda: OneCall(Call(lambda x: x[:, :1]), channels=1), ["getitem in operation (Call) takes channels by"]
    ),
    "every other channel": (lambda: OneCall(Call(lambda x: x[:, ::2]), channels=4), ["takes channels by"]),
    "mean of channels": (lambda: OneCall(Call(lambda x: x.mean(1, True)), channels=1), ["mean in operation (Call)"]),
    "padded channels": (lambda: OneCall(Call(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))), channels=10), ["pad in"]),
    "pixels": (lambda: OneCall(nn.PixelShuffle(2), channels=2), ["operation (PixelShuffle)"]),
    "3-D": (
        lambda: OneCall(nn.Sequential(nn.Unflatten(1, (-1, 1)), nn.Conv3d(8, 8, 1), nn.Flatten(1, 2))),
        ["operation.1 (Conv3d)"],
    ),
    "reads the channels": (lambda: OneCall(Shrunk()), ["mul in operation (Shrunk) computes with the number"]),
    "attention": (Attention, ["q (Linear)", "k (Linear)", "v (Linear)", "cdist"]),
    "stretched": (Stretched, ["b (Linear)", "mul stretches its channels"]),
    "several at once": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 1), nn.Softmax(1), conv_bn(8, 8), nn.LocalResponseNorm(2), nn.Conv2d(8, 8, 1), Head(8)
        ),
        ["0 (Conv2d)", "1 (Softmax)", "2.0 (Conv2d)", "3 (LocalResponseNorm)"],
    ),
    "sizes that do not follow": (WrongSizes, ["sizes follow its channels"]),
    "sizes of layers": (ReadsLayer, ["must not compute with the sizes of its layers"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_changes_nothing(case):
    make, parts = REFUSED[case]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^model must ") as error:
        simplify(model, torch.randn(2, 2, 8, 8), 0.5)
    for part in parts:
        assert re.search(re.escape(part), str(error.value))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Constant(nn.Module):
    """Makes a tensor in its forward."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x + torch.arange(4)).relu())


def test_tensors_that_the_forward_makes_are_constants():
    model, x = Constant(), torch.randn(3, 4)
    small = simplify(model, x, 0.5)
    assert small.one.out_features == 4 and list(small.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(small(x), zeroed(model, small)(x))


def test_a_model_that_draws_numbers_is_no_error():
    assert simplify(Draws(), torch.randn(3, 4), 0.5).one.out_features == 4


def test_exclude_is_the_way_out_of_an_error():
    model, x = Attention(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="cdist"):
        simplify(model, x, 0.5)
    whole = nn.Sequential(model, nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    small = simplify(whole, x, 0.5, exclude=["0.[qkv]"])
    assert small[1].out_features == 4 and small[0].q.out_features == 8


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [functools.partial(nn.GroupNorm, 4), nn.InstanceNorm2d])
def test_a_smaller_normalization_is_loaded(kind, affine, tmp_path, recwarn):
    model = nn.Sequential(nn.Conv2d(1, 12, 1), kind(12, affine=affine), nn.Conv2d(12, 2, 1))
    x = torch.randn(2, 1, 3, 3)
    small = simplify(model, x, 0.5)
    sizes = [
        getattr(small[1], name) for name in ("num_groups", "num_channels", "num_features") if hasattr(small[1], name)
    ]
    assert sizes in ([2, 6], [6])
    artifact.save(small, tmp_path / "file")
    loaded = artifact.load(tmp_path / "file", model)
    assert torch.equal(loaded(x), small(x)) and repr(loaded) == repr(small) and not recwarn.list
