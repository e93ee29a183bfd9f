"""Time contestants against each other on a machine that does other things too.

Absolute times drift: a core may run at half speed for a while, and neighbours come and go. So contestants take turns,
each timed block follows one untimed call of the same contestant, samples taken while the core was slow are dropped, and
what is reported are medians and the interval of the median of the paired ratios.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pycompress.timing import ratio_interval

OURS = "pycompress"
PAUSE_SECONDS = 0.01  # OpenMP workers spin after their call and would slow the next library
MIN_BLOCK_SECONDS = 1e-3
MIN_SAMPLES = 6  # the fewest that give an interval of 95 %
MAX_COPIES = 64


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take: `samples` clean ones, or what `seconds` allow."""

    samples: int
    seconds: float


QUICK, FULL = Effort(9, 4.0), Effort(25, 20.0)


def rotated_bytes() -> int:
    """Memory that weights of the L3 tier rotate through: 32 MB, or half of the L3 cache that the system reports."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return 32_000_000
    return min(32_000_000, int(size.rstrip("K")) * 1024 // 2) if size.endswith("K") else 32_000_000


def copies(nbytes: int) -> int:
    """How many copies of a weight fill the L3 tier: a layer of a real model does not find its weights in L2."""
    return max(1, min(MAX_COPIES, math.ceil(rotated_bytes() / max(nbytes, 1))))


def rotating(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that makes the next of the calls each time."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch and pycompress use n threads, both by the defaults that a user has; gradients are off."""
    before, setting = torch.get_num_threads(), os.environ.get("PYCOMPRESS_NUM_THREADS")
    torch.set_num_threads(n)
    os.environ["PYCOMPRESS_NUM_THREADS"] = str(n)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        del os.environ["PYCOMPRESS_NUM_THREADS"]
        if setting is not None:
            os.environ["PYCOMPRESS_NUM_THREADS"] = setting


@dataclass(frozen=True)
class Times:
    """Seconds for one call; sample i of all contestants was taken in turn i."""

    seconds: Mapping[str, NDArray[np.float64]]
    clean: Mapping[str, NDArray[np.bool_]]

    def median(self, name: str) -> float:
        """Median seconds of one call, over the clean samples where there are any."""
        clean = self.clean[name]
        return float(np.median(self.seconds[name][clean] if clean.any() else self.seconds[name]))

    def ratio(self, numerator: str, denominator: str) -> tuple[float, float, float]:
        """Median of the paired ratios of two contestants, and its 95 % interval.

        Turns in which the core was slow for one of them are left out, unless fewer than six would remain.
        """
        both = self.clean[numerator] & self.clean[denominator]
        keep = both if both.sum() >= MIN_SAMPLES else np.ones_like(both)
        return ratio_interval(self.seconds[numerator][keep], self.seconds[denominator][keep])

    def best_peer(self) -> str:
        """Name of the fastest contestant that is not ours."""
        return min((name for name in self.seconds if not name.startswith(OURS)), key=self.median)


class _Probe:
    """Tells whether the core runs at full speed: a loop of a few microseconds against the fastest seen."""

    def __init__(self) -> None:
        self._best = math.inf
        for _ in range(20):
            self._seconds()

    def _seconds(self) -> float:
        start = time.perf_counter()
        for _ in itertools.repeat(None, 500):
            pass
        seconds = time.perf_counter() - start
        self._best = min(self._best, seconds)
        return seconds

    def clean(self) -> bool:
        return min(self._seconds(), self._seconds()) < 1.25 * self._best


def _block(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, repeats):
        call()
    return time.perf_counter() - start


def _repeats(call: Callable[[], object]) -> int:
    call()
    seconds = min(_block(call, 1), _block(call, 1))
    return min(10_000, math.ceil(MIN_BLOCK_SECONDS / max(seconds, 1e-7)))


def interleaved(contestants: Mapping[str, Callable[[], object]], effort: Effort) -> Times:
    """Time contestants in turns; the order is turned round for every second sample.

    A contestant's library is the first word of its name; between two libraries there is a pause.

    Parameters
    ----------
    contestants : dict of name to callable
        The ones that matter most for a ratio should be neighbours.
    effort : Effort

    Returns
    -------
    Times
    """
    turns = [(name, call, _repeats(call)) for name, call in contestants.items()]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    clean: dict[str, list[bool]] = {name: [] for name in contestants}
    probe = _Probe()
    library, start, good, taken = "", time.perf_counter(), 0, 0
    while good < effort.samples and (taken < MIN_SAMPLES or time.perf_counter() - start < effort.seconds):
        for name, call, repeats in turns:
            if name.split()[0] != library:
                library = name.split()[0]
                time.sleep(PAUSE_SECONDS)
            call()
            before = probe.clean()
            seconds[name].append(_block(call, repeats) / repeats)
            clean[name].append(before and probe.clean())
        turns.reverse()
        taken += 1
        good += all(marks[-1] for marks in clean.values())
    return Times(
        {name: np.array(values) for name, values in seconds.items()},
        {name: np.array(marks) for name, marks in clean.items()},
    )
