"""PackedLinear as a module: its numbers, its state, its copies, its refusals."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pycompress import kernels
from pycompress.formats import Int8, Sparse
from pycompress.layers import LayerDecision, PackedLinear, decisions, set_decision

DECISION = LayerDecision("fc", "Linear+ReLU", Int8(), "native/avx2", 32, 9.0, 3.0, 3.0, 2.9, 3.1, "faster")


def weight_of(density, out=13, inputs=37, seed=0):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((out, inputs)).astype(np.float32)
    return weight * (generator.random((out, inputs)) < density)


def make(kind, seed=0, bias=True, activation=None):
    """A layer of each stored form."""
    weight = weight_of(0.2 if "sparse" in kind else 1.0, seed=seed)
    vector = np.linspace(-1, 1, 13, dtype=np.float32) + seed if bias else None
    if kind == "int8":
        packed = kernels.pack(weight, Int8(), vector)
    elif kind == "int8-static":
        packed = kernels.pack(weight, Int8(), vector, input_scale=0.03 + seed)
    elif kind == "sparse":
        packed = kernels.pack(weight, Sparse(), vector)
    else:
        scale = np.full(13, 0.03 + seed, np.float32)
        integers = np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)
        packed = kernels.pack(integers, Sparse(), vector, scale=scale)
    return PackedLinear(packed, activation, DECISION)


KINDS = ["int8", "int8-static", "sparse", "sparse-int8"]
KEYS = {
    "int8": {"weight", "scale"},
    "int8-static": {"weight", "scale", "input_scale"},
    "sparse": {"weight_gaps", "weight_values"},
    "sparse-int8": {"weight_gaps", "weight_values", "scale"},
}


@pytest.fixture
def x():
    return torch.randn(5, 37, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_kernel(kind, activation, bias, x):
    layer = make(kind, bias=bias, activation=activation)
    y = layer(x)
    assert torch.equal(y, kernels.linear(x, layer.packed, activation))
    dense = nn.functional.linear(x, torch.from_numpy(layer.packed.unpack()))
    if bias:
        dense += torch.tensor(layer.packed.bias)
    if activation:
        dense = dense.relu()
    assert (y - dense).abs().max() < (0.2 if "int8" in kind and "sparse" not in kind else 1e-4)
    assert (layer.in_features, layer.out_features) == (37, 13)


@pytest.mark.parametrize("shape", [(37,), (0, 37), (1, 37), (2, 3, 37), (2, 0, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_leading_dimensions_and_dtypes(shape, dtype):
    layer = make("int8")
    x = torch.randn(shape).to(dtype)
    y = layer(x)
    assert y.shape == (*shape[:-1], 13)
    assert y.dtype == dtype
    rows = layer(x.reshape(-1, 37).float()).to(dtype)
    assert torch.equal(y.reshape(-1, 13), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_casts_leave_it_as_it_is(kind, x):
    layer = make(kind)
    expected = layer(x)
    for cast in (layer.half(), layer.to(torch.bfloat16), layer.double(), layer.to("cpu"), layer.train()):
        assert torch.equal(cast(x), expected)


def test_refuses_input_that_requires_grad(x):
    layer = make("int8")
    message = r"x must not require grad: PackedLinear\(37 -> 13\) is for inference only; train the dense model"
    with pytest.raises(ValueError, match=message):
        layer(x.requires_grad_())
    with torch.no_grad():
        assert layer(x).shape == (5, 13)
    with torch.inference_mode():
        assert layer(x).shape == (5, 13)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda: np.zeros((1, 37), np.float32), TypeError, "x must be a torch CPU tensor, got ndarray"),
        (lambda: None, TypeError, "x must be a torch CPU tensor, got NoneType"),
        (lambda: torch.zeros(1, 37, dtype=torch.float64), TypeError, "x must be float32"),
        (lambda: torch.zeros(1, 36), ValueError, "x must have 37 features"),
        (lambda: torch.zeros(1, 37, device="meta"), ValueError, "x must be a dense CPU tensor"),
    ],
)
def test_wrong_input(bad, error, message):
    with pytest.raises(error, match=message):
        make("sparse")(bad())


def test_wrong_construction():
    with pytest.raises(TypeError, match="packed must be a PackedWeight, got ndarray"):
        PackedLinear(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"activation must be one of .*'relu'.* got 'swish'"):
        PackedLinear(make("int8").packed, "swish")


@pytest.mark.parametrize("kind", KINDS)
def test_has_no_parameters_and_a_canonical_state(kind):
    layer = make(kind)
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    state = layer.state_dict()
    assert set(state) == KEYS[kind] | {"bias"}
    assert set(make(kind, bias=False).state_dict()) == KEYS[kind]
    if kind.startswith("int8"):
        assert state["weight"].dtype == torch.int8
        assert state["weight"].shape == (13, 37)
    else:
        assert state["weight_gaps"].dtype == torch.uint8
        assert state["weight_values"].dtype == (torch.int8 if kind == "sparse-int8" else torch.float32)
        assert len(state["weight_values"]) == round(layer.packed.density * 13 * 37)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_keeps_the_bits(kind, x):
    source, target = nn.Sequential(make(kind), nn.ReLU()), nn.Sequential(make(kind, seed=1), nn.ReLU())
    assert not torch.equal(source(x), target(x))
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    result = target.load_state_dict(torch.load(file, weights_only=True))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(source(x), target(x))
    assert target[0].decision == DECISION


@pytest.mark.parametrize("assign", [True, False])
def test_strict_loading_lists_all_keys_and_changes_nothing(assign, x):
    layer = nn.Sequential(make("int8-static"))
    before = layer(x)
    state = make("sparse", seed=1).state_dict(prefix="0.")
    with pytest.raises(RuntimeError) as raised:
        layer.load_state_dict(state, assign=assign)
    message = str(raised.value)
    assert 'Missing key(s) in state_dict: "0.weight", "0.scale", "0.input_scale"' in message
    assert 'Unexpected key(s) in state_dict: "0.weight_gaps", "0.weight_values"' in message
    result = layer.load_state_dict({"0.bias": torch.zeros(13), "0.other": torch.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["0.other"]
    assert result.missing_keys == ["0.weight", "0.scale", "0.input_scale"]
    expected = before - torch.tensor(make("int8-static").packed.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("int8", "weight", torch.zeros(13, 37), "weight must be torch.int8, got torch.float32"),
        ("int8", "weight", torch.zeros(37, 13, dtype=torch.int8), "size mismatch for weight"),
        ("int8", "scale", torch.zeros(13), "scale must be positive"),
        ("int8", "scale", torch.full((13,), torch.nan), "scale must be finite"),
        ("int8", "bias", torch.zeros(12), "size mismatch for bias"),
        ("int8-static", "input_scale", torch.tensor(-1.0), "input_scale must be "),
        ("sparse", "weight_gaps", torch.zeros(3, dtype=torch.uint8), "gaps must hold one code"),
        ("sparse", "weight_values", [1.0], "weight_values must be a tensor"),
    ],
)
def test_bad_state_is_refused_and_changes_nothing(kind, key, value, message, x):
    model = nn.Sequential(nn.Identity(), make(kind))
    before = model(x)
    state = model.state_dict()
    state[f"1.{key}"] = value
    with pytest.raises(RuntimeError, match=f"(?s)While loading 1: .*{message}"):
        model.load_state_dict(state)
    assert torch.equal(model(x), before)


def test_gaps_past_the_end_are_refused():
    layer = make("sparse")
    state = layer.state_dict()
    state["weight_gaps"] = torch.full_like(state["weight_gaps"], 254)
    with pytest.raises(RuntimeError, match="gaps must stay inside shape"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_keep_the_bits(kind, x):
    layer = make(kind, activation="relu")
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert (twin.activation, twin.decision) == ("relu", DECISION)
        assert twin.state_dict().keys() == layer.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(twin.state_dict().values(), layer.state_dict().values(), strict=True)
        )


def test_pickle_of_a_pruned_layer_is_small():
    weight = np.zeros((512, 512), np.float32)
    weight[:, ::32] = 1
    assert len(pickle.dumps(PackedLinear(kernels.pack(weight, Sparse())))) < 60_000


def test_repr_tells_the_shape_the_format_and_the_kernel():
    text = repr(make("sparse", activation="relu"))
    for part in ("in_features=37", "out_features=13", "Sparse(", "bias=True", "activation='relu'", "kernel="):
        assert part in text


def test_decisions_are_found_by_the_present_names():
    model = nn.Sequential(make("int8"), nn.Linear(13, 2))
    left = LayerDecision("fc2", "Linear", reason="not faster")
    set_decision(model[1], left)
    outer = pickle.loads(pickle.dumps(copy.deepcopy(nn.ModuleDict({"inner": model}))))
    found = decisions(outer)
    assert list(found) == ["inner.0", "inner.1"]
    assert found["inner.0"].name == "inner.0"
    assert (found["inner.0"].speedup, found["inner.1"].reason) == (3.0, "not faster")
    assert "decision" not in "".join(outer.state_dict())
    set_decision(outer["inner"][0], None)
    assert list(decisions(outer)) == ["inner.1"]


def test_wrong_decisions():
    with pytest.raises(TypeError, match="module must be"):
        set_decision(1, DECISION)
    with pytest.raises(TypeError, match="decision must be a LayerDecision or None"):
        set_decision(nn.Linear(1, 1), "dense")
    with pytest.raises(TypeError, match="model must be"):
        decisions(None)
