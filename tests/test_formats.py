"""Formats, and the coding of pruned weights as gaps and values."""

import dataclasses

import numpy as np
import pytest

from pycompress.codes import decode_nonzeros, encode_nonzeros
from pycompress.formats import Affine, BFloat16, FixedPoint, Float32, Int4, Int8, Sparse


def round_trip(dense):
    gaps, values = encode_nonzeros(dense)
    assert gaps.dtype == np.uint8 and gaps.ndim == values.ndim == 1
    assert values.dtype == dense.dtype and values.size == np.count_nonzero(dense)
    back = decode_nonzeros(gaps, values, dense.shape)
    assert back.dtype == dense.dtype and np.array_equal(back, dense)
    return gaps, values


def test_random_arrays_survive():
    rng = np.random.default_rng(0)
    for density in (0, 0.001, 0.01, 0.1, 0.5, 1):
        for shape in ((0,), (1,), (257,), (3, 0), (40, 70), (5, 6, 7), (1, 3000)):
            for dtype in (np.float32, np.int8, np.int16, np.float64):
                dense = (rng.integers(1, 100, shape) * (rng.random(shape) < density)).astype(dtype)
                round_trip(dense)
                round_trip(np.asfortranarray(dense))


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 764, 765, 766, 10_000])
def test_gaps_around_the_skip_code(gap):
    dense = np.zeros(2 * gap + 7, np.float32)
    dense[gap], dense[2 * gap + 1] = 3, -4
    gaps, values = round_trip(dense)
    assert gaps.tolist() == ([255] * (gap // 255) + [gap % 255]) * 2
    assert values.tolist() == [3, -4]


def test_every_code_is_used_and_zeros_at_the_end_cost_nothing():
    dense = np.zeros(256 * 255, np.int8)
    dense[np.cumsum(np.arange(255) + 1) - 1] = 1
    gaps, _ = round_trip(dense)
    assert gaps.tolist() == list(range(255))
    assert encode_nonzeros(np.zeros(10**6, np.int8))[0].size == 0


def test_negative_zero_counts_as_zero():
    gaps, values = encode_nonzeros(np.array([-0.0, 1, -0.0], np.float32))
    assert gaps.tolist() == [1] and values.tolist() == [1]


@pytest.mark.parametrize(
    ("gaps", "values", "shape", "message"),
    [
        (np.array([0], np.int8), [1], (3,), "^gaps must be 1-D uint8"),
        (np.array([[0]], np.uint8), [1], (3,), "^gaps must be 1-D uint8"),
        (np.array([0], np.uint8), [[1]], (3,), "^values must be 1-D"),
        (np.array([0, 0], np.uint8), [1], (3,), "^gaps must hold one code for each"),
        (np.array([0, 255], np.uint8), [1, 2], (300,), "^gaps must hold one code for each"),
        (np.array([3], np.uint8), [1], (3,), "^gaps must stay inside"),
        (np.array([0, 0, 0], np.uint8), [1, 2, 3], (1, 2), "^gaps must stay inside"),
        (np.array([255, 255], np.uint8), [], (3,), "^gaps must stay inside"),
        (np.array([0], np.uint8), [1], (0,), "^gaps must stay inside"),
    ],
)
def test_codes_that_fit_nothing_are_refused(gaps, values, shape, message):
    with pytest.raises(ValueError, match=message):
        decode_nonzeros(gaps, np.array(values, np.float32), shape)


def test_a_gap_is_no_larger_than_the_array_even_where_sums_could_wrap():
    gaps = np.full(100_000, 255, np.uint8)
    with pytest.raises(ValueError, match=r"^gaps must stay inside"):
        decode_nonzeros(gaps, np.zeros(0, np.float32), (1000,))


@pytest.mark.parametrize(
    "format",
    [
        Float32(),
        BFloat16(),
        Int8(),
        Sparse(),
        Sparse(values=BFloat16()),
        Sparse((16, 4), Int8()),
        Affine(4, True),
        FixedPoint(3),
    ],
)
def test_formats_are_immutable_values(format):
    assert format == dataclasses.replace(format) and hash(format) == hash(dataclasses.replace(format))
    assert eval(repr(format)) == format
    for field in dataclasses.fields(format):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(format, field.name, 1)


def test_formats_refuse_what_has_no_meaning():
    for make, low, high in ((Affine, 2, 16), (FixedPoint, 0, 15)):
        for bits in (low, high):
            assert make(bits=bits).bits == bits
        for bits in (low - 1, high + 1, -8, 2**70):
            with pytest.raises(ValueError, match=r"^bits must be"):
                make(bits=bits)
        for bits in (True, 4.0, "8", None, np.ones(2)):
            with pytest.raises(TypeError, match=r"^bits must be"):
                make(bits=bits)
    for block in ((1, 4), (0, 0), (32, 4), 1, None, "11", [1, 1]):
        with pytest.raises(ValueError, match=r"^block must be"):
            Sparse(block=block)
    for values, block in ((Int8(), (8, 1)), (BFloat16(), (16, 1)), (BFloat16(), (16, 4))):
        with pytest.raises(ValueError, match=r"^block must be"):
            Sparse(block=block, values=values)
    for values in (Int4(), None, "float32", Float32, BFloat16):
        with pytest.raises(ValueError, match=r"^values must be"):
            Sparse(values=values)
