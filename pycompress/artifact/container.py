"""The outer shell of an artifact: a safetensors file with one metadata string and one digest, checked strictly.

Every byte that is read here may come from an attacker: sizes are compared with the size of the file before anything
is allocated, and nothing is believed because the digest fits (anybody can compute a digest).
"""

from __future__ import annotations

import hashlib
import json
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "pycompress"
DIGEST = "pycompress.sha256"
DIGEST_BYTES = 32
MAX_HEADER = 4 * 2**20
MAX_DIMENSIONS = 16

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


class ArtifactError(ValueError):
    """A file is no artifact, is damaged, or does not fit the model; or a model holds what no artifact can hold.

    Examples
    --------
    >>> issubclass(ArtifactError, ValueError)
    True
    """


class Entry(NamedTuple):
    """One tensor of the header: where its bytes lie in the file, ``begin`` to ``end``."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The checked header of a file: the tensors but the digest, the metadata string, and where the digest lies."""

    tensors: dict[str, Entry]
    metadata: str
    digest: Entry


def write_container(tensors: dict[str, Tensor], metadata: str) -> bytes:
    """Return the bytes of a safetensors file of the tensors, the metadata string and the digest over all of them.

    The digest is the SHA-256 of the whole file in which its own 32 bytes are zero.

    Parameters
    ----------
    tensors : dict of name to contiguous CPU tensor
    metadata : str

    Returns
    -------
    bytes

    Raises
    ------
    ArtifactError
        When a tensor has the name of the digest, or the header would be too long to be read again.

    Examples
    --------
    >>> import torch
    >>> read_header(write_container({"a": torch.zeros(2)}, "{}")).tensors["a"].shape
    (2,)
    """
    import torch
    from safetensors.torch import save

    if DIGEST in tensors:
        raise ArtifactError(f"a tensor must not have the name {DIGEST!r}, which belongs to the digest")
    digest = torch.zeros(DIGEST_BYTES, dtype=torch.uint8)
    data = bytearray(save(apart({**tensors, DIGEST: digest}), {METADATA: metadata}))
    begin = read_header(data).digest.begin
    data[begin : begin + DIGEST_BYTES] = hashlib.sha256(data).digest()
    return bytes(data)


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, copied where they are views of one memory, which safetensors refuses to write.

    Examples
    --------
    >>> import torch
    >>> a = torch.zeros(2)
    >>> [tensor.data_ptr() == a.data_ptr() for tensor in apart({"a": a, "b": a[:1]}).values()]
    [True, False]
    """
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def read_container(data: bytes, header: Header) -> dict[str, Tensor]:
    """Return the tensors of a file whose header and digest were checked.

    Examples
    --------
    >>> import torch
    >>> data = write_container({"a": torch.ones(2)}, "{}")
    >>> read_container(data, read_header(data))
    {'a': tensor([1., 1.])}
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    for name, entry in header.tensors.items():
        if entry.dtype == "BOOL" and data[entry.begin : entry.end].translate(None, b"\0\1"):
            raise ArtifactError(f"tensor {name!r:.99} must hold booleans, 0 or 1")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ArtifactError(f"the file must be a safetensors file: {error}") from error
    return {name: tensors[name] for name in header.tensors}


def digest_fits(data: bytes | bytearray, header: Header) -> bool:
    """Whether the digest in the file is that of its other bytes.

    Examples
    --------
    >>> data = bytearray(write_container({}, "{}"))
    >>> digest_fits(data, read_header(data))
    True
    >>> data[-1] ^= 1
    >>> digest_fits(data, read_header(data))
    False
    """
    begin, end = header.digest.begin, header.digest.end
    view = memoryview(data)
    found = hashlib.sha256(view[:begin])
    found.update(bytes(DIGEST_BYTES))
    found.update(view[end:])
    return found.digest() == view[begin:end]


def read_header(data: bytes | bytearray) -> Header:
    """Check the structure of a file against its size and return its header.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    Header

    Raises
    ------
    ArtifactError
        When the header is not the JSON of a safetensors file, the tensors do not fill the file without a hole or an
        overlap, the metadata string is missing, or there is no digest.

    Examples
    --------
    >>> read_header(b"short")
    Traceback (most recent call last):
    pycompress.artifact.container.ArtifactError: the file must begin with 8 bytes, the length of its header, got 5 bytes
    """
    if len(data) < 8:
        raise ArtifactError(f"the file must begin with 8 bytes, the length of its header, got {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ArtifactError(
            f"the header must end inside the file of {len(data)} bytes, and have at most {MAX_HEADER} bytes, got a "
            f"length of {length}"
        )
    header = read_json(bytes(data[8 : 8 + length]), "the header")
    if not isinstance(header, dict):
        raise ArtifactError(f"the header must be a JSON object, got {type(header).__name__}")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or set(metadata) != {METADATA} or not isinstance(metadata[METADATA], str):
        raise ArtifactError(f"the file must be an artifact of pycompress: no metadata string {METADATA!r}")
    start = 8 + length
    tensors = {name: _entry(name, value, start) for name, value in header.items()}
    position = start
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.begin != position:
            raise ArtifactError(f"tensor {name!r:.99} must begin at byte {position} of the file, got {entry.begin}")
        position = entry.end
    if position != len(data):
        raise ArtifactError(f"the tensors must end where the file ends, at byte {len(data)}, got {position}")
    digest = tensors.pop(DIGEST, None)
    if digest is None or digest.dtype != "U8" or digest.shape != (DIGEST_BYTES,):
        raise ArtifactError(f"the file must hold its digest, {DIGEST_BYTES} bytes named {DIGEST!r}")
    return Header(tensors, metadata[METADATA], digest)


def read_json(text: bytes | str, name: str) -> Any:
    """Parse JSON strictly: UTF-8, no key twice, no NaN or infinity, no nesting that is too deep.

    Examples
    --------
    >>> read_json('{"a": 1, "a": 2}', "the metadata")
    Traceback (most recent call last):
    pycompress.artifact.container.ArtifactError: the metadata must hold each key once, got 'a' twice
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=lambda pairs: _object(pairs, name),
            parse_constant=lambda constant: _no_constant(constant, name),
        )
    except ArtifactError:
        raise
    except RecursionError:
        raise ArtifactError(f"{name} must be JSON that is not nested deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ArtifactError(f"{name} must be JSON in UTF-8: {error}") from error


def _object(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ArtifactError(f"{name} must hold each key once, got {key!r:.99} twice")
        found[key] = value
    return found


def _no_constant(constant: str, name: str) -> NoReturn:
    raise ArtifactError(f"{name} must hold finite numbers, got {constant}")


def _entry(name: str, value: object, start: int) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"tensor {name!r:.99} must have exactly dtype, shape and data_offsets")
    dtype, offsets = value["dtype"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ArtifactError(f"tensor {name!r:.99} must have a known dtype, got {dtype!r:.99}")
    shape = read_shape(value["shape"], name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise ArtifactError(f"tensor {name!r:.99} must have two data_offsets, integers of 0 or more")
    begin, end = offsets
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise ArtifactError(
            f"tensor {name!r:.99} must have the bytes of {dtype} {list(shape)}, {prod(shape) * ITEM_BYTES[dtype]}, got "
            f"{end - begin}"
        )
    return Entry(dtype, shape, start + begin, start + end)


def read_shape(value: object, name: str) -> tuple[int, ...]:
    """Check that value is a list of a few sizes, and return them.

    Examples
    --------
    >>> read_shape([2, 3], "a")
    (2, 3)
    """
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS or not all(_is_size(size) for size in value):
        raise ArtifactError(
            f"tensor {name!r:.99} must have a shape of at most {MAX_DIMENSIONS} sizes from 0 to 2^63 - 1, got "
            f"{value!r:.99}"
        )
    return tuple(value)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
