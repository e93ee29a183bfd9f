import os
import pty
import subprocess
import sys

import pytest

from pycompress import progress
from pycompress.progress import track


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, and a stderr that is no terminal."""
    now = [1000.0]
    monkeypatch.setattr(progress, "_clock", lambda: now[0])
    monkeypatch.setattr(progress, "_line_due", 0.0)
    monkeypatch.delenv("PYCOMPRESS_PROGRESS", raising=False)
    return now


def test_one_line_every_ten_seconds_with_the_time_left(clock, capsys):
    for _ in track(range(40), "pruning"):
        clock[0] += 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pruning: 10/40, 10 s, about 30 s left",
        "pruning: 20/40, 20 s, about 20 s left",
        "pruning: 30/40, 30 s, about 10 s left",
        "pruning: 40/40, 40 s",
    ]


def test_short_work_prints_nothing(clock, capsys):
    for _ in track(9, "pruning"):
        clock[0] += 1
    assert capsys.readouterr() == ("", "")


def test_nested_work_shares_the_lines(clock, capsys):
    for _ in track(2, "folds"):
        with track(100, "training") as steps:
            for _ in range(25):
                clock[0] += 1
                steps.advance(4)
    assert capsys.readouterr().err.splitlines() == [
        "folds: 0/2, 10 s; training: 40/100, 10 s, about 15 s left",
        "folds: 0/2, 20 s; training: 80/100, 20 s, about 5 s left",
        "folds: 1/2, 30 s, about 30 s left; training: 20/100, 5 s, about 20 s left",
        "folds: 1/2, 40 s, about 40 s left; training: 60/100, 15 s, about 10 s left",
        "folds: 1/2, 50 s, about 50 s left; training: 100/100, 25 s",
    ]
    assert not progress._running


@pytest.mark.parametrize("how", ["argument", "environment", "no stderr"])
def test_silence(how, clock, capsys, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("PYCOMPRESS_PROGRESS", "0")
    if how == "no stderr":
        monkeypatch.setattr(sys, "stderr", None)
    with track(100, "training", enabled=how != "argument") as steps:
        clock[0] += 1000
        steps.advance(50)
    assert steps.done == 50
    assert capsys.readouterr() == ("", "")


def test_items_pass_through_and_errors_come_out():
    assert list(track(3, "counting")) == [0, 1, 2]
    assert list(track((letter for letter in "abc"), "letters")) == ["a", "b", "c"]
    with pytest.raises(KeyError):
        for _ in track("abc", "letters"):
            raise KeyError("mine")


def test_unknown_total_and_long_times(clock):
    with track(0, "reading") as steps:
        steps.advance(5)
        assert steps.line(clock[0] + 75) == "reading: 5, 1 min 15 s"
        assert steps.line(clock[0] + 7290) == "reading: 5, 2 h 01 min"


ON_TERMINAL = """
import time
from pycompress.progress import track
for _ in track(3, "folds [outer]"):
    print("to stdout")
    with track(20, "inner") as steps:
        for _ in range(7):
            time.sleep(0.1)
            steps.advance(2)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_bars_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("PYCOMPRESS_PROGRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not part:
                break
            shown += part
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert out == "to stdout\n" * 3
    text = shown.decode(errors="replace")
    assert "folds [outer]" in text and "2/3" in text and "inner" in text and "12/20" in text
    assert "0:00:0" in text  # the time left
