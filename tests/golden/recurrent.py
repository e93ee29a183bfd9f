"""What recurrent.safetensors holds: packed LSTM and GRU layers. The file was written once, by ``python
tests/golden/recurrent.py``, and is kept for ever: every later release must load it to exactly these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.recurrent import PackedGRU, PackedLSTM

PATH = Path(__file__).with_name("recurrent.safetensors")
SHA256 = "22c58c60f16324772b0acd009a25bdc7c6628daa0ce9f9daedebef6018b1366a"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


class Architecture(nn.Module):
    """The model as its code builds it, to be filled by load."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(7, 6, num_layers=2, bidirectional=True, batch_first=True, proj_size=3)
        self.gru = nn.GRU(6, 34, bias=False)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0]


def build():
    """The model that the file holds."""

    def part(pack, gates, inputs, hidden, out, step, **more):
        rows = gates * hidden
        return pack(
            integers(-127, 127, rows, inputs, step=step).to(torch.int8),
            integers(-127, 127, rows, out, step=step + 2).to(torch.int8),
            scale_ih=integers(1, 500, rows, step=step) / 65536.0,
            scale_hh=integers(1, 500, rows, step=step) / 65536.0,
            **more,
        )

    parts = []
    for index, inputs in enumerate((7, 7, 6, 6)):
        more = {
            "bias_ih": integers(-9, 9, 24, step=index + 3) / 8.0,
            "bias_hh": integers(-9, 9, 24, step=index + 5) / 8.0,
            "weight_hr": integers(-127, 127, 3, 6, step=index + 11).to(torch.int8),
            "scale_hr": integers(1, 500, 3, step=index + 7) / 16384.0,
        }
        parts.append(part(kernels.pack_lstm, 4, inputs, 6, 3, 31 + index, **more))
    model = Architecture()
    model.lstm = PackedLSTM(parts, bidirectional=True, batch_first=True)
    model.gru = PackedGRU([part(kernels.pack_gru, 3, 6, 34, 34, 41)])
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
