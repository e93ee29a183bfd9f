"""Convolutions with sparse weights: kernels beside torch, packed models, files; parity is in test_kernels.py."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from cases import bits
from hostile import Parts
from test_conv_layers import Clock, assert_refused
from torch import nn

import pycompress as pc
from pycompress import kernels
from pycompress.artifact import to_bytes
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.formats import BFloat16, Float32, Int8, Sparse

X = torch.randn(2, 8, 14, 14, generator=torch.Generator().manual_seed(0))


def integers(*shape, kept=1.0):
    rng = np.random.default_rng(sum(shape))
    return (rng.integers(-20, 21, shape) * (rng.random(shape) < kept)).astype(np.float32)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 3), ((1, 0), (2, 1))])
@pytest.mark.parametrize(("channels", "out", "groups"), [(3, 8, 1), (6, 6, 6), (8, 6, 2), (1, 5, 1), (16, 40, 1)])
def test_whole_numbers_give_what_torch_gives(implementation, padding, channels, out, groups):
    x, weight, bias = integers(2, channels, 13, 18), integers(out, channels // groups, 3, 4, kept=0.3), integers(out)
    for stride, dilation in ((1, 1), (1, (2, 1)), (2, 1), ((1, 3), (1, 2)), (3, 2), ((4, 2), (2, 4))):
        if padding == "same" and stride != 1:
            continue
        geometry = {"stride": stride, "dilation": dilation, "groups": groups}
        packed = kernels.pack_conv(weight, Sparse((4, 1)), bias, padding=padding, **geometry)
        pads, images = padding, torch.from_numpy(x)
        if isinstance(padding, tuple) and isinstance(padding[0], tuple):
            images, pads = nn.functional.pad(images, (*padding[1], *padding[0])), 0
        convolve = nn.functional.conv2d
        expected = convolve(images, torch.from_numpy(weight), torch.from_numpy(bias), padding=pads, **geometry)
        assert np.array_equal(kernels.conv(x, packed), expected.numpy())


def test_signals_single_images_and_memory_formats(implementation):
    x, weight = integers(3, 4, 50), integers(6, 2, 5, kept=0.4)
    packed = kernels.pack_conv(weight, Sparse(), stride=2, padding=3, groups=2)
    expected = nn.functional.conv1d(torch.from_numpy(x), torch.from_numpy(weight), None, 2, 3, groups=2)
    assert np.array_equal(kernels.conv(x, packed), expected.numpy())
    assert np.array_equal(kernels.conv(x[1], packed), expected[1].numpy())
    packed = kernels.pack_conv(integers(8, 3, 3, 3, kept=0.3), Sparse(), padding=1)
    images = torch.from_numpy(integers(2, 3, 8, 9))
    last = kernels.conv(images.contiguous(memory_format=torch.channels_last), packed)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, kernels.conv(images, packed))
    assert kernels.conv(images.half(), packed).dtype == torch.float16


def test_each_image_has_its_own_bits(implementation):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(5, 8, 9, 7)).astype(np.float32)
    for kernel in (1, 3):
        weight = rng.normal(size=(20, 8, kernel, kernel)) * (rng.random((20, 8, kernel, kernel)) < 0.3)
        packed = kernels.pack_conv(weight.astype(np.float32), Sparse(), padding=kernel // 2)
        y = kernels.conv(x, packed, "gelu")
        for n in range(5):
            assert np.array_equal(bits(kernels.conv(x[n], packed, "gelu")), bits(y[n]))


def test_what_was_pruned_is_not_multiplied(implementation):
    weight = np.zeros((2, 2, 3, 3), np.float32)
    weight[0, 0, 1, 1] = 2
    x = np.ones((1, 2, 5, 5), np.float32)
    x[0, 1] = np.inf
    x[0, 0, 0, 0] = np.nan
    y = kernels.conv(x, kernels.pack_conv(weight, Sparse(), padding=1))
    assert np.isnan(y[0, 0, 0, 0]) and np.isnan(y).sum() == 1
    assert (y[0, 0].reshape(-1)[1:] == 2).all() and not y[0, 1].any()


def test_many_channels_and_large_strides(implementation):
    x = integers(1, 5000, 2, 3)
    for kept in (0.01, 0.0):
        weight = integers(3, 5000, 1, 1, kept=kept)
        expected = np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0])
        assert np.array_equal(kernels.conv(x, kernels.pack_conv(weight, Sparse())), expected)
    packed = kernels.pack_conv(integers(2, 1, 2), Sparse(), stride=2**30, dilation=3)
    assert kernels.conv(integers(1, 1, 9), packed).shape == (1, 2, 1)


def test_packed_weights_keep_floats_and_geometry():
    weight = integers(8, 2, 3, kept=0.4)
    packed = kernels.pack_conv(weight, Sparse((8, 1)), integers(8), stride=2, padding=((1, 2),), groups=4)
    x = integers(2, 8, 11)
    again = pickle.loads(pickle.dumps(packed))
    assert again.stride == (2,) and again.padding == ((1, 2),) and again.format == Sparse((8, 1))
    assert np.array_equal(bits(kernels.conv(x, again)), bits(kernels.conv(x, packed)))
    assert packed.scale is None and packed.input_scale is None
    assert packed.density == np.count_nonzero(weight) / weight.size
    assert np.array_equal(packed.unpack(), weight) and np.array_equal(packed.weight, weight)
    assert not packed.weight.flags.writeable and packed.canonical_weight().flags.writeable
    scaled = kernels.pack_conv(weight.astype(np.int8), Sparse(), scale=0.5)
    assert np.array_equal(scaled.unpack(), weight * 0.5)


def test_wrong_arguments():
    weight = integers(4, 2, 3, 3)
    with pytest.raises(TypeError, match=r"^format must be Int8\(\) or Sparse\(\), got"):
        kernels.pack_conv(weight, pc.Int4())
    with pytest.raises(ValueError, match=r"^channels_last must be False"):
        kernels.pack_conv(weight, Sparse(values=Int8()), channels_last=True)
    with pytest.raises(ValueError, match=r"^format must have Float32\(\) or Int8\(\) values for convolutions"):
        kernels.pack_conv(weight, Sparse(values=BFloat16()))
    told = pc.explain(pc.pack(nn.Sequential(nn.Conv2d(8, 2, 3)), X, Sparse(values=BFloat16()), force=True))
    assert told[0].reason == "Sparse with BFloat16 values has no kernel for convolutions"
    with pytest.raises(ValueError, match=r"^input_scale must be None"):
        kernels.pack_conv(weight, Sparse(), input_scale=1.0)
    with pytest.raises(ValueError, match=r"^channels_last must be False"):
        kernels.pack_conv(weight, Sparse(), channels_last=True)
    with pytest.raises(ValueError, match=r"^weight must be finite"):
        kernels.pack_conv(weight * np.nan, Sparse())
    with pytest.raises(ValueError, match=r"^x must have 2 channels"):
        kernels.conv(integers(1, 3, 9, 9), kernels.pack_conv(weight, Sparse()))


def pruned_network(blocks=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.Conv2d(24, 32, 1),
        nn.SiLU(),
        nn.Flatten(2),
        nn.Conv1d(32, 6, 3),
    ).eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        for layer in model:
            if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                height = 4 if blocks else 1
                kept = torch.rand(-(-len(layer.weight) // height), layer.weight[0].numel()) < 0.2
                kept = kept.repeat_interleave(height, 0)[: len(layer.weight)]
                layer.weight.mul_(kept.reshape(layer.weight.shape))
    return model


@pytest.mark.parametrize("blocks", [False, True])
def test_pruned_convolutions_are_packed(blocks):
    model = pruned_network(blocks)
    packed = pc.pack(model, X, force=True)
    assert [type(layer).__name__ for layer in packed] == [
        *("PackedConv2d", "Identity", "Identity", "Conv2d", "PackedConv2d", "Identity", "Flatten", "PackedConv1d")
    ]
    assert packed[0].format == packed[4].format == Sparse((4, 1) if blocks else (1, 1))
    assert packed[0].activation == "relu" and packed[4].activation == "silu"
    told = pc.explain(packed)
    assert [d.kind for d in told][:2] == ["Conv2d+BatchNorm2d+ReLU", "Conv2d"]
    assert told[1].reason == "pruned, but Sparse has no kernel for one channel a group"
    with torch.no_grad():
        assert torch.allclose(packed(X), model(X), atol=1e-4)
    assert type(model[0]) is nn.Conv2d and type(model[1]) is nn.BatchNorm2d


def test_what_prune_leaves_is_packed_in_its_blocks():
    model = nn.Sequential(nn.Conv2d(8, 32, 3))
    pc.prune_(model, 0.8, pattern=pc.Blocks(16, 1))
    assert pc.pack(model, X, force=True)[0].format == Sparse((16, 1))


@pytest.mark.parametrize(("seconds", "faster"), [(0.5, True), (2.0, False)])
def test_a_pruned_convolution_is_replaced_where_that_is_faster(monkeypatch, seconds, faster):
    layer = nn.Conv2d(8, 4, 3)
    nn.init.zeros_(layer.weight[1:])
    packed = pc.pack(nn.Sequential(layer), X, _clock=Clock(monkeypatch, seconds))
    assert isinstance(packed[0], PackedConv2d) == faster
    assert pc.explain(packed)[0].reason == ("faster" if faster else "Sparse not faster")


def test_a_normalization_behind_a_convolution_that_stays_dense_is_as_it_was(monkeypatch):
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.zeros_(model[0].weight[1:])
    packed = pc.pack(model, X, _clock=Clock(monkeypatch, 2.0))
    assert type(packed[1]) is nn.BatchNorm2d and torch.equal(packed[0].weight, model[0].weight)


def test_a_pruned_quantized_convolution_is_tried_in_both_formats(monkeypatch):
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU())
    nn.init.zeros_(model[0].weight[1:])
    pc.quantize_(model, Int8(), (X, torch.zeros(2)))
    packed = pc.pack(model, X, _clock=Clock(monkeypatch, 2.0))
    assert pc.explain(packed)[0].reason == "Int8 and Sparse not faster"
    assert pc.pack(model, X, force=True)[0].format == Int8()


def test_a_quantized_convolution_that_lost_words_is_tried_with_sparse_integers(monkeypatch):
    model = nn.Sequential(nn.Conv2d(8, 32, 3))
    with torch.no_grad():
        model[0].weight[:, :4] = 0
        model[0].weight[16:, :, 1:] = 0
    pc.quantize_(model, Int8(), (X, torch.zeros(2)))
    packed = pc.pack(model, X, _clock=Clock(monkeypatch, 2.0))
    assert pc.explain(packed)[0].reason == "Int8 and Sparse not faster"
    dense, sparse = (pc.pack(model, X, format, force=True)[0] for format in (Int8(), Sparse((16, 4), Int8())))
    assert sparse.format == Sparse((16, 4), Int8()) and sparse.packed.input_scale == dense.packed.input_scale
    assert torch.equal(sparse(X), dense(X)) and np.array_equal(sparse.packed.weight, dense.packed.weight)


@pytest.mark.parametrize("input_scale", [None, 0.01])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_an_image_with_nan_becomes_nan_with_sparse_integers(implementation, input_scale, groups):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(4, 12, 9, 9)).astype(np.float32)
    weight = rng.normal(size=(12, 12 // groups, 3, 3)) * (rng.random((12, 12 // groups, 3, 3)) < 0.2)
    format = Sparse(values=Int8())
    packed = kernels.pack_conv(weight.astype(np.float32), format, input_scale=input_scale, padding=1, groups=groups)
    good = kernels.conv(x, packed, "relu6")
    x[0, 5, 8, 8], x[2, 0, 0, 0] = np.nan, -np.inf
    y = kernels.conv(x, packed, "relu6")
    assert np.isnan(y[[0, 2]]).all()
    assert np.array_equal(bits(y[[1, 3]]), bits(good[[1, 3]]))


@pytest.mark.parametrize("k", [65532, 65536, 65540, 131072])
def test_sums_of_sparse_integers_are_exact_at_any_length(implementation, k):
    for value in (127, -128):
        weight = np.full((2, k, 1), value, np.int8)
        weight[1, ::5] = 0
        x = np.full((1, k, 1), 127, np.float32)
        packed = kernels.pack_conv(weight, Sparse(values=Int8()), scale=1.0, input_scale=1.0)
        sums = 127 * weight.astype(np.int64).sum(axis=1).ravel()
        assert np.array_equal(kernels.conv(x, packed).reshape(2), sums.astype(np.float32))


def layers():
    signal = kernels.pack_conv(integers(4, 2, 3, kept=0.5), Sparse(), torch.ones(4), stride=2, groups=2)
    yield PackedConv1d(signal, "relu"), (1, 4, 9)
    image = kernels.pack_conv(integers(4, 2, 3, 3, kept=0.5), Sparse((4, 1), Float32()), padding=((1, 0), (0, 2)))
    yield PackedConv2d(image), (2, 2, 9, 9)
    image = kernels.pack_conv(integers(32, 8, 3, 3, kept=0.2), Sparse((16, 4), Int8()), input_scale=0.1)
    yield PackedConv2d(image), (2, 8, 9, 9)


def test_copies_pickles_and_state_dicts_keep_the_bits():
    for layer, shape in layers():
        x = torch.randn(shape)
        y = layer(x)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
        p = layer.packed
        geometry = {name: getattr(p, name) for name in ("stride", "padding", "groups")}
        empty = kernels.pack_conv(torch.zeros(p.shape), p.format, p.bias, None, p.input_scale, **geometry)
        other = type(layer)(empty, layer.activation)
        state = layer.state_dict()
        present = {name for name in ("scale", "bias", "input_scale") if getattr(p, name) is not None}
        assert set(state) == {"weight"} | present
        other.load_state_dict(state)
        for again in [*others, other]:
            assert torch.equal(again(x), y) and repr(again) == repr(layer)


@pytest.mark.parametrize("format", [None, Sparse((4, 1)), Sparse((16, 4), Int8())], ids=repr)
def test_artifacts(tmp_path, format):
    model = pruned_network()
    packed = pc.pack(model, X, format, force=True)
    pc.save(packed, tmp_path / "model")
    for into in (copy.deepcopy(model), copy.deepcopy(packed)):
        again = pc.load(tmp_path / "model", into=into)
        assert repr(again) == repr(packed)
        assert torch.equal(again(X), packed(X))
    dense = sum(p.numel() for p in model.parameters()) * 4
    assert (tmp_path / "model").stat().st_size < dense / 2 + 8000


HOSTILE = [
    ("packed/format/name", ["Int8", "Affine", None]),
    ("packed/format/values/name", ["Int8", "BFloat16", "Int4", None]),  # its weight is F32
    ("packed/format/block", [[2, 1], [16, 4], 1, None]),
    ("packed/convolution/channels_last", [True]),
    ("input_scale", [0.5]),
    ("groups", [0, 4, 3]),
]


@pytest.mark.parametrize(("where", "values"), HOSTILE, ids=[where for where, _ in HOSTILE])
def test_hostile_records_are_refused(tmp_path, where, values):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    packed = pc.pack(model, torch.zeros(1, 4, 5, 5), Sparse(), force=True)
    for value in values:
        parts = Parts(to_bytes(packed))
        parts.set(f"metadata/layers/0/{where}", value)
        assert_refused(tmp_path, parts, model)


def test_compiled_exported_and_profiled():
    model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    packed = pc.pack(model, X, force=True)
    y = packed(X)
    for each in (packed, pc.pack(model, X, Sparse((16, 4), Int8()), force=True)):
        program = torch.export.export(each, (X,), strict=False)
        assert torch.equal(program.module()(X), each(X))
    from pycompress.profiling.counting import packed_operations

    assert packed_operations(packed[0], (X,), y) == y.numel() * 36
