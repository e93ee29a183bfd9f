"""Convolutions with sparse weights, fp32 and int8, at the sizes of LeNet-5 and ResNet.

fp32 in and out, NCHW. The ratio of fp32 values is over torch's dense fp32 convolution, that of int8 values (fixed input
scale) over our own dense int8 convolution with the same integers. Blocks are those of the weight as [out, in * kernel].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from contestants import EIGHT_BITS, EXACT, Contestant, Point, checked_calls
from measure import OURS
from sparse_int8 import DENSE, pruned_weight
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Float32, Int8, Sparse

LAYERS = [(16, 6, 5, 14), (64, 64, 3, 56), (128, 128, 3, 28), (256, 256, 3, 14), (64, 256, 1, 56)]
"""Outputs, inputs, kernel, height and width of images; with half of the kernel as padding, LeNet's without."""

BLOCKS: list[Sparse] = [Sparse(), Sparse((4, 1)), Sparse(values=Int8()), Sparse((16, 4), Int8())]
SPARSITIES = [0.7, 0.8, 0.9]
BATCHES = [1]


def points(batches: Iterable[int], quick: bool) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table, one layer after the other."""
    for layer in LAYERS[1::3] if quick else LAYERS:
        for format in BLOCKS[::2] if quick else BLOCKS:
            for sparsity in SPARSITIES[1:] if quick else SPARSITIES:
                for batch in batches:
                    yield partial(_point, layer, format, sparsity, batch)


def _point(layer: tuple[int, int, int, int], format: Sparse, sparsity: float, batch: int) -> Point:
    out, inputs, kernel, size = layer
    padding = 0 if kernel == 5 else kernel // 2
    weight = pruned_weight((out, inputs * kernel * kernel), format.block, sparsity).reshape(out, inputs, kernel, kernel)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(1))
    x = torch.randn(batch, inputs, size, size, generator=torch.Generator().manual_seed(batch))
    exact = isinstance(format.values, Float32)
    input_scale = None if exact else float(x.abs().max()) / 127
    packed = kernels.pack_conv(weight, format, bias, input_scale=input_scale, padding=padding)
    right = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding).numpy()
    contestants = {
        OURS: Contestant([lambda x: kernels.conv(x, packed)], EXACT if exact else EIGHT_BITS),
        "torch fp32": Contestant([lambda x: F.conv2d(x, weight, bias, padding=padding)], EXACT),
    }
    if not exact:
        dense = kernels.pack_conv(weight, Int8(), bias, input_scale=input_scale, padding=padding)
        contestants[DENSE] = Contestant([lambda x: kernels.conv(x, dense)], EIGHT_BITS)
    pixels = right.size // out
    work = 2.0 * pixels * int(torch.count_nonzero(weight)), packed.nbytes + 4.0 * (x.numel() + right.size)
    label = [*weight.shape, size, f" {format.block[0]}x{format.block[1]} {sparsity:.0%}"]
    level, kind = packed.kernel.rpartition("/")[2], "fp32" if exact else "int8"
    eligible = ("torch fp32",) if exact else (DENSE,)
    calls = checked_calls(contestants, x, right, lenient=True)
    return Point(label, batch, level, f"Sparse({kind})", calls, eligible, work, int(work[1]), kind)
