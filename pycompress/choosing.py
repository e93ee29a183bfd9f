"""Whether packed layers are faster in the place of dense ones: measured, never assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .layers import LayerDecision, PackedLayer
from .linears import joined
from .timing import Clock, compare


def fastest(
    dense: list[nn.Module], modules: list[PackedLayer], inputs: list[Any], decision: LayerDecision, clock: Clock
) -> tuple[PackedLayer | None, LayerDecision]:
    """Time packed layers against what they stand for; return the one with the best lower end that is above 1, or None.

    Parameters
    ----------
    dense : list of Module
        A layer, and what runs behind it that the packed layers compute too.
    modules : list of PackedLayer
        Is sorted: the best first.
    inputs : list of tensors, or of tuples of all that the layer takes
    decision : LayerDecision
        What is known so far; its rows are those of the inputs.
    clock : callable

    Returns
    -------
    (PackedLayer or None, LayerDecision)
        The decision tells the times and why.

    Examples
    --------
    >>> fastest([nn.Tanh()], [], [], LayerDecision("fc", "Linear", rows=0), lambda: 0.0)[1].reason
    'example_inputs give it no rows'
    """
    if not decision.rows:
        return None, replace(decision, reason=joined("example_inputs give it no rows", decision.reason))
    tail = [nn.Identity().eval() for _ in dense[1:]]
    with torch.no_grad():
        speedups = compare(_calls(dense, inputs), [_calls([module, *tail], inputs) for module in modules], clock=clock)
    best = max(range(len(modules)), key=lambda i: speedups[i].low)
    speedup = speedups[best]
    modules[:] = [module for _, module in sorted(zip(speedups, modules, strict=True), key=lambda pair: -pair[0].low)]
    tried = " and ".join(dict.fromkeys(type(module.format).__name__ for module in modules))
    timed = replace(
        decision,
        dense_us=speedup.baseline_seconds * 1e6,
        packed_us=speedup.seconds * 1e6,
        speedup=speedup.median,
        low=speedup.low,
        high=speedup.high,
        reason=joined("faster" if speedup.low > 1 else f"{tried} not faster", decision.reason),
    )
    return (modules[0] if speedup.low > 1 else None), timed


def _calls(chain: list[nn.Module], inputs: list[Any]) -> Callable[[], None]:
    def call() -> None:
        for x in inputs:
            for module in chain:
                x = module(*x) if type(x) is tuple else module(x)

    return call
