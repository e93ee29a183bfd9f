"""What convolutions compute, beside torch and the written formula; parity of backends is in test_kernels.py."""

import copy
import pickle

import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.formats import Int8

torch = pytest.importorskip("torch")

WHOLE = np.random.default_rng(0)


def integers(*shape):
    return WHOLE.integers(-20, 21, shape).astype(np.float32)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 3), ((1, 0), (2, 1))])
@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(3, 8, 1), (6, 6, 6), (4, 8, 4), (8, 6, 2), (1, 5, 1), (16, 40, 1)]
)
def test_whole_numbers_give_what_torch_gives(implementation, padding, channels, out, groups):
    x, weight, bias = integers(2, channels, 13, 18), integers(out, channels // groups, 3, 4), integers(out)
    for stride, dilation in ((1, 1), (1, (2, 1)), (2, 1), ((1, 3), (1, 2))):
        if padding == "same" and stride != 1:
            continue
        packed = kernels.pack_conv(
            weight.astype(np.int8),
            Int8(),
            bias,
            1.0,
            1.0,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        pads, images = padding, torch.from_numpy(x)
        if isinstance(padding, tuple) and isinstance(padding[0], tuple):
            images = torch.nn.functional.pad(images, (*padding[1], *padding[0]))
            pads = 0
        arguments = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
        expected = torch.nn.functional.conv2d(images, torch.from_numpy(weight), torch.from_numpy(bias), **arguments)
        assert np.array_equal(kernels.conv(x, packed), expected.numpy())


def test_signals(implementation):
    x, weight = integers(3, 4, 50), integers(6, 2, 5)
    for arguments in ({}, {"stride": 2, "padding": 3}, {"padding": "same", "dilation": 2}):
        packed = kernels.pack_conv(weight.astype(np.int8), scale=1.0, input_scale=1.0, groups=2, **arguments)
        expected = torch.nn.functional.conv1d(torch.from_numpy(x), torch.from_numpy(weight), groups=2, **arguments)
        assert np.array_equal(kernels.conv(x, packed), expected.numpy())
        assert np.array_equal(kernels.conv(x[1], packed), expected[1].numpy())


@pytest.mark.parametrize("input_scale", [None, 0.01])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_an_image_with_nan_or_infinity_becomes_nan(implementation, input_scale, groups):
    x = WHOLE.normal(size=(4, 6, 9, 9)).astype(np.float32)
    packed = kernels.pack_conv(
        WHOLE.normal(size=(12, 6 // groups, 3, 3)).astype(np.float32), input_scale=input_scale, padding=1, groups=groups
    )
    good = kernels.conv(x, packed, "relu6")
    x[0, 5, 8, 8], x[2, 0, 0, 0] = np.nan, -np.inf
    y = kernels.conv(x, packed, "relu6")
    assert np.isnan(y[[0, 2]]).all()
    assert np.array_equal(bits(y[[1, 3]]), bits(good[[1, 3]]))


@pytest.mark.parametrize("groups", [1, 3])
def test_each_image_is_a_row(implementation, groups):
    x = WHOLE.normal(size=(5, 3, 8, 7)).astype(np.float32) * np.float32(10.0) ** np.arange(-2, 3).reshape(5, 1, 1, 1)
    x = x.astype(np.float32)
    x[3] *= np.float32(2.0**-110)
    weight = WHOLE.normal(size=(6, 3 // groups, 8, 7)).astype(np.float32)
    y = kernels.conv(x, kernels.pack_conv(weight, groups=groups))
    assert y.shape == (5, 6, 1, 1)
    assert not y[3].any()
    if groups == 1:
        rows = kernels.linear(x.reshape(5, -1), kernels.pack(weight.reshape(6, -1), Int8()))
        assert np.array_equal(bits(y[:, :, 0, 0]), bits(rows))
    for n in range(5):
        assert np.array_equal(bits(kernels.conv(x[n], kernels.pack_conv(weight, groups=groups))), bits(y[n]))


@pytest.mark.parametrize("k", [131071, 131072, 133145])
def test_sums_are_exact_at_any_length(implementation, k):
    for value in (127, -128):
        row = np.full((1, 1, k), value, np.int8)
        x = np.full((1, 1, k), 127, np.float32)
        packed = kernels.pack_conv(row, scale=1.0, input_scale=1.0)
        assert kernels.conv(x, packed).item() == np.float32(127 * value * k)
        packed = kernels.pack_conv(row.reshape(1, k, 1), scale=1.0, input_scale=1.0)
        assert kernels.conv(x.reshape(1, k, 1), packed).item() == np.float32(127 * value * k)


def test_memory_format_and_dtype_of_tensors_are_kept():
    packed = kernels.pack_conv(integers(8, 3, 3, 3), padding=1)
    x = torch.from_numpy(integers(2, 3, 8, 9))
    y = kernels.conv(x, packed)
    last = kernels.conv(x.contiguous(memory_format=torch.channels_last), packed)
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert torch.equal(last, y)
    assert kernels.conv(x.bfloat16(), packed).dtype == torch.bfloat16


def test_copies_and_pickles_keep_the_bits():
    packed = kernels.pack_conv(integers(8, 1, 3), bias=integers(8), stride=2, padding=((1, 2),), groups=4)
    x = integers(2, 4, 11)
    again = pickle.loads(pickle.dumps(packed))
    assert copy.deepcopy(packed) is packed
    assert again.stride == (2,) and again.padding == ((1, 2),) and again.groups == 4
    assert np.array_equal(bits(kernels.conv(x, again)), bits(kernels.conv(x, packed)))
    with pytest.raises(AttributeError, match="immutable"):
        packed.scale = None
    with pytest.raises(ValueError, match="read-only"):
        packed.weight[0] = 1
    assert packed.in_channels == 4 and packed.out_channels == 8 and packed.unpack().shape == (8, 1, 3)


def test_refused_geometry():
    weight = integers(4, 2, 3, 3)
    with pytest.raises(ValueError, match=r"^padding must be given as numbers"):
        kernels.pack_conv(weight, padding="same", stride=2)
    packed = kernels.pack_conv(weight, padding=((1, 0), (0, 0)), dilation=2)
    with pytest.raises(ValueError, match=r"^x must have at least 4 entries in dimension 2"):
        kernels.conv(integers(1, 2, 3, 9), packed)
    with pytest.raises(ValueError, match=r"^x must have 2 channels"):
        kernels.conv(integers(1, 3, 9, 9), packed)
    huge = kernels.pack_conv(weight, padding=2**30)
    with pytest.raises(ValueError, match=r"^x must have padded images of less than 2\^31 values"):
        kernels.conv(integers(1, 2, 9, 9), huge)
