"""What convolution.safetensors holds: packed convolutions that hand int8 images on. The file was written once, by
``python tests/golden/convolution.py``, and is kept for ever: every later release must load it to these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.convolutions import PackedConv1d, PackedConv2d

PATH = Path(__file__).with_name("convolution.safetensors")
SHA256 = "5292b7c75ab9fa5b9b2a40931d1f857eb8bf3e0f584dddbcda30f7877b395f0b"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


class Architecture(nn.Module):
    """The model as its code builds it, to be filled by load."""

    def __init__(self):
        super().__init__()
        self.images = nn.Sequential(
            nn.Conv2d(3, 20, 3, stride=2, padding=(1, 0)),
            nn.ReLU6(),
            nn.Conv2d(20, 20, (3, 5), padding="same", groups=20, bias=False),
            nn.ReLU(),
            nn.Conv2d(20, 8, 1),
            nn.Conv2d(8, 6, 2, groups=2, dilation=2),
        )
        self.signals = nn.Conv1d(6, 5, 3, padding=2)

    def forward(self, x):
        return self.signals(self.images(x).flatten(2))


def weight(*shape, bias=True, **options):
    """A packed weight of integers."""
    scale = integers(1, 500, shape[0]) / 4096.0
    added = integers(-9, 9, shape[0]) / 8.0 if bias else None
    return kernels.pack_conv(integers(-127, 127, *shape).to(torch.int8), bias=added, scale=scale, **options)


def build():
    """The model that the file holds."""
    model = Architecture()
    first = weight(20, 3, 3, 3, stride=2, padding=(1, 0), input_scale=0.0625, channels_last=True)
    deep = weight(
        20, 1, 3, 5, bias=False, padding=((1, 1), (2, 2)), groups=20, input_scale=0.046875, channels_last=True
    )
    last = weight(8, 20, 1, 1, input_scale=0.5, channels_last=True)
    model.images = nn.Sequential(
        PackedConv2d(first, "relu6", output_scale=0.046875),
        nn.Identity(),
        PackedConv2d(deep, "relu", output_scale=0.5),
        nn.Identity(),
        PackedConv2d(last),
        PackedConv2d(weight(6, 4, 2, 2, dilation=2, groups=2), "gelu"),
    )
    model.signals = PackedConv1d(weight(5, 6, 3, padding=((2, 2),), input_scale=0.25))
    return model.eval()


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
