"""Data in one form: tensors, whether they come as a pair, a Dataset or batches.

*Data* is one of

- a pair, which is a tuple ``(inputs, targets)`` of NumPy arrays or torch tensors with one item per row,
- a map-style ``torch.utils.data.Dataset`` of ``(input, target)`` items,
- a re-iterable of ``(inputs, targets)`` batches: a DataLoader, a list of pairs.

Inputs (and targets) may also be a tuple or a dict of arrays. Targets of an integer type become int64, the type of class
indices in torch; everything else keeps its type.

Every function takes the name of the caller's argument for its messages, and raises what :func:`check` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from .calls import forward as forward

Data = Any
"""A pair ``(inputs, targets)``, a map-style Dataset, or a re-iterable of ``(inputs, targets)`` batches."""

Tree = Any
"""A tensor, or a tuple or dict of tensors."""

_DATA = "a pair (inputs, targets), a map-style Dataset or a re-iterable of (inputs, targets) batches"
_CHUNK = 1024


def check(data: Data, name: str = "data", *, finite: bool = False) -> None:
    """Raise a clear error when data is not of the forms above, is empty, or is not finite where that is asked.

    Of a Dataset only the first item is read, of a DataLoader nothing, unless ``finite``: then all of it.

    Parameters
    ----------
    data : pair, Dataset or batches
    name : str
        The argument's name, for messages.
    finite : bool
        Whether NaN and infinity in floating inputs are errors.

    Raises
    ------
    TypeError
        When data has another form (a one-shot iterator, say), or holds other things than arrays of numbers.
    ValueError
        When data is empty, arrays differ in length, or inputs are not finite where that is asked.

    Examples
    --------
    >>> check((np.zeros((3, 2)), np.zeros(2)), "train")
    Traceback (most recent call last):
        ...
    ValueError: train must have as many targets as inputs, got 3 inputs and 2 targets
    """
    pair = as_pair(data, name)
    if pair is not None:
        if finite:
            _check_finite(pair[0], name)
    elif isinstance(data, list) or finite:
        for inputs, _ in batches(data, _CHUNK, name=name):
            if finite:
                _check_finite(inputs, name)
    elif is_dataset(data):
        take(data, [0], name)


def as_pair(data: Data, name: str = "data") -> tuple[Tree, Tree] | None:
    """Return data as tensors ``(inputs, targets)`` when it is held in memory as a whole, else None.

    That is a pair, a TensorDataset of inputs and targets, or a Subset of such. Nothing is copied but a Subset's items.
    The form of other data is checked, none of it is read.

    Examples
    --------
    >>> as_pair((np.zeros((1, 2)), np.array([3], np.uint8)))
    (tensor([[0., 0.]], dtype=torch.float64), tensor([3]))
    """
    if isinstance(data, tuple) and len(data) == 2:
        return _pair(data, name, "")
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _pair(data.tensors, name, "")
    if isinstance(data, Subset):
        _check_size(len(data), name)
        whole = as_pair(data.dataset, name)
        if whole is None:
            return None
        indices = torch.as_tensor(data.indices, dtype=torch.int64)
        return pick(whole[0], indices), pick(whole[1], indices)
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name} must be {_DATA}, got the one-shot iterator {type(data).__name__}: pass a list or a DataLoader"
        )
    if isinstance(data, IterableDataset):
        raise TypeError(f"{name} must be {_DATA}, got {type(data).__name__}: wrap it in a DataLoader")
    if not is_dataset(data) and (
        isinstance(data, (torch.Tensor, np.ndarray, dict, str, bytes, set, tuple)) or not isinstance(data, Iterable)
    ):
        of = f" of {len(data)} (a pair is a tuple of 2, batches are a list)" if isinstance(data, tuple) else ""
        raise TypeError(f"{name} must be {_DATA}, got {type(data).__name__}{of}")
    if isinstance(data, list) or is_dataset(data):
        _check_size(len(data), name)
    return None


def batches(
    data: Data,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    name: str = "data",
) -> Iterator[tuple[Tree, Tree]]:
    """Yield ``(inputs, targets)`` batches of tensors.

    Data that already comes in batches keeps its own batches and its own order.

    Parameters
    ----------
    data : pair, Dataset or batches
    batch_size : int
        Items in a batch; the last one may have fewer. When shuffled, a single item that is left over joins the batch
        before it: batch normalization cannot train on one item.
    shuffle : bool
        Whether the order is random.
    generator : torch.Generator, optional
        Draws that order; torch's own generator where None.
    name : str
        The argument's name, for messages.

    Yields
    ------
    (inputs, targets) of tensors

    Examples
    --------
    >>> [targets.tolist() for _, targets in batches((torch.zeros(5, 3), torch.arange(5)), 2)]
    [[0, 1], [2, 3], [4]]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    pair = as_pair(data, name)
    if pair is not None:
        inputs, targets = pair
        order = _order(length(targets), batch_size, shuffle, generator)
        return ((pick(inputs, rows), pick(targets, rows)) for rows in order)
    if is_dataset(data):
        order = _order(len(data), batch_size, shuffle, generator)
        items = torch.arange(len(data))
        return (take(data, items[rows].tolist(), name) for rows in order)
    return _own_batches(data, name)


def gather(data: Data, name: str = "data") -> tuple[Tree, Tree]:
    """Return all of the data as tensors ``(inputs, targets)``, batches concatenated.

    Examples
    --------
    >>> gather([(torch.ones(2, 1), torch.zeros(2)), (torch.ones(1, 1), torch.zeros(1))])[1]
    tensor([0., 0., 0.])
    """
    pair = as_pair(data, name)
    if pair is not None:
        return pair
    parts = list(batches(data, _CHUNK, name=name))
    return _concatenate([inputs for inputs, _ in parts]), _concatenate([targets for _, targets in parts])


def size(data: Data, name: str = "data") -> int:
    """Return the number of items; data that comes in batches is read once for it.

    Examples
    --------
    >>> size((torch.zeros(5, 3), torch.arange(5)))
    5
    """
    pair = as_pair(data, name)
    if pair is not None:
        return length(pair[1])
    if is_dataset(data):
        return len(data)
    return sum(length(targets) for _, targets in batches(data, _CHUNK, name=name))


def take(data: Data, indices: Sequence[int] | torch.Tensor, name: str = "data") -> tuple[Tree, Tree]:
    """Return the items with the given indices; data that comes in batches is read once and gathered for it.

    Parameters
    ----------
    data : pair, Dataset or batches
    indices : [items] int
        Positions of the items, from 0.
    name : str
        The argument's name, for messages.

    Returns
    -------
    (inputs, targets) of tensors, in the order of indices

    Raises
    ------
    TypeError, ValueError
        As :func:`check` does; when there are no indices.
    IndexError
        When an index lies outside the data.

    Examples
    --------
    >>> take((torch.zeros(5, 3), torch.arange(5)), [4, 0])[1]
    tensor([4, 0])
    """
    pair = as_pair(data, name)
    if len(indices) == 0:
        raise ValueError("indices must not be empty, got none")
    if pair is None and is_dataset(data):
        return _pair(default_collate([_two(data[int(i)], name, f"item {i}") for i in indices]), name, "")
    inputs, targets = gather(data, name) if pair is None else pair
    order = torch.as_tensor(indices, dtype=torch.int64)
    return pick(inputs, order), pick(targets, order)


def first_inputs(data: Data, rows: int, name: str = "data") -> Tree:
    """Return the inputs of the first ``rows`` items, or of all where there are fewer, as example inputs of a model.

    Examples
    --------
    >>> first_inputs((torch.zeros(5, 3), torch.arange(5)), 2).shape
    torch.Size([2, 3])
    """
    parts: list[Tree] = []
    missing = rows
    for inputs, targets in batches(data, rows, name=name):
        parts.append(pick(inputs, slice(missing)))
        missing -= length(targets)
        if missing <= 0:
            break
    return _concatenate(parts)


def length(tree: Tree) -> int:
    """Return the number of items of a batch's inputs or targets.

    Examples
    --------
    >>> length({"ids": torch.zeros(5, 3)})
    5
    """
    return int(_leaves(tree)[0].shape[0])


def pick(tree: Tree, index: torch.Tensor | slice) -> Tree:
    """Return some items of inputs or targets.

    Examples
    --------
    >>> pick((torch.arange(5), torch.arange(5, 10)), slice(2))
    (tensor([0, 1]), tensor([5, 6]))
    """
    return _map(lambda leaf: leaf[index], tree)


def is_dataset(data: Data) -> bool:
    """Whether data is a map-style Dataset: items by index, and a length.

    Examples
    --------
    >>> is_dataset(TensorDataset(torch.zeros(2)))
    True
    """
    if isinstance(data, (IterableDataset, tuple, list, torch.Tensor, np.ndarray, dict, str, bytes)):
        return False
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return sized and (isinstance(data, Dataset) or not isinstance(data, Iterable))


def _own_batches(data: Iterable[Any], name: str) -> Iterator[tuple[Tree, Tree]]:
    number = -1
    for number, batch in enumerate(data):
        yield _pair(_two(batch, name, f"batch {number}"), name, f" in batch {number}")
    if number < 0:
        raise ValueError(f"{name} must not be empty, got no batch (can it be read only once?)")


def _order(
    count: int, batch_size: int, shuffle: bool, generator: torch.Generator | None
) -> Sequence[torch.Tensor | slice]:
    if not shuffle:
        return [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    joins = batch_size > 1 and count > batch_size and count % batch_size == 1
    ends = range(batch_size, count - 1 if joins else count, batch_size)
    return torch.tensor_split(torch.randperm(count, generator=generator), tuple(ends))


def _two(pair: Any, name: str, where: str) -> tuple[Any, Any]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        return pair[0], pair[1]
    of = f" of {len(pair)}" if isinstance(pair, (tuple, list)) else ""
    raise TypeError(f"{name} must hold pairs (inputs, targets), got {type(pair).__name__}{of} as {where}")


def _pair(pair: Sequence[Any], name: str, where: str) -> tuple[Tree, Tree]:
    inputs = _map(lambda leaf: _tensor(leaf, f"{name} inputs{where}"), pair[0])
    targets = _map(lambda leaf: _targets(leaf, f"{name} targets{where}"), pair[1])
    counts = {leaf.shape[0] for leaf in _leaves(inputs)}
    target_counts = {leaf.shape[0] for leaf in _leaves(targets)}
    if len(counts) != 1 or counts != target_counts:
        got, target_got = (" and ".join(map(str, sorted(found))) or "no" for found in (counts, target_counts))
        raise ValueError(
            f"{name} must have as many targets as inputs, got {got} inputs and {target_got} targets{where}"
        )
    _check_size(counts.pop(), name + where)
    return inputs, targets


def _tensor(value: object, name: str) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"{name} must hold numbers, got dtype {value.dtype}")
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        # torch has no negative strides, and warns of memory that it may not write to.
        plain = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        value = torch.from_numpy(value if plain else value.copy())
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(value).__name__}")
    if value.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device")
    if value.ndim == 0:
        raise ValueError(f"{name} must have one item per row, got a 0-D {value.dtype} value")
    return value.detach()


def _targets(value: object, name: str) -> torch.Tensor:
    tensor = _tensor(value, name)
    integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return tensor.long() if integer else tensor


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return tuple(function(leaf) for leaf in tree)
    if isinstance(tree, dict):
        return {key: function(leaf) for key, leaf in tree.items()}
    return function(tree)


def _leaves(tree: Tree) -> list[torch.Tensor]:
    if isinstance(tree, tuple):
        return list(tree)
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def _concatenate(trees: list[Tree]) -> Tree:
    first = trees[0]
    if len(trees) == 1:
        return first
    if isinstance(first, tuple):
        return tuple(torch.cat(leaves) for leaves in zip(*trees, strict=True))
    if isinstance(first, dict):
        return {key: torch.cat([tree[key] for tree in trees]) for key in first}
    return torch.cat(trees)


def _check_size(count: int, name: str) -> None:
    if count == 0:
        raise ValueError(f"{name} must not be empty, got 0 items")


def _check_finite(inputs: Tree, name: str) -> None:
    for leaf in _leaves(inputs):
        if (leaf.is_floating_point() or leaf.is_complex()) and not leaf.isfinite().all():
            bad = leaf.numel() - int(leaf.isfinite().sum())
            raise ValueError(f"{name} inputs must be finite, got {bad} NaN or infinite entries")
