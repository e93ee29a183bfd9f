"""Attention of torch: its heads, and the widths of the feed-forward parts of encoder and decoder layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..heads import FewerHeads
from .call import MIXES, Call, Labels, one_dimension, unlabelled_like
from .labels import NONE, Part, unlabelled, varying
from .operations import ELEMENTWISE, ELEMENTWISE_CALLS, ITEM


def attention(call: Call) -> Labels | str:
    """Give the heads of a MultiheadAttention units; what enters keeps its size, and so does what it gives."""
    reason = _heads(call, str(call.node.target), call.module)
    if reason:
        return reason
    for labels in call.entering():
        call.coupling.mark("fixed", labels, f"{call.place} keeps the size of its embedding")
    units, seen = call.coupling.outputs.get(str(call.node.target)), call.seen[call.node]
    mask = call.argument(5, "attn_mask")
    if units is not None and isinstance(mask, fx.Node) and len(call.seen[mask].shape or ()) == 3:
        call.coupling.mark("fixed", units, f"{call.place} has a mask for each head")
    if units is not None and _gives_weights(call.node):
        call.coupling.mark("output", units, f"{call.place} gives the weights of its heads away")
    return unlabelled_like(seen)


def _gives_weights(node: fx.Node) -> bool:
    """Whether more is taken of what attention gives than the first of the two, in what it gives out or works with."""
    return any(user.target is not ITEM or (user.args[1] not in (0, -2) and bool(user.users)) for user in node.users)


def _heads(call: Call, name: str, module: Any, place: str = "") -> str:
    """Give the heads of one attention units, once; say why they cannot be followed, or ""."""
    place = place or call.place
    if type(module).forward not in (nn.MultiheadAttention.forward, FewerHeads.forward):
        return f"has heads that are not followed: {place} has a forward of its own" if place != call.place else _OWN
    if name in call.coupling.outputs or module.num_heads == 1:
        return ""
    size = module.head_dim
    units = call.coupling.add_layer(name, module.num_heads)
    rows = units.repeat_interleave(size)
    joint = module.in_proj_weight is not None
    found = [Part("in_proj_weight", 0, rows.repeat(3), name)] if joint else []
    found += [] if joint else [Part(f"{part}_proj_weight", 0, rows, name) for part in "qkv"]
    found += [] if module.in_proj_bias is None else [Part("in_proj_bias", 0, rows.repeat(3))]
    call.coupling.parts[name] = [*found, Part("out_proj.weight", 1, rows)]
    if module.bias_k is not None or module.add_zero_attn:
        call.coupling.mark("fixed", units, f"{place} adds keys of its own")
    return ""


_OWN = "has a forward of its own"


def block(call: Call) -> Labels | str:
    """Follow an encoder or decoder of torch, or a layer of one: its heads, and its feed-forward width.

    What runs through it keeps its size, for it is normalized over its channels.
    """
    for labels in call.entering():
        call.coupling.mark("fixed", labels, f"{call.place} normalizes over its channels")
    for name, module in call.module.named_modules(prefix=str(call.node.target)):
        place = f"{name} ({type(module).__name__})"
        if isinstance(module, nn.MultiheadAttention):
            _heads(call, name, module, place)
        elif isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            _feed_forward(call, name, module, place)
    return unlabelled_like(call.seen[call.node])


def _feed_forward(call: Call, name: str, module: Any, place: str) -> None:
    first, second = f"{name}.linear1", f"{name}.linear2"
    if first in call.coupling.outputs:
        return
    units = call.coupling.add_layer(first, module.linear1.weight.shape[0]).expand(module.linear1.weight.shape[0])
    call.coupling.enter(second, units, place)
    plain = module.activation in ELEMENTWISE_CALLS or isinstance(module.activation, ELEMENTWISE)
    kind = nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    own = type(module).forward is not kind.forward or type(module)._ff_block is not kind._ff_block
    if not plain or own:
        call.coupling.mark("unknown", units, f"{place} has an activation or a forward that is not known")


def scaled_dot_product(call: Call) -> Labels | str:
    """Follow ``softmax(q k^T * scale) v``: whole heads go together, and the channels of a head apart.

    The channels that queries and keys are compared by stay when their number decides the scale.
    """
    names = ("query", "key", "value")
    found = [call.labels_of(call.argument(i, name)) for i, name in enumerate(names)]
    query, key, value = found
    shapes = [call.seen[call.argument(i, name)].shape or () for i, name in enumerate(names)]
    if len({len(shape) for shape in shapes}) > 1 or len({shape[:-2] for shape in shapes}) > 1:
        return MIXES  # several queries to a key
    dims = len(shapes[0])
    if any(dims - 2 in varying(labels) for labels in found):
        return "mixes positions"
    if call.argument(6, "scale") is None:
        for labels in (query, key):
            if dims - 1 in varying(labels):
                call.coupling.mark("fixed", labels, f"{call.place} divides by the square root of their number")
    result = product(call, query, key.transpose(-1, -2), shapes[0], (*shapes[1][:-2], shapes[1][-1], shapes[1][-2]))
    if isinstance(result, str):
        return result
    return product(call, result, value, (*shapes[0][:-1], shapes[1][-2]), shapes[2])


def matmul(call: Call) -> Labels | str:
    """Follow a matrix product of two tensors with at least two dimensions."""
    given = [call.argument(0, "input"), call.argument(1, "other", call.node.kwargs.get("mat2"))]
    labels = [call.labels_of(argument) for argument in given]
    if any(x is None or x.ndim < 2 for x in labels):
        return MIXES
    return product(call, *labels, *(call.seen[argument].shape or () for argument in given))


def product(call: Call, a: Tensor, b: Tensor, first: tuple[int, ...], second: tuple[int, ...]) -> Tensor | str:
    """Return the labels of a matrix product: channels that are summed over go together, and so do those of a batch.

    Parameters
    ----------
    call : Call
    a, b : labels
    first, second : shapes of the tensors
    """
    dims = max(a.ndim, b.ndim)
    first, second = (1,) * (dims - a.ndim) + first, (1,) * (dims - b.ndim) + second
    a, b = a.reshape([1] * (dims - a.ndim) + list(a.shape)), b.reshape([1] * (dims - b.ndim) + list(b.shape))
    if len(varying(a)) > 1 or len(varying(b)) > 1:
        return MIXES
    if dims - 1 in varying(a) or dims - 2 in varying(b):
        inside, size = (a if dims - 1 in varying(a) else unlabelled(dims)), first[-1]
        other = b if dims - 2 in varying(b) else unlabelled(dims)
        call.coupling.couple(inside.reshape(-1).expand(size), other.reshape(-1).expand(size), call.place)
    a = unlabelled(dims) if dims - 1 in varying(a) else a
    b = unlabelled(dims) if dims - 2 in varying(b) else b
    for dim in {*varying(a), *varying(b)} - {dims - 1, dims - 2}:
        if first[dim] == second[dim]:
            one, two = (x.reshape(-1).expand(first[dim]) if dim in varying(x) else unlabelled(1) for x in (a, b))
            call.coupling.couple(one, two, call.place)
    return one_dimension(torch.where(a == NONE, b, a))
