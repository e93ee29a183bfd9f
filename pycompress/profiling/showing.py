"""A profile as a tree of modules with their numbers, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tables import cell, new_table, plain, size
from .modules import parent
from .results import Gain, LayerProfile, Profile, title

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_LARGE = 0.1  # own part of the time from which on a layer is shown in bold
_FOLDED = {"kind": 10, "format": 8}  # columns that may take several lines, and their least width
_DISPENSABLE = ("kind", "format", "GFLOP/s", "calls", "memory", "parameters", "operations")  # the first ones go first


def laid_out(profile: Profile, width: int) -> list[RenderableType]:
    """Return the tree, and what stands below it.

    Columns of numbers count a module with all that is inside it; ``own`` is the part of the time that it spends by
    itself, and these add up to 100 %. The last columns say what other formats would save of the time. Where the width
    is too small for all columns, the less important ones are left out: no number is cut.
    """
    columns: dict[str, list[Text]] = {}
    for guide, layer in _tree(list(profile.layers)):
        for name, text in _row(profile, guide, layer).items():
            columns.setdefault(name, []).append(text)
    for name in _DISPENSABLE:
        if sum(_width(title, cells) for title, cells in columns.items()) > width:
            del columns[name]
    table = new_table(*columns, right=True)
    table.padding = (0, 1, 0, 0)
    for column, name in zip(table.columns, columns, strict=True):
        if name in _FOLDED:
            column.justify, column.min_width = "left", _FOLDED[name]
        else:
            column.no_wrap = True
    for layer, cells in zip(profile.layers, zip(*columns.values(), strict=True), strict=True):
        table.add_row(*cells, style="bold" if profile.share(layer) >= _LARGE else "")
    return [table, *_below(profile)]


def _row(profile: Profile, guide: str, layer: LayerProfile) -> dict[str, Text]:
    formats = dict.fromkeys(title(gain) for each in profile.layers for gain in each.gains)
    gains = {title(gain): gain for gain in layer.gains}
    name = layer.name.rpartition(".")[2] if guide else (layer.name or "(the model)")
    texts = {
        "layer": guide + plain(name),
        "kind": layer.kind,
        "format": layer.format,
        "parameters": _parameters(layer),
        "memory": size(layer.total.bytes) if layer.total.bytes else "",
        "operations": "?" if layer.total.operations is None else count(layer.total.operations),
        "calls": str(layer.calls),
        "time": time(layer.total.microseconds) if layer.calls else "",
        "own": f"{100 * profile.share(layer):.0f} %" if layer.calls else "",
        "GFLOP/s": "" if layer.gflops is None else f"{layer.gflops:.3g}",
    }
    found = {name: cell(text) for name, text in texts.items()}
    return found | {name: _saving(gains.get(name)) for name in formats}


def _width(title: str, cells: list[Text]) -> int:
    """What a column needs, with the space beside it."""
    return 2 + _FOLDED.get(title, max(len(title), *(text.cell_len for text in cells)))


def _below(profile: Profile) -> list[str]:
    threads = f"{profile.threads} thread{'' if profile.threads == 1 else 's'}"
    lines = [
        f"{time(profile.microseconds)} for one run, {time(profile.watched_microseconds)} while every module is watched "
        f"(medians of {profile.runs} runs each, {threads})."
    ]
    for name, (us, saved) in profile.savings.items():
        less = f"{size(saved)} of memory" if saved >= 0 else f"no memory ({size(-saved)} more)"
        lines.append(
            f"{name} would save about {time(us)} and {less} at the layers that it makes faster, each measured alone."
        )
    reasons: dict[str, list[str]] = {}
    for layer in profile.layers:
        if layer.note:
            reasons.setdefault(layer.note, []).append(layer.name or "(the model)")
    lines += [f"Not tried: {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    return [plain(line) for line in (*lines, *profile.notes)]


def _tree(layers: list[LayerProfile]) -> list[tuple[str, LayerProfile]]:
    """Layers with the lines that lead to them; a layer whose parent is not there hangs on the nearest one."""
    known = {layer.name for layer in layers}
    children: dict[str, list[LayerProfile]] = {}
    for layer in layers[1:]:
        children.setdefault(parent(layer.name, known), []).append(layer)
    found: list[tuple[str, LayerProfile]] = []

    def add(layer: LayerProfile, guide: str, below: str) -> None:
        found.append((guide, layer))
        inside = children.get(layer.name, [])
        for i, child in enumerate(inside):
            last = i == len(inside) - 1
            add(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))

    add(layers[0], "", "")
    return found


def _parameters(layer: LayerProfile) -> str:
    amount = layer.total
    if not amount.parameters:
        return ""
    return count(amount.parameters) + (f" ({100 * layer.sparsity:.0f} % zero)" if layer.sparsity >= 0.01 else "")


def _saving(gain: Gain | None) -> Text:
    if gain is None:
        return cell("")
    found = cell(f"-{time(gain.saved_us)}" if gain.low > 1 else "no faster")
    if gain.low > 1:
        found.stylize("green")
    return found


def count(number: int) -> str:
    """Write a number as a person reads it, "" for zero.

    Examples
    --------
    >>> count(0), count(999), count(43_710), count(1_204_704), count(999_999), count(25_000_000_000)
    ('', '999', '43.7 k', '1.20 M', '1.00 M', '25.00 G')
    """
    if number < 1000:
        return str(number or "")
    if number < 999_950:
        return f"{number / 1e3:.1f} k"
    if number < 999_995_000:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e9:.2f} G"


def time(microseconds: float) -> str:
    """Write a time as a person reads it.

    Examples
    --------
    >>> time(1.24), time(52.0), time(12_500), time(2_000_000)
    ('1.2 us', '52.0 us', '12.50 ms', '2.00 s')
    """
    if microseconds < 999.95:
        return f"{microseconds:.1f} us"
    return f"{microseconds / 1e3:.2f} ms" if microseconds < 999_995 else f"{microseconds / 1e6:.2f} s"
