"""A packed weight: immutable, described by its attributes, pickled in canonical form."""

import copy
import pickle

import cases
import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.formats import Binary, Codebook, Int4, Int8, Sparse

RUNNABLE = [name for name in cases.implementations() if not cases.missing(name)]


INT4 = (
    Int4(),
    Int4(group=64, zero_point=True),
    Int4(group=128, activations="int8"),
    Int4(zero_point=True, activations="int8"),
    Int4(scales="int", activations="int8"),
)


def again(packed):
    """Pack what a packed weight holds."""
    sides = {"zero_point": packed.zero_point, "multiplier": packed.multiplier}
    arguments = packed.bias, packed.scale, packed.input_scale
    return kernels.pack(packed.canonical_weight(), packed.format, *arguments, **sides)


def packed_weights():
    """One of each kind: dynamic, static, given integers, sparse, with and without a bias, empty."""
    rng = np.random.default_rng(30)
    weight = rng.normal(size=(19, 37)).astype(np.float32)
    bias = rng.normal(size=19).astype(np.float32)
    integers = rng.integers(-128, 128, (19, 37)).astype(np.int8)
    pruned = np.where(rng.random(weight.shape) < 0.8, np.float32(0), weight)
    far = np.zeros((3, 1000), np.float32)
    far[0, 0], far[2, 999] = 1, 2  # gaps beyond one code
    scale = rng.uniform(0.01, 1, 19).astype(np.float32)
    yield kernels.pack(weight, Int8())
    yield kernels.pack(weight, Int8(), bias, input_scale=0.05)
    yield kernels.pack(weight, Int8(), bias, scale=0.02)
    yield kernels.pack(integers, Int8(), bias, scale=scale)
    yield kernels.pack(pruned, Int8())
    yield kernels.pack(pruned, Sparse(), bias)
    yield kernels.pack(integers * (np.abs(integers) > 100), Sparse(), bias, scale=scale)
    yield kernels.pack(far, Sparse())
    for format in INT4:
        yield kernels.pack(weight, format, bias, input_scale=0.05 if format.activations == "int8" else None)
    nibbles, half = np.clip(integers // 16, -8, 7), rng.normal(size=(19, 1)).astype(np.float16)
    yield kernels.pack(nibbles, Int4(group=64), bias, scale=half)
    for format in (Codebook(), Codebook(bits=2, group=32)):
        yield kernels.pack(weight, format, bias, input_scale=0.05 if format.bits == 2 else None)
    yield kernels.pack(np.where(integers > 0, np.int8(-127), np.int8(3)), Codebook(), scale=half)
    yield kernels.pack(weight, Binary(), bias, input_scale=0.05)
    yield kernels.pack(weight, Binary("binary"), bias)
    yield kernels.pack(np.ones((19, 37), np.int8), Binary(), scale=0.5)
    for format in (Int8(), Sparse(), Codebook(), Binary(), Binary("binary"), *INT4):
        for shape in ((0, 5), (5, 0), (0, 0)):
            yield kernels.pack(np.zeros(shape, np.float32), format)


def outputs(packed):
    x = np.random.default_rng(31).normal(size=(21, packed.shape[1])).astype(np.float32)
    return bits(kernels.linear(x, packed))


def test_it_cannot_be_changed(implementation):
    for packed in packed_weights():
        for name in (
            "scale",
            "bias",
            "shape",
            "kernel",
            "format",
            "nbytes",
            "density",
            "input_scale",
            "zero_point",
            "_state",
            "new",
        ):
            with pytest.raises(AttributeError, match="immutable"):
                setattr(packed, name, None)
            with pytest.raises(AttributeError, match="immutable"):
                delattr(packed, name)
        for array in (packed.scale, packed.bias, packed.zero_point, packed.multiplier):
            if array is not None and array.size:
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0


def test_what_it_gives_out_is_not_what_it_holds(implementation):
    for packed in packed_weights():
        before = outputs(packed)
        for array in (packed.unpack(), packed.canonical_weight()):
            array[...] = 1
        assert np.array_equal(outputs(packed), before)


def test_the_attributes_describe_it(implementation):
    for packed in packed_weights():
        weight = packed.unpack()
        assert weight.shape == packed.shape and weight.dtype == np.float32
        assert packed.density == (np.count_nonzero(weight) / weight.size if weight.size else 0)
        assert packed.kernel.split("/")[0] == implementation.split("/")[0]
        assert packed.nbytes >= 0 and isinstance(packed.nbytes, int)
        assert packed.scale is None or packed.scale.shape[0] == packed.shape[0]
        assert str(packed.shape) in repr(packed) and packed.kernel in repr(packed)
        integers = isinstance(packed.format, Int8)
        assert (packed.zero_point is None) == (not getattr(packed.format, "zero_point", False))
        canonical = packed.canonical_weight()
        assert canonical.dtype == (np.int8 if packed.scale is not None else np.float32)
        assert not integers or packed.nbytes >= canonical.nbytes


def test_memory_is_close_to_what_the_weight_needs(implementation):
    weight = np.ones((640, 640), np.float32)
    assert kernels.pack(weight, Int8()).nbytes < 1.1 * weight.size + 10_000
    weight[np.random.default_rng(1).random(weight.shape) < 0.9] = 0
    packed = kernels.pack(weight, Sparse())
    each = 12 if packed.kernel == "native/avx512" else 9  # there in two layouts
    assert packed.nbytes < each * np.count_nonzero(weight) + 10_000


@pytest.mark.parametrize("density", [0.3, 0.39, 0.45])
def test_half_empty_weights_take_no_more_memory_than_dense_ones(density, implementation):
    weight = np.where(np.random.default_rng(2).random((640, 640)) < density, np.float32(1), np.float32(0))
    assert kernels.pack(weight, Sparse()).nbytes < 1.01 * weight.nbytes + 10_000


def test_unpack_gives_the_weight_that_is_multiplied_with(implementation):
    rng = np.random.default_rng(32)
    weight = rng.normal(size=(33, 65)).astype(np.float32)
    assert np.array_equal(kernels.pack(weight, Sparse()).unpack(), weight)
    packed = kernels.pack(weight, Int8())
    assert np.array_equal(packed.unpack(), packed.canonical_weight() * packed.scale[:, None])
    assert (np.abs(packed.unpack() - weight) <= packed.scale[:, None] * 0.5001).all()
    integers = np.array([[-128, -127, 0, 127]], np.int8)
    for format in (Int8(), Sparse()):
        packed = kernels.pack(integers, format, scale=0.1)
        assert packed.unpack().tolist() == (integers * np.float32(0.1)).tolist()
        assert packed.canonical_weight().tolist() == integers.tolist()


def test_the_same_integers_are_packed_again(implementation):
    """Packing what was unpacked gives the same numbers: files and pickles rely on it."""
    for packed in packed_weights():
        assert np.array_equal(outputs(again(packed)), outputs(packed))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(implementation, protocol):
    for packed in packed_weights():
        back = pickle.loads(pickle.dumps(packed, protocol))
        assert isinstance(back, kernels.PackedWeight)
        for name in ("format", "shape", "density", "kernel", "nbytes", "input_scale"):
            assert getattr(back, name) == getattr(packed, name), name
        for name in ("scale", "bias", "zero_point", "multiplier"):
            old, new = getattr(packed, name), getattr(back, name)
            assert (old is None and new is None) or np.array_equal(bits(old), bits(new))
        assert np.array_equal(outputs(back), outputs(packed))


def test_pickles_are_the_same_whatever_kernel_packed(implementation):
    with kernels.use_backend("reference"):
        expected = [pickle.dumps(packed) for packed in packed_weights()]
    assert [pickle.dumps(packed) for packed in packed_weights()] == expected


def test_a_pickle_is_packed_for_the_kernel_of_its_reader(implementation):
    originals = list(packed_weights())
    pickles = [pickle.dumps(packed) for packed in originals]
    for reader in RUNNABLE:
        with cases.using(reader):
            for data, packed in zip(pickles, originals, strict=True):
                back = pickle.loads(data)
                assert back.kernel.split("/")[0] == reader.split("/")[0]
                if isinstance(packed.format, Int8) or getattr(packed.format, "activations", "") == "int8":
                    assert np.array_equal(outputs(back), outputs(packed))


def test_a_pickle_of_a_pruned_weight_is_small(implementation):
    weight = np.zeros((500, 500), np.float32)
    weight[::10, ::10] = 1
    assert len(pickle.dumps(kernels.pack(weight, Sparse()))) < 2500 * 5 + 250_000 / 255 + 1000
    assert len(pickle.dumps(kernels.pack(weight, Int8()))) < 2500 * 2 + 250_000 / 255 + 3000


def test_copies_share_what_cannot_change(implementation):
    for packed in packed_weights():
        assert copy.copy(packed) is packed
        assert copy.deepcopy({"a": [packed]})["a"][0] is packed
