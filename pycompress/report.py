"""What a person sees in a terminal: tables, made with rich."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import kernels
from .tables import cell, heading, new_table, plain
from .tables import show as show
from .tables import size as size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from .artifact import Description
    from .breakeven import BreakEven
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
                "decision": external.decision,
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


def _time(milliseconds: float) -> str:
    return f"{1000 * milliseconds:.0f} us" if milliseconds < 10 else f"{milliseconds:.1f} ms"


def _ratio(before: float, after: float, better: str, worse: str, digits: int = 2) -> str:
    """Write how many times better (less) or worse something is."""
    return f"{before / after:.{digits}f}x {better}" if before >= after else f"{after / before:.{digits}f}x {worse}"


def models_table(models: list[dict[str, Any]], what: str) -> list[RenderableType]:
    """Lay out original beside compressed models.

    Parameters
    ----------
    models : list of dict
        As ``pycompress demo --json`` prints them.
    what : str
        What the accuracy was measured on.

    Returns
    -------
    list of renderables
        One table for each model, each with its verdict.
    """
    parts: list[RenderableType] = []
    for model in models:
        before, after, verdict = model["original"], model["compressed"], model["verdict"]
        table = new_table("", "original", "compressed", "change", right=True)
        low, high = verdict["interval"]
        change = cell(f"{verdict['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]")
        table.add_row(cell("accuracy", what), *_values(before, after, "accuracy"), change)
        if "external" in model:
            external = model["external"]
            low, high = external["interval"]
            table.add_row(
                cell("accuracy", f"external, {external['items']} items"),
                *(cell(f"{external[side]:.4f}") for side in ("original", "compressed")),
                cell(f"{external['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]"),
            )
        change = cell(f"{after['membership_auc'] - before['membership_auc']:+.4f}")
        label = cell("membership AUC", "0.5: gives nothing away")
        table.add_row(label, *_values(before, after, "membership_auc"), change)
        sizes = before["bytes"], after["bytes"]
        table.add_row("size on disk", *(cell(size(count)) for count in sizes), _ratio(*sizes, "smaller", "larger", 1))
        for batch, milliseconds in before["latency_ms"].items():
            times = milliseconds, after["latency_ms"][batch]
            speedup, low, high = model["speedup"][batch]
            ends = (low, high) if speedup >= 1 else (1 / high, 1 / low)
            table.add_row(
                cell(f"latency, batch {batch}"),
                *(cell(_time(value)) for value in times),
                cell(_ratio(speedup, 1, "faster", "slower"), f"[{ends[0]:.2f}, {ends[1]:.2f}]"),
            )
        parts += [heading(model["name"]), table, _conclusion(model), ""]
    return parts


def _values(before: dict[str, Any], after: dict[str, Any], name: str) -> list[Text]:
    cells = []
    for values in (before, after):
        low, high = values[f"{name}_interval"]
        cells.append(cell(f"{values[name]:.4f}", f"[{low:.3f}, {high:.3f}]"))
    return cells


_STYLES = {"non-inferior": "bold green", "inferior": "bold red", "undecided": "bold yellow"}


def _conclusion(model: dict[str, Any]) -> Text:
    from rich.text import Text

    verdict = model["verdict"]
    decision = verdict["decision"]
    low, high = (100 * end for end in verdict["interval"])
    text = Text(decision, style=_STYLES[decision])
    margin = f"{100 * verdict['margin']:g} points"
    meaning = f"{low:+.2f} to {high:+.2f} points lie on both sides of the margin, a loss of {margin}"
    if decision == "non-inferior":
        meaning = f"at worst {max(-low, 0):.2f} points are lost, less than the margin of {margin}"
    elif decision == "inferior":
        meaning = f"at least {-high:.2f} points are lost, more than the margin of {margin}"
    text.append(f": {meaning} (95 % interval). ", style="not bold default")
    if "external" in model:
        text.append("On the external items alone: ", style="not bold default")
        text.append(model["external"]["decision"], style=_STYLES[model["external"]["decision"]])
        text.append(". ", style="not bold default")
    if model["reload_equal"]:
        text.append("Saved and loaded again, it gives the same bits.", style="not bold default")
    else:
        text.append("Saved and loaded again, it gives OTHER bits.", style="bold red")
    return text


def description_tables(path: str, found: Description) -> list[RenderableType]:
    """Lay out what a file holds."""
    from rich.text import Text

    digest = Text("the digest fits", style="green")
    if not found.digest_ok:
        digest = Text("the digest DOES NOT FIT: the file is damaged, or was changed", style="bold red")
    title = Text.assemble(heading(path), f"\n{size(found.bytes)}, format version {found.version}, ", digest)
    tensors = new_table("tensor", "shape", "type", "coding", "bytes", right=True)
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        tensors.add_row(*map(cell, (tensor.name, shape, tensor.dtype, tensor.coding, f"{tensor.bytes:,}")))
    for name, owner in found.tied.items():
        tensors.add_row(*map(cell, (name, "", "", f"shares {owner}", "")))
    parts: list[RenderableType] = [title, tensors]
    if found.layers:
        layers = new_table("layer", "format", "speedup when packed", "why", right=False)
        for name, record in found.layers.items():
            decision = record.decision
            speedup = ""
            if decision is not None and decision.speedup is not None:
                speedup = f"{decision.speedup:.2f} [{decision.low:.2f}, {decision.high:.2f}]"
            format = "dense" if record.packed is None else repr(record.packed.format)
            reason = "" if decision is None else decision.reason
            layers.add_row(*map(cell, (name or "(the model)", format, speedup, reason)))
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
    for look in (_native, _level, _backend, _threads):
        try:
            findings += look()
        except ImportError as error:
            findings.append(Finding("C++ kernels", f"broken: {error}", "pip install --force-reinstall pycompress-nn"))
        except ValueError as error:
            findings.append(Finding("environment", str(error), "correct or unset that variable"))
    needs = {"torch": "pip install 'pycompress-nn[torch]', for everything but the kernels", "numba": ""}
    for name in ("numpy", "scipy", "safetensors", "torch", "numba"):
        version = _version(name)
        fix = "" if version else needs.get(name, f"pip install {name}")
        findings.append(Finding(name, version or "not installed", fix))
    return list(dict.fromkeys(findings))


def _native() -> list[Finding]:
    if "native" in kernels.available_backends():
        return [Finding("C++ kernels", "built")]
    fix = "install again with a C++17 compiler and without PYCOMPRESS_NO_NATIVE"
    return [Finding("C++ kernels", "not built: kernels are slower", fix)]


def _level() -> list[Finding]:
    if "native" not in kernels.available_backends() and not os.environ.get("PYCOMPRESS_ISA"):
        return []
    levels, level = kernels.isa_levels(), kernels.isa_name()
    forced = bool(os.environ.get("PYCOMPRESS_ISA"))
    slow = forced and level != levels[-1]
    why = "forced by PYCOMPRESS_ISA" if forced else "the highest"
    found = f"{level}, {why} of {', '.join(levels)}"
    return [Finding("level", found, f"unset PYCOMPRESS_ISA to run {levels[-1]}" if slow else "")]


def _backend() -> list[Finding]:
    available = kernels.available_backends()
    forced = bool(os.environ.get("PYCOMPRESS_BACKEND"))
    name = kernels.backend_name() if forced else available[0]
    slow = forced and name != available[0]
    why = "forced by PYCOMPRESS_BACKEND" if forced else "the first"
    found = f"{name}, {why} of {', '.join(available)}"
    return [Finding("backend", found, f"unset PYCOMPRESS_BACKEND to run {available[0]}" if slow else "")]


def _threads() -> list[Finding]:
    source = "PYCOMPRESS_NUM_THREADS" if os.environ.get("PYCOMPRESS_NUM_THREADS") else "CPU affinity and quota"
    return [Finding("threads", f"{kernels.get_num_threads()} for NumPy, from {source}; for tensors, torch's number")]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def break_even_table(level: str, entries: list[BreakEven]) -> list[RenderableType]:
    """Lay out from which share of zeros on sparse int8 weights are faster than dense ones."""
    table = new_table("outputs x inputs", "zeros in", "rows", "faster from", right=True)
    for each in entries:
        block = "single weights" if each.block == (1, 1) else f"blocks {each.block[0]}x{each.block[1]}"
        zeros = f"{each.zeros:.0%}" if each.zeros <= 1 else "never"
        table.add_row(cell(f"{each.out_features} x {each.in_features}"), cell(block), cell(str(each.rows)), cell(zeros))
    return [heading(f"Sparse int8 weights on {level}, one thread"), table]


def findings_table(findings: list[Finding]) -> list[RenderableType]:
    """Lay out what :func:`diagnose` found."""
    from rich.text import Text

    table = new_table("", "", "found", right=False)
    for finding in findings:
        mark = Text("!", style="bold yellow") if finding.fix else Text("ok", style="green")
        found = cell(finding.found)
        if finding.fix:
            found.append("\nto do: " + plain(finding.fix), style="yellow")
        table.add_row(mark, cell(finding.subject), found)
    problems = sum(bool(finding.fix) for finding in findings)
    return [table, f"{problems} thing{'s' if problems > 1 else ''} to do." if problems else "No problem found."]
