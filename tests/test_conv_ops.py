"""The operators of packed convolutions in compiled and exported models; test_torch_ops.py has whole models."""

import numpy as np
import pytest
import torch
from test_torch_ops import convolution, convolutions, forged, inputs, weight
from torch._subclasses import FakeTensorMode

from pycompress import kernels, torch_ops, weight_bytes
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.int8_images import Int8Images

CONVOLUTIONS = {
    "1-D": lambda: convolution(5, 3, 3, stride=2, padding=1, dilation=2),
    "1-D groups": lambda: convolution(6, 2, 3, groups=3, padding=((2, 0),)),
    "2-D": lambda: convolution(5, 3, 3, 2, padding=((0, 1), (2, 0)), stride=(2, 1), dilation=(1, 2)),
    "depthwise": lambda: convolution(3, 1, 3, 3, padding="same", groups=3, input_scale=0.03),
    "channels last": lambda: convolution(5, 3, 3, 3, stride=2, channels_last=True),
    "depthwise, channels last": lambda: convolution(3, 1, 5, 5, padding=2, groups=3, channels_last=True),
    "1 x 1": lambda: convolution(5, 3, 1, 1, input_scale=0.03, channels_last=True),
}


def images(kind, count=2, dtype=torch.float32):
    return inputs(count, dtype, (3 * (2 if "groups" in kind else 1), *(9, 8)["1-D" in kind :]))


def layer(kind, activation=None):
    packed = CONVOLUTIONS[kind]()
    return (PackedConv1d if len(packed.stride) == 1 else PackedConv2d)(packed, activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_torchs_own_checks_pass_for_convolutions(kind, dtype):
    packed, some = CONVOLUTIONS[kind](), images(kind, 2, dtype)
    others = [] if "1-D" in kind else [some.to(memory_format=torch.channels_last), some.mT]
    for x in (some, some[0], some[:0], *others):
        for op, held in (("conv", weight_bytes.to_bytes(packed)), ("conv_here", packed.number)):
            arguments = x, held, "silu", *torch_ops._geometry(packed)
            operator = getattr(torch.ops.pycompress, op)
            assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
            assert torch.equal(operator(*arguments), kernels.conv(x, packed, "silu"))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_bytes_hold_the_convolution(kind):
    packed = CONVOLUTIONS[kind]()
    again = weight_bytes.from_bytes(weight_bytes.to_bytes(packed), packed.shape)
    for name in ("format", "input_scale", "stride", "padding", "dilation", "groups", "channels_last"):
        assert getattr(again, name) == getattr(packed, name), name
    for name in ("weight", "scale", "bias"):
        assert np.array_equal(getattr(again, name), getattr(packed, name))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("activation", [None, "relu6", "gelu"])
def test_a_compiled_convolution_is_as_the_eager_one(kind, activation):
    eager = layer(kind, activation)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    calls = [images(kind, count) for count in (2, 5, 1, 0)] + [images(kind, dtype=torch.bfloat16), images(kind)[0]]
    calls += [] if "1-D" in kind else [x.to(memory_format=torch.channels_last) for x in calls[:2]]
    with torch.no_grad():
        for x in calls:
            torch._dynamo.reset()
            y, expected = compiled(x), eager(x)
            assert torch.equal(y, expected) and y.dtype == expected.dtype
            assert x.numel() == 0 or y.stride() == expected.stride()
        changed = {"stride": 3, "groups": eager.packed.groups, "channels_last": eager.packed.channels_last}
        eager.packed = kernels.pack_conv(eager.packed.unpack(), **changed)
        assert torch.equal(compiled(x), eager(x))  # not that of the weight that it was compiled with
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(images(kind).requires_grad_())


def test_compiled_convolutions_and_int8_images():
    torch._dynamo.reset()
    first, second, *_ = convolutions(True)
    x = inputs(2, shape=(3, 9, 8))
    with torch.no_grad():
        handed = first(x)
        alone = torch.compile(first, fullgraph=True, backend="aot_eager")(x)
        assert type(handed) is Int8Images and type(alone) is torch.Tensor and alone.dtype == torch.float32
        assert torch.equal(second(alone), second(handed))
        compiled = torch.compile(second, fullgraph=True, backend="aot_eager")
        for scale in (0.05, 0.07, 0.05):  # the scale that it takes, and another one
            first.output_scale = scale
            assert torch.equal(compiled(first(x)), second(first(x)))


def test_strict_export_is_refused():
    with pytest.raises(Exception, match="strict must be False"):
        torch.export.export(layer("2-D"), (images("2-D"),), strict=True)


def test_an_exported_convolution_takes_images_of_any_size():
    eager, sizes = layer("channels last"), {n: torch.export.Dim(f"n{n}", min=5) for n in (2, 3)}
    program = torch.export.export(eager, (images("2-D"),), dynamic_shapes=(sizes,))
    for shape in ((3, 17, 5), (3, 6, 30)):
        x = inputs(2, shape=shape)
        assert torch.equal(program.module()(x), eager(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda x, c, g: (x, c, None, *g[:1], [1, 1], *g[2:]), ValueError, "shape and geometry must be"),
        (lambda x, c, g: (x, c, None, *g[:-1], True), ValueError, "shape and geometry must be"),
        (lambda x, c, g: (x, c, None, [5, 3, 2, 3], *g[1:]), ValueError, r"its shape must be \(5, 3, 2, 3\)"),
        (lambda x, c, g: (x, weight_bytes.to_bytes(weight()), None, *g), ValueError, "its shape must be"),
        (lambda x, c, g: (x, c[:-1], None, *g), ValueError, "got damaged ones"),
        (lambda x, c, g: (x, c, "swish", *g), ValueError, "activation must be one of"),
        (lambda x, c, g: (x[:, :2], c, None, *g), ValueError, "x must have 3 channels"),
        (lambda x, c, g: (x[..., :0], c, None, *g), ValueError, "x must have at least"),
        (lambda x, c, g: (x[0, 0], c, None, *g), ValueError, r"x must be \[images"),
        (lambda x, c, g: (x.to(torch.int8), c, None, *g), TypeError, "x must be float32"),
        (lambda x, c, g: (x.clone().requires_grad_(), c, None, *g), ValueError, "x must not require grad"),
    ],
)
def test_wrong_arguments_of_the_operator_of_convolutions(arguments, error, message):
    packed = CONVOLUTIONS["2-D"]()
    arguments = arguments(images("2-D"), weight_bytes.to_bytes(packed), torch_ops._geometry(packed))
    with pytest.raises(error, match=message):
        torch.ops.pycompress.conv(*arguments)


def test_a_number_stands_for_one_kind_of_weight():
    linear, conv = weight(), CONVOLUTIONS["2-D"]()
    with pytest.raises(ValueError, match="number must be that of a packed weight in this process"):
        torch.ops.pycompress.linear_here(inputs(2), conv.number, 5, None)
    with pytest.raises(ValueError, match="number must be that of a packed weight in this process"):
        torch.ops.pycompress.conv_here(images("2-D"), linear.number, None, *torch_ops._geometry(conv))


def test_a_fake_refuses_what_has_no_shape():
    geometry = torch_ops._geometry(CONVOLUTIONS["2-D"]())
    with FakeTensorMode() as mode:
        for bad in (images("2-D")[0, 0], images("2-D").double()):
            with pytest.raises(TypeError, match=r"x must be \[images, channels"):
                torch.ops.pycompress.conv_here(mode.from_tensor(bad), 1, None, *geometry)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(geometry=None),
        lambda h: h.update(geometry=[]),
        lambda h: h.update(geometry=h["geometry"] | {"weight": 1}),
        lambda h: h.update(geometry=h["geometry"] | {"groups": 2}),
        lambda h: h.update(geometry=h["geometry"] | {"stride": [0, 1]}),
        lambda h: h.update(geometry=h["geometry"] | {"padding": [-1, 1]}),
        lambda h: h.update(geometry=h["geometry"] | {"dilation": 1.5}),
        lambda h: h.update(geometry=h["geometry"] | {"channels_last": 1}),
        lambda h: h.update(shape=[30, 3]),
        lambda h: h.update(format={"name": "Int4", "group": 32}),
        lambda h: h.update(format={"name": "Sparse", "block": [1, 1], "values": {"name": "Float32"}}),
        lambda h: h["arrays"].update(multiplier=["int8", [0]]),
        lambda h: h["arrays"].update(weight=["int8", [5, 3, 2, 3]]),
    ],
)
def test_forged_convolutions_are_refused(change):
    packed = CONVOLUTIONS["2-D"]()
    weight_bytes.from_bytes(forged(lambda header: None, packed=packed))
    with pytest.raises(ValueError, match="got wrong ones"):
        weight_bytes.from_bytes(forged(change, packed=packed))


def test_what_an_operator_returns_follows_from_the_call_alone():
    packed = CONVOLUTIONS["2-D"]()
    with FakeTensorMode() as mode:
        x, y = mode.from_tensor(images("2-D")), mode.from_tensor(inputs(3))
        of_conv = torch.ops.pycompress.conv_here(x, 10**9, None, *torch_ops._geometry(packed))
        of_linear = torch.ops.pycompress.linear_here(y, 10**9, 4, None)
    assert of_conv.shape == kernels.conv(images("2-D"), packed).shape and of_linear.shape == (3, 4)
