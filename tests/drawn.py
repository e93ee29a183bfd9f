"""Networks drawn at random, whose channels branch and meet in all ways."""

import torch
from architectures import Head, shuffle
from torch import nn


class Drawn(nn.Module):
    """A network drawn at random: each step takes one or two of the images that are there, and adds another one."""

    def __init__(self, seed, steps=12):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layers, self.steps = nn.ModuleList(), []
        widths = [4]
        kinds = [
            "conv",
            "grouped",
            "depthwise",
            "norm",
            "groups",
            "act",
            "shared",
            "halves",
            "shuffle",
            "swap",
            "block",
        ]
        kinds += 2 * ["add", "gate", "cat"]

        def any_of(values):
            return values[int(torch.randint(len(values), (), generator=draw))]

        self.stem = nn.Conv2d(2, 4, 1)
        for _ in range(steps):
            kind = any_of(kinds)
            i = any_of(range(len(widths)))
            same = [j for j, width in enumerate(widths) if width == widths[i]]
            j = any_of(range(len(widths)) if kind == "cat" else same)
            width = widths[i]
            if width % 4 and kind in ("grouped", "groups", "halves", "shuffle", "block"):
                continue
            if kind in ("conv", "grouped", "shared"):
                new = width if kind == "shared" else any_of([4, 8])
                self.layers.append(nn.Conv2d(width, new, 1, groups=2 if kind == "grouped" else 1))
            elif kind == "depthwise":
                new = width * any_of([1, 2])
                self.layers.append(nn.Conv2d(width, new, 3, padding=1, groups=width))
            else:
                new = width + widths[j] if kind == "cat" else width // 2 if kind in ("halves", "block") else width
                self.layers.append(
                    nn.BatchNorm2d(width)
                    if kind == "norm"
                    else nn.GroupNorm(2, width)
                    if kind == "groups"
                    else nn.Tanh()
                )
            if new > 32:
                self.layers = self.layers[:-1]
                continue
            self.steps.append((kind, i, j, len(self.layers) - 1))
            widths.append(new)
        self.last = Head(sum(widths))

    def forward(self, x):
        images = [self.stem(x)]
        for kind, i, j, layer in self.steps:
            x, y, layer = images[i], images[j], self.layers[layer]
            if kind == "shared":
                x = layer(x) + layer(layer(y))
            elif kind == "add":
                x = x + y
            elif kind == "gate":
                x = x * torch.sigmoid(y.mean((2, 3), keepdim=True))
            elif kind == "cat":
                x = torch.cat([x, y], 1)
            elif kind == "halves":
                first, second = x.chunk(2, 1)
                x = first - second
            elif kind == "block":
                x = x[:, x.size(1) // 2 :]
            elif kind == "shuffle":
                x = shuffle(x, 2)
            elif kind == "swap":
                x = torch.cat([y.flatten(2).transpose(1, 2), x.flatten(2).permute(0, 2, 1)], 1).transpose(1, 2)
                x = x.unflatten(2, (-1, 4))[:, :, :4]
            else:
                x = layer(x)
            images.append(x)
        return self.last(torch.cat(images, 1))
