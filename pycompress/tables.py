"""Tables and numbers as a person reads them, made with rich; text is taken as it is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text


def size(count: int) -> str:
    """Write a number of bytes as a person reads it.

    Examples
    --------
    >>> size(512), size(43_710), size(1_204_704)
    ('512 B', '43.7 kB', '1.20 MB')
    """
    if count < 1000:
        return f"{count} B"
    if count < 999_950:
        return f"{count / 1e3:.1f} kB"
    if count < 999_995_000:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e9:.2f} GB"


def plain(text: object) -> str:
    r"""Return text as it is to be read: names come from files, and could hold what commands a terminal.

    Examples
    --------
    >>> plain("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def cell(*lines: str) -> Text:
    r"""Lay out a value, and below it, dim, what explains it.

    Examples
    --------
    >>> cell("12 us", "median").plain
    '12 us\nmedian'
    """
    from rich.text import Text

    found = Text(plain(lines[0]))
    for line in lines[1:]:
        found.append("\n" + plain(line), style="dim")
    return found


def new_table(*columns: str, right: bool) -> Table:
    """Make an empty table; with ``right`` all columns but the first stand at the right, as numbers do.

    Examples
    --------
    >>> [column.justify for column in new_table("layer", "bytes", right=True).columns]
    ['left', 'right']
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if right and i else "left", overflow="fold")
    return made


def heading(text: str) -> Text:
    """Lay out a title.

    Examples
    --------
    >>> heading("MLP").plain
    'MLP'
    """
    from rich.text import Text

    return Text(plain(text), style="bold")


def show(parts: Sequence[RenderableType]) -> None:
    """Print to stdout, as wide as the terminal, or 140 columns where there is none. Text is taken as it is.

    Examples
    --------
    >>> show(["[red]a[/]"])
    [red]a[/]
    """
    console = _console()
    for part in parts:
        console.print(part)


def text(parts: Sequence[RenderableType]) -> str:
    r"""Return what :func:`show` prints, without colours, spaces at the ends of lines, and empty lines around.

    Examples
    --------
    >>> text([heading("MLP"), "a layer"])
    'MLP\na layer'
    """
    console = _console(color=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def width() -> int:
    """Return how many columns :func:`show` has: those of the terminal, or 140 where there is none.

    Examples
    --------
    >>> width() > 0
    True
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 140


def _console(color: bool = True) -> Console:
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else width(),
        highlight=False,
        markup=False,
        emoji=False,
        color_system="auto" if color else None,
    )
