"""Quantization: the formulas, exactly; zeros, shared weights, calibration, bad input."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import grids, kernels, masks
from pycompress.kernels.packed import int8_scale

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.ModuleList([nn.Linear(96, 11), nn.Linear(11, 3)])

    def forward(self, x):
        for layer in (self.body, *self.head):
            x = layer(x)
        return x


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


LAYERS = ["body.0", "head.0", "head.1"]
FORMATS = [
    pc.Int8(),
    *(
        pc.Affine(bits=b, signed=s, per_channel=c)
        for b in (2, 4, 8, 12, 16)
        for s in (True, False)
        for c in (True, False)
    ),
    *(pc.FixedPoint(bits=b) for b in (0, 4, 8, 15)),
]


def rounded(w, format):
    """The formulas of `formats.py`, in NumPy: integers and weights."""
    w = w.reshape(w.shape[0], -1)
    one = np.float32(1)
    if isinstance(format, pc.Int8):
        scale = int8_scale(w)[:, None]
        q = np.clip(np.rint(w / scale), -127, 127)
        return q, q * scale
    if isinstance(format, pc.FixedPoint):
        q = np.rint(w * one * 2**format.bits)
        return q, q / np.float32(2**format.bits)
    axis, keep = (1, True) if format.per_channel else (None, True)
    low, high = w.min(axis=axis, keepdims=keep), w.max(axis=axis, keepdims=keep)
    steps = 2**format.bits - 1
    scale = (high - low) / np.float32(steps)
    first = np.float32(-(2 ** (format.bits - 1)) if format.signed else 0)
    zero_point = first - low / scale
    q = np.clip(np.rint(w / scale + zero_point), first, first + steps)
    return q, (q - zero_point) * scale


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_weights_are_the_formula_s_and_give_the_integers_back(format):
    model = make()
    before = {name: model.get_submodule(name).weight.detach().numpy().copy() for name in LAYERS}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    summary = pc.quantize_(model, format)
    assert [layer.name for layer in summary.layers] == LAYERS and str(summary).count("\n") == 2
    for layer, (name, w) in zip(summary.layers, before.items(), strict=True):
        module = model.get_submodule(name)
        q, expected = rounded(w, format)
        weight = module.weight.detach()
        assert np.array_equal(weight.numpy(), expected.reshape(w.shape)), name
        found = grids.integers(weight, grids.grid_of(module))
        assert np.array_equal(found.long().numpy(), q.reshape(w.shape)), name
        assert torch.equal(grids.weight_from(found, grids.grid_of(module)), weight)
        assert module.weight.requires_grad and module.weight.is_leaf and masks.mask_of(module) is None
        assert layer.error == pytest.approx(np.linalg.norm(expected - w.reshape(len(w), -1)) / np.linalg.norm(w))
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])]
    assert changed == [f"{name}.weight" for name in LAYERS] and list(model.state_dict()) == list(state)


def test_int8_is_what_the_kernel_packs():
    model = make()
    weight = model.head[0].weight.detach().clone()
    pc.quantize_(model, pc.Int8())
    record = grids.grid_of(model.head[0])
    q = grids.integers(model.head[0].weight, record)
    packed = kernels.pack(weight, pc.Int8())
    assert np.array_equal(packed.canonical_weight(), q.numpy()) and np.array_equal(packed.scale, record.scale.numpy())
    assert np.array_equal(
        kernels.pack(q, pc.Int8(), scale=record.scale).unpack(), model.head[0].weight.detach().numpy()
    )


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_again_changes_nothing(format):
    model = make()
    pc.quantize_(model, format)
    first = copy.deepcopy(model.state_dict())
    pc.quantize_(model, format)
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "format", [pc.Int8(), pc.Affine(bits=4), pc.Affine(per_channel=True), pc.FixedPoint(6)], ids=str
)
@pytest.mark.parametrize("finalized", [True, False])
def test_pruned_weights_stay_exactly_zero(format, finalized):
    model = make()
    pc.prune_(model, sparsity=0.7)
    kept = {name: masks.mask_of(model.get_submodule(name)) for name in LAYERS}
    if finalized:
        pc.finalize_(model)
    pc.quantize_(model, format)
    for name in LAYERS:
        module = model.get_submodule(name)
        weight, record = module.weight.detach(), grids.grid_of(module)
        assert bool((weight[~kept[name]] == 0).all())
        assert grids.has_zero(record) == (not isinstance(format, pc.Affine))
        q = grids.integers(weight, record)
        assert torch.equal(grids.weight_from(q, record, weight == 0), weight)
        mask = masks.mask_of(module)
        assert mask is None if finalized else torch.equal(mask, kept[name])
    if not finalized:
        with torch.no_grad():
            model.head[0].weight += 1
        model(torch.randn(4, 2, 6, 6))
        assert bool((model.head[0].weight[~kept["head.0"]] == 0).all())


def test_pruning_after_rounding_stays_on_the_grid():
    model = make()
    pc.quantize_(model, pc.Affine(bits=4))
    pc.prune_(model, sparsity=0.5)
    for name in LAYERS:
        module = model.get_submodule(name)
        assert grids.integers(module.weight, grids.grid_of(module)) is not None


def test_training_leaves_the_grid_and_rounding_returns():
    model = make()
    pc.quantize_(model, pc.Int8())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    F.cross_entropy(model(torch.randn(8, 2, 6, 6)), torch.randint(0, 3, (8,))).backward()
    optimizer.step()
    layer = model.head[1]
    assert grids.integers(layer.weight, grids.grid_of(layer)) is None
    pc.quantize_(model, pc.Int8())
    assert grids.integers(layer.weight, grids.grid_of(layer)) is not None
    pc.quantize_(model, pc.FixedPoint(3))
    assert grids.grid_of(layer).format == pc.FixedPoint(3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.embedding.weight
        self.again = nn.Linear(6, 6)
        self.again.weight = self.hidden.weight

    def forward(self, ids):
        return self.out(10 * self.again(self.hidden(self.embedding(ids))))


def test_shared_weights_are_rounded_once_and_calibrated_apart():
    torch.manual_seed(0)
    model = Tied()
    expected, _ = rounded(model.out.weight.detach().numpy(), pc.Int8())
    summary = pc.quantize_(model, pc.Int8(), calibration=(torch.arange(10), torch.arange(10)))
    assert [layer.name for layer in summary.layers] == ["hidden", "out"]
    records = [grids.grid_of(m) for m in (model.embedding, model.out)]
    for record in records:
        assert np.array_equal(grids.integers(model.out.weight, record).numpy(), expected)
    assert records[0].input_scale is None and records[1].input_scale > 0
    assert grids.grid_of(model.hidden).input_scale != grids.grid_of(model.again).input_scale
    assert model.out.weight is model.embedding.weight


@pytest.mark.parametrize("form", ["pair", "batches"])
def test_calibration_finds_the_largest_input_of_each_layer(form):
    model = make().train()
    model.body[1].running_mean.uniform_(-1, 1)
    state = copy.deepcopy(model.state_dict())
    x, y = torch.randn(300, 2, 6, 6), torch.zeros(300)
    x[290, 1, 2, 3] = -9.25
    expected = {}
    twin = copy.deepcopy(model).eval()
    for name in LAYERS:
        twin.get_submodule(name).register_forward_pre_hook(lambda _, a, n=name: expected.update({n: a[0].abs().max()}))
    with torch.no_grad():
        twin(x)
    rng = torch.get_rng_state()
    summary = pc.quantize_(model, pc.Int8(), (x, y) if form == "pair" else [(x[:100], y[:100]), (x[100:], y[100:])])
    assert torch.equal(torch.get_rng_state(), rng) and all(module.training for module in model.modules())
    assert np.float32(summary.layers[0].input_scale) == np.float32(9.25) / np.float32(127)
    for layer in summary.layers:
        scale = grids.grid_of(model.get_submodule(layer.name)).input_scale
        assert scale == layer.input_scale == pytest.approx(float(expected[layer.name]) / 127, rel=1e-5)
        assert scale == float(np.float32(scale))
        assert not model.get_submodule(layer.name)._forward_pre_hooks
    for key in ("body.1.running_mean", "body.1.num_batches_tracked", "head.0.bias"):
        assert torch.equal(model.state_dict()[key], state[key])
    pc.quantize_(model, pc.Int8())
    assert grids.grid_of(model.head[0]).input_scale is None


def test_a_layer_whose_inputs_are_zero_keeps_run_time_scales():
    model = nn.Sequential(nn.Linear(3, 3))
    assert pc.quantize_(model, pc.Int8(), (torch.zeros(4, 3), torch.zeros(4))).layers[0].input_scale is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = make().to(dtype)
    expected = {n: rounded(model.get_submodule(n).weight.detach().float().numpy(), pc.Int8()) for n in LAYERS}
    pc.quantize_(model, pc.Int8())
    for name, (q, w) in expected.items():
        module = model.get_submodule(name)
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight.detach().view(w.shape), torch.from_numpy(w).to(dtype))
        assert np.array_equal(grids.integers(module.weight, grids.grid_of(module)).view(w.shape).numpy(), q)


@pytest.mark.parametrize("bits", [2, 8, 9, 11, 16])
def test_integers_of_16_bit_floats_can_be_told_apart(bits):
    torch.manual_seed(0)
    layer = nn.Linear(500, 20, dtype=torch.bfloat16)
    q, _ = rounded(layer.weight.detach().float().numpy(), pc.Affine(bits=bits))
    pc.quantize_(layer, pc.Affine(bits=bits))
    assert np.array_equal(grids.integers(layer.weight, grids.grid_of(layer)).numpy(), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ranges_that_are_narrow_for_their_distance_from_zero(dtype):
    """Where fp32 cannot hold the zero point exactly, weights are on the grid all the same, and hardly moved."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(200):
        center, width = 10 ** (torch.rand(2, generator=generator) * torch.tensor([8.0, 9.0]) - torch.tensor([4.0, 9.0]))
        layer = nn.Linear(16, 2).to(dtype)
        layer.weight.data = (center * (1 + width * torch.randn(2, 16, generator=generator))).to(dtype)
        before = layer.weight.detach().double()
        format = pc.Affine(bits=2 + trial % 15, signed=trial % 2 == 0, per_channel=trial % 3 == 0)
        pc.quantize_(layer, format)
        record = grids.grid_of(layer)
        assert grids.integers(layer.weight, record) is not None
        step = record.scale.double().reshape(-1, 1) / 2
        slack = before.abs().max() * (4 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)
        assert bool(((layer.weight.double() - before).abs() <= step + slack).all())


def test_weights_that_are_not_on_their_grid_after_rounding_are_refused(monkeypatch):
    model = make()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(grids, "integers", lambda *_: None)
    with pytest.raises(ValueError, match=r"must fit the grid of Int8\(\), got 'body.0': .*; 'head.0': .*; 'head.1'"):
        pc.quantize_(model, pc.Int8())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(grids.grid_of(module) is None for module in model.modules())


def test_odd_weights():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(1, 5), nn.Linear(0, 3), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[1].weight, 0.37)
    model[4].weight.data = torch.tensor([[0, 1e-40, 0, -1e-40], [1e-38, 3e38, -3e38, 1]])
    for format in (pc.Int8(), pc.Affine(bits=4, per_channel=True)):
        twin = copy.deepcopy(model)
        if isinstance(format, pc.Affine):
            with pytest.raises(ValueError, match=r"'4'.*max - min"):
                pc.quantize_(twin, format)
            del twin[4]
        pc.quantize_(twin, format)
        for layer in twin:
            assert grids.integers(layer.weight, grids.grid_of(layer)) is not None
        assert bool((twin[0].weight == 0).all())
        torch.testing.assert_close(twin[1].weight, model[1].weight)
    with pytest.raises(ValueError, match=r"'4': a weight of magnitude 3e\+38, whose integer needs more than 32 bits"):
        pc.quantize_(model, pc.FixedPoint(bits=8))


X, Y = torch.randn(6, 2, 6, 6), torch.zeros(6)
BAD = {
    "format": ({"format": "int8"}, TypeError, "format must be Int8"),
    "sparse": ({"format": pc.Sparse()}, TypeError, "format must be Int8"),
    "class": ({"format": pc.Int8}, TypeError, "format must be Int8"),
    "affine with data": ({"format": pc.Affine(), "calibration": (X, Y)}, ValueError, "calibration must be None"),
    "no match": ({"format": pc.Int8(), "include": ["tail"]}, ValueError, "include must match"),
    "iterator": ({"format": pc.Int8(), "calibration": iter([(X, Y)])}, TypeError, "calibration must be"),
    "empty": ({"format": pc.Int8(), "calibration": []}, ValueError, "calibration must not be empty"),
    "lengths": ({"format": pc.Int8(), "calibration": (X, Y[:3])}, ValueError, "calibration must"),
    "nan": (
        {"format": pc.Int8(), "calibration": (X.masked_fill(X > 2, torch.nan), Y)},
        ValueError,
        "calibration must give finite inputs of every layer, got 'body.0'",
    ),
    "shape": (
        {"format": pc.Int8(), "calibration": (X[:, :1], Y)},
        ValueError,
        "calibration inputs must fit .* channels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_change_nothing(case):
    options, kind, message = BAD[case]
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        pc.quantize_(model, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert all(grids.grid_of(module) is None for module in model.modules())


def test_bad_models_name_all_layers():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        pc.quantize_(None, pc.Int8())
    with pytest.raises(ValueError, match="must have a Linear"):
        pc.quantize_(nn.ReLU(), pc.Int8())
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.data[0, 0] = torch.nan
    model[2].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"'0': 1 NaN or infinite entries; '2': 1 NaN or infinite"):
        pc.quantize_(model, pc.Int8())
    idle = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    idle.forward = lambda x: idle["used"](x)
    with pytest.raises(ValueError, match=r"calibration must reach every layer.*\['idle'\]"):
        pc.quantize_(idle, pc.Int8(), (torch.ones(2, 2), torch.ones(2)))
