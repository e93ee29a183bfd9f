"""Small networks of the kinds whose channels branch and meet, each with what a test needs to know of it.

NETWORKS: name -> (class, shapes of its inputs, {layer that loses outputs: how many of them go together}).
"""

import torch
from torch import nn
from torch.nn import functional as F


def settle_(model):
    """Give normalizations and PReLUs values that show a mistake."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            for name in ("weight", "bias", "running_mean"):
                if getattr(module, name, None) is not None:
                    nn.init.normal_(getattr(module, name))
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.9)
    return model.eval()


def conv_bn(inputs, outputs, kernel=3, **options):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(outputs))


class Head(nn.Sequential):
    def __init__(self, channels, classes=3):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            conv_bn(2, 8), nn.PReLU(8), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.Sigmoid(), nn.Flatten(),
            nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 3),
        )  # fmt: skip


class Basic(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.one, self.two = conv_bn(inputs, outputs, bias=False), conv_bn(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else conv_bn(inputs, outputs, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.two(self.act(self.one(x)))
        y += self.skip(x)
        return self.act(y)


class ResNet(nn.Sequential):
    def __init__(self):
        super().__init__(conv_bn(2, 8), nn.ReLU(), Basic(8, 8), Basic(8, 12), Basic(12, 12), Head(12))


class Bottleneck(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3)
        self.down, self.mid = conv_bn(16, 8, 1), conv_bn(8, 8, groups=groups)
        self.up, self.head = conv_bn(8, 16, 1), Head(16)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.mid(F.relu(self.down(x))))
        return self.head(torch.add(x, self.up(y)).relu())


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.head = Head(8)

    def forward(self, x):
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.head(F.relu(self.norms[4](x)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.transition, self.head = nn.Conv2d(20, 10, 1), Head(10)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = self.norms[3](torch.cat(features, dim=1))
        return self.head(F.avg_pool2d(self.transition(F.relu(x)), 2))


class InvertedResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(2, 8)
        self.expand, self.depthwise, self.project = conv_bn(8, 24, 1), conv_bn(24, 24, groups=24), conv_bn(24, 8, 1)
        self.head = Head(8)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        return self.head(x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x))))))


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = conv_bn(2, 12), nn.Linear(12, 4), nn.Linear(4, 12)
        self.third = nn.Linear(12, 12)
        self.squeeze, self.excite, self.spatial = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 1, 1)
        self.head = Head(12)

    def forward(self, x):
        x = F.silu(self.stem(x))
        n, c, _, _ = x.size()
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(n, c)))))
        x = x * gate.view(n, c, 1, 1).expand_as(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean([2, 3], keepdim=True)))))
        x = x * torch.sigmoid(self.spatial(x))
        gate = torch.tanh(self.third(x.mean((2, 3))))
        return self.head(x * gate[:, :, None, None])


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(2, 8)
        self.one = conv_bn(8, 4, 1)
        self.three = nn.Sequential(conv_bn(8, 8, 1), nn.ReLU(), conv_bn(8, 12))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(8, 4, 1))
        self.last, self.head = nn.Conv2d(28, 8, 1), Head(8)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([self.one(x), self.three(x), x, self.pool(x)], 1)
        return self.head(F.relu(self.last(F.relu(x))))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.bottom = conv_bn(2, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up, self.last, self.out = conv_bn(28, 12), conv_bn(20, 8), nn.Conv2d(8, 2, 1)
        self.bigger = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        a = F.relu(self.first(x))
        b = F.relu(self.second(F.max_pool2d(a, 2)))
        c = F.relu(self.bottom(F.max_pool2d(b, 2)))
        b = F.relu(self.up(torch.cat([b, self.bigger(c)], 1)))
        a = torch.cat([a, F.interpolate(b, size=a.shape[2:], mode="nearest")], 1)
        return self.out(F.relu(self.last(F.pad(a, (1, 1, 0, 2)))))


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(2, 16)
        self.one, self.depthwise, self.two = conv_bn(8, 8, 1), conv_bn(8, 8, groups=8), conv_bn(8, 8, 1)
        self.head = Head(16)

    def forward(self, x):
        a, b = F.relu(self.stem(x)).chunk(2, dim=1)
        b = F.relu(self.two(self.depthwise(F.relu(self.one(b)))))
        return self.head(shuffle(torch.cat((a, b), dim=1), 2))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, a, b):
        return self.head(torch.abs(self.encoder(a) - self.encoder(b)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.norm = nn.Linear(5, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.middle(torch.relu(self.first(x))))
        x = self.norm(self.middle(torch.relu(x)))
        return self.last(torch.tanh(self.inner(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(5, 8), nn.Parameter(torch.randn(4, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.up, self.gate, self.down = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x) + self.position
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norms[1](x)
        x = x + self.down(F.gelu(self.up(y)) * self.gate(y))
        return self.head(self.norms[2](x).mean(1))


class ManyOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.features, self.inner = conv_bn(2, 8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.one, self.two = Head(8), Head(8, 2)

    def forward(self, x):
        features = self.features(F.relu(self.stem(x)))
        y = F.relu(self.inner(F.relu(features)))
        return {"scores": (self.one(y), self.two(y)), "features": features}


class ManyInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.table, self.residual = nn.Linear(5, 8), nn.Linear(8, 5)
        self.mixed, self.last = nn.Linear(32 + 8 + 5, 8), nn.Linear(8, 2)

    def forward(self, image, table):
        hidden = torch.relu(self.table(table))
        kept = table + self.residual(hidden)
        return self.last(torch.relu(self.mixed(torch.cat([self.image(image), hidden, kept], -1))))


class Grouped(Bottleneck):
    def __init__(self):
        super().__init__(groups=2)


class Depthwise(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), nn.Flatten(),
            nn.Linear(16 * 16, 3),
        )  # fmt: skip


class Normalized(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 16, 3), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), Head(8))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.halves, self.last = (
            nn.Linear(5, 24), nn.Linear(12, 16), nn.Linear(8, 8), nn.Linear(8, 2)
        )  # fmt: skip

    def forward(self, x):
        value, gate = self.up(x).chunk(2, dim=-1)
        x = self.down(F.silu(gate) * value)
        width = x.shape[-1]
        x = torch.relu(x[..., : width // 2]) - torch.tanh(x[..., width // 2 :])
        return self.last(self.halves(x).relu())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.hidden, self.last = nn.Conv2d(2, 8, 2, stride=2), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.relu(self.hidden(x)).permute(0, 2, 1)
        return self.last(x.softmax(dim=-1).unsqueeze(2).squeeze(2).sum(-1))


IMAGE = ((2, 8, 8),)
NETWORKS = {
    "plain": (Plain, IMAGE, {"0.0": 1, "3": 1, "6": 1}),
    "resnet": (
        ResNet, IMAGE,
        {"0.0": 1, "2.one.0": 1, "2.two.0": 1, "3.one.0": 1, "3.two.0": 1, "3.skip.0": 1, "4.one.0": 1, "4.two.0": 1},
    ),
    "bottleneck": (Bottleneck, IMAGE, {"stem": 1, "down.0": 1, "mid.0": 1, "up.0": 1}),
    "pre-activation": (PreActivation, IMAGE, {"stem": 1, **{f"convs.{i}": 1 for i in range(4)}}),
    "dense": (Dense, IMAGE, {"stem": 1, "convs.0": 1, "convs.1": 1, "convs.2": 1, "transition": 1}),
    "inverted residual": (
        InvertedResidual, IMAGE, {"stem.0": 1, "expand.0": 1, "depthwise.0": 1, "project.0": 1}
    ),
    "squeeze-excitation": (
        SqueezeExcitation, IMAGE, {"stem.0": 1, "down": 1, "up": 1, "third": 1, "squeeze": 1, "excite": 1}
    ),
    "inception": (
        Inception, IMAGE, {"stem.0": 1, "one.0": 1, "three.0.0": 1, "three.2.0": 1, "pool.1.0": 1, "last": 1}
    ),
    "u-net": (UNet, IMAGE, {f"{name}.0": 1 for name in ("first", "second", "bottom", "up", "last")}),
    "shuffle": (Shuffle, IMAGE, {"stem.0": 2, "one.0": 1, "depthwise.0": 1, "two.0": 1}),
    "siamese": (Siamese, ((5,), (5,)), {"encoder.0": 1, "encoder.3": 1}),
    "twice": (Twice, ((5,),), {"first": 1, "middle": 1, "inner": 1}),
    "encoder": (Encoder, ((4, 5),), {"up": 1, "gate": 1}),
    "many outputs": (ManyOutputs, IMAGE, {"stem.0": 1, "inner": 1}),
    "many inputs": (ManyInputs, ((2, 8, 8), (5,)), {"image.0": 1, "table": 1, "mixed": 1}),
    "grouped": (Grouped, IMAGE, {"stem": 1, "down.0": 2, "mid.0": 2, "up.0": 1}),
    "depthwise": (Depthwise, IMAGE, {"0": 1, "2": 2}),
    "normalized": (Normalized, IMAGE, {"0": 2, "3": 1}),
    "gated": (Gated, ((5,),), {"up": 2, "down": 2, "halves": 1}),
    "tokens": (Tokens, IMAGE, {"patches": 1, "hidden": 1}),
}  # fmt: skip
