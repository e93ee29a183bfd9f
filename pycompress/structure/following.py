"""The way of all outputs through the graph of a model."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from . import rules
from .call import MIXES, Call, Labels
from .labels import NONE, Coupling, unlabelled, varying
from .operations import HARMLESS_NUMBERS, ITEM
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
        inputs: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), inputs.append)
        tensors = [(x, traced.seen[other].shape) for other in inputs if isinstance(x := labels.get(other), Tensor)]
        call = Call(
            node, traced.module(node), traced.place(node), coupling, [x for x, _ in tensors],
            [shape or () for _, shape in tensors], numbers, traced.seen,
        )  # fmt: skip
        tuples = [found for other in inputs if isinstance(found := labels.get(other), tuple)]
        entering = [*call.labels, *(part for parts in tuples for part in parts)]
        counted = [units for other in inputs for units in numbers.get(other, [])]
        if node.op == "output":
            _mark(call, "output", entering, "it is an output of the model")
            _mark(call, "unknown", counted, "their number is an output of the model")
        elif traced.seen[node].shape is None and traced.seen[node].parts is None:
            numbers[node] = [units[units != NONE] for units in _counts(call, counted)]
        elif node.target is ITEM and tuples:
            labels[node] = tuples[0][call.value(node.args[1])]
        else:
            labels[node] = _result(call, entering, counted, bool(tuples), traced.seen[node])
    return coupling, labels


def _mark(call: Call, kind: str, entering: list[Tensor], reason: str) -> None:
    for labels in entering:
        call.coupling.mark("output" if kind == "output" else "unknown", labels, reason)


def _result(call: Call, entering: list[Tensor], counted: list[Tensor], has_tuple: bool, seen: Seen) -> Labels:
    """Return the labels that an operation gives; where it cannot be followed, units end there, and why is noted."""
    rule = rules.rule_of(call.node, call.module)
    if rule not in rules.TAKE_SIZES:
        _mark(call, "unknown", counted, f"{call.place} computes with the number of channels")
    labelled = any(bool((labels != NONE).any()) for labels in entering)
    if labelled or rule in (rules.layer, rules.per_channel):
        result = MIXES if rule is None or has_tuple else rule(call)
        if not isinstance(result, str):
            return result
        _mark(call, "unknown", entering, f"{call.place} {result}")
    if seen.shape is not None:
        return unlabelled(len(seen.shape))
    return tuple(unlabelled(len(shape or ())) for shape in seen.parts or ())


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
