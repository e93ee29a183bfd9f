"""Find the weights with the smallest scores: exactly so many, or all up to a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..scores.running import wide


def smallest(values: list[Tensor], already: list[Tensor | None], count: int, by_magnitude: bool) -> list[Tensor]:
    """Return masks, True = pruned: those pruned already, and as many of the smallest others as make up the count.

    Examples
    --------
    >>> smallest([torch.tensor([3.0, -1.0, 2.0])], [None], 2, True)
    [tensor([False,  True,  True])]
    """
    missing = count - sum(count_true(known) for known in already if known is not None)
    if missing <= 0:
        return [known_or_none(value, known) for value, known in zip(values, already, strict=True)]
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    # What is pruned already counts as the smallest, so that nothing else is taken in its place.
    signed = not by_magnitude and any(value.numel() and float(value.min()) < 0 for value in values)
    lowest = -math.inf if signed else 0.0
    values = [
        value.detach() if known is None else value.detach().masked_fill(known, lowest)
        for value, known in zip(values, already, strict=True)
    ]
    key = _key(by_magnitude, dtype)
    limit = _kth(values, count, key, dtype, signed)
    pruned, ties = [], []
    for value, known in zip(values, already, strict=True):
        keys = key(value)
        below, tied = (keys < limit).contiguous(), keys == limit
        if known is not None:
            below |= known
            tied &= ~known
        pruned.append(below)
        ties.append(tied)
    missing = count - sum(map(count_true, pruned))
    for mask, tied in zip(pruned, ties, strict=True):
        first = tied.reshape(-1).nonzero()[:missing, 0] if missing else tied.new_empty(0, dtype=torch.int64)
        mask.view(-1)[first] = True
        missing -= len(first)
    return pruned


def known_or_none(value: Tensor, known: Tensor | None) -> Tensor:
    """Return what is pruned already, as a mask.

    Examples
    --------
    >>> known_or_none(torch.ones(2), None)
    tensor([False, False])
    """
    return torch.zeros(value.shape, dtype=torch.bool, device=value.device) if known is None else known


def count_true(mask: Tensor) -> int:
    """Count the True entries of a mask.

    Examples
    --------
    >>> count_true(torch.tensor([True, False]))
    1
    """
    return int(np.count_nonzero(mask.cpu().numpy()))


def _key(by_magnitude: bool, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What weights are compared by: the scores, or the magnitudes, in a dtype that holds all of them exactly."""
    if by_magnitude:
        return lambda value: value.to(dtype).abs()
    return lambda value: value.to(dtype)


def _kth(values: list[Tensor], k: int, key: Callable[[Tensor], Tensor], dtype: torch.dtype, signed: bool) -> float:
    """Return the exact k-th smallest key (from 1) over tensors; the float32 ones are not joined for it."""
    if dtype == torch.float32 and not signed:
        return kernels.kth_magnitude([value.cpu() for value in values], k)
    joined = torch.cat([key(value).reshape(-1) for value in values]).cpu().numpy()
    return float(np.partition(joined, k - 1)[k - 1])


def up_to(value: Tensor, threshold: float, by_magnitude: bool, known: Tensor | None) -> Tensor:
    """Mask of the keys up to a threshold, compared exactly; and of what is pruned already.

    Examples
    --------
    >>> up_to(torch.tensor([0.5, -0.25]), 0.25, True, None)
    tensor([False,  True])
    """
    keys = wide(value).abs() if by_magnitude else wide(value)
    if keys.dtype == torch.float32:  # compare with the largest float32 that is not above the threshold
        limit = np.float32(threshold)
        threshold = float(np.nextafter(limit, np.float32(-1)) if float(limit) > threshold else limit)
    below = keys <= threshold
    return below if known is None else below | known
