"""Progress of long work, on stderr: a bar with the time left on a terminal, else one line every 10 seconds.

Work that is done sooner prints no line. ``PYCOMPRESS_PROGRESS=0`` silences both. No thread is started: what is shown
changes when the work advances.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from .kernels.arrays import flag

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

_SECONDS_PER_LINE = 10.0
_SECONDS_PER_REFRESH = 0.1
_SECONDS_BEFORE_NESTED_BAR = 0.5

_clock = time.monotonic
_lock = threading.RLock()
_running: list[Tracker[Any]] = []  # the outermost first
_bars: Progress | None = None
_line_due = 0.0


@overload
def track(work: int, description: str, enabled: bool = True) -> Tracker[int]: ...
@overload
def track(work: Iterable[Item], description: str, enabled: bool = True) -> Tracker[Item]: ...
def track(work: Any, description: str, enabled: bool = True) -> Tracker[Any]:
    """Show the progress of a loop, or of steps that are counted by hand.

    Parameters
    ----------
    work : iterable or int
        What to go through; or the number of steps, 0 where it is not known.
    description : str
        What is being done; the tracker's ``description`` may be changed while it runs.
    enabled : bool
        False shows nothing.

    Returns
    -------
    Tracker

    Examples
    --------
    >>> [layer for layer in track(["fc1", "fc2"], "pruning")]
    ['fc1', 'fc2']
    >>> with track(100, "training") as steps:
    ...     steps.advance(40)
    ...     steps.done
    40
    """
    return Tracker(work, description, enabled)


class Tracker(Generic[Item]):
    """What :func:`track` returns: iterate over it, or enter it and call :meth:`advance`."""

    def __init__(self, work: Any, description: str, enabled: bool = True) -> None:
        self._items: Iterable[Any] = range(work) if isinstance(work, int) else work
        self.total: int | None = work if isinstance(work, int) else _length(work)
        self.description = description
        self.done = 0
        self._enabled = (
            flag(enabled, "progress") and sys.stderr is not None and os.environ.get("PYCOMPRESS_PROGRESS") != "0"
        )
        self._start = 0.0
        self._due = float("inf")
        self._task: TaskID | None = None

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in self._items:
                yield item
                self.advance()

    def __enter__(self) -> Tracker[Item]:
        global _line_due
        self._start = now = _clock()
        if not self._enabled:
            return self
        with _lock:
            nested = bool(_running)
            _running.append(self)
            if not _on_terminal():
                _line_due = _line_due if nested else now + _SECONDS_PER_LINE
                self._due = _line_due
            elif nested:
                self._due = now + _SECONDS_BEFORE_NESTED_BAR
            else:
                self._report(now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = float("inf")
        if self._enabled:
            _end(self)

    def advance(self, steps: int = 1) -> None:
        """Count steps as done, and show it when that is due."""
        self.done += steps
        now = _clock()
        if now >= self._due:
            self._report(now)

    def line(self, now: float) -> str:
        """Return what a line says: the work, how much of it is done, for how long, and the time left.

        Examples
        --------
        >>> with track(10, "pruning") as steps:
        ...     steps.advance(4)
        ...     steps.line(steps._start + 30)
        'pruning: 4/10, 30 s, about 45 s left'
        """
        elapsed = now - self._start
        text = f"{self.description}: {self.done}{f'/{self.total}' if self.total else ''}, {_duration(elapsed)}"
        if self.total and 0 < self.done < self.total:
            text += f", about {_duration(elapsed / self.done * (self.total - self.done))} left"
        return text

    def _report(self, now: float) -> None:
        global _line_due
        with _lock:
            if _on_terminal():
                _show(self)
                self._due = now + _SECONDS_PER_REFRESH
                return
            if now >= _line_due:
                _line_due = now + _SECONDS_PER_LINE
                print("; ".join(tracker.line(now) for tracker in _running), file=sys.stderr, flush=True)
            self._due = _line_due


def _show(tracker: Tracker[Any]) -> None:
    """Draw the bars; the first one opens the display that nested work shares."""
    global _bars
    if _bars is None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        _bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        _bars.start()
    if tracker._task is None:
        tracker._task = _bars.add_task(tracker.description, total=tracker.total or None)
    _bars.update(tracker._task, completed=tracker.done, description=tracker.description)
    _bars.refresh()


def _end(tracker: Tracker[Any]) -> None:
    """Take a tracker's bar away; the last one closes the display."""
    global _bars
    with _lock:
        _running.remove(tracker)
        if _bars is not None and tracker._task is not None:
            _bars.remove_task(tracker._task)
            tracker._task = None
        if _bars is not None and not _running:
            _bars.stop()
            _bars = None


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _length(work: Any) -> int | None:
    try:
        return len(work)
    except TypeError:
        return None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
