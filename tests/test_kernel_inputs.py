"""Wrong input is refused with a message that names the argument; unusual but legal input gives the right result.

The wrong values come from the kind of each argument. A new public function without a line in CALLS fails the tests.
"""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pycompress import kernels
from pycompress.formats import Affine, Float32, Int8, Sparse

torch = pytest.importorskip("torch")

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


def wrong_arrays(right_shape, shapes, dtypes):
    """Values that are no dense CPU array of these dtypes, or have a wrong shape."""
    yield from (3.5, "text", b"bytes", [[1.0]], {}, object(), np.float32, slice(3))
    others = [np.float64, np.int64, np.int32, np.uint32, np.complex64, np.bool_, np.longdouble, "U3", "S3", "V4", "O"]
    others += [np.float32, np.float16] if np.int8 in dtypes else [np.int8, np.uint8, np.int16]
    others.append("datetime64[s]")
    for dtype in others:
        if dtype not in dtypes:
            yield np.zeros(right_shape, dtype)
    yield np.zeros(right_shape, [("a", np.float32)])
    good = torch.float32 if np.float32 in dtypes else torch.int8
    yield torch.zeros(right_shape, dtype=good, device="meta")
    yield torch.zeros(right_shape, dtype=good).to_sparse()
    for dtype in (torch.float64, torch.int64, torch.bool, torch.complex64):
        yield torch.zeros(right_shape, dtype=dtype)
    yield torch.zeros(right_shape).to(torch.float8_e4m3fn)
    for shape in shapes:
        yield np.zeros(shape, dtypes[0])
        yield torch.zeros(shape, dtype=good)


def wrong_values(function, name, kind, right):
    """Every wrong value of an argument."""
    if isinstance(kind, Anything):
        return
    if (function, name) not in NONE_IS_LEGAL:
        yield None
    if isinstance(kind, Array):
        if function == "kth_magnitude":
            yield from (ROWS, "text", 3.5, object(), {})
            yield from ([ROWS, wrong] for wrong in wrong_arrays((4, 3), (), (np.float32, np.float16)))
            yield [ROWS, np.full((3, 3), np.nan, np.float32)]
            return
        shape = kind.right if right is None else right.shape
        scalar_is_legal = function.startswith("pack") and name.startswith("scale")
        for wrong in wrong_arrays(shape, kind.shapes, (np.float32, np.float16)):
            if not (scalar_is_legal and isinstance(wrong, float)):
                yield wrong
        if kind.only_float32:
            yield from (np.zeros((4, 3), np.float16), torch.zeros(4, 3, dtype=torch.bfloat16), ROWS.astype(">f4"))
            yield np.broadcast_to(np.float32(1), (4, 3))
            yield np.full((4, 3), np.nan, np.float32)
        else:
            yield torch.zeros(shape, requires_grad=True)
        for value in INFINITE if kind.finite else ():
            for dtype in (np.float32, np.float16):
                array = np.ones(shape, dtype)
                array.flat[-1] = value
                yield array
            yield torch.full(shape, value, dtype=torch.bfloat16)
        if scalar_is_legal:
            yield from (
                np.zeros(shape, np.float32),
                -np.ones(shape, np.float32),
                0.0,
                -1.0,
                np.nan,
                np.inf,
                1e39,
                True,
                10**400,
            )
    elif isinstance(kind, States):
        h, c = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
        yield from (
            h,
            "hc",
            3,
            [h, c],
            (h,),
            (h, c, c),
            (None, c),
            (h, None),
            (h[0], c),
            (h, c[:1]),
            (h, np.zeros((2, 2))),
        )
    elif isinstance(kind, Listed):
        yield from (*kind.wrong, "text", 3.5, object(), {}, [None, "x"], [3], [[], []], np.ones(2), torch.ones(2))
    elif isinstance(kind, Integers):
        yield from wrong_arrays(right.shape, kind.shapes, kind.dtypes)
    elif isinstance(kind, Number):
        yield from kind.wrong
        yield from ("3", b"3", [3], object(), True, 3j, np.ones(3, np.float32), torch.ones(3))
        if kind.integer:
            yield from (3.0, np.float32(3))
    else:
        yield from ("", "nonsense", b"relu", 7, 2.5, [], ["relu"], {}, object(), Affine(), Int8, np.ones(3))
        yield Sparse() if function == "find_block" else Float32()


def refused(function, arguments, name):
    """Call with wrong arguments; return a complaint when that is not refused in the right way."""
    call = getattr(kernels, function)
    try:
        result = call(**arguments)
        if hasattr(result, "__enter__"):
            with result:
                pass
    except (TypeError, ValueError) as error:
        words = str(error).replace("[", " ").replace("'", " ").replace(",", " ").split()
        return None if name in words else f"{error!r} does not name {name}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize("function", kernels.__all__)
def test_wrong_arguments_are_refused_by_name(function):
    assert function in CALLS, f"{function} is public: add it to CALLS"
    valid, kinds = CALLS[function]
    parameters = inspect.signature(getattr(kernels, function)).parameters
    assert set(kinds) == set(parameters), "CALLS must give the kind of each argument"
    complaints = []
    for name, kind in kinds.items():
        for wrong in wrong_values(function, name, kind, valid.get(name)):
            complaint = refused(function, {**valid, name: wrong}, name)
            if complaint:
                complaints.append(f"{function}({name}={wrong!r:.90}): {complaint}")
    if complaints:
        raise AssertionError("\n".join(complaints))


@pytest.mark.parametrize("function", kernels.__all__)
def test_the_valid_arguments_are_accepted(function):
    valid, kinds = CALLS[function]
    if valid and not (function == "use_isa" and not kernels.isa_levels()):
        getattr(kernels, function)(**valid)
    with pytest.raises(TypeError):
        getattr(kernels, function)(*[None] * (len(kinds) + 1))


def test_refused_combinations():
    for arguments, name in (
        ({"weight": np.ones((2, 2), np.int8), "format": Int8()}, "scale"),
        ({"weight": ROWS, "format": Sparse(), "input_scale": 0.1}, "input_scale"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} "):
            kernels.pack(**arguments)
    sparse = kernels.pack(np.ones((4, 3), np.float32), Sparse())
    for arguments, name in (
        ({"residual": np.ones((4, 4), np.float32)}, "residual"),
        ({"output_scale": 1.0}, "output_scale"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be None"):
            kernels.linear(ROWS, sparse, **arguments)
    with pytest.raises(TypeError, match=r"^x must be float32"):  # int8 needs a weight that knows its scale
        kernels.linear(INTEGERS, PACKED)
    with pytest.raises(ValueError, match=r"^signed "):
        kernels.quantize(ROWS, signed=False)
    with pytest.raises(ValueError, match=r"^x "):
        kernels.quantize(np.array([-3e38, 3e38], np.float32), scheme="affine")
    with pytest.raises(ValueError, match=r"^k "):
        kernels.kth_magnitude([], 1)
    with pytest.raises(OverflowError, match="a @ b"):
        kernels.int8_matmul(np.full((1, 2**17), -128, np.int8), np.full((2**17, 1), -128, np.int8))


def test_a_refused_threshold_changes_nothing():
    array = np.array([0.1, np.nan, 3], np.float32)
    for threshold in (0.5, -1.0, np.nan, "1"):
        with pytest.raises((TypeError, ValueError)):
            kernels.apply_threshold(array, threshold)
    assert array[0] == np.float32(0.1) and array[2] == 3
    negated = torch.ones(3, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    with pytest.raises(TypeError, match=r"^array "):  # its memory is not the values
        kernels.apply_threshold(negated, 2.0)


def test_nan_is_found_by_kth_magnitude_wherever_it_is(implementation):
    for size in (1, 3, 40, 1000, 70_000):
        for k in (1, size // 2 + 1, size):
            for at in (0, size // 2, size - 1):
                array = np.arange(size, dtype=np.float32)
                for payload in (0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFFFFFFF):
                    array[at : at + 1].view(np.uint32)[0] = payload
                    with pytest.raises(ValueError, match=r"tensors\[1\]"):
                        kernels.kth_magnitude([np.ones(3, np.float32), array], k)


@pytest.mark.skipif(sys.flags.optimize > 0, reason="runs this file itself")
def test_wrong_arguments_are_refused_under_python_optimized():
    code = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(code, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
