"""What each operation does with the labels of its inputs, and which units it lets go together."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import rnn

from ..selection import LAYERS
from . import attention, moving, operations, recurrent
from .call import MIXES, Call, Labels, Rule, one_dimension
from .labels import NONE, Part, along, narrow, unlabelled, varying


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
    call.coupling.enter(str(call.node.target), labels, call.place)
    return call.labels[0]


def transposed(call: Call) -> Labels | str:
    """Note what enters a transposed convolution, whose weight is [inputs, outputs in a group, ...]."""
    name, shape, groups = str(call.node.target), call.shapes[0], call.module.groups
    if type(call.module).forward not in {kind.forward for kind in operations.TRANSPOSED}:
        return "has a forward of its own"
    inputs, each = call.module.weight.shape[:2]
    dim = len(shape) - call.module.weight.ndim + 1
    entering = along(call.labels[0], dim, inputs)
    if entering is None:
        call.coupling.mark("unknown", call.labels[0], f"{call.place} takes another dimension as its inputs")
        entering = torch.full((inputs,), NONE)
    first = name not in call.coupling.inputs
    units = call.coupling.add_layer(name, each * groups).expand(each * groups)
    call.coupling.enter(name, entering, call.place)
    columns = units.reshape(groups, -1)
    if groups > 1 and groups == inputs:  # with an input goes its group
        call.coupling.couple(entering[:, None], columns, call.place)
    elif groups > 1:  # all groups lose as many, those at the same positions
        for labels in (entering.reshape(groups, -1), columns):
            call.coupling.couple(labels[:1], labels, call.place)
    if first:
        if groups > 1 and groups == inputs:
            parts = [Part("weight", 0, columns[:, 0], name)]
        else:
            parts = [Part("weight", 0, entering), Part("weight", 1, columns[0], name)]
        call.coupling.parts[name] = parts + ([] if call.module.bias is None else [Part("bias", 0, units)])
    sides = [1] * len(call.shape)
    sides[dim] = units.numel()
    return units.reshape(sides)


def table(call: Call) -> Labels | str:
    """Give the columns of an embedding units."""
    name, module = str(call.node.target), call.module
    if type(module).forward not in {kind.forward for kind in operations.TABLES}:
        return "has a forward of its own"
    first = name not in call.coupling.outputs
    units = call.coupling.add_layer(name, module.weight.shape[1]).expand(module.weight.shape[1])
    if first:
        call.coupling.parts[name] = [Part("weight", 1, units, name)]
        if module.max_norm is not None:
            call.coupling.mark("fixed", units, f"{call.place} limits the norm over its columns")
    return units.reshape([1] * (len(call.shape) - 1) + [-1])


def _choice(call: Call) -> Labels | str:
    """See that an argmax over channels keeps them: it gives their numbers out."""
    dim = call.argument(1, "dim")
    every = range(len(call.shapes[0]))
    dims = {*every} if dim is None else {dim % len(every)} if isinstance(dim, int) else set()
    if not dims:
        return MIXES
    if dims & set(varying(call.labels[0])):
        call.coupling.mark("output", call.labels[0], f"{call.place} gives the numbers of its channels")
        return unlabelled(len(call.shape))
    keep = call.argument(2, "keepdim", False) or call.name == "argsort"
    return call.labels[0].reshape([n for i, n in enumerate(call.labels[0].shape) if keep or i not in dims])


def _attribute(call: Call) -> Labels | str:
    """Follow ``x.data``, ``x.T`` and ``x.mT``."""
    name = call.node.args[1]
    if name == "data":
        return call.labels[0]
    dims = call.labels[0].ndim
    return call.labels[0].transpose(-1, -2) if (name == "mT" and dims > 1) or (name == "T" and dims == 2) else MIXES


def _packed(call: Call) -> Labels | str:
    """Follow pack_padded_sequence, whose data are [steps, channels]."""
    labels = call.labels_of(call.argument(0, "input"))
    found = along(labels, labels.ndim - 1, labels.shape[-1])
    return MIXES if found is None or labels.ndim != 3 else found[None]


def _padded(call: Call) -> Labels | str:
    """Follow pad_packed_sequence."""
    if call.argument(2, "padding_value", 0.0) is None:
        return MIXES
    return call.labels_of(call.argument(0, "sequence"))[None], unlabelled(1)


def _normalization(call: Call) -> Labels | str:
    """Keep what is normalized together: without one of the channels, the others would get other statistics."""
    kept = len(call.shapes[0]) - len(call.module.normalized_shape)
    own = type(call.module).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward)  # may take other dimensions
    if own or any(dim >= kept for dim in varying(call.labels[0])):
        call.coupling.mark("fixed", call.labels[0], f"{call.place} normalizes over its channels")
    return call.labels[0]


def _unit_length(call: Call) -> Labels | str:
    """Keep what F.normalize divides by one length."""
    dim = call.argument(2, "dim", 1)
    if not isinstance(dim, int) or dim % len(call.shapes[0]) in varying(call.labels[0]):
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
    (operations.TRANSPOSED, transposed),
    (operations.TABLES, table),
    (tuple(operations.GATES), recurrent.recurrent),
    (nn.MultiheadAttention, attention.attention),
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
    **dict.fromkeys(operations.CHOICES, _choice),
    **dict.fromkeys(operations.PRODUCTS, attention.matmul),
    operations.ITEM: moving.item,
    **dict.fromkeys(operations.EXTREMES, moving.extremum),
    **dict.fromkeys(operations.BESIDE, moving.beside),
    getattr: _attribute,
    nn.functional.normalize: _unit_length,
    torch.stack: moving.stack,
    **dict.fromkeys(("gather", torch.gather), moving.gather),
    torch.einsum: moving.einsum,
    **dict.fromkeys(operations.MADE, moving.made),
    rnn.pack_padded_sequence: _packed,
    rnn.pad_packed_sequence: _padded,
    nn.functional.scaled_dot_product_attention: attention.scaled_dot_product,
    nn.functional.interpolate: _interpolate,
    nn.functional.pad: _pad,
}
TAKE_SIZES = (moving.reshape, moving.item, moving.split, moving.made)
"""Rules of operations whose arguments may be sizes that follow the channels."""
TAKE_TUPLES = (recurrent.recurrent,)
"""Rules that look at tuples of tensors, and at the states of several layers in one tensor."""
MAKE_UNITS = (
    layer, per_channel, transposed, table, recurrent.recurrent, attention.attention, attention.block, moving.made,
)  # fmt: skip
"""Rules of modules with units of their own, or with sizes of their own: what enters them need not have units."""


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a call of a module, function or method; None for one that is not known.

    Examples
    --------
    >>> graph = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Linear(2, 3))).graph
    >>> [rule_of(node, module) is layer for node, module in zip(graph.nodes, (None, nn.ReLU(), nn.Linear(2, 3)))]
    [False, False, True]
    """
    if module is not None and operations.is_block(module):
        return attention.block
    if module is not None:
        return next((rule for kinds, rule in _MODULES if isinstance(module, kinds)), None)
    return _CALLS.get(node.target) if node.op in ("call_function", "call_method") else None
