"""The metadata of an artifact: what its tensors mean, as JSON and as records. FORMAT.md describes it for others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, cast, get_args

import numpy as np

from ..formats import BLOCKS, BFloat16, Float32, Format, Grid
from ..kernels.ops import Activation
from ..layers import LayerDecision
from .container import ITEM_BYTES, ArtifactError, read_json, read_shape
from .kinds import (
    AttentionRecord,
    ConvRecord,
    EmbeddingRecord,
    RecurrentRecord,
    read_attention,
    read_convolution,
    read_embedding,
    read_number,
    read_numbers,
    read_object,
    read_recurrent,
)

VERSION = 1


@dataclass(frozen=True)
class TensorRecord:
    """How a tensor is coded that is not stored as it is.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        The dtype of the decoded tensor, by its name in safetensors.
    nonzeros : bool
        Whether only the nonzeros are stored, with the distances between them.
    grid : Int8, Affine, FixedPoint or None
        The grid whose integers are stored in place of the numbers.
    nibbles : 0, 8 or None
        What was added to integers of 4 bits that are stored two to a byte.
    codes : 1, 2, 4 or None
        Bits of the codes that are stored in place of integers, beside the table of these.
    """

    shape: tuple[int, ...]
    dtype: str
    nonzeros: bool = False
    grid: Grid | None = None
    nibbles: int | None = None
    codes: int | None = None


@dataclass(frozen=True)
class PackedRecord:
    """What a packed layer is beside its tensors."""

    format: Format
    activation: Activation | None = None
    convolution: ConvRecord | None = None
    recurrent: RecurrentRecord | None = None
    embedding: EmbeddingRecord | None = None
    attention: AttentionRecord | None = None


@dataclass(frozen=True)
class LayerRecord:
    """What is known of one layer.

    Attributes
    ----------
    packed : PackedRecord or None
        For a packed layer.
    decision : LayerDecision or None
        Why it is packed or not.
    groups : int
        Groups of a convolution: its shapes do not tell them.
    input_scale : float or None
        Fixed scale of the int8 inputs of a packed layer, or of one that lies on a grid of Int8.
    fused : bool
        Whether it is an activation that the packed layer in front of it computes.
    chains : tuple of tuples of str
        For a Sequential: keys of packed layers that run in one call.
    removed : tuple of str
        Names that children of the module had, which were taken out.
    numbers : dict of str to int
        Attributes of the module that are not what they were when it was built.
    """

    packed: PackedRecord | None = None
    decision: LayerDecision | None = None
    groups: int = 1
    input_scale: float | None = None
    fused: bool = False
    chains: tuple[tuple[str, ...], ...] = ()
    removed: tuple[str, ...] = ()
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """All of the metadata.

    Attributes
    ----------
    tensors : dict
        Tensor name to record, for the coded ones.
    tied : dict
        Name to the name of the stored tensor that it shares.
    layers : dict
        Layer name to record.
    """

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    layers: dict[str, LayerRecord] = field(default_factory=dict)


def write_metadata(metadata: Metadata) -> str:
    """Return the metadata as JSON, with everything left out that has its default value.

    Examples
    --------
    >>> write_metadata(Metadata(tied={"b": "a"}))
    '{"version":1,"tied":{"b":"a"}}'
    """
    content = {"version": VERSION, **_plain(metadata)}
    for record in content.get("layers", {}).values():
        record.get("decision", {}).pop("name", None)  # it is the layer's
    try:
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ArtifactError(f"decisions must hold finite numbers: {error}") from error


def read_metadata(text: str) -> Metadata:
    """Check and parse the metadata string of a file.

    Raises
    ------
    ArtifactError
        When it is no JSON, of another version, or has a key, a type or a value that the version does not define.

    Examples
    --------
    >>> read_metadata('{"version": 2}')
    Traceback (most recent call last):
    pycompress.artifact.container.ArtifactError: metadata.version must be 1, the one that is known here, got 2
    """
    known = {"version", "tensors", "tied", "layers"}
    content = read_object(read_json(text, "the metadata"), "metadata", known, {"version"})
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise ArtifactError(
            f"metadata.version must be {VERSION}, the one that is known here, got {content['version']!r:.99}"
        )
    tensors = read_object(content.get("tensors", {}), "metadata.tensors")
    tied = read_object(content.get("tied", {}), "metadata.tied")
    layers = read_object(content.get("layers", {}), "metadata.layers")
    for name, owner in tied.items():
        if not isinstance(owner, str):
            raise ArtifactError(f"metadata.tied[{name!r:.99}] must be the name of a tensor, got {owner!r:.99}")
    return Metadata(
        {name: _tensor(value, f"metadata.tensors[{name!r:.99}]") for name, value in tensors.items()},
        tied,
        {name: _layer(value, name, f"metadata.layers[{name!r:.99}]") for name, value in layers.items()},
    )


_FORMATS: dict[str, Any] = {cls.__name__: cls for cls in (*get_args(Format), *get_args(Grid), BFloat16, Float32)}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts without their defaults; formats in full, with their name."""
    if type(value) in _FORMATS.values():
        return {"name": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: (getattr(value, f.name), f.default) for f in fields(value)}
        return {name: _plain(item) for name, (item, default) in found.items() if not _is_default(item, default)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_default(value: Any, default: Any) -> bool:
    return value == {} or (type(value) is type(default) and value == default)


def _tensor(value: object, where: str) -> TensorRecord:
    record = read_object(value, where, {f.name for f in fields(TensorRecord)}, {"shape", "dtype"})
    dtype, nonzeros = record["dtype"], record.get("nonzeros", False)
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ArtifactError(f"{where}.dtype must be a known dtype, got {dtype!r:.99}")
    if not isinstance(nonzeros, bool):
        raise ArtifactError(f"{where}.nonzeros must be true or false, got {nonzeros!r:.99}")
    grid = _format(record["grid"], f"{where}.grid", get_args(Grid)) if "grid" in record else None
    if grid is not None and dtype not in ("F16", "BF16", "F32", "F64"):
        raise ArtifactError(f"{where}.dtype must be F16, BF16, F32 or F64 on a grid, got {dtype!r}")
    nibbles = record.get("nibbles")
    if "nibbles" in record and (
        type(nibbles) is not int or nibbles not in (0, 8) or nonzeros or grid is not None or dtype != "I8"
    ):
        raise ArtifactError(
            f"{where}.nibbles must be 0 or 8, for an I8 tensor and no other coding, got {nibbles!r:.99}"
        )
    codes = record.get("codes")
    other = nonzeros or grid is not None or nibbles is not None
    if "codes" in record and (type(codes) is not int or codes not in (1, 2, 4) or other or dtype != "I8"):
        raise ArtifactError(f"{where}.codes must be 1, 2 or 4, for an I8 tensor and no other coding, got {codes!r:.99}")
    if not other and codes is None:
        raise ArtifactError(f"{where} must say how the tensor is coded: nonzeros, grid, nibbles or codes")
    return TensorRecord(read_shape(record["shape"], where), dtype, nonzeros, cast(Grid | None, grid), nibbles, codes)


def _layer(value: object, name: str, where: str) -> LayerRecord:
    record = read_object(value, where, {f.name for f in fields(LayerRecord)})
    packed = _packed(record["packed"], f"{where}.packed") if "packed" in record else None
    decision = _decision(record["decision"], name, f"{where}.decision") if "decision" in record else None
    groups = record.get("groups", 1)
    if type(groups) is not int or not 1 <= groups < 2**31:
        raise ArtifactError(f"{where}.groups must be a positive integer, got {groups!r:.99}")
    input_scale = _scale(record["input_scale"], f"{where}.input_scale") if "input_scale" in record else None
    fused = record.get("fused", False)
    if not isinstance(fused, bool):
        raise ArtifactError(f"{where}.fused must be true or false, got {fused!r:.99}")
    chains, removed = _chains(record.get("chains", []), where), record.get("removed", [])
    if not isinstance(removed, list) or not all(isinstance(key, str) for key in removed):
        raise ArtifactError(f"{where}.removed must be a list of names, got {removed!r:.99}")
    numbers = read_numbers(record.get("numbers", {}), f"{where}.numbers")
    return LayerRecord(packed, decision, groups, input_scale, fused, chains, tuple(removed), numbers)


def _chains(value: object, where: str) -> tuple[tuple[str, ...], ...]:
    lists: list[Any] = value if isinstance(value, list) else [None]
    if any(not isinstance(keys, list) or any(not isinstance(key, str) for key in keys) for keys in lists):
        raise ArtifactError(f"{where}.chains must be lists of keys, got {value!r:.99}")
    return tuple(tuple(keys) for keys in lists)


def _packed(value: object, where: str) -> PackedRecord:
    record = read_object(value, where, {f.name for f in fields(PackedRecord)}, {"format"})
    names, activation = get_args(Activation), record.get("activation")
    if "activation" in record and activation not in names:
        raise ArtifactError(f"{where}.activation must be one of {names}, got {activation!r:.99}")
    format = cast(Format, _format(record["format"], f"{where}.format", get_args(Format)))
    conv = read_convolution(record["convolution"], f"{where}.convolution") if "convolution" in record else None
    recurrent = read_recurrent(record["recurrent"], f"{where}.recurrent") if "recurrent" in record else None
    embedding = read_embedding(record["embedding"], f"{where}.embedding") if "embedding" in record else None
    attention = read_attention(record["attention"], f"{where}.attention") if "attention" in record else None
    if sum(kind is not None for kind in (conv, recurrent, embedding, attention)) > 1:
        raise ArtifactError(f"{where} must be Int8 of one kind, without another kind, got {sorted(record)!r:.99}")
    return PackedRecord(format, activation, conv, recurrent, embedding, attention)


def _decision(value: object, name: str, where: str) -> LayerDecision:
    record = read_object(value, where, {f.name for f in fields(LayerDecision)} - {"name"}, {"kind"})
    for key, item in record.items():
        if key == "format":
            record[key] = _format(item, f"{where}.format", get_args(Format))
        elif key in ("kind", "kernel", "reason"):
            if not isinstance(item, str):
                raise ArtifactError(f"{where}.{key} must be a string, got {item!r:.99}")
        elif key == "rows":
            if type(item) is not int or not 0 <= item < 2**63:
                raise ArtifactError(f"{where}.rows must be an integer of 0 or more, got {item!r:.99}")
        else:
            read_number(item, f"{where}.{key}")
    return LayerDecision(name, **record)


def _format(value: object, where: str, allowed: tuple[type, ...]) -> Any:
    record = dict(read_object(value, where))
    cls = _FORMATS.get(str(record.pop("name", None)))
    if cls not in allowed:
        raise ArtifactError(f"{where} must be one of {[c.__name__ for c in allowed]}, got {value!r:.99}")
    default = cls()
    found: dict[str, Any] = {}
    if set(record) != {f.name for f in fields(cls)}:
        raise ArtifactError(f"{where} must have exactly the fields of {default!r}, got {value!r:.99}")
    for key, item in record.items():
        expected = getattr(default, key)
        if is_dataclass(expected):
            found[key] = _format(item, f"{where}.{key}", tuple(BLOCKS))
        else:
            found[key] = tuple(item) if isinstance(item, list) else item
            if type(found[key]) is not type(expected):
                raise ArtifactError(f"{where}.{key} must be like {expected!r}, got {item!r:.99}")
    try:
        return cls(**found)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: {error!s:.300}") from error


def _scale(value: object, where: str) -> float:
    number = read_number(value, where)
    if not 2.0**-149 <= number < 2.0**128 * (1 - 2.0**-25):
        raise ArtifactError(f"{where} must be a positive number of float32, got {value!r:.99}")
    return number
