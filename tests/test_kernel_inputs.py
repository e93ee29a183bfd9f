"""Wrong input of kernels is refused with a message that names the argument."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_calls import (
    CALLS,
    INFINITE,
    INTEGERS,
    NONE_IS_LEGAL,
    PACKED,
    ROWS,
    Anything,
    Array,
    Integers,
    Listed,
    Number,
    States,
)

from pycompress import kernels
from pycompress.formats import Affine, Float32, Int8, Sparse

torch = pytest.importorskip("torch")


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
