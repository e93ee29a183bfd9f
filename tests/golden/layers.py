"""What layers.safetensors holds: packed embeddings, cells and attention. The file was written once, by ``python
tests/golden/layers.py``, and is kept for ever: every later release must load it to exactly these numbers."""

import sys
from pathlib import Path

import torch
from torch import nn

from pycompress import artifact, kernels
from pycompress.attention import PackedMultiheadAttention
from pycompress.cells import PackedGRUCell, PackedLSTMCell
from pycompress.embeddings import PackedEmbedding, PackedEmbeddingBag
from pycompress.formats import Int8
from pycompress.rows import pack_rows

PATH = Path(__file__).with_name("layers.safetensors")
SHA256 = "1149741d7aa000d0f33fb8cac60c78c8d01bc6f8bf2d66596a711e58244beaa2"


def integers(low, high, *shape, step=7919):
    """Integers that every machine makes alike."""
    size = torch.Size(shape).numel()
    return ((torch.arange(size) * step + 13) % 1021 % (high - low + 1) + low).reshape(shape)


class Architecture(nn.Module):
    """The model as its code builds it, to be filled by load."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=3, dtype=torch.bfloat16)
        self.bag = nn.EmbeddingBag(7, 8, mode="sum", include_last_offset=True)
        self.lstm, self.gru = nn.LSTMCell(8, 6), nn.GRUCell(6, 8, bias=False)
        self.self_attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 4, kdim=5, vdim=6, bias=False)

    def forward(self, words):
        x = self.words(words).float()
        h, _ = self.lstm(x[:, 0] + self.bag(words[:, 0] % 7, torch.arange(len(words) + 1)))
        x = x + self.gru(h)[:, None]
        x, _ = self.self_attn(x, x, x)
        return self.cross(x, x[..., :5], x[..., 2:])[0]


def weight(rows, columns, step):
    """Integers and scales of a weight."""
    return integers(-127, 127, rows, columns, step=step).to(torch.int8), integers(1, 500, rows, step=step) / 16384.0


def linear(rows, columns, step, bias=True):
    """A packed weight of attention."""
    values, scale = weight(rows, columns, step)
    return kernels.pack(values, Int8(), integers(-9, 9, rows, step=step) / 8.0 if bias else None, scale)


def build():
    """The model that the file holds."""
    model = Architecture()
    model.words = PackedEmbedding(pack_rows(*weight(11, 8, 31)), padding_idx=3, dtype=torch.bfloat16)
    model.bag = PackedEmbeddingBag(pack_rows(*weight(7, 8, 37)), mode="sum", include_last_offset=True)
    (ih, ih_scale), (hh, hh_scale) = weight(24, 8, 41), weight(24, 6, 43)
    biases = {name: integers(-9, 9, 24, step=step) / 8.0 for name, step in (("bias_ih", 3), ("bias_hh", 5))}
    model.lstm = PackedLSTMCell(kernels.pack_lstm(ih, hh, scale_ih=ih_scale, scale_hh=hh_scale, **biases))
    (ih, ih_scale), (hh, hh_scale) = weight(24, 6, 47), weight(24, 8, 53)
    model.gru = PackedGRUCell(kernels.pack_gru(ih, hh, scale_ih=ih_scale, scale_hh=hh_scale))
    model.self_attn = PackedMultiheadAttention((linear(24, 8, 59), linear(8, 8, 61)), 2, batch_first=True)
    apart = [linear(8, columns, step, bias=False) for columns, step in ((8, 67), (5, 71), (6, 73), (8, 79))]
    model.cross = PackedMultiheadAttention(tuple(apart), 4)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    if PATH.exists():
        sys.exit(f"{PATH} exists, and is never written again")
    artifact.save(build(), PATH)
