"""int8 linear layers whose zeros are skipped, against our own dense int8 and the int8 peers.

fp32 in and out, activations quantized per row within the call. The ratio is over our own dense int8 with the same
integers; the peers, which are dense too, stand beside it. Zeros come at random, in blocks of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from contestants import EIGHT_BITS, Contestant, Point, checked_calls, many
from int8_peers import dynamic_peers
from linears import torch_linear
from measure import OURS
from torch import Tensor
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Int8, Sparse

SHAPES = [(4096, 4096), (3072, 768)]
ROWS = [1, 8, 16, 128]
BLOCKS = [(16, 4), (32, 4), (32, 64), (1, 1)]
SPARSITIES = [0.5, 0.7, 0.8, 0.9]
CORNERS = SHAPES, [1, 16, 128]
"""Shapes and rows of --quick."""

DENSE = "pycompress dense"


def points(
    shapes: Iterable[tuple[int, int]], rows: Iterable[int], threads: int, quick: bool
) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table, one weight after the other."""
    for shape in shapes:
        for block in BLOCKS[:1] + BLOCKS[3:] if quick else BLOCKS:
            for sparsity in SPARSITIES[1::2] if quick else SPARSITIES:
                for count in rows:
                    yield partial(_point, shape, block, sparsity, count, threads)


def pruned_weight(shape: tuple[int, int], block: tuple[int, int], sparsity: float) -> Tensor:
    """Make a weight of which that share of the blocks is zero."""
    rng = np.random.default_rng(sum(shape))
    kept = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) >= sparsity
    mask = np.kron(kept, np.ones(block, bool))[: shape[0], : shape[1]]
    dense = rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[1] ** 0.5)
    return torch.from_numpy(np.where(mask, dense, np.float32(0)))


@lru_cache(maxsize=1)
def _contestants(
    shape: tuple[int, int], block: tuple[int, int], sparsity: float, threads: int
) -> tuple[Tensor, Tensor, kernels.PackedWeight, dict[str, Contestant]]:
    weight = pruned_weight(shape, block, sparsity)
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(1))
    packed = kernels.pack(weight, Sparse(block, Int8()), bias)

    def ours(format: Int8 | Sparse) -> Callable[[Tensor], Tensor]:
        copy = kernels.pack(weight, format, bias)
        return lambda x: kernels.linear(x, copy)

    contestants = {
        OURS: Contestant(many(packed.nbytes, partial(ours, packed.format)), EIGHT_BITS),  # type: ignore[arg-type]
        DENSE: Contestant(many(weight.numel(), partial(ours, Int8())), EIGHT_BITS),
        "torch fp32": torch_linear(weight, bias, torch.float32, EIGHT_BITS),
    }
    return weight, bias, packed, contestants | dynamic_peers(weight, bias, threads, threads)


def _point(shape: tuple[int, int], block: tuple[int, int], sparsity: float, rows: int, threads: int) -> Point:
    weight, bias, packed, contestants = _contestants(shape, block, sparsity, threads)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    right = F.linear(x.double(), weight.double(), bias.double()).numpy()
    calls = checked_calls(contestants, x, right, lenient=True)
    work = 2.0 * rows * int(torch.count_nonzero(weight)), packed.nbytes + 4.0 * rows * sum(shape)
    rotated = packed.nbytes * len(contestants[OURS].copies)
    pattern = "bitmap" if block == (1, 1) else f"{block[0]}x{block[1]}"
    label = [*shape, f" {pattern} {sparsity:.0%}"]
    level = packed.kernel.rpartition("/")[2]
    return Point(label, rows, level, "Sparse(values=Int8())", calls, (DENSE,), work, rotated)
