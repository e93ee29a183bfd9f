"""Batch normalization as part of packed layers: where it really follows a layer, and only there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import folding, grids
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.layers import PackedLinear

X = torch.randn(4, 3, 12, 11, generator=torch.Generator().manual_seed(0))


def trained(model):
    """Random parameters and statistics, some factors negative and one zero."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = torch.randn(tensor.shape, generator=generator)
                if name == "running_var":
                    tensor.data = tensor.abs() + 0.5
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.weight.data[-1] = 0
    return model.eval()


class Block(nn.Module):
    """A residual block as torchvision writes it, and a normalization behind a ReLU as some networks have it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.bn2, self.conv2 = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.odd, self.pre = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.pre(F.relu(self.odd(x)))


def test_a_block_is_folded_where_normalization_follows():
    model = trained(Block())
    pc.quantize_(model, pc.Int8(), (X, torch.zeros(4)))
    before = copy.deepcopy(model.state_dict())
    packed = pc.pack(model, X, force=True)
    assert [type(m) for m in (packed.conv1, packed.bn1, packed.conv2, packed.bn2, packed.odd, packed.pre)] == [
        PackedConv2d, nn.Identity, PackedConv2d, nn.Identity, PackedConv2d, nn.BatchNorm2d,
    ]  # fmt: skip
    assert [d.kind for d in pc.explain(packed)][:2] == ["Conv2d+BatchNorm2d", "Conv2d+BatchNorm2d"]
    with torch.no_grad():
        assert (packed(X) - model(X)).norm() < 0.05 * model(X).norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("input_scale", [None, "calibrated"])
def test_the_integers_stay(input_scale):
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6()))
    pc.quantize_(model, pc.Int8(), (X, torch.zeros(4)) if input_scale else None)
    integers = grids.integers(model[0].weight, grids.grid_of(model[0]))
    packed = pc.pack(model, X, force=True)
    signs = torch.sign(model[1].weight).to(torch.int8).reshape(-1, 1, 1, 1)
    assert torch.equal(torch.from_numpy(packed[0].packed.canonical_weight()), integers * signs)
    assert packed[0].activation == "relu6" and packed[0].packed.input_scale == grids.grid_of(model[0]).input_scale
    with torch.no_grad():
        assert torch.allclose(packed(X)[:, -1], F.relu6(model[1].bias[-1]).expand(4, 10, 9))


@pytest.mark.parametrize(
    ("model", "x", "kinds"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh()), torch.randn(9, 5), [PackedLinear]),
        (nn.Sequential(nn.Conv1d(3, 7, 2), nn.BatchNorm1d(7)), torch.randn(2, 3, 9), [PackedConv1d]),
        (nn.Sequential(nn.Linear(5, 7), nn.Dropout(), nn.BatchNorm1d(7)), torch.randn(9, 5), [PackedLinear]),
    ],
)
def test_every_kind(model, x, kinds):
    model = trained(model)
    packed = pc.pack(model, x, pc.Int8(), force=True)
    assert [type(m) for m in packed if hasattr(m, "packed")] == kinds
    assert not any(isinstance(m, nn.BatchNorm1d) for m in packed)
    with torch.no_grad():
        assert (packed(x) - model(x)).norm() < 0.05 * model(x).norm()


class Ways(nn.Module):
    """`mode` says what else there is beside a layer and a normalization."""

    def __init__(self, mode):
        super().__init__()
        self.mode, self.a, self.b = mode, nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.end, self.other = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.a(x)
        if self.mode == "other reader":
            return self.end(self.norm(y) + y)
        if self.mode == "two norms":
            return self.end(self.norm(y) + self.other(y))
        if self.mode == "weight read":
            return self.end(self.norm(y) + F.conv2d(x, self.a.weight))
        if self.mode == "two layers":
            return self.end(self.norm(y) + self.norm(self.b(x)))
        if self.mode == "returned":
            return self.end(self.norm(y)), y
        if self.mode == "in between":
            return self.end(self.norm(y * 2))
        return self.end(self.norm(y))


@pytest.mark.parametrize(
    "mode",
    ["other reader", "two norms", "weight read", "two layers", "returned", "in between", "hook", "no statistics"],
)
def test_left_alone(mode):
    model = trained(Ways(mode))
    if mode == "hook":
        model.norm.register_forward_hook(lambda m, a, y: y + 1)
    if mode == "no statistics":
        model.norm.running_mean = model.norm.running_var = None
    packed = pc.pack(model, X, pc.Int8(), force=True)
    assert type(packed.norm) is type(packed.other) is nn.BatchNorm2d
    with torch.no_grad():
        outputs = [model(X), packed(X)]
        y, packed_y = (output[0] if mode == "returned" else output for output in outputs)
    assert (packed_y - y).norm() < 0.05 * y.norm()
    plain = trained(Ways("plain"))
    assert type(pc.pack(plain, X, pc.Int8(), force=True).norm) is nn.Identity


def test_layers_that_stay_dense_keep_their_normalization():
    model = trained(Ways("plain"))
    packed = pc.pack(model, X)  # neither quantized nor pruned
    assert type(packed.a) is nn.Conv2d and type(packed.norm) is nn.BatchNorm2d
    assert torch.equal(packed(X), model(X))
    quantized = copy.deepcopy(model)
    pc.quantize_(quantized, pc.Int8())
    ticks = iter(range(10**9))
    packed = pc.pack(quantized, X, _clock=lambda: float(next(ticks)))  # every contestant takes the same time
    assert type(packed.a) is nn.Conv2d and type(packed.norm) is nn.BatchNorm2d
    assert pc.explain(packed)[0].reason == "Int8 not faster"
    assert torch.equal(packed(X), quantized(X))


def test_what_no_float_holds_is_not_folded():
    for name, value in (("running_var", 1e-40), ("weight", 1e38)):
        model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-45)))
        getattr(model[1], name).data[:] = value
        model[0].weight.data *= 1e30
        assert folding.fold_(model, lambda model=model: model(X), lambda layer: True) == {}


def test_artifacts(tmp_path):
    model = trained(Block())
    packed = pc.pack(model, X, pc.Int8(), force=True)
    pc.save(packed, tmp_path / "m")
    again = pc.load(tmp_path / "m", into=Block)
    assert type(again.bn1) is nn.Identity and type(again.pre) is nn.BatchNorm2d
    with torch.no_grad():
        assert torch.equal(again(X), packed(X))
    with pytest.raises(ValueError, match=r"bn1, part of a packed layer in the file and Linear in the model"):
        wrong = Block()
        wrong.bn1 = nn.Linear(2, 2)
        pc.load(tmp_path / "m", into=lambda: wrong)
