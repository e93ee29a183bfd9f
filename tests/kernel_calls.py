"""What the arguments of each function of pycompress.kernels are: valid ones and kinds; a new one needs a line."""

from typing import Any, NamedTuple

import numpy as np

from pycompress import kernels
from pycompress.formats import Float32, Int8

INFINITE = (np.nan, np.inf, -np.inf)


class Anything(NamedTuple):
    """An argument that takes every value (results are only read from it)."""


class Array(NamedTuple):
    """A float array: its wrong shapes, and whether NaN or infinity is wrong too."""

    shapes: tuple = ()
    finite: bool = True
    only_float32: bool = False
    right: tuple = (4,)  # a right shape, where the valid value is None


class Integers(NamedTuple):
    """An int8 array (or, with several dtypes, an array of one of them)."""

    dtypes: tuple = (np.int8,)
    shapes: tuple = ()


class Number(NamedTuple):
    """A number: wrong values, beside those of other types."""

    wrong: tuple
    integer: bool = False


class Choice(NamedTuple):
    """One of a closed set of values."""


class States(NamedTuple):
    """A tuple of h [2, 1] and c [2, 1]."""


class Listed(NamedTuple):
    """A list: wrong ones, beside what is no list and lists of other things."""

    wrong: tuple


ROWS = np.ones((4, 3), np.float32)
INTEGERS = np.ones((3, 3), np.int8)
PACKED = kernels.pack(np.ones((4, 3), np.float32), Int8())
KERNEL = np.ones((4, 1, 2, 3), np.float32)
CONV = kernels.pack_conv(np.ones((4, 2, 2, 3), np.float32), padding=1, channels_last=True)
LSTM = kernels.pack_lstm(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32))
GRU = kernels.pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
CSR_PARTS = np.ones(4, np.float32), np.array([0, 2, 1, 1]), np.array([0, 2, 2, 3, 4])  # 4 rows, the second empty
CSR = kernels.pack_csr(CSR_PARTS, (4, 3))
SQUARE = kernels.pack(np.ones((4, 4), np.float32), Int8())


def _valid(**arguments: Any) -> dict[str, Any]:
    return arguments


# name: (valid arguments, the kind of each argument)
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "available_backends": ({}, {}),
    "backend_name": ({}, {}),
    "isa_levels": ({}, {}),
    "isa_name": ({}, {}),
    "get_num_threads": (_valid(for_torch=False), {"for_torch": Anything()}),
    "set_num_threads": (_valid(n=None), {"n": Number((0, -1, -(2**70)), integer=True)}),
    "use_backend": (_valid(name="reference"), {"name": Choice()}),
    "use_isa": (_valid(name="scalar"), {"name": Choice()}),
    "PackedWeight": ({}, {"fields": Anything()}),
    "Quantized": (
        _valid(values=0, scale=0, zero_point=0),
        dict.fromkeys(("values", "scale", "zero_point"), Anything()),
    ),
    "pack": (
        _valid(weight=ROWS, format=Int8(), bias=np.ones(4, np.float32), scale=None, input_scale=None)
        | {"zero_point": None, "multiplier": None},
        {
            "weight": Array(((3,), (2, 3, 4), ())),
            "format": Choice(),
            "bias": Array(((3,), (4, 1), (1, 4), (5,), (0,), (1,))),
            "scale": Array(((3,), (4, 2), (5,), (0,), (2, 2))),
            "input_scale": Number((0.0, -1.0, 1e-46, 1e39, 10**400, *INFINITE)),
            "zero_point": Choice(),  # Int8 has none: test_int4.py has those of Int4
            "multiplier": Choice(),
        },
    ),
    "find_block": (
        _valid(weight=ROWS, values=Float32()),
        {"weight": Integers((np.float32, np.float16, np.int8), ((3,), (2, 3, 4), ())), "values": Choice()},
    ),
    "linear": (
        _valid(x=ROWS, packed=PACKED, activation="relu", residual=np.ones((4, 4), np.float32), output_scale=0.5),
        {
            "x": Array(((), (4,), (2, 4), (3, 0), (0,)), finite=False),
            "packed": Choice(),
            "activation": Choice(),
            "residual": Array(((4,), (4, 3), (1, 4), (4, 4, 1), ()), finite=False),
            "output_scale": Number((0.0, -1.0, 1e-46, 1e39, *INFINITE)),
        },
    ),
    "linear_chain": (
        _valid(x=ROWS, packed=[PACKED, SQUARE], activations=["relu", None]),
        {
            "x": Array(((), (4,), (2, 4), (3, 0), (0,)), finite=False),
            "packed": Listed(([SQUARE, PACKED], [])),
            "activations": Listed((["relu"], ["relu", "swish"])),
        },
    ),
    "PackedConv": ({}, {"fields": Anything()}),
    "pack_conv": (
        _valid(
            weight=KERNEL,
            format=Int8(),
            bias=np.ones(4, np.float32),
            scale=None,
            input_scale=None,
            stride=1,
            padding=(1, 1),
            dilation=1,
            groups=2,
            channels_last=False,
        ),
        {
            "weight": Array(((4,), (4, 3), (4, 1, 0, 3), (4, 1, 1, 1, 1), ())),
            "format": Choice(),
            "bias": Array(((3,), (4, 1), (1, 4), (5,), (0,), (1,))),
            "scale": Array(((3,), (4, 2), (5,), (0,), (2, 2))),
            "input_scale": Number((0.0, -1.0, 1e-46, 1e39, 10**400, *INFINITE)),
            "stride": Number((0, -1, 2**70, (1,), (1, 1, 1), (1, 0), (1, 1.0)), integer=True),
            "padding": Number((-1, 2**70, (1,), ((1, 1),), ((1, 1), 1), ((1, 1), (1, -1)), "full"), integer=True),
            "dilation": Number((0, -1, 2**70, (1,), (1, 1, 1), (1, 0), (1, 1.0)), integer=True),
            "groups": Number((0, -1, 3, 2**70), integer=True),
            "channels_last": Choice(),
        },
    ),
    "conv": (
        _valid(x=np.ones((2, 2, 5, 4), np.float32), packed=CONV, activation="relu6", output_scale=0.5),
        {
            "x": Array(((), (4,), (2, 4), (2, 3, 5, 4), (2, 2, 0, 4), (2, 2, 1, 2, 2)), finite=False),
            "packed": Choice(),
            "activation": Choice(),
            "output_scale": Number((0.0, -1.0, 1e-46, 1e39, *INFINITE)),
        },
    ),
    "PackedRecurrent": ({}, {"fields": Anything()}),
    "pack_lstm": (
        _valid(
            weight_ih=ROWS,
            weight_hh=np.ones((4, 4), np.float32),
            bias_ih=None,
            bias_hh=None,
            format=Int8(),
            weight_hr=np.ones((4, 1), np.float32),
            scale_ih=None,
            scale_hh=None,
            scale_hr=None,
            input_scale=None,
        ),
        {
            "weight_ih": Array(((3,), (2, 3, 4), (), (3, 3))),
            "weight_hh": Array(((3,), (4, 3), (8, 4), (4, 4, 1), ())),
            "weight_hr": Array(((3,), (4, 2), (4, 0), (4, 1, 1), ())),
            **dict.fromkeys(("bias_ih", "bias_hh"), Array(((3,), (4, 1), (1, 4), (5,), (0,), (1,)))),
            **dict.fromkeys(("scale_ih", "scale_hh", "scale_hr"), Array(((3,), (4, 2), (5,), (0,), (2, 2)))),
            "format": Choice(),
            "input_scale": Number((0.0, -1.0, 1e-46, 1e39, 10**400, *INFINITE)),
        },
    ),
    "pack_gru": (
        _valid(
            weight_ih=np.ones((6, 3), np.float32),
            weight_hh=np.ones((6, 2), np.float32),
            format=Int8(),
            bias_ih=None,
            bias_hh=None,
            scale_ih=None,
            scale_hh=None,
            input_scale=None,
        ),
        {
            "weight_ih": Array(((3,), (2, 3, 4), (), (4, 3))),
            "weight_hh": Array(((3,), (6, 3), (3, 2), (6, 2, 1), ())),
            **dict.fromkeys(("bias_ih", "bias_hh"), Array(((3,), (6, 1), (1, 6), (5,), (0,), (1,)), right=(6,))),
            **dict.fromkeys(("scale_ih", "scale_hh"), Array(((3,), (6, 2), (5,), (0,), (2, 2)), right=(6,))),
            "format": Choice(),
            "input_scale": Number((0.0, -1.0, 1e-46, 1e39, 10**400, *INFINITE)),
        },
    ),
    "lstm": (
        _valid(x=ROWS, packed=LSTM, state=None, backwards=True, batch_sizes=[2, 1, 1]),
        {
            "x": Array(((), (4,), (2, 4), (1, 4, 3), (0,)), finite=False),
            "packed": Choice(),
            "state": States(),
            "backwards": Choice(),
            "batch_sizes": Listed(([1, 2, 1], [2, 2, 1], [4, 0], [5, -1], [2**70], [2.0, 2.0], [True, 3], GRU)),
        },
    ),
    "gru": (
        _valid(x=ROWS, packed=GRU, state=None, backwards=False, batch_sizes=[2, 1, 1]),
        {
            "x": Array(((), (4,), (2, 4), (1, 4, 3), (0,)), finite=False),
            "packed": Choice(),
            "state": Array(((2,), (2, 3), (1, 2), (2, 2, 1), ()), finite=False, right=(2, 2)),
            "backwards": Choice(),
            "batch_sizes": Listed(([1, 2, 1], [2, 2, 1], [4, 0], [5, -1], [2**70], [2.0, 2.0], [True, 3], LSTM)),
        },
    ),
    "PackedCSR": ({}, {"fields": Anything()}),
    "pack_csr": (
        _valid(matrix=CSR_PARTS, shape=(4, 3)),
        {
            "matrix": Choice(),  # test_spmm.py has wrong parts
            "shape": Number((4, (4,), (4, 3, 1), (3, 3), (5, 3), (4, 2), (-1, 3), (4.0, 3), (4, 2**70)), integer=True),
        },
    ),
    "spmm": (
        _valid(matrix=CSR, dense=np.ones((3, 2), np.float32)),
        {"matrix": Choice(), "dense": Array(((), (4,), (2, 4), (0,), (3, 2, 1), (0, 3)), finite=False)},
    ),
    "int8_matmul": (
        _valid(a=INTEGERS, b=INTEGERS),
        {"a": Integers(shapes=((3,), (1, 3, 3), ())), "b": Integers(shapes=((3,), (1, 3, 3), (), (4, 3), (0, 3)))},
    ),
    "quantize": (
        _valid(x=ROWS, bits=8, scheme="affine", signed=True, axis=0),
        {
            "x": Array(),
            "bits": Number((1, 17, 0, -8, 2**70), integer=True),
            "scheme": Choice(),
            "signed": Choice(),
            "axis": Number((2, -3, 2**70), integer=True),
        },
    ),
    "dequantize": (
        _valid(values=INTEGERS, scale=np.ones(3, np.float32), zero_point=np.zeros(3, np.float32), axis=1),
        {
            "values": Integers((np.int8, np.uint8, np.int16, np.uint16), ()),
            "scale": Array(((), (1,), (4,), (3, 1), (0,))),
            "zero_point": Array(((), (1,), (4,), (3, 1), (0,))),
            "axis": Number((2, -3, 2**70), integer=True),
        },
    ),
    "l1_scores": (_valid(weight=ROWS, per="row"), {"weight": Array(((3,), (), (1, 4, 3))), "per": Choice()}),
    "l2_scores": (_valid(weight=ROWS, per="column"), {"weight": Array(((3,), (), (1, 4, 3))), "per": Choice()}),
    "kth_magnitude": (
        _valid(tensors=[ROWS, ROWS], k=3),
        {"tensors": Array(finite=False), "k": Number((0, -1, 25, 2**70), integer=True)},
    ),
    "norms": (
        _valid(weight=ROWS, per=(2, 2), gradient=None, input_norms=np.ones(3, np.float32)),
        {
            "weight": Array(((3,), (), (1, 4, 3))),
            "per": Choice(),
            "gradient": Array(right=(4, 3)),
            "input_norms": Array(((), (4,), (3, 1), (0,)), right=(3,)),
        },
    ),
    "Norms": (_valid(l1=0, l2=0), dict.fromkeys(("l1", "l2"), Anything())),
    "Kept": (
        _valid(zeros=0, mask=0, bitmap=0, gaps=0, values=0),
        dict.fromkeys(("zeros", "mask", "bitmap", "gaps", "values"), Anything()),
    ),
    "above": (
        _valid(array=ROWS, threshold=0.5, mask=True, bitmap=True, packed=True),
        {
            "array": Array(finite=False),
            "threshold": Number((-1.0, -1e-30, np.nan, -np.inf)),
            "mask": Choice(),
            "bitmap": Choice(),
            "packed": Choice(),
        },
    ),
    "nm_mask": (
        _valid(weight=ROWS, n=2, m=4),
        {
            "weight": Array(((3,), (), (1, 4, 3)), finite=False),
            "n": Number((0, 4, -1, 2**70), integer=True),
            "m": Number((1, 0, -4, 33, 2**70), integer=True),
        },
    ),
    "apply_threshold": (
        _valid(array=ROWS.copy(), threshold=0.5),
        {"array": Array(finite=False, only_float32=True), "threshold": Number((-1.0, -1e-30, np.nan, -np.inf))},
    ),
}

NONE_IS_LEGAL = {
    ("pack", "bias"),
    ("pack", "scale"),
    ("pack", "input_scale"),
    ("pack_conv", "bias"),
    ("pack_conv", "scale"),
    ("pack_conv", "input_scale"),
    ("conv", "activation"),
    ("conv", "output_scale"),
    ("pack", "zero_point"),
    ("pack", "multiplier"),
    *(("pack_lstm", name) for name in ("bias_ih", "bias_hh", "scale_ih", "scale_hh", "scale_hr", "input_scale")),
    *(("pack_gru", name) for name in ("bias_ih", "bias_hh", "scale_ih", "scale_hh", "input_scale")),
    *((name, argument) for name in ("lstm", "gru") for argument in ("state", "batch_sizes")),
    ("norms", "gradient"),
    ("norms", "input_norms"),
    ("linear", "activation"),
    ("linear", "residual"),
    ("linear", "output_scale"),
    ("linear_chain", "activations"),
    ("quantize", "axis"),
    ("dequantize", "axis"),
    ("set_num_threads", "n"),
}
