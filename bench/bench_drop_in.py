"""Models by quantize_dynamic, ours and torch's: `pytest bench/bench_drop_in.py --benchmark-group-by=group`.

Before the first of a model's versions is timed, the error of ours is checked against torch's. drop_in.py prints a table
of the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import drop_in
import measure
import pytest
from measure import OURS

pytestmark = [pytest.mark.benchmark(max_time=0.1, min_rounds=5), pytest.mark.filterwarnings("ignore")]


@lru_cache(maxsize=1)
def _calls(model: str, batch: int) -> dict[str, Callable[[], object]]:
    return drop_in.check_calls(model, batch)


@pytest.mark.parametrize("name", [OURS, drop_in.FLOAT, *(f"torch int8 {engine}" for engine in drop_in.ENGINES)])
@pytest.mark.parametrize("model", drop_in.MODELS)
def test_model(model: str, sequences: int, name: str, threads: int, compared: Any) -> None:
    with measure.threads(threads):
        calls = _calls(model, sequences)
    if name not in calls:
        pytest.skip("torch's quantize_dynamic makes no model of it that runs")
    compared(f"{model}, batch={sequences} threads={threads}", calls, name, threads, drop_in.FLOAT)


def test_sizes(checking: bool) -> None:
    if not checking:
        pytest.skip("shown by drop_in.py --sizes")
    with measure.threads(1):
        rows = list(drop_in._sizes("linear", drop_in.nn.Linear(8, 8), [drop_in.torch.zeros(1, 8)], 1))
    assert rows[0]["left_dense"] and drop_in.size_table(rows).row_count == 1
