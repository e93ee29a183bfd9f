"""Compare two runs of the benchmarks, and keep one: python bench/report.py compare OLD.json NEW.json

The files are those of `pytest bench --benchmark-json FILE`, of `python bench/peers.py --json`, or of the history. The
table lists the paired speedup of each benchmark in both: over the best peer, in rows of peers.py over the row's
baseline. Exit code 1: a speedup fell by more than 15 %. Exit code 2: wrong arguments or files, or a failed measurement.

    python bench/report.py record NAME [arguments of peers.py]

runs peers.py and writes its rows into bench/history/<cpu>/<date>-NAME.json, with the machine, the versions, the date
and the command: one file for each change worth a release.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pycompress import kernels

LARGEST_FALL = 0.15
HISTORY = Path(__file__).with_name("history")


def speedups(path: Path) -> dict[str, float]:
    """Read the speedups of a file.

    Parameters
    ----------
    path : Path
        Of pytest-benchmark, peers.py or the history.

    Returns
    -------
    dict of benchmark to speedup
        Of the benchmarks that have one.

    Raises
    ------
    ValueError
        When the file cannot be read, is none of these or holds no speedup.
    """
    try:
        found = _speedups(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        rule = "must be a file of pytest --benchmark-json, of peers.py --json or of the history"
        raise ValueError(f"{path} {rule}, got {error!r}") from error
    if not found:
        raise ValueError(f"{path} must hold benchmarks with a speedup, got none")
    return found


def _speedups(content: Any) -> dict[str, float]:
    if isinstance(content, list):
        return {_title(row): float(row["ratio"]) for row in content}
    if "rows" in content:
        return _speedups(content["rows"])
    benchmarks = content["benchmarks"]
    return {b["group"]: float(b["extra_info"]["speedup"]) for b in benchmarks if "speedup" in b["extra_info"]}


def _title(row: dict[str, Any]) -> str:
    """Name of a row of peers.py: everything but what was measured."""
    shape = "x".join(map(str, row["shape"]))
    rows = "" if row["rows"] is None else f" rows={row['rows']}"
    return f"{row['op']} {row['format']} {shape}{rows} threads={row['threads']} {row['tier']} {row['level']}"


def record(name: str, arguments: list[str], folder: Path) -> Path:
    """Run peers.py and write what it measured into the history.

    Parameters
    ----------
    name : str
        What the change is about, part of the file's name.
    arguments : list of str
        Of peers.py.
    folder : Path
        The history.

    Returns
    -------
    Path
        The new file.

    Raises
    ------
    ValueError
        When peers.py refuses its arguments or fails.
    """
    script = Path(__file__).with_name("peers.py")
    result = subprocess.run([sys.executable, script, "--json", *arguments], stdout=subprocess.PIPE, text=True)
    if result.returncode not in (0, 1):  # 1: some ratio is below its goal
        raise ValueError(f"peers.py must measure, got exit code {result.returncode}")
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python bench/peers.py --json", *arguments]),
        "machine": _machine(),
        "versions": _versions(),
        "rows": json.loads(result.stdout),
    }
    path = folder / _slug(f"{_cpu()} {kernels.isa_levels()[-1]}") / f"{now:%Y-%m-%d}-{_slug(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu() -> str:
    """Name of the CPU; virtual machines tell little, so that family and model stand there too."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    named = [fields.get("model name", platform.machine())]
    return " ".join(named + [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields])


def _machine() -> dict[str, Any]:
    caches = {f"l{level}_bytes": measure.cache_bytes(level) for level in (2, 3)}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cpus": cpus, "levels": kernels.isa_levels(), "system": platform.platform(), **caches}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pycompress-nn", "numpy", "torch", "onnxruntime", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    git = shutil.which("git")
    if git is not None:
        command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True)
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    return found


def compared(old: dict[str, float], new: dict[str, float]) -> tuple[Table, list[str]]:
    """Make the table of two runs.

    Parameters
    ----------
    old, new : dict of benchmark to speedup

    Returns
    -------
    (rich.table.Table, list of str)
        The table, and the benchmarks whose speedup fell by more than 15 %.
    """
    table = Table("benchmark", title="speedup over peers", title_justify="left")
    for heading in ("old", "new", "change"):
        table.add_column(heading, justify="right")
    fallen = []
    for group in dict.fromkeys([*old, *new]):
        before, after = old.get(group), new.get(group)
        if before is None or after is None:
            values = ["" if value is None else f"{value:.2f}" for value in (before, after)]
            table.add_row(escape(group), *values, "gone" if after is None else "new")
            continue
        change = after / before - 1
        style = "green" if change > LARGEST_FALL else "red" if change < -LARGEST_FALL else "none"
        if change < -LARGEST_FALL:
            fallen.append(group)
        table.add_row(escape(group), f"{before:.2f}", f"{after:.2f}", f"[{style}]{change:+.0%}[/]")
    return table, fallen


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison or write the record, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench/report.py", description="Compare runs of the benchmarks, keep one.")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="speedups, old and new")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    keep = commands.add_parser("record", help="run peers.py and keep its rows in the history")
    keep.add_argument("name", help="what the change is about")
    keep.add_argument("--into", type=Path, default=HISTORY, metavar="FOLDER", help="bench/history by default")
    given, rest = parser.parse_known_args(arguments)
    try:
        if given.command == "record":
            print(record(given.name, rest, given.into))
            return 0
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        old, new = speedups(given.old), speedups(given.new)
    except ValueError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    table, fallen = compared(old, new)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    print(f"{len(fallen)} of {len(set(old) & set(new))} speedups fell by more than {LARGEST_FALL:.0%}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
