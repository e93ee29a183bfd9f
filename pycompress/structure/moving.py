"""Rules of operations that only move positions: they are run on the labels as they are."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .call import MIXES, SIZES, Call, Labels, one_dimension
from .labels import NONE, along, narrow, unlabelled, varying
from .operations import PRODUCTS
from .sizes import Size, Use


def reshape(call: Call) -> Labels | str:
    """Follow view, flatten, permute and their like.

    A dimension of channels may be cut in two, as the shuffle of ShuffleNet does: where one of the sizes is fixed, the
    other one follows the channels, so that whole slices of it go. The same holds the other way round. A size that a
    module holds as an attribute can follow too, when the attribute is changed; heads of attention go like that.
    """
    given = _sizes(call)
    sizes = {dim: size for dim, (size, _) in given.items()}
    if len(call.labels) != 1 or 0 in call.shapes[0] or any(isinstance(size, torch.dtype) for size in sizes.values()):
        return MIXES
    result = narrow(_moved(call, "reshape" if call.name == "view" else None))  # labels may not lie as the values do
    if call.name == "expand" and not varying(result):
        return _sized(call, result, {dim: _counted(call, size) for dim, size in sizes.items() if _is_new(call, dim)})
    fixed = [
        dim
        for dim in varying(result)
        if dim in sizes and sizes[dim] != -1 and not _follows(call, sizes[dim], result, dim)
    ]
    held = [dim for dim in fixed if isinstance(sizes[dim], Size)]
    ways = [dim for dim in varying(result) if dim in held or dim not in fixed]  # heads stand before their channels
    if held and (fixed == varying(result) or (ways[0] in held and _attends(call.node))):
        fixed = [dim for dim in varying(result) if dim != held[0]]
    elif fixed and fixed == varying(result) and not any(call.follows(size, result) for size in sizes.values()):
        return SIZES
    else:
        held = []
    for dim in fixed:
        first = result.narrow(dim, 0, 1)
        call.coupling.couple(first, result, call.place)
        result = first
    if held:
        size, holder = given[held[0]]
        units = result.reshape(-1).expand(call.shape[held[0]])
        call.coupling.uses.append(Use(holder, size, units, call.place))
    return one_dimension(narrow(result))


def _is_new(call: Call, dim: int) -> bool:
    """Whether a dimension of the result is none of the source, or has size 1 there."""
    source = dim - len(call.shape) + len(call.shapes[0])
    return source < 0 or call.shapes[0][source] == 1


def _counted(call: Call, size: Any) -> Tensor:
    """Return the units that a size counts."""
    counted = call.numbers.get(size, []) if isinstance(size, fx.Node) else []
    return counted[0] if len(counted) == 1 else unlabelled(1)


def _sized(call: Call, result: Tensor, counted: dict[int, Tensor]) -> Tensor | str:
    """Return the labels of a tensor that is alike everywhere: along a size that counts units, it goes with them."""
    for dim, units in counted.items():
        if units.numel() == call.shape[dim] > 1:
            sides = [1] * len(call.shape)
            sides[dim] = call.shape[dim]
            result = torch.where(result == NONE, units.reshape(sides), result)
    return one_dimension(result)


def gather(call: Call) -> Labels | str:
    """Follow gather along another dimension than that of the channels; the numbers are given for each channel."""
    labels, index = call.labels_of(call.argument(0, "input")), call.labels_of(call.argument(2, "index"))
    dim, shape = call.argument(1, "dim"), call.seen[call.argument(2, "index")].shape
    every = {*varying(labels), *varying(index)}
    if not isinstance(dim, int) or shape is None or len(every) != 1 or dim % labels.ndim in every:
        return MIXES
    (channel,) = every
    if shape[channel] != call.shapes[0][channel]:
        return MIXES
    call.coupling.couple(labels, index, call.place)
    return torch.where(labels == NONE, index, labels)


def _attends(node: fx.Node) -> bool:
    """Whether a result is multiplied by another one, as in attention, before it is reshaped again."""
    waiting, met = [*node.users], set()
    while waiting:
        user = waiting.pop()
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if user.target in PRODUCTS or name in ("scaled_dot_product_attention", "einsum"):
            return True
        if user not in met and name not in ("view", "reshape", "flatten", "unflatten") and user.op != "call_module":
            waiting += user.users
        met.add(user)
    return False


def _follows(call: Call, size: Any, labels: Tensor, dim: int) -> bool:
    """Whether a size follows the channels along a dimension, of these units or of others that they are coupled with."""
    if call.follows(size, labels):
        return True
    others = call.numbers.get(size, []) if isinstance(size, fx.Node) else []
    own = along(labels, dim, labels.shape[dim])
    for units in others:  # as in gate.view(n, c, 1, 1), where c are the channels of what is gated
        if own is not None and units.numel() == own.numel():
            call.coupling.couple(own, units, call.place)
            return True
    return False


def _moved(call: Call, name: str | None = None) -> Any:
    full = call.labels[0].expand(call.shapes[0])
    if call.module is not None:
        return call.module(full)
    tensors = {node for node in call.node.all_input_nodes if call.seen[node].shape is not None}
    args, kwargs = fx.node.map_arg(
        (call.node.args, call.node.kwargs), lambda node: full if node in tensors else call.seen[node].value
    )
    function: Any = getattr(Tensor, name or call.name) if call.node.op == "call_method" else call.node.target
    return function(*args, **kwargs)


def _sizes(call: Call) -> dict[int, tuple[Any, fx.Node]]:
    """Return the sizes that a reshaping is given, by dimension of its result, and the nodes that are given them."""
    if isinstance(call.module, nn.Unflatten):
        return _from(call, call.module.dim % len(call.shapes[0]), list(call.module.unflattened_size))
    if call.name == "unflatten":
        return _from(call, call.value(call.argument(1, "dim")) % len(call.shapes[0]), call.argument(2, "sizes"))
    if call.name not in ("view", "reshape", "expand"):
        return {}
    given: Any = [call.node.kwargs[name] for name in ("shape", "size") if name in call.node.kwargs]
    given = given or list(call.node.args[1:])
    given = given[0] if len(given) == 1 else given
    if isinstance(given, fx.Node) and isinstance(call.value(given), tuple):  # all sizes at once: view(other.shape)
        every = _added(call, given)
        return {len(call.shape) - len(every) + i: size for i, size in enumerate(every)}
    given = given if isinstance(given, (list, tuple)) else [given]
    return _from(call, len(call.shape) - len(given), given)


def _from(call: Call, start: int, sizes: Any) -> dict[int, tuple[Any, fx.Node]]:
    return {start + i: (size, call.node) for i, size in enumerate(sizes)}


def _added(call: Call, node: fx.Node) -> list[tuple[Any, fx.Node]]:
    """Return the sizes that a tuple holds, as ``x.shape[:-1] + (heads, size)``."""
    if node.target is not operator.add:
        return [(node, node)] * len(call.value(node))
    every: list[tuple[Any, fx.Node]] = []
    for part in node.args:
        every += _added(call, part) if isinstance(part, fx.Node) else [(size, node) for size in part]  # type: ignore[union-attr]
    return every


def item(call: Call) -> Labels | str:
    """Follow ``x[...]``: it takes all channels, or one of several blocks of equal size that is computed.

    Tensors and lists of numbers choose positions, of other dimensions.
    """
    given: Any = call.node.args[1]
    index = list(given) if isinstance(given, tuple) else [given]
    plain = (int, slice, type(None), type(...), fx.Node, list)
    indexed = any(bool((labels != NONE).any()) for labels in call.labels[1:])
    if indexed or 0 in call.shapes[0] or not all(isinstance(entry, plain) for entry in index):
        return MIXES
    taken: list[Any] = []  # the same index with zeros for tensors, for labels do not depend on their dimensions
    used = sum(_dimensions(call, entry) for entry in index)
    dim = 0
    for entry in index:
        dims = len(call.shapes[0]) - used if entry is ... else _dimensions(call, entry)
        chosen = _chooses(call, entry)
        for here in range(dim, dim + dims) if entry is not ... else ():
            if here in varying(call.labels[0]) and not (isinstance(entry, slice) and _takes_block(call, entry, here)):
                return "takes channels by their numbers"
        taken += [chosen] * dims if chosen is not None else [call.value(entry)]
        dim += dims
    return one_dimension(narrow(call.labels[0].expand(call.shapes[0])[tuple(taken)]))


def _dimensions(call: Call, entry: Any) -> int:
    """Return how many dimensions an index is about."""
    if entry is None or entry is ...:
        return 0
    seen = call.seen[entry] if isinstance(entry, fx.Node) else None
    return len(seen.shape) if seen is not None and seen.boolean and seen.shape is not None else 1


def _chooses(call: Call, entry: Any) -> Tensor | None:
    """Return zeros for an index that is a tensor or a list."""
    if isinstance(entry, list):
        return torch.zeros(1, dtype=torch.int64)
    seen = call.seen[entry] if isinstance(entry, fx.Node) else None
    if seen is None or seen.shape is None:
        return None
    return torch.zeros([1] * (1 if seen.boolean else len(seen.shape)), dtype=torch.int64)


def _takes_block(call: Call, entry: slice, dim: int) -> bool:
    size = call.shapes[0][dim]
    start, stop, step = call.value(entry).indices(size)
    if (start, stop, step) == (0, size, 1):
        return True
    length = stop - start
    bounds: tuple[tuple[Any, Any], ...] = ((entry.start, 0), (entry.stop, None))
    computed = all(bound in (None, default) or call.follows(bound, call.labels[0]) for bound, default in bounds)
    if step != 1 or length < 1 or size % length or start % length or not computed:
        return False
    _couple_blocks(call, size // length)
    return True


def _couple_blocks(call: Call, count: int) -> None:
    """Let the blocks of channels lose the same positions, so that their borders stay where they belong."""
    labels = call.labels[0].reshape(count, -1)
    call.coupling.couple(labels[:1], labels, call.place)


def split(call: Call) -> Labels | str:
    """Follow chunk, split and unbind: the parts of a dimension of channels must be of equal size."""
    if 0 in call.shapes[0]:
        return MIXES
    dim = call.value(call.argument(1 if call.name == "unbind" else 2, "dim", 0)) % len(call.shapes[0])
    parts = _moved(call)
    if dim in varying(call.labels[0]):
        sizes = call.argument(1, "split_size", call.node.kwargs.get("split_size_or_sections"))
        every = sizes if isinstance(sizes, (list, tuple)) else [sizes]
        if call.name == "unbind":
            return MIXES
        if call.name == "split" and not all(call.follows(size, call.labels[0]) for size in every):
            return SIZES
        if len({part.shape[dim] for part in parts}) > 1:
            return "cuts channels into parts of different sizes"
        _couple_blocks(call, len(parts))
    return tuple(narrow(part) for part in parts)


def concatenate(call: Call) -> Labels | str:
    """Follow cat: along the channels, labels follow each other; along another dimension, channels are the same ones."""
    if len({len(own) for own in call.shapes}) > 1:
        return MIXES
    dim = call.value(call.argument(1, "dim", 0)) % len(call.shape)
    if all(set(varying(labels)) <= {dim} for labels in call.labels):
        parts = [
            labels.expand([own[dim] if i == dim else 1 for i in range(len(own))])
            for labels, own in zip(call.labels, call.shapes, strict=True)
        ]
        return narrow(torch.cat(parts, dim))
    if any(dim in varying(labels) for labels in call.labels):
        return MIXES
    result = call.labels[0]
    for labels in call.labels[1:]:
        call.coupling.couple(result, labels, call.place)
        result = torch.where(result == NONE, labels, result)
    return one_dimension(narrow(result))


def reduce(call: Call) -> Labels | str:
    """Follow a mean, sum or maximum over other dimensions than that of the channels."""
    given, keep = call.argument(1, "dim"), call.argument(2, "keepdim", False)
    every = range(len(call.shapes[0]))
    dims: Any = [*every] if given is None else [given] if isinstance(given, int) else given
    if not isinstance(dims, (list, tuple)) or not all(isinstance(dim, int) for dim in dims):
        return MIXES
    gone = {dim % len(every) for dim in dims} or set(every)
    if gone & set(varying(call.labels[0])):
        return MIXES
    sizes = [size for dim, size in enumerate(call.labels[0].shape) if keep or dim not in gone]
    return call.labels[0].reshape(sizes)


def made(call: Call) -> Labels | str:
    """Follow a tensor of one value, as a first state: its last size may be an attribute of a module, and follow."""
    shift = 1 if call.node.op == "call_method" else 0
    given: Any = call.node.kwargs.get("size", call.node.args[shift:])
    result = unlabelled(len(call.shape))
    if len(given) == 1 and isinstance(given[0], fx.Node) and isinstance(call.value(given[0]), tuple):
        return _sized(call, result, dict(enumerate(call.numbers.get(given[0], []))))
    given = given[0] if given and isinstance(given[0], (list, tuple)) else given
    if not given or len(given) < len(call.shape) or not isinstance(size := given[len(call.shape) - 1], Size):
        return _sized(call, result, {dim: _counted(call, size) for dim, size in enumerate(given[: len(call.shape)])})
    units = call.coupling.add_free(f"{call.node.name}()", int(size))
    call.coupling.uses.append(Use(call.node, size, units, call.place))
    return units.reshape([1] * (len(call.shape) - 1) + [-1])


def einsum(call: Call) -> Labels | str:
    """Follow einsum: channels of a letter that is summed over go together, and so do those of one that is kept."""
    text, *tensors = call.node.args
    operands: Any = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    names, arrow, result = text.replace(" ", "").partition("->") if isinstance(text, str) else ("", "", "")
    letters = names.split(",")
    if not arrow or "." in names or len(letters) != len(operands):
        return MIXES
    along_letter: dict[str, Tensor] = {}
    for own, operand in zip(letters, operands, strict=True):
        labels = call.labels_of(operand)
        if len(set(own)) < len(own) or len(varying(labels)) > 1:
            return MIXES
        for dim in varying(labels):
            along_letter.setdefault(own[dim], labels.reshape(-1))
    for own, operand in zip(letters, operands, strict=True):
        labels = call.labels_of(operand)
        for dim, letter in enumerate(own):
            if letter in along_letter:
                here = labels.reshape(-1) if dim in varying(labels) else unlabelled(1)
                call.coupling.couple(along_letter[letter], here, call.place)
    for letter in along_letter:
        if letter not in result and sum(letter in own for own in letters) < 2:
            return MIXES
    kept = [letter for letter in result if letter in along_letter]
    if len(kept) > 1:
        return MIXES
    sizes = [along_letter[letter].numel() if letter in kept else 1 for letter in result]
    return (along_letter[kept[0]] if kept else unlabelled(1)).reshape(sizes)


def stack(call: Call) -> Labels | str:
    """Follow stack: along a new dimension, channels are the same ones."""
    dim = call.value(call.argument(1, "dim", 0)) % len(call.shape)
    result = call.labels[0]
    for labels in call.labels[1:]:
        call.coupling.couple(result, labels, call.place)
        result = torch.where(result == NONE, labels, result)
    return one_dimension(narrow(result).unsqueeze(dim))


def extremum(call: Call) -> Labels | str:
    """Follow max and min: of two tensors, or over another dimension than that of the channels, with the positions."""
    given, keep = call.argument(1, "dim"), call.argument(2, "keepdim", False)
    if not isinstance(given, int):
        return MIXES
    dim = given % len(call.shapes[0])
    if dim in varying(call.labels[0]):
        return MIXES
    sizes = [size for i, size in enumerate(call.labels[0].shape) if keep or i != dim]
    result = call.labels[0].reshape(sizes)
    return result, result


def beside(call: Call) -> Labels | str:
    """Follow what takes or orders positions of a dimension; that of the channels stays as it is."""
    given = call.argument(1, "dim")
    if not isinstance(given, int) or given % len(call.shapes[0]) in varying(call.labels[0]):
        return MIXES
    if call.name == "select":
        sizes = [size for i, size in enumerate(call.labels[0].shape) if i != given % len(call.shapes[0])]
        return call.labels[0].reshape(sizes)
    return call.labels[0]
