"""What version1.safetensors holds. The file was written once, by ``python tests/golden/version1.py``, and is kept for
ever: every later release must load it to exactly these numbers. A new version of the format gets a file of its own."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, grids, kernels, masks
from pycompress.formats import Affine, FixedPoint, Int8, Sparse
from pycompress.layers import LayerDecision, PackedLinear, set_decision

PATH = Path(__file__).with_name("version1.safetensors")
SHA256 = "c437af28855db27d15680a870457410563881ecc7b41a445602a8b7c042198a4"


def numbers(*shape, step=7919):
    """Numbers that every machine makes alike: multiples of 1/512 in [-1, 1)."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 - 510).reshape(shape).float() / 512


def architecture():
    """The model as its code builds it, to be filled by load."""
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, 1, groups=2),
            "norm": nn.BatchNorm1d(3),
            "fp16": nn.Linear(3, 2),
            "bf16": nn.Linear(3, 2),
            "pruned": nn.Linear(50, 40),
            "tied": nn.Linear(50, 40, bias=False),
            "smaller": nn.Linear(9, 9),
            "int8": nn.Linear(30, 3),
            "affine": nn.Linear(30, 20, bias=False),
            "fixed": nn.Linear(4, 3),
            "packed": nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20, bias=False)),
        }
    )
    model.register_buffer("flags", torch.zeros(5, dtype=torch.bool))
    model.register_buffer("scalar", torch.zeros((), dtype=torch.float64))
    model.register_buffer("empty", torch.zeros(0, 3, dtype=torch.uint8))
    return model


def build():
    """The model that the file holds."""
    model = architecture().eval().requires_grad_(False)
    model["smaller"] = nn.Linear(4, 7).requires_grad_(False)
    for index, module in enumerate(model.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                parameter.copy_(numbers(*parameter.shape, step=7919 + 2 * index + (name == "bias")))
    model["norm"].running_mean.copy_(numbers(3))
    model["norm"].running_var.copy_(numbers(3) + 1)
    model["norm"].num_batches_tracked.fill_(2**40 + 1)
    model["fp16"].half()
    model["bf16"].bfloat16()
    model.flags.copy_(torch.tensor([True, False, True, True, False]))
    model.scalar.fill_(-0.0)
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask.view(-1)[torch.tensor([0, 1, 256, 600, 1999])] = True
    masks.attach_(model["pruned"], "weight", mask)
    model["tied"].weight = masks.finalize_(model["pruned"]).weight
    on_grid(model["int8"], Int8(), torch.tensor([2.0**-7, 2.0**-8, 0.3]), torch.zeros(3), 0.0625)
    on_grid(model["affine"], Affine(bits=4), torch.tensor(0.125), torch.tensor(7.3))
    model["affine"].weight[3:].zero_()
    on_grid(model["fixed"], FixedPoint(bits=6), torch.tensor(2.0**-6), torch.tensor(0.0))
    first, _, second = model["packed"]
    model["packed"][0] = PackedLinear(
        kernels.pack(first.weight, Int8(), first.bias, input_scale=0.0078125),
        "relu",
        LayerDecision("", "Linear+ReLU", Int8(), "native/avx2", 32, 12.5, 3.125, 4.0, 3.9, 4.1, "faster, слой"),
    )
    model["packed"][1] = nn.Identity()
    sparse = second.weight * ((torch.arange(600) % 7 == 0).reshape(20, 30))
    model["packed"][2] = PackedLinear(kernels.pack(sparse, Sparse()))
    set_decision(model["fixed"], LayerDecision("", "Linear", rows=1, reason="not faster"))
    return model.eval()


def on_grid(layer, format, scale, zero_point, input_scale=None):
    """Put a layer on a grid."""
    record = grids.GridRecord(format, scale, zero_point, input_scale)
    low, high = grids.limits(record)
    q = torch.round(layer.weight / (scale[:, None] if scale.ndim else scale) + zero_point.max()).clamp(low, high)
    layer.weight.copy_(grids.weight_from(q.to(torch.int32), record))
    grids.set_grid(layer, record)


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
