"""Find which blocks of weights to prune, and which weights of an N:M pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import kernels
from ..scores.running import wide
from .patterns import NM, Blocks, Columns, Rows, as_matrix, block_of, block_sums, outside_n_of_m, spread
from .smallest import count_true, kernels_take, known_or_none, smallest, unmarked, up_to


def smallest_blocks(
    values: Sequence[Tensor],
    already: Sequence[Tensor | None],
    pattern: Blocks | Rows | Columns,
    by_magnitude: bool,
    count: int | None,
    threshold: float | None = None,
) -> list[Tensor]:
    """Return masks, True = pruned: those pruned already, and the blocks of the smallest mean scores.

    As many blocks as bring the pruned weights closest to ``count`` (of two ways, the fewer), or all whose mean is not
    above the threshold.

    Examples
    --------
    >>> scores = torch.tensor([[1.0, 1.0, 5.0], [1.0, 2.0, 0.0]])
    >>> smallest_blocks([scores], [None], Blocks(1, 2), False, count=3)[0].tolist()
    [[True, True, False], [False, False, True]]
    """
    blocks = [block_of(pattern, value) for value in values]
    means, sizes = [], []
    for value, known, block in zip(values, already, blocks, strict=True):
        mean, size = _means(value, known, block, by_magnitude)
        means.append(mean)
        sizes.append(size)
    if threshold is not None:
        chosen = [mean <= threshold for mean in means]
    else:
        assert count is not None
        before = sum(count_true(known) for known in already if known is not None)
        chosen = _nearest(means, sizes, count - before)
    pruned = []
    for value, known, block, taken in zip(values, already, blocks, chosen, strict=True):
        mask = spread(torch.from_numpy(taken).to(value.device), block, value.shape)
        pruned.append(mask if known is None else mask | known)
    return pruned


def smallest_of_nm(
    values: Sequence[Tensor],
    already: Sequence[Tensor | None],
    pattern: NM,
    by_magnitude: bool,
    count: int | None,
    threshold: float | None = None,
) -> list[Tensor]:
    """Return masks, True = pruned: those pruned already, and of what is outside N:M all, or the smallest, or up to t.

    Examples
    --------
    >>> scores = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    >>> smallest_of_nm([scores], [None], NM(2, 4), False, count=None)[0].tolist()
    [[False, True, False, True]]
    >>> smallest_of_nm([scores], [None], NM(2, 4), False, count=1)[0].tolist()
    [[False, True, False, False]]
    """
    outside = []
    for value, known in zip(values, already, strict=True):
        if kernels_take(value, by_magnitude):
            keys = value.detach() if known is None else value.detach().masked_fill(known, 0)
            kept = kernels.nm_mask(as_matrix(keys).cpu(), pattern.n, pattern.m)
            gone = unmarked(kept).to(value.device).reshape(value.shape)
        else:
            keys = wide(value).abs() if by_magnitude else wide(value)
            keys = keys if known is None else keys.masked_fill(known, -math.inf)
            gone = outside_n_of_m(as_matrix(keys), pattern).reshape(value.shape)
        outside.append(gone if known is None else gone | known)
    if threshold is not None:
        found = (up_to(value, threshold, by_magnitude, None) for value in values)
        return [
            known_or_none(value, known) | (below & gone)
            for value, known, below, gone in zip(values, already, found, outside, strict=True)
        ]
    if count is None or count >= sum(map(count_true, outside)):
        return outside
    inside = [wide(value).masked_fill(~gone, math.inf) for value, gone in zip(values, outside, strict=True)]
    return smallest(inside, list(already), count, by_magnitude)


def _means(
    value: Tensor, known: Tensor | None, block: tuple[int, int], by_magnitude: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean score of each block, and how many of its weights are not pruned yet; -inf where that is none."""
    keys = as_matrix(value.detach())
    rows, columns = keys.shape
    if known is not None:
        keys = keys.masked_fill(as_matrix(known), 0)
    heights = np.minimum(block[0], rows - np.arange(0, rows, block[0]))
    widths = np.minimum(block[1], columns - np.arange(0, columns, block[1]))
    sizes = heights[:, None] * widths
    if kernels_take(value, by_magnitude):
        sums = kernels.norms(keys.cpu(), block).l1
    else:
        sums = block_sums(wide(keys).abs() if by_magnitude else wide(keys), block).cpu()
    means = sums.numpy() / sizes
    if known is not None:
        left = sizes - block_sums(as_matrix(known).float(), block).cpu().numpy().astype(np.int64)
        return np.where(left == 0, -np.inf, means), left
    return means, sizes


def _nearest(means: list[NDArray[Any]], sizes: list[NDArray[Any]], missing: int) -> list[NDArray[np.bool_]]:
    """Take blocks in the order of their means and indices until the sum of their sizes is as near as it gets."""
    order = np.argsort(np.concatenate([mean.reshape(-1) for mean in means]), kind="stable")
    sums = np.cumsum(np.concatenate([size.reshape(-1) for size in sizes])[order])
    taken = int(np.searchsorted(sums, missing, side="right"))  # the most blocks that are not too many weights
    below = int(sums[taken - 1]) if taken else 0
    if taken < sums.size and int(sums[taken]) - missing < missing - below:
        taken += 1
    chosen = np.zeros(sums.size, np.bool_)
    chosen[order[:taken]] = True
    parts = np.split(chosen, np.cumsum([mean.size for mean in means])[:-1])
    return [part.reshape(mean.shape) for part, mean in zip(parts, means, strict=True)]
