"""Compare two runs of the benchmarks: python bench/report.py compare OLD.json NEW.json

The files are those of `pytest bench --benchmark-json FILE`. The table lists the paired speedup over the best peer of
each benchmark in both. Exit code 1: a speedup fell by more than 15 %. Exit code 2: wrong arguments or files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

LARGEST_FALL = 0.15


def speedups(path: Path) -> dict[str, float]:
    """Read the speedups of a pytest-benchmark file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of group name to speedup
        Of the benchmarks that have one.

    Raises
    ------
    ValueError
        When the file cannot be read, is not of pytest-benchmark or holds no speedup.
    """
    try:
        benchmarks = json.loads(path.read_text())["benchmarks"]
        found = {b["group"]: float(b["extra_info"]["speedup"]) for b in benchmarks if "speedup" in b["extra_info"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} must be a file of pytest --benchmark-json, got {error!r}") from error
    if not found:
        raise ValueError(f"{path} must hold benchmarks with a speedup, got none")
    return found


def compared(old: dict[str, float], new: dict[str, float]) -> tuple[Table, list[str]]:
    """Make the table of two runs.

    Parameters
    ----------
    old, new : dict of group name to speedup

    Returns
    -------
    (rich.table.Table, list of str)
        The table, and the groups whose speedup fell by more than 15 %.
    """
    table = Table("benchmark", title="speedup over the best peer", title_justify="left")
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
    """Print the comparison and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench/report.py", description="Compare two runs of the benchmarks.")
    compare = parser.add_subparsers(dest="command", required=True).add_parser("compare", help="speedups, old and new")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    given = parser.parse_args(arguments)
    try:
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
