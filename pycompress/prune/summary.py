"""What pruning did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPruning:
    """What became of one layer.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weight.
    zeros : int
        Pruned weights.
    total : int
        All weights.

    Examples
    --------
    >>> LayerPruning("fc", (2, 4), 6, 8).sparsity
    0.75
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    total: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is pruned."""
        return self.zeros / self.total if self.total else 0.0


@dataclass(frozen=True)
class PruneSummary:
    """What :func:`prune_` did, layer by layer; printed, it is a table.

    Attributes
    ----------
    layers : tuple of LayerPruning

    Examples
    --------
    >>> print(PruneSummary((LayerPruning("fc", (2, 4), 6, 8),)))
    fc   (2, 4)             6 of            8 pruned   75.00%
    all                     6 of            8 pruned   75.00%
    """

    layers: tuple[LayerPruning, ...]

    @property
    def zeros(self) -> int:
        """Pruned weights of all layers."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> int:
        """All weights of these layers."""
        return sum(layer.total for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of these weights that is pruned."""
        return self.zeros / self.total if self.total else 0.0

    def __str__(self) -> str:
        rows = [(layer.name, str(layer.shape), layer.zeros, layer.total, layer.sparsity) for layer in self.layers]
        rows.append(("all", "", self.zeros, self.total, self.sparsity))
        width, shape_width = (max(len(str(row[i])) for row in rows) for i in (0, 1))
        return "\n".join(
            f"{name:<{width}}  {shape:<{shape_width}}  {zeros:>12,} of {total:>12,} pruned  {sparsity:7.2%}"
            for name, shape, zeros, total, sparsity in rows
        )
