"""Time contestants against each other on a machine that does other things too.

Absolute times drift: a core may run at half speed for a while, and neighbours come and go. So contestants take turns,
each timed block follows one untimed call of the same contestant (where its weights are to come from the L3 cache, a
few of each copy of them), samples taken while the core was slow or in which the system gave it to another process are
dropped, and what is reported are medians and the interval of the median of the paired ratios.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pycompress.timing import ratio_interval

OURS = "pycompress"
PAUSE_SECONDS = 0.01  # OpenMP workers spin after their call and would slow the next library
LONGEST_PAUSE = 0.2
MIN_BLOCK_SECONDS = 1e-3
LONG_SECONDS = 0.05  # a longer call needs no untimed one before it: it fills the caches by itself
MIN_SAMPLES = 6  # the fewest that give an interval of 95 %
MAX_COPIES = 64
WARMING = 4  # an L3 cache of AMD keeps what came back several times
TIERS = ("L2", "L3", "DRAM")
_tier = "L3"


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take: `samples` clean ones, or what `seconds` allow."""

    samples: int
    seconds: float


QUICK, FULL = Effort(9, 4.0), Effort(25, 20.0)


def cache_bytes(level: int) -> int:
    """Size of the L2 or L3 cache that the system reports; 1 or 64 MB where it reports none."""
    try:
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text().strip()
    except OSError:
        size = ""
    return int(size.rstrip("K")) * 1024 if size.endswith("K") else {2: 1_000_000, 3: 64_000_000}[level]


def tier_of(nbytes: float) -> str:
    """Tier of the smallest cache that holds so many bytes."""
    return "L2" if nbytes <= cache_bytes(2) else "L3" if nbytes <= cache_bytes(3) else "DRAM"


@contextlib.contextmanager
def memory(tier: str) -> Iterator[None]:
    """Let contestants that are made here have as many copies of their weights as fill a tier, one of TIERS."""
    global _tier
    before, _tier = _tier, tier
    try:
        yield
    finally:
        _tier = before


def rotated_bytes() -> int:
    """Memory that the weights of a contestant rotate through.

    L2: one copy of the weights. L3: 32 MB, or half of the L3 cache that the system reports. DRAM: 1.5 times that cache,
    at least 300 MB where a 32nd of the free memory is as much: a virtual machine may report less cache than there is.
    """
    if _tier == "L2":
        return 1
    if _tier == "L3":
        return min(32_000_000, cache_bytes(3) // 2)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(3 * cache_bytes(3) // 2, min(300_000_000, free // 32))


def copies(nbytes: int) -> int:
    """How many copies of a weight fill the tier: a layer of a real model does not find its weights in L2.

    Of a cache no more than fit, or a smaller weight would come from beyond the cache that a larger one is in.
    """
    fill = rotated_bytes() / max(nbytes, 1)
    return max(1, min(MAX_COPIES, math.ceil(fill) if _tier == "DRAM" else int(fill)))


class _Rotating:
    """Makes the next of the calls each time."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._turns = itertools.cycle(calls)
        self._warming = WARMING * len(calls) if _tier == "L3" else 1

    def __call__(self) -> object:
        return next(self._turns)()

    def warm(self) -> None:
        """Bring all copies into the L3 cache, where that is the tier: other contestants have used it since."""
        for _ in range(self._warming):
            self()


def rotating(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that makes the next of the calls each time."""
    return _Rotating(calls)


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
        """Median seconds of one call, over the clean samples where there are enough, else over all."""
        keep = slice(None) if self.disturbed(name, name) else self.clean[name]
        return float(np.median(self.seconds[name][keep]))

    def ratio(self, numerator: str, denominator: str) -> tuple[float, float, float]:
        """Median of the paired ratios of two contestants, and its 95 % interval.

        Turns in which one of them was disturbed are left out, unless fewer than six would remain.
        """
        both = self.clean[numerator] & self.clean[denominator]
        keep = np.ones_like(both) if self.disturbed(numerator, denominator) else both
        return ratio_interval(self.seconds[numerator][keep], self.seconds[denominator][keep])

    def disturbed(self, numerator: str, denominator: str) -> bool:
        """Whether too few turns were clean, so that the ratio includes waiting for other processes."""
        return int((self.clean[numerator] & self.clean[denominator]).sum()) < MIN_SAMPLES

    def best_peer(self, eligible: Iterable[str] | None = None) -> str:
        """Name of the fastest of the eligible contestants, by default of those that are not ours."""
        names = [name for name in self.seconds if not name.startswith(OURS)] if eligible is None else eligible
        return min(names, key=self.median)


class _Probe:
    """Tells whether the core runs at full speed, by a loop of a few microseconds, and whether it was taken away."""

    def __init__(self) -> None:
        self._best = min(_probe_seconds() for _ in range(20))
        self._switches = 0
        self._fast = True

    def start(self) -> None:
        self._fast = self._full_speed()
        self._switches = _switches()

    def clean(self) -> bool:
        """Whether nothing disturbed the process since `start`."""
        return self._switches == _switches() and self._fast and self._full_speed()

    def _full_speed(self) -> bool:
        seconds = min(_probe_seconds(), _probe_seconds())
        self._best = min(self._best, seconds)
        return seconds < 1.25 * self._best


def _probe_seconds() -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, 500):
        pass
    return time.perf_counter() - start


def _switches() -> int:
    """How often the system has taken a core away from one of our threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _block(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, repeats):
        call()
    return time.perf_counter() - start


def _repeats(seconds: float) -> int:
    return min(10_000, math.ceil(MIN_BLOCK_SECONDS / max(seconds, 1e-7)))


def _rest() -> None:
    """Wait until the threads of the library before have gone to sleep: some spin for longer than the pause."""
    own, start = str(threading.get_native_id()), time.perf_counter()
    time.sleep(PAUSE_SECONDS)
    while time.perf_counter() - start < LONGEST_PAUSE and any(
        _is_running(path) for path in Path("/proc/self/task").glob("*/stat") if path.parent.name != own
    ):
        time.sleep(PAUSE_SECONDS / 5)


def _is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # the thread has ended
        return False


def rough_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call, the best of three if short: enough to tell which peer is likely to be the one to beat."""
    seconds = _block(call, 1)
    return seconds if seconds > LONG_SECONDS else min(seconds, _block(call, 1), _block(call, 1))


def interleaved(contestants: Mapping[str, Callable[[], object]], effort: Effort) -> Times:
    """Time contestants in turns; the order is turned round for every second sample.

    A contestant's library is the first word of its name; between two libraries there is a pause.

    Parameters
    ----------
    contestants : dict of name to callable
        Samples are taken until enough of the first two are clean: these should be ours and the one to beat.
    effort : Effort

    Returns
    -------
    Times
    """
    rough = {name: rough_seconds(call) for name, call in contestants.items()}
    long = {name for name, each in rough.items() if each > LONG_SECONDS}
    turns = [(name, call, _repeats(rough[name])) for name, call in contestants.items()]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    clean: dict[str, list[bool]] = {name: [] for name in contestants}
    probe = _Probe()
    first_two = list(contestants)[:2]
    library, start, good, taken = "", time.perf_counter(), 0, 0
    while good < effort.samples and (taken < MIN_SAMPLES or time.perf_counter() - start < effort.seconds):
        for name, call, repeats in turns:
            if name.split()[0] != library:
                library = name.split()[0]
                _rest()
            if name not in long:
                call.warm() if isinstance(call, _Rotating) else call()
            probe.start()
            seconds[name].append(_block(call, repeats) / repeats)
            clean[name].append(probe.clean())
        turns.reverse()
        taken += 1
        good += all(clean[name][-1] for name in first_two)
    return Times(
        {name: np.array(values) for name, values in seconds.items()},
        {name: np.array(marks) for name, marks in clean.items()},
    )
