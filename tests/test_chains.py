"""Several layers in one call give the bits of the layers called one by one; what else an int8 layer takes and gives."""

import itertools

import numpy as np
import pytest
import torch
from cases import bits

from pycompress import kernels
from pycompress.formats import Int8, Sparse

INT8 = Int8()


def layers(rng, widths, static=lambda i: None, format=INT8):
    """Packed weights that fit together."""
    return [
        kernels.pack(
            rng.standard_normal((after, before)).astype(np.float32),
            format,
            rng.standard_normal(after).astype(np.float32),
            input_scale=static(i),
        )
        for i, (before, after) in enumerate(itertools.pairwise(widths))
    ]


def one_by_one(x, packed, activations):
    for weight, activation in zip(packed, activations, strict=True):
        x = kernels.linear(x, weight, activation)
    return x


@pytest.mark.parametrize("static", [lambda i: None, lambda i: 0.05, lambda i: 0.05 if i % 2 else None])
@pytest.mark.parametrize("rows", [0, 1, 12, 13, 700])
def test_a_chain_gives_the_bits_of_its_layers(implementation, static, rows):
    rng = np.random.default_rng(rows)
    packed = layers(rng, (70, 33, 129, 64, 5), static)
    x = rng.standard_normal((rows, 70)).astype(np.float32)
    if rows > 2:
        x[1, 3], x[-1, 0] = np.nan, np.inf
    activations = ["relu", None, "gelu", "tanh"]
    right = one_by_one(x, packed, activations)
    for threads in (1, 3):
        kernels.set_num_threads(threads)
        y = kernels.linear_chain(x, packed, activations)
        kernels.set_num_threads(None)
        assert np.array_equal(np.isnan(y), np.isnan(right))
        assert np.array_equal(bits(np.nan_to_num(y)), bits(np.nan_to_num(right)))
    if rows > 2:
        assert np.isnan(y[[1, -1]]).all() and not np.isnan(y[2:-1]).any()


def test_a_chain_takes_tensors_and_other_formats(implementation):
    rng = np.random.default_rng(0)
    mixed = layers(rng, (6, 7), format=Sparse()) + layers(rng, (7, 8))
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    for chain in (mixed, layers(rng, (6, 7, 8))):
        y = kernels.linear_chain(x, chain, ["relu", None])
        assert y.shape == (2, 3, 8) and torch.equal(y, one_by_one(x, chain, ["relu", None]))
        assert kernels.linear_chain(x.bfloat16(), chain).dtype == torch.bfloat16
        assert torch.equal(kernels.linear_chain(x, chain[:1]), kernels.linear(x, chain[0]))


def test_integers_pass_from_layer_to_layer(implementation):
    rng = np.random.default_rng(1)
    first, second = layers(rng, (40, 50, 60), lambda i: 0.1)
    x = rng.standard_normal((9, 40)).astype(np.float32)
    between = kernels.linear(x, first, "relu", output_scale=0.1)
    assert between.dtype == np.int8 and between.max() == 127
    y = kernels.linear(between, second)
    assert np.array_equal(bits(y), bits(kernels.linear_chain(x, [first, second], ["relu", None])))
    assert torch.equal(kernels.linear(torch.from_numpy(between), second), torch.from_numpy(y))
    x[2] = np.nan
    assert not kernels.linear(x, first, output_scale=0.1)[2].any()


def test_bfloat16_is_rounded_once_and_to_even(implementation):
    weight = kernels.pack(
        np.eye(3, dtype=np.float32), Int8(), bias=np.array([1.00390625, 1.01171875, 3.4e38], np.float32)
    )
    y = kernels.linear(torch.zeros(1, 3, dtype=torch.bfloat16), weight)
    assert y.dtype == torch.bfloat16
    assert y.tolist()[0] == [1.0, 1.015625, float("inf")]  # ties to even, and beyond the largest
    assert kernels.linear(torch.full((1, 3), torch.nan).bfloat16(), weight).isnan().all()


def test_a_residual_is_added_before_the_activation(implementation):
    rng = np.random.default_rng(2)
    [weight] = layers(rng, (20, 30))
    x, residual = (rng.standard_normal((7, n)).astype(np.float32) for n in (20, 30))
    y = kernels.linear(x, weight, "relu", residual=residual)
    assert np.array_equal(y, np.maximum(kernels.linear(x, weight) + residual, 0))
    half = kernels.linear(x, weight, residual=residual.astype(np.float16))
    assert np.array_equal(half, kernels.linear(x, weight) + residual.astype(np.float16).astype(np.float32))
