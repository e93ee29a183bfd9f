"""Compare this package with its peers on the machine at hand: python bench/peers.py --op int8_linear --quick

Every row of the table is one problem: what we take, what each peer takes (medians in microseconds), and the paired
ratio to beat with its 95 % interval: baseline / ours. The baseline is the fastest eligible peer of that very row, the
one with the lowest median. Eligible are the int8 peers for int8_linear and ffn, the int4 ones for int4_linear, torch
fp32 and our own Int8 and Int4 for small_linear, torch's dynamic int8 for rnn, torch fp32 for int8_conv, sparse_linear
and sparse_conv (there for int8 values our own dense int8), an unstructured weight of ours that is as sparse for
sparse_blocks (batches of 128 on; the goal is 1.3), torch and SciPy CSR for spmm (rows are columns of the dense matrix
there), for scoring one read of the data, torch or torch.kthvalue, each with a goal of its own (1/1.5, 1/1.3, 1/2.5,
40); the others stand in the table. limit_share is what the limits measured in the same run would allow
(multiplications, or bytes read from where the weights lie), over what we take. Exit code 1: some ratio is below its
goal. Exit code 2: wrong arguments, or a contestant failed.

Each number of threads is measured in a process of its own. Peers that are not installed are left out. With --level the
peers are limited too, in that process, as far as their libraries can be: ONNX Runtime and OpenVINO cannot, so that
their times are shown and the ratio is over the others where the CPU has more than the level. A peer that fails or gives
a wrong answer is named on stderr and left out of that row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import chains
import convolutions
import int4
import limits
import linears
import measure
import pruned
import recurrent
import scoring
import small
import sparse
import sparse_convs
import sparse_int8
import torch
from contestants import Point
from measure import OURS
from rich.console import Console
from rich.table import Table

from pycompress import kernels
from pycompress.progress import track

INTEGER = ("int8_linear", "int4_linear", "small_linear", "int8_conv", "rnn", "ffn")
GOAL = dict.fromkeys(INTEGER, 1.0) | {"sparse_linear": 1.0, "sparse_int8": 1.0, "sparse_blocks": 1.3}
GOAL |= {"sparse_conv": 1.0, "spmm": 1.0, "scoring": 1.0}
# The others have one copy of their weights.
LINEAR = ("int8_linear", "int4_linear", "small_linear", "sparse_linear", "sparse_int8", "sparse_blocks")
ALIASES = {"kth_magnitude": "scoring"}

# level: oneDNN, FBGEMM, MKL, ATen. Each library reads its own variable, and the first alone limits neither of the next.
LIMITS = {
    "scalar": ("SSE41", "AVX2", "SSE4_2", "default"),
    "avx2": ("AVX2", "AVX2", "AVX2", "avx2"),
    "avxvnni": ("AVX2_VNNI", "AVX2", "AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "AVX512", "AVX512", "avx512"),
    "avx512vnni": ("AVX512_CORE_VNNI", "AVX512_VNNI", "AVX512_E1", "avx512"),
    "avx512icl": ("AVX512_CORE_VNNI", "AVX512_VNNI", "AVX512_E1", "avx512"),
    "amx": ("AVX512_CORE_AMX", "AVX512_VNNI", "AVX512_E4", "avx512"),
}
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
UNLIMITED = ("onnxruntime", "openvino")  # OpenVINO obeys in part: static layers do, dynamic ones do not, or fail

Shape = tuple[int, int]
Row = dict[str, Any]


def _points(op: str, arguments: argparse.Namespace, threads: int) -> list[Callable[[], Point]]:
    """Return functions that make the lines of an operation's table: its corners, all of it, or what was asked for."""
    quick = arguments.quick
    if op == "scoring":
        return list(scoring.points(quick))
    if op == "ffn":
        return list(chains.points(arguments.rows or chains.ROWS, threads))
    if op == "rnn":
        return list(recurrent.points(arguments.rows or recurrent.BATCHES, threads))
    if op == "spmm":
        shapes, columns = sparse.CORNERS if quick else (sparse.SHAPES, sparse.COLUMNS)
        return list(sparse.points(arguments.shapes or shapes, arguments.rows or columns))
    if op == "sparse_int8":
        shapes, rows = sparse_int8.CORNERS if quick else (sparse_int8.SHAPES, sparse_int8.ROWS)
        return list(sparse_int8.points(arguments.shapes or shapes, arguments.rows or rows, threads, quick))
    if op == "sparse_conv":
        return list(sparse_convs.points(arguments.rows or sparse_convs.BATCHES, quick))
    if op == "int8_conv":
        return list(convolutions.points(arguments.rows or convolutions.BATCHES, threads, quick))
    if op.startswith("sparse"):
        shapes, rows, sparsities = pruned.CORNERS if quick else (pruned.SHAPES, pruned.ROWS, pruned.SPARSITIES)
        shapes = arguments.shapes or shapes
        if op == "sparse_linear":
            return list(pruned.points(shapes, arguments.rows or rows, sparsities))
        blocks = pruned.BLOCKS[:1] if quick else pruned.BLOCKS
        return list(pruned.points(shapes, arguments.rows or pruned.BLOCK_ROWS, pruned.BLOCK_SPARSITIES, blocks))
    smallest = measure.rotated_bytes() / measure.MAX_COPIES
    shapes = arguments.shapes or (linears.CORNERS[0] if quick else linears.SHAPES)
    fitting = [shape for shape in shapes if shape[0] * shape[1] >= smallest or arguments.tier != "DRAM"]
    for out, inputs in sorted(set(shapes) - set(fitting)):
        print(f"peers.py: {out}x{inputs} is too small for the DRAM tier and left out", file=sys.stderr)
    rows = arguments.rows or (linears.CORNERS[1] if quick else linears.ROWS)
    if op == "int4_linear":
        few = [count for count in rows if count < 512 or arguments.rows]
        return list(int4.points(fitting, few, threads, int4.GROUPS[:1] if quick else int4.GROUPS))
    if op == "small_linear":
        return list(small.points(fitting, [count for count in rows if count < 512 or arguments.rows], threads))
    return list(
        linears.points(f"{op} static" if arguments.static and op == "int8_linear" else op, fitting, rows, threads)
    )


def _row(op: str, point: Point, threads: int, effort: measure.Effort, limited: bool) -> Row:
    eligible = [name for name in point.eligible if not (limited and name.startswith(UNLIMITED))]
    likely = min(eligible, key=lambda name: measure.rough_seconds(point.calls[name]))
    times = measure.interleaved({name: point.calls[name] for name in (OURS, likely)} | dict(point.calls), effort)
    baseline = times.best_peer(eligible)
    ratio, low, high = times.ratio(baseline, OURS)
    allowed = limits.seconds(point.work, point.kind, point.level, point.nbytes, threads)
    return {
        "op": op,
        "threads": threads,
        "shape": point.shape,
        "rows": point.rows,
        "tier": measure.tier_of(point.nbytes),
        "level": point.level,
        "format": point.format,
        "ours_us": times.median(OURS) * 1e6,
        "peers_us": {name: times.median(name) * 1e6 for name in point.calls if name != OURS},
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "goal": GOAL[op] if point.goal is None else point.goal,
        "limit_share": None if allowed is None else allowed / times.median(OURS),
        "baseline": baseline,
        "disturbed": times.disturbed(baseline, OURS),
    }


def measured(op: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    """Measure one operation with one number of threads in this process.

    Parameters
    ----------
    op : one of GOAL
    threads : int
    arguments : Namespace
        Those of the command line.

    Returns
    -------
    list of dict
    """
    keys = ("op", "shape", "rows", "threads", "tier", "level", "format", "ours_us", "peers_us", "ratio", "ratio_low")
    effort = measure.QUICK if arguments.quick else measure.FULL
    limited = arguments.level in LIMITS and _binds(arguments.level)
    found = []
    with measure.threads(threads), measure.memory(arguments.tier):
        points = _points(op, arguments, threads)
        for make in track(points, f"{op}, {threads} thread{'s' * (threads > 1)}"):
            row = _row(op, make(), threads, effort, limited)
            found.append(row | ({"tier": arguments.tier} if op in LINEAR else {}))
    disturbed = sum(row["disturbed"] for row in found)
    if disturbed:
        print(
            f"peers.py: the machine was busy: {disturbed} of {len(found)} ratios of {op}, threads {threads}, "
            "include waiting for other processes",
            file=sys.stderr,
        )
    return [{key: row[key] for key in (*keys, "ratio_high", "goal", "limit_share", "baseline")} for row in found]


def _binds(level: str) -> bool:
    """Whether a level takes something from a peer on this CPU."""
    return level != "amx" and (not level.startswith(("avx512vnni", "avx512icl")) or torch.cpu._is_amx_tile_supported())


def _in_a_process(op: str, threads: int, arguments: argparse.Namespace) -> list[Row]:
    command = [sys.executable, __file__, "--here", "--json", "--op", op, "--threads", str(threads)]
    command += ["--tier", arguments.tier]
    command += ["--shapes", *(f"{out}x{inputs}" for out, inputs in arguments.shapes)] if arguments.shapes else []
    command += ["--rows", *map(str, arguments.rows)] if arguments.rows else []
    command += ["--level", arguments.level] if arguments.level else []
    command += [f"--{name}" for name in ("quick", "static") if getattr(arguments, name)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | level_environment(arguments))
    if result.returncode != 0:
        print(f"peers.py: measuring {op} with {threads} threads failed, see above", file=sys.stderr)
        sys.exit(2)
    rows: list[Row] = json.loads(result.stdout)
    return rows


def level_environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the variables that hold ours and the peers at a level."""
    if arguments.level is None:
        return {}
    return dict(zip(VARIABLES, LIMITS[arguments.level], strict=True)) | {"PYCOMPRESS_ISA": arguments.level}


def _verdict(row: Row) -> str:
    goal = row["goal"]
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
    first = rows[0]
    peers = list(dict.fromkeys(name for row in rows for name in row["peers_us"]))
    formats = {row["format"] for row in rows}
    described = first["format"] if len(formats) == 1 else f"{len(formats)} formats"
    title = f"{first['op']}, {described}, level {first['level']}, tier {first['tier']}, medians in us"
    result = Table(title=title, title_justify="left")
    if len(formats) > 1:
        result.add_column("format")
    for heading in ("shape", "rows", "threads", OURS, *peers, "ratio", "over", "of the limit", "verdict"):
        result.add_column(heading, justify="right")
    for row in rows:
        times = [f"{row['peers_us'][name]:.0f}" if name in row["peers_us"] else "" for name in peers]
        result.add_row(
            *([row["format"]] if len(formats) > 1 else []),
            "x".join(map(str, row["shape"])),
            "" if row["rows"] is None else str(row["rows"]),
            str(row["threads"]),
            f"{row['ours_us']:.0f}",
            *times,
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            row["baseline"],
            "" if row["limit_share"] is None else f"{row['limit_share']:.0%}",
            _verdict(row),
        )
    return result


def _shape(text: str) -> Shape:
    out_features, _, in_features = text.partition("x")
    return int(out_features), int(in_features)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/peers.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--op", default="all", choices=[*GOAL, *ALIASES, "all"])
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="by default 1 and 2, for ffn 1")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N")
    parser.add_argument("--tier", choices=measure.TIERS, default="L3", help="where layers find their weights")
    parser.add_argument(
        "--level", choices=sorted(set(LIMITS) & set(kernels.isa_levels())), help="of ours and the peers"
    )
    parser.add_argument("--static", action="store_true", help="int8_linear with fixed scales of the activations")
    parser.add_argument("--quick", action="store_true", help="corners, few samples: at most 3 minutes an operation")
    parser.add_argument("--json", action="store_true", help="a list of rows on stdout, times in microseconds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one number of threads, in this process
    arguments = parser.parse_args()
    sizes = [size for shape in arguments.shapes or [] for size in shape]
    if min([*(arguments.threads or []), *(arguments.rows or []), *sizes], default=1) < 1:
        parser.error("--threads, --rows and --shapes must be positive")
    return arguments


def _threads(op: str) -> list[int]:
    return [1] if op == "ffn" else [1, 2]


def main() -> int:
    """Measure, print, and return the exit code."""
    arguments = _arguments()
    op = ALIASES.get(arguments.op, arguments.op)
    run = measured if arguments.here else _in_a_process
    names = GOAL if op == "all" else [op]
    rows = [
        row
        for name in names
        for threads in arguments.threads or _threads(name)
        for row in run(name, threads, arguments)
    ]
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
    below = [row for row in rows if row["ratio"] < row["goal"]]
    if not arguments.json:
        print(f"{len(rows) - len(below)} of {len(rows)} ratios reach their goal")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
