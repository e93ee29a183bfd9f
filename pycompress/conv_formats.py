"""The formats that the weight of a convolution is tried in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import grids, kernels
from .convolutions import Geometry
from .formats import Format, Int8, Sparse, has_bfloat16_weights, has_int8_weights
from .grids import GridRecord
from .linears import PRUNED_DENSITY, joined

WORDS_DENSITY = 0.75
"""Sparse int8 weights are tried where less than this fraction of the words of four channels is not zero."""


def candidates(
    layer: nn.Conv1d | nn.Conv2d,
    form: Geometry,
    format: Format | None,
    record: GridRecord | None,
    shared: dict[tuple[Any, ...], Any],
) -> tuple[list[kernels.PackedConv], str]:
    """Pack the weight of a convolution in the formats worth trying; the counterpart of ``linears.candidates``.

    Examples
    --------
    >>> layer, form = nn.Conv1d(2, 3, 1), Geometry((1,), ((0, 0),), (1,), 1)
    >>> [packed], note = candidates(layer, form, Int8(), None, {})
    >>> packed.shape, note
    ((3, 2, 1), '')
    """
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    on_grid, note = None, ""
    if record is not None and isinstance(record.format, Int8):
        on_grid = grids.integers(weight, record)
        if on_grid is None:
            note = "the weight was changed since it was quantized, so that its Int8 grid no longer holds"
    if isinstance(format, Sparse) and (why := _not_sparse(weight, format)):
        return [], why
    if format is not None and not isinstance(format, (Int8, Sparse)):
        return [], f"{type(format).__name__} has no kernel for convolutions"
    formats: list[Int8 | Sparse] = [] if format is None else [format]
    if format is None and on_grid is not None:
        formats.append(Int8())
        skipping = Sparse(kernels.find_block(on_grid.flatten(1), Int8()), Int8())
        if _worth_trying(on_grid) and not _not_sparse(weight, skipping):
            formats.append(skipping)
    if format is None and is_pruned(weight):
        sparse = Sparse(kernels.find_block(weight.flatten(1)))
        why = _not_sparse(weight, sparse)
        note = joined(note, f"pruned, but {why}") if why else note
        formats += [] if why else [sparse]
    if not formats:
        return [], note or "neither quantized to Int8 nor pruned"
    found = []
    for each in formats:
        values, scale, input_scale = weight, None, None
        if record is not None and on_grid is not None and has_int8_weights(each):
            values, scale, input_scale = on_grid, record.scale, record.input_scale
        key = (id(layer.weight), id(layer.bias), form, each, scale is None, input_scale)
        if key not in shared:
            shared[key] = kernels.pack_conv(values, each, bias, scale, input_scale, **form._asdict())
        found.append(shared[key])
    return found, note


def is_pruned(weight: Tensor) -> bool:
    """Whether a weight is one that ``pack`` tries to keep sparse.

    Examples
    --------
    >>> is_pruned(torch.eye(4))
    True
    """
    return bool(torch.count_nonzero(weight) < PRUNED_DENSITY * weight.numel())


def _worth_trying(integers: Tensor) -> bool:
    """Whether enough words of four channels are zero, which the int8 kernels skip; pack measures what it gains."""
    used = integers.flatten(2) != 0
    padded = nn.functional.pad(used, (0, 0, 0, -used.shape[1] % 4))
    words = padded.reshape(len(used), -1, 4, used.shape[2]).any(2)
    return bool(words.float().mean() < WORDS_DENSITY)


def _not_sparse(weight: Tensor, format: Sparse) -> str:
    """Return why no sparse kernel fits a weight of a convolution, or "" where one does."""
    if has_bfloat16_weights(format):
        return "Sparse with BFloat16 values has no kernel for convolutions"
    return "Sparse has no kernel for one channel a group" if weight.shape[1] == 1 else ""
