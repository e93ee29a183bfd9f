"""Convolutions that hand int8 images to each other: the same numbers, whatever way a model takes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import convolutions, images, kernels
from pycompress.convolutions import Geometry, PackedConv2d
from pycompress.int8_images import Int8Images, int8_images

X = torch.randn(3, 3, 17, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """One ReLU for all places, as in torchvision's blocks; a function of torch in the middle."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.expand, self.deep = nn.Conv2d(24, 70, 1), nn.Conv2d(70, 70, 5, padding=2, groups=70)
        self.project, self.last = nn.Conv2d(70, 24, 1), nn.Conv2d(24, 9, 3)
        self.act = nn.ReLU6(inplace)
        self.fc = nn.Linear(9, 4)

    def forward(self, x):
        x = self.act(self.first(x))
        y = F.relu6(self.expand(x), inplace=self.act.inplace)
        y = self.project(self.act(self.deep(y)))
        x = F.relu(self.last(x + y))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def quantized(model, x=X):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    pc.quantize_(model.eval(), pc.Int8(), (x, torch.zeros(len(x))))
    return model


def packed(model, x=X, **options):
    return pc.pack(model, x, force=True, **options)


def scales(model):
    return [m.output_scale for m in model.modules() if isinstance(m, PackedConv2d)]


def one_by_one(model, x=X):
    """The same model in which nothing is handed over and no channel comes last."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, PackedConv2d):
            p = layer.packed
            geometry = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation, "groups": p.groups}
            layer.packed = kernels.pack_conv(p.weight, p.format, p.bias, p.scale, p.input_scale, **geometry)
            layer.output_scale = None
    return plain


@pytest.mark.parametrize("inplace", [False, True])
def test_the_numbers_are_those_of_layer_by_layer(inplace):
    model = quantized(Residual(inplace))
    fast = packed(model)
    with torch.no_grad():
        assert torch.equal(fast(X), one_by_one(fast)(X))
        assert (fast(X) - model(X)).norm() < 0.1 * model(X).norm()
    handed = dict(zip(("first", "expand", "deep", "project", "last"), scales(fast), strict=True))
    assert [name for name, scale in handed.items() if scale is not None] == ["expand", "deep"]
    assert fast.expand.activation == fast.deep.activation == "relu6" and fast.first.activation is None
    assert fast.deep.packed.input_scale == fast.expand.output_scale
    assert all("channels last" in d.reason for d in pc.explain(fast)[:5])


def test_what_hooks_see_are_floats():
    fast = packed(quantized(Residual()))
    expected, seen = one_by_one(fast), {}
    for name in ("expand", "act", "deep"):
        hook = lambda m, a, y, name=name: seen.setdefault(name, []).append((y + 0).clone())  # noqa: E731
        getattr(fast, name).register_forward_hook(hook)
    with torch.no_grad():
        x = F.relu6(expected.first(X))
        y = F.relu6(expected.expand(x))
        fast(X)
    for name in ("expand", "deep"):
        [output] = seen[name]
        assert type(output) is torch.Tensor and output.dtype == torch.float32
    assert (seen["expand"][0] - y).abs().max() <= fast.expand.output_scale
    assert len(seen["act"]) == 2


def test_int8_images_are_floats_for_everything_else():
    values = torch.tensor([[[[0, 127]], [[3, -127]]], [[[-128, -128]], [[-128, -128]]]], dtype=torch.int8)
    x = int8_images(values, 0.5, "relu")
    floats = torch.tensor([[[0.0, 63.5]], [[1.5, -63.5]]])
    assert torch.equal((x * 2)[0], floats * 2) and torch.isnan(x + 0)[1].all()
    assert x.dtype == torch.float32 and x.shape == values.shape and type(F.max_pool2d(x, 1)) is torch.Tensor
    assert F.relu(x) is x and torch.relu(x) is x and x.relu() is x
    assert F.relu6(x) is not x and F.hardtanh(x, 0.0, 6.0) is not x and F.hardtanh(x, 0.0, 5.0)[0].max() == 5
    y = int8_images(values, 0.5, "relu6")
    assert nn.ReLU6()(y) is y and F.relu6(y) is y and nn.ReLU(inplace=True)(y) is y
    assert F.hardtanh(y, -1.0, 1.0) is not y and nn.Tanh()(y) is not y
    with pytest.raises(RuntimeError, match=r"^add_ cannot change int8 images in place"):
        x.add_(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_16_bit_floats_gives_them_also_behind_int8_images(tmp_path, dtype):
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3)).to(dtype).eval()

    torch.manual_seed(0)
    model, x = build(), X.to(dtype)
    pc.quantize_(model, pc.Int8(), calibration=(x, torch.zeros(len(x))))
    fast = pc.pack(model, x, force=True)
    assert [layer.output_scale is not None for layer in (fast[0], fast[2], fast[3])] == [True, True, False]
    pc.save(fast, tmp_path / "model")
    torch._dynamo.reset()
    with torch.no_grad():
        y = fast(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, model(x), atol=0.1, rtol=0.1)
        for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), pc.load(tmp_path / "model", build)):
            assert torch.equal(again(x), y) and again(x).dtype == dtype
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")(x)
        assert compiled.dtype == dtype and torch.equal(compiled, y)
        assert fast.float()(x.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="dtype must be float32"):
        PackedConv2d(fast[0].packed, dtype=torch.float64)


def test_an_image_of_nan_stays_nan_and_the_others_do_not_notice():
    fast = packed(quantized(Residual()))
    x = X.clone()
    x[1, 2, 3, 4] = torch.nan
    with torch.no_grad():
        y, good = fast(x), fast(X)
    assert torch.isnan(y[1]).all() and torch.equal(y[[0, 2]], good[[0, 2]])


def test_another_input_scale_is_served_by_floats():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    layer = PackedConv2d(kernels.pack_conv(weight, input_scale=0.25, channels_last=True))
    integers = torch.randint(-127, 128, (2, 3, 5, 5), dtype=torch.int8)
    for scale in (0.25, 0.5):
        assert torch.equal(layer(int8_images(integers, scale)), layer(integers.float() * scale))
    first = PackedConv2d(kernels.pack_conv(weight, input_scale=0.25))  # channels first
    assert torch.equal(first(int8_images(integers, 0.25)), layer(integers.float() * 0.25))


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(4 * 15 * 14, 2)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        return self.fc(x.view(len(x), -1))


def test_a_model_that_needs_the_other_memory_format_is_packed_layer_by_layer():
    fast = packed(quantized(Views()))
    assert scales(fast) == [None, None] and not fast.a.packed.channels_last
    with torch.no_grad():
        assert fast(X).shape == (3, 2)


class Several(nn.Module):
    """Outputs with two readers, one of them not a convolution; and a module that is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, m, 1) for n, m in ((3, 4), (4, 4), (4, 4), (4, 3)))

    def forward(self, x):
        y = self.a(x)
        z = self.c(self.b(y)) + self.b(self.b(y))
        return self.d(z), y


def test_what_has_other_readers_is_not_handed_over():
    fast = packed(quantized(Several()))
    assert scales(fast) == [None] * 4 or not fast.a.packed.channels_last
    model = nn.Sequential(*(nn.Conv2d(n, 4, 1) for n in (3, 4, 4)))
    fast = packed(quantized(model))
    assert [scale is None for scale in scales(fast)] == [False, False, True]
    with torch.no_grad():
        assert torch.equal(fast(X), one_by_one(fast)(X))


def test_files_copies_and_pickles_keep_it():
    model = quantized(Residual())
    fast = packed(model)
    with torch.no_grad():
        y = fast(X)
        file = io.BytesIO(pickle.dumps(fast))
        for again in (copy.deepcopy(fast), pickle.load(file)):
            assert scales(again) == scales(fast) and torch.equal(again(X), y)


def test_artifacts_keep_it(tmp_path):
    fast = packed(quantized(Residual()))
    pc.save(fast, tmp_path / "m.safetensors")
    again = pc.load(tmp_path / "m.safetensors", into=Residual)
    assert scales(again) == scales(fast) and again.deep.packed.channels_last
    with torch.no_grad():
        assert torch.equal(again(X), fast(X))


class Clock:
    """A clock by which only some calls take time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("last", "adopted"), [(0.5, True), (2.0, False)])
def test_the_whole_model_decides(monkeypatch, last, adopted):
    clock = Clock()

    def slow(forward, seconds):
        def run(layer, x):
            clock.now += seconds(layer)
            return forward(layer, x)

        return run

    # one by one no packed convolution is faster than its dense one
    monkeypatch.setattr(nn.Conv2d, "forward", slow(nn.Conv2d.forward, lambda layer: 1.0))
    monkeypatch.setattr(
        PackedConv2d, "forward", slow(PackedConv2d.forward, lambda layer: last if layer.packed.channels_last else 1.5)
    )
    monkeypatch.setattr(images, "compare", compare := counted(images.compare))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    monkeypatch.setattr(convolutions, "geometry", lambda *_: Geometry((1, 1), ((0, 0),) * 2, (1, 1), 1))
    fast = pc.pack(quantized(model), X, _clock=clock)
    assert compare.calls == 1
    assert [type(fast[i]) for i in (0, 2)] == ([PackedConv2d] * 2 if adopted else [nn.Conv2d] * 2)
    reasons = [d.reason for d in pc.explain(fast)]
    if adopted:
        assert reasons == ["int8 images, channels last: the model is 2.00x as fast as layer by layer"] * 2
        assert type(fast[1]) is nn.Identity
    else:
        assert reasons == ["Int8 not faster"] * 2 and type(fast[1]) is nn.ReLU


def counted(function):
    def call(*args, **options):
        call.calls += 1
        return function(*args, **options)

    call.calls = 0
    return call


def test_refused_scales():
    weight = kernels.pack_conv(torch.ones(1, 1, 1, 1), input_scale=1.0)
    with pytest.raises(ValueError, match=r"^output_scale must be None"):
        PackedConv2d(weight, output_scale=0.5)
    last = kernels.pack_conv(torch.ones(1, 1, 1, 1), input_scale=1.0, channels_last=True)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^output_scale must be"):
            PackedConv2d(last, output_scale=scale)
    assert type(PackedConv2d(last, output_scale=0.5)(torch.ones(1, 1, 1, 1))) is Int8Images
    assert "output_scale=0.5" in repr(PackedConv2d(last, output_scale=0.5))
