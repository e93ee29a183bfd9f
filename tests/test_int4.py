"""4-bit weights: how they are rounded, the written formulas, their ends, and what is refused."""

import copy

import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.codes import decode_nibbles, encode_nibbles
from pycompress.formats import Int4, Int8, Sparse

torch = pytest.importorskip("torch")

INTEGER = Int4(scales="int", activations="int8")
FORMATS = (
    Int4(),
    Int4(group=64, zero_point=True),
    Int4(group=128, activations="int8"),
    Int4(zero_point=True, activations="int8"),
    INTEGER,
)
ROWS = np.ones((4, 40), np.float32)


def random_weight(rng, outputs, inputs):
    return rng.normal(size=(outputs, inputs)).astype(np.float32)


def test_int8_rows_follow_the_written_formula(implementation):
    rng = np.random.default_rng(1)
    f32 = np.float32
    for case in range(12):
        rows, inputs, outputs = (int(n) for n in rng.integers(1, (9, 300, 40)))
        group, zero_point = (32, 64, 128)[case % 3], case % 2 == 1
        side = outputs, -(-inputs // group)
        x = (rng.normal(size=(rows, inputs)) * 3).astype(f32)
        weight = rng.integers(0 if zero_point else -8, 16 if zero_point else 8, (outputs, inputs)).astype(np.int8)
        scale = rng.normal(size=side).astype(np.float16)
        zero = rng.integers(0, 16, side).astype(np.uint8) if zero_point else None
        bias = rng.normal(size=outputs).astype(f32)
        fixed = 0.03 if case % 4 > 1 else None
        packed = kernels.pack(weight, Int4(group, zero_point, activations="int8"), bias, scale, fixed, zero_point=zero)
        expected = np.empty((rows, outputs), f32)
        for r, row in enumerate(x):
            step = np.abs(row).max() / f32(127) if fixed is None else f32(fixed)
            factor = f32(127) / np.abs(row).max() if fixed is None else f32(1) / f32(fixed)
            q = np.clip(np.rint(row * factor), -127, 127).astype(int)
            for o in range(outputs):
                t = f32(0)
                for g in range(side[1]):
                    part = slice(g * group, (g + 1) * group)
                    centred = weight[o, part].astype(int) - (int(zero[o, g]) if zero_point else 0)
                    t = t + f32(int(q[part] @ centred)) * f32(scale[o, g])
                expected[r, o] = t * step + bias[o]
        assert np.array_equal(bits(kernels.linear(x, packed)), bits(expected))


def test_integer_scales_are_the_int8_formula(implementation):
    rng = np.random.default_rng(2)
    for inputs in (1, 40, 129, 600):
        weight, factors = rng.integers(-8, 8, (35, inputs)).astype(np.int8), rng.integers(1, 16, (35, -(-inputs // 32)))
        scale, bias = rng.uniform(0.1, 1, 35).astype(np.float32), rng.normal(size=35).astype(np.float32)
        packed = kernels.pack(weight, INTEGER, bias, scale, multiplier=factors.astype(np.uint8))
        wide = (weight * np.repeat(factors, 32, axis=1)[:, :inputs]).astype(np.int8)
        for rows in (1, 3, 70):
            x = random_weight(rng, rows, inputs)
            y = kernels.linear(x, packed, "silu")
            assert np.array_equal(bits(y), bits(kernels.linear(x, kernels.pack(wide, Int8(), bias, scale), "silu")))
        assert np.array_equal(packed.unpack(), wide * scale[:, None])


@pytest.mark.parametrize("inputs", [131_071, 131_072, 133_145, 262_147])
def test_sums_are_exact_at_any_length(inputs, implementation):
    ends = [np.full(inputs, -8, np.int8), np.full(inputs, 7, np.int8), np.where(np.arange(inputs) % 2, 7, -8)]
    weight = np.stack(ends).astype(np.int8)
    x = np.stack([np.full(inputs, 127), np.full(inputs, -127), np.where(np.arange(inputs) % 2, 127, -127)])
    x = x.astype(np.float32)
    groups = -(-inputs // 32)
    factors = np.full((3, groups), 15, np.uint8)
    packed = kernels.pack(weight, INTEGER, scale=np.ones(3, np.float32), multiplier=factors)
    sums = x.astype(np.int64) @ (weight.astype(np.int64) * 15).T
    assert np.array_equal(kernels.linear(x, packed), sums.astype(np.float32))
    zero = np.array([[15], [0], [15]], np.uint8).repeat(-(-inputs // 128), axis=1)
    packed = kernels.pack(
        np.stack([np.full(inputs, 0), np.full(inputs, 15), np.full(inputs, 0)]).astype(np.int8),
        Int4(128, True, activations="int8"),
        scale=np.ones(zero.shape, np.float16),
        zero_point=zero,
    )
    y = kernels.linear(x[:2], packed)  # 15 * 127 * 128 in every group: exact up to 2^24, then as fp32 adds
    t = np.float32(0)
    for g in range(zero.shape[1]):
        t = t + np.float32(15 * 127 * min(128, inputs - 128 * g))
    assert y.tolist() == [[-t, t, -t], [t, -t, t]]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_the_rows_beside_them(implementation, format):
    rng = np.random.default_rng(3)
    for inputs in (31, 256, 515):
        packed = kernels.pack(random_weight(rng, 70, inputs), format)
        x = random_weight(rng, 23, inputs)
        y = kernels.linear(x, packed)
        for first, last in ((0, 1), (3, 5), (7, 10), (5, 9), (2, 7), (1, 7), (4, 23)):
            assert np.array_equal(bits(kernels.linear(x[first:last], packed)), bits(y[first:last]))


@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_rounded_to_the_nearest_step(format):
    rng = np.random.default_rng(4)
    weight = random_weight(rng, 300, 200) * rng.uniform(0.01, 10, (300, 1)).astype(np.float32)
    weight[5], weight[6, :64], weight[7] = 0, 0, np.abs(weight[7])
    packed = kernels.pack(weight, format)
    q, w = packed.canonical_weight(), packed.unpack()
    low = 0 if format.zero_point else -8
    assert q.min() >= low and q.max() <= low + 15
    group = np.arange(200) // format.group
    step = packed.scale[:, None] * packed.multiplier if format is INTEGER else np.abs(packed.scale.astype(np.float32))
    inside = (q > low) & (q < low + 15)
    assert (np.abs(w - weight) <= step[:, group] * 0.5001)[inside].all()
    assert (w[5] == 0).all() and (w[6, :32] == 0).all()
    error = np.square(w - weight).mean() / np.square(weight).mean()
    assert error < {32: 0.009, 64: 0.011, 128: 0.014}[format.group]


def test_the_extreme_of_a_group_is_kept():
    """The entry of largest magnitude becomes -8, whichever sign it has: a fifth less error than max|w| / 7."""
    weight = np.array([[3.5, 1.0, -2.0], [-3.5, 1.0, 3.25]], np.float32)
    packed = kernels.pack(weight, Int4())
    assert packed.scale.tolist() == [[-0.4375], [0.4375]]
    assert packed.canonical_weight().tolist() == [[-8, -2, 5], [-8, 2, 7]]
    rng = np.random.default_rng(5)
    weight = random_weight(rng, 200, 320)
    plain = np.abs(weight.reshape(200, 10, 32)).max(axis=2).repeat(32, axis=1) / 7
    error = np.square(np.rint(weight / plain) * plain - weight).mean()
    assert np.square(kernels.pack(weight, Int4()).unpack() - weight).mean() < 0.82 * error
    integer = kernels.pack(weight, INTEGER).unpack()
    assert np.square(integer - weight).mean() < 0.9 * error


def test_integers_of_gptq_and_matmulnbits_are_kept(implementation):
    """Codes 0..15 with a zero point of 8 for all, or with one for each group, as other tools store them."""
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 16, (20, 100)).astype(np.uint8)
    scale, zero = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 16, (20, 4)).astype(np.uint8)
    half = scale.astype(np.float16).astype(np.float32).repeat(32, axis=1)[:, :100]
    x = random_weight(rng, 5, 100)
    symmetric = kernels.pack((codes - np.uint8(8)).view(np.int8), Int4(), scale=scale)
    assert np.array_equal(symmetric.unpack(), (codes.astype(np.float32) - 8) * half)
    packed = kernels.pack(codes.view(np.int8), Int4(zero_point=True), scale=torch.from_numpy(scale), zero_point=zero)
    w = (codes.astype(np.float32) - zero.repeat(32, axis=1)[:, :100]) * half
    assert np.array_equal(packed.unpack(), w)
    assert np.allclose(kernels.linear(x, packed), x @ w.T, atol=1e-3)
    rounded = kernels.pack(w, Int4(zero_point=True), scale=scale, zero_point=zero)
    assert np.array_equal(rounded.unpack(), w)


@pytest.mark.parametrize("format", FORMATS)
def test_half_precision_rows_and_activations(implementation, format):
    rng = np.random.default_rng(7)
    packed = kernels.pack(random_weight(rng, 33, 70), format, rng.normal(size=33).astype(np.float32))
    x = random_weight(rng, 6, 70).astype(np.float16)
    y = kernels.linear(x, packed, "gelu")
    assert y.dtype == np.float16
    assert np.array_equal(y, kernels.linear(x.astype(np.float32), packed, "gelu").astype(np.float16))
    tensor = torch.from_numpy(x.astype(np.float32)).bfloat16()
    y = kernels.linear(tensor, packed, "gelu")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, kernels.linear(tensor.float(), packed, "gelu").bfloat16())


@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity(implementation, format):
    packed = kernels.pack(np.ones((3, 70), np.float32), format)
    x = np.ones((9, 70), np.float32)
    x[2, 69], x[5, 3], x[8, 40] = np.nan, np.inf, -np.inf
    y = kernels.linear(x, packed)
    assert np.isfinite(y[[0, 1, 3, 4, 6, 7]]).all() and np.isnan(y[2]).all()
    assert np.isnan(y[[5, 8]]).all() if format.activations == "int8" else not np.isfinite(y[[5, 8]]).any()


@pytest.mark.parametrize("format", [Int4(), Int4(64, True), INTEGER])
def test_memory_is_half_a_byte_and_the_scales(format):
    if kernels.backend_name() != "native":
        pytest.skip("the other backends keep a byte for each weight")
    packed = kernels.pack(np.ones((640, 640), np.float32), format)
    sides = {"float16": 2, "int": 1}[format.scales] + format.zero_point
    assert packed.nbytes <= 640 * 640 * (0.5 + sides / format.group) + 640 * 16


def test_nibbles():
    rng = np.random.default_rng(8)
    for shape in ((0,), (1,), (7,), (3, 5), (4, 6)):
        for low in (0, -8):
            q = rng.integers(low, low + 16, shape).astype(np.int8)
            coded = encode_nibbles(q, -low)
            assert coded.dtype == np.uint8 and coded.size == (q.size + 1) // 2
            assert np.array_equal(decode_nibbles(coded, -low, shape), q)
    for wrong in (np.zeros(3, np.uint8), np.zeros(2, np.int8), np.zeros((1, 2), np.uint8), np.array([0, 16], np.uint8)):
        with pytest.raises(ValueError, match=r"^nibbles must"):
            decode_nibbles(wrong, 0, (3,))


SCALE, ZERO = np.ones((4, 2), np.float32), np.ones((4, 2), np.uint8)
INTEGERS = np.ones((4, 40), np.int8)


@pytest.mark.parametrize(
    ("name", "format", "arguments"),
    [
        ("weight", Int4(), {"weight": np.full((4, 40), 8, np.int8), "scale": SCALE}),
        ("weight", Int4(), {"weight": np.full((4, 40), -9, np.int8), "scale": SCALE}),
        ("weight", Int4(zero_point=True), {"weight": -INTEGERS, "scale": SCALE, "zero_point": ZERO}),
        ("weight", Int4(), {"weight": ROWS * 1e6}),
        ("weight", Int4(zero_point=True), {"weight": ROWS * np.float32(3e38) * np.float32([[1], [-1], [1], [-1]])}),
        ("weight", Int4(), {"weight": ROWS * np.float32(np.nan)}),
        ("weight", Int4(), {"weight": ROWS[0]}),
        ("scale", Int4(), {"weight": INTEGERS}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": SCALE[:, :1]}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": SCALE[:3]}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": 0.5}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": SCALE * np.float32(1e5)}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": SCALE * np.float32(np.inf)}),
        ("scale", Int4(), {"weight": INTEGERS, "scale": ZERO}),
        ("scale", Int4(zero_point=True), {"weight": ROWS, "zero_point": ZERO}),
        ("scale", INTEGER, {"weight": ROWS, "multiplier": ZERO}),
        ("scale", INTEGER, {"weight": ROWS, "multiplier": ZERO, "scale": SCALE}),
        ("scale", INTEGER, {"weight": ROWS, "multiplier": ZERO, "scale": -SCALE[:, 0]}),
        ("zero_point", Int4(), {"weight": ROWS, "scale": SCALE, "zero_point": ZERO}),
        ("zero_point", Int4(zero_point=True), {"weight": ROWS, "scale": SCALE}),
        ("zero_point", Int4(zero_point=True), {"weight": ROWS, "scale": SCALE, "zero_point": ZERO * 16}),
        ("zero_point", Int4(zero_point=True), {"weight": ROWS, "scale": SCALE, "zero_point": ZERO[:, :1]}),
        ("zero_point", Int4(zero_point=True), {"weight": ROWS, "scale": SCALE, "zero_point": SCALE}),
        ("zero_point", Int4(zero_point=True), {"weight": ROWS, "scale": SCALE, "zero_point": "zero"}),
        ("zero_point", Int8(), {"weight": ROWS, "zero_point": ZERO}),
        ("multiplier", Int4(), {"weight": ROWS, "scale": SCALE, "multiplier": ZERO}),
        ("multiplier", INTEGER, {"weight": ROWS, "scale": SCALE[:, 0]}),
        ("multiplier", INTEGER, {"weight": ROWS, "scale": SCALE[:, 0], "multiplier": ZERO * 0}),
        ("multiplier", INTEGER, {"weight": ROWS, "scale": SCALE[:, 0], "multiplier": ZERO * 16}),
        ("multiplier", INTEGER, {"weight": ROWS, "scale": SCALE[:, 0], "multiplier": ZERO.view(np.int8)}),
        ("multiplier", Sparse(), {"weight": ROWS, "multiplier": ZERO}),
        ("input_scale", Int4(), {"weight": ROWS, "input_scale": 0.5}),
        ("input_scale", INTEGER, {"weight": ROWS, "input_scale": -0.5}),
        ("bias", Int4(), {"weight": ROWS, "bias": SCALE}),
    ],
)
def test_what_does_not_fit_is_refused(name, format, arguments):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} "):
        kernels.pack(format=format, **arguments)


def test_residuals_are_for_int8_weights():
    packed = kernels.pack(ROWS, Int4())
    for arguments in ({"residual": np.ones((4, 4), np.float32)}, {"output_scale": 1.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be None"):
            kernels.linear(ROWS, packed, **arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"group": 48}, "group"),
        ({"group": 16}, "group"),
        ({"group": 32.0}, "group"),
        ({"zero_point": 1}, "zero_point"),
        ({"scales": "float32"}, "scales"),
        ({"activations": None}, "activations"),
        ({"scales": "int"}, "scales"),
        ({"scales": "int", "activations": "int8", "zero_point": True}, "scales"),
    ],
)
def test_wrong_formats(arguments, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
        Int4(**arguments)


@pytest.mark.parametrize("format", FORMATS)
def test_packed_layers(format):
    import pycompress as pc

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(70, 40), torch.nn.ReLU(), torch.nn.Linear(40, 10, bias=False))
    x = torch.randn(9, 70)
    packed = pc.pack(model, x, format, force=True)
    assert [layer.packed.format for layer in (packed[0], packed[2])] == [format] * 2
    y = packed(x)
    assert (y - model(x)).norm() < 0.2 * model(x).norm()
    assert torch.equal(copy.deepcopy(packed)(x), y)
    other = pc.pack(
        torch.nn.Sequential(torch.nn.Linear(70, 40), torch.nn.ReLU(), torch.nn.Linear(40, 10, bias=False)),
        x,
        format,
        force=True,
    )
    assert not torch.equal(other(x), y)
    state = packed.state_dict()
    assert state["0.weight"].dtype == torch.int8
    other.load_state_dict(state)
    assert torch.equal(other(x), y)
    wrong = {**state, "0.scale": state["0.scale"][:1]}
    with pytest.raises(RuntimeError, match="scale"):
        other.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({key: value for key, value in state.items() if key != "0.scale"})
    assert torch.equal(other(x), y)


def test_a_quantized_model_can_be_packed_as_int4():
    import pycompress as pc

    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    pc.quantize_(model, Int8())
    packed = pc.pack(model, torch.zeros(1, 64), Int4(), force=True)
    assert packed[0].packed.format == Int4()
    assert np.abs(packed[0].packed.unpack() - model[0].weight.detach().numpy()).max() < 0.02


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_for_exported_programs(format):
    from pycompress import weight_bytes

    packed = kernels.pack(random_weight(np.random.default_rng(9), 20, 70), format, np.ones(20, np.float32))
    again = weight_bytes.from_bytes(weight_bytes.to_bytes(packed))
    assert again.format == format
    x = torch.randn(5, 70)
    assert torch.equal(kernels.linear(x, again), kernels.linear(x, packed))


@pytest.mark.parametrize("format", FORMATS)
def test_artifacts(format, tmp_path):
    import pycompress as pc

    def build():
        return torch.nn.Sequential(torch.nn.Linear(70, 40), torch.nn.ReLU(), torch.nn.Linear(40, 300, bias=False))

    x = torch.randn(9, 70)
    packed = pc.pack(build(), x, format, force=True)
    path = tmp_path / "model"
    pc.save(packed, path)
    again = pc.load(path, into=build)
    assert torch.equal(again(x), packed(x)) and repr(again) == repr(packed)
    assert pc.artifact.to_bytes(again) == path.read_bytes()
    assert torch.equal(pc.load(path, into=packed)(x), again(x))
    weights = {t.name: t for t in pc.artifact.describe(path).tensors if t.name.endswith("weight")}
    assert [(t.coding, t.bytes) for t in weights.values()] == [("nibbles", 1400), ("nibbles", 6000)]
    tied = pc.artifact.to_bytes(torch.nn.ModuleDict({"a": packed, "b": packed}))
    assert len(tied) < 1.3 * path.stat().st_size


def test_artifacts_that_do_not_fit_the_format_are_refused():
    from golden import int4

    from pycompress.artifact import ArtifactError, container, contents, schema

    data = int4.PATH.read_bytes()
    parts = container.read_container(data, container.read_header(data))
    metadata = schema.write_metadata(contents.read_contents(data).metadata)

    def refused(change, message, **tensors):
        changed = {name: value for name, value in (parts | tensors).items() if value is not None}
        with pytest.raises(ArtifactError, match=message):
            contents.read_contents(container.write_container(changed, change(metadata)))

    def same(text):
        return text

    refused(lambda m: m.replace('"nibbles":8', '"nibbles":7', 1), "nibbles must be 0 or 8")
    refused(lambda m: m.replace('"nibbles":8', '"nibbles":true', 1), "nibbles must be 0 or 8")
    refused(lambda m: m.replace('"dtype":"I8","nibbles":8', '"dtype":"U8","nibbles":8', 1), "nibbles must be 0 or 8")
    refused(lambda m: m.replace('"group":32', '"group":48', 1), "group must be 32, 64 or 128")
    refused(lambda m: m.replace('"group":32', '"group":64', 1), "must have a scale F16")
    refused(lambda m: m.replace('"scales":"int"', '"scales":"float16"', 1), "must have a scale F16")
    refused(lambda m: m.replace('"zero_point":true', '"zero_point":false', 1), "must have no zero_point")
    refused(same, "zero_point", **{"2.zero_point": None})
    refused(same, "multiplier", **{"3.multiplier": None})
    refused(same, "scale", **{"0.scale": None})
    refused(same, "must have a scale F16", **{"0.scale": torch.ones(40, 3)})
    refused(same, "must have no multiplier", **{"0.multiplier": torch.ones(40, 3, dtype=torch.uint8)})
