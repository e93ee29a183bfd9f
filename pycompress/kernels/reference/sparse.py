"""Products with sparse matrices in compressed rows (CSR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CsrState:
    """A matrix [rows, inner]: row r has the entries starts[r] to starts[r + 1]."""

    starts: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[Any]
    inner: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.starts.nbytes + self.indices.nbytes + self.values.nbytes


def pack_csr(starts: NDArray[np.int64], indices: NDArray[Any], values: NDArray[Any], inner: int) -> CsrState:
    """Keep a checked matrix as it is."""
    return CsrState(starts, indices, values, inner)


def unpack_csr(state: CsrState) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Return starts, indices and values."""
    return state.starts, state.indices, state.values


def spmm(state: CsrState, dense: NDArray[Any], threads: int) -> NDArray[Any]:
    """``matrix @ dense [inner, columns]``, summed in float64 and rounded to the dtype of dense at the end."""
    y = np.zeros((state.starts.size - 1, dense.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are infinities, as in the kernels
        for r in range(y.shape[0]):
            entries = slice(state.starts[r], state.starts[r + 1])
            products = state.values[entries, None].astype(np.float64) * dense[state.indices[entries]]
            y[r] = products.sum(axis=0)
        return y.astype(dense.dtype)
