"""Weights of one bit: how they are found, the written formulas, their ends, and what is refused."""

import copy

import numpy as np
import pytest
from cases import bits

import pycompress as pc
from pycompress import kernels
from pycompress.formats import Binary, Int8

torch = pytest.importorskip("torch")

SIGNS = Binary("binary")
FORMATS = (Binary(), SIGNS)
ROWS = np.ones((4, 70), np.float32)
INTEGERS = np.where(np.arange(280).reshape(4, 70) % 3 == 0, np.int8(-1), np.int8(1))
SCALE = np.full(4, 0.5, np.float32)


def random_weight(rng, outputs, inputs):
    return rng.normal(size=(outputs, inputs)).astype(np.float32)


def test_int8_rows_have_the_numbers_of_int8(implementation):
    rng = np.random.default_rng(1)
    for inputs in (1, 31, 256, 300, 515):
        weight = rng.choice(np.array([-1, 1], np.int8), (70, inputs))
        scale, bias = rng.uniform(0.1, 1, 70).astype(np.float32), rng.normal(size=70).astype(np.float32)
        for fixed in (None, 0.03):
            binary = kernels.pack(weight, Binary(), bias, scale, fixed)
            int8 = kernels.pack(weight, Int8(), bias, scale, fixed)
            for rows in (1, 3, 30):
                x = random_weight(rng, rows, inputs)
                y = kernels.linear(x, binary, "silu")
                assert np.array_equal(bits(y), bits(kernels.linear(x, int8, "silu")))


def test_rows_of_signs_follow_the_written_formula(implementation):
    rng = np.random.default_rng(2)
    f32 = np.float32
    for _ in range(12):
        rows, inputs, outputs = (int(n) for n in rng.integers(1, (9, 300, 40)))
        weight = rng.choice(np.array([-1, 1], np.int8), (outputs, inputs))
        scale = rng.uniform(0, 1, outputs).astype(f32)
        bias = rng.normal(size=outputs).astype(f32)
        x = np.rint(rng.normal(size=(rows, inputs)) * 2).astype(f32) * f32(0.3)
        x[x == 0] = rng.choice(np.array([0.0, -0.0], f32), int((x == 0).sum()))
        expected = np.empty((rows, outputs), f32)
        for r, row in enumerate(x):
            sums = [np.float64(0)] * 16
            for i, value in enumerate(row):
                sums[i % 16] = sums[i % 16] + np.float64(abs(value))
            for half in (8, 4, 2, 1):
                sums = [sums[i] + sums[i + half] for i in range(half)]
            k = f32(sums[0] / inputs)
            for o in range(outputs):
                differs = int(((row >= 0) != (weight[o] > 0)).sum())
                expected[r, o] = f32(inputs - 2 * differs) * (k * scale[o]) + bias[o]
        packed = kernels.pack(weight, SIGNS, bias, scale)
        assert np.array_equal(bits(kernels.linear(x, packed)), bits(expected))


@pytest.mark.parametrize("inputs", [1984, 1985, 2048, 4096, 131_200])
def test_counts_do_not_overflow(inputs, implementation):
    weight = np.stack([np.full(inputs, 1), np.full(inputs, -1), np.where(np.arange(inputs) % 2, 1, -1)]).astype(np.int8)
    x = weight.astype(np.float32)
    sums = (x.astype(np.int64) @ weight.T.astype(np.int64)).astype(np.float32)
    for format in FORMATS:
        packed = kernels.pack(weight, format, scale=1.0, input_scale=1.0 if format == Binary() else None)
        assert np.array_equal(kernels.linear(x, packed), sums)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_the_rows_beside_them(implementation, format):
    rng = np.random.default_rng(3)
    for inputs in (31, 256, 515):
        packed = kernels.pack(random_weight(rng, 70, inputs), format)
        x = random_weight(rng, 123, inputs)
        y = kernels.linear(x, packed)
        for first, last in ((0, 1), (3, 5), (7, 10), (5, 9), (2, 7), (1, 7), (4, 23), (2, 100)):
            assert np.array_equal(bits(kernels.linear(x[first:last], packed)), bits(y[first:last]))


def test_the_scale_is_the_mean_magnitude_and_has_the_least_error():
    rng = np.random.default_rng(4)
    weight = random_weight(rng, 30, 200)
    weight[5], weight[6, ::2] = 0, 0
    for format in FORMATS:
        packed = kernels.pack(weight, format)
        assert np.allclose(packed.scale, np.abs(weight).mean(axis=1), rtol=1e-6)
        assert np.array_equal(packed.canonical_weight(), np.where(weight >= 0, 1, -1))
        assert packed.density == 1
        error = np.square(packed.unpack() - weight).sum(axis=1)
        for factor in (0.99, 1.01):
            other = kernels.pack(weight, format, scale=packed.scale * np.float32(factor))
            assert (np.square(other.unpack() - weight).sum(axis=1) >= error).all()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_zeros_and_weights_of_zeros(implementation, format):
    packed = kernels.pack(np.zeros((3, 70), np.float32), format, bias=np.array([1, -2, 0], np.float32))
    assert kernels.linear(ROWS, packed).tolist() == [[1, -2, 0]] * 4
    packed = kernels.pack(ROWS, format, bias=np.array([1, -2, 0, 3], np.float32))
    assert kernels.linear(ROWS * 0, packed).tolist() == [[1, -2, 0, 3]] * 4


@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_make_their_row_nan(implementation, format):
    packed = kernels.pack(np.ones((3, 70), np.float32), format)
    x = np.ones((9, 70), np.float32)
    x[2, 69], x[5, 3], x[8, 40] = np.nan, np.inf, -np.inf
    y = kernels.linear(x, packed)
    assert np.isfinite(y[[0, 1, 3, 4, 6, 7]]).all() and np.isnan(y[[2, 5, 8]]).all()


def test_rows_of_any_magnitude(implementation):
    packed = kernels.pack(np.ones((1, 3), np.int8), SIGNS, scale=1.0)
    largest = np.float32(3.4028235e38)
    x = np.full((4, 3), 1, np.float32) * np.array([[1e-45], [1e-38], [1e30], [largest / 4]], np.float32)
    assert np.array_equal(bits(kernels.linear(x, packed)), bits(np.float32(3) * x[:, :1]))
    assert kernels.linear(np.full((1, 3), largest), packed).tolist() == [[np.inf]]


@pytest.mark.parametrize("format", FORMATS)
def test_half_precision_rows_and_activations(implementation, format):
    rng = np.random.default_rng(7)
    packed = kernels.pack(random_weight(rng, 33, 70), format, rng.normal(size=33).astype(np.float32))
    x = random_weight(rng, 6, 70).astype(np.float16)
    y = kernels.linear(x, packed, "gelu")
    assert y.dtype == np.float16
    assert np.array_equal(y, kernels.linear(x.astype(np.float32), packed, "gelu").astype(np.float16))


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_a_bit_for_each_weight(format):
    if kernels.backend_name() != "native":
        pytest.skip("the other backends keep a byte for each weight")
    assert kernels.pack(np.ones((640, 640), np.float32), format).nbytes <= 640 * 640 / 8 + 640 * 8 + 16


@pytest.mark.parametrize(
    ("name", "format", "arguments"),
    [
        ("weight", Binary(), {"weight": INTEGERS * 2, "scale": SCALE}),
        ("weight", SIGNS, {"weight": INTEGERS * 0, "scale": SCALE}),
        ("weight", Binary(), {"weight": ROWS * np.float32(np.nan)}),
        ("weight", Binary(), {"weight": ROWS[0]}),
        ("scale", Binary(), {"weight": INTEGERS}),
        ("scale", Binary(), {"weight": INTEGERS, "scale": SCALE[:3]}),
        ("scale", Binary(), {"weight": INTEGERS, "scale": -SCALE}),
        ("scale", Binary(), {"weight": INTEGERS, "scale": SCALE * np.float32(np.inf)}),
        ("scale", Binary(), {"weight": INTEGERS, "scale": SCALE.astype(np.uint8)}),
        ("scale", Binary(), {"weight": INTEGERS, "scale": "scale"}),
        ("zero_point", Binary(), {"weight": ROWS, "zero_point": np.ones((4, 2), np.uint8)}),
        ("multiplier", SIGNS, {"weight": ROWS, "multiplier": np.ones((4, 2), np.uint8)}),
        ("input_scale", Binary(), {"weight": ROWS, "input_scale": -0.5}),
        ("input_scale", SIGNS, {"weight": ROWS, "input_scale": 0.5}),
        ("bias", SIGNS, {"weight": ROWS, "bias": SCALE[:3]}),
    ],
)
def test_what_does_not_fit_is_refused(name, format, arguments):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} "):
        kernels.pack(format=format, **arguments)


@pytest.mark.parametrize("format", FORMATS)
def test_outputs_of_int8_are_refused(format):
    packed = kernels.pack(ROWS, format)
    for name, value in (("residual", np.zeros((4, 4), np.float32)), ("output_scale", 0.1)):
        with pytest.raises(ValueError, match=rf"^{name} must be None"):
            kernels.linear(ROWS, packed, **{name: value})


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(70, 40), torch.nn.GELU(), torch.nn.Linear(40, 9, bias=False))


@pytest.mark.parametrize("format", FORMATS)
def test_models_are_packed_saved_loaded_and_copied(tmp_path, format):
    x = torch.randn(5, 70)
    packed = pc.pack(model(), x, format, force=True)
    y = packed(x)
    pc.save(packed, tmp_path / "model")
    again = pc.load(tmp_path / "model", into=model)
    other = pc.pack(model(), x, format, force=True)
    other.load_state_dict(packed.state_dict())
    for twin in (again, copy.deepcopy(packed), other):
        assert torch.equal(twin(x), y)
    weight = {t.name: t for t in pc.artifact.describe(tmp_path / "model").tensors}["0.weight"]
    assert weight.coding == "1-bit codes" and weight.bytes == 40 * 70 // 8 + 2
