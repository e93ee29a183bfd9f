"""How `pytest bench` measures: which files, which numbers of threads, one timing for every contestant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import convolutions
import linears
import measure
import pytest
import recurrent
from measure import OURS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread benchmarks over shapes, threads and rows, in this order; a check without timing takes fewer points."""
    config = metafunc.config
    checking = config.getoption("benchmark_disable")
    threads = sorted(set(config.getoption("threads")))
    values = {
        "shape": linears.SHAPES[1:3] if checking else linears.SHAPES,
        "threads": threads[-1:] if checking else threads,
        "rows": [1, 32] if checking else linears.ROWS,
        "sequences": [1] if checking else recurrent.BATCHES,
        "images": [1] if checking else convolutions.BATCHES,
        "batch": [8] if checking else [1, 8, 64],
    }
    for name, points in values.items():
        if name in metafunc.fixturenames:
            texts = ["x".join(map(str, point)) if name == "shape" else f"{point}{name}" for point in points]
            metafunc.parametrize(name, points, ids=texts)


@pytest.fixture
def checking(pytestconfig: pytest.Config) -> bool:
    """Whether benchmarks only check their contestants and time nothing."""
    return bool(pytestconfig.getoption("benchmark_disable"))


@pytest.fixture
def pool(pytestconfig: pytest.Config) -> int:
    """Size of the one pool of threads that ONNX Runtime gets in this process."""
    return max(pytestconfig.getoption("threads"))


@pytest.fixture
def compared(benchmark: Any) -> Callable[..., None]:
    """Return a function that times one contestant for the table, and ours against the others in turns.

    Its arguments: the group, all calls by name, the name of the one that the test is for, the number of threads, the
    baseline that the speedup of ours is recorded against (besides the best peer), the operations and bytes of a call.
    """

    def run(
        group: str,
        calls: Mapping[str, Callable[[], object]],
        name: str,
        threads: int,
        baseline: str,
        operations: float | None = None,
        nbytes: float | None = None,
    ) -> None:
        benchmark.group = group
        benchmark.extra_info["threads"] = threads
        with measure.threads(threads):
            if not benchmark.disabled:
                if name == OURS:
                    times = measure.interleaved(calls, measure.QUICK)
                    benchmark.extra_info.update(_speedups(times, baseline, operations, nbytes))
                time.sleep(measure.PAUSE_SECONDS)
                calls[name]()
            benchmark(calls[name])

    return run


def _speedups(times: measure.Times, baseline: str, operations: float | None, nbytes: float | None) -> dict[str, object]:
    best = times.best_peer()
    seconds = times.median(OURS)
    info: dict[str, object] = {"best_peer": best}
    for key, name in (("speedup", best), (f"speedup over {baseline}", baseline)):
        median, low, high = times.ratio(name, OURS)
        info[key], info[f"{key}, interval"] = median, [low, high]
    if operations is not None:
        info["gop_per_s"] = operations / seconds / 1e9
    if nbytes is not None:
        info["gb_per_s"] = nbytes / seconds / 1e9
    return info
