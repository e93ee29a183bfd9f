"""Weights that share few numbers: how these are found, the written formula, their ends, and what is refused."""

import copy
import io

import numpy as np
import pytest
from cases import bits

import pycompress as pc
from pycompress import kernels
from pycompress.codes import codes_of, decode_codes, encode_codes
from pycompress.formats import Codebook, Int4, Int8

torch = pytest.importorskip("torch")

FORMATS = (Codebook(), Codebook(group=32), Codebook(bits=2, group=128), Codebook(bits=2))
ROWS = np.ones((4, 70), np.float32)
INTEGERS = np.where(np.arange(280).reshape(4, 70) % 3 == 0, np.int8(-9), np.int8(100))
SCALE = np.full((4, 2), 0.5, np.float32)


def random_weight(rng, outputs, inputs):
    return rng.normal(size=(outputs, inputs)).astype(np.float32)


def test_rows_follow_the_written_formula(implementation):
    rng = np.random.default_rng(1)
    f32 = np.float32
    for case in range(12):
        rows, inputs, outputs = (int(n) for n in rng.integers(1, (9, 300, 40)))
        format = Codebook((2, 4)[case % 2], (32, 64, 128)[case % 3])
        groups = -(-inputs // format.group)
        table = rng.choice(np.arange(-127, 128), 2**format.bits, replace=False)
        weight = rng.choice(table, (outputs, inputs)).astype(np.int8)
        scale, bias = rng.normal(size=(outputs, groups)).astype(np.float16), rng.normal(size=outputs).astype(f32)
        x = (rng.normal(size=(rows, inputs)) * 3).astype(f32)
        fixed = 0.03 if case % 4 > 1 else None
        packed = kernels.pack(weight, format, bias, scale, fixed)
        expected = np.empty((rows, outputs), f32)
        for r, row in enumerate(x):
            step = np.abs(row).max() / f32(127) if fixed is None else f32(fixed)
            factor = f32(127) / np.abs(row).max() if fixed is None else f32(1) / f32(fixed)
            q = np.clip(np.rint(row * factor), -127, 127).astype(int)
            for o in range(outputs):
                t = f32(0)
                for g in range(groups):
                    part = slice(g * format.group, (g + 1) * format.group)
                    t = t + f32(int(q[part] @ weight[o, part].astype(int))) * f32(scale[o, g])
                expected[r, o] = t * step + bias[o]
        assert np.array_equal(bits(kernels.linear(x, packed)), bits(expected))
        assert np.array_equal(packed.canonical_weight(), weight)
        assert np.array_equal(packed.unpack(), weight * scale.astype(f32).repeat(format.group, axis=1)[:, :inputs])


@pytest.mark.parametrize("inputs", [127, 4096, 131_200])
def test_sums_are_exact_at_the_ends(inputs, implementation):
    weight = np.stack([np.full(inputs, 127), np.full(inputs, -127), np.where(np.arange(inputs) % 2, 127, -127)])
    packed = kernels.pack(weight.astype(np.int8), Codebook(2, 128), scale=np.ones((3, -(-inputs // 128)), np.float16))
    y = kernels.linear(weight.astype(np.float32), packed)
    t = np.float32(0)
    for g in range(-(-inputs // 128)):
        t = t + np.float32(127 * 127 * min(128, inputs - 128 * g))
    assert y[0].tolist()[:2] == [t, -t] and y[1].tolist()[:2] == [-t, t] and y[2, 2] == t


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_the_rows_beside_them(implementation, format):
    rng = np.random.default_rng(3)
    for inputs in (31, 256, 515):
        packed = kernels.pack(random_weight(rng, 70, inputs), format)
        x = random_weight(rng, 123, inputs)
        y = kernels.linear(x, packed)
        for first, last in ((0, 1), (3, 5), (7, 10), (5, 9), (2, 7), (1, 7), (4, 23), (2, 100)):
            assert np.array_equal(bits(kernels.linear(x[first:last], packed)), bits(y[first:last]))


def test_weights_become_the_nearest_numbers_of_the_table():
    rng = np.random.default_rng(4)
    weight = random_weight(rng, 300, 200) * rng.uniform(0.01, 10, (300, 1)).astype(np.float32)
    weight[5], weight[6, :64], weight[7] = 0, 0, np.abs(weight[7])
    for format in FORMATS:
        packed = kernels.pack(weight, format)
        table, scale = np.unique(packed.canonical_weight()), packed.scale.astype(np.float32)
        assert 1 < table.size <= 2**format.bits and table.min() >= -127 and table.max() <= 127
        group = np.arange(200) // format.group
        choices = np.abs(weight[:, :, None] - table * scale[:, group, None])
        assert (np.abs(packed.unpack() - weight) <= choices.min(axis=2) * 1.00001 + 1e-12).all()
        given = kernels.pack(weight, format, scale=packed.scale)
        assert np.array_equal(given.scale, packed.scale)
        assert np.unique(given.canonical_weight()).size <= 2**format.bits


def test_the_error_is_smaller_than_that_of_equal_steps():
    """A fifth less squared error than Int4 of the same groups on normal weights, a third on heavier tails."""
    rng = np.random.default_rng(5)
    for weight, most in ((rng.normal(size=(256, 512)), 0.85), (rng.laplace(size=(256, 512)), 0.7)):
        weight = weight.astype(np.float32)
        error = {
            format: np.square(kernels.pack(weight, format).unpack() - weight).mean()
            for format in (Int4(64), Codebook(), Codebook(bits=2))
        }
        assert error[Codebook()] < most * error[Int4(64)]
        assert error[Codebook(bits=2)] < 0.18 * np.square(weight).mean()


def test_few_numbers_are_found_exactly():
    """A weight of four numbers under a power of two for each group comes back as it was."""
    rng = np.random.default_rng(6)
    numbers = rng.choice(np.array([-127, -32, 16, 127]), (64, 256)).astype(np.float32)
    weight = numbers * (2.0 ** -rng.integers(4, 9, (64, 4))).astype(np.float32).repeat(64, axis=1)
    for format in (Codebook(bits=2), Codebook(bits=4)):
        assert np.array_equal(kernels.pack(weight, format).unpack(), weight)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25, 1e-9])
def test_constant_weights(implementation, value):
    for format in FORMATS:
        packed = kernels.pack(np.full((3, 70), value, np.float32), format)
        expected = 0 if abs(value) < 1e-6 else value
        assert np.allclose(packed.unpack(), expected, rtol=2e-3, atol=0)
        assert np.allclose(kernels.linear(ROWS, packed), 70 * expected, rtol=3e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_half_precision_rows_and_activations(implementation, format):
    rng = np.random.default_rng(7)
    packed = kernels.pack(random_weight(rng, 33, 70), format, rng.normal(size=33).astype(np.float32))
    x = random_weight(rng, 6, 70).astype(np.float16)
    y = kernels.linear(x, packed, "gelu")
    assert y.dtype == np.float16
    assert np.array_equal(y, kernels.linear(x.astype(np.float32), packed, "gelu").astype(np.float16))
    tensor = torch.from_numpy(x.astype(np.float32)).bfloat16()
    assert torch.equal(kernels.linear(tensor, packed), kernels.linear(tensor.float(), packed).bfloat16())


@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_make_their_row_nan(implementation, format):
    packed = kernels.pack(np.ones((3, 70), np.float32), format)
    x = np.ones((9, 70), np.float32)
    x[2, 69], x[5, 3], x[8, 40] = np.nan, np.inf, -np.inf
    y = kernels.linear(x, packed)
    assert np.isfinite(y[[0, 1, 3, 4, 6, 7]]).all() and np.isnan(y[[2, 5, 8]]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_the_codes_and_the_scales(format):
    if kernels.backend_name() != "native":
        pytest.skip("the other backends keep a byte for each weight")
    packed = kernels.pack(np.ones((640, 640), np.float32), format)
    assert packed.nbytes <= 640 * 640 * (format.bits / 8 + 2 / format.group) + 640 * 8


def test_codes():
    rng = np.random.default_rng(8)
    for shape in ((0,), (1,), (7,), (3, 5), (4, 6)):
        for width in (1, 2, 4):
            q = rng.choice(rng.integers(-128, 128, 2**width), shape).astype(np.int8)
            coded, table = encode_codes(q, width)
            assert coded.dtype == np.uint8 and coded.size == -(-q.size * width // 8)
            assert table.tolist() == sorted(set(q.reshape(-1).tolist()))
            assert np.array_equal(decode_codes(coded, table, width, shape), q)
            whole, places = codes_of(q, width)
            assert whole.size == 2**width and np.array_equal(whole[places], q)
    with pytest.raises(ValueError, match=r"^integers must have at most 4"):
        encode_codes(np.arange(5, dtype=np.int8), 2)
    table = np.array([-1, 1], np.int8)
    for wrong in (np.zeros(2, np.uint8), np.zeros(1, np.int8), np.zeros((1, 1), np.uint8), np.array([64], np.uint8)):
        with pytest.raises(ValueError, match=r"^codes must"):
            decode_codes(wrong, table, 2, (3,))
    with pytest.raises(ValueError, match=r"^codes must be below 2"):
        decode_codes(np.array([3], np.uint8), table, 2, (3,))
    for wrong in (table[::-1], np.array([1, 1], np.int8), table.astype(np.uint8), np.arange(5, dtype=np.int8)):
        with pytest.raises(ValueError, match=r"^table must"):
            decode_codes(np.zeros(1, np.uint8), wrong, 2, (3,))


@pytest.mark.parametrize(
    ("name", "format", "arguments"),
    [
        ("weight", Codebook(bits=2), {"weight": np.arange(280).reshape(4, 70).astype(np.int8) % 5, "scale": SCALE}),
        ("weight", Codebook(), {"weight": np.arange(280).reshape(4, 70).astype(np.int8), "scale": SCALE}),
        ("weight", Codebook(), {"weight": np.where(INTEGERS > 0, np.int8(-128), np.int8(1)), "scale": SCALE}),
        ("weight", Codebook(), {"weight": ROWS * np.float32(1e8)}),
        ("weight", Codebook(), {"weight": ROWS * np.float32(np.nan)}),
        ("weight", Codebook(), {"weight": ROWS[0]}),
        ("scale", Codebook(), {"weight": INTEGERS}),
        ("scale", Codebook(), {"weight": INTEGERS, "scale": SCALE[:, :1]}),
        ("scale", Codebook(), {"weight": INTEGERS, "scale": SCALE[:3]}),
        ("scale", Codebook(), {"weight": INTEGERS, "scale": 0.5}),
        ("scale", Codebook(), {"weight": INTEGERS, "scale": SCALE * np.float32(1e6)}),
        ("scale", Codebook(), {"weight": INTEGERS, "scale": SCALE * np.float32(np.inf)}),
        ("scale", Codebook(), {"weight": ROWS, "scale": SCALE.astype(np.uint8)}),
        ("zero_point", Codebook(), {"weight": ROWS, "zero_point": np.ones((4, 2), np.uint8)}),
        ("multiplier", Codebook(), {"weight": ROWS, "multiplier": np.ones((4, 2), np.uint8)}),
        ("input_scale", Codebook(), {"weight": ROWS, "input_scale": -0.5}),
        ("bias", Codebook(), {"weight": ROWS, "bias": SCALE}),
    ],
)
def test_what_does_not_fit_is_refused(name, format, arguments):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} "):
        kernels.pack(format=format, **arguments)


def test_outputs_of_int8_are_refused():
    packed = kernels.pack(ROWS, Codebook())
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
    assert [type(layer).__name__ for layer in packed] == ["PackedLinear", "Identity", "PackedLinear"]
    y = packed(x)
    pc.save(packed, tmp_path / "model")
    again = pc.load(tmp_path / "model", into=model)
    other = pc.pack(model(), x, format, force=True)
    other.load_state_dict(packed.state_dict())
    for twin in (again, copy.deepcopy(packed), other):
        assert torch.equal(twin(x), y)
    weight = {t.name: t for t in pc.artifact.describe(tmp_path / "model").tensors}["0.weight"]
    assert weight.coding == f"{format.bits}-bit codes"
    assert weight.bytes <= 40 * 70 * format.bits / 8 + 16
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


def test_a_weight_on_an_int8_grid_is_rounded_again():
    x = torch.randn(5, 70)
    quantized = model()
    pc.quantize_(quantized, pc.Int8())
    packed = pc.pack(quantized, x, Codebook(), force=True)
    with torch.no_grad():
        assert torch.allclose(packed(x), quantized(x), atol=0.2)
    assert Int8() not in {layer.format for layer in packed if hasattr(layer, "format")}
