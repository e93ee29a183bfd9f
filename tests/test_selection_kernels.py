"""Scores and selection where a draw of random problems does not reach: types, levels, and hard data for the k-th."""

import itertools

import cases
import numpy as np
import pytest
import torch
from cases import bits

from pycompress import kernels

WAYS = ("bracket", "ties", "radix")
COUNT = 300_000
TOTAL = 65536 * 5  # what `hidden` knows the sample of


def narrow(array, dtype):
    return array if dtype == "float32" else torch.from_numpy(array).to(getattr(torch, dtype))


def wide(x):
    return x.float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("per", ["row", "column", (16, 4), (1, 4), (4, 100), (300, 300)], ids=str)
def test_norms_are_the_same_on_every_level(dtype, per, implementation):
    if not implementation.startswith("native"):
        pytest.skip("levels of the native kernels are compared")
    rng = np.random.default_rng(1)
    weight, slopes = (narrow(rng.normal(size=(83, 1211)).astype(np.float32), dtype) for _ in range(2))
    factor = rng.random(1211).astype(np.float32)
    for options in ({}, {"gradient": slopes}, {"input_norms": factor}):
        found = kernels.norms(weight, per, **options)
        with cases.using("native/scalar"):
            plain = kernels.norms(weight, per, **options)
        assert all(np.array_equal(bits(np.asarray(a)), bits(np.asarray(b))) for a, b in zip(found, plain, strict=True))
        kernels.set_num_threads(2)
        with cases.using("reference"):
            truth = kernels.norms(weight, per, **options)
        kernels.set_num_threads(None)
        assert all(np.allclose(a, b, rtol=3e-7) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value_of_16_bits_is_widened_exactly(dtype, implementation):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    weights = every[torch.isfinite(every)]
    assert np.array_equal(kernels.norms(weights[:, None])[0], weights.float().abs())
    magnitudes = np.sort(weights.float().abs().numpy())
    for k in (1, 2, 3, 4, 1000, 30_000, 60_000, magnitudes.size):
        assert kernels.kth_magnitude([weights], k) == magnitudes[k - 1]
    for threshold in (0, 1e-38, 6e-8, 2.0**-14, 0.1, 1.0, 65504.0, 1e38, np.inf):
        found = kernels.above(weights, threshold, packed=True)
        kept = weights.double().abs() > threshold
        assert torch.equal(found.mask == -1, kept) and torch.equal(found.values, weights[kept])
        assert found.zeros == int((~kept).sum()) and found.values.dtype == weights.dtype


def test_norms_take_inputs_of_two_types_and_any_layout(implementation):
    rng = np.random.default_rng(2)
    weight, slopes = rng.normal(size=(2, 40, 70)).astype(np.float32)
    half = slopes.astype(np.float16)
    expected = kernels.norms(weight, (4, 4), gradient=half.astype(np.float32))
    for w, g in ((weight, half), (np.asfortranarray(weight), half[:, ::-1][:, ::-1]), (weight, torch.from_numpy(half))):
        found = kernels.norms(w, (4, 4), gradient=g)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="gradient and input_norms must not both"):
        kernels.norms(weight, gradient=half, input_norms=np.ones(70, np.float32))
    with pytest.raises(ValueError, match="input_norms must be 0 or more, got -1"):
        kernels.norms(weight, input_norms=-np.ones(70, np.float32))


def hard():
    """Data that a sampled bracket could stumble over."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=COUNT).astype(np.float32)
    clusters = np.repeat(rng.normal(size=30).astype(np.float32), COUNT // 30) * (1 + 1e-6 * normal)
    return {
        "sorted": np.sort(normal),
        "descending": np.sort(normal)[::-1].copy(),
        "clustered": clusters.astype(np.float32),
        "constant": np.full(COUNT, -0.25, np.float32),
        "zeros": np.zeros(COUNT, np.float32),
        "three levels": rng.integers(-1, 2, COUNT).astype(np.float32),
        "neighbours": np.where(rng.random(COUNT) < 0.5, np.float32(1), np.nextafter(np.float32(1), np.float32(2))),
        "pruned": normal * (rng.random(COUNT) < 0.1).astype(np.float32),
        "one large": np.where(np.arange(COUNT) == 77, np.float32(3e38), normal * np.float32(1e-30)),
        "subnormal": (normal * np.float32(1e-41)).astype(np.float32),
        "infinite": np.where(rng.random(COUNT) < 0.3, np.float32(np.inf), normal),
        "periodic": np.sin(np.arange(COUNT) * (2 * np.pi / 4096)).astype(np.float32),
    }


@pytest.mark.parametrize("name", hard())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_kth_magnitude_of_hard_data(name, dtype, implementation):
    array = narrow(np.clip(hard()[name], -np.inf if dtype != "float16" else -6e4, None), dtype)
    truth = np.sort(np.abs(wide(array)))
    arrays = [array[:1], array[1:5], array[5:200_000], array[200_000:]]
    for k in (1, 7, COUNT // 3, COUNT // 2, round(0.9 * COUNT), COUNT - 1, COUNT):
        assert kernels.kth_magnitude(arrays, k) == truth[k - 1], k


def test_kth_magnitude_of_arrays_of_several_types(implementation):
    rng = np.random.default_rng(4)
    arrays = [narrow(rng.normal(size=50_000).astype(np.float32), d) for d in ("float32", "float16", "bfloat16")]
    truth = np.sort(np.abs(np.concatenate([wide(array) for array in arrays])))
    for k in (1, 100_000, 149_999, 150_000):
        assert kernels.kth_magnitude(arrays, k) == truth[k - 1]


def way(arrays, k, level, threads=1):
    from pycompress import _native

    value, found = _native.kth_magnitude(arrays, k, threads, level)
    return value, WAYS[found]


def drawn(total, size):
    """The places that select.cpp samples."""
    state, places, start = 0x9E3779B97F4A7C15, [], 0
    for i in range(size):
        end = start + total // size + (i < total % size)
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        places.append(start + (state * (end - start) >> 64))
        start = end
    return np.array(places)


@pytest.mark.parametrize("threads", [1, 4])
def test_which_way_finds_the_kth_magnitude(implementation, threads):
    level = implementation.partition("/")[2]
    if not level:
        pytest.skip("only the native kernels have several ways")
    rng = np.random.default_rng(5)
    normal = rng.normal(size=TOTAL).astype(np.float32)
    hidden = np.abs(normal) + 1
    hidden[drawn(TOTAL, TOTAL // 16)] = 0  # a sample that sees nothing of the others
    spread = hidden.copy()
    spread[drawn(TOTAL, TOTAL // 16)[::2]] = 9  # a bracket that holds everything
    for array, k, expected in (
        (normal, TOTAL // 2, "bracket"),
        (np.sort(normal), round(0.9 * TOTAL), "bracket"),
        (normal * (rng.random(TOTAL) < 0.1).astype(np.float32), TOTAL // 2, "ties"),
        (np.full(TOTAL, 2.0, np.float32), 5, "ties"),
        (np.sign(normal) * (np.abs(normal) > 1), TOTAL // 2, "ties"),
        (hidden, TOTAL // 2, "radix"),
        (hidden, TOTAL, "radix"),
        (spread, TOTAL // 2, "radix"),
        (spread, TOTAL // 100, "bracket"),
    ):
        array = array.astype(np.float32)
        truth = np.partition(np.abs(array), k - 1)[k - 1]
        assert way([array], k, level, threads) == (truth, expected)
    for array, k in itertools.product((hidden, spread), (1, TOTAL // 16, TOTAL // 16 + 1, TOTAL // 3, TOTAL - 1)):
        assert way([array], k, level, threads)[0] == np.partition(array, k - 1)[k - 1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_masks_of_other_types(dtype, implementation):
    rng = np.random.default_rng(6)
    array = narrow(np.round(rng.normal(size=(65, 131)), 1).astype(np.float32), dtype)
    for n, m in ((2, 4), (1, 2), (3, 8), (5, 7)):
        with cases.using("reference"):
            expected = kernels.nm_mask(wide(array), n, m)
        assert np.array_equal(kernels.nm_mask(array, n, m), expected)
    for threshold in (0.0, 0.5, 0.7):
        found = kernels.above(array, threshold, bitmap=True)
        kept = np.abs(wide(array).astype(np.float64)) > threshold
        assert np.array_equal(np.asarray(found.mask), -kept.astype(np.int8))
        assert np.array_equal(np.asarray(found.bitmap), np.packbits(kept.ravel(), bitorder="little"))
    with pytest.raises(ValueError, match="must not hold NaN"):
        kernels.nm_mask(narrow(np.full((2, 4), np.nan, np.float32), dtype), 2, 4)
    with pytest.raises(ValueError, match="must not hold NaN"):
        kernels.above(narrow(np.full((2, 4), np.nan, np.float32), dtype), 1.0)


@pytest.mark.parametrize("density", [0, 1e-5, 1e-3, 0.02, 0.5, 1])
def test_packed_values_are_those_of_files(density, implementation):
    from pycompress.codes import decode_nonzeros, encode_nonzeros

    rng = np.random.default_rng(7)
    dense = np.where(rng.random((300, 517)) < density, rng.normal(size=(300, 517)) + 3, 0).astype(np.float32)
    for threads in (1, 3):
        kernels.set_num_threads(threads)
        found = kernels.above(dense, 0.0, mask=False, packed=True)
        kernels.set_num_threads(None)
        gaps, values = encode_nonzeros(dense)
        assert np.array_equal(found.gaps, gaps) and np.array_equal(found.values, values) and found.mask is None
        assert np.array_equal(decode_nonzeros(found.gaps, found.values, dense.shape), dense)
