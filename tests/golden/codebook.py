"""What codebook.safetensors holds: packed layers whose weights share few numbers. The file was written once, by
``python tests/golden/codebook.py``, and is kept for ever: every later release must load it to exactly these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.formats import Codebook
from pycompress.layers import PackedLinear

PATH = Path(__file__).with_name("codebook.safetensors")
SHA256 = "4d36ce04ad821c31386d99a97c6b6f66fe1e57ea7c49c5fb3acf078c6670674f"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


def architecture():
    """The model as its code builds it, to be filled by load."""
    return nn.Sequential(nn.Linear(75, 40), nn.ReLU(), nn.Linear(40, 35, bias=False), nn.Linear(35, 33))


def build():
    """The model that the file holds."""
    table = integers(-127, 127, 16, step=31).to(torch.int8)
    first = kernels.pack(
        table[integers(0, 15, 40, 75)],
        Codebook(),
        bias=integers(-9, 9, 40) / 8.0,
        scale=(integers(-500, 500, 40, 2, step=31) / 8192.0).half(),
    )
    second = kernels.pack(
        table[integers(0, 3, 35, 40)],
        Codebook(bits=2, group=32),
        scale=(integers(1, 500, 35, 2) / 8192.0).half(),
        input_scale=0.0625,
    )
    last = kernels.pack(
        table[integers(0, 2, 33, 35, step=31)],
        Codebook(bits=2, group=128),
        bias=integers(-9, 9, 33) / 8.0,
        scale=(integers(1, 500, 33, 1) / 8192.0).half(),
    )
    return nn.Sequential(PackedLinear(first, "relu"), nn.Identity(), PackedLinear(second), PackedLinear(last)).eval()


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
