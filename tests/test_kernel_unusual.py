"""Unusual but legal input: any layout, byte order, kind of array or half precision gives the bits of plain input."""

import cases
import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.formats import Int8, Sparse

torch = pytest.importorskip("torch")


def padded(array):
    """Every other element of each dimension."""
    wide = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def backwards(array):
    return np.ascontiguousarray(np.flip(array))[tuple(slice(None, None, -1) for _ in array.shape)]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


def with_a_subclass(array):
    return array.copy().view(np.recarray)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every other": padded,
    "negative strides": backwards,
    "read-only": read_only,
    "unaligned": unaligned,
    "other byte order": swapped,
    "subclass": with_a_subclass,
    "middle of a larger array": lambda a: np.pad(a, 1)[tuple(slice(1, -1) for _ in a.shape)],
}


def from_the_middle(array):
    return torch.from_numpy(np.concatenate([array.reshape(-1)[:1], array.reshape(-1)]))[-array.size :].view(array.shape)


def negated(array):
    return torch._neg_view(torch.from_numpy(-array)) if array.dtype == np.float32 else torch.from_numpy(array)


TENSORS = {
    "tensor": lambda a: torch.from_numpy(a.copy()),
    "transposed tensor": lambda a: torch.from_numpy(np.ascontiguousarray(a.T)).permute(*range(a.ndim)[::-1]),
    "every other": lambda a: torch.from_numpy(np.repeat(a, 2, axis=-1))[..., ::2],
    "middle of a tensor": from_the_middle,
    "parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a.copy()), requires_grad=False),
    "negated tensor": negated,
}


def plain_problems(name):
    rng = np.random.default_rng(20)
    operation = cases.OPERATIONS[name]
    for sizes in ((5, 33, 17), (34, 64, 40), (1, 9, 3), (0, 4, 2), (3, 0, 2), (3, 2, 0)):
        for _ in range(3):
            yield {key: plain(value) for key, value in operation.make(rng, *sizes).items()}


def plain(value):
    if isinstance(value, list):
        return [plain(item) for item in value]
    return np.array(value, order="C") if isinstance(value, np.ndarray) else value


def convert(value, change):
    """Change each array of a problem (one number has but one layout)."""
    if isinstance(value, list):
        return [convert(item, change) for item in value]
    if isinstance(value, np.ndarray):
        return change(value) if value.ndim else change(value.reshape(1)).reshape(())
    return value


def run(name, problem):
    if name == "apply_threshold":
        return kernels.apply_threshold(**problem), problem["array"]
    result = cases.OPERATIONS[name].run(problem)
    return result if isinstance(result, tuple) else (result,)


def assert_same(got, expected, where):
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(bits(np.asarray(a)), bits(np.asarray(b))), where


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_layouts(name, layout, implementation):
    for problem in plain_problems(name):
        unusual = {key: convert(value, LAYOUTS[layout]) for key, value in problem.items()}
        if name == "apply_threshold" and layout in ("read-only", "other byte order"):
            with pytest.raises((TypeError, ValueError), match=r"^array must"):  # it is changed in place
                run(name, unusual)
            continue
        where = f"{cases.describe(problem)} as {cases.describe(unusual)}"
        assert_same(run(name, unusual), run(name, problem), where)


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_tensors(name, kind, implementation):
    for problem in plain_problems(name):
        unusual = {key: convert(value, TENSORS[kind]) for key, value in problem.items()}
        if (name, kind) == ("apply_threshold", "negated tensor"):
            with pytest.raises(TypeError, match=r"^array must"):
                run(name, unusual)
            continue
        got, expected = run(name, unusual), run(name, problem)
        assert_same(got, expected, cases.describe(problem))
        if name not in ("kth_magnitude", "apply_threshold"):
            assert all(type(part) is torch.Tensor for part in got)


@pytest.mark.parametrize(
    "name", sorted(set(cases.OPERATIONS) - {"apply_threshold", "above", "int8_matmul", "dequantize", "spmm"})
)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(name, half, implementation):
    for problem in plain_problems(name):
        narrow = {}
        for key, value in problem.items():
            keep = not isinstance(value, (np.ndarray, list)) or getattr(value, "dtype", np.float32) in (
                np.int8,
                np.uint8,
            )
            change = (lambda a: a.astype(np.float16)) if half == "float16" else (lambda a: torch.tensor(a).bfloat16())
            narrow[key] = value if keep else convert(value, lambda a, f=change: f(np.clip(a, -6e4, 6e4)))
        wide = {key: convert(value, lambda a: a) for key, value in narrow.items()}
        for key, value in narrow.items():
            if isinstance(value, list) and isinstance(value[0], dict):
                continue  # the layers of a chain stay as they are
            if isinstance(value, (list, torch.Tensor)) or getattr(value, "dtype", None) == np.float16:
                items = value if isinstance(value, list) else [value]
                widened = [np.asarray(v.float() if half == "bfloat16" else v).astype(np.float32) for v in items]
                wide[key] = widened if isinstance(value, list) else widened[0]
        if name in ("int8_linear", "int8_outputs", "sparse_int8_linear") and wide["scale"] is not None:
            narrow["scale"] = wide["scale"] = np.maximum(wide["scale"], np.float32(0.01))
        got, expected = run(name, narrow), run(name, wide)
        to_int8 = problem.get("output_scale") is not None or getattr(problem.get("x"), "dtype", None) == np.int8
        # the results come back in the dtype of x
        if name.endswith(("linear", "outputs", "conv", "last", "chain", "lstm", "gru")) and not to_int8:
            assert all(part.dtype == (np.float16 if half == "float16" else torch.bfloat16) for part in got)
            with np.errstate(over="ignore"):
                expected = [torch.from_numpy(part).to(getattr(torch, half)).float().numpy() for part in expected]
            got = [torch.as_tensor(part).float().numpy() for part in got]
        assert_same(got, expected, cases.describe(problem))


def test_broadcast_arrays(implementation):
    rng = np.random.default_rng(21)
    row, weight = rng.normal(size=33).astype(np.float32), rng.normal(size=(9, 33)).astype(np.float32)
    column = np.broadcast_to(rng.normal(size=(9, 1)).astype(np.float32), (9, 33))
    for format in (Int8(), Sparse()):
        packed = kernels.pack(weight, format)
        y = kernels.linear(np.broadcast_to(row, (40, 33)), packed)
        assert np.array_equal(bits(y), bits(kernels.linear(np.tile(row, (40, 1)), packed)))
        packed = kernels.pack(column, format, bias=np.broadcast_to(np.float32(2), 9))
        assert np.array_equal(packed.unpack(), kernels.pack(column.copy(), format).unpack())
        assert packed.bias.tolist() == [2] * 9
    assert_same(kernels.quantize(column, axis=0), kernels.quantize(column.copy(), axis=0), "quantize")
    assert np.array_equal(kernels.l2_scores(column, "row"), kernels.l2_scores(column.copy(), "row"))
    assert kernels.kth_magnitude([column], 100) == kernels.kth_magnitude([column.copy()], 100)
    integers = np.broadcast_to(np.int8(-128), (70, 65))
    assert (kernels.int8_matmul(integers, integers.T) == 65 * 128 * 128).all()


def test_a_strided_array_is_thresholded_where_it_lies(implementation):
    for make in (padded, backwards, np.asfortranarray, unaligned):
        plain_array = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)
        array = make(plain_array)
        assert kernels.apply_threshold(array, 3) == 7
        assert np.array_equal(array, np.where(np.abs(plain_array) <= 3, 0, plain_array))
    wide = np.ones((4, 6), np.float32)
    assert kernels.apply_threshold(wide[:, ::2], 1) == 12
    assert wide[:, 1::2].all() and not wide[:, ::2].any()
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    assert kernels.apply_threshold(parameter.detach().T, 1) == 12
    assert not parameter.any()
    parameter.data.fill_(0.5)
    assert kernels.apply_threshold(parameter, 1) == 12  # in place, like torch's functions under no_grad
    assert not parameter.any()


@pytest.mark.parametrize("format", [Int8(), Sparse()])
def test_the_default_dtype_of_torch_does_not_matter(implementation, format):
    packed = kernels.pack(np.eye(3, dtype=np.float32), format)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        y = kernels.linear(torch.ones(2, 3, dtype=torch.float32), packed)
    finally:
        torch.set_default_dtype(before)
    assert y.dtype == torch.float32 and y.tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize("format", [Int8(), Sparse()])
def test_inputs_are_left_alone(implementation, format):
    rng = np.random.default_rng(22)
    x, weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((37, 21), (13, 21), (13,)))
    copies = [array.copy() for array in (x, weight, bias)]
    packed = kernels.pack(weight, format, bias)
    first = kernels.linear(x, packed)
    assert all(np.array_equal(*pair) for pair in zip(copies, (x, weight, bias), strict=True))
    weight[...], bias[...] = 7, 7  # the packed weight holds its own copy
    assert np.array_equal(bits(kernels.linear(x, packed)), bits(first))
    first[...] = 0  # and each result its own memory
    assert kernels.linear(x, packed).any()


def test_a_tensor_that_requires_grad_is_accepted_under_no_grad(implementation):
    packed = kernels.pack(np.eye(3, dtype=np.float32), Sparse())
    x = torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        assert kernels.linear(x, packed).tolist() == [[1, 1, 1]] * 2
    with torch.inference_mode():
        assert kernels.linear(x, packed).tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match=r"^x must not require grad"):
        kernels.linear(x, packed)
