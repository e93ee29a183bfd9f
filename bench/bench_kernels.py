"""Every kernel against its peers: `pytest bench/bench_kernels.py --benchmark-group-by=group`.

Each group is the same work by different implementations. The result of each contestant is checked before it is timed.
The benchmark of ours holds in `extra_info` the paired speedup over the best peer and over the baseline with their 95 %
intervals, operations a second and bytes a second. `--threads 1` and `--threads 2` in runs of their own give the
cleanest figures, and ONNX Runtime takes part in both: it has one pool of threads for a process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import linears
import measure
import pruned
import pytest
import scoring
import vectors
from measure import OURS

pytestmark = pytest.mark.benchmark(max_time=0.1, min_rounds=5)

Shape = tuple[int, int]

DENSE = [
    OURS,
    "torch fp32",
    "torch bf16",
    "torch int8 x86",
    "torch int8 onednn",
    "torch qlinear_pointwise",
    "torch _int_mm",
    "onnxruntime int8",
    "openvino int8",
]
PRUNED = [OURS, "torch fp32", "torch bf16", "pycompress int8", "torch csr", "scipy csr, 1 thread"]


def _linear(op: str, name: str, shape: Shape, rows: int, threads: int, pool: int, compared: Any) -> None:
    with measure.threads(threads):
        problem = linears.problem(op, shape, threads, pool)
        if name not in problem.contestants:
            pytest.skip(f"{name} is not installed or has no pool of {threads} threads here")
        calls = problem.calls(rows, problem.contestants if name == OURS else [name])
    group = f"{op} {shape[0]}x{shape[1]} rows={rows} threads={threads}"
    compared(group, calls, name, threads, "torch fp32", *problem.work(rows))


@pytest.mark.parametrize("name", DENSE)
def test_int8_linear(name: str, rows: int, threads: int, shape: Shape, pool: int, compared: Any) -> None:
    _linear("int8_linear", name, shape, rows, threads, pool, compared)


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("sparsity", pruned.SPARSITIES, ids="{:.0%}".format)
def test_sparse_linear(name: str, sparsity: float, rows: int, threads: int, shape: Shape, compared: Any) -> None:
    with measure.threads(threads):
        problem = pruned.problem(shape, sparsity)
        calls = problem.calls(rows, problem.contestants if name == OURS else [name])
    group = f"sparse_linear {sparsity:.0%} {shape[0]}x{shape[1]} rows={rows} threads={threads}"
    compared(group, calls, name, threads, "torch fp32", *problem.work(rows))


@pytest.mark.parametrize("name", [OURS, pruned.UNSTRUCTURED, "torch fp32"])
@pytest.mark.parametrize("block", pruned.BLOCKS, ids="{0[0]}x{0[1]}".format)
def test_sparse_blocks(name: str, block: Shape, rows: int, threads: int, shape: Shape, compared: Any) -> None:
    with measure.threads(threads):
        problem = pruned.problem(shape, pruned.BLOCK_SPARSITIES[1], block)
        calls = problem.calls(rows, None if name == OURS else [name])
    group = f"sparse_blocks {block[0]}x{block[1]} {shape[0]}x{shape[1]} rows={rows} threads={threads}"
    compared(group, calls, name, threads, pruned.UNSTRUCTURED, *problem.work(rows))


@lru_cache(maxsize=1)
def _vectors(make: Callable[..., vectors.Problem], *sizes: Any) -> vectors.Problem:
    return make(*sizes)


VECTORS = {
    "scores per row, L1": partial(vectors.scores, "row", 1),
    "scores per row, L2": partial(vectors.scores, "row", 2),
    "scores per column, L1": partial(vectors.scores, "column", 1),
    "scores per column, L2": partial(vectors.scores, "column", 2),
    "norms per row": scoring.norms,
    "norms per row, bf16": scoring.bfloat16,
    "norms of blocks": scoring.blocks,
    "Taylor per row": scoring.taylor,
    "Wanda per row": scoring.wanda,
    "above, mask": scoring.mask,
    "nm_mask 2:4": scoring.two_of_four,
    "apply_threshold": vectors.threshold,
    "quantize per row": vectors.quantize,
    "dequantize per row": vectors.dequantize,
}
TURNS = [OURS, "torch", "numpy"]


def _vector(group: str, problem: vectors.Problem, turn: int, threads: int, compared: Any) -> None:
    names = list(problem.calls)
    if turn >= len(names):
        pytest.skip("no such peer")
    name = names[turn]
    operations = None if len(problem.shape) != 3 else 2.0 * problem.shape[0] * problem.shape[1] * problem.shape[2]
    calls = problem.calls if name == OURS else {name: problem.calls[name]}
    compared(f"{group} threads={threads}", calls, name, threads, names[1], operations, problem.nbytes)


@pytest.mark.parametrize("turn", range(3), ids=TURNS)
@pytest.mark.parametrize("group", VECTORS)
def test_vector(group: str, turn: int, threads: int, compared: Any) -> None:
    with measure.threads(threads):
        problem = _vectors(VECTORS[group])
    _vector(group, problem, turn, threads, compared)


@pytest.mark.parametrize("turn", range(3), ids=TURNS)
def test_kth_magnitude(turn: int, threads: int, checking: bool, compared: Any) -> None:
    with measure.threads(threads):
        problem = _vectors(vectors.kth_magnitude, 1_000_000 if checking else vectors.WEIGHTS)
    _vector(f"kth_magnitude {problem.shape[0]}", problem, turn, threads, compared)


@pytest.mark.parametrize("turn", range(3), ids=TURNS)
@pytest.mark.parametrize("sizes", [(512, 768, 3072), (32, 3072, 768)], ids="{0[0]}x{0[1]}x{0[2]}".format)
def test_int8_matmul(sizes: tuple[int, int, int], turn: int, threads: int, compared: Any) -> None:
    with measure.threads(threads):
        problem = _vectors(vectors.int8_matmul, sizes)
    _vector(f"int8_matmul {sizes}", problem, turn, threads, compared)
