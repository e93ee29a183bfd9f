"""Pruned linear layers in fp32, unstructured and in blocks, by this package and by its peers.

Unstructured weights are pruned by magnitude. Blocks are kept at random; what they are compared with is an unstructured
weight of the same sparsity. The weight in blocks itself, stored as single weights, stands beside it: neighbours find
the activations of their common columns in L1, so that it is faster than an unstructured one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from contestants import EIGHT_BITS, EXACT, HALF, Contestant, Point, checked_calls, many
from linears import torch_linear
from measure import OURS
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Format, Int8, Sparse

SHAPES = [(3072, 768), (768, 3072), (4096, 4096)]  # (out_features, in_features)
ROWS = [1, 8, 32, 128, 512]
SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.98)
BLOCKS = ((4, 1), (8, 1), (16, 1), (16, 16))
BLOCK_ROWS, BLOCK_SPARSITIES = [128, 512], (0.7, 0.8)
CORNERS = [(3072, 768)], [1, 32, 512], (0.7, 0.9)
"""Shapes, rows and sparsities of --quick."""

UNSTRUCTURED, SINGLE = f"{OURS} unstructured", f"{OURS} as single weights"


@dataclass(frozen=True)
class Problem:
    """One pruned weight and everyone who multiplies with it."""

    sparsity: float
    block: tuple[int, int]
    weight: Tensor
    bias: Tensor
    packed: kernels.PackedWeight
    contestants: dict[str, Contestant]
    unstructured: tuple[Tensor, Contestant] | None = None  # of blocks: a weight as sparse as this one

    def calls(self, rows: int, names: Iterable[str] | None = None, lenient: bool = False) -> Any:
        """Return what is timed for a batch, all contestants or some; their results are checked first."""
        x = torch.randn(rows, self.packed.shape[1], generator=torch.Generator().manual_seed(rows))

        def checked(weight: Tensor, contestants: dict[str, Contestant]) -> dict[str, Callable[[], object]]:
            right = F.linear(x.double(), weight.double(), self.bias.double()).numpy()
            chosen = [name for name in contestants if names is None or name in names]
            return checked_calls(contestants, x, right, chosen, lenient=lenient)

        found = checked(self.weight, self.contestants)
        if self.unstructured:
            found |= checked(self.unstructured[0], {UNSTRUCTURED: self.unstructured[1]})
        return found

    def work(self, rows: int) -> tuple[float, float]:
        """Return the operations (a multiplication and an addition for each weight kept) and bytes of one call."""
        kept = int(torch.count_nonzero(self.weight))
        return 2.0 * rows * kept, 5.0 * kept + 4.0 * rows * sum(self.packed.shape)  # a value and its place in a byte

    def point(self, rows: int) -> Point:
        """Return the line of a table for a batch."""
        calls = self.calls(rows, lenient=True)
        eligible = (UNSTRUCTURED,) if UNSTRUCTURED in calls else ("torch fp32",)
        name = (
            f"{self.block[0]}x{self.block[1]} {self.sparsity:.0%}" if UNSTRUCTURED in calls else f"{self.sparsity:.0%}"
        )
        rotated = self.packed.nbytes * len(self.contestants[OURS].copies)
        level = self.packed.kernel.rpartition("/")[2]
        shape = [*self.packed.shape, name]
        return Point(shape, rows, level, "Sparse(fp32)", calls, eligible, self.work(rows), rotated, "fp32")


def points(
    shapes: Iterable[tuple[int, int]],
    rows: Iterable[int],
    sparsities: Iterable[float],
    blocks: Iterable[tuple[int, int]] = ((1, 1),),
) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table, one weight after the other."""
    counts, parts, kinds = list(rows), list(sparsities), list(blocks)
    for shape in shapes:
        for block in kinds:
            for sparsity in parts:
                for count in counts:
                    yield partial(_point, shape, sparsity, block, count)


def _point(shape: tuple[int, int], sparsity: float, block: tuple[int, int], rows: int) -> Point:
    return problem(shape, sparsity, block).point(rows)


def pruned(shape: tuple[int, int], sparsity: float, block: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """Return a weight in which this fraction of the blocks is zero, and a bias."""
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    bias = torch.randn(shape[0], generator=generator)
    if block == (1, 1):
        weight[weight.abs() <= kernels.kth_magnitude([weight], round(sparsity * weight.numel()))] = 0
    else:
        kept = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=generator) >= sparsity
        weight *= torch.kron(kept.float(), torch.ones(block))[: shape[0], : shape[1]]
    return weight, bias


@lru_cache(maxsize=1)
def problem(shape: tuple[int, int], sparsity: float, block: tuple[int, int] = (1, 1)) -> Problem:
    """Make a pruned weight and its contestants."""
    weight, bias = pruned(shape, sparsity, block)
    packed = kernels.pack(weight, Sparse(block), bias)
    contestants = {
        "torch fp32": torch_linear(weight, bias, torch.float32, EXACT),
        OURS: _ours(weight, bias, packed.format, packed.nbytes, EXACT),
    }
    if block == (1, 1):
        contestants |= {
            "torch bf16": torch_linear(weight, bias, torch.bfloat16, HALF),
            "pycompress int8": _ours(weight, bias, Int8(), weight.numel(), EIGHT_BITS),
        }
        contestants |= _csr_peers(weight, bias)
        return Problem(sparsity, block, weight, bias, packed, contestants)
    nbytes = 5 * int(torch.count_nonzero(weight))
    contestants[SINGLE] = _ours(weight, bias, Sparse(), nbytes, EXACT)
    other = pruned(shape, sparsity)[0]
    unstructured = other, _ours(other, bias, Sparse(), nbytes, EXACT)
    return Problem(sparsity, block, weight, bias, packed, contestants, unstructured)


def _ours(weight: Tensor, bias: Tensor, format: Format, nbytes: int, tolerance: float) -> Contestant:
    def make() -> Callable[[Tensor], Tensor]:
        packed = kernels.pack(weight, format, bias)
        return lambda x: kernels.linear(x, packed)

    return Contestant(many(nbytes, make), tolerance)


def _csr_peers(weight: Tensor, bias: Tensor) -> dict[str, Contestant]:
    nonzeros = int(torch.count_nonzero(weight))
    column = bias[:, None]

    def torch_csr() -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR layout a beta
            w = weight.to_sparse_csr()
        return lambda x: torch.addmm(column, w, x)

    def transposed(x: Tensor) -> Tensor:
        return x.T.contiguous()

    def upright(y: Any) -> Any:
        return y.T

    def scipy_csr() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        w, b = csr_matrix(weight.numpy()), column.numpy()
        return lambda x: w @ x + b

    scipy_copies = many(nonzeros * 8, scipy_csr)
    return {
        "torch csr": Contestant(many(nonzeros * 12, torch_csr), EXACT, transposed, upright),
        "scipy csr, 1 thread": Contestant(scipy_copies, EXACT, lambda x: transposed(x).numpy(), upright),
    }
