"""Which backends exist here and which one runs.

A backend is a module with the names of `reference`: `reference` (NumPy), `numba_cpu` and `native` (C++). Native
kernels exist at several instruction set levels. What is chosen here decides what `pack` picks; a packed weight keeps
its kernel.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

from . import arrays

BackendName = Literal["native", "numba", "reference"]

_MODULES = {"native": "native", "numba": "numba_cpu", "reference": "reference"}
_NEEDS = {"native": "pycompress._native", "numba": "numba", "reference": "numpy"}

_forced_backend: str | None = None
_forced_isa: str | None = None
_threads: int | None = None
_warned = False


def _exists(name: str) -> bool:
    return importlib.util.find_spec(_NEEDS[name]) is not None


def available_backends() -> list[str]:
    """Return the backends that exist here, the preferred one first.

    Examples
    --------
    >>> "reference" in available_backends()
    True
    """
    return [name for name in _MODULES if _exists(name)]


def backend_name() -> str:
    """Return the name of the backend that `pack` picks now.

    ``use_backend`` decides, else the environment variable ``PYCOMPRESS_BACKEND``, else the first of
    :func:`available_backends`.

    Raises
    ------
    ValueError
        When ``PYCOMPRESS_BACKEND`` names a backend that does not exist here.

    Examples
    --------
    >>> backend_name() in available_backends()
    True
    """
    global _warned
    name = _forced_backend or os.environ.get("PYCOMPRESS_BACKEND")
    if name:
        _check_backend(name, "PYCOMPRESS_BACKEND" if not _forced_backend else "name")
        return name
    name = available_backends()[0]
    if name != "native" and not _warned:
        _warned = True
        warnings.warn(
            f"pycompress was installed without its C++ kernels and runs on {name}; "
            "install it again with a C++17 compiler for full speed",
            RuntimeWarning,
            stacklevel=2,
        )
    return name


def backend() -> ModuleType:
    """Return the module of the backend that `pack` picks now."""
    return _module(backend_name())


def _module(name: str) -> ModuleType:
    # A built extension that fails to import is a fault that must be seen, so nothing is caught here.
    return importlib.import_module(f"pycompress.kernels.{_MODULES[name]}")


def _check_backend(name: object, argument: str) -> None:
    if not isinstance(name, str) or name not in _MODULES:
        raise ValueError(f"{argument} must be one of {sorted(_MODULES)}, got {name!r}")
    if not _exists(name):
        raise ValueError(f"{argument} must be a backend that exists here ({available_backends()}), got {name!r}")


@contextlib.contextmanager
def use_backend(name: BackendName) -> Iterator[None]:
    """Make `pack` and the other kernels use one backend, in the whole process.

    Parameters
    ----------
    name : "native", "numba" or "reference"

    Raises
    ------
    ValueError
        When there is no such backend here.

    Examples
    --------
    >>> with use_backend("reference"):
    ...     backend_name()
    'reference'
    """
    global _forced_backend
    _check_backend(name, "name")
    before, _forced_backend = _forced_backend, name
    try:
        yield
    finally:
        _forced_backend = before


def isa_levels() -> list[str]:
    """Return the instruction set levels that the native kernels have and this CPU runs, lowest first.

    Examples
    --------
    >>> isa_levels()[:1] in ([], ["scalar"])
    True
    """
    if not _exists("native"):
        return []
    levels: list[str] = _module("native").levels()
    return levels


def isa_name() -> str:
    """Return the level that native kernels are picked for.

    ``use_isa`` decides, else the environment variable ``PYCOMPRESS_ISA``, else the highest of :func:`isa_levels`.
    An operation without a version for that level runs the next lower one.

    Raises
    ------
    ValueError
        When ``PYCOMPRESS_ISA`` names a level that this CPU lacks, or the native kernels are not built.

    Examples
    --------
    >>> not isa_levels() or isa_name() in isa_levels()
    True
    """
    name = _forced_isa or os.environ.get("PYCOMPRESS_ISA")
    if name:
        _check_isa(name, "PYCOMPRESS_ISA" if not _forced_isa else "name")
        return name
    levels = isa_levels()
    if not levels:
        raise ValueError("isa_name needs the native kernels, which are not built here")
    return levels[-1]


def _check_isa(name: object, argument: str) -> None:
    if not isinstance(name, str) or name not in isa_levels():
        raise ValueError(f"{argument} must be a level that this CPU runs ({isa_levels()}), got {name!r}")


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Make `pack` and the other native kernels use one instruction set level, in the whole process.

    Parameters
    ----------
    name : str
        One of :func:`isa_levels`.

    Raises
    ------
    ValueError
        When this CPU lacks the level, or the native kernels are not built.

    Examples
    --------
    >>> for level in isa_levels()[:1]:
    ...     with use_isa(level):
    ...         assert isa_name() == level
    """
    global _forced_isa
    _check_isa(name, "name")
    before, _forced_isa = _forced_isa, name
    try:
        yield
    finally:
        _forced_isa = before


def set_num_threads(n: int | None) -> None:
    """Set the number of threads of every kernel call; None goes back to the defaults.

    By default calls on torch tensors use ``torch.get_num_threads()``; calls on NumPy arrays use
    ``PYCOMPRESS_NUM_THREADS``, else the smaller of the CPU affinity and the cgroup's CPU quota.

    Parameters
    ----------
    n : int or None
        1 or more.

    Raises
    ------
    TypeError, ValueError
        When ``n`` is not a positive int.

    Examples
    --------
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(None)
    """
    global _threads
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int or None, got {type(n).__name__}")
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
    _threads = n


def get_num_threads(for_torch: bool = False) -> int:
    """Return the number of threads that a kernel call uses.

    Parameters
    ----------
    for_torch : bool
        Whether for a call on torch tensors.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    if _threads is not None:
        return _threads
    if for_torch:
        return int(sys.modules["torch"].get_num_threads())
    return _default_threads()


_cached_default: tuple[object, int] | None = None

# What os.environ holds, by its own coded names: looking there takes 0.05 us, os.environ itself 0.8, for every call.
_variables: Any = getattr(os.environ, "_data", os.environ)
_NUM_THREADS: Any = (
    os.environ.encodekey("PYCOMPRESS_NUM_THREADS") if hasattr(os.environ, "_data") else "PYCOMPRESS_NUM_THREADS"
)


def _default_threads() -> int:
    global _cached_default
    coded = _variables.get(_NUM_THREADS)
    if _cached_default is None or _cached_default[0] != coded:
        setting = os.environ.get("PYCOMPRESS_NUM_THREADS")
        if setting is None:
            threads = min(_affinity(), _quota())
        elif setting.isdecimal() and int(setting) > 0:
            threads = int(setting)
        else:
            raise ValueError(f"PYCOMPRESS_NUM_THREADS must be a positive integer, got {setting!r}")
        _cached_default = coded, threads
    return _cached_default[1]


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> int:
    """CPUs that the cgroup (version 2) allows, rounded up; many when unlimited."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else max(1, -(-int(quota) // int(period)))


def kernel_name(module: ModuleType, state: object) -> str:
    """Name of the kernel that multiplies with a packed state, such as "native/avx2"."""
    name = next(key for key, value in _MODULES.items() if module.__name__.endswith(f".{value}"))
    level = getattr(state, "level", None)
    return name if level is None else f"{name}/{level}"


def threads_for(x: object) -> int:
    """Return the number of threads of a call on x, an array or a tensor."""
    return get_num_threads(for_torch=arrays.is_tensor(x))
