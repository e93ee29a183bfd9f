"""Checks of numbers that several functions take."""

from __future__ import annotations

import math
import numbers


def check_integer(value: object, name: str, low: int) -> None:
    """Raise TypeError or ValueError unless value is an int from ``low`` on.

    Examples
    --------
    >>> check_integer(0, "resamples", 1)
    Traceback (most recent call last):
        ...
    ValueError: resamples must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def check_between(value: object, name: str, low: float, high: float = math.inf) -> None:
    """Raise TypeError or ValueError unless value is a number between low and high, both excluded.

    Examples
    --------
    >>> check_between(95, "confidence", 0, 1)
    Traceback (most recent call last):
        ...
    ValueError: confidence must be between 0 and 1, got 95
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low < float(value) < high:
        rule = f"above {low:g} and finite" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {rule}, got {value}")
