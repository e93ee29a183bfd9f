"""Compare this package with its peers on the machine at hand: python bench/peers.py --quick

Every row of the table is one problem: what we take, what each peer takes (medians in microseconds), and the paired
ratio to beat with its 95 % interval: torch fp32 / ours for linear layers, torch.kthvalue / ours for scoring, where the
goal is 10. Exit code 1: some ratio is below its goal. Exit code 2: wrong arguments, or a contestant failed.

Each number of threads is measured in a process of its own. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import linears
import measure
import vectors
from measure import OURS
from rich.console import Console
from rich.table import Table

from pycompress import kernels
from pycompress.progress import track

BASELINE = {"int8_linear": "torch fp32", "sparse_linear": "torch fp32", "scoring": "torch kthvalue"}
GOAL = {"int8_linear": 1.0, "sparse_linear": 1.0, "scoring": 10.0}
ALIASES = {"kth_magnitude": "scoring"}

Shape = tuple[int, int]
Row = dict[str, Any]


def _linear_rows(op: str, shapes: list[Shape], rows: list[int], threads: int, effort: measure.Effort) -> list[Row]:
    found = []
    for shape in track(shapes, f"{op}, {threads} thread{'s' * (threads > 1)}"):
        problem = linears.problem(op, shape, threads, threads)
        for count in rows:
            row = _row(op, problem.calls(count), effort)
            level = problem.level.rpartition("/")[2]
            found.append(row | {"shape": list(shape), "rows": count, "level": level, "format": problem.format})
    return found


def _scoring_rows(threads: int, effort: measure.Effort) -> list[Row]:
    problem = vectors.kth_magnitude()
    level = kernels.isa_name() if kernels.backend_name() == "native" else kernels.backend_name()
    with track(1, f"scoring, {threads} thread{'s' * (threads > 1)}"):
        row = _row("scoring", problem.calls, effort)
    # 100 MB, read once: more than most L3 caches hold
    about = {"shape": list(problem.shape), "rows": None, "level": level, "format": "kth_magnitude", "tier": "DRAM"}
    return [row | about]


def _row(op: str, calls: dict[str, Callable[[], object]], effort: measure.Effort) -> Row:
    times = measure.interleaved(calls, effort)
    ratio, low, high = times.ratio(BASELINE[op], OURS)
    return {
        "op": op,
        "disturbed": times.disturbed(BASELINE[op], OURS),
        "tier": "L3",
        "ours_us": times.median(OURS) * 1e6,
        "peers_us": {name: times.median(name) * 1e6 for name in calls if name != OURS},
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "limit_share": None,
    }


def measured(
    op: str, shapes: list[tuple[int, int]], rows: list[int], threads: int, effort: measure.Effort
) -> list[Row]:
    """Measure one operation with one number of threads in this process.

    Parameters
    ----------
    op : "int8_linear", "sparse_linear" or "scoring"
    shapes, rows : lists
        Of the linear layers.
    threads : int
    effort : Effort

    Returns
    -------
    list of dict
    """
    keys = ("op", "shape", "rows", "threads", "tier", "level", "format", "ours_us", "peers_us")
    with measure.threads(threads):
        found = _scoring_rows(threads, effort) if op == "scoring" else _linear_rows(op, shapes, rows, threads, effort)
    complete = [row | {"threads": threads} for row in found]
    disturbed = sum(row["disturbed"] for row in complete)
    if disturbed:
        print(
            f"peers.py: the machine was busy: {disturbed} of {len(complete)} ratios of {op}, threads {threads}, "
            "include waiting for other processes",
            file=sys.stderr,
        )
    return [{key: row[key] for key in (*keys, "ratio", "ratio_low", "ratio_high", "limit_share")} for row in complete]


def _in_a_process(op: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    command = [sys.executable, __file__, "--here", "--json", "--op", op, "--threads", str(threads)]
    command += ["--shapes", *(f"{out}x{inputs}" for out, inputs in arguments.shapes)]
    command += ["--rows", *map(str, arguments.rows), *(["--quick"] if arguments.quick else [])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        print(f"peers.py: measuring {op} with {threads} threads failed, see above", file=sys.stderr)
        sys.exit(2)
    rows: list[Row] = json.loads(result.stdout)
    return rows


def _verdict(row: Row) -> str:
    goal = GOAL[row["op"]]
    if row["ratio_low"] <= goal <= row["ratio_high"]:
        return "[yellow]" + ("faster?" if row["ratio"] >= goal else "slower?")
    return "[green]faster" if row["ratio"] >= goal else "[red]slower"


def table(rows: list[Row]) -> Table:
    """Make the table of one operation's rows.

    Parameters
    ----------
    rows : list of dict

    Returns
    -------
    rich.table.Table
    """
    op = rows[0]["op"]
    peers = list(dict.fromkeys(name for row in rows for name in row["peers_us"]))
    title = f"{op}, {rows[0]['format']}, level {rows[0]['level']}, tier {rows[0]['tier']}, medians in us"
    result = Table(title=title, title_justify="left")
    for heading in ("shape", "rows", "threads", OURS, *peers, f"{BASELINE[op]} / ours", "verdict"):
        result.add_column(heading, justify="right")
    for row in rows:
        times = [f"{row['peers_us'][name]:.0f}" if name in row["peers_us"] else "" for name in peers]
        result.add_row(
            "x".join(map(str, row["shape"])),
            "" if row["rows"] is None else str(row["rows"]),
            str(row["threads"]),
            f"{row['ours_us']:.0f}",
            *times,
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            _verdict(row),
        )
    return result


def _shape(text: str) -> Shape:
    out_features, _, in_features = text.partition("x")
    return int(out_features), int(in_features)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/peers.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--op", default="all", choices=[*GOAL, *ALIASES, "all"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=linears.SHAPES, metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, default=linears.ROWS, metavar="N")
    parser.add_argument("--quick", action="store_true", help="fewer samples: minutes instead of a quarter of an hour")
    parser.add_argument("--json", action="store_true", help="a list of rows on stdout, times in microseconds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one number of threads, in this process
    arguments = parser.parse_args()
    if min(*arguments.threads, *arguments.rows, *(size for shape in arguments.shapes for size in shape), 1) < 1:
        parser.error("--threads, --rows and --shapes must be positive")
    return arguments


def main() -> int:
    """Measure, print, and return the exit code."""
    arguments = _arguments()
    op = ALIASES.get(arguments.op, arguments.op)
    rows: list[Row] = []
    for name in GOAL if op == "all" else [op]:
        for threads in arguments.threads:
            if arguments.here:
                effort = measure.QUICK if arguments.quick else measure.FULL
                rows += measured(name, arguments.shapes, arguments.rows, threads, effort)
            else:
                rows += _in_a_process(name, threads, arguments)
    if arguments.json:
        print(json.dumps(rows))
    if arguments.here:
        return 0
    if not arguments.json:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
        for name in dict.fromkeys(row["op"] for row in rows):
            console.print(table([row for row in rows if row["op"] == name]))
    below = [row for row in rows if row["ratio"] < GOAL[row["op"]]]
    if not arguments.json:
        print(f"{len(rows) - len(below)} of {len(rows)} ratios reach their goal")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
