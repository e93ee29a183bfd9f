"""Python threads that share the work of kernels which release the GIL."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_CHUNK_NS = 250_000  # worth one call; less work than this stays in one thread

_pool: ThreadPoolExecutor | None = None


def run(kernel: Callable[..., Any], count: int, item_ns: float, threads: int, *arguments: Any) -> None:
    """Call ``kernel(*arguments, first, last)`` over chunks of [0, count).

    The caller works too, and never waits for a helper that has not begun. Ctrl-C is seen between two chunks.

    Parameters
    ----------
    kernel : callable
        Must give the same results however the range is cut.
    count : int
        Number of items.
    item_ns : float
        About how many nanoseconds an item takes.
    threads : int
        At most so many threads work, and not more than this machine has CPUs.
    arguments
        Passed on.

    Raises
    ------
    Exception
        Whatever the kernel raises.

    Examples
    --------
    >>> seen = []
    >>> run(lambda first, last: seen.extend(range(first, last)), 5, item_ns=1e5, threads=2)
    >>> sorted(seen)
    [0, 1, 2, 3, 4]
    """
    size = max(1, int(_CHUNK_NS / item_ns))
    starts = iter(range(0, count, size))  # taking the next one is atomic

    def work() -> None:
        try:
            for start in starts:
                kernel(*arguments, start, min(start + size, count))
        except BaseException:
            collections.deque(starts, maxlen=0)  # no further chunk is begun, by any thread
            raise

    helpers = [_executor().submit(work) for _ in range(min(threads, -(-count // size)) - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, "pycompress")
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # the parent's threads don't exist in the child
