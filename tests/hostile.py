"""Hostile artifacts: the good file of test_hostile_files.py taken apart, changed in one way, and put together again.

``CORPUS`` maps a name to (what the refusal must say, a function that makes the file's bytes from the good file's).
"""

import hashlib
import json
from functools import partial

import torch

from pycompress.artifact.container import DIGEST, METADATA

CORPUS = {}


def sign(data):
    """Return a file with the digest that fits it, where its header can be read so far."""
    data = bytearray(data)
    try:
        length = int.from_bytes(data[:8], "little")
        begin, end = (offset + 8 + length for offset in json.loads(data[8 : 8 + length])[DIGEST]["data_offsets"])
        if end - begin == 32 and begin >= 0 and end <= len(data):
            data[begin:end] = bytes(32)
            data[begin:end] = hashlib.sha256(data).digest()
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        pass
    return bytes(data)


class Parts:
    """A file taken apart."""

    def __init__(self, file):
        length = int.from_bytes(file[:8], "little")
        self.header = json.loads(file[8 : 8 + length])
        self.metadata = json.loads(self.header.pop("__metadata__")[METADATA])
        self.data = bytearray(file[8 + length :])

    def text(self):
        metadata = self.metadata if isinstance(self.metadata, str) else json.dumps(self.metadata)
        return json.dumps({"__metadata__": {METADATA: metadata}, **self.header})

    def file(self, text=None):
        text = self.text() if text is None else text
        text = text if isinstance(text, bytes) else text.encode()
        return sign(len(text).to_bytes(8, "little") + text + self.data)

    def set(self, where, value):
        """Set one node: ``header/flags/dtype``, ``metadata/version``."""
        root, *keys, last = where.split("/")
        node = getattr(self, root)
        for key in keys:
            node = node[key]
        node[last] = value

    def get(self, name):
        begin, end = self.header[name]["data_offsets"]
        return bytes(self.data[begin:end])

    def put(self, name, content):
        """Give a 1-D tensor of bytes, or any tensor, other content: what lies behind it moves."""
        begin, end = self.header[name]["data_offsets"]
        self.data[begin:end] = content
        moved = len(content) - (end - begin)
        for entry in self.header.values():
            if entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset + moved for offset in entry["data_offsets"]]
        self.header[name]["data_offsets"] = [begin, begin + len(content)]
        if moved:
            self.header[name]["shape"] = [len(content)]


def add(name, message, function):
    assert name not in CORPUS, name
    CORPUS[name] = message, function


def whole(*arguments_of_variants, message, name):
    """Register a function that makes a file from the parts and an argument, once for each argument."""

    def register(function):
        for number, argument in enumerate(arguments_of_variants):
            add(f"{name}-{number}", message, lambda good, argument=argument: function(Parts(good), argument))
        return function

    return register


# Values in the header and in the metadata that are wrong.

OTHER_KINDS = [None, 1, [], "a"]
FIT = "the file must fit the model"
NODES = [
    ("header/flags", "exactly dtype, shape and data_offsets", [*OTHER_KINDS, {}, {"dtype": "U8"}]),
    ("header/flags/more", "exactly dtype, shape and data_offsets", [0]),
    ("header/flags/dtype", "known dtype", [None, 3, [], {"a": 1}, "F4", "f32", "", "F32\0", "object"]),
    ("header/flags/shape", "must have a shape", [None, 2, "2", [-1], [2.0], [True], [None], ["2"], [[2]], {"0": 2}]),
    ("header/flags/shape", "must have a shape", [[2**63], [1] * 17, [2**62] * 10000]),
    ("header/flags/shape", "must have the bytes of", [[2**62], [2**62, 4], [2**62] * 16, [2**32] * 2, [3], [], [0]]),
    ("header/flags/data_offsets", "two data_offsets", [None, [], [0], [0, 1, 2], "ab", [0, "2"], [0.0, 2.0], {"a": 1}]),
    ("header/flags/data_offsets", "two data_offsets", [[-2, 0], [0, 2**63], [None, 2], [[0], [2]], [False, True]]),
    ("header/flags/data_offsets", "must have the bytes of", [[2, 0], [0, 0], [0, 3], [2**62, 2**62], [0, 2**62]]),
    ("header/flags/data_offsets", "must begin at byte", [[0, 2], [1, 3], [10**6, 10**6 + 2], [2**60, 2**60 + 2]]),
    (f"header/{DIGEST}/shape", "must hold its digest", [[4, 8], [32, 1]]),
    (f"header/{DIGEST}/dtype", "must hold its digest", ["I8", "BOOL", "F8_E5M2"]),
    ("header/flags/dtype", "in the file and torch.bool in the model", ["U8", "I8", "F8_E4M3"]),
    ("metadata/version", "metadata.version must be", [0, 2, -1, 1.0, "1", None, True, [1], 10**300]),
    *[(f"metadata/{key}", "must have the keys", [{}]) for key in ("code", "__class__", "", "Version")],
    *[(f"metadata/{key}", "must be a JSON object", OTHER_KINDS) for key in ("tensors", "tied", "layers")],
    *[
        (f"metadata/{key}", "must be a JSON object", OTHER_KINDS)
        for key in (
            "tensors/affine.weight",
            "tensors/affine.weight/grid",
            "layers/packed.0",
            "layers/packed.0/packed",
            "layers/packed.0/packed/format",
            "layers/packed.0/decision",
            "layers/packed.0/decision/format",
            "layers/packed.2/packed/format/values",
        )
    ],
    *[
        (f"metadata/{key}/more", "must have the keys|must have exactly the fields", [1])
        for key in (
            "tensors/affine.weight",
            "tensors/affine.weight/grid",
            "tensors/fixed.weight/grid",
            "layers/packed.0",
            "layers/packed.0/packed",
            "layers/packed.0/decision",
            "layers/packed.2/packed/format",
        )
    ],
    ("metadata/tied/tied.weight", "must be (the name of|tied to)", [1, None, "none", "tied.weight", ["pruned.weight"]]),
    ("metadata/tied/flags", "must be tied to a stored one", ["pruned.weight"]),
    ("metadata/tied", "must be tied to a stored one", [{"a": "b", "b": "a"}]),
    ("metadata/tensors/affine.weight/dtype", "dtype must be", ["I8", "F33", None, 1, "C64"]),
    ("metadata/tensors/affine.weight/shape", "must have a shape", [None, [-1, 2], [1.5], [2**64], "a", [2] * 17]),
    ("metadata/tensors/affine.weight/nonzeros", "must be true or false", [1, "true", None, []]),
    ("metadata/tensors/affine.weight/grid/name", "must be one of", ["Sparse", "Float32", "Affin", None, 1, []]),
    ("metadata/tensors/affine.weight/grid/bits", "bits must be", [1, 17, -4, 4.0, "4", None, True, 2**70, [4]]),
    ("metadata/tensors/affine.weight/grid/signed", "signed must be", [0, "no", None]),
    ("metadata/tensors/fixed.weight/grid/bits", "bits must be|scale must be", [16, -1, 5, 6.0]),
    ("metadata/tensors/pruned.weight/nonzeros", "must say how the tensor is coded", [False]),
    ("metadata/layers/packed.0/packed/format/name", "must be one of", ["Affine", "FixedPoint", "Int2", None, 1, {}]),
    ("metadata/layers/packed.0/packed/activation", "activation must be", ["swish", None, 1, ["relu"], "RELU"]),
    ("metadata/layers/packed.0/input_scale", "input_scale must be", [0, -1.0, None, "1", 1e39, 1e-50, True, [1.0]]),
    ("metadata/layers/packed.2/input_scale", "must have int8 activations to have an input_scale", [0.5]),
    ("metadata/layers/conv/input_scale", "must have int8 activations to have an input_scale", [0.5]),
    ("metadata/layers/packed.2/packed/format/block", "block must be", [[1, 2], [2**40] * 2, "11", 1, [1] * 999]),
    ("metadata/layers/conv/groups", "groups must be a positive", [0, -2, 2.0, "2", None, True, 2**31]),
    ("metadata/layers/conv/groups", FIT, [1, 4, 3]),
    ("metadata/layers/conv/fused", "fused must be true or false", [1, "true", None, []]),
    ("metadata/layers/conv/fused", FIT, [True]),
    ("metadata/layers/conv/chains", "chains must be lists of keys", ["0", 1, None, {}, ["0"], [[0]], [None]]),
    ("metadata/layers/conv/chains", FIT, [[["0", "1"]], [[]]]),
    ("metadata/layers/packed.0/groups", FIT, [2]),
    ("metadata/layers/packed.0/decision/rows", "rows must be", [-1, 1.5, "8", None, 2**64]),
    ("metadata/layers/packed.0/decision/speedup", "speedup must be", ["2", None, [], True, {}, 10**30]),
    ("metadata/layers/packed.0/decision/reason", "reason must be", [1, None, ["a"]]),
    ("metadata/layers/packed.0/decision/kind", "kind must be", [None, 2]),
    ("metadata/tensors/pruned.weight/shape", FIT, [[2**62] * 2, [2**40, 1], [41, 30], [30, 40], [1200], []]),
    ("metadata/tensors/pruned.weight/shape", FIT, [[40, 30, 1], [0, 30]]),
    ("metadata/tensors/packed.2.weight/shape", "must have a|" + FIT, [[2**62] * 2, [20, 2**50], [600], [20, 31]]),
    ("header/pruned.weight:values/dtype", "values must be", ["I32", "U32"]),
    ("header/pruned.weight:values/shape", "values must be 1-D", [[1, 30], [30, 1]]),
    ("header/pruned.weight:gaps/dtype", "gaps must be 1-D uint8", ["I8", "BOOL"]),
    ("header/pruned.weight:gaps/shape", "gaps must be 1-D uint8", [[1, 30], [30, 1]]),
    ("header/affine.weight:scale/dtype", "scale must be", ["I32"]),
    ("header/affine.weight:scale/shape", "scale must be|the shape of scale", [[1], [1, 1]]),
    ("header/affine.weight:values/dtype", "values must be", ["I8"]),
    ("header/packed.0.weight/dtype", "must have a weight", ["U8", "BOOL"]),
    ("header/packed.0.weight/shape", "must have a (weight|scale)", [[1200], [30, 40, 1], [40, 30]]),
    ("header/packed.0.scale/dtype", "must have a scale", ["I32"]),
    ("header/packed.0.bias/dtype", "must have a bias", ["I32"]),
    ("metadata/layers/packed.2/packed/format", "must have a scale with integers", [{"name": "Int8"}]),
    *[
        (f"metadata/layers/{name}", "which is no layer of the model", [{"groups": 2}])
        for name in ("packed.7", "..", "__class__", "packed.0.weight", "packed..0")
    ],
]  # fmt: skip


def with_node(where, value, good):
    parts = Parts(good)
    parts.set(where, value)
    return parts.file()


for _where, _message, _values in NODES:
    for _value in _values:
        add(f"{len(CORPUS)}-{_where}={_value!r:.40}", _message, partial(with_node, _where, _value))


# Tensors under another name: missing in one place and unexpected in another.

for _name, _other, _message in (
    *[(f"affine.weight:{part}", "elsewhere", "must have its parts") for part in ("gaps", "values", "scale")],
    ("affine.weight:zero_point", "elsewhere", "unexpected in the file: elsewhere"),
    ("flags", "affine.weight", "stored once"),
    ("packed.0.scale", "elsewhere", "must have a scale with integers"),
    ("packed.0.weight", "elsewhere", "must have a weight"),
    ("packed.0.bias", "elsewhere", "missing in the file: packed.0.bias; unexpected in the file: elsewhere"),
    (DIGEST, "elsewhere", "must hold its digest"),
    *[("flags", name, f"unexpected in the file: {name}") for name in ("__class__", "forward", "packed.9.weight")],
):  # fmt: skip

    @whole(None, message=_message, name=f"{_name}->{_other}")
    def renamed(parts, _, name=_name, other=_other):
        parts.header[other] = parts.header.pop(name)
        return parts.file()


# Numbers that are wrong.


def floats(*values):
    return torch.tensor(values).numpy().tobytes()


NUMBERS = [
    ("flags", b"\2", "must hold booleans"),
    ("affine.weight:values", b"\x10", "values must be from 0 to 15"),
    ("affine.weight:scale", floats(3e38), "must fit into"),
    ("fixed.weight:scale", floats(0.25), r"scale must be 2\^-6"),
    ("packed.0.weight", b"\x80", "from -127 to 127"),
    *[("affine.weight:scale", floats(v), "must be (positive|finite)") for v in (float("nan"), float("inf"), -1.0, 0.0)],
    *[("affine.weight:zero_point", floats(value), "must be finite") for value in (float("nan"), float("inf"))],
    *[("packed.0.scale", floats(v), "packed layer 'packed.0'") for v in (float("nan"), float("inf"), -1.0, 0.0)],
    *[("packed.2.bias", floats(value), "packed layer 'packed.2'") for value in (float("nan"), -float("inf"))],
    *[("packed.2.weight:values", floats(value), "packed layer 'packed.2'") for value in (float("nan"), float("inf"))],
]
for _number, (_name, _content, _message) in enumerate(NUMBERS):

    @whole(None, message=_message, name=f"number-{_name}-{_number}")
    def other_number(parts, _, name=_name, content=_content):
        parts.put(name, content + parts.get(name)[len(content) :])
        return parts.file()


@whole(b"\xfe", message="tensor 'pruned.weight': gaps must stay inside", name="index out of range")
def index_out_of_range(parts, gap):
    parts.put("pruned.weight:gaps", gap * len(parts.get("pruned.weight:gaps")))
    return parts.file()


@whole(1, 200, message="tensor 'affine.weight': gaps must stay inside", name="index just out of range")
def index_just_out_of_range(parts, beyond):
    gaps = parts.get("affine.weight:gaps")
    used = sum(min(gap + 1, 255) for gap in gaps[:-1])
    skips, rest = divmod(1200 - used - 1 + beyond, 255)
    parts.put("affine.weight:gaps", gaps[:-1] + b"\xff" * skips + bytes([rest]))
    return parts.file()


@whole(b"", b"\0", b"\0" * 6, message="gaps must hold one code for each", name="gaps and values that differ in number")
def gaps_that_are_too_many_or_too_few(parts, more):
    gaps = parts.get("pruned.weight:gaps")
    parts.put("pruned.weight:gaps", gaps + more if more else gaps[:-1])
    return parts.file()


@whole(10, 10**6, message="gaps must stay inside", name="skips without an end")
def skips_without_an_end(parts, count):
    parts.put("pruned.weight:gaps", parts.get("pruned.weight:gaps") + b"\xff" * count)
    return parts.file()


@whole(None, message="must not have a grid", name="packed layer on a grid")
def packed_layer_on_a_grid(parts, _):
    parts.metadata["tensors"]["packed.2.weight"]["grid"] = {"name": "Int8"}
    parts.header["packed.2.weight:scale"] = {
        "dtype": "F32", "shape": [], "data_offsets": [len(parts.data), len(parts.data) + 4],
    }  # fmt: skip
    parts.data += floats(1.0)
    return parts.file()


@whole(None, message="a packed linear layer in the file and Conv2d", name="packed convolution")
def packed_convolution(parts, _):
    parts.metadata["layers"]["conv"] = parts.metadata["layers"].pop("packed.0")
    for part in ("weight", "bias"):
        parts.header[f"other.{part}"] = parts.header.pop(f"conv.{part}")
    for part in ("weight", "bias", "scale"):
        parts.header[f"conv.{part}"] = parts.header.pop(f"packed.0.{part}")
    return parts.file()


# Files and JSON that are wrong as a whole.


@whole(0, 1, 7, message="must begin with 8 bytes", name="cut before the header")
def cut_before_the_header(parts, size):
    return parts.file()[:size]


@whole(0, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, message="must end inside the file", name="header past the end")
def header_past_the_end(parts, length):
    file = parts.file()
    return (length or len(file) - 7).to_bytes(8, "little") + file[8:]


@whole(
    b"", b"{", b"\0\0\0\0", b"\xff\xfe{}", b'{"a":"\xc3"}', b"{'a': 1}", b"{} {}", b"[1,]", b'{"a":01}',
    b'{"a":' + b"9" * 10**6 + b"}", message="must be JSON", name="header that is no JSON",
)  # fmt: skip
@whole(b"[]", b"1", b"null", b'"a"', message="must be a JSON object", name="header that is no object")
@whole(b"[" * 10**5, b'{"a":' * 10**5, message="nested deeply", name="deep header")
def other_header(parts, text):
    return parts.file(text)


@whole("", "[1", "{", '"', "\udcff", message="must be JSON", name="metadata that is no JSON")
@whole("[]", "1", "null", '"a"', message="must be a JSON object", name="metadata that is no object")
@whole("{}", message="must have the keys", name="empty metadata")
@whole("[" * 10**5, '{"a":' * 10**5, message="nested deeply", name="deep metadata")
def other_metadata(parts, text):
    parts.metadata = text
    return parts.file()


@whole(
    "NaN", "Infinity", "-Infinity", "1e999", message="must be a finite|must hold finite", name="number without an end"
)
def number_without_an_end(parts, number):
    parts.metadata = json.dumps(parts.metadata).replace('"speedup": 2.0', f'"speedup": {number}')
    return parts.file()


@whole(
    ('"dtype": "BOOL"', '"dtype": "BOOL", "dtype": "BOOL"'), ('"flags": {', '"flags": {}, "flags": {'),
    ('"__metadata__": {', '"__metadata__": {}, "__metadata__": {'),
    ('{\\"version\\": 1', '{\\"version\\": 1, \\"version\\": 1'),
    message="each key once", name="key twice",
)  # fmt: skip
def key_twice(parts, old_and_new):
    assert old_and_new[0] in parts.text()
    return parts.file(parts.text().replace(*old_and_new))


@whole(None, 1, "a", [], {}, {METADATA: 1}, {METADATA: None}, {"format": "pt"}, {METADATA: "{}", "a": ""},
       message="no metadata string", name="other __metadata__")  # fmt: skip
def other_outer_metadata(parts, value):
    return parts.file(json.dumps({"__metadata__": value, **parts.header}))


@whole(None, message="no metadata string", name="plain safetensors file")
def plain_safetensors_file(parts, _):
    return parts.file(json.dumps(parts.header))


@whole(None, message="must begin at byte", name="two tensors in one place")
def two_tensors_in_one_place(parts, _):
    parts.header["more"] = parts.header["packed.0.scale"]
    return parts.file()


@whole(1, 1000, message="must end where the file ends", name="bytes behind the end")
def bytes_behind_the_end(parts, count):
    parts.data += bytes(count)
    return parts.file()


@whole(0, 100, -40, message="must have the digest that it says", name="wrong digest")
def wrong_digest(parts, position):
    file = bytearray(parts.file())
    start = 8 + int.from_bytes(file[:8], "little")
    file[start + position if position >= 0 else position] ^= 1
    return bytes(file)
