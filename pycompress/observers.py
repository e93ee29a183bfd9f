"""Observers: which magnitude of a layer's inputs becomes the int8 127, found while calibration data runs through it.

An observer is a tiny frozen description; ``start()`` makes what sees the inputs of one layer, batch by batch, and keeps
none of them: a number, or a histogram of the magnitudes. ``limit()`` of that is the answer t; the layer's input scale
is ``t / 127`` and its int8 inputs are ``clamp(rint(x / scale), -127, 127)``.

The bins of the histogram have widths that are powers of two and begin at zero. When a larger magnitude comes, bins are
merged in pairs, so that the counts are exactly those of all inputs at once, however they are split into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .schedules import number

__all__ = ["MSE", "Entropy", "MinMax", "MovingAverage", "Percentile"]

BINS = 4096
"""At least half of them, 2048, are below the largest magnitude."""

_LEVELS = 128  # int8 magnitudes, 0 to 127
_TRIES, _FIRST_TRY = 256, 16  # below 16/256 of the largest magnitude a step of the grid is narrower than a bin
_LOWEST = -99  # inputs below 2^-100 count as zeros everywhere
_CHUNK = 2**20


class Magnitudes:
    """The largest magnitude of all inputs seen so far; NaN once there was one.

    Attributes
    ----------
    largest : float

    Examples
    --------
    >>> seen = Magnitudes()
    >>> seen.see(torch.tensor([1.0, -3.0]))
    >>> seen.limit()
    3.0
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def see(self, x: Tensor) -> None:
        """Take notice of one batch, of any shape; an empty one changes nothing."""
        if not x.numel():
            return
        magnitudes = x.detach().abs()
        found = float(magnitudes.amax())
        self.largest = found if found > self.largest or found != found else self.largest
        if math.isfinite(found):
            self._add(magnitudes, found)

    def limit(self) -> float:
        """Return the magnitude that 127 stands for, of finite inputs."""
        return self.largest

    def _add(self, magnitudes: Tensor, largest: float) -> None:
        """Take notice of magnitudes that are finite."""


class _Average(Magnitudes):
    """Moving average of the largest magnitude of each batch."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.average: float | None = None

    def limit(self) -> float:
        return self.average or 0.0

    def _add(self, magnitudes: Tensor, largest: float) -> None:
        before = largest if self.average is None else self.average
        self.average = before + (1 - self.momentum) * (largest - before)


class Histogram(Magnitudes):
    """Counts of magnitudes in bins of equal width that begin at zero.

    Attributes
    ----------
    counts : [BINS] int64
    zeros : int
        How many of the first bin are exactly zero.
    width : float
        Of a bin, a power of two.

    Examples
    --------
    >>> seen = Histogram(lambda histogram: histogram.largest)
    >>> seen.see(torch.tensor([0.0, 0.5, -1.0]))
    >>> seen.width * BINS, seen.counts.nonzero().flatten().tolist(), seen.zeros
    (2.0, [0, 1024, 2048], 1)
    """

    def __init__(self, choose: Callable[[Histogram], float]) -> None:
        super().__init__()
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.zeros = 0
        self._choose = choose
        self._exponent = _LOWEST  # the bins end at 2^exponent

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self._exponent) / BINS

    def limit(self) -> float:
        """Return the magnitude that 127 stands for, of finite inputs."""
        return self._choose(self)

    def _add(self, magnitudes: Tensor, largest: float) -> None:
        grown = math.frexp(largest)[1] - self._exponent
        if grown > 0:
            merged = 2 ** min(grown, BINS.bit_length() - 1)
            sums = self.counts.reshape(-1, merged).sum(1)
            self.counts = torch.cat([sums, sums.new_zeros(BINS - len(sums))])
            self._exponent += grown
        bins_per_unit = math.ldexp(float(BINS), -self._exponent)
        for part in torch.split(magnitudes.reshape(-1), _CHUNK):
            wide = part if part.dtype == torch.float64 else part.float()
            self.counts += torch.bincount((wide * bins_per_unit).long(), minlength=BINS).cpu()
            self.zeros += part.numel() - int(part.count_nonzero())


def _percentile(seen: Histogram, percent: float) -> float:
    needed = math.ceil(percent / 100 * int(seen.counts.sum()))
    if needed <= seen.zeros:
        return 0.0
    place = int(torch.searchsorted(seen.counts.cumsum(0), needed))
    return min((place + 1) * seen.width, seen.largest)


def _nonzero(seen: Histogram) -> NDArray[np.float64]:
    """Counts of the magnitudes that are not zero (which int8 holds exactly), up to the last bin with any."""
    counts = seen.counts.numpy().astype(np.float64)
    counts[0] -= seen.zeros
    found = np.flatnonzero(counts)
    return counts[: found[-1] + 1 if len(found) else 0]


def _best(seen: Histogram, cost: Callable[[NDArray[Any], int, float], float], counts: NDArray[Any]) -> float:
    """Return the limit of the least cost, the largest of equal ones."""
    best, least = seen.largest, math.inf
    for bins, limit in _tried(len(counts), seen):
        found = cost(counts, bins, limit)
        if found < least:
            best, least = limit, found
    return best


def _tried(used: int, seen: Histogram) -> Iterator[tuple[int, float]]:
    """Yield limits from the largest magnitude down, in bins and as numbers."""
    for k in range(_TRIES, _FIRST_TRY - 1, -1) if used else ():
        bins = -(-used * k // _TRIES)
        yield bins, min(bins * seen.width, seen.largest)


def _least_error(seen: Histogram) -> float:
    counts = _nonzero(seen)
    x = (np.arange(len(counts)) + 0.5) * seen.width

    def error(counts: NDArray[Any], bins: int, limit: float) -> float:
        scale = limit / (_LEVELS - 1)
        return float(counts @ (x - np.minimum(np.rint(x / scale), _LEVELS - 1) * scale) ** 2)

    return _best(seen, error, counts)


def _divergence(counts: NDArray[Any], bins: int, limit: float) -> float:
    if bins < _LEVELS:  # of magnitudes below 2^-100 alone
        return math.inf
    p = counts[:bins].copy()
    starts = -(-np.arange(_LEVELS) * bins // _LEVELS)
    sums = np.add.reduceat(p, starts)
    p[-1] += counts[bins:].sum()
    filled = p > 0
    share = sums / np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1)
    q = np.repeat(share, np.diff(starts, append=bins))[filled]
    p = p[filled] / p.sum()
    return float(p @ np.log(p * q.sum() / q)) if q.all() else math.inf


def _least_divergence(seen: Histogram) -> float:
    return _best(seen, _divergence, _nonzero(seen))


@dataclass(frozen=True)
class MinMax:
    """The largest magnitude: ``t = max |x|``. Nothing is clipped (Jacob et al. 2018, arXiv:1712.05877).

    Examples
    --------
    >>> seen = MinMax().start()
    >>> seen.see(torch.tensor([[0.5, -2.0]]))
    >>> seen.limit()
    2.0
    """

    def start(self) -> Magnitudes:
        """Return what sees the inputs of one layer."""
        return Magnitudes()


@dataclass(frozen=True)
class MovingAverage:
    """Moving average of the largest magnitude of each batch (Jacob et al. 2018, arXiv:1712.05877, section 3.1).

    ``t_1 = max |x_1|``, ``t_i = momentum * t_(i-1) + (1 - momentum) * max |x_i|``. It depends on the batches and their
    order: a rare outlier counts little, and the last batches count most.

    Parameters
    ----------
    momentum : float
        From 0 (the last batch alone) to below 1.

    Examples
    --------
    >>> seen = MovingAverage(momentum=0.5).start()
    >>> for largest in (2.0, 4.0):
    ...     seen.see(torch.tensor([0.0, -largest]))
    >>> seen.limit()
    3.0
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        number(self.momentum, "momentum", 0, 1, high_open=True)

    def start(self) -> Magnitudes:
        """Return what sees the inputs of one layer."""
        return _Average(self.momentum)


@dataclass(frozen=True)
class Percentile:
    """The magnitude that ``percent`` % of all do not exceed (Wu et al. 2020, arXiv:2004.09602, section 5.2).

    t is the upper edge of the histogram's bin in which the percentile lies (``max |x|`` where that is smaller): above
    the percentile itself by at most 1/2048 of ``max |x|``. Zeros count; where the percentile is zero, so is t.

    Parameters
    ----------
    percent : float
        Above 0, at most 100, which is :class:`MinMax`.

    Examples
    --------
    >>> seen = Percentile(75).start()
    >>> seen.see(torch.tensor([0.1, -0.2, 0.3, 4.0]))
    >>> 0.3 <= seen.limit() < 0.302
    True
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        number(self.percent, "percent", 0, 100, low_open=True)

    def start(self) -> Magnitudes:
        """Return what sees the inputs of one layer."""
        return Histogram(partial(_percentile, percent=self.percent))


@dataclass(frozen=True)
class MSE:
    """The least squared error of rounding and clipping together (Sung et al. 2015, arXiv:1511.06488).

    ``t = argmin sum (x - clamp(rint(x / s), -127, 127) * s)^2`` with ``s = t / 127``, over k/256 of the largest
    magnitude, k from 16 to 256, each rounded up to an edge of the histogram's bins, whose centres stand for x. Of equal
    ones the largest. (Banner et al. 2019, arXiv:1810.05723, find the same optimum from an assumed distribution.)

    Examples
    --------
    >>> seen = MSE().start()
    >>> seen.see(torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([2.0])]))
    >>> 1 < seen.limit() < 1.5
    True
    """

    def start(self) -> Magnitudes:
        """Return what sees the inputs of one layer."""
        return Histogram(_least_error)


@dataclass(frozen=True)
class Entropy:
    """The least information lost: ``t = argmin KL(P || Q)`` (Migacz 2017, "8-bit inference with TensorRT").

    P is the histogram of the magnitudes up to t, its last bin with all that lies beyond; Q is the same histogram
    without these, its bins joined to 128 groups of equal width, the levels of int8, each group's count spread evenly
    over those of its bins that P fills; both are normalised. Exact zeros, which int8 holds exactly, are left out. The
    limits t tried are those of :class:`MSE`.

    Examples
    --------
    >>> seen = Entropy().start()
    >>> x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    >>> seen.see(torch.cat([x, torch.tensor([40.0])]))
    >>> 3 < seen.limit() < 6
    True
    """

    def start(self) -> Magnitudes:
        """Return what sees the inputs of one layer."""
        return Histogram(_least_divergence)


Observer = MinMax | MovingAverage | Percentile | MSE | Entropy
"""What :func:`pycompress.quantize_` takes as ``observer``."""
