"""Sparse weights in every block shape and value type: their numbers, copies, files and exported bytes."""

import copy
import pickle

import cases
import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import kernels
from pycompress.formats import BLOCKS, BFloat16, Float32, Int8, Sparse
from pycompress.kernels.ops import chain_call
from pycompress.layers import PackedLinear
from pycompress.weight_bytes import from_bytes, to_bytes

FORMATS = [Sparse(block, values()) for values, blocks in BLOCKS.items() for block in blocks]


def weight_in_blocks(rng, block, out=70, inputs=130, density=0.4):
    """A weight whose zeros come in blocks, the last ones cut off by the edge."""
    kept = rng.random((-(-out // block[0]), -(-inputs // block[1]))) < density
    mask = np.kron(kept, np.ones(block, bool))[:out, :inputs]
    return np.where(mask, rng.standard_normal((out, inputs)), 0).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("in_blocks", [True, False])
def test_a_block_shape_changes_no_number(rng, format, in_blocks):
    weight = weight_in_blocks(rng, format.block if in_blocks else (1, 1))
    bias = rng.standard_normal(70).astype(np.float32)
    packed = kernels.pack(weight, format, bias)
    plain = kernels.pack(weight, Int8() if format.values == Int8() else Sparse(values=format.values), bias)
    np.testing.assert_array_equal(packed.unpack(), plain.unpack())
    assert packed.density == plain.density
    for rows in (1, 2, 7, 16, 33, 65):
        x = rng.standard_normal((rows, 130)).astype(np.float32)
        np.testing.assert_array_equal(kernels.linear(x, packed, "relu"), kernels.linear(x, plain, "relu"))


@pytest.mark.parametrize("density", [0.6, 0.1, 0.005])
def test_few_rows_have_the_bits_of_many_and_no_trace_of_what_is_pruned(rng, density, implementation):
    weight = weight_in_blocks(rng, (1, 1), 101, 203, density)
    weight[:50, 7] = 0
    packed = kernels.pack(weight, Sparse(), rng.standard_normal(101).astype(np.float32))
    x = rng.standard_normal((40, 203)).astype(np.float32)
    expected = kernels.linear(x, packed, "gelu")
    for rows in range(10):
        np.testing.assert_array_equal(kernels.linear(x[:rows], packed, "gelu"), expected[:rows])
    x[:, 7] = np.inf
    for rows in range(1, 10):
        np.testing.assert_array_equal(kernels.linear(x[:rows], packed, "gelu")[:, :50], expected[:rows, :50])


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_copies_files_and_exported_bytes_keep_the_bits(rng, format, tmp_path):
    weight = weight_in_blocks(rng, format.block)
    static = 0.03 if isinstance(format.values, Int8) else None
    packed = kernels.pack(weight, format, rng.standard_normal(70).astype(np.float32), input_scale=static)
    model = nn.Sequential(PackedLinear(packed, "gelu")).eval()
    x = torch.randn(5, 130, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    pc.save(model, tmp_path / "model.pyc")
    loaded = pc.load(tmp_path / "model.pyc", into=nn.Sequential(nn.Linear(130, 70)))
    assert loaded[0].packed.format == format and loaded[0].packed.input_scale == packed.input_scale
    assert torch.equal(loaded(x), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ("0.weight_gaps" in state) and ("0.scale" in state) == isinstance(format.values, Int8)
    model.load_state_dict(state)
    assert torch.equal(model(x), expected)
    again = from_bytes(to_bytes(packed))
    assert again.format == format and torch.equal(PackedLinear(again, "gelu")(x), expected)


def test_int8_values_take_what_int8_takes(rng):
    weight = weight_in_blocks(rng, (16, 4))
    sparse, dense = (kernels.pack(weight, f, input_scale=0.05) for f in (Sparse((16, 4), Int8()), Int8()))
    x = rng.standard_normal((9, 130)).astype(np.float32)
    added = rng.standard_normal((9, 70)).astype(np.float32)
    for options in ({"residual": added}, {"output_scale": 0.1}, {}):
        np.testing.assert_array_equal(
            kernels.linear(x, sparse, "silu", **options), kernels.linear(x, dense, "silu", **options)
        )
    q = rng.integers(-128, 128, (9, 130)).astype(np.int8)
    np.testing.assert_array_equal(kernels.linear(q, sparse), kernels.linear(q, dense))
    second = kernels.pack(rng.standard_normal((20, 70)).astype(np.float32), Sparse(values=Int8()), input_scale=0.1)
    chained = kernels.linear_chain(x, [sparse, second], ["relu", None])
    np.testing.assert_array_equal(chained, kernels.linear(kernels.linear(x, dense, "relu"), second))
    with pytest.raises(ValueError, match=r"^input_scale must be None"):
        kernels.pack(weight, Sparse((8, 1)), input_scale=0.1)
    assert kernels.pack(weight, Sparse(values=Float32())).input_scale is None


@pytest.mark.parametrize("values", BLOCKS)
@pytest.mark.parametrize("shape", [(70, 130), (64, 128), (1, 1), (3, 200), (0, 5), (5, 0)])
def test_find_block_sees_the_blocks_of_a_mask(rng, values, shape):
    for block in BLOCKS[values]:
        weight = weight_in_blocks(rng, block, *shape)
        found = kernels.find_block(weight, values())
        cells = [
            cell
            for top in range(0, shape[0], found[0])
            for left in range(0, shape[1], found[1])
            if (cell := weight[top : top + found[0], left : left + found[1]]).any()
        ]
        assert sum(cell.size for cell in cells) * 0.9 <= np.count_nonzero(weight)
        if min(shape) > 60:
            assert found == block
            assert kernels.find_block(torch.from_numpy(weight).bfloat16(), values()) == block
        weight[rng.random(shape) < 0.5] = 0
        if min(shape) > 60:
            assert kernels.find_block(weight, values()) == (1, 1)


def test_pack_finds_the_blocks_of_a_mask():
    for block in BLOCKS[Float32]:
        model = nn.Sequential(nn.Linear(64, 64))
        mask = np.kron(np.random.default_rng(0).random((64 // block[0], 64 // block[1])) < 0.3, np.ones(block))
        with torch.no_grad():
            model[0].weight *= torch.from_numpy(mask).float()
        packed = pc.pack(model, torch.zeros(1, 64), force=True)
        assert packed[0].packed.format == Sparse(block)


def test_a_chain_of_sparse_layers_is_one_call_with_the_bits_of_single_ones(implementation):
    rng = np.random.default_rng(3)
    blocks, names = BLOCKS[Float32], (None, "relu", "gelu")
    for case, (rows, inputs, inner, out) in enumerate(
        [(r, *rng.integers(1, 300, 3)) for r in (0, 1, 2, 8, 9, 17, 33, 64, 65, 130, 200)] + [(70, 300, 700, 90)]
    ):
        sizes = [(inner, inputs), (inner + 3, inner), (out, inner + 3)][case % 2 :]
        sizes[0] = (sizes[0][0], inputs)
        packed = [
            kernels.pack(
                weight_in_blocks(rng, block, *size), Sparse(block), rng.standard_normal(size[0]).astype(np.float32)
            )
            for block, size in zip([blocks[i] for i in rng.permutation(5)], sizes, strict=False)
        ]
        activations = [names[rng.integers(3)] for _ in packed]
        x = torch.from_numpy(rng.standard_normal((rows, inputs)).astype(np.float32))
        expected = x
        for weight, name in zip(packed, activations, strict=True):
            expected = kernels.linear(expected, weight, name)
        call = chain_call(packed, activations)
        assert (call is not None) == implementation.startswith("native")
        for threads in (1, 3):
            kernels.set_num_threads(threads)
            assert torch.equal(kernels.linear_chain(x, packed, activations), expected)
            assert call is None or torch.equal(call(x), expected)
    kernels.set_num_threads(None)


def nearest(x):
    """The numbers of x in bfloat16, by torch."""
    return torch.from_numpy(x).bfloat16().float().numpy()


def test_bfloat16_values_are_rounded_and_take_two_bytes(rng, implementation):
    weight = weight_in_blocks(rng, (1, 1), 96, 160)
    packed = kernels.pack(torch.from_numpy(weight), Sparse(values=BFloat16()), cases.floats(rng, 96))
    np.testing.assert_array_equal(packed.unpack(), nearest(weight))
    assert packed.density == np.count_nonzero(weight) / weight.size
    if implementation.startswith("native"):
        assert packed.nbytes == 2 * np.count_nonzero(weight) + weight.size // 8 + 4 * 8 + 4 * 96
    for rows in (1, 2, 9, 40, 130):
        x = rng.standard_normal((rows, 160)).astype(np.float32)
        y = kernels.linear(x, packed)
        np.testing.assert_array_equal(y, kernels.linear(nearest(x), packed))
        np.testing.assert_array_equal(y[rows // 2 :], kernels.linear(x[rows // 2 :], packed))
        exact = nearest(x).astype(np.float64) @ nearest(weight).T + packed.bias
        bound = np.abs(nearest(x)).astype(np.float64) @ np.abs(nearest(weight)).T + np.abs(packed.bias)
        assert (np.abs(y - exact) <= 2 * 161 * 2.0**-24 * bound).all()
        plain = x.astype(np.float64) @ weight.T + packed.bias  # two roundings of 2^-8 for each product
        assert (np.abs(y - plain) <= (2.0**-7 + 2.0**-15 + 2 * 161 * 2.0**-24) * bound * (1 + 2.0**-6)).all()


def test_bfloat16_rounds_what_is_special_as_documented(implementation):
    def pack(*row):
        return kernels.pack(np.array([row], np.float32), Sparse(values=BFloat16()))

    assert pack(1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -(2.0**-126)).unpack().tolist() == [
        [1, 1 + 2**-6, 0, -(2.0**-126)]  # ties to even
    ]
    largest = float(np.float32(2.0**128 * (1 - 2**-8)))
    assert pack(-largest, 2.0**127).unpack().tolist() == [[-largest, 2.0**127]]
    with pytest.raises(ValueError, match=r"^weight must be below 2\^128 - 2\^119 with BFloat16\(\), got 3.3999"):
        pack(1, -3.4e38)
    packed = pack(2, 0, 1)
    for rows in (1, 5, 40, 140):
        x = np.ones((rows, 3), np.float32)
        x[0, 0], x[-1, 2] = 1 + 2.0**-9, 1e-40
        expected = [3] * rows
        expected[-1] = 2
        assert kernels.linear(x, packed)[:, 0].tolist() == expected
        x[rows // 2, 1] = np.inf  # meets a zero
        y = kernels.linear(x, packed)[:, 0]
        assert np.isnan(y[rows // 2]) and np.isfinite(np.delete(y, rows // 2)).all()
        x[rows // 2] = [-np.inf, 1, 1]
        assert kernels.linear(x, pack(2, 1, 0))[rows // 2] == -np.inf


def test_bfloat16_values_of_an_int8_grid_keep_its_integers(rng):
    integers = rng.integers(-127, 128, (40, 50)).astype(np.int8) * (rng.random((40, 50)) < 0.5)
    scale = rng.uniform(1e-3, 1, 40).astype(np.float32)
    packed = kernels.pack(integers.astype(np.int8), Sparse(values=BFloat16()), scale=scale)
    np.testing.assert_array_equal(packed.canonical_weight(), integers)


def test_files_hold_bfloat16_values_in_two_bytes(rng, tmp_path):
    sizes = []
    for values in (Float32(), BFloat16()):
        packed = kernels.pack(weight_in_blocks(rng, (1, 1), 300, 200), Sparse(values=values))
        pc.save(nn.Sequential(PackedLinear(packed)), tmp_path / "model.pyc")
        sizes.append((tmp_path / "model.pyc").stat().st_size)
    assert sizes[1] < 0.65 * sizes[0]


def test_pack_takes_bfloat16_values_where_they_are_asked_for():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4
        expected = model(x)
        automatic = pc.pack(model, x, force=True)
        packed = pc.pack(model, x, format=Sparse(values=BFloat16()), force=True)
        assert torch.allclose(packed(x), expected, atol=0.05)
    assert automatic[0].packed.format == Sparse()
    assert packed[0].packed.format == packed[2].packed.format == Sparse(values=BFloat16())
