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
