"""Labels: the output of a layer that each position of a tensor comes from; and which outputs must go together.

All outputs of all layers are numbered: these numbers are the units. The labels of a tensor of d dimensions are an int64
tensor of d dimensions that holds a unit for each position, and that has size 1 along each dimension on which the units
do not depend: [1, 8, 1, 1] for the [N, 8, H, W] that a convolution gives. ``NONE`` stands where there is no unit: for
the model's inputs, say. So an operation that only moves positions can be run on the labels as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .sizes import Use

NONE = -1

Kind = Literal["output", "fixed", "unknown"]
"""Why units stay: they are given out by the model; they are joined with what keeps its size; nobody knows their way."""


def unlabelled(dims: int) -> Tensor:
    """Return the labels of a tensor without units.

    Examples
    --------
    >>> unlabelled(2)
    tensor([[-1]])
    """
    return torch.full((1,) * dims, NONE)


@dataclass(frozen=True)
class Stack:
    """The labels of a tensor whose first dimension holds one row for each layer and direction, as ``h_n`` of an LSTM.

    Attributes
    ----------
    rows : tuple of Tensor
        The labels of each row. All rows lose as many units.
    """

    rows: tuple[Tensor, ...]


@dataclass(frozen=True)
class Part:
    """A dimension of a parameter that is made of units.

    Attributes
    ----------
    parameter : str
        Its name in the module.
    dim : int
    units : [size] int64
        The unit of each position, or NONE.
    key : str
        Under which the units are known in ``Coupling.outputs`` when this parameter tells how much they matter; else "".
    """

    parameter: str
    dim: int
    units: Tensor
    key: str = ""


def narrow(labels: Tensor) -> Tensor:
    """Return labels with size 1 along each dimension that they do not vary along.

    Examples
    --------
    >>> narrow(torch.tensor([[3, 4], [3, 4]]))
    tensor([[3, 4]])
    """
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(dim, 0, 1)
            labels = first if bool((labels == first).all()) else labels
    return labels


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions that labels vary along.

    Examples
    --------
    >>> varying(torch.tensor([[3, 4]]))
    [1]
    """
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def along(labels: Tensor, dim: int, size: int) -> Tensor | None:
    """Return the labels of the positions of one dimension, or None when they vary along another.

    Examples
    --------
    >>> along(torch.tensor([[3, 4]]), 1, 2), along(torch.tensor([[3, 4]]), 0, 5)
    (tensor([3, 4]), None)
    """
    return None if set(varying(labels)) - {dim} else labels.reshape(-1).expand(size)


@dataclass(frozen=True)
class Mark:
    """Units that stay, and why, in the words of a message."""

    kind: Kind
    units: Tensor
    reason: str


@dataclass
class Coupling:
    """What is known of the units of a model.

    Attributes
    ----------
    outputs : dict of key to [outputs] int64
        The units of the outputs of a layer, whose name is the key. A layer of one output has none, for it cannot lose
        it. A module with several sets of units (an LSTM has one for each layer and direction) has several keys.
    owners : dict of key to module name
        Where the key is not the name; "" for units that no layer has: of a tensor of zeros whose size follows.
    inputs : dict of module name to [inputs] int64
        For a layer or a normalization or a PReLU: the unit that each of its inputs (channels) comes from, or NONE. For
        several calls the units of the first; those of the others are coupled with them.
    parts : dict of module name to list of Part
        Which entries of its parameters go with which units; for modules whose ``outputs`` and ``inputs`` do not say it.
    even : dict of name to list of [n] int64
        Units of which equally many go.
    pairs : list of [2, n] int64
        Units that can only go together.
    marks : list of Mark
    uses : list of Use
        Sizes that have to follow units, of attributes of modules.

    Examples
    --------
    >>> coupling = Coupling()
    >>> coupling.add_layer("a", 2), coupling.add_layer("b", 2)
    (tensor([0, 1]), tensor([2, 3]))
    >>> coupling.couple(torch.tensor([0, NONE]), torch.tensor([2, 3]), "add")
    >>> coupling.components().tolist(), coupling.marks[0].units, coupling.marks[0].reason
    ([0, 1, 0, 2], tensor([3]), 'add joins its channels with some that stay')
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    even: dict[str, list[Tensor]] = field(default_factory=dict)
    pairs: list[Tensor] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    count: int = 0

    def add_layer(self, name: str, outputs: int, owner: str | None = None) -> Tensor:
        """Return the units of a layer's outputs; a layer that is called twice has the same ones."""
        if outputs == 1:
            return unlabelled(1)
        if name not in self.outputs:
            self.outputs[name] = torch.arange(self.count, self.count + outputs)
            self.count += outputs
            if owner is not None and owner != name:
                self.owners[name] = owner
        return self.outputs[name]

    def add_free(self, key: str, size: int) -> Tensor:
        """Return units that belong to no layer, and go with those that they meet."""
        units = self.add_layer(key, size).expand(size)
        self.owners[key] = ""
        return units

    def owner(self, key: str) -> str:
        """Return the name of the module that has some units; "" where none has."""
        return self.owners.get(key, key)

    def layers(self, keys: Iterable[str]) -> list[str]:
        """Return the names of the modules that have some units."""
        names = ((key, self.owner(key)) for key in keys)
        return list(dict.fromkeys(name for key, name in names if name or key not in self.owners))

    def units(self) -> dict[str, list[Tensor]]:
        """Return the units that each module gives or takes."""
        found: dict[str, list[Tensor]] = {}
        for key, units in self.outputs.items():
            for name in self.layers([key]):
                found.setdefault(name, []).append(units)
        for name, units in self.inputs.items():
            found.setdefault(name, []).append(units)
        return found

    def enter(self, name: str, labels: Tensor, place: str) -> None:
        """Note what the inputs of a module are."""
        if name in self.inputs:
            self.couple(self.inputs[name], labels, place)
        else:
            self.inputs[name] = labels

    def couple(self, a: Tensor, b: Tensor, place: str) -> None:
        """Let units go together, position by position; those that meet no unit stay."""
        a, b = a + torch.zeros_like(b), b + torch.zeros_like(a)  # of one shape
        both = (a != NONE) & (b != NONE)
        self.pairs.append(torch.stack([a[both], b[both]]))
        self.mark("fixed", torch.cat([a[~both], b[~both]]), f"{place} joins its channels with some that stay")

    def mark(self, kind: Kind, labels: Tensor, reason: str) -> None:
        """Note why units stay."""
        units: Tensor = torch.unique(labels[labels != NONE])
        if units.numel():
            self.marks.append(Mark(kind, units, reason))

    def components(self) -> Tensor:
        """Return, for each unit, the number of the set that it goes with; sets are numbered by their first units."""
        parent = list(range(self.count))

        def root(unit: int) -> int:
            while parent[unit] != unit:
                parent[unit] = parent[parent[unit]]
                unit = parent[unit]
            return unit

        for pairs in self.pairs:
            for a, b in pairs.T.tolist():
                first, second = sorted((root(a), root(b)))
                parent[second] = first
        # Roots are the first units of their sets, so that sorting them numbers the sets by these.
        roots = torch.tensor([root(unit) for unit in range(self.count)], dtype=torch.int64)
        numbers: Tensor = torch.unique(roots, return_inverse=True)[1]
        return numbers
