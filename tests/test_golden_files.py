"""Files of every version of the format load to the same numbers for ever, and FORMAT.md is enough to read them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from golden import binary, codebook, convolution, int4, layers, recurrent, version1
from test_artifact import assert_same

from pycompress import artifact, grids
from pycompress.convolutions import PackedConv1d, PackedConv2d
from pycompress.layers import PackedLinear, decisions


def test_the_golden_file_of_version_1_is_read_for_ever():
    assert hashlib.sha256(version1.PATH.read_bytes()).hexdigest() == version1.SHA256
    expected, again = version1.build(), artifact.load(version1.PATH, into=version1.architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    assert decisions(again) == decisions(expected)
    assert again["tied"].weight is again["pruned"].weight
    for name in ("int8", "affine", "fixed"):
        found, wanted = grids.grid_of(again[name]), grids.grid_of(expected[name])
        assert (found.format, found.input_scale) == (wanted.format, wanted.input_scale)
        assert torch.equal(found.scale, wanted.scale) and torch.equal(found.zero_point, wanted.zero_point)
    x = version1.numbers(9, 40)
    assert torch.equal(again["packed"](x), expected["packed"](x))
    assert {t.coding for t in artifact.describe(version1.PATH).tensors} == {
        "plain",
        "nonzeros",
        "Int8()",
        "FixedPoint(bits=6)",
        "Affine(bits=4, signed=False, per_channel=False) + nonzeros",
    }


def test_the_golden_file_of_4_bit_weights_is_read_for_ever():
    assert hashlib.sha256(int4.PATH.read_bytes()).hexdigest() == int4.SHA256
    expected, again = int4.build(), artifact.load(int4.PATH, into=int4.architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    x = version1.numbers(9, 75)
    assert torch.equal(again(x), expected(x))
    codings = {t.name: (t.coding, t.bytes) for t in artifact.describe(int4.PATH).tensors}
    assert [codings[f"{i}.weight"] for i in (0, 2, 3, 4)] == [("nibbles", n) for n in (1500, 700, 578, 116)]


def test_the_golden_file_of_weights_that_share_numbers_is_read_for_ever():
    assert hashlib.sha256(codebook.PATH.read_bytes()).hexdigest() == codebook.SHA256
    expected, again = codebook.build(), artifact.load(codebook.PATH, into=codebook.architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    x = version1.numbers(9, 75)
    assert torch.equal(again(x), expected(x))
    codings = {t.name: (t.coding, t.bytes) for t in artifact.describe(codebook.PATH).tensors}
    sizes = {0: (4, 1500 + 16), 2: (2, 350 + 4), 3: (2, 289 + 3)}
    assert all(codings[f"{i}.weight"] == (f"{b}-bit codes", n) for i, (b, n) in sizes.items())


def test_the_golden_file_of_binary_weights_is_read_for_ever():
    assert hashlib.sha256(binary.PATH.read_bytes()).hexdigest() == binary.SHA256
    expected, again = binary.build(), artifact.load(binary.PATH, into=binary.architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    x = version1.numbers(9, 75)
    assert torch.equal(again(x), expected(x))
    codings = {t.name: (t.coding, t.bytes) for t in artifact.describe(binary.PATH).tensors}
    sizes = {0: 375 + 2, 2: 175 + 2, 3: 145 + 1}
    assert all(codings[f"{i}.weight"] == ("1-bit codes", n) for i, n in sizes.items())


def test_the_golden_file_of_recurrent_layers_is_read_for_ever():
    assert hashlib.sha256(recurrent.PATH.read_bytes()).hexdigest() == recurrent.SHA256
    expected, again = recurrent.build(), artifact.load(recurrent.PATH, into=recurrent.Architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    x = version1.numbers(9, 5 * 7).reshape(9, 5, 7)
    assert torch.equal(again(x), expected(x))


def test_the_golden_file_of_convolutions_is_read_for_ever():
    assert hashlib.sha256(convolution.PATH.read_bytes()).hexdigest() == convolution.SHA256
    expected, again = convolution.build(), artifact.load(convolution.PATH, into=convolution.Architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    x = version1.numbers(2, 3 * 15 * 14).reshape(2, 3, 15, 14)
    assert torch.equal(again(x), expected(x))


def test_the_golden_file_of_embeddings_cells_and_attention_is_read_for_ever():
    assert hashlib.sha256(layers.PATH.read_bytes()).hexdigest() == layers.SHA256
    expected, again = layers.build(), artifact.load(layers.PATH, into=layers.Architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    words = torch.arange(12).reshape(3, 4) % 11
    with torch.no_grad():
        assert torch.equal(again(words), expected(words))


DTYPES = {"U8": "u1", "I8": "i1", "BOOL": "?", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


def read_by_the_book(data):
    """Read a file of version 1 with nothing but FORMAT.md and NumPy: tensors by name (BF16 as its bits), and layers."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["pycompress"])
    assert metadata["version"] == 1
    stored = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        stored[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if name == "pycompress.sha256":
            assert hashlib.sha256(data[:begin] + bytes(32) + data[end:]).digest() == data[begin:end]
    del stored["pycompress.sha256"]
    tensors = {}
    for name, record in metadata.get("tensors", {}).items():
        parts = {key.removeprefix(f"{name}:"): stored.pop(key) for key in list(stored) if key.startswith(f"{name}:")}
        values, places = parts["values"], ...
        if record.get("nonzeros"):
            position, places = -1, []
            for gap in parts["gaps"].tolist():
                position += 255 if gap == 255 else gap + 1
                places += [] if gap == 255 else [position]
        if "nibbles" in record:
            values = np.stack([values & 15, values >> 4], axis=1).reshape(-1)[: np.prod(record["shape"], dtype=int)]
            values = values.astype(np.int8) - record["nibbles"]
        if "codes" in record:
            each = np.unpackbits(values, bitorder="little").reshape(-1, record["codes"])
            codes = (each * 2 ** np.arange(record["codes"])).sum(axis=1)
            values = parts["table"][codes[: np.prod(record["shape"], dtype=int)]]
        dense = np.zeros(np.prod(record["shape"], dtype=int), DTYPES[record["dtype"]])
        if "grid" in record:
            first = record["shape"][0]
            per_row = [np.broadcast_to(parts.get(key, np.float32(0)), (first,)) for key in ("scale", "zero_point")]
            scale, zero_point = (np.repeat(row, dense.size // first)[places] for row in per_row)
            values = ((values.reshape(-1).astype(np.float32) - zero_point) * scale).astype(dense.dtype)
        dense[places] = values.reshape(-1)
        tensors[name] = dense.reshape(record["shape"])
    tensors |= stored
    for name, owner in metadata.get("tied", {}).items():
        tensors[name] = tensors[owner]
    return tensors, metadata["layers"]


@pytest.mark.parametrize("golden", [version1, int4, codebook, binary, recurrent, convolution, layers])
def test_format_md_is_enough_to_read_a_file(golden):
    tensors, layers = read_by_the_book(golden.PATH.read_bytes())
    model = golden.build()
    kinds = (PackedLinear, PackedConv1d, PackedConv2d)
    packed = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    expected = {name: t for name, t in model.state_dict().items() if not name.startswith(tuple(packed))}
    for name, module in packed.items():
        assert layers[name]["packed"]["format"]["name"] == type(module.packed.format).__name__
        assert layers[name].get("input_scale") == module.packed.input_scale
        arrays = {"weight": module.packed.canonical_weight(), "scale": module.packed.scale, "bias": module.packed.bias}
        arrays |= {part: getattr(module.packed, part, None) for part in ("zero_point", "multiplier")}
        expected |= {f"{name}.{part}": torch.tensor(a) for part, a in arrays.items() if a is not None}
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        assert tensors[name].shape == tuple(tensor.shape), name
        assert tensors[name].tobytes() == np.asarray(bits).tobytes(), name
    assert golden is not version1 or layers["conv"] == {"groups": 2}
    if golden is convolution:
        geometry = {"stride": [2, 2], "padding": [[1, 1], [0, 0]], "dilation": [1, 1]}
        last = {"channels_last": True, "output_scale": 0.046875}
        assert layers["images.0"]["packed"]["convolution"] == geometry | last
