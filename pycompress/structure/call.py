"""A call in the graph of a model, with what its rule needs to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .labels import Coupling, Stack, unlabelled, varying
from .tracing import Seen

MIXES = "is not known to keep channels apart"
SIZES = "has fixed sizes, which would not follow the channels"

Labels = Tensor | Stack | tuple["Labels", ...]
"""The labels of a tensor, or of a tuple of such."""


@dataclass(frozen=True)
class Call:
    """A node with what is known of its arguments.

    Attributes
    ----------
    node, module, place
        ``module`` is None for functions and methods; ``place`` is the node's name in messages.
    coupling : Coupling
        Where a rule writes down what goes together.
    labels, shapes : list
        Of the tensors among the arguments, in their order, repeated where an argument is.
    numbers : dict of node to list of Tensor
        For each size that a node gives, the units that it counts.
    known : dict of node to labels
        Of all nodes before this one.
    seen : dict of node to Seen
    """

    node: fx.Node
    module: Any
    place: str
    coupling: Coupling
    labels: list[Tensor]
    shapes: list[tuple[int, ...]]
    numbers: dict[fx.Node, list[Tensor]]
    known: dict[fx.Node, Labels]
    seen: dict[fx.Node, Seen]

    @property
    def name(self) -> str:
        """The name of the function or method; "" for a module."""
        if isinstance(self.module, nn.Module):
            return ""
        return self.node.target if isinstance(self.node.target, str) else getattr(self.node.target, "__name__", "")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result, a tensor."""
        shape = self.seen[self.node].shape
        assert shape is not None
        return shape

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument as it stands in the graph: sizes that are computed are nodes."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, self.node.kwargs.get("axis", default) if name == "dim" else default)

    def value(self, argument: Any) -> Any:
        """Return the value that an argument without tensors had."""
        return fx.node.map_arg(argument, lambda node: self.seen[node].value)

    def labels_of(self, argument: Any) -> Any:
        """Return the labels of an argument, a tensor or a tuple of such; None where it is None."""
        if isinstance(argument, (tuple, list)):
            return tuple(map(self.labels_of, argument))
        if not isinstance(argument, fx.Node):
            return None
        seen = self.seen[argument]
        if seen.shape is None and seen.parts is None:
            return None
        return self.known.get(argument, unlabelled_like(seen))

    def entering(self) -> list[Tensor]:
        """Return the labels of all tensors among the arguments, also of those in tuples."""
        found = (self.known[node] for node in self.node.all_input_nodes if node in self.known)
        return [part for labels in found for part in tensors_of(labels)]

    def follows(self, size: Any, labels: Tensor) -> bool:
        """Whether a size is computed from the number of some of these units."""
        if not isinstance(size, fx.Node):
            return False
        return any(bool(torch.isin(units, labels).any()) for units in self.numbers.get(size, []))


Rule = Callable[[Call], Labels | str]
"""Returns the labels of the result, or says why the units cannot be followed."""


def one_dimension(labels: Tensor) -> Tensor | str:
    """Return labels that vary along one dimension at most; others are not followed.

    Examples
    --------
    >>> one_dimension(torch.tensor([[1, 2]])), one_dimension(torch.tensor([[1, 2], [3, 4]]))
    (tensor([[1, 2]]), 'is not known to keep channels apart')
    """
    return labels if len(varying(labels)) <= 1 else MIXES


def unlabelled_like(seen: Seen) -> Labels:
    """Return the labels of a tensor, or of a tuple of such, without units.

    Examples
    --------
    >>> unlabelled_like(Seen(parts=(Seen(shape=(2, 3)), Seen(value=1))))
    (tensor([[-1]]), tensor(-1))
    """
    if seen.parts is not None:
        return tuple(map(unlabelled_like, seen.parts))
    return unlabelled(len(seen.shape or ()))


def tensors_of(labels: Labels) -> Iterator[Tensor]:
    """Yield all labels in a tuple of tensors.

    Examples
    --------
    >>> [*tensors_of((torch.tensor([1]), Stack((torch.tensor([2]),))))]
    [tensor([1]), tensor([2])]
    """
    if isinstance(labels, Tensor):
        yield labels
    else:
        for part in labels.rows if isinstance(labels, Stack) else labels:
            yield from tensors_of(part)
