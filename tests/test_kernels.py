"""Every operation, on every implementation, against the truth."""

import functools
import warnings

import cases
import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.formats import Int8, Sparse

SHAPES = 520
LONG = (65793, 65794, 131071, 131072, 133144, 133145, 262147)  # where int32 sums of int8 products end


@functools.cache
def problems(name):
    """SHAPES problems of an operation with their truths, the same for all implementations."""
    operation = cases.OPERATIONS[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    made = [operation.make(rng, *sizes) for sizes in cases.sizes(SHAPES, rng)]
    return [(problem, operation.truth(problem)) for problem in made]


@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_parity(name, implementation):
    operation = cases.OPERATIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for problem, truth in problems(name):
            operation.check(problem, operation.run(problem), truth)


@pytest.mark.soak
@pytest.mark.parametrize("name", cases.OPERATIONS)
def test_parity_of_100_000_random_problems(name):
    operation = cases.OPERATIONS[name]
    rng = np.random.default_rng(5)
    here = [each for each in cases.implementations() if each != "reference" and not cases.missing(each)]
    for sizes in cases.small_sizes(100_000, rng):
        problem = operation.make(rng, *sizes)
        truth = operation.truth(problem)
        for implementation in here:
            with cases.using(implementation):
                operation.check(problem, operation.run(problem), truth)


def test_there_are_problems_of_every_size():
    rng = np.random.default_rng(0)
    for dimension in zip(*cases.sizes(SHAPES, rng), strict=True):
        assert len(dimension) == SHAPES >= 500
        assert set(dimension) >= set(cases.SIZES)


def int8_row(x, weight, scale, bias, input_scale, relu):
    """One output of int8 linear as the docstring writes it, number by number."""
    f32 = np.float32
    m = max((abs(v) for v in x), default=f32(0))
    if input_scale is not None:
        factor, s = f32(1) / f32(input_scale), f32(input_scale)
    else:
        factor, s = (f32(0), f32(0)) if m < 2.0**-100 else (f32(127) / m, m / f32(127))
    total = sum(int(min(max(np.rint(v * factor), -127), 127)) * int(w) for v, w in zip(x, weight, strict=True))
    y = f32(total) * (s * scale) + bias
    return max(y, f32(0)) if relu else y


def test_int8_linear_is_the_written_formula(implementation):
    rng = np.random.default_rng(1)
    for case in range(60):
        rows, inputs, outputs = rng.integers(1, 24, 3)
        x = cases.floats(rng, rows, inputs)
        weight = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        scale = rng.uniform(1e-3, 1, outputs).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32)
        input_scale, relu = (None, 0.03)[case % 2], case % 3 == 0
        y = kernels.linear(x, kernels.pack(weight, Int8(), bias, scale, input_scale), "relu" if relu else None)
        expected = [
            [int8_row(row, w, s, b, input_scale, relu) for w, s, b in zip(weight, scale, bias, strict=True)]
            for row in x
        ]
        assert np.array_equal(bits(y), bits(np.array(expected, np.float32)))


def test_int8_weights_are_rounded_per_output(implementation):
    rng = np.random.default_rng(2)
    for _ in range(40):
        weight = cases.floats(rng, *rng.integers(1, 50, 2))
        packed = kernels.pack(weight, Int8())
        largest = np.abs(weight).max(axis=1)
        scale = np.where(largest < np.float32(2.0**-100), np.float32(1), largest / np.float32(127))
        assert np.array_equal(bits(packed.scale), bits(scale))
        assert np.array_equal(packed.canonical_weight(), np.rint(weight / scale[:, None]).astype(np.int8))


@pytest.mark.parametrize("k", LONG)
def test_int8_sums_are_exact_at_any_length(k, implementation):
    alternating = np.where(np.arange(k) % 2, 127, -127).astype(np.int8)
    constants = [np.full(k, value, np.int8) for value in (127, -127, -128)]
    weight = np.stack([alternating, -alternating, *constants])
    x = weight[[0, 2, 3]].astype(np.float32)
    sums = x.astype(np.int64) @ weight.astype(np.int64).T
    packed = kernels.pack(weight, Int8(), scale=np.ones(5, np.float32))
    assert np.array_equal(bits(kernels.linear(x, packed)), bits(sums.astype(np.float32)))


@pytest.mark.parametrize("k", LONG)
def test_int8_matmul_is_exact_or_says_that_it_overflows(k, implementation):
    alternating = np.where(np.arange(k) % 2, 127, -128).astype(np.int8)
    rows = [alternating, *(np.full(k, value, np.int8) for value in (127, -127, -128))]
    for a in rows:
        for b in rows:
            product = int(a.astype(np.int64) @ b)
            if -(2**31) <= product < 2**31:
                assert kernels.int8_matmul(a[None], b[:, None]).tolist() == [[product]]
            else:
                with pytest.raises(OverflowError, match="int32"):
                    kernels.int8_matmul(a[None], b[:, None])


@pytest.mark.parametrize("input_scale", [None, 0.01])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_int8_rows_with_nan_or_infinity_become_nan(implementation, input_scale, activation):
    rng = np.random.default_rng(3)
    for inputs in (1, 7, 33, 130):
        x = rng.normal(size=(9, inputs)).astype(np.float32)
        bad = [0, 3, 4, 8]
        for row, value in zip(bad, (np.nan, np.inf, -np.inf, np.nan), strict=True):
            x[row, rng.integers(inputs)] = value
        packed = kernels.pack(rng.normal(size=(19, inputs)).astype(np.float32), Int8(), input_scale=input_scale)
        y = kernels.linear(x, packed, activation)
        assert np.isnan(y[bad]).all()
        good = [row for row in range(9) if row not in bad]
        assert np.array_equal(bits(y[good]), bits(kernels.linear(x[good], packed, activation)))


@pytest.mark.parametrize("factor", [0, 1e-45, 1e-40, 2.0**-101, 2.0**-99, 1e-20, 1e30, 3e38])
@pytest.mark.parametrize("input_scale", [None, 1e-20, 1.0])
def test_int8_rows_of_any_magnitude(implementation, factor, input_scale):
    rng = np.random.default_rng(4)
    x = (rng.uniform(-1, 1, (5, 65)).astype(np.float32) * np.float32(factor)).astype(np.float32)
    operation = cases.OPERATIONS["int8_linear"]
    for bias in (None, rng.normal(size=33).astype(np.float32)):
        problem = {"x": x, "weight": cases.floats(rng, 33, 65), "scale": None, "bias": bias}
        problem |= {"input_scale": input_scale, "activation": None}
        y = operation.run(problem)
        operation.check(problem, y, operation.truth(problem))
        if factor <= 2.0**-101 and input_scale is None:  # a row of zeros
            assert np.array_equal(y, np.broadcast_to(np.float32(0) if bias is None else bias, (5, 33)))


def test_sparse_products_follow_ieee_for_the_stored_weights(implementation):
    weight = np.zeros((3, 70), np.float32)
    weight[0, 69], weight[1, 3] = 2, -1
    packed = kernels.pack(weight, Sparse(), bias=np.array([0, 0, 5], np.float32))
    for rows in (1, 2, 5, 40, 70):
        x = np.ones((rows, 70), np.float32)
        x[:, 20] = np.inf  # meets pruned weights only
        assert kernels.linear(x, packed).tolist() == [[2, -1, 5]] * rows
        x[rows // 2, 69], x[-1, 3] = np.nan, np.inf
        y = kernels.linear(x, packed)
        assert np.isnan(y[rows // 2, 0]) and y[-1, 1] == -np.inf
        assert (y[:, 2] == 5).all()


def test_sparse_drops_weights_below_the_normal_range(implementation):
    weight = np.array([[1e-40, 1.0, -1e-45, 0]], np.float32)
    packed = kernels.pack(weight, Sparse())
    assert packed.unpack().tolist() == [[0, 1, 0, 0]]
    assert packed.density == 0.25


@pytest.mark.parametrize("format", [Int8(), Sparse()])
def test_leading_dimensions_and_empty_sides(implementation, format):
    rng = np.random.default_rng(6)
    for shape in ((), (1,), (4,), (2, 3), (2, 0, 3), (2, 1, 2)):
        for outputs, inputs in ((5, 7), (0, 7), (5, 0), (0, 0)):
            packed = kernels.pack(rng.normal(size=(outputs, inputs)).astype(np.float32), format)
            x = rng.normal(size=(*shape, inputs)).astype(np.float32)
            y = kernels.linear(x, packed)
            assert y.shape == (*shape, outputs) and y.dtype == np.float32
            rows = int(np.prod(shape))
            flat = kernels.linear(x.reshape(rows, inputs), packed)
            assert np.array_equal(y.reshape(rows, outputs), flat)


def test_bias_is_all_that_is_left_of_an_empty_sum(implementation):
    bias = np.array([1, -2], np.float32)
    for format in (Int8(), Sparse()):
        for weight in (np.zeros((2, 0), np.float32), np.zeros((2, 9), np.float32)):
            packed = kernels.pack(weight, format, bias)
            x = np.ones((3, weight.shape[1]), np.float32)
            assert kernels.linear(x, packed).tolist() == [[1, -2]] * 3
            assert kernels.linear(x, packed, "relu").tolist() == [[1, 0]] * 3


def test_kth_magnitude_of_large_arrays_with_ties_and_zeros(implementation):
    rng = np.random.default_rng(7)
    pruned = rng.normal(size=300_001).astype(np.float32) * (rng.random(300_001) < 0.1)
    arrays = [
        pruned.astype(np.float32),
        np.full(100_000, -0.5, np.float32),
        np.array([np.inf, -0.0, 1e-45], np.float32),
    ]
    truth = np.sort(np.abs(np.concatenate(arrays)))
    for k in (1, 2, 270_000, 270_500, 300_000, 330_000, truth.size - 1, truth.size):
        assert kernels.kth_magnitude(arrays, k) == truth[k - 1]


def test_quantize_reaches_both_ends_and_rounds_ties_to_even(implementation):
    x = np.array([-127, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127], np.float32)
    assert kernels.quantize(x).values.tolist() == [-127, -2, -2, 0, 0, 2, 2, 126, 127]
    for bits_ in range(2, 17):
        for signed in (False, True):
            q = kernels.quantize(np.array([-1, 3], np.float32), bits_, scheme="affine", signed=signed)
            low = -(2 ** (bits_ - 1)) if signed else 0
            assert q.values.tolist() == [low, low + 2**bits_ - 1]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-45, 1e30, -3e38])
def test_a_constant_survives_quantization(implementation, value):
    x = np.full((3, 5), value, np.float32)
    for scheme in ("symmetric", "affine"):
        for axis in (None, 0):
            quantized = kernels.quantize(x, scheme=scheme, axis=axis)
            back = kernels.dequantize(*quantized, axis=axis)
            assert np.allclose(back, x, rtol=1e-6, atol=1e-37)


def test_scores_of_huge_and_tiny_values(implementation):
    for value in (1e30, 1e-30, 1e-42):
        weight = np.full((3, 100), value, np.float32)
        assert np.allclose(kernels.l1_scores(weight, "row"), 100 * value, rtol=1e-4)
        assert np.allclose(kernels.l2_scores(weight, "row"), 10 * value, rtol=1e-2)
        assert np.allclose(kernels.l2_scores(weight, "column"), 3**0.5 * value, rtol=1e-2)
