"""A packed weight as a vector of bytes, the form that an exported program holds.

The magic ``PYCWGT01``, the SHA-256 of all that follows, the length of a JSON header (uint32, little endian), the
header, and the arrays that it lists, one after the other, in their canonical form (integers or coded nonzeros, never
the layout of a CPU).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import weakref
from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import formats, kernels
from .codes import decode_nonzeros, encode_nonzeros

MAGIC = b"PYCWGT01"
_START = len(MAGIC) + 32
GEOMETRY = ("stride", "padding", "dilation", "groups", "channels_last")
"""What a convolution is beside its weight."""

_DTYPES = {"int8": np.int8, "uint8": np.uint8, "float32": np.float32, "float16": np.float16}

Packed = kernels.PackedWeight | kernels.PackedConv | kernels.PackedRecurrent


def exported(packed: Packed) -> Tensor:
    """Return the bytes of a weight for a program that is being exported.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weight into the program.
    """
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError("strict must be False where torch.export meets packed layers, got True")
    return to_bytes(packed)


def to_bytes(packed: Packed) -> Tensor:
    """Return a packed weight as [bytes] uint8, the form that an exported program holds.

    Parameters
    ----------
    packed : PackedWeight, PackedConv or PackedRecurrent

    Raises
    ------
    TypeError
        When it is none of them.

    Examples
    --------
    >>> packed = kernels.pack(np.eye(2, dtype=np.float32), formats.Int8())
    >>> from_bytes(to_bytes(packed)).canonical_weight()
    array([[127,   0],
           [  0, 127]], dtype=int8)
    """
    if not isinstance(packed, get_args(Packed)):
        raise TypeError(f"packed must be a PackedWeight, PackedConv or PackedRecurrent, got {type(packed).__name__}")
    header: dict[str, Any] = {"format": _plain(packed.format), "input_scale": packed.input_scale}
    arrays: Mapping[str, NDArray[Any] | None]
    if isinstance(packed, kernels.PackedRecurrent):
        header["cell"] = packed.cell
        arrays = packed.canonical()
    else:
        header["shape"] = packed.shape
        arrays = _arrays(packed)
    if isinstance(packed, kernels.PackedConv):
        header["geometry"] = {name: getattr(packed, name) for name in GEOMETRY}
    present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    header["arrays"] = {name: [array.dtype.name, array.shape] for name, array in present.items()}
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in present.values())])
    content = bytearray(MAGIC + hashlib.sha256(body).digest() + body)
    with _disable_current_modes():  # while a model is traced, new tensors would hold no numbers
        return torch.frombuffer(content, dtype=torch.uint8)


def _arrays(packed: kernels.PackedWeight | kernels.PackedConv) -> dict[str, NDArray[Any] | None]:
    arrays: dict[str, NDArray[Any] | None] = {"bias": packed.bias, "scale": packed.scale}
    if isinstance(packed, kernels.PackedWeight):
        arrays |= {"zero_point": packed.zero_point, "multiplier": packed.multiplier}
    weight = packed.canonical_weight()
    if isinstance(packed.format, formats.Sparse):
        arrays["gaps"], arrays["values"] = encode_nonzeros(weight)
    else:
        arrays["weight"] = weight
    return arrays


def from_bytes(content: Tensor, shape: tuple[int, ...] | None = None) -> Packed:
    """Pack a weight for this CPU from what :func:`to_bytes` returned.

    Parameters
    ----------
    content : [bytes] uint8
    shape : tuple of int, optional
        What the shape of the weight must be; nothing of another shape is decoded.

    Raises
    ------
    TypeError
        When content is no uint8 vector on the CPU.
    ValueError
        When it is damaged, of another version, or holds anything but a valid weight.

    Examples
    --------
    >>> from_bytes(torch.zeros(99, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: packed must be the bytes of a packed weight, got ones that do not begin with b'PYCWGT01'
    """
    if not isinstance(content, Tensor) or content.dtype != torch.uint8 or content.ndim != 1:
        raise TypeError(f"packed must be a uint8 vector, got {content!r:.99}")
    if content.device.type != "cpu":
        raise TypeError(f"packed must be on the CPU, got {content.device}")
    data = content.detach().contiguous().numpy().data
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"packed must be the bytes of a packed weight, got ones that do not begin with {MAGIC!r}")
    if hashlib.sha256(data[_START:]).digest() != data[len(MAGIC) : _START]:
        raise ValueError("packed must be the bytes of a packed weight, got damaged ones (their digest differs)")
    try:
        return _decode(data[_START:], shape)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"packed must be the bytes of a packed weight, got wrong ones: {error!s:.300}") from error


def _decode(data: memoryview, expected: tuple[int, ...] | None) -> Packed:
    end = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(bytes(data[4:end]))
    geometry, cell = header.get("geometry"), header.get("cell")
    shape = () if cell is not None else _shape(header["shape"], 2 if geometry is None else None)
    if expected is not None and shape != expected:
        raise ValueError(f"its shape must be {expected}, got {shape}")
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, sizes) in header["arrays"].items():
        sizes = _shape(sizes)
        count, kind = math.prod(sizes), np.dtype(_DTYPES[dtype])
        if count * kind.itemsize > len(data) - end:
            raise ValueError(f"{name} must lie inside the bytes")
        arrays[name] = np.frombuffer(data, kind, count, end).reshape(sizes)
        end += arrays[name].nbytes
    if end != len(data):
        raise ValueError(f"there must be {end} bytes, got {len(data)}")
    kinds = (formats.Int8,) if cell is not None else (formats.Int8, formats.Sparse)
    plain = geometry is None and cell is None
    format = _format(header["format"], get_args(formats.Format) if plain else kinds)
    if cell is not None:
        return _recurrent(cell, format, arrays, header["input_scale"])
    if isinstance(format, formats.Sparse):
        weight = decode_nonzeros(arrays.pop("gaps"), arrays.pop("values"), shape)
    else:
        weight = arrays.pop("weight")
    bias, scale = arrays.pop("bias", None), arrays.pop("scale", None)
    beside = geometry
    if geometry is None:
        beside = {name: arrays.pop(name, None) for name in ("zero_point", "multiplier")}
    if arrays or weight.shape != shape or (weight.dtype == np.int8 and (weight == -128).any()):
        raise ValueError(f"weight must be {shape} with integers from -127 to 127, beside bias and scales")
    pack: Any = kernels.pack if geometry is None else kernels.pack_conv
    return cast(Packed, pack(weight, format, bias, scale, header["input_scale"], **beside))


def _recurrent(
    cell: str, format: formats.Int8, arrays: dict[str, NDArray[Any]], input_scale: float | None
) -> kernels.PackedRecurrent:
    wrong = [name for name, a in arrays.items() if (a.dtype == np.int8) != name.startswith("weight_")]
    if wrong or any((array == -128).any() for array in arrays.values() if array.dtype == np.int8):
        raise ValueError("weights must be integers from -127 to 127, beside float32 biases and scales")
    packs = {"lstm": kernels.pack_lstm, "gru": kernels.pack_gru}
    return packs[cell](**arrays, format=format, input_scale=input_scale)


def _shape(value: Any, ndim: int | None = None) -> tuple[Any, ...]:
    if (
        not isinstance(value, list)
        or any(type(n) is not int or n < 0 for n in value)
        or len(value) != (ndim or len(value))
    ):
        raise ValueError(f"a shape must be a list of sizes, got {value!r:.99}")
    return tuple(value)


def _plain(format: Any) -> dict[str, Any]:
    """Name and fields of a format."""
    values = ((field.name, getattr(format, field.name)) for field in dataclasses.fields(format))
    fields = {name: _plain(value) if dataclasses.is_dataclass(value) else value for name, value in values}
    return {"name": type(format).__name__, **fields}


def _format(value: Any, allowed: tuple[Any, ...]) -> Any:
    fields = dict(value)
    name = fields.pop("name")
    cls = next((cls for cls in allowed if cls.__name__ == name), None)
    if cls is None:
        raise ValueError(f"format must be one of {[cls.__name__ for cls in allowed]}, got {name!r:.99}")
    for key, item in fields.items():
        if isinstance(item, dict):
            fields[key] = _format(item, tuple(formats.BLOCKS))
        elif isinstance(item, list):
            fields[key] = tuple(item)
    return cls(**fields)


_unpacked: dict[tuple[int, int, int], tuple[weakref.ref[Any], Packed]] = {}
"""What bytes were packed already, by where they lie, for as long as their storage lives."""


def found(content: Tensor, shape: tuple[int, ...] | None) -> Any:
    """Return what :func:`from_bytes` does, packed once for as long as the bytes live."""
    storage = content.untyped_storage()
    key = storage._cdata, content.data_ptr(), content.numel()
    entry = _unpacked.get(key)
    if entry is None or entry[0]() is not storage or getattr(entry[1], "shape", None) != shape:
        packed = from_bytes(content, shape)
        # What runs when the storage dies must not delete the entry of another one at the same address.
        entry = weakref.ref(storage, lambda ref: _unpacked.pop(key) if _unpacked[key][0] is ref else None), packed
        _unpacked[key] = entry
    return entry[1]
