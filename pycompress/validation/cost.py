"""What models cost: bytes on disk, parameters, latency side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import kernels
from ..data import Tree, forward, length, pick
from ..timing import Clock, paired_times, ratio_interval
from .arguments import check_between, check_integer
from .bootstrap import Interval
from .predictions import evaluating

_MIN_SAMPLES, _MAX_SAMPLES = 20, 1000


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of two models, taken in turns with the same number of threads.

    Attributes
    ----------
    batch : int
        Items in the input.
    threads : int
    samples : int
        Calls timed for each model.
    original_p50_ms, original_p90_ms, compressed_p50_ms, compressed_p90_ms : float
        Median and 90th percentile of single calls, in milliseconds.
    speedup : float
        Median of the paired ratios original / compressed.
    speedup_interval : (float, float)
        Its distribution-free 95 % interval.

    Examples
    --------
    >>> Latency(1, 2, 100, 0.2, 0.3, 0.1, 0.15, speedup=2.0, speedup_interval=(1.9, 2.1)).speedup
    2.0
    """

    batch: int
    threads: int
    samples: int
    original_p50_ms: float
    original_p90_ms: float
    compressed_p50_ms: float
    compressed_p90_ms: float
    speedup: float
    speedup_interval: Interval


@dataclass(frozen=True)
class Cost:
    """What two models cost.

    Attributes
    ----------
    original_bytes, compressed_bytes : int
        Size of the files that :func:`pycompress.save` writes.
    original_parameters, compressed_parameters : int
        Numbers that the layers stand for, pruned ones included.
    latency : tuple of Latency
        One for each batch size; empty when not measured.

    Examples
    --------
    >>> Cost(1000, 100, 250, 250).size_ratio
    10.0
    """

    original_bytes: int
    compressed_bytes: int
    original_parameters: int
    compressed_parameters: int
    latency: tuple[Latency, ...] = ()

    @property
    def size_ratio(self) -> float:
        """How many times smaller the compressed file is."""
        return self.original_bytes / self.compressed_bytes

    def side(self, name: str) -> dict[str, Any]:
        """Return what one model costs, for JSON; name is "original" or "compressed"."""
        return {
            "bytes": getattr(self, f"{name}_bytes"),
            "parameters": getattr(self, f"{name}_parameters"),
            "latency_ms": {
                str(row.batch): {"p50": getattr(row, f"{name}_p50_ms"), "p90": getattr(row, f"{name}_p90_ms")}
                for row in self.latency
            },
        }


def measure_cost(original: nn.Module, compressed: nn.Module, latency: tuple[Latency, ...] = ()) -> Cost:
    """Return bytes on disk and parameters of two models.

    Parameters
    ----------
    original, compressed : torch.nn.Module
    latency : tuple of Latency
        From :func:`measure_latency`.

    Returns
    -------
    Cost

    Examples
    --------
    >>> measure_cost(nn.Linear(8, 8), nn.Linear(8, 4)).compressed_parameters
    36
    """
    return Cost(
        _stored_bytes(original, "original"),
        _stored_bytes(compressed, "compressed"),
        count_parameters(original),
        count_parameters(compressed),
        latency,
    )


def _stored_bytes(model: nn.Module, name: str) -> int:
    from ..artifact import stored_bytes

    try:
        return stored_bytes(model)
    except (TypeError, ValueError) as error:
        error.add_note(f"This is the {name} model of the comparison: its size on disk is part of the verdict.")
        raise


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters; those that are shared once, those of packed layers as the dense layer has them.

    Examples
    --------
    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    packed = {id(part): part for module in model.modules() for part in packed_parts(module)}
    count = sum(parameter.numel() for parameter in model.parameters())
    return count + sum(stored(part).parameters for part in packed.values())


@dataclass(frozen=True)
class Stored:
    """What a tensor or a packed weight holds.

    Attributes
    ----------
    parameters : int
        Numbers, zeros included.
    nonzero : int
    bytes : int
        In memory.
    weights, zeros : int
        Numbers in arrays of two or more dimensions, and zeros among them.

    Examples
    --------
    >>> Stored(4, 3, 16).nonzero
    3
    """

    parameters: int
    nonzero: int
    bytes: int
    weights: int = 0
    zeros: int = 0


def packed_parts(module: nn.Module) -> tuple[Any, ...]:
    """Return the packed weights that a module itself holds; () of a layer that is not packed.

    Examples
    --------
    >>> packed_parts(nn.Linear(3, 2))
    ()
    """
    packed = module.__dict__.get("packed")
    parts = packed if isinstance(packed, tuple) else (packed,)
    return tuple(part for part in parts if hasattr(part, "nbytes") and hasattr(part, "kernel"))


def stored(weight: Any) -> Stored:
    """Count what a tensor, or a packed weight (with its bias), holds.

    Examples
    --------
    >>> stored(torch.tensor([[1.0, 0.0]]))
    Stored(parameters=2, nonzero=1, bytes=8, weights=2, zeros=1)
    >>> from pycompress.formats import Int8
    >>> stored(kernels.pack(torch.eye(4), Int8(), bias=torch.ones(4))).parameters
    20
    """
    if isinstance(weight, torch.Tensor):
        values = weight.detach()
        count, nonzero = values.numel(), int(values.count_nonzero())
        matrix = (count, count - nonzero) if values.ndim > 1 else (0, 0)
        return Stored(count, nonzero, count * values.element_size(), *matrix)
    if isinstance(weight, kernels.PackedRecurrent):
        arrays = [array for name, array in weight.canonical().items() if not name.startswith("scale")]
    else:
        integers = np.asarray(weight.canonical_weight())
        arrays = [integers] if weight.bias is None else [integers, weight.bias]
        if (zero_point := getattr(weight, "zero_point", None)) is not None:  # where zero is another integer
            group = weight.format.group
            arrays[0] = integers != np.repeat(zero_point, group, axis=1)[:, : integers.shape[1]]
    counts = [(array.size, int(np.count_nonzero(array)), array.ndim > 1) for array in arrays]
    return Stored(
        sum(size for size, _, _ in counts),
        sum(nonzero for _, nonzero, _ in counts),
        int(weight.nbytes),
        sum(size for size, _, matrix in counts if matrix),
        sum(size - nonzero for size, nonzero, matrix in counts if matrix),
    )


def measure_latency(
    original: nn.Module,
    compressed: nn.Module,
    inputs: Tree,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
) -> tuple[Latency, ...]:
    """Time two models in turns, in eval mode and with the same number of threads.

    Single calls are timed, the two models' calls next to each other, each after one untimed call. The threads are those
    of :func:`torch.get_num_threads`, or what :func:`pycompress.kernels.set_num_threads` was told.

    Parameters
    ----------
    original, compressed : torch.nn.Module
    inputs : tensor, tuple or dict of tensors
        Example inputs; items are repeated where a batch needs more.
    batch_sizes : sequence of int
        Positive.
    seconds : float
        About how long to measure for each batch size; at least 20 and at most 1000 calls of each model are timed.
    clock : callable
        Returns seconds.

    Returns
    -------
    tuple of Latency
        One for each batch size.

    Raises
    ------
    ValueError
        When a batch size is below 1, seconds is not positive and finite, or the clock stands still.

    Examples
    --------
    >>> [row] = measure_latency(nn.Linear(4, 4), nn.Linear(4, 4), torch.zeros(1, 4), batch_sizes=[8], seconds=0.01)
    >>> row.batch, row.samples >= 20
    (8, True)
    """
    for size in batch_sizes:
        check_integer(size, "batch_sizes", 1)
    check_between(seconds, "seconds", 0)
    threads, own_threads = kernels.get_num_threads(for_torch=True), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with evaluating(original, compressed), torch.inference_mode():
            return tuple(_latency(original, compressed, inputs, size, threads, seconds, clock) for size in batch_sizes)
    finally:
        torch.set_num_threads(own_threads)


def _latency(
    original: nn.Module, compressed: nn.Module, inputs: Tree, batch: int, threads: int, seconds: float, clock: Clock
) -> Latency:
    rows = pick(inputs, torch.arange(batch) % length(inputs))
    calls = [lambda: forward(original, rows), lambda: forward(compressed, rows)]
    first = paired_times(calls, samples=3, min_block_seconds=0.0, clock=clock)
    round_seconds = 2 * float(np.median(first, axis=1).sum())
    wanted = _MAX_SAMPLES if round_seconds <= 0 else int(min(seconds / round_seconds, _MAX_SAMPLES))
    times = paired_times(calls, samples=max(wanted, _MIN_SAMPLES), min_block_seconds=0.0, clock=clock)
    speedup, low, high = ratio_interval(times[0], times[1])
    (p50, compressed_p50), (p90, compressed_p90) = np.quantile(times * 1e3, [0.5, 0.9], axis=1).tolist()
    return Latency(batch, threads, times.shape[1], p50, p90, compressed_p50, compressed_p90, speedup, (low, high))
