"""The way of all outputs through the graph of a model."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx

from . import rules
from .call import MIXES, Call, Labels, Rule, tensors_of, unlabelled_like
from .labels import NONE, Coupling, Stack, varying
from .operations import HARMLESS_NUMBERS, ITEM
from .sizes import settle
from .tracing import Seen, Trace


def follow(traced: Trace) -> tuple[Coupling, dict[fx.Node, Labels]]:
    """Follow the outputs of all layers through a graph.

    Parameters
    ----------
    traced : Trace

    Returns
    -------
    Coupling
    dict of node to labels
        Of each tensor, and of each tuple of tensors.

    Examples
    --------
    >>> from torch import nn
    >>> from .tracing import trace
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 3, 1))
    >>> coupling, labels = follow(trace(model, torch.zeros(1, 1, 1, 3)))
    >>> coupling.outputs["0"], coupling.inputs["2"]
    (tensor([0, 1]), tensor([0, 0, 0, 1, 1, 1]))
    """
    coupling = Coupling()
    labels: dict[fx.Node, Labels] = {}
    numbers: dict[fx.Node, list[Tensor]] = {}
    for node in traced.graph.nodes:
        rule = rules.rule_of(node, traced.module(node))
        inputs: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), inputs.append)
        rows = _rows(node, labels, traced.seen)
        if rows is not None:
            labels[node] = rows
            continue
        for other in inputs:
            if isinstance(stack := labels.get(other), Stack) and rule not in rules.TAKE_TUPLES and node.op != "output":
                labels[other] = _joined(coupling, stack, traced.place(node))
        tensors = [(x, traced.seen[other].shape) for other in inputs if isinstance(x := labels.get(other), Tensor)]
        call = Call(
            node, traced.module(node), traced.place(node), coupling, [x for x, _ in tensors],
            [shape or () for _, shape in tensors], numbers, labels, traced.seen,
        )  # fmt: skip
        entering = [part for other in inputs if other in labels for part in tensors_of(labels[other])]
        counted = [units for other in inputs for units in numbers.get(other, [])]
        tuples = [found for other in inputs if isinstance(found := labels.get(other), tuple)]
        if node.op == "output":
            _mark(call, "output", entering, "it is an output of the model")
            _mark(call, "unknown", counted, "their number is an output of the model")
        elif traced.seen[node].shape is None and traced.seen[node].parts is None:
            numbers[node] = [units[units != NONE] for units in _counts(call, counted)]
            if node in traced.decided:
                _mark(call, "unknown", numbers[node], "the forward decides by their number what it does")
        elif tuples and node.target in (ITEM, getattr) and (found := _part(call, tuples[0])) is not None:
            labels[node] = found
        else:
            has_tuple = bool(tuples) and rule not in rules.TAKE_TUPLES
            labels[node] = _result(call, rule, entering, counted, has_tuple, traced.seen[node])
    settle(coupling.uses, traced.graph, coupling.couple, functools.partial(coupling.mark, "fixed"))
    return coupling, labels


def _part(call: Call, parts: tuple[Labels, ...]) -> Labels | None:
    """Return what is taken of a tuple, by number or, of the two that max gives, by name."""
    which = call.value(call.node.args[1])
    if isinstance(which, str):
        which = {"values": 0, "indices": 1}.get(which, -1 - len(parts))
        return parts[which] if len(parts) == 2 and which >= 0 else None
    found: Labels = parts[which]
    return found


def _rows(node: fx.Node, labels: dict[fx.Node, Labels], seen: dict[fx.Node, Seen]) -> Labels | None:
    """Return what ``h_n[...]`` takes of the states of several layers, where that is one of them, or some."""
    stack = labels.get(node.args[0]) if node.target is ITEM and isinstance(node.args[0], fx.Node) else None
    if not isinstance(stack, Stack):
        return None
    index: Any = fx.node.map_arg(node.args[1], lambda other: seen[other].value)
    first, *others = index if isinstance(index, tuple) else (index,)
    if any(other is not ... and other != slice(None) for other in others):
        return None
    if isinstance(first, slice):
        return Stack(stack.rows[first])
    return stack.rows[first] if isinstance(first, int) else None


def _joined(coupling: Coupling, stack: Stack, place: str) -> Tensor:
    """Let the rows of a stack lose the same positions, so that it can be followed as a tensor."""
    for row in stack.rows[1:]:
        coupling.couple(stack.rows[0], row, place)
    return stack.rows[0][None]


def _mark(call: Call, kind: str, entering: list[Tensor], reason: str) -> None:
    for labels in entering:
        call.coupling.mark("output" if kind == "output" else "unknown", labels, reason)


def _result(
    call: Call, rule: Rule | None, entering: list[Tensor], counted: list[Tensor], has_tuple: bool, seen: Seen
) -> Labels:
    """Return the labels that an operation gives; where it cannot be followed, units end there, and why is noted."""
    if rule not in rules.TAKE_SIZES:
        _mark(call, "unknown", counted, f"{call.place} computes with the number of channels")
    labelled = any(bool((labels != NONE).any()) for labels in entering)
    sized = rule in rules.TAKE_SIZES and any(units.numel() for units in counted)
    if labelled or sized or rule in rules.MAKE_UNITS:
        result = MIXES if rule is None or has_tuple else rule(call)
        if not isinstance(result, str):
            return result
        _mark(call, "unknown", entering, f"{call.place} {result}")
    return unlabelled_like(seen)


def _counts(call: Call, counted: list[Tensor]) -> list[Tensor]:
    """Return, for each size that a node gives, the units that it counts."""
    source = call.node.args[0] if call.node.args else None
    if call.labels:
        labels = call.labels[0]
        asked = call.node.args[1] if call.node.target is getattr else call.name
        units = [labels.reshape(-1) if dim in varying(labels) else labels.new_empty(0) for dim in range(labels.ndim)]
        if asked in ("size", "shape"):
            dim = call.argument(1, "dim") if asked == "size" else None
            return units if dim is None else [units[call.value(dim)]]
        return [] if asked in HARMLESS_NUMBERS else [labels.reshape(-1) for labels in call.labels]
    if call.node.target is ITEM and isinstance(source, fx.Node) and isinstance(call.node.args[1], (int, slice)):
        found = numbers[call.value(call.node.args[1])] if (numbers := call.numbers.get(source)) else []
        return found if isinstance(found, list) else [found]
    return [torch.cat(counted)] if counted else []
