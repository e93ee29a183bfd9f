"""Sparse weights in bfloat16: the kernels of sparse fp32, on rounded rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import reference
from ..reference import Bf16State, Float, SparseState
from .matmul import pack_sparse, sparse_linear


@dataclass(frozen=True)
class _State(Bf16State):
    kept: SparseState

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + self.kept.nbytes


def pack_bf16(weight: Float, bias: Float | None) -> Bf16State:
    """Compress the rows of weight [out, in], whose numbers are bfloat16."""
    return _State(weight.copy(), None if bias is None else bias.copy(), pack_sparse(weight, bias, 1))


unpack_bf16 = reference.unpack_bf16


def bf16_linear(x: Float, state: _State, activation: int, threads: int) -> Float:
    """``y = bfloat16(x) @ w.T + bias`` in fp32; in rows with NaN or infinity zeros are multiplied too."""
    rows = reference.to_bfloat16(x)
    y = sparse_linear(rows, state.kept, activation, threads)
    wrong = ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        y[wrong] = reference.bf16_linear(rows[wrong], state, activation, threads)
    return y
