"""Numbers that modules hold as attributes, as ``self.heads``, and that decide sizes in their forward.

While a model is traced they know where they are from, also as products and quotients of each other. So the graph says
which sizes have to follow them when some of what they count is removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Attribute = tuple[str, str]
"""The name of a module, and that of an attribute of it."""


class Size(int):
    """A number that a module holds, or that is computed from such.

    Examples
    --------
    >>> heads = Size(4, ("block", "heads"))
    >>> size = heads * 3
    >>> size, now(size, {("block", "heads"): 2}), sorted(attributes(size))
    (12, 6, [('block', 'heads')])
    """

    source: Any

    def __new__(cls, value: int, source: Any = None) -> Size:  # noqa: D102
        self = super().__new__(cls, value)
        self.source = source
        return self

    def __mul__(self, other: Any) -> Any:
        return _derived(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _derived(operator.mul, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _derived(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _derived(operator.floordiv, other, self)

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _derived(operation: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    if not isinstance(one, int) or not isinstance(other, int):
        one, other = (int(value) if isinstance(value, Size) else value for value in (one, other))
        return operation(one, other) if isinstance(one, (int, float)) and isinstance(other, float) else NotImplemented
    return Size(operation(int(one), int(other)), (operation, one, other))


def now(size: Any, changed: Mapping[Attribute, int]) -> Any:
    """Return what a size is when attributes have changed; anything else as it is.

    Examples
    --------
    >>> now(Size(4, ("", "heads")), {}), now("x", {})
    (4, 'x')
    """
    if not isinstance(size, Size) or size.source is None:
        return size
    if len(size.source) == 2:
        return changed.get(size.source, int(size))
    operation, one, other = size.source
    return operation(now(one, changed), now(other, changed))


def attributes(size: Any) -> Iterator[Attribute]:
    """Yield the attributes that a size depends on.

    Examples
    --------
    >>> [*attributes(3)]
    []
    """
    if isinstance(size, Size) and size.source is not None:
        if len(size.source) == 2:
            yield size.source
        else:
            for part in size.source[1:]:
                yield from attributes(part)


def give_sources_(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Let the numbers of a model's modules know where they are from, but for those of some kinds and of torch.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> give_sources_(model, (nn.Linear,))
    >>> type(model[0].in_features).__name__
    'int'
    """
    for path, module in model.named_modules():
        if isinstance(module, kinds) or type(module).__module__.startswith("torch."):
            continue
        for name, value in module.__dict__.items():
            if type(value) is int and value > 1:
                module.__dict__[name] = Size(value, (path, name))


@dataclass(frozen=True)
class Use:
    """A size of a reshaping that has to follow units.

    Attributes
    ----------
    node : torch.fx.Node
        The call that is given the size.
    size : Size
    labels : [size] int64
        The units along the dimension.
    place : str
    """

    node: fx.Node
    size: Size
    labels: Tensor
    place: str


def settle(
    uses: list[Use], graph: fx.Graph, couple: Callable[[Tensor, Tensor, str], None], keep: Callable[[Tensor, str], None]
) -> None:
    """Couple the units that one attribute counts; let them stay where it is used in another way too.

    Parameters
    ----------
    uses : list of Use
    graph : torch.fx.Graph
    couple : function of two [n] units and a place
    keep : function of units and a reason
    """
    plain: dict[Attribute, list[Use]] = {}
    for use in uses:
        if len(use.size.source) == 2:
            plain.setdefault(use.size.source, []).append(use)
    for (path, name), found in plain.items():
        for use in found[1:]:
            couple(found[0].labels, use.labels, use.place)
        known = {(use.node, id(use.size)) for use in uses}
        for node in graph.nodes:
            if any((path, name) in attributes(size) and (node, id(size)) not in known for size in sizes_in(node)):
                for use in found:
                    keep(use.labels, f"{node.name} works with {path}{'.' if path else ''}{name} too")
    for use in uses:
        if len(use.size.source) > 2 and plain.keys().isdisjoint(attributes(use.size)):
            keep(use.labels, f"{use.place} has a size that is computed from others")


def sizes_in(node: fx.Node) -> list[Size]:
    """Return the sizes among the arguments of a node that attributes of modules decide.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> sizes_in(graph.call_method("view", (graph.placeholder("x"), -1, Size(3, ("a", "h")))))
    [3]
    """
    found: list[Size] = []
    fx.node.map_aggregate(
        (node.args, node.kwargs), lambda value: found.append(value) if isinstance(value, Size) else None
    )
    return found


def changes(uses: list[Use], lost: Tensor) -> dict[Attribute, int]:
    """Return the attributes that change when units are lost, and their new values.

    Raises
    ------
    ValueError
        When a size that is computed from them would not be right.
    """
    gone = lost.nonzero()[:, 0]
    wanted = [(use, int((~torch.isin(use.labels, gone)).sum())) for use in uses]
    changed = {use.size.source: n for use, n in wanted if len(use.size.source) == 2 and n != int(use.size)}
    wrong = [f"{now(use.size, changed)} for {n} in {use.place}" for use, n in wanted if now(use.size, changed) != n]
    if wrong:
        raise ValueError(
            "model must be one whose sizes follow its channels (exclude=[...] leaves layers as they are), got"
            f" {'; '.join(wrong)}"
        )
    return changed
