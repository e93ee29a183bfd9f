"""Packed embeddings in files: what a file says of them, and the checks of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..embeddings import PackedEmbedding, PackedEmbeddingBag
from ..formats import Int4, Int8
from ..rows import PackedRows, has_rows, pack_rows
from . import coding
from .container import ArtifactError
from .kinds import EmbeddingRecord
from .places import fits
from .schema import LayerRecord

if TYPE_CHECKING:
    from .contents import Stored


def record_of(layer: PackedEmbedding | PackedEmbeddingBag) -> EmbeddingRecord:
    """Return what a file says of a packed embedding beside its tensors.

    Examples
    --------
    >>> import torch
    >>> record_of(PackedEmbedding(pack_rows(torch.ones(3, 2)), padding_idx=1))
    EmbeddingRecord(mode=None, padding_idx=1, include_last_offset=False, dtype='F32')
    """
    dtype = coding.DTYPES[layer.dtype]
    if isinstance(layer, PackedEmbeddingBag):
        return EmbeddingRecord(layer.mode, layer.padding_idx, layer.include_last_offset, dtype)  # type: ignore[arg-type]
    return EmbeddingRecord(None, layer.padding_idx, dtype=dtype)


def check(path: str, layer: LayerRecord, record: EmbeddingRecord, tensors: dict[str, Stored]) -> None:
    """Raise an ArtifactError unless the tensors of a packed embedding are there and fit each other."""
    where, prefix = f"packed embedding {path!r:.99}", f"{path}." if path else ""
    packed = layer.packed
    assert packed is not None
    format = packed.format
    known = isinstance(format, Int8) or (isinstance(format, Int4) and has_rows(format))
    if not known or packed.activation or packed.convolution or packed.recurrent:
        raise ArtifactError(f"{where} must be Int8 or plain Int4, without an activation and another kind")
    if layer.input_scale is not None or layer.groups != 1:
        raise ArtifactError(f"{where} must not have an input_scale or groups")
    weight, scale = tensors.get(prefix + "weight"), tensors.get(prefix + "scale")
    if weight is None or weight.dtype != "I8" or len(weight.shape) != 2:
        raise ArtifactError(f"{where} must have a weight I8 [rows, columns]")
    expected: tuple[str, tuple[int, ...]] = "F32", weight.shape[:1]
    if isinstance(format, Int4):
        expected = "F16", (weight.shape[0], -(-weight.shape[1] // format.group))
    if scale is None or (scale.dtype, scale.shape) != expected:
        raise ArtifactError(f"{where} must have a scale {expected[0]} {expected[1]}")
    if any(stored.record is not None and stored.record.grid is not None for stored in (weight, scale)):
        raise ArtifactError(f"{where} must not have a grid: its scale is a tensor of its own")
    if others := [name for name in ("bias", "zero_point", "multiplier") if prefix + name in tensors]:
        raise ArtifactError(f"{where} must not have {others}")
    if record.padding_idx is not None and record.padding_idx >= weight.shape[0]:
        raise ArtifactError(f"{where} must have a padding_idx below {weight.shape[0]}, got {record.padding_idx}")


def faults(path: str, module: nn.Module, record: EmbeddingRecord, shape: tuple[int, ...]) -> list[str]:
    """Compare a packed embedding with its place in a model; the dtype is the file's."""
    bag = record.mode is not None
    kinds = (nn.EmbeddingBag, PackedEmbeddingBag) if bag else (nn.Embedding, PackedEmbedding)
    if not isinstance(module, kinds):
        name = kinds[0].__name__
        return [f"{path}, a packed {name} in the file and {type(module).__name__} in the model"]
    names = ["num_embeddings", "embedding_dim", "padding_idx", *(["mode", "include_last_offset"] if bag else [])]
    found = (*shape, record.padding_idx, *((record.mode, record.include_last_offset) if bag else ()))
    built = tuple(getattr(module, name) for name in names)
    return (
        []
        if fits(found, built, slice(1, 2))
        else [f"{path}, {tuple(names)} {found} in the file and {built} in the model"]
    )


def build(path: str, format: Int8 | Int4, weight: Tensor, scale: Tensor) -> PackedRows:
    """Make the table from its tensors.

    Raises
    ------
    ArtifactError
        When a tensor has values that no table has.
    """
    try:
        return pack_rows(weight, scale, format)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"packed embedding {path!r:.99}: {error!s:.300}") from error


def module_of(rows: PackedRows, record: EmbeddingRecord) -> PackedEmbedding | PackedEmbeddingBag:
    """Return the layer that a file describes on its table.

    Examples
    --------
    >>> import torch
    >>> module_of(pack_rows(torch.ones(3, 2)), EmbeddingRecord("max")).mode
    'max'
    """
    dtype = coding.TORCH_DTYPES[record.dtype]
    if record.mode is None:
        return PackedEmbedding(rows, record.padding_idx, dtype)
    return PackedEmbeddingBag(rows, record.mode, record.padding_idx, record.include_last_offset, dtype)
