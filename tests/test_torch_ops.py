"""Packed layers in compiled and exported models: the operators pass torch's own checks, and the bits stay."""

import copy
import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pycompress import kernels, weight_bytes
from pycompress.chains import ChainedSequential, chained
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.formats import Binary, Codebook, Int4, Int8, Sparse
from pycompress.layers import PackedLinear


def weight(format=None, out=7, inside=12, seed=0, **fields):
    values = torch.randn(out, inside, generator=torch.Generator().manual_seed(seed))
    if isinstance(format, Sparse):
        values *= values > 0.5
    return kernels.pack(values, format or Int8(), **fields)


WEIGHTS = {
    "int8": lambda: weight(bias=torch.arange(7.0)),
    "int8-static": lambda: weight(input_scale=0.03),
    "sparse": lambda: weight(Sparse(), bias=torch.arange(7.0)),
    "sparse-int8": lambda: kernels.pack(weight().canonical_weight(), Sparse(), scale=0.5),
    "int4": lambda: weight(Int4(zero_point=True), bias=torch.arange(7.0)),
    "binary": lambda: weight(Binary("binary"), bias=torch.arange(7.0), inside=70),
    "codebook": lambda: weight(Codebook(bits=2), bias=torch.arange(7.0), inside=70),
    "int4-int": lambda: weight(Int4(scales="int", activations="int8"), inside=70),
    "no inputs": lambda: weight(inside=0),
}


def model(second=None):
    layers = PackedLinear(weight(bias=torch.ones(7)), "gelu"), nn.Tanh(), PackedLinear(weight(second, 3, 7))
    return nn.Sequential(*layers).eval()


def inputs(rows, dtype=torch.float32, shape=(12,)):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows)).to(dtype)


def convolution(*shape, **fields):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return kernels.pack_conv(values, bias=torch.arange(float(shape[0])), **fields)


def convolutions(last=False):
    first = convolution(8, 3, 3, 3, stride=2, padding=1, input_scale=0.03, channels_last=last)
    deep = convolution(8, 1, 3, 3, padding=1, groups=8, input_scale=0.05, channels_last=last)
    layers = PackedConv2d(first, "relu6", output_scale=0.05 if last else None), PackedConv2d(deep, "silu")
    signals = PackedConv1d(convolution(4, 8, 3), "tanh")
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(2), signals, nn.Flatten()).eval()


def chain():
    sizes = ((9, 12), (8, 9), (7, 8), (6, 7))
    layers = [PackedLinear(weight(out=out, inside=inside), "relu") for out, inside in sizes]
    model = nn.Sequential(layers[0], nn.Identity(), layers[1], nn.Tanh(), *layers[2:]).eval()
    return nn.Sequential(chained(model, (("0", "2"), ("4", "5"))))


MODELS = {
    "int8": (model, (12,)),
    "sparse": (lambda: model(Sparse()), (12,)),
    "convolutions": (convolutions, (3, 9, 8)),
    "channels last": (lambda: convolutions(True), (3, 9, 8)),
    "chain": (chain, (12,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "sparse"])
def test_torchs_own_checks_pass(kind, dtype):
    packed = WEIGHTS[kind]()
    for x in (inputs(5, dtype), inputs(5, dtype)[0], inputs(4, dtype).view(2, 2, 12), inputs(0, dtype)):
        arguments = x, weight_bytes.to_bytes(packed), 7, "silu"
        assert set(torch.library.opcheck(torch.ops.pycompress.linear, arguments).values()) == {"SUCCESS"}
        arguments = x, packed.number, 7, None
        assert set(torch.library.opcheck(torch.ops.pycompress.linear_here, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_bytes_hold_the_weight(kind):
    packed = WEIGHTS[kind]()
    again = weight_bytes.from_bytes(weight_bytes.to_bytes(packed), packed.shape)
    assert (again.format, again.shape, again.input_scale) == (packed.format, packed.shape, packed.input_scale)
    for name in ("scale", "bias", "zero_point", "multiplier"):
        assert np.array_equal(getattr(again, name), getattr(packed, name))
    assert np.array_equal(again.canonical_weight(), packed.canonical_weight())
    x = torch.randn(3, packed.shape[1])
    y = torch.ops.pycompress.linear(x, weight_bytes.to_bytes(packed), 7, "relu")
    assert torch.equal(y, kernels.linear(x, packed, "relu"))


def test_a_compiled_model_has_no_graph_break_and_the_same_bits():
    torch._dynamo.reset()
    eager = model(Sparse())
    compiled = torch.compile(eager, fullgraph=True)
    with torch.no_grad():
        for rows in (5, 9, 1, 0, 17):
            assert torch.equal(compiled(inputs(rows)), eager(inputs(rows)))
        assert torch.equal(compiled(inputs(3, torch.bfloat16)), eager(inputs(3, torch.bfloat16)))
        eager[0].packed = weight(seed=1, bias=torch.zeros(7))
        assert torch.equal(compiled(inputs(5)), eager(inputs(5)))  # not those of the weight that it was compiled with
        eager.load_state_dict(model(Sparse()).state_dict())
        assert torch.equal(compiled(inputs(5)), eager(inputs(5)))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(inputs(5).requires_grad_())
    with pytest.raises(ValueError, match="must not require grad"):
        torch.compile(eager)(inputs(5).requires_grad_())


@pytest.mark.parametrize("kind", ["convolutions", "channels last", "chain"])
def test_compiled_models_of_convolutions_and_chains(kind):
    torch._dynamo.reset()
    make, shape = MODELS[kind]
    eager = make()
    compiled = torch.compile(eager, fullgraph=True)
    with torch.no_grad():
        for x in (inputs(4, shape=shape), inputs(7, shape=shape), inputs(2, torch.bfloat16, shape)):
            y = eager(x)
            assert torch.equal(compiled(x), y)
    assert kind != "chain" or (type(eager[0]) is ChainedSequential and "_chain_plan" in eager[0].__dict__)


def exported(model, shape=(12,)):
    return torch.export.export(model, (inputs(5, shape=shape),), dynamic_shapes=({0: torch.export.Dim("rows")},))


@pytest.mark.parametrize("kind", MODELS)
def test_an_exported_program_keeps_the_bits(tmp_path, kind):
    make, shape = MODELS[kind]
    eager, path = make(), tmp_path / "model.pt2"
    y = eager(inputs(6, shape=shape))
    program = exported(eager, shape)
    torch.export.save(program, path)
    for again in (program, program.run_decompositions(), torch.export.load(path)):
        for rows in (5, 1, 40):
            x = inputs(rows, shape=shape)
            assert torch.equal(again.module()(x), eager(x))
    np.save(tmp_path / "x.npy", inputs(6, shape=shape).numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    code = f"""
import numpy as np, torch, pycompress.torch_ops
module = torch.export.load({str(path)!r}).module()
x, y = (torch.from_numpy(np.load({str(tmp_path)!r} + name)) for name in ("/x.npy", "/y.npy"))
assert torch.equal(module(x), y)
"""
    # What runs there is what it is packed again for; sums of floats have another order there.
    others = [{"PYCOMPRESS_BACKEND": "reference"}] if kind != "sparse" else []
    for changed in ({}, *others):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | changed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_bytes_were_packed_into_lives_as_long_as_they():
    gc.collect()
    before = len(weight_bytes._unpacked)
    content, x = weight_bytes.to_bytes(weight()), inputs(2)
    for _ in range(3):
        torch.ops.pycompress.linear(x, content, 7, None)
    assert len(weight_bytes._unpacked) == before + 1
    del content
    gc.collect()
    assert len(weight_bytes._unpacked) == before


def test_two_weights_in_one_storage():
    first, second = weight(), weight(seed=1)
    parts = [weight_bytes.to_bytes(packed) for packed in (first, second)]
    views = torch.cat(parts).split([part.numel() for part in parts])
    for packed, view in zip((first, second), views, strict=True):
        y = torch.ops.pycompress.linear(inputs(2), view, 7, None)
        assert torch.equal(y, kernels.linear(inputs(2), packed))


def test_strict_export_is_refused():
    with pytest.raises(Exception, match="strict must be False"):
        torch.export.export(model(), (inputs(5),), strict=True)


def test_tracing_leaves_a_layer_as_it_is():
    layer = PackedLinear(weight())
    before = copy.deepcopy(layer.__dict__)
    torch.export.export(layer, (inputs(5),))
    assert layer.__dict__.keys() == before.keys()
    assert not list(layer.buffers())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).half()):
        assert torch.equal(twin(inputs(3)), layer(inputs(3)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda c: (inputs(2), c, 8, None), ValueError, r"its shape must be \(8, 12\), got \(7, 12\)"),
        (lambda c: (inputs(2)[:, :5], c, 7, None), ValueError, "its shape must be"),
        (lambda c: (torch.tensor(1.0), c, 7, None), ValueError, "its shape must be"),
        (lambda c: (inputs(2), c.float(), 7, None), TypeError, "packed must be a uint8 vector"),
        (lambda c: (inputs(2), c, 7, "swish"), ValueError, "activation must be one of"),
        (lambda c: (inputs(2).double(), c, 7, None), TypeError, "x must be float32"),
        (lambda c: (inputs(2).requires_grad_(), c, 7, None), ValueError, "x must not require grad"),
    ],
)
def test_wrong_arguments_of_the_operator(arguments, error, message):
    with pytest.raises(error, match=message):
        torch.ops.pycompress.linear(*arguments(weight_bytes.to_bytes(weight())))


def test_numbers_of_weights():
    packed = weight()
    with pytest.raises(ValueError, match="out_features must be 7, got 8"):
        torch.ops.pycompress.linear_here(inputs(2), packed.number, 8, None)
    number = packed.number
    del packed
    gc.collect()
    with pytest.raises(ValueError, match=f"number must be that of a packed weight in this process, got {number}"):
        torch.ops.pycompress.linear_here(inputs(2), number, 7, None)


def test_no_changed_bit_and_no_cut_goes_unnoticed():
    content = weight_bytes.to_bytes(weight(out=2, inside=3))
    for position in range(len(content)):
        changed = content.clone()
        changed[position] ^= 1 << position % 8
        for bad in (changed, content[:position]):
            with pytest.raises(ValueError, match="packed must be the bytes of a packed weight"):
                weight_bytes.from_bytes(bad)


def forged(change, tail=b"", packed=None):
    """Bytes with a valid digest whose header was changed."""
    data = weight_bytes.to_bytes(packed or weight(out=2, inside=3)).numpy().tobytes()[40:]
    end = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:end])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    body = len(text).to_bytes(4, "little") + text + data[end:] + tail
    return torch.frombuffer(bytearray(weight_bytes.MAGIC + hashlib.sha256(body).digest() + body), dtype=torch.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: b"",
        lambda h: b"[" * 100_000,
        lambda h: b"[]",
        lambda h: b"{}",
        lambda h: h.update(shape=[2**62, 2**62]),
        lambda h: h.update(shape=[-2, -3]),
        lambda h: h.update(shape=[3, 2]),
        lambda h: h.update(shape="23"),
        lambda h: h.update(format={"name": "Affine"}),
        lambda h: h.update(format={"name": "Int8", "bits": 3}),
        lambda h: h.update(format={"name": "Sparse", "block": [1, 1], "values": {"name": "Float32"}}),
        lambda h: h.update(format=None),
        lambda h: h.update(input_scale=-1.0),
        lambda h: h.update(input_scale="1"),
        lambda h: h.update(arrays={}),
        lambda h: h["arrays"].update(other=["int8", [0]]),
        lambda h: h["arrays"].update(weight=["float64", [2, 3]]),
        lambda h: h["arrays"].update(weight=["float32", [2, 3]]),
        lambda h: h["arrays"].update(weight=["int8", [2**61, 3]]),
        lambda h: h["arrays"].update(weight=["int8", [True, 6]]),
        lambda h: h["arrays"].update(weight=7),
        lambda h: h.update(format={"name": "Int4", "group": 32}),
        lambda h: h.update(format={"name": "Int4", "group": 0}),
    ],
)
def test_forged_bytes_are_refused(change):
    weight_bytes.from_bytes(forged(lambda header: None))
    with pytest.raises(ValueError, match="got wrong ones"):
        weight_bytes.from_bytes(forged(change))
    with pytest.raises(ValueError, match="got wrong ones: there must be"):
        weight_bytes.from_bytes(forged(lambda header: None, b"more"))


def test_wrong_arguments_of_the_conversions():
    with pytest.raises(TypeError, match="packed must be a PackedWeight, PackedConv or PackedRecurrent, got ndarray"):
        weight_bytes.to_bytes(np.zeros((2, 2)))
    for bad in (None, b"PYCWGT01", torch.zeros(50), torch.zeros(5, 5, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="packed must be a uint8 vector"):
            weight_bytes.from_bytes(bad)
    with pytest.raises(TypeError, match="packed must be on the CPU"):
        weight_bytes.from_bytes(torch.zeros(50, dtype=torch.uint8, device="meta"))
