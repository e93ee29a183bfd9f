"""What every benchmark is made of: implementations of the same work, checked before they are timed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

EXACT, HALF, EIGHT_BITS = 1e-4, 0.05, 0.25
"""Largest error that counts as right, in units of the root mean square of the output: 24, 8 and 7 or 8 bits."""


@dataclass(frozen=True)
class Contestant:
    """One implementation of the work.

    Attributes
    ----------
    copies : list of functions of the prepared input
        Each has a weight of its own in memory.
    tolerance : float
        Largest error, in units of the root mean square of the right output.
    prepare : function of the input, a float32 tensor
        Makes what the library takes, before the timing.
    finish : function of the output
        Makes it an array of the right output's shape.
    """

    copies: list[Callable[[Any], Any]]
    tolerance: float
    prepare: Callable[[Tensor], Any] = lambda x: x
    finish: Callable[[Any], Any] = lambda y: y


@dataclass(frozen=True)
class Point:
    """One line of a table: the same work by several contestants, ready to be timed.

    Attributes
    ----------
    shape : list
    rows : int or None
        The batch.
    level : str
        Of our kernel.
    format : str
    calls : dict of name to function without arguments
        Ours and the peers.
    eligible : tuple of str
        The peers that the ratio may be over: the fastest of them is the baseline.
    work : (float, float)
        Operations (a multiplication and an addition are two) and bytes that one call of ours must move.
    nbytes : int
        Bytes that our copies rotate through.
    kind : "int8" or "fp32"
        What the operations multiply.
    goal : float or None
        The ratio to reach, where it is not that of the operation.
    """

    shape: list[Any]
    rows: int | None
    level: str
    format: str
    calls: Mapping[str, Callable[[], object]]
    eligible: tuple[str, ...]
    work: tuple[float, float] | None = None
    nbytes: int = 0
    kind: str = "int8"
    goal: float | None = None


def checked_calls(
    contestants: Mapping[str, Contestant],
    x: Tensor,
    right: NDArray[np.float64],
    names: Iterable[str] | None = None,
    *,
    lenient: bool = False,
) -> dict[str, Callable[[], object]]:
    """Return what is timed, of all contestants or some; the first and the last copy of each are checked first.

    A wrong result is an error; with `lenient`, a peer that is wrong or fails is named on stderr and left out.
    """
    calls: dict[str, Callable[[], object]] = {}
    for name in contestants if names is None else names:
        contestant = contestants[name]
        given = contestant.prepare(x)
        try:
            for copy in (contestant.copies[0], contestant.copies[-1]):
                check(name, contestant.finish(copy(given)), right, contestant.tolerance)
        except (AssertionError, RuntimeError) as error:
            if not lenient or name == measure.OURS:
                raise
            print(f"left out: {name}, {tuple(x.shape)}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        calls[name] = measure.rotating([partial(copy, given) for copy in contestant.copies])
    return calls


def check(name: str, got: Any, right: NDArray[np.float64], tolerance: float) -> None:
    """Refuse a result that is further from the right one than `tolerance` root mean squares."""
    array = got.float().numpy() if isinstance(got, Tensor) else np.asarray(got)
    if array.shape != right.shape:
        raise AssertionError(f"{name} must return {right.shape}, got {array.shape}")
    error = float(np.abs(array - right).max() / np.sqrt(np.square(right).mean()))
    if not error <= tolerance:
        raise AssertionError(
            f"{name} must be right within {tolerance:g} of the output's size, got an error of {error:g}"
        )


def installed(module: str) -> bool:
    """Whether a peer's library is there."""
    return importlib.util.find_spec(module) is not None


def many(nbytes: int, make: Callable[[], Callable[[Any], Any]]) -> list[Callable[[Any], Any]]:
    """Make as many copies as the memory tier asks for."""
    return [make() for _ in range(measure.copies(nbytes))]
