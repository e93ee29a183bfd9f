"""`report.py` itself: what counts as fallen, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report


def _file(path: Path, speedups: dict[str, float]) -> str:
    benchmarks = [{"group": group, "extra_info": {"speedup": value}} for group, value in speedups.items()]
    path.write_text(json.dumps({"benchmarks": [*benchmarks, {"group": "a", "extra_info": {}}]}))
    return str(path)


@pytest.mark.parametrize(("after", "code"), [(2.0, 0), (1.71, 0), (1.69, 1), (3.0, 0)])
def test_a_fall_of_more_than_15_percent_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: float, code: int
) -> None:
    old = _file(tmp_path / "old", {"a": 2.0, "b [x]": 1.0, "gone": 1.0})
    new = _file(tmp_path / "new", {"a": after, "b [x]": 1.0, "more": 1.0})
    assert report.main(["compare", old, new]) == code
    out = capsys.readouterr().out
    assert f"{code} of 2 speedups fell" in out
    assert all(text in out for text in ("b [x]", "gone", "more", f"{after:.2f}"))


def test_rows_and_records_are_compared_like_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"op": "ffn", "shape": [768, 3072], "rows": 1, "threads": 1, "tier": "L3", "level": "avx2", "format": "Int8"}
    rows, record = tmp_path / "rows", tmp_path / "record"
    rows.write_text(json.dumps([row | {"ratio": 2.0}, row | {"rows": None, "ratio": 1.0}]))
    record.write_text(json.dumps({"date": "", "rows": [row | {"ratio": 1.5}]}))
    assert report.main(["compare", str(rows), str(rows)]) == 0
    assert report.main(["compare", str(rows), str(record)]) == 1
    out = capsys.readouterr().out
    assert "ffn Int8 768x3072 rows=1 threads=1 L3 avx2" in out
    assert "1 of 1 speedups fell" in out


def test_a_record_says_machine_versions_date_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--op", "int8_linear", "--quick", "--shapes", "64x64", "--rows", "1", "--threads", "1"]
    assert report.main(["record", "First Change", "--into", str(tmp_path), *options]) == 0
    (path,) = tmp_path.glob("*/*-first-change.json")
    assert str(path) in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["command"].endswith("--op int8_linear --quick --shapes 64x64 --rows 1 --threads 1")
    assert content["machine"]["cpu"] and content["versions"]["torch"] and content["date"]
    assert report.main(["compare", str(path), str(path)]) == 0
    assert report.main(["record", "wrong", "--into", str(tmp_path), "--op", "nothing"]) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', "[1]", '{"benchmarks": [{"group": "a"}]}'])
def test_wrong_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    good = _file(tmp_path / "good", {"a": 1.0})
    bad = tmp_path / "bad"
    bad.write_text(text)
    assert report.main(["compare", good, str(bad)]) == 2
    assert report.main(["compare", str(tmp_path / "absent"), good]) == 2
    error = capsys.readouterr().err
    assert f"{bad} must" in error
    assert "absent must" in error
