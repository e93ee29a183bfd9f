"""What this CPU can do at most, measured in the run that measures the contestants: multiplications and reading.

The limits of a level are those of the instruction that its kernels multiply with. Reading is measured on as many bytes
as the weights of the contestant rotate through, so that it comes from where the weights lie.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from pycompress import _native, kernels

SAME = {"avx512icl": "avx512vnni"}  # levels that multiply with the instructions of another
SAMPLES = 50  # the best of them, since a limit is what the CPU does undisturbed
SECONDS = 2e-3  # of a sample


@cache
def rate(limit: str, level: str, threads: int, nbytes: int = 4096) -> float | None:
    """Operations or bytes a second that a limit allows; None where the level has no probe of its own.

    Parameters
    ----------
    limit : "int8", "fp32" or "read"
    level : str
    threads : int
    nbytes : int
        To read, in a circle.
    """
    level = SAME.get(level, level)
    if level not in kernels.isa_levels() or level not in _native.kernels()["limits"]:
        return None
    data = np.ones(max(nbytes, 4096), np.uint8)

    def once(steps: int) -> tuple[float, float]:
        start = time.perf_counter()
        done = _native.limits(limit, data, steps, threads, level)
        return done, time.perf_counter() - start

    steps = 1
    while once(steps)[1] < SECONDS:
        steps *= 2
    best = max(done / seconds for done, seconds in (once(steps) for _ in range(SAMPLES)))
    return best or None


def seconds(work: tuple[float, float] | None, kind: str, level: str, nbytes: int, threads: int) -> float | None:
    """Seconds that the limits allow for some work; a call of ours takes longer.

    Parameters
    ----------
    work : (operations, bytes)
    kind : "int8" or "fp32"
        Of the operations.
    level : str
    nbytes : int
        That are rotated through.
    threads : int
    """
    if work is None:
        return None
    multiply = rate(kind, level, threads) if work[0] else np.inf
    read = rate("read", level, threads, nbytes)
    if multiply is None or read is None:
        return None
    return max(work[0] / multiply, work[1] / read)
