"""Networks of sequences drawn at random: recurrent layers, attention, convolutions, and what branches and meets."""

import torch
from torch import nn
from torch.nn import functional as F

KINDS = ["linear", "gru", "lstm", "conv", "attend", "shared", "norm", "act", "halves", "flip", "last", "steps", "most"]
KINDS += ["layer", "state", "cut", "own"] + 3 * ["add", "gate", "cat"]


class Heads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.o, self.heads = nn.Linear(width, 12), nn.Linear(4, width), 2

    def forward(self, x):
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DrawnSequence(nn.Module):
    """Each step takes one or two of the sequences that are there, [batch, 4, channels], and adds another one."""

    def __init__(self, seed, steps=10):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def any_of(values):
            return values[int(torch.randint(len(values), (), generator=draw))]

        self.table, self.layers, self.steps = nn.Embedding(7, 4), nn.ModuleList(), []
        widths = [4, 3]
        for _ in range(steps):
            kind, i = any_of(KINDS), any_of(range(len(widths)))
            same = [j for j, width in enumerate(widths) if width == widths[i]]
            j = any_of(range(len(widths)) if kind == "cat" else same)
            width = new = widths[i]
            layer = nn.Tanh()
            if kind == "linear":
                new = any_of([4, 6])
                layer = nn.Linear(width, new)
            elif kind in ("gru", "lstm", "state"):
                ways, hidden, depth = any_of([1, 2]), any_of([3, 4]), any_of([1, 2])
                cls = nn.LSTM if kind == "lstm" else nn.GRU
                layer = cls(width, hidden, depth, batch_first=True, bidirectional=ways == 2)
                new = hidden * ways * depth if kind == "state" else hidden * ways
            elif kind == "conv":
                new = any_of([4, 6])
                layer = nn.Conv1d(width, new, 3, padding=1)
            elif kind == "attend":
                layer = nn.MultiheadAttention(width, 2 if width % 2 == 0 else 1, batch_first=True)
            elif kind == "own":
                layer = Heads(width)
            elif kind == "shared":
                layer = nn.Linear(width, width)
            elif kind == "steps":
                new = any_of([3, 5])
                layer = nn.GRUCell(width, new)
            elif kind == "layer":
                layer = nn.TransformerEncoderLayer(width, 1, 6, batch_first=True)
            elif kind == "norm":
                layer = any_of([nn.BatchNorm1d, nn.InstanceNorm1d])(width)
            elif kind == "cat":
                new = width + widths[j]
            elif kind == "halves":
                if width % 2:
                    continue
                new = width // 2
            if new > 24:
                continue
            self.layers.append(layer)
            self.steps.append((kind, i, j))
            widths.append(new)
        self.last = nn.Linear(sum(widths), 3)

    def forward(self, ids, x):
        sequences = [self.table(ids), x]
        for (kind, i, j), layer in zip(self.steps, self.layers, strict=True):
            x, y = sequences[i], sequences[j]
            if kind in ("linear", "own", "layer"):
                x = layer(x)
            elif kind in ("gru", "lstm"):
                x = layer(x)[0]
            elif kind == "state":
                x = layer(x)[1].transpose(0, 1).flatten(1)[:, None].expand(-1, ids.shape[1], -1)
            elif kind in ("conv", "norm"):
                x = layer(x.transpose(1, 2)).transpose(1, 2)
            elif kind == "attend":
                x = layer(x, y, y, need_weights=False)[0]
            elif kind == "shared":
                x = layer(x) + layer(layer(y))
            elif kind == "steps":
                h, found = None, []
                for t in range(x.size(1)):
                    h = layer(x[:, t], h)
                    found.append(h)
                x = torch.stack(found, 1)
            elif kind == "halves":
                a, b = x.chunk(2, -1)
                x = torch.maximum(a, b)
            elif kind == "flip":
                x = x.flip(1)
            elif kind == "last":
                x = x[:, -1:].repeat(1, x.shape[1], 1)
            elif kind == "most":
                x = x - x.max(1, keepdim=True).values
            elif kind == "cut":
                x = x[:, torch.tensor([3, 1, 2, 0])]
            elif kind == "add":
                x = x + y
            elif kind == "gate":
                x = x * torch.sigmoid(y.mean(1, keepdim=True))
            elif kind == "cat":
                x = torch.cat([x, y], -1)
            else:
                x = layer(x)
            sequences.append(x)
        return self.last(torch.cat(sequences, -1).mean(1))
