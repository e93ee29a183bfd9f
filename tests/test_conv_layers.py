"""Convolutions of models: packed by measurement or by force, calibrated, saved and loaded."""

import copy
import io
import pickle

import pytest
import torch
from hostile import Parts
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress import convolutions, kernels
from pycompress.artifact import ArtifactError, to_bytes
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.layers import PackedLinear

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class Same(nn.Conv2d):
    """Pads in its own forward, like the convolutions of EfficientNet."""

    def __init__(self, *args, before=0, after=1, **options):
        super().__init__(*args, **options)
        self.border = nn.ZeroPad2d((before, after, before, after))

    def forward(self, x):
        return F.conv2d(self.border(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(Same):
    def forward(self, x):
        return super().forward(x) * 2


class Dynamic(Same):
    def forward(self, x):
        more = x.shape[-1] % 2
        return F.conv2d(F.pad(x, (0, more, 0, more)), self.weight, self.bias, self.stride)


class Ones(Same):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), self.weight, self.bias)


class Standardised(Same):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_every_convolution_is_packed_when_asked_for():
    model = network()
    packed = pc.pack(model, X, pc.Int8(), force=True)
    kinds = [PackedConv2d, nn.Identity, PackedConv2d, nn.Identity, PackedConv2d]
    assert [type(layer) for layer in packed][:5] == kinds and type(packed[7]) is PackedLinear
    assert packed[0].activation == "relu6" and packed[2].activation == "relu"
    assert [d.kind for d in pc.explain(packed)] == ["Conv2d+ReLU6", "Conv2d+ReLU", "Conv2d", "Linear"]
    assert pc.explain(packed)[0].rows == 2
    with torch.no_grad():
        y, expected = packed(X), model(X)
    assert (y - expected).norm() < 0.05 * expected.norm()
    assert {type(layer) for layer in model} >= {nn.Conv2d, nn.Linear}  # the model itself is as it was


def test_calibration_gives_static_convolutions():
    model = network()
    summary = pc.quantize_(model, pc.Int8(), (X, torch.zeros(2)))
    packed = pc.pack(model, X, force=True)
    for layer, quantized in zip([packed[0], packed[2], packed[4], packed[7]], summary.layers, strict=True):
        assert layer.packed.input_scale == quantized.input_scale > 0
    assert torch.equal(torch.from_numpy(packed[0].packed.unpack()), model[0].weight.detach())
    with torch.no_grad():
        assert (packed(X) - model(X)).norm() < 0.05 * model(X).norm()


def test_without_a_format_a_plain_convolution_stays_dense():
    packed = pc.pack(network(), X)
    assert [d.reason for d in pc.explain(packed)[:3]] == ["neither quantized to Int8 nor pruned"] * 3
    four = pc.pack(network(), X, pc.Int4(), force=True)
    assert pc.explain(four)[0].reason == "Int4 has no kernel for convolutions"
    assert type(four[7]) is PackedLinear


class Clock:
    """A clock by which packed layers take `packed` seconds a call, and dense ones 1."""

    def __init__(self, monkeypatch, packed):
        self.now = 0.0
        for cls, seconds in ((nn.Conv2d, 1.0), (PackedConv2d, packed)):
            monkeypatch.setattr(cls, "forward", self.slow(cls.forward, seconds))
        monkeypatch.setattr(
            convolutions, "geometry", lambda *_: convolutions.Geometry((1, 1), ((0, 0),) * 2, (1, 1), 1)
        )

    def slow(self, forward, seconds):
        def run(layer, x):
            self.now += seconds
            return forward(layer, x)

        return run

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("seconds", "faster"), [(0.5, True), (2.0, False)])
def test_a_convolution_is_replaced_where_that_is_faster(monkeypatch, seconds, faster):
    clock = Clock(monkeypatch, seconds)
    packed = pc.pack(nn.Sequential(nn.Conv2d(3, 4, 3)), X, pc.Int8(), _clock=clock)
    assert isinstance(packed[0], PackedConv2d) == faster
    assert pc.explain(packed)[0].reason == ("faster" if faster else "Int8 not faster")


@pytest.mark.parametrize("before", [0, 1])
def test_a_subclass_that_pads_by_itself_is_packed(before):
    layer = Same(3, 6, 3, stride=2, padding=1, before=before).eval()
    packed = pc.pack(nn.Sequential(layer), X, pc.Int8(), force=True)
    assert packed[0].packed.padding == ((1 + before, 2),) * 2
    expected = layer(X)
    assert packed(X).shape == expected.shape
    assert (packed(X) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Scaled(3, 6, 3), "more than a convolution"),
        (Ones(3, 6, 3), "more than a convolution"),
        (Standardised(3, 6, 3), "more than a convolution"),
        (Dynamic(3, 6, 3), "depends on the size"),
        (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), "padding_mode is 'reflect'"),
        (nn.Conv2d(3, 6, 3).double(), "its weight is float64"),
    ],
)
def test_other_convolutions_stay_dense(layer, reason):
    model = nn.Sequential(layer)
    x = X.double() if layer.weight.dtype == torch.float64 else X
    packed = pc.pack(model, x, pc.Int8(), force=True)
    assert type(packed[0]) is type(layer) and reason in pc.explain(packed)[0].reason


def test_half_precision_models():
    for dtype in (torch.float16, torch.bfloat16):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()).to(dtype)
        y = pc.pack(model, X.to(dtype), pc.Int8(), force=True)(X.to(dtype))
        assert y.dtype == dtype and y.shape == (2, 6, 14, 14)


def layers():
    yield (
        PackedConv1d(kernels.pack_conv(torch.randn(4, 2, 3), bias=torch.ones(4), stride=2, groups=2), "relu"),
        (1, 4, 9),
    )
    yield (
        PackedConv2d(kernels.pack_conv(torch.randn(4, 2, 3, 3), input_scale=0.1, padding=((1, 0), (0, 2)))),
        (2, 2, 9, 9),
    )


def test_copies_pickles_and_state_dicts_keep_the_bits():
    for layer, shape in layers():
        x = torch.randn(shape)
        y = layer(x)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
        p = layer.packed
        empty = kernels.pack_conv(
            torch.zeros(p.shape),
            bias=p.bias,
            input_scale=p.input_scale,
            stride=p.stride,
            padding=p.padding,
            groups=p.groups,
        )
        other = type(layer)(empty, layer.activation)
        other.load_state_dict(layer.state_dict())
        for again in [*others, other]:
            assert torch.equal(again(x), y) and repr(again) == repr(layer)
        state = layer.state_dict()
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            layer.load_state_dict(state | {"weight": state["weight"][:1]})
        with pytest.raises(RuntimeError, match="Missing key"):
            layer.load_state_dict({key: value for key, value in state.items() if key != "scale"})
        assert torch.equal(layer(x), y)
        with pytest.raises(
            ValueError, match=r"^x must not require grad: PackedConv\dd\(\d -> 4\) is for inference only"
        ):
            layer(x.requires_grad_())


def test_wrong_arguments():
    signal, image = (layer.packed for layer, _ in layers())
    with pytest.raises(TypeError, match="packed must be a PackedConv"):
        PackedConv2d(kernels.pack(torch.ones(2, 2), pc.Int8()))
    with pytest.raises(ValueError, match="packed must be of a 2-D convolution"):
        PackedConv2d(signal)
    with pytest.raises(ValueError, match="activation must be one of"):
        PackedConv2d(image, "swish")
    with pytest.raises(TypeError, match="x must be a torch CPU tensor"):
        PackedConv2d(image)(3)


def test_artifacts(tmp_path):
    last = [nn.Conv2d(12, 5, 1), Same(5, 4, 1), nn.Flatten(2), nn.Conv1d(4, 6, 1)]
    model = nn.Sequential(*list(network())[:5], *last).eval()
    pc.quantize_(model, pc.Int8(), (X, torch.zeros(2)))
    packed = pc.pack(model, X, force=True)
    kept = [layer for layer in packed if isinstance(layer, PackedConv1d | PackedConv2d)]
    assert len(kept) == 6
    pc.save(packed, tmp_path / "model")
    for into in (copy.deepcopy(model), copy.deepcopy(packed)):
        again = pc.load(tmp_path / "model", into=into)
        assert repr(again) == repr(packed)
        assert torch.equal(again(X), packed(X))
        assert [d.reason for d in pc.explain(again)] == [d.reason for d in pc.explain(packed)]
    assert (tmp_path / "model").read_bytes() == (pc.save(again, tmp_path / "again"), (tmp_path / "again").read_bytes())[
        1
    ]
    other = copy.deepcopy(model)
    other[0] = nn.Conv2d(3, 8, 3, stride=1, padding=1)
    with pytest.raises(ValueError, match="0, stride, dilation and kernel"):
        pc.load(tmp_path / "model", into=other)
    other[0] = nn.Linear(3, 8)
    with pytest.raises(ValueError, match="0, a packed 2-D convolution in the file and Linear in the model"):
        pc.load(tmp_path / "model", into=other)


HOSTILE = [
    ("convolution/stride", [[0, 1], [1], [1, 1, 1], [1.0, 1], [True, 1], 1, None, [2**31, 1], [2, 2]]),
    ("convolution/dilation", [[0, 1], [], [1, -1], "11", {}, [1, 2]]),
    (
        "convolution/padding",
        [[[0, 1]], [[0, 1], [1]], [[0, -1], [0, 0]], [[0, 2**31], [0, 0]], [1, 1], None, [[0, 0.5]] * 2],
    ),
    ("convolution", [{}, None, 3, [], {"stride": [1, 1]}, {"stride": [], "padding": [], "dilation": []}]),
    ("format/name", ["Sparse", "Affine", None]),
    ("activation", ["swish", 7]),
]


@pytest.mark.parametrize(("where", "values"), HOSTILE, ids=[where for where, _ in HOSTILE])
def test_hostile_geometry_is_refused(tmp_path, where, values):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    packed = pc.pack(model, torch.zeros(1, 4, 5, 5), pc.Int8(), force=True)
    for value in values:
        parts = Parts(to_bytes(packed))
        parts.set(f"metadata/layers/0/packed/{where}", value)
        assert_refused(tmp_path, parts, model)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("0.weight", {"shape": [6, 18]}),
        ("0.weight", {"shape": [6, 2, 9, 1]}),
        ("0.weight", {"shape": [3, 4, 3, 3]}),
        ("0.weight", {"shape": [12, 1, 3, 3]}),
        ("0.weight", {"dtype": "U8"}),
        ("0.scale", {"shape": [3, 2]}),
        ("0.scale", {"dtype": "I32"}),
    ],
)
def test_hostile_tensors_of_convolutions_are_refused(tmp_path, name, entry):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    parts = Parts(to_bytes(pc.pack(model, torch.zeros(1, 4, 5, 5), pc.Int8(), force=True)))
    parts.header[name] |= entry
    assert_refused(tmp_path, parts, model)


@pytest.mark.parametrize("groups", [0, 4, 5, -1, 3])
def test_hostile_groups_are_refused(tmp_path, groups):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    parts = Parts(to_bytes(pc.pack(model, torch.zeros(1, 4, 5, 5), pc.Int8(), force=True)))
    parts.set("metadata/layers/0/groups", groups)
    assert_refused(tmp_path, parts, model)


def assert_refused(tmp_path, parts, model):
    before = copy.deepcopy(model.state_dict())
    (tmp_path / "file").write_bytes(parts.file())
    with pytest.raises(ArtifactError):
        pc.load(tmp_path / "file", into=model)
    assert type(model[0]) is nn.Conv2d
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
