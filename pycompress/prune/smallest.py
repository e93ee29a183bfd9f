"""Find the weights with the smallest scores: exactly so many, or all up to a threshold."""

from __future__ import annotations

import math

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
    by_kernel = all(kernels_take(value, by_magnitude) for value in values)
    signed = not by_kernel and not by_magnitude and any(value.numel() and float(value.min()) < 0 for value in values)
    lowest = -math.inf if signed else 0.0
    values = [
        value.detach() if known is None else value.detach().masked_fill(known, lowest)
        for value, known in zip(values, already, strict=True)
    ]
    if by_kernel:
        return _by_kernel(values, already, count)
    joined = torch.cat([_keys(value, dtype, by_magnitude).reshape(-1) for value in values]).cpu().numpy()
    limit = float(np.partition(joined, count - 1)[count - 1])
    pruned, ties = [], []
    for value, known in zip(values, already, strict=True):
        keys = _keys(value, dtype, by_magnitude)
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


def _by_kernel(values: list[Tensor], already: list[Tensor | None], count: int) -> list[Tensor]:
    """Prune by magnitude: the weights are read as they lie, and neither joined nor copied."""
    limit = kernels.kth_magnitude([value.cpu() for value in values], count)
    found = [kernels.above(value.cpu(), limit) for value in values]
    pruned = [unmarked(kept.mask).to(value.device) for kept, value in zip(found, values, strict=True)]
    more = sum(kept.zeros for kept in found) - count
    # Of those that equal the limit, as many of the last ones are kept after all.
    below = float(np.nextafter(np.float32(limit), np.float32(0)))
    for value, known, kept, mask in reversed(list(zip(values, already, found, pruned, strict=True))):
        if not more:
            break
        if limit > 0 and kernels.above(value.cpu(), below, mask=False).zeros == kept.zeros:
            continue  # none equals it
        wider = wide(value)
        tied = (wider == limit) | (wider == -limit)
        last = (tied if known is None else tied & ~known).reshape(-1).nonzero()[-more:, 0]
        mask.view(-1)[last] = False
        more -= len(last)
    return pruned


def unmarked(mask: Tensor) -> Tensor:
    """Return where a mask of a kernel, -1 and 0, is 0, in its own memory.

    Examples
    --------
    >>> unmarked(torch.tensor([-1, 0], dtype=torch.int8))
    tensor([False,  True])
    """
    return mask.add_(1).view(torch.bool)


def kernels_take(value: Tensor, by_magnitude: bool) -> bool:
    """Whether kernels compare a weight or score, which they do by magnitude and in 32 bits.

    Examples
    --------
    >>> kernels_take(torch.tensor([1.0, -1.0]), True), kernels_take(torch.tensor([1.0, -1.0]), False)
    (True, False)
    """
    if value.dtype == torch.float64:
        return False
    return by_magnitude or not value.numel() or float(value.min()) >= 0


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


def _keys(value: Tensor, dtype: torch.dtype, by_magnitude: bool) -> Tensor:
    """What weights are compared by: the scores, or the magnitudes, in a dtype that holds all of them exactly."""
    return value.to(dtype).abs() if by_magnitude else value.to(dtype)


def up_to(value: Tensor, threshold: float, by_magnitude: bool, known: Tensor | None) -> Tensor:
    """Mask of the keys up to a threshold, compared exactly; and of what is pruned already.

    Examples
    --------
    >>> up_to(torch.tensor([0.5, -0.25]), 0.25, True, None)
    tensor([False,  True])
    """
    if by_magnitude and value.dtype != torch.float64:
        below = unmarked(kernels.above(value.detach().cpu(), threshold).mask).to(value.device)
        return below if known is None else below | known
    keys = wide(value).abs() if by_magnitude else wide(value)
    if keys.dtype == torch.float32:  # compare with the largest float32 that is not above the threshold
        limit = np.float32(threshold)
        threshold = float(np.nextafter(limit, np.float32(-1)) if float(limit) > threshold else limit)
    below = keys <= threshold
    return below if known is None else below | known
