"""Strides, dilations and paddings of convolutions as users write them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from . import arrays

Sizes = int | Sequence[int]
Padding = Literal["same", "valid"] | int | Sequence[int] | Sequence[tuple[int, int]]

LARGEST = 2**31 - 1


def each_side(value: object, name: str, sides: int, low: int) -> tuple[int, ...]:
    """One int for each spatial dimension."""
    if isinstance(value, (list, tuple)):
        if len(value) != sides:
            raise ValueError(f"{name} must be an int or {sides} ints, got {value!r}")
        return tuple(arrays.integer(n, name, low, LARGEST) for n in value)
    return (arrays.integer(value, name, low, LARGEST),) * sides


def borders(
    padding: object, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Zeros before and after, for each spatial dimension."""
    sides = len(kernel)
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * sides
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid' or numbers, got {padding!r}")
        if any(n != 1 for n in stride):
            raise ValueError(f"padding must be given as numbers with a stride of {stride}, got 'same'")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, (list, tuple)) and any(isinstance(pair, (list, tuple)) for pair in padding):
        if len(padding) != sides or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in padding):
            raise ValueError(f"padding must be {sides} pairs (before, after), got {padding!r}")
        ends = [tuple(arrays.integer(n, "padding", 0, LARGEST) for n in pair) for pair in padding]
        return tuple((before, after) for before, after in ends)
    return tuple((n, n) for n in each_side(padding, "padding", sides, 0))
