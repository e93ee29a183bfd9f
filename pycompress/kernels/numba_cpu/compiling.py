"""How functions become machine code, and arrays their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile function when it is first called; the machine code is kept on disk where that is possible."""
    try:
        return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # neither __pycache__ nor a user's cache directory can be written
        return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy")(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy function into the kernels that use it: calling it for every sum would cost a fifth of the speed."""
    return cast("Callable[..., Any]", njit(inline="always", error_model="numpy")(function))


def as_input(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only, aligned view of a contiguous array (a copy where it is not aligned)."""
    view = np.require(array, requirements="A").view()
    view.flags.writeable = False
    return view


def function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile function for the kernels that call it; the compiler decides whether to inline it.

    A kernel kept on disk is not compiled again when a function of another file changes: after such a change remove
    `__pycache__`.
    """
    return cast("Callable[..., Any]", njit(error_model="numpy")(function))
