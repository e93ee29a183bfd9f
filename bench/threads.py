"""How long calls take beside busy processes: python bench/threads.py

For each number of busy neighbours: the median, the 99th percentile and the longest of single calls of one int8 layer of
768 x 3072 with 32 rows, of ones with 80 % zeros (fp32, and int8 with and without blocks), and of torch's fp32, on one
and two threads. A pool whose caller waits for a worker that the system has descheduled shows in the 99th percentile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import measure
import numpy as np
import torch
from measure import OURS
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Int8, Sparse
from pycompress.progress import track

OUT_FEATURES, IN_FEATURES, ROWS = 768, 3072, 32


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Let processes run that do nothing but use a core each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.3 * bool(running))
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def durations(call: Callable[[], object], calls: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the seconds of each of many calls, 1 ms apart."""
    seconds = np.empty(calls)
    for _ in range(10):
        call()
    for i in range(calls):
        start = time.perf_counter()
        call()
        seconds[i] = time.perf_counter() - start
        time.sleep(0.001)
    return seconds


def main() -> int:
    """Measure, print, and return 0."""
    parser = argparse.ArgumentParser(prog="bench/threads.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="numbers of busy processes")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="a list of rows on stdout, times in microseconds")
    arguments = parser.parse_args()
    weight, x = torch.randn(OUT_FEATURES, IN_FEATURES), torch.randn(ROWS, IN_FEATURES)
    kept = torch.rand(OUT_FEATURES // 16, IN_FEATURES // 4) >= 0.8
    blocks = weight * kept.repeat_interleave(16, 0).repeat_interleave(4, 1)
    single = weight * (torch.rand_like(weight) >= 0.8)
    packed = {
        "int8": kernels.pack(weight, Int8()),
        "sparse": kernels.pack(single, Sparse()),
        "sparse int8": kernels.pack(single, Sparse(values=Int8())),
        "16x4 int8": kernels.pack(blocks, Sparse((16, 4), Int8())),
    }
    contestants: dict[str, Callable[[], object]] = {
        f"{OURS} {name}": partial(kernels.linear, x, each) for name, each in packed.items()
    }
    contestants["torch fp32"] = lambda: F.linear(x, weight)
    rows = []
    for neighbours in track(arguments.busy, "measuring"):
        for threads in arguments.threads:
            for name, call in contestants.items():
                with busy(neighbours), measure.threads(threads):
                    us = durations(call, arguments.calls) * 1e6
                values = {"median_us": np.median(us), "p99_us": np.quantile(us, 0.99), "longest_us": us.max()}
                row = {"busy": neighbours, "threads": threads, "name": name}
                rows.append(row | {key: float(value) for key, value in values.items()})
    if arguments.json:
        print(json.dumps(rows))
        return 0
    table = Table(title=f"{OUT_FEATURES}x{IN_FEATURES}, {ROWS} rows: single calls in us", title_justify="left")
    for heading in ("busy processes", "threads", "", "median", "99 %", "longest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        texts = [f"{row[key]:.0f}" for key in ("median_us", "p99_us", "longest_us")]
        table.add_row(str(row["busy"]), str(row["threads"]), row["name"], *texts)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
