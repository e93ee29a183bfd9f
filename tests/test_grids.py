"""Grids: integers and weights are inverse to each other, exactly."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pycompress.formats import Affine, FixedPoint, Int8
from pycompress.grids import GridRecord, grid_of, has_zero, integers, limits, nearest, set_grid, weight_from


def record(format, scale, zero_point=None):
    scale = torch.tensor(scale)
    return GridRecord(format, scale, torch.zeros_like(scale) if zero_point is None else torch.tensor(zero_point))


RECORDS = {
    "int8": record(Int8(), [0.1, 3.7, 1.0]),
    "affine": record(Affine(bits=8), 0.013, 117.31),
    "affine4 signed": record(Affine(bits=4, signed=True, per_channel=True), [0.1, 0.2, 0.3], [-7.7, 0.1, 3.3]),
    "affine16": record(Affine(bits=16), 0.00012, 31000.4),
    "affine16 signed": record(Affine(bits=16, signed=True), 0.00012, -51.4),
    "fixed": record(FixedPoint(bits=6), 2.0**-6),
    "fixed 0": record(FixedPoint(bits=0), 1.0),
}
DTYPES = {
    "int8": torch.int8,
    "affine": torch.uint8,
    "affine4 signed": torch.int8,
    "affine16": torch.uint16,
    "affine16 signed": torch.int16,
    "fixed": torch.int16,
    "fixed 0": torch.int16,
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("shape", [(3, 40), (3, 2, 3, 3), (3, 0), (3,)])
def test_every_integer_comes_back(name, shape):
    grid = RECORDS[name]
    low, high = limits(grid)
    low, high = max(low, -30000), min(high, 70000 if "fixed" not in name else 32000)
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(low, high + 1, shape, generator=generator)
    weight = weight_from(q, grid)
    assert weight.dtype == torch.float32
    back = integers(weight, grid)
    assert torch.equal(back.long(), q)
    assert not q.numel() or back.dtype == DTYPES[name] or "fixed" in name
    assert torch.equal(weight_from(back, grid), weight)
    if weight.numel():
        off = weight.clone()
        off.view(-1)[-1] = torch.nextafter(off.view(-1)[-1], torch.tensor(torch.inf))
        assert integers(off, grid) is None
        off.view(-1)[-1] = torch.nan
        assert integers(off, grid) is None
        off.view(-1)[-1] = weight_from(torch.full(shape, high + 1), grid).view(-1)[-1]
        assert "fixed" in name or integers(off, grid) is None


@pytest.mark.parametrize("name", RECORDS)
def test_zero_is_always_on_the_grid_and_comes_back(name):
    grid = RECORDS[name]
    low, high = limits(grid)
    generator = torch.Generator().manual_seed(0)
    weight = weight_from(torch.randint(max(low, -99), min(high, 99), (3, 20), generator=generator), grid)
    zeros = torch.rand(3, 20, generator=generator) > 0.5
    weight[zeros] = 0
    q = integers(weight, grid)
    assert torch.equal(weight_from(q, grid, weight == 0), weight)
    assert has_zero(grid) == ("affine" not in name)
    if has_zero(grid):
        assert bool((q[zeros] == 0).all()) and torch.equal(weight_from(q, grid), weight)


def test_fixed_point_takes_the_smallest_integers_that_hold_it():
    grid = record(FixedPoint(bits=4), 2.0**-4)
    for value, dtype in ((7.9375, torch.int8), (8.0, torch.int16), (-2047.9375, torch.int16), (2048.0, torch.int32)):
        q = integers(torch.tensor([value, 0.0625]), grid)
        assert q.dtype == dtype and q.tolist() == [value * 16, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes(dtype):
    grid = record(Int8(), [0.013, 0.31, 1.7])
    q = torch.randint(-127, 128, (3, 300), generator=torch.Generator().manual_seed(0))
    q[1, 1] = 20
    assert torch.equal(integers(weight_from(q, grid).to(dtype), grid).long(), q)
    off = weight_from(q, grid).to(dtype)
    off[1, 1] *= 1 + 2 * torch.finfo(dtype).eps
    assert integers(off, grid) is None


def test_nearest_rounds_ties_to_even_and_clamps():
    grid = record(Int8(), [2.0])
    assert nearest(torch.tensor([[1.0, 3.0, -1.0, 5.0, 1e30]]), grid).tolist() == [[0, 2, 0, 2, 127]]


def test_another_number_of_outputs_is_not_on_the_grid():
    assert integers(torch.zeros(2, 3), RECORDS["int8"]) is None


def test_the_record_travels_with_the_module_and_not_with_its_state():
    layer = nn.Linear(4, 3)
    keys = list(layer.state_dict())
    set_grid(layer, RECORDS["int8"])
    assert list(layer.state_dict()) == keys
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double()):
        assert grid_of(twin).format == Int8()
        assert torch.equal(grid_of(twin).scale, RECORDS["int8"].scale)
    set_grid(layer, None)
    set_grid(layer, None)
    assert grid_of(layer) is None


def test_bad_records():
    one, two = torch.ones(1), torch.ones(2)
    for arguments, kind, message in [
        (("int8", one, one), TypeError, "format must be Int8"),
        ((Int8(), 1.0, one), TypeError, "scale must be a float32 tensor"),
        ((Int8(), one.double(), one), TypeError, "scale must be a float32 tensor"),
        ((Int8(), one[None], one[None]), TypeError, "scale must be a float32 tensor"),
        ((Int8(), one, two), ValueError, "zero_point must have the shape of scale"),
        ((Int8(), one * 0, one), ValueError, "scale must be positive, got 0.0"),
        ((Int8(), one * torch.nan, one), ValueError, "scale must be finite"),
        ((Int8(), one, one * torch.inf), ValueError, "zero_point must be finite"),
    ]:
        with pytest.raises(kind, match=message):
            GridRecord(*arguments)
    with pytest.raises(TypeError, match="record must be a GridRecord"):
        set_grid(nn.Linear(1, 1), Int8())
