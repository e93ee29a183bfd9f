"""Products with sparse matrices in compressed rows (CSR)."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..reference import CsrState
from ..threads import run
from .compiling import as_input, kernel

unpack_csr = reference.unpack_csr


def pack_csr(starts: NDArray[np.int64], indices: NDArray[Any], values: NDArray[Any], inner: int) -> CsrState:
    """Keep a checked matrix, its columns as uint32."""
    return reference.pack_csr(as_input(starts), as_input(indices.astype(np.uint32)), as_input(values), inner)


@kernel
def _rows(starts, indices, values, dense, y, first, last):
    for r in range(first, last):
        sums = y[r]
        sums[:] = 0
        for j in range(starts[r], starts[r + 1]):
            value, line = values[j], dense[indices[j]]
            for i in range(sums.size):
                sums[i] += value * line[i]


@kernel
def _one_column(starts, indices, values, dense, y, first, last):
    for r in range(first, last):
        total = y[r, 0]  # zero, of the right type
        for j in range(starts[r], starts[r + 1]):
            total += values[j] * dense[indices[j], 0]
        y[r, 0] = total


def spmm(state: CsrState, dense: NDArray[Any], threads: int) -> NDArray[Any]:
    """``matrix @ dense [inner, columns]``, each result a sum over the entries of a row in their order."""
    rows, columns = state.starts.size - 1, dense.shape[1]
    y = np.zeros((rows, columns), dense.dtype)
    row_ns = 10 + state.values.size / max(1, rows) * (2 + 0.2 * columns)
    work = _one_column if columns == 1 else _rows
    run(work, rows, row_ns, threads, state.starts, state.indices, state.values, as_input(dense), y)
    return y
