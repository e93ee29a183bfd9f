"""What a person sees in a terminal: tables, made with rich."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import kernels

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from .artifact import Description
    from .validation import MembershipComparison, Verdict
    from .validation.cost import Cost


@dataclass(frozen=True)
class ModelResult:
    """One model, before and after compression, as the demo reports it.

    Attributes
    ----------
    name : str
    verdict : Verdict
        What decides: held-out items.
    cost : Cost
        Size and latency.
    membership : MembershipComparison
        Items that the model was trained on against items that it was not.
    reload_equal : bool
        Whether the saved and loaded model gives the same bits.
    external : Verdict, optional
        On items from another source.
    """

    name: str
    verdict: Verdict
    cost: Cost
    membership: MembershipComparison
    reload_equal: bool
    external: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        verdict, external = self.verdict, self.external
        found: dict[str, Any] = {
            "name": self.name,
            "original": self._side("original"),
            "compressed": self._side("compressed"),
            "verdict": {
                "difference": verdict.difference,
                "interval": list(verdict.interval),
                "margin": verdict.margin,
                "decision": verdict.decision,
                "items": verdict.items,
            },
            "reload_equal": self.reload_equal,
            "speedup": {str(row.batch): [row.speedup, *row.speedup_interval] for row in self.cost.latency},
            "threads": self.cost.latency[0].threads,
        }
        if external is not None:
            found["external"] = {
                "items": external.items,
                "original": external.original.value,
                "compressed": external.compressed.value,
                "difference": external.difference,
                "interval": list(external.interval),
            }
        return found

    def _side(self, side: str) -> dict[str, Any]:
        estimate, membership = getattr(self.verdict, side), getattr(self.membership, side)
        return {
            "accuracy": estimate.value,
            "accuracy_interval": list(estimate.interval),
            "bytes": getattr(self.cost, f"{side}_bytes"),
            "latency_ms": {str(row.batch): getattr(row, f"{side}_p50_ms") for row in self.cost.latency},
            "membership_auc": membership.auc,
            "membership_auc_interval": list(membership.interval),
        }


def size(count: int) -> str:
    """Write a number of bytes as a person reads it.

    Examples
    --------
    >>> size(512), size(43_710), size(1_204_704)
    ('512 B', '43.7 kB', '1.20 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.2f} MB"


def _points(interval: list[float]) -> str:
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def models_table(models: list[dict[str, Any]], what: str) -> list[RenderableType]:
    """Lay out original beside compressed models.

    Parameters
    ----------
    models : list of dict
        As ``pycompress demo --json`` prints them.
    what : str
        What the accuracy was measured on, for the caption.

    Returns
    -------
    list of renderables
        One table for each model, each with its verdict.
    """
    parts: list[RenderableType] = []
    for model in models:
        before, after, verdict = model["original"], model["compressed"], model["verdict"]
        table = _table(model["name"], "", "original", "compressed", "change")
        for label, side in ((f"accuracy ({what})", "accuracy"), ("membership AUC (0.5: no leak)", "membership_auc")):
            cells = []
            for values in (before, after):
                low, high = values[f"{side}_interval"]
                cells.append(f"{values[side]:.4f} [{low:.3f}, {high:.3f}]")
            table.add_row(label, *cells, f"{after[side] - before[side]:+.4f}")
        if "external" in model:
            external = model["external"]
            values = external["original"], external["compressed"]
            table.add_row(
                f"accuracy (external, {external['items']} items)",
                *(f"{value:.4f}" for value in values),
                f"{values[1] - values[0]:+.4f}",
            )
        ratio = before["bytes"] / after["bytes"]
        table.add_row("size on disk", size(before["bytes"]), size(after["bytes"]), f"{ratio:.1f}x smaller")
        for batch, milliseconds in before["latency_ms"].items():
            speedup, low, high = model["speedup"][batch]
            table.add_row(
                f"latency, batch {batch}",
                f"{1000 * milliseconds:.0f} us",
                f"{1000 * after['latency_ms'][batch]:.0f} us",
                f"{speedup:.2f}x faster [{low:.2f}, {high:.2f}]",
            )
        color = {"non-inferior": "green", "inferior": "red"}.get(verdict["decision"], "yellow")
        same = "the same bits" if model["reload_equal"] else "[red]OTHER bits[/red]"
        table.caption = (
            f"[{color}]{verdict['decision']}[/{color}] at a margin of {100 * verdict['margin']:g} points: the "
            f"difference is {_points(verdict['interval'])} points (95 % interval). Saved and loaded again: {same}."
        )
        table.caption_justify = "left"
        parts.append(table)
    return parts


def description_tables(path: str, found: Description) -> list[RenderableType]:
    """Lay out what a file holds."""
    digest = "[green]fits[/green]" if found.digest_ok else "[red]DOES NOT FIT: the file was changed[/red]"
    title = f"{path}: {size(found.bytes)}, format version {found.version}, digest {digest}"
    tensors = _table(title, "tensor", "shape", "type", "coding", "bytes")
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        tensors.add_row(tensor.name, shape, tensor.dtype, tensor.coding, f"{tensor.bytes:,}")
    for name, owner in found.tied.items():
        tensors.add_row(name, "", "", f"shares {owner}", "")
    parts: list[RenderableType] = [tensors]
    if found.layers:
        layers = _table("layers", "layer", "format", "speedup when packed", "why")
        for name, record in found.layers.items():
            decision = record.decision
            speedup = ""
            if decision is not None and decision.speedup is not None:
                speedup = f"{decision.speedup:.2f}x [{decision.low:.2f}, {decision.high:.2f}]"
            layers.add_row(
                name,
                "dense" if record.packed is None else repr(record.packed.format),
                speedup,
                "" if decision is None else decision.reason,
            )
        parts.append(layers)
    return parts


@dataclass(frozen=True)
class Finding:
    """One line of ``pycompress doctor``: what was looked at, what was found, and the fix where that is a problem."""

    subject: str
    found: str
    fix: str = ""


def diagnose() -> list[Finding]:
    """Look at this installation: backends, level, threads, versions.

    Returns
    -------
    list of Finding

    Examples
    --------
    >>> diagnose()[0].subject
    'pycompress'
    """
    findings = [Finding("pycompress", _version("pycompress-nn") or "not installed, run from its source")]
    findings.append(Finding("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"))
    try:
        findings += _kernel_findings()
    except ImportError as error:
        findings.append(Finding("C++ kernels", f"broken: {error}", "pip install --force-reinstall pycompress-nn"))
    except ValueError as error:
        findings.append(Finding("environment", str(error), "correct or unset that variable"))
    needs = {"torch": "pip install 'pycompress-nn[torch]', for everything but the kernels", "numba": ""}
    for name in ("numpy", "scipy", "safetensors", "torch", "numba"):
        version = _version(name)
        fix = "" if version else needs.get(name, f"pip install {name}")
        findings.append(Finding(name, version or "not installed", fix))
    return findings


def _kernel_findings() -> list[Finding]:
    available = kernels.available_backends()
    if "native" in available:
        levels = kernels.isa_levels()
        findings = [Finding("C++ kernels", f"built; this CPU runs {', '.join(levels)}")]
        forced = os.environ.get("PYCOMPRESS_ISA")
        why = "PYCOMPRESS_ISA" if forced else "the highest that this CPU has"
        findings.append(Finding("level", f"{kernels.isa_name()} ({why})"))
        if forced and kernels.isa_name() != levels[-1]:
            findings[-1] = Finding("level", findings[-1].found, f"unset PYCOMPRESS_ISA to run {levels[-1]}")
    else:
        fix = "install again with a C++17 compiler and without PYCOMPRESS_NO_NATIVE"
        findings = [Finding("C++ kernels", "not built: kernels are slower", fix)]
    forced = os.environ.get("PYCOMPRESS_BACKEND")
    why = "PYCOMPRESS_BACKEND" if forced else f"the first of {', '.join(available)}"
    name = kernels.backend_name() if forced else available[0]
    slow = forced and name != available[0]
    findings.append(
        Finding("backend", f"{name} ({why})", f"unset PYCOMPRESS_BACKEND to run {available[0]}" if slow else "")
    )
    threads = kernels.get_num_threads()
    source = "PYCOMPRESS_NUM_THREADS" if os.environ.get("PYCOMPRESS_NUM_THREADS") else "CPU affinity and quota"
    findings.append(Finding("threads", f"{threads} for NumPy ({source}); torch's own number for tensors"))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def findings_table(findings: list[Finding]) -> list[RenderableType]:
    """Lay out what :func:`diagnose` found."""
    table = _table("pycompress doctor", "", "found", "to do")
    for column in table.columns:
        column.justify = "left"
    for finding in findings:
        mark = "[yellow]![/yellow]" if finding.fix else "[green]ok[/green]"
        table.add_row(f"{mark} {finding.subject}", finding.found, finding.fix)
    return [table]


def show(parts: list[RenderableType]) -> None:
    """Print to stdout, as wide as the terminal, or 140 columns where there is none."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for part in parts:
        console.print(part)
