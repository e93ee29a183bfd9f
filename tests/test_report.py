"""Tables: names are shown as they are, numbers as a person reads them, and nothing runs out of a narrow terminal."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import pycompress as pc
from pycompress import kernels, report
from pycompress.artifact import describe

NASTY = ["[red]layer[/red]", "[/]", ":warning:", "\x1b]0;title\x07", "\x1b[2J", "a\u202eb", "[link=http://x]y[/link]"]


def rendered(parts, width=80):
    """What `report.show` would print in a terminal of some width."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def side(**changes):
    found = {"accuracy": 0.9733, "accuracy_interval": [0.965, 0.98], "bytes": 1_204_704, "membership_auc": 0.55}
    return found | {"membership_auc_interval": [0.51, 0.59], "latency_ms": {"1": 0.0521, "32": 12.5}} | changes


def model(**changes):
    found = {
        "name": "MLP",
        "original": side(),
        "compressed": side(accuracy=0.97, bytes=43_710, latency_ms={"1": 0.0201, "32": 15.0}),
        "verdict": {"difference": -0.0033, "interval": [-0.0082, 0.0011], "margin": 0.015, "decision": "non-inferior"},
        "speedup": {"1": [2.59, 2.5, 2.7], "32": [0.8, 0.75, 0.84]},
        "reload_equal": True,
    }
    return found | changes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (43_710, "43.7 kB"), (999_940, "999.9 kB"), (1_204_704, "1.20 MB")],
)
def test_sizes(count, text):
    assert report.size(count) == text


def test_a_size_is_rounded_to_its_unit():
    assert report.size(999_999) == "1.00 MB", "not 1000.0 kB"
    assert report.size(25_000_000_000) == "25.00 GB"


def test_original_beside_compressed():
    text = rendered(report.models_table([model()], "held out in 5 folds"))
    rows = {line[:26].strip(): line.split() for line in text.splitlines()}
    assert rows["accuracy"][1:] == ["0.9733", "0.9700", "-0.0033"]
    assert "held out in 5 folds" in text and "[0.965, 0.980]" in text and "[-0.0082, +0.0011]" in text
    assert rows["size on disk"][3:] == ["1.20", "MB", "43.7", "kB", "27.6x", "smaller"]
    assert rows["latency, batch 1"][3:] == ["52", "us", "20", "us", "2.59x", "faster"] and "[2.50, 2.70]" in text
    assert rows["latency, batch 32"][3:] == ["12.5", "ms", "15.0", "ms", "1.25x", "slower"] and "[1.19, 1.33]" in text
    assert "external" not in text


def test_what_a_verdict_means():
    def told(decision, low, high, equal=True):
        verdict = {"difference": (low + high) / 2, "interval": [low, high], "margin": 0.015, "decision": decision}
        return " ".join(rendered(report.models_table([model(verdict=verdict, reload_equal=equal)], "")).split())

    assert "non-inferior: at worst 0.82 points are lost, less than the margin of 1.5 points" in told(
        "non-inferior", -0.0082, 0.001
    )
    assert "at worst 0.00 points are lost" in told("non-inferior", 0.001, 0.002)
    assert "inferior: at least 2.00 points are lost, more than the margin of 1.5 points" in told(
        "inferior", -0.05, -0.02
    )
    assert "undecided: -2.00 to +0.10 points lie on both sides of the margin, a loss of 1.5 points" in told(
        "undecided", -0.02, 0.001
    )
    assert "it gives the same bits" in told("undecided", -0.02, 0.001)
    assert "it gives OTHER bits" in told("undecided", -0.02, 0.001, equal=False)


def test_external_items_have_a_row():
    external = {"items": 382, "original": 0.9, "compressed": 0.91, "difference": 0.01, "interval": [-0.01, 0.03]}
    external["decision"] = "undecided"
    text = rendered(report.models_table([model(external=external)], "5 folds"))
    assert "external, 382 items" in text and "[-0.0100, +0.0300]" in text
    assert "On the external items alone: undecided." in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    external = {"items": 382, "original": 0.9, "compressed": 0.91, "difference": 0.01, "interval": [-0.01, 0.03]}
    external["decision"] = "undecided"
    text = rendered(report.models_table([model(external=external)], "held out in 5 folds"), width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("0.9733", "0.9700", "-0.0033", "27.6x", "2.59x", "1.25x", "0.9000", "+0.0100"):
        assert number in text
    assert "…" not in text
    if width >= 80:
        assert "[-0.0100, +0.0300]" in text and "[0.965, 0.980]" in text, "an interval stays in one line"


@pytest.mark.parametrize("name", NASTY)
def test_names_are_shown_as_they_are(name, tmp_path):
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert shown in rendered(report.models_table([model(name=name)], name), 140)
    network = nn.Sequential()
    network.add_module(name, nn.Linear(8, 4))
    network.add_module("same", nn.Linear(8, 4))
    network.same.weight = getattr(network, name).weight
    path = tmp_path / "model"
    pc.save(pc.pack(network[:1], torch.zeros(1, 8), pc.Int8(), force=True), path)
    pc.save(network, tmp_path / "tied")
    for file in (path, tmp_path / "tied"):
        text = rendered(report.description_tables(name, describe(file)), 140)
        assert text.startswith(shown) and f"{shown}.weight" in text
        assert not {c for c in text if not c.isprintable()} - {"\n"}
    text = rendered(report.findings_table([report.Finding(name, name, name)]), 140)
    assert text.count(shown) == 3 and not {c for c in text if not c.isprintable()} - {"\n"}


def test_what_a_file_holds(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    pc.prune_(network, sparsity=0.9)
    pc.quantize_(network, pc.Int8())
    packed = pc.pack(network, torch.zeros(1, 64), force=True)
    packed.steps = nn.Parameter(torch.tensor(3.0), requires_grad=False)
    pc.save(packed, tmp_path / "model")
    found = describe(tmp_path / "model")
    text = rendered(report.description_tables("model", found))
    assert f"{report.size(found.bytes)}, format version 1, the digest fits" in text
    assert "32 x 64" in text and "scalar" in text and "nonzeros" in text and "Int8()" in text
    assert "forced, not measured" in text
    content = bytearray((tmp_path / "model").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model").write_bytes(content)
    text = rendered(report.description_tables("model", describe(tmp_path / "model")))
    assert "DOES NOT FIT" in text and "the digest fits" not in text


def test_a_speedup_that_was_measured_is_shown(tmp_path):
    network = nn.Sequential(nn.Linear(8, 8))
    pc.quantize_(network, pc.Int8())
    packed = pc.pack(network, torch.zeros(1, 8))
    pc.save(packed, tmp_path / "model")
    [decision] = pc.explain(packed)
    text = rendered(report.description_tables("model", describe(tmp_path / "model")))
    assert f"{decision.speedup:.2f} [{decision.low:.2f}, {decision.high:.2f}]" in text and "faster" in text


@pytest.fixture
def unset(monkeypatch):
    for name in ("PYCOMPRESS_BACKEND", "PYCOMPRESS_ISA", "PYCOMPRESS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def found(subject):
    return [finding for finding in report.diagnose() if finding.subject == subject]


def test_a_diagnosis(unset):
    findings = {finding.subject: finding for finding in report.diagnose()}
    assert findings["torch"].found == torch.__version__ and not findings["torch"].fix
    assert findings["backend"].found.startswith(f"{kernels.available_backends()[0]}, the first of ")
    assert bool(findings["C++ kernels"].fix) == ("native" not in kernels.available_backends())
    if "native" in kernels.available_backends():
        assert findings["level"].found.startswith(f"{kernels.isa_levels()[-1]}, the highest of ")
    assert findings["threads"].found.startswith(f"{kernels.get_num_threads()} for NumPy, from CPU affinity")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYCOMPRESS_BACKEND", "[red]fast"), ("PYCOMPRESS_ISA", "avx1024"), ("PYCOMPRESS_NUM_THREADS", "0")],
)
def test_a_wrong_variable_is_found_and_all_else_still_looked_at(unset, name, value):
    if name == "PYCOMPRESS_ISA" and "native" not in kernels.available_backends():
        pytest.skip("there are no levels without the native kernels")
    before = report.diagnose()
    unset.setenv(name, value)
    after = report.diagnose()
    [problem] = [finding for finding in after if finding.subject == "environment"]
    assert name in problem.found and value in problem.found and problem.fix == "correct or unset that variable"
    assert len(set(before) - set(after)) == 1, "what that variable decides"
    text = rendered(report.findings_table(after), 140)
    assert value in text and "to do: correct or unset that variable" in text


def test_slow_choices_are_problems(unset):
    if kernels.available_backends()[0] != "reference":
        unset.setenv("PYCOMPRESS_BACKEND", "reference")
        [backend] = found("backend")
        assert backend.fix == f"unset PYCOMPRESS_BACKEND to run {kernels.available_backends()[0]}"
        unset.setenv("PYCOMPRESS_BACKEND", kernels.available_backends()[0])
        assert not found("backend")[0].fix, "forced, and the same as without"
        unset.delenv("PYCOMPRESS_BACKEND")
    if "native" in kernels.available_backends() and len(kernels.isa_levels()) > 1:
        unset.setenv("PYCOMPRESS_ISA", "scalar")
        assert found("level")[0].fix == f"unset PYCOMPRESS_ISA to run {kernels.isa_levels()[-1]}"
    unset.setenv("PYCOMPRESS_NUM_THREADS", "3")
    assert found("threads")[0].found.startswith("3 for NumPy, from PYCOMPRESS_NUM_THREADS")


def test_a_broken_extension_and_missing_packages_are_seen(unset):
    def broken():
        raise ImportError("undefined symbol: [bold]x")

    unset.setattr(kernels, "available_backends", broken)
    unset.setattr(report, "_version", lambda name: None)
    findings = {finding.subject: finding for finding in report.diagnose()}
    assert findings["C++ kernels"].found == "broken: undefined symbol: [bold]x" and findings["C++ kernels"].fix
    assert "pycompress-nn[torch]" in findings["torch"].fix and findings["scipy"].fix == "pip install scipy"
    assert not findings["numba"].fix, "it is optional"
    text = rendered(report.findings_table(list(findings.values())), 140)
    assert "[bold]x" in text and "pip install 'pycompress-nn[torch]'" in text and "things to do." in text


def test_show_takes_text_as_it_is(capsys):
    report.show(["[red]:warning: [/nothing]"])
    assert capsys.readouterr().out == "[red]:warning: [/nothing]\n"
