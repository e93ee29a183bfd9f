"""What each operation does with the labels of its inputs, and which units it lets go together."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx, nn

from ..selection import LAYERS
from . import moving, operations
from .call import MIXES, Call, Labels, Rule, one_dimension
from .labels import NONE, along, narrow, unlabelled, varying


def layer(call: Call) -> Labels | str:
    """Note what enters a Linear or a convolution, and give its outputs units of their own."""
    name, shape = str(call.node.target), call.shapes[0]
    weight, groups = call.module.weight, getattr(call.module, "groups", 1)
    dim = len(shape) - (1 if isinstance(call.module, nn.Linear) else 2 if isinstance(call.module, nn.Conv1d) else 3)
    entering = along(call.labels[0], dim, shape[dim])
    if entering is None:
        call.coupling.mark("unknown", call.labels[0], f"{call.place} takes another dimension as its inputs")
        entering = torch.full((shape[dim],), NONE)
    units = call.coupling.add_layer(name, weight.shape[0])
    if groups > 1 and weight.shape[1] == 1:  # depthwise: with an input goes its group
        call.coupling.couple(entering[:, None], units.reshape(groups, -1), call.place)
    elif groups > 1:  # all groups lose as many, those at the same positions
        for labels in (entering.reshape(groups, -1), units.reshape(groups, -1)):
            call.coupling.couple(labels[:1], labels, call.place)
    call.coupling.enter(name, entering, call.place)
    sides = [1] * len(call.shape)
    sides[dim] = units.numel()
    return units.reshape(sides)


def per_channel(call: Call) -> Labels | str:
    """Note what enters a batch or group normalization or a PReLU: it loses the same channels."""
    if getattr(call.module, "num_parameters", None) == 1:
        return call.labels[0]
    labels = along(call.labels[0], 1, call.shapes[0][1]) if len(call.shapes[0]) > 1 else None
    if labels is None:
        return MIXES
    if isinstance(call.module, nn.GroupNorm):  # a group that goes as a whole changes no statistics of the others
        rows = labels.reshape(call.module.num_groups, -1)
        call.coupling.couple(rows[:, :1], rows, call.place)
        if not call.module.affine:
            call.coupling.mark("fixed", labels, f"{call.place} has no tensors, from which a file could tell its size")
    call.coupling.enter(str(call.node.target), labels, call.place)
    return call.labels[0]


def _normalization(call: Call) -> Labels | str:
    """Keep what is normalized together: without one of the channels, the others would get other statistics."""
    kept = len(call.shapes[0]) - len(call.module.normalized_shape)
    own = type(call.module).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward)  # may take other dimensions
    if own or any(dim >= kept for dim in varying(call.labels[0])):
        call.coupling.mark("fixed", call.labels[0], f"{call.place} normalizes over its channels")
    return call.labels[0]


def _elementwise(call: Call) -> Labels | str:
    """Couple the operands position by position, except one that is stretched over the channels of the others."""
    dims = len(call.shape)
    operands = [
        (labels.reshape([1] * (dims - labels.ndim) + list(labels.shape)), [1] * (dims - len(own)) + list(own))
        for labels, own in zip(call.labels, call.shapes, strict=True)
    ]
    spread = {dim for labels, _ in operands for dim in varying(labels)}
    result, met = unlabelled(dims), False
    for labels, own in operands:
        if any(own[dim] != call.shape[dim] for dim in spread):
            call.coupling.mark("unknown", labels, f"{call.place} stretches its channels over others")
            continue
        full = labels.expand([call.shape[dim] if dim in spread else 1 for dim in range(dims)])
        if met:
            call.coupling.couple(result, full, call.place)
        result, met = torch.where(result == NONE, full, result), True
    return one_dimension(narrow(result))


def _last_dimensions(call: Call, dims: int) -> Labels | str:
    return call.labels[0] if all(dim < len(call.shapes[0]) - dims for dim in varying(call.labels[0])) else MIXES


def _interpolate(call: Call) -> Labels | str:
    return _last_dimensions(call, len(call.shapes[0]) - 2)


def _pad(call: Call) -> Labels | str:
    amounts = call.value(call.argument(1, "pad")) if call.module is None else call.module.padding
    last = len(call.shapes[0]) - 1
    padded = any(any(amounts[2 * (last - dim) : 2 * (last - dim) + 2]) for dim in varying(call.labels[0]))
    return MIXES if padded else call.labels[0]


def _along_a_dimension(call: Call) -> Labels | str:
    """Follow a softmax: it keeps apart what is not along its dimension."""
    dim = call.argument(1, "dim") if call.module is None else call.module.dim
    mixed = not isinstance(dim, int) or dim % len(call.shapes[0]) in varying(call.labels[0])
    return MIXES if mixed else call.labels[0]


_MODULES: list[tuple[Any, Rule]] = [
    (LAYERS, layer),
    ((*operations.PER_CHANNEL, nn.GroupNorm), per_channel),
    (operations.NORMALIZATIONS, _normalization),
    (operations.ELEMENTWISE, _elementwise),
    (operations.PADDING, _pad),
    (operations.RESHAPING, moving.reshape),
    (operations.ALONG, _along_a_dimension),
    (nn.Upsample, _interpolate),
    *((kind, functools.partial(_last_dimensions, dims=dims)) for kind, dims in operations.POOLING.items()),
]
_CALLS: dict[Any, Rule] = {
    **dict.fromkeys(operations.ELEMENTWISE_CALLS, _elementwise),
    **dict.fromkeys(operations.RESHAPING_CALLS, moving.reshape),
    **dict.fromkeys(operations.REDUCTIONS, moving.reduce),
    **dict.fromkeys(operations.ALONG_CALLS, _along_a_dimension),
    **dict.fromkeys(operations.SPLITS, moving.split),
    **dict.fromkeys(operations.CONCATENATIONS, moving.concatenate),
    **{call: functools.partial(_last_dimensions, dims=dims) for call, dims in operations.POOLING_CALLS.items()},
    operations.ITEM: moving.item,
    nn.functional.interpolate: _interpolate,
    nn.functional.pad: _pad,
}
TAKE_SIZES = (moving.reshape, moving.item, moving.split)
"""Rules of operations whose arguments may be sizes that follow the channels."""


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a call of a module, function or method; None for one that is not known.

    Examples
    --------
    >>> graph = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Linear(2, 3))).graph
    >>> [rule_of(node, module) is layer for node, module in zip(graph.nodes, (None, nn.ReLU(), nn.Linear(2, 3)))]
    [False, False, True]
    """
    if module is not None:
        return next((rule for kinds, rule in _MODULES if isinstance(module, kinds)), None)
    return _CALLS.get(node.target) if node.op in ("call_function", "call_method") else None
