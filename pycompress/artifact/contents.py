"""What a file holds, checked as a whole and not yet decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import NamedTuple

from ..formats import (
    Codebook,
    Int4,
    Int8,
    Sparse,
    code_bits,
    has_bfloat16_weights,
    has_int8_activations,
    has_int8_weights,
)
from . import attention, coding, embeddings, recurrent
from .container import ArtifactError, Entry, Header, digest_fits, read_header
from .durable import check_path, read_file
from .schema import VERSION, LayerRecord, Metadata, TensorRecord, read_metadata


class Stored(NamedTuple):
    """One tensor that a file holds: dtype and shape as decoded, the record of its coding, and its parts in the file."""

    dtype: str
    shape: tuple[int, ...]
    record: TensorRecord | None
    parts: dict[str, str]


@dataclass(frozen=True)
class Contents:
    """A file whose header and metadata were checked: tensors by name (the tied ones under every name), and layers."""

    header: Header
    metadata: Metadata
    tensors: dict[str, Stored]

    def owner(self, name: str) -> str:
        """Return the name under which a tensor is stored."""
        return self.metadata.tied.get(name, name)


def read_contents(data: bytes) -> Contents:
    """Check the header and the metadata of a file and that they fit each other.

    Raises
    ------
    ArtifactError
        When anything is not as FORMAT.md says. The digest is not looked at.

    Examples
    --------
    >>> import torch
    >>> from pycompress.artifact import to_bytes
    >>> read_contents(to_bytes(torch.nn.Linear(2, 1))).tensors["weight"].shape
    (1, 2)
    """
    header = read_header(data)
    metadata = read_metadata(header.metadata)
    tensors: dict[str, Stored] = {}
    unclaimed = dict(header.tensors)
    for name, record in metadata.tensors.items():
        required, optional = coding.part_names(record)
        parts = {part: f"{name}:{part}" for part in sorted(required | optional)}
        missing = [parts[part] for part in required if parts[part] not in unclaimed]
        if missing:
            raise ArtifactError(f"tensor {name!r:.99} must have its parts, missing {missing!r:.300}")
        parts = {part: full for part, full in parts.items() if unclaimed.pop(full, None) is not None}
        tensors[name] = Stored(record.dtype, record.shape, record, parts)
    for name, entry in unclaimed.items():
        if name in tensors:
            raise ArtifactError(f"tensor {name!r:.99} must be stored once, got it plain and coded")
        tensors[name] = Stored(entry.dtype, entry.shape, None, {"": name})
    owners = dict(tensors)
    for name, owner in metadata.tied.items():
        if name in tensors or owner not in owners:
            raise ArtifactError(f"tensor {name!r:.99} must be tied to a stored one and not stored itself")
        tensors[name] = owners[owner]
    for name, layer in metadata.layers.items():
        if layer.packed is not None and layer.packed.recurrent is not None:
            recurrent.check(name, layer, layer.packed.recurrent, tensors)
        elif layer.packed is not None and layer.packed.attention is not None:
            attention.check(name, layer, layer.packed.attention, tensors)
        elif layer.packed is not None and layer.packed.embedding is not None:
            embeddings.check(name, layer, layer.packed.embedding, tensors)
        elif layer.packed is not None:
            _check_packed(name, layer, tensors)
        if layer.input_scale is not None and not _has_int8_inputs(name, layer, tensors):
            raise ArtifactError(f"layer {name!r:.99} must have int8 activations to have an input_scale")
    return Contents(header, metadata, tensors)


_PARTS = ("weight", "scale", "bias", "zero_point", "multiplier")


def packed_names(layer: str) -> dict[str, str]:
    """Return the names of the tensors of a packed layer.

    Examples
    --------
    >>> list(packed_names("fc").values())
    ['fc.weight', 'fc.scale', 'fc.bias', 'fc.zero_point', 'fc.multiplier']
    """
    return {part: f"{layer}.{part}" if layer else part for part in _PARTS}


def _has_int8_inputs(name: str, layer: LayerRecord, tensors: dict[str, Stored]) -> bool:
    if layer.packed is not None:
        return has_int8_activations(layer.packed.format)
    weight = tensors.get(packed_names(name)["weight"])
    return weight is not None and weight.record is not None and isinstance(weight.record.grid, Int8)


def _check_packed(name: str, layer: LayerRecord, tensors: dict[str, Stored]) -> None:
    found = {part: tensors[full] for part, full in packed_names(name).items() if full in tensors}
    weight, scale = found.get("weight"), found.get("scale")
    convolution = None if layer.packed is None else layer.packed.convolution
    format = None if layer.packed is None else layer.packed.format
    floats = "BF16" if has_bfloat16_weights(format) else "F32"
    if convolution is not None:
        _check_convolution(name, layer, weight, len(convolution.stride))
    elif weight is None or len(weight.shape) != 2 or weight.dtype not in ("I8", floats):
        raise ArtifactError(f"packed layer {name!r:.99} must have a weight [out, in], I8 or {floats}")
    assert weight is not None
    if any(stored.record is not None and stored.record.grid is not None for stored in found.values()):
        raise ArtifactError(f"packed layer {name!r:.99} must not have a grid: its scale is a tensor of its own")
    has_integers = has_int8_weights(format) or isinstance(format, Int4) or code_bits(format) is not None
    if (scale is not None) != (weight.dtype == "I8") or (has_integers and scale is None):
        raise ArtifactError(f"packed layer {name!r:.99} must have a scale with integers, and with these alone")
    expected: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("scale", "bias"), ("F32", weight.shape[:1]))
    if isinstance(format, Int4):
        side = weight.shape[0], -(-weight.shape[1] // format.group)
        if format.scales == "int":
            expected["multiplier"] = "U8", side
        else:
            expected["scale"] = "F16", side
        if format.zero_point:
            expected["zero_point"] = "U8", side
    if isinstance(format, Codebook):
        expected["scale"] = "F16", (weight.shape[0], -(-weight.shape[1] // format.group))
    for part, stored in found.items():
        if part != "weight" and (stored.dtype, stored.shape) != expected.get(part):
            wanted = f"a {part} {expected[part][0]} {expected[part][1]}" if part in expected else f"no {part}"
            raise ArtifactError(f"packed layer {name!r:.99} must have {wanted}, got {stored.dtype} {stored.shape}")
    if missing := expected.keys() - found.keys() - {"scale", "bias"}:
        raise ArtifactError(f"packed layer {name!r:.99} must have {sorted(missing)} with {format}")


def _check_convolution(name: str, layer: LayerRecord, weight: Stored | None, sides: int) -> None:
    format = None if layer.packed is None else layer.packed.format
    if not isinstance(format, (Int8, Sparse)) or has_bfloat16_weights(format):
        raise ArtifactError(f"packed convolution {name!r:.99} must be Int8, or Sparse with Float32 or Int8 values")
    dtype = "I8" if has_int8_weights(format) else "F32"
    if weight is None or len(weight.shape) != sides + 2 or weight.dtype != dtype or 0 in weight.shape:
        raise ArtifactError(
            f"packed convolution {name!r:.99} must have a weight {dtype} of {sides + 2} dimensions, not empty"
        )
    if weight.shape[0] % layer.groups:
        raise ArtifactError(f"packed convolution {name!r:.99} must have groups that divide {weight.shape[0]} outputs")


@dataclass(frozen=True)
class TensorDescription:
    """One stored tensor.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
        As decoded, by its name in safetensors.
    coding : str
        ``"plain"``, ``"nonzeros"``, or a grid such as ``"Int8()"``, or both; or ``"nibbles"``, or such as
        ``"4-bit codes"``.
    bytes : int
        What it takes in the file, without the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    coding: str
    bytes: int


@dataclass(frozen=True)
class Description:
    """What :func:`describe` finds in a file.

    Attributes
    ----------
    version : int
        Version of the format.
    bytes : int
        Size of the file.
    digest_ok : bool
        Whether the file is as it was written.
    tensors : tuple of TensorDescription
    tied : dict
        Name to the name of the tensor that it shares.
    layers : dict
        Layer name to LayerRecord: its packed format and the decision about it.
    """

    version: int
    bytes: int
    digest_ok: bool
    tensors: tuple[TensorDescription, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    layers: dict[str, LayerRecord] = field(default_factory=dict)


def describe(path: str | PathLike[str]) -> Description:
    """Say what a file holds, without a model and without decoding it.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Description

    Raises
    ------
    TypeError
        When path is no path.
    ArtifactError
        When the file is no artifact. A digest that does not fit is not an error here, but ``digest_ok=False``.
    OSError
        When the file cannot be read.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pycompress import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(torch.nn.Linear(2, 1), folder + "/model.safetensors")
    ...     found = describe(folder + "/model.safetensors")
    >>> found.version, found.digest_ok, found.tensors[0]
    (1, True, TensorDescription(name='bias', shape=(1,), dtype='F32', coding='plain', bytes=4))
    """
    check_path(path)
    data = read_file(path)
    contents = read_contents(data)
    tensors = [
        TensorDescription(name, stored.shape, stored.dtype, _coding(stored), _bytes(stored, contents.header.tensors))
        for name, stored in sorted(contents.tensors.items())
        if name not in contents.metadata.tied
    ]
    return Description(
        VERSION,
        len(data),
        digest_fits(data, contents.header),
        tuple(tensors),
        contents.metadata.tied,
        contents.metadata.layers,
    )


def _coding(stored: Stored) -> str:
    if stored.record is None:
        return "plain"
    words = [repr(stored.record.grid)] if stored.record.grid else []
    words += ["nonzeros"] if stored.record.nonzeros else []
    words += ["nibbles"] if stored.record.nibbles is not None else []
    return " + ".join(words if stored.record.codes is None else [*words, f"{stored.record.codes}-bit codes"])


def _bytes(stored: Stored, entries: dict[str, Entry]) -> int:
    return sum(entries[name].end - entries[name].begin for name in stored.parts.values())
