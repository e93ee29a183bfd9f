"""How long each module takes while its model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..progress import track
from ..timing import Clock
from .modules import hooked

_MIN_RUNS, _MAX_RUNS = 3, 200
_CALLS = 4  # of the model in one round: plain and watched, each once before it is timed


@dataclass(frozen=True)
class Times:
    """Median microseconds of a run.

    Attributes
    ----------
    plain, watched : float
        Of the model as it is, and while its modules are watched.
    own, total : dict of module to float
        Of the modules, without and with what runs inside them.
    runs : int
        Of each kind.

    Examples
    --------
    >>> Times(1.0, 1.5, {}, {}, 3).runs
    3
    """

    plain: float
    watched: float
    own: dict[nn.Module, float]
    total: dict[nn.Module, float]
    runs: int


def module_times(
    modules: Sequence[nn.Module], call: Callable[[], Callable[[], object]], seconds: float, clock: Clock, progress: bool
) -> Times:
    """Time a model as it is and with its modules watched, in turns.

    Hooks note when modules begin and end. They are taken away for the plain runs: they keep torch's encoder layers and
    chains of packed layers from running several modules in one call. Before each run that counts is one of its kind
    that does not, so that caches hold what it needs.

    Parameters
    ----------
    modules : sequence of Module
        The model first.
    call : callable
        Returns a function that runs the model once, on fresh inputs.
    seconds : float
        About how long to measure; at least 3 runs of each kind are timed, and at most 200.
    clock : callable
        Returns seconds.
    progress : bool

    Returns
    -------
    Times

    Examples
    --------
    >>> import time, torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> call = lambda: lambda: model(torch.ones(1, 2))
    >>> found = module_times(list(model.modules()), call, 0.01, time.perf_counter, False)
    >>> found.total[model] >= found.total[model[0]] >= 0, len(found.own)
    (True, 3)
    """
    watch = _Stopwatch(modules, clock)
    _seconds(call(), clock)  # a first call may compile, and says nothing about later ones
    once = _seconds(call(), clock)
    wanted = seconds / (_CALLS * once) if once > 0 else _MAX_RUNS
    runs = int(min(max(wanted, _MIN_RUNS), _MAX_RUNS))
    plain: list[float] = []
    own, total = np.empty((runs, len(modules))), np.empty((runs, len(modules)))
    for i in track(range(runs), "timing layers", progress):
        call()()
        plain.append(_seconds(call(), clock))
        with watch.watching():
            call()()
            function = call()
            watch.clear()
            function()
            own[i], total[i] = watch.own, watch.total
    return Times(
        float(np.median(plain)) * 1e6,
        float(np.median(total[:, 0])) * 1e6,
        dict(zip(modules, _medians(own), strict=True)),
        dict(zip(modules, _medians(total), strict=True)),
        runs,
    )


def _medians(samples: NDArray[np.float64]) -> list[float]:
    found: list[float] = (np.median(samples, axis=0) * 1e6).tolist()
    return found


def _seconds(function: Callable[[], object], clock: Clock) -> float:
    start = clock()
    function()
    return clock() - start


class _Stopwatch:
    """Adds up the seconds of modules, own and with what runs inside; of a module inside itself the outer call."""

    def __init__(self, modules: Sequence[nn.Module], clock: Clock) -> None:
        self.modules, self.clock = modules, clock
        self.own, self.total = [0.0] * len(modules), [0.0] * len(modules)
        self.depth = [0] * len(modules)
        self.running: list[list[float]] = []  # [start, seconds of what ran inside]

    def clear(self) -> None:
        self.own[:] = self.total[:] = [0.0] * len(self.modules)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for place, module in enumerate(self.modules):
                handles += hooked(module, *self.hooks(place))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hooks(self, place: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what is called before and after a module. Plain lists and closures: this is part of the times."""
        clock, running, own, total, depth = self.clock, self.running, self.own, self.total, self.depth

        def enter(module: Any, args: Any) -> None:
            depth[place] += 1
            running.append([clock(), 0.0])

        def leave(module: Any, args: Any, output: Any) -> None:
            end = clock()
            start, inside = running.pop()
            took = end - start
            own[place] += took - inside
            depth[place] -= 1
            if not depth[place]:
                total[place] += took
            if running:
                running[-1][1] += took

        return enter, leave
