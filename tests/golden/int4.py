"""What int4.safetensors holds: packed layers of 4-bit weights. The file was written once, by ``python
tests/golden/int4.py``, and is kept for ever: every later release must load it to exactly these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.formats import Int4
from pycompress.layers import PackedLinear

PATH = Path(__file__).with_name("int4.safetensors")
SHA256 = "7155e890f785aa95ee7bd32ae00d75f142e979fafca3050d2056c82f46adfd25"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


def architecture():
    """The model as its code builds it, to be filled by load."""
    return nn.Sequential(
        nn.Linear(75, 40), nn.ReLU(), nn.Linear(40, 35, bias=False), nn.Linear(35, 33), nn.Linear(33, 7)
    )


def build():
    """The model that the file holds."""
    first = kernels.pack(
        integers(-8, 7, 40, 75).to(torch.int8),
        Int4(),
        bias=integers(-9, 9, 40) / 8.0,
        scale=(integers(-500, 500, 40, 3, step=31) / 1024.0).half(),
    )
    second = kernels.pack(
        integers(0, 15, 35, 40).to(torch.int8),
        Int4(64, zero_point=True, activations="int8"),
        scale=integers(1, 500, 35, 1) / 1024.0,
        zero_point=integers(0, 15, 35, 1, step=31).to(torch.uint8),
        input_scale=0.0625,
    )
    third = kernels.pack(
        integers(-8, 7, 33, 35, step=31).to(torch.int8),
        Int4(scales="int", activations="int8"),
        bias=integers(-9, 9, 33) / 8.0,
        scale=integers(1, 500, 33) / 4096.0,
        multiplier=integers(1, 15, 33, 2).to(torch.uint8),
    )
    last = kernels.pack(
        integers(0, 15, 7, 33, step=31).to(torch.int8),
        Int4(128, zero_point=True),
        bias=integers(-9, 9, 7) / 8.0,
        scale=integers(1, 500, 7, 1) / 1024.0,
        zero_point=integers(0, 15, 7, 1).to(torch.uint8),
    )
    return nn.Sequential(
        PackedLinear(first, "relu"), nn.Identity(), PackedLinear(second), PackedLinear(third), PackedLinear(last)
    ).eval()


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
