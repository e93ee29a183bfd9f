"""What binary.safetensors holds: packed layers of weights of one bit. The file was written once, by
``python tests/golden/binary.py``, and is kept for ever: every later release must load it to exactly these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.formats import Binary
from pycompress.layers import PackedLinear

PATH = Path(__file__).with_name("binary.safetensors")
SHA256 = "1d73fd1b35079f0dd927b42146a782aaae74ea99edff13493844ec473313d49e"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


def architecture():
    """The model as its code builds it, to be filled by load."""
    return nn.Sequential(nn.Linear(75, 40), nn.ReLU(), nn.Linear(40, 35, bias=False), nn.Linear(35, 33))


def build():
    """The model that the file holds."""
    signs = torch.tensor([-1, 1], dtype=torch.int8)
    first = kernels.pack(
        signs[integers(0, 1, 40, 75)],
        Binary(),
        bias=integers(-9, 9, 40) / 8.0,
        scale=integers(0, 500, 40, step=31) / 8192.0,
        input_scale=0.0625,
    )
    second = kernels.pack(signs[integers(0, 1, 35, 40)], Binary("binary"), scale=integers(1, 500, 35) / 8192.0)
    last = kernels.pack(
        signs[integers(1, 1, 33, 35)], Binary("binary"), integers(-9, 9, 33) / 8.0, integers(1, 500, 33) / 8192.0
    )
    return nn.Sequential(PackedLinear(first, "relu"), nn.Identity(), PackedLinear(second), PackedLinear(last)).eval()


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
