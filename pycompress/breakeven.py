"""From which share of zeros on an int8 weight is worth its sparse kernel: measured on this CPU, or shipped defaults.

``pycompress calibrate`` times sparse int8 weights against dense ones and writes what it found into a file of the user's
cache folder, one for each instruction set level. ``pack`` asks this module what is worth trying, and measures that. So
a wrong or missing entry costs a few milliseconds or a faster layer that is not found, never a wrong choice.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .formats import BLOCKS, Int8, Sparse
from .progress import track
from .timing import Clock, compare

VERSION = 1
SHAPES = ((768, 768), (4096, 4096))
ROWS = (1, 4, 16, 128)
_MEASURED = ((1, 1), (16, 4), (32, 4))  # 32x64 has the kernel of 32x4
_ZEROS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_MARGIN = 0.1  # what is that close below the break-even is tried too
_NEVER = 2.0


@dataclass(frozen=True)
class BreakEven:
    """Where a sparse int8 weight begins to be faster than the dense one.

    Attributes
    ----------
    out_features, in_features, rows : int
        What was timed.
    block : (int, int)
        (1, 1): weights, else outputs x inputs that are zero together.
    zeros : float
        Fraction of zero weights or blocks from which on it is faster; above 1: never.

    Examples
    --------
    >>> BreakEven(768, 768, 1, (16, 4), 0.3).zeros
    0.3
    """

    out_features: int
    in_features: int
    rows: int
    block: tuple[int, int]
    zeros: float


def _defaults(blocks: Sequence[float], single: Sequence[float]) -> list[BreakEven]:
    found = []
    for block, zeros in (((16, 4), blocks), ((32, 4), blocks), ((1, 1), single)):
        found += [BreakEven(1024, 1024, rows, block, z) for rows, z in zip(ROWS, zeros, strict=True)]
    return found


_NO_BITMAP = (_NEVER,) * len(ROWS)
DEFAULTS: dict[str, list[BreakEven]] = {
    "scalar": _defaults((0.3, 0.3, 0.3, 0.3), _NO_BITMAP),
    "avx2": _defaults((0.3, 0.3, 0.3, 0.3), _NO_BITMAP),
    "avxvnni": _defaults((0.3, 0.3, 0.3, 0.3), _NO_BITMAP),
    "avx512": _defaults((0.3, 0.3, 0.3, 0.3), _NO_BITMAP),
    "avx512vnni": _defaults((0.3, 0.4, 0.3, 0.3), _NO_BITMAP),
    "avx512icl": _defaults((0.3, 0.4, 0.3, 0.3), (0.5, 0.5, 0.5, 0.5)),
    "amx": _defaults((0.3, 0.3, 0.4, 0.55), (0.5, 0.5, 0.5, 0.85)),  # of a prototype
    "numba": _defaults((0.5, 0.5, 0.5, 0.5), _NO_BITMAP),
}
"""What is assumed of a level that was not measured; the lists of other levels are that of "scalar"."""


def level() -> str:
    """Return what break-evens belong to: the instruction set level, or the backend where that is not native.

    Examples
    --------
    >>> level() in DEFAULTS or level() in ("neon", "neondot", "i8mm", "reference")
    True
    """
    return kernels.isa_name() if kernels.backend_name() == "native" else kernels.backend_name()


def cache_file() -> Path:
    """Return where the measured break-evens of this level are kept.

    ``PYCOMPRESS_CACHE`` names the folder; without it, it is ``pycompress`` in the user's cache folder.

    Examples
    --------
    >>> cache_file().suffix
    '.json'
    """
    own = os.environ.get("PYCOMPRESS_CACHE")
    if own:
        folder = Path(own)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "pycompress"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycompress"
    return folder / f"breakeven-{level()}.json"


def break_evens() -> list[BreakEven]:
    """Return what was measured for this level, or its defaults where nothing was or the file is not usable.

    A file that is there but broken is told by a warning.

    Examples
    --------
    >>> {each.block for each in break_evens()} >= {(16, 4)}
    True
    """
    path = cache_file()
    try:
        return _parsed(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        warnings.warn(
            f"{path} is not used: {type(error).__name__}: {error}; `pycompress calibrate` writes it anew", stacklevel=2
        )
    return DEFAULTS.get(level(), DEFAULTS["scalar"])


def _parsed(found: Any) -> list[BreakEven]:
    if not isinstance(found, dict) or found.get("version") != VERSION or found.get("level") != level():
        raise ValueError(f"it must be of version {VERSION} and level {level()}")
    entries = []
    for entry in found["entries"]:
        out, inputs, rows = sizes = [entry[name] for name in ("out_features", "in_features", "rows")]
        block, zeros = tuple(entry["block"]), entry["zeros"]
        if not all(type(size) is int and 0 < size < 1 << 40 for size in sizes) or block not in BLOCKS[Int8]:
            raise ValueError(f"it holds {entry!r:.200}")
        if not isinstance(zeros, (int, float)) or not 0 <= zeros <= _NEVER:
            raise ValueError(f"it holds {entry!r:.200}")
        entries.append(BreakEven(out, inputs, rows, block, float(zeros)))
    if not entries:
        raise ValueError("it holds no entry")
    return entries


def write(entries: Sequence[BreakEven]) -> Path:
    """Keep measured break-evens in :func:`cache_file`, which is replaced as a whole; return its path.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"version": VERSION, "level": level(), "entries": [asdict(each) for each in entries]}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(held, indent=1), "utf-8")
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return path


def measure(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    *,
    clock: Clock = time.perf_counter,
) -> list[BreakEven]:
    """Find the break-evens of this level by timing sparse int8 weights against dense ones.

    Per shape, block and number of rows the smallest share of zeros of a short list is searched, by halving, whose
    95 % interval of the speedup lies above 1. About a minute.

    Parameters
    ----------
    shapes : sequence of (out_features, in_features)
    rows : sequence of int
    clock : callable
        Returns seconds.

    Returns
    -------
    list of BreakEven

    Examples
    --------
    >>> [found] = {each.zeros <= 2 for each in measure([(16, 16)], [1])}
    >>> found
    True
    """
    entries = []
    problems = [(shape, block, count) for shape in shapes for block in _MEASURED for count in rows]
    rng = np.random.default_rng(0)
    for (out, inputs), block, count in track(problems, "calibrating"):
        x = rng.standard_normal((count, inputs), dtype=np.float32)
        low, high = 0, len(_ZEROS)
        while low < high:
            middle = (low + high) // 2
            if _faster(_random(rng, (out, inputs), block, _ZEROS[middle]), block, x, clock):
                high = middle
            else:
                low = middle + 1
        entries.append(BreakEven(out, inputs, count, block, _ZEROS[low] if low < len(_ZEROS) else _NEVER))
    return entries


def _random(rng: np.random.Generator, shape: tuple[int, int], block: tuple[int, int], zeros: float) -> NDArray[np.int8]:
    kept = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) >= zeros
    mask = np.kron(kept, np.ones(block, bool))[: shape[0], : shape[1]]
    return np.where(mask, rng.integers(1, 128, shape), 0).astype(np.int8)


def _faster(weight: NDArray[np.int8], block: tuple[int, int], x: NDArray[np.float32], clock: Clock) -> bool:
    dense, sparse = (kernels.pack(weight, format, scale=1.0) for format in (Int8(), Sparse(block, Int8())))
    [speedup] = compare(lambda: kernels.linear(x, dense), [lambda: kernels.linear(x, sparse)], clock=clock)
    return speedup.low > 1


def int8_block(integers: NDArray[np.int8]) -> tuple[tuple[int, int], float]:
    """Return the block that the zeros of an int8 weight [out, in] come in, and the fraction of such blocks.

    Examples
    --------
    >>> weight = np.zeros((64, 64), np.int8)
    >>> weight[:32] = 1
    >>> int8_block(weight)
    ((32, 64), 0.5)
    """
    block = kernels.find_block(integers, Int8())
    return block, _zero_blocks(integers, block)


def _zero_blocks(integers: NDArray[np.int8], block: tuple[int, int]) -> float:
    (out, inputs), (height, width) = integers.shape, block
    padded = np.zeros((-(-out // height) * height, -(-inputs // width) * width), bool)
    if not padded.size:
        return 0.0
    padded[:out, :inputs] = integers != 0
    kept = padded.reshape(-1, height, padded.shape[1] // width, width).any(axis=(1, 3))
    return 1.0 - int(np.count_nonzero(kept)) / kept.size


def worth_trying(integers: NDArray[np.int8], rows: int) -> Sparse | None:
    """Return the sparse format that may be faster than Int8 for a weight [out, in] and a number of rows, or None.

    The entry of this level with the nearest sizes decides, with a margin of 0.1.

    Examples
    --------
    >>> worth_trying(np.ones((64, 64), np.int8), rows=1) is None
    True
    """
    block, zeros = int8_block(integers)
    same = (32, 4) if block == (32, 64) else block
    entries = [each for each in break_evens() if each.block == same]
    if not entries or zeros == 0:
        return None

    def distance(each: BreakEven) -> float:
        size = each.out_features * each.in_features / max(1, integers.size)
        return abs(math.log2(size)) / 2 + abs(math.log2(each.rows / max(1, rows)))

    nearest = min(entries, key=distance)
    return Sparse(block, Int8()) if zeros >= nearest.zeros - _MARGIN else None
