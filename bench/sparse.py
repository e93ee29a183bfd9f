"""Sparse matrices in compressed rows times dense ones: ours, torch's CSR, SciPy's, and the dense product.

The input is a torch tensor for us and for torch, the same memory as a NumPy array for SciPy. The ratio is over the
faster of torch CSR and SciPy, which uses one thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from contestants import EXACT, Contestant, Point, checked_calls, many
from measure import OURS
from scipy.sparse import csr_array
from torch import Tensor

from pycompress import kernels

SHAPES = [(3072, 768), (4096, 4096)]
COLUMNS = [1, 8, 32, 128, 512]
SPARSITIES = (0.7, 0.9, 0.98)
CORNERS = SHAPES, [1, 8, 128]
"""Shapes and columns of --quick."""

PEERS = ("torch CSR", "scipy CSR")


def points(shapes: Iterable[tuple[int, int]], columns: Iterable[int]) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table, one matrix after the other."""
    for shape in shapes:
        for sparsity in SPARSITIES:
            for count in columns:
                yield partial(_point, shape, sparsity, count)


@lru_cache(maxsize=1)
def _contestants(shape: tuple[int, int], sparsity: float) -> tuple[Tensor, str, int, dict[str, Contestant]]:
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    dense = torch.randn(shape, generator=generator)
    dense[torch.rand(shape, generator=generator) < sparsity] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: its CSR support is in beta state
        tensor = dense.to_sparse_csr()
    packed = kernels.pack_csr(tensor)

    def ours() -> Callable[[Any], Any]:
        return partial(kernels.spmm, kernels.pack_csr(tensor))

    def torch_csr() -> Callable[[Any], Any]:
        return tensor.clone().matmul

    def scipy_csr() -> Callable[[Any], Any]:
        parts = tensor.values().numpy(), tensor.col_indices().int().numpy(), tensor.crow_indices().int().numpy()
        matrix = csr_array(parts, shape, copy=True)
        return lambda b: matrix @ b

    made = {
        OURS: Contestant(many(packed.nbytes, ours), EXACT),
        "torch CSR": Contestant(many(packed.nbytes, torch_csr), EXACT),
        "scipy CSR": Contestant(many(packed.nbytes, scipy_csr), EXACT, prepare=Tensor.numpy),
        "torch dense": Contestant(many(4 * dense.numel(), lambda: dense.clone().matmul), EXACT),
    }
    return dense, packed.kernel.rpartition("/")[2], packed.nbytes, made


def _point(shape: tuple[int, int], sparsity: float, columns: int) -> Point:
    dense, level, nbytes, contestants = _contestants(shape, sparsity)
    b = torch.randn(shape[1], columns, generator=torch.Generator().manual_seed(columns))
    b = b[:, 0].contiguous() if columns == 1 else b
    calls = checked_calls(contestants, b, (dense.double() @ b.double()).numpy(), lenient=True)
    kept = int(torch.count_nonzero(dense))
    work = 2.0 * kept * columns, nbytes + 4.0 * columns * sum(shape)
    eligible = tuple(name for name in PEERS if name in calls)
    name = f"CSR {sparsity:.0%}"
    copies = len(contestants[OURS].copies)
    return Point([*shape, name], columns, level, "fp32", calls, eligible, work, nbytes * copies, "fp32")
