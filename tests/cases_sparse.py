"""Problems of sparse matrices, in compressed rows and in blocks; a part of cases.py, which imports it."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np

from pycompress import kernels
from pycompress.formats import BLOCKS, BFloat16, Float32, Sparse


def make(rng: np.random.Generator, rows: int, inner: int, columns: int) -> dict[str, Any]:
    """A CSR matrix [rows, inner], often with columns out of order or repeated, and a dense one [inner, columns]."""
    dtype = np.float64 if rng.random() < 0.4 else np.float32
    density = float(rng.choice([0, 0.02, 0.1, 0.3, 0.6, 1]))
    counts = rng.binomial(inner, density, rows)
    if rows and inner and rng.random() < 0.3:
        counts[rng.integers(rows)] = 2 * inner  # columns repeat
    if rng.random() < 0.5:
        parts = [np.sort(rng.permutation(inner)[:count]) for count in np.minimum(counts, inner)]
        counts = np.minimum(counts, inner)
    else:
        parts = [rng.integers(0, inner, count) for count in counts]
    integer = np.int64 if rng.random() < 0.5 else np.int32
    return {
        "data": cases.floats(rng, int(counts.sum())).astype(dtype),
        "indices": np.concatenate([np.zeros(0, int), *parts]).astype(integer),
        "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(integer),
        "shape": (rows, inner),
        "dense": (cases.floats(rng, inner) if rng.random() < 0.1 else cases.floats(rng, inner, columns)).astype(dtype),
    }


def pack(problem: dict[str, Any]) -> kernels.PackedCSR:
    """Pack the matrix of a problem."""
    return kernels.pack_csr((problem["data"], problem["indices"], problem["indptr"]), problem["shape"])


def run(problem: dict[str, Any]) -> Any:
    """Multiply."""
    return kernels.spmm(pack(problem), problem["dense"])


def _dense(problem: dict[str, Any], absolute: bool = False) -> np.ndarray:
    matrix = np.zeros(problem["shape"], np.longdouble)
    rows = np.repeat(np.arange(problem["shape"][0]), np.diff(np.asarray(problem["indptr"])))
    data = np.asarray(problem["data"]).astype(np.longdouble)
    np.add.at(matrix, (rows, np.asarray(problem["indices"])), np.abs(data) if absolute else data)
    return matrix


def truth(problem: dict[str, Any]) -> np.ndarray:
    """The product of dense matrices in long doubles."""
    return _dense(problem) @ problem["dense"].astype(np.longdouble)


def tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    """2 * K * ulp * sum |a * b|, K the most entries of a row."""
    total = _dense(problem, absolute=True) @ np.abs(problem["dense"]).astype(np.longdouble)
    info = np.finfo(problem["data"].dtype)
    most = int(np.diff(problem["indptr"]).max(initial=0)) + 1
    return (2 * most * (info.eps / 2 * total + info.smallest_subnormal)).astype(np.float64)


def make_blocks(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A linear layer packed in blocks; mostly its zeros come in blocks, which the edges cut, with zeros inside too."""
    blocks = BLOCKS[Float32][1:]
    block = blocks[rng.integers(len(blocks))]
    weight = cases.floats(rng, outputs, inputs, density=float(rng.choice([0.5, 1])))
    kept = rng.random((-(-outputs // block[0]), -(-inputs // block[1]))) < rng.choice([0.1, 0.3, 0.7])
    if rng.random() < 0.8:
        weight = weight * np.kron(kept, np.ones(block, np.float32))[:outputs, :inputs].astype(np.float32)
    return {
        "x": cases.floats(rng, rows, inputs),
        "weight": weight,
        "bias": cases.floats(rng, outputs) if rng.random() < 0.5 else None,
        "activation": cases.activation(rng),
        "format": Sparse(block),
    }


def make_bfloat16(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A linear layer packed in bfloat16, with any share of zeros."""
    return {
        "x": cases.floats(rng, rows, inputs),
        "weight": cases.floats(rng, outputs, inputs, density=float(rng.choice([0, 0.02, 0.1, 0.3, 0.6, 1]))),
        "bias": cases.floats(rng, outputs) if rng.random() < 0.5 else None,
        "activation": cases.activation(rng),
        "format": Sparse(values=BFloat16()),
    }


def _rounded(problem: dict[str, Any]) -> dict[str, Any]:
    """The problem with numbers of 8 significant bits; what is below the normal range of float32 is 0."""

    def rounded(x: np.ndarray) -> np.ndarray:
        fraction, exponent = np.frexp(x.astype(np.float64))
        return np.where(np.abs(x) < 2.0**-126, 0, np.ldexp(np.rint(fraction * 256), exponent - 8))

    return {**problem, "x": rounded(problem["x"]), "weight": rounded(problem["weight"])}


def bfloat16_truth(problem: dict[str, Any]) -> np.ndarray:
    """The product of the rounded numbers."""
    return cases.float_truth(_rounded(problem))


def bfloat16_tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    """That of fp32; tiles of AMX take what is below the normal range as 0."""
    tiny = 2.3 * problem["x"].shape[1] * 2.0**-126
    return cases.float_tolerance(_rounded(problem), truth) + tiny
