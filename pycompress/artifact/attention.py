"""Packed attention in files: the names, dtypes and shapes of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..attention import PackedMultiheadAttention, pack_parts, stems
from ..formats import Int8
from .container import ArtifactError
from .kinds import AttentionRecord
from .schema import LayerRecord

if TYPE_CHECKING:
    from .contents import Stored


def record_of(layer: PackedMultiheadAttention) -> AttentionRecord:
    """Return what a file says of packed attention beside its tensors.

    Examples
    --------
    >>> from pycompress.attention import packed_attention
    >>> record_of(packed_attention(nn.MultiheadAttention(8, 2, bias=False)))
    AttentionRecord(heads=2, batch_first=False, apart=False, bias=False)
    """
    return AttentionRecord(layer.num_heads, layer.batch_first, len(layer.packed) == 4, layer.bias)


def full_names(path: str, record: AttentionRecord) -> dict[str, str]:
    """Return the names of the layer's tensors in the file by those in the layer.

    Examples
    --------
    >>> list(full_names("attn", AttentionRecord(2)))
    ['in_proj_weight', 'in_proj_scale', 'out_proj.weight', 'out_proj.scale']
    """
    prefix = f"{path}." if path else ""
    parts = ("weight", "scale", "bias") if record.bias else ("weight", "scale")
    return {stem + part: prefix + stem + part for stem in stems(record.apart) for part in parts}


def check(path: str, layer: LayerRecord, record: AttentionRecord, tensors: dict[str, Stored]) -> None:
    """Raise an ArtifactError unless the tensors of packed attention are there and fit each other."""
    where, packed = f"packed attention {path!r:.99}", layer.packed
    assert packed is not None
    if not isinstance(packed.format, Int8) or packed.activation or packed.convolution or packed.embedding:
        raise ArtifactError(f"{where} must be Int8, without an activation and another kind")
    if layer.input_scale is not None or layer.groups != 1:
        raise ArtifactError(f"{where} must not have an input_scale or groups")
    shapes = {}
    for name, full in full_names(path, record).items():
        stored = tensors.get(full)
        if stored is None:
            raise ArtifactError(f"{where} must have a tensor {name}")
        if stored.record is not None and stored.record.grid is not None:
            raise ArtifactError(f"{where} must not have a grid: its scales are tensors of their own")
        if stored.dtype != ("I8" if name.endswith("weight") else "F32"):
            raise ArtifactError(f"{where} must have weights I8, scales and biases F32, got {name} {stored.dtype}")
        shapes[name] = stored.shape
    size = shapes["out_proj.weight"][0] if shapes["out_proj.weight"] else 0
    if not size or size % record.heads:
        raise ArtifactError(f"{where} must have outputs that its {record.heads} heads divide, got {size}")
    for stem in stems(record.apart):
        rows = 3 * size if stem == "in_proj_" else size
        found = shapes[stem + "weight"]
        free = stem in ("k_proj_", "v_proj_")
        if len(found) != 2 or found[0] != rows or (not free and found[1] != size):
            raise ArtifactError(f"{where} must have {stem}weight of shape {(rows, size)}, got {found}")
        for part in ("scale", "bias"):
            if shapes.get(stem + part, (rows,)) != (rows,):
                raise ArtifactError(f"{where} must have {stem}{part} of shape {(rows,)}, got {shapes[stem + part]}")


def faults(path: str, module: nn.Module, record: AttentionRecord, tensors: dict[str, Stored]) -> list[str]:
    """Compare packed attention with its place in a model."""
    if not isinstance(module, (nn.MultiheadAttention, PackedMultiheadAttention)):
        return [f"{path}, packed attention in the file and {type(module).__name__} in the model"]
    prefix = f"{path}." if path else ""
    size = tensors[prefix + "out_proj.weight"].shape[0]
    inside = [tensors[f"{prefix}{part}_proj_weight"].shape[1] for part in "kv"] if record.apart else [size, size]
    found = (size, record.heads, *inside, record.batch_first, record.bias)
    bias = module.bias if isinstance(module, PackedMultiheadAttention) else module.in_proj_bias is not None
    names = ("embed_dim", "num_heads", "kdim", "vdim", "batch_first")
    built = (*(getattr(module, name) for name in names), bias)
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return [f"{path}, which adds keys in the model, and packed attention does not"]
    return [] if found == built else [f"{path}, {(*names, 'bias')} {found} in the file and {built} in the model"]


def build(path: str, record: AttentionRecord, tensors: dict[str, Tensor]) -> PackedMultiheadAttention:
    """Pack the layer from its tensors, by their names in the layer.

    Raises
    ------
    ArtifactError
        When a tensor has values that no packed layer has.
    """
    try:
        if any(bool((value == -128).any()) for name, value in tensors.items() if name.endswith("weight")):
            raise ValueError("weights must be integers from -127 to 127, got -128")
        return PackedMultiheadAttention(pack_parts(tensors, record.apart), record.heads, record.batch_first)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"packed attention {path!r:.99}: {error!s:.300}") from error
