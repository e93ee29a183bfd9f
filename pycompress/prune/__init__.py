"""Pruning: score the weights, find which to remove, mask them."""

from __future__ import annotations

from .patterns import NM, Blocks, Columns, Rows, Structure, Unstructured
from .pruning import prune_
from .summary import LayerPruning, PruneSummary

__all__ = [
    "NM",
    "Blocks",
    "Columns",
    "LayerPruning",
    "PruneSummary",
    "Rows",
    "Structure",
    "Unstructured",
    "prune_",
]
