"""Activations that packed layers compute: found in Sequentials and traced models, and only where nothing else sees."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.activations import MODULES, activated, activation_of, is_fused
from pycompress.explaining import explain
from pycompress.formats import Int8, Sparse
from pycompress.fusing import traced_pairs
from pycompress.layers import PackedLinear
from pycompress.packing import pack
from pycompress.validation.fidelity import layer_errors

X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
ACTIVATIONS = [
    (nn.ReLU, "relu"),
    (lambda: nn.ReLU(inplace=True), "relu"),
    (nn.GELU, "gelu"),
    (nn.SiLU, "silu"),
    (lambda: nn.SiLU(inplace=True), "silu"),
    (nn.Tanh, "tanh"),
    (nn.Sigmoid, "sigmoid"),
]


class Net(nn.Module):
    """Layers and activations as attributes; `mode` says how they are called."""

    def __init__(self, act, mode=""):
        super().__init__()
        torch.manual_seed(0)
        self.mode, self.count = mode, 0
        self.fc, self.act, self.head, self.end = nn.Linear(12, 12), act(), nn.Linear(12, 3), nn.Tanh()

    def forward(self, x, scale=None):
        self.count += 1
        y = self.fc(x)
        if scale is not None:
            y = y * scale
        if self.mode == "data" and y.sum() > 1e9:
            return y
        if self.mode == "tensors alone" and not isinstance(x, torch.Tensor):
            return self.end(self.head(self.act(y)))
        if self.mode == "tensors alone":
            return self.end(self.head(self.act(y + 1)))
        if self.mode == "other user":
            return self.end(self.head(self.act(y) + y))
        if self.mode == "twice":
            return self.end(self.act(self.head(self.act(y))))
        if self.mode == "keyword":
            return self.end(self.head(self.act(input=y)))
        return self.end(self.head(self.act(y)))


@pytest.mark.parametrize(("act", "name"), ACTIVATIONS)
@pytest.mark.parametrize("build", [lambda act: nn.Sequential(nn.Linear(12, 5), act()), Net])
def test_every_activation_is_fused_and_comes_back_from_a_file(tmp_path, build, act, name):
    model = build(act)
    packed = pack(model, X, Sparse(), force=True)
    layer, behind = (packed[0], packed[1]) if isinstance(packed, nn.Sequential) else (packed.fc, packed.act)
    assert (layer.activation, type(behind), is_fused(behind)) == (name, nn.Identity, True)
    assert explain(packed)[0].kind == f"Linear+{type(act()).__name__}"
    assert [key for key, _ in packed.named_modules()] == [key for key, _ in model.named_modules()]
    with torch.no_grad():
        torch.testing.assert_close(packed(X), model(X))
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(X), packed(X))
    artifact.save(packed, tmp_path / "model")
    assert torch.equal(artifact.load(tmp_path / "model", into=lambda: build(act))(X), packed(X))
    assert {row.error < 1e-5 for row in layer_errors(model, packed, X).layers} == {True}


def test_files_say_what_is_fused(tmp_path):
    packed = pack(Net(nn.GELU), X, Int8(), force=True)
    artifact.save(packed, tmp_path / "model")
    assert [path for path, layer in artifact.describe(tmp_path / "model").layers.items() if layer.fused] == [
        "act",
        "end",
    ]
    again = artifact.load(tmp_path / "model", into=lambda: Net(nn.GELU))
    assert torch.equal(again(X), packed(X))
    assert is_fused(again.act)
    assert artifact.to_bytes(again) == (tmp_path / "model").read_bytes()
    assert torch.equal(artifact.load(tmp_path / "model", into=again)(X), packed(X))
    with pytest.raises(ValueError, match="act, part of a packed layer in the file and Linear in the model"):
        artifact.load(tmp_path / "model", into=lambda: Net(lambda: nn.Linear(12, 12)))


@pytest.mark.parametrize("mode", ["data", "tensors alone", "other user", "twice", "keyword"])
def test_an_activation_is_left_where_something_else_sees(mode):
    model = Net(nn.ReLU, mode).eval()
    packed = pack(model, X, Sparse(), force=True)
    assert packed.fc.activation is None
    assert isinstance(packed.act, nn.ReLU)
    with torch.no_grad():
        torch.testing.assert_close(packed(X), model(X))


def test_arguments_that_are_not_given_have_their_defaults():
    model = Net(nn.ReLU).eval()
    assert pack(model, X, Sparse(), force=True).fc.activation == "relu"
    assert pack(model, {"x": X}, Sparse(), force=True).fc.activation == "relu"
    packed = pack(model, (X, torch.tensor(2.0)), Sparse(), force=True)
    assert packed.fc.activation is None
    with torch.no_grad():
        torch.testing.assert_close(packed(X, 3.0), model(X, 3.0))


def test_tracing_leaves_the_model_as_it_is():
    model = Net(nn.ReLU)
    before = copy.deepcopy(model.__dict__)
    assert set(traced_pairs(model, X)) == {model.fc, model.head}
    assert model.count == before["count"] == 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("change", ["hook", "pre-hook", "approximation", "subclass", "two places", "functional"])
def test_what_is_not_just_the_function_is_left(change):
    model = Net(nn.GELU).eval()
    if change == "hook":
        model.act.register_forward_hook(lambda module, args, output: output + 1)
    elif change == "pre-hook":
        model.act.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    elif change == "approximation":
        model.act = nn.GELU(approximate="tanh")
    elif change == "subclass":
        model.act = type("Mine", (nn.ReLU,), {"forward": lambda self, x: x * 2})()
    elif change == "two places":
        model.other = model.act
    else:
        model.__dict__["act"] = nn.functional.gelu
        del model._modules["act"]
    packed = pack(model, X, Sparse(), force=True)
    assert packed.fc.activation is None
    with torch.no_grad():
        torch.testing.assert_close(packed(X), model(X))


def test_names_of_activations():
    assert {activation_of(cls()) for cls in MODULES.values()} == set(MODULES)
    assert activation_of(nn.GELU(approximate="tanh")) is activation_of(nn.Softmax()) is activation_of(None) is None
    for name, cls in MODULES.items():
        assert torch.equal(activated(X, name), cls()(X))
        layer = PackedLinear(kernels.pack(torch.eye(12), Sparse()), name)
        torch.testing.assert_close(layer(X), cls()(X), rtol=3e-7, atol=2e-7)  # torch's GELU cancels in its tail


def test_packed_layers_are_leaves_of_the_graph():
    model = nn.Sequential(PackedLinear(kernels.pack(torch.eye(12), Int8())), Net(nn.ReLU))
    packed = pack(model, X, Sparse(), force=True)
    assert (packed[0].activation, packed[1].fc.activation) == (None, "relu")
