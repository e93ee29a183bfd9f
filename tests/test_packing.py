"""Packing under a clock that the test controls: what is replaced, what stays, and why."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pycompress import chains, grids, kernels, masks
from pycompress.explaining import explain
from pycompress.formats import FixedPoint, Int8, Sparse
from pycompress.kernels.packed import int8_scale
from pycompress.layers import PackedLinear, decisions
from pycompress.packing import pack

US = 2.0**-20  # about a microsecond, and sums of it are exact


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a layer runs: a dense one takes 100 US, a packed one what `us` says."""

    class Clock:
        now = 0.0
        us = {Int8: 50.0, Sparse: 50.0}  # noqa: RUF012
        relu_us = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    dense, packed, relu = nn.Linear.forward, PackedLinear.forward, nn.ReLU.forward

    def dense_forward(self, input):
        clock.now += 100 * US
        return dense(self, input)

    def packed_forward(self, x):
        clock.now += clock.us[type(self.packed.format)] * US
        return packed(self, x)

    def relu_forward(self, input):
        clock.now += clock.relu_us * US
        return relu(self, input)

    def chain_call(weights, activations):
        call = chain(weights, activations)

        def as_long_as_one_by_one(x):
            clock.now += sum(clock.us[type(weight.format)] for weight in weights) * US
            return call(x)

        return call and as_long_as_one_by_one

    chain = chains.chain_call
    monkeypatch.setattr(chains, "chain_call", chain_call)
    monkeypatch.setattr(nn.Linear, "forward", dense_forward)
    monkeypatch.setattr(PackedLinear, "forward", packed_forward)
    monkeypatch.setattr(nn.ReLU, "forward", relu_forward)
    return clock


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5))


def quantized_(layer, input_scale=None):
    """Round a layer to the Int8 grid, as quantize_ does."""
    with torch.no_grad():
        scale = torch.from_numpy(int8_scale(layer.weight.numpy()))
        layer.weight.copy_(torch.round(layer.weight / scale[:, None]) * scale[:, None])
    grids.set_grid(layer, grids.GridRecord(Int8(), scale, torch.zeros_like(scale), input_scale))
    return layer


def pruned_(layer, density=0.25):
    generator = torch.Generator().manual_seed(0)
    masks.attach_(layer, "weight", torch.rand(layer.weight.shape, generator=generator) < density)
    return layer


def kinds(model):
    return [type(module).__name__ for module in model]


X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))


def test_a_slower_candidate_leaves_the_layer_dense(clock):
    model = mlp()
    clock.us[Int8] = 200.0
    packed = pack(model, X, Int8(), _clock=clock)
    assert kinds(packed) == kinds(model)
    assert torch.equal(packed(X), model.eval()(X))
    for name, decision in decisions(packed).items():
        assert (decision.name, decision.format, decision.kernel, decision.rows) == (name, None, None, 6)
        assert decision.reason == "Int8 not faster"
        assert decision.dense_us == pytest.approx(100 * US * 1e6)
        assert decision.packed_us == pytest.approx(200 * US * 1e6)
        assert (decision.low, decision.speedup, decision.high) == (0.5, 0.5, 0.5)


def test_as_fast_is_not_faster(clock):
    clock.us[Int8] = 100.0
    assert "PackedLinear" not in kinds(pack(mlp(), X, Int8(), _clock=clock))


def test_a_faster_candidate_replaces_the_layer_and_takes_the_relu(clock):
    model = mlp()
    clock.relu_us = 10.0
    packed = pack(model, X, Int8(), _clock=clock)
    assert kinds(packed) == ["PackedLinear", "Identity", "Dropout", "PackedLinear", "Identity", "PackedLinear"]
    assert [name for name, _ in packed.named_modules()] == [name for name, _ in model.named_modules()]
    assert [packed[i].activation for i in (0, 3, 5)] == ["relu", "relu", None]
    first, last = packed[0].decision, packed[5].decision
    assert (first.name, first.kind, first.format, first.kernel) == ("0", "Linear+ReLU", Int8(), packed[0].packed.kernel)
    assert first.speedup == pytest.approx(110 / 50)
    assert first.low > 1
    assert first.reason == "faster"
    assert (last.kind, last.speedup) == ("Linear", pytest.approx(2.0))
    torch.testing.assert_close(packed(X), model.eval()(X), atol=0.05, rtol=0.05)


def test_the_best_lower_end_wins(clock):
    model = nn.Sequential(quantized_(pruned_(nn.Linear(12, 9))), nn.Tanh(), quantized_(pruned_(nn.Linear(9, 9))))
    for best, other in ((Int8, Sparse), (Sparse, Int8)):
        clock.us = {best: 30.0, other: 60.0}
        packed = pack(model, X, _clock=clock)
        assert [type(packed[i].packed.format) for i in (0, 2)] == [best, best]
        assert packed[0].decision.speedup == pytest.approx(100 / 30)
    clock.us = {Int8: 120.0, Sparse: 150.0}
    packed = pack(model, X, _clock=clock)
    assert decisions(packed)["0"].reason == "Int8 and Sparse not faster"
    assert decisions(packed)["0"].packed_us == pytest.approx(120 * US * 1e6)


def test_real_clock_decides_by_its_own_numbers():
    packed = pack(mlp(), X, Int8())
    for decision in explain(packed):
        assert (decision.format is not None) == (decision.low > 1)
        assert 0 < decision.low <= decision.speedup <= decision.high


@pytest.mark.parametrize("input_scale", [None, 0.05])
def test_exactly_the_recorded_integers_are_packed(clock, input_scale):
    model = nn.Sequential(quantized_(nn.Linear(12, 9), input_scale))
    record = grids.grid_of(model[0])
    [layer] = pack(model, X, _clock=clock)
    assert layer.packed.format == Int8()
    assert layer.packed.input_scale == (None if input_scale is None else pytest.approx(input_scale))
    np.testing.assert_array_equal(layer.packed.canonical_weight(), grids.integers(model[0].weight, record))
    np.testing.assert_array_equal(layer.packed.scale, record.scale)
    np.testing.assert_array_equal(layer.packed.unpack(), model[0].weight.detach())


def test_pruned_and_quantized_is_stored_as_few_integers(clock):
    model = nn.Sequential(quantized_(pruned_(nn.Linear(12, 9)), 0.05))
    [layer] = pack(model, X, Sparse(), _clock=clock)
    assert set(layer.state_dict()) == {"weight_gaps", "weight_values", "scale", "bias"}
    assert layer.state_dict()["weight_values"].dtype == torch.int8
    np.testing.assert_array_equal(layer.packed.unpack(), model[0].weight.detach())


def test_without_format_only_what_keeps_the_numbers_is_tried(clock):
    stale, fixed = quantized_(nn.Linear(9, 9)), nn.Linear(9, 9)
    with torch.no_grad():
        stale.weight += 1e-3
    grids.set_grid(fixed, grids.GridRecord(FixedPoint(4), torch.tensor(0.0625), torch.tensor(0.0)))
    model = nn.Sequential(nn.Linear(12, 9), pruned_(nn.Linear(9, 9)), stale, fixed, pruned_(nn.Linear(9, 9), 0.8))
    packed = pack(model, X, _clock=clock)
    assert kinds(packed) == ["Linear", "PackedLinear", "Linear", "Linear", "Linear"]
    assert packed[1].packed.format == Sparse()
    reasons = [decision.reason for decision in explain(packed)]
    assert reasons[0] == reasons[4] == "neither quantized to Int8 nor pruned"
    assert "the weight was changed since it was quantized" in reasons[2]
    assert "FixedPoint(bits=4) has no kernel yet" in reasons[3]
    rounded = pack(model, X, Int8(), _clock=clock)
    assert kinds(rounded) == ["PackedLinear"] * 5
    assert "faster; the weight was changed" in rounded[2].decision.reason
    np.testing.assert_array_equal(rounded[2].packed.scale, int8_scale(stale.weight.detach().numpy()))


class Touchy(nn.Module):
    """Changes its input in place."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(12)
        self.fc = pruned_(nn.Linear(12, 4))

    def forward(self, x):
        return self.fc(self.bn(x.mul_(2)))


def test_the_original_and_the_inputs_are_not_changed(clock):
    model, x = Touchy().train(), X.clone()
    model.fc.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    hooks = dict(model.fc._forward_pre_hooks)
    packed = pack(model, x, Sparse(), _clock=clock)
    assert torch.equal(x, X)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert model.fc.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert masks.mask_of(model.fc) is not None
    assert dict(model.fc._forward_pre_hooks) == hooks
    assert type(model.fc) is nn.Linear
    assert not decisions(model)
    assert isinstance(packed.fc, PackedLinear)
    assert not any(module.training for module in packed.modules())
    assert not any(p.requires_grad for p in packed.parameters())
    assert not masks.masked(packed)
    packed(X.clone())  # outside no_grad


def test_copies_and_pickles_keep_numbers_and_decisions(clock):
    clock.us = {Int8: 50.0, Sparse: 200.0}
    model = nn.Sequential(quantized_(nn.Linear(12, 9)), nn.ReLU(), pruned_(nn.Linear(9, 3)), nn.Linear(3, 2))
    packed = pack(model, X, _clock=clock)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), torch.load(file, weights_only=False)):
        assert decisions(twin) == decisions(packed)
        assert len(decisions(twin)) == 3
        assert torch.equal(twin(X), packed(X))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.alias = self.c

    def forward(self, x):
        return self.alias(self.c(self.b(self.a(x))))


def test_shared_modules_and_tied_weights(clock):
    packed = pack(Tied(), X, Int8(), _clock=clock)
    assert packed.a.packed is packed.b.packed
    assert packed.c is packed.alias
    assert packed.c.packed is not packed.a.packed
    assert (packed.a.decision.rows, packed.c.decision.rows) == (6, 12)  # called twice
    assert packed.c.decision.dense_us == pytest.approx(200 * US * 1e6)
    assert copy.deepcopy(packed).a.packed is packed.a.packed
    assert list(decisions(packed)) == ["a", "b", "c"]


def test_a_record_on_one_of_the_tied_layers_serves_all(clock):
    model = Tied()
    quantized_(model.a)
    packed = pack(model, X, _clock=clock)
    assert packed.a.packed is packed.b.packed
    assert isinstance(packed.c, nn.Linear)


class Own(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


class Renamed(nn.Linear):
    pass


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.own, self.hooked, self.read = (
            nn.Linear(12, 12),
            Own(12, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 12),
        )
        self.keyword, self.computed, self.renamed = nn.Linear(12, 12), nn.Linear(12, 12), Renamed(12, 12)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)
        nn.utils.parametrizations.weight_norm(self.computed)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)

    def forward(self, x):
        x = self.hooked(self.own(x))
        x = self.read(x) + self.read.bias
        x = self.keyword(input=x)
        x = self.renamed(self.computed(x))
        x = self.attention(x, x, x)[0]
        return self.encoder(x)


def test_layers_that_cannot_be_replaced_stay_dense_and_say_why(clock):
    model, x = Odd().eval(), X.reshape(2, 3, 12)
    packed = pack(model, x, Int8(), force=True)
    reasons = {name: decision.reason for name, decision in decisions(packed).items()}
    assert isinstance(packed.renamed, PackedLinear)
    assert packed.renamed.decision.kind == "Renamed"
    expected = {
        "unused": "never called by example_inputs",
        "own": "Own has a forward of its own",
        "hooked": "it has forward hooks, which must be removed first",
        "read": "its bias is read outside its own forward",
        "keyword": "it is called with other arguments than one plain tensor",
        "computed": "its weight is computed by a parametrization, which must be removed first",
        "attention": "forced, not measured",
        "encoder.self_attn": "forced, not measured",
        "encoder.linear2": "forced, not measured",
        "renamed": "forced, not measured",
    }
    assert {name: reasons[name] for name in expected} == expected
    assert isinstance(packed.encoder.linear1, PackedLinear)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), atol=0.1, rtol=0.1)


def test_one_relu_after_many_layers_is_fused_everywhere(clock):
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(12, 9), relu, nn.Sequential(nn.Linear(9, 9), relu), nn.Tanh(), relu)
    packed = pack(model, X, Sparse(), _clock=clock)
    assert kinds(packed) == ["PackedLinear", "Identity", "Sequential", "Tanh", "ReLU"]
    assert kinds(packed[2]) == ["PackedLinear", "Identity"]
    torch.testing.assert_close(packed(X), model(X).detach())


def test_a_dense_layer_keeps_its_relu(clock):
    clock.us[Int8] = 200
    assert kinds(pack(mlp(), X, Int8(), _clock=clock)) == kinds(mlp())


def test_a_model_that_is_a_linear_becomes_a_packed_one(clock):
    packed = pack(nn.Linear(12, 3), X, Int8(), _clock=clock)
    assert isinstance(packed, PackedLinear)
    assert "(model)" in str(explain(packed))


def test_no_rows_no_measurement(clock):
    packed = pack(mlp(), X[:0], Int8(), _clock=clock)
    assert {decision.reason for decision in explain(packed)} == {"example_inputs give it no rows"}


def test_explain_lists_every_layer_with_weights(clock):
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(1, 2, 3), "rnn": nn.LSTM(3, 4), "norm": nn.LayerNorm(3), "fc": nn.Linear(12, 3)}
    )
    assert [(d.name, d.kind, d.reason) for d in explain(model)] == [
        ("conv", "Conv2d", "not packed yet"),
        ("rnn", "LSTM", "not packed yet"),
        ("fc", "Linear", "not packed yet"),
    ]
    text = str(explain(pack(mlp(), X, Int8(), _clock=clock)))
    assert len(text.splitlines()) == 4
    for part in ("Linear+ReLU", "Int8", "reference", "2.00 (", "95.4", "47.7", "faster", "speedup (95 %)"):
        assert part in text or (part == "reference" and kernels.backend_name() != "reference")
    by_hand = PackedLinear(kernels.pack(np.eye(3, dtype=np.float32), Int8()))
    assert explain(by_hand)[0].reason == "packed by hand"


def test_explain_tells_the_kernel_of_this_machine(clock):
    packed = pack(mlp(), X, Int8(), _clock=clock)
    packed[0].decision = copy.copy(packed[0].decision)
    object.__setattr__(packed[0].decision, "kernel", "native/neon")
    decision = explain(packed)[0]
    assert decision.kernel == packed[0].packed.kernel
    assert decision.reason == "faster; measured with native/neon"
