"""The operators ``torch.ops.pycompress.*`` that compiled and exported models call in place of packed layers.

Layers call the kernels directly; only what ``torch.compile`` and ``torch.export`` trace goes through the operators:

- ``linear(Tensor x, Tensor packed, int out_features, str? activation) -> Tensor`` takes the weight as bytes (see
  :func:`to_bytes`), so that an exported program holds it; a program needs ``import pycompress.torch_ops`` where it is
  loaded, and packs its weights for the CPU that runs it when they are first used.
- ``linear_here(Tensor x, int number, int out_features, str? activation) -> Tensor`` takes the number of a weight that
  lives in this process, so that a compiled model holds no second copy of it.
- ``conv(Tensor x, Tensor packed, str? activation, int[] shape, int[] stride, int[] padding, int[] dilation, int groups,
  bool channels_last) -> Tensor`` and ``conv_here``, with ``int number`` in place of ``packed``, are those of
  convolutions. The shape of the weight and its geometry must be those of the packed one; padding is (before, after) for
  each spatial dimension, in one list.

What an operator returns has a shape that follows from the call alone: torch keeps compiled code on disk by its calls,
and in the next process a number means another weight.

Bytes of a packed weight: the magic ``PYCWGT01``, the SHA-256 of all that follows, the length of a JSON header (uint32,
little endian), the header, and the arrays that it lists, one after the other, in their canonical form (integers or
coded nonzeros, never the layout of a CPU).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import weakref
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import formats, kernels
from .formats import decode_nonzeros, encode_nonzeros
from .kernels.immutable import Numbered, numbered
from .kernels.ops import Activation

MAGIC = b"PYCWGT01"
_START = len(MAGIC) + 32
_GEOMETRY = ("stride", "padding", "dilation", "groups", "channels_last")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = {"int8": np.int8, "uint8": np.uint8, "float32": np.float32, "float16": np.float16}

Packed = kernels.PackedWeight | kernels.PackedConv
_Kind = TypeVar("_Kind", bound=Numbered)

_library: Any = torch.library.Library("pycompress", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor packed, int out_features, str? activation) -> Tensor")
_library.define("linear_here(Tensor x, int number, int out_features, str? activation) -> Tensor")
_CONV = "str? activation, int[] shape, int[] stride, int[] padding, int[] dilation, int groups, bool channels_last"
_library.define(f"conv(Tensor x, Tensor packed, {_CONV}) -> Tensor")
_library.define(f"conv_here(Tensor x, int number, {_CONV}) -> Tensor")


def traced_linear(x: Tensor, packed: kernels.PackedWeight, activation: Activation | None) -> Tensor:
    """Call the operator that stands for ``kernels.linear`` in what is being traced.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weight into the program.
    """
    if not torch.compiler.is_exporting():
        result: Tensor = torch.ops.pycompress.linear_here(x, packed.number, packed.shape[0], activation)
        return result
    result = torch.ops.pycompress.linear(x, _exported(packed), packed.shape[0], activation)
    return result


def traced_conv(x: Tensor, packed: kernels.PackedConv, activation: Activation | None) -> Tensor:
    """Call the operator that stands for ``kernels.conv`` in what is being traced.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weight into the program.
    """
    if not torch.compiler.is_exporting():
        result: Tensor = torch.ops.pycompress.conv_here(x, packed.number, activation, *_geometry(packed))
        return result
    result = torch.ops.pycompress.conv(x, _exported(packed), activation, *_geometry(packed))
    return result


def _geometry(packed: kernels.PackedConv) -> tuple[Any, ...]:
    """What the operators of convolutions are told of a weight."""
    padding = [n for pair in packed.padding for n in pair]
    sizes = list(packed.shape), list(packed.stride), padding, list(packed.dilation)
    return *sizes, packed.groups, packed.channels_last


def _exported(packed: Packed) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError("strict must be False where torch.export meets packed layers, got True")
    return to_bytes(packed)


def to_bytes(packed: Packed) -> Tensor:
    """Return a packed weight as [bytes] uint8, the form that an exported program holds.

    Parameters
    ----------
    packed : PackedWeight or PackedConv

    Raises
    ------
    TypeError
        When it is neither.

    Examples
    --------
    >>> packed = kernels.pack(np.eye(2, dtype=np.float32), formats.Int8())
    >>> from_bytes(to_bytes(packed)).canonical_weight()
    array([[127,   0],
           [  0, 127]], dtype=int8)
    """
    if not isinstance(packed, (kernels.PackedWeight, kernels.PackedConv)):
        raise TypeError(f"packed must be a PackedWeight or PackedConv, got {type(packed).__name__}")
    arrays: dict[str, NDArray[Any] | None] = {"bias": packed.bias, "scale": packed.scale}
    if isinstance(packed, kernels.PackedWeight):
        arrays |= {"zero_point": packed.zero_point, "multiplier": packed.multiplier}
    weight = packed.canonical_weight()
    if isinstance(packed.format, formats.Sparse):
        arrays["gaps"], arrays["values"] = encode_nonzeros(weight)
    else:
        arrays["weight"] = weight
    present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    header: dict[str, Any] = {
        "format": _plain(packed.format),
        "shape": packed.shape,
        "input_scale": packed.input_scale,
        "arrays": {name: [array.dtype.name, array.shape] for name, array in present.items()},
    }
    if isinstance(packed, kernels.PackedConv):
        header["geometry"] = {name: getattr(packed, name) for name in _GEOMETRY}
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in present.values())])
    content = bytearray(MAGIC + hashlib.sha256(body).digest() + body)
    with _disable_current_modes():  # while a model is traced, new tensors would hold no numbers
        return torch.frombuffer(content, dtype=torch.uint8)


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
    geometry = header.get("geometry")
    shape = _shape(header["shape"], 2 if geometry is None else None)
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
    format = _format(header["format"], get_args(formats.Format) if geometry is None else (formats.Int8,))
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
            fields[key] = _format(item, (formats.Float32,))
        elif isinstance(item, list):
            fields[key] = tuple(item)
    return cls(**fields)


_unpacked: dict[tuple[int, int, int], tuple[weakref.ref[Any], Packed]] = {}
"""What bytes were packed already, by where they lie, for as long as their storage lives."""


def _found(content: Tensor, shape: tuple[int, ...]) -> Any:
    storage = content.untyped_storage()
    key = storage._cdata, content.data_ptr(), content.numel()
    entry = _unpacked.get(key)
    if entry is None or entry[0]() is not storage or entry[1].shape != shape:
        packed = from_bytes(content, shape)
        # What runs when the storage dies must not delete the entry of another one at the same address.
        entry = weakref.ref(storage, lambda ref: _unpacked.pop(key) if _unpacked[key][0] is ref else None), packed
        _unpacked[key] = entry
    return entry[1]


def _linear(x: Tensor, packed: Tensor, out_features: int, activation: Activation | None) -> Tensor:
    in_features = x.shape[-1] if x.ndim else 0
    result: Tensor = kernels.linear(x, _found(packed, (out_features, in_features)), activation)
    return result


def _here(number: int, kind: type[_Kind]) -> _Kind:
    packed = numbered(number, kind)
    if packed is None:
        raise ValueError(f"number must be that of a packed weight in this process, got {number}")
    return packed


def _linear_here(x: Tensor, number: int, out_features: int, activation: Activation | None) -> Tensor:
    packed = _here(number, kernels.PackedWeight)
    if packed.shape[0] != out_features:
        raise ValueError(f"out_features must be {packed.shape[0]}, got {out_features}")
    result: Tensor = kernels.linear(x, packed, activation)
    return result


def _linear_fake(x: Tensor, packed: Tensor | int, out_features: int, activation: Activation | None) -> Tensor:
    if x.ndim == 0 or x.dtype not in _FLOATS:
        raise TypeError(f"x must be [..., in_features] float32, float16 or bfloat16, got {kernels.arrays.describe(x)}")
    return x.new_empty((*x.shape[:-1], out_features))


def _conv(x: Tensor, packed: Tensor, activation: Activation | None, shape: list[int], *geometry: Any) -> Tensor:
    return _convolved(x, _found(packed, tuple(shape)), activation, (shape, *geometry))


def _conv_here(x: Tensor, number: int, activation: Activation | None, *geometry: Any) -> Tensor:
    return _convolved(x, _here(number, kernels.PackedConv), activation, geometry)


def _convolved(
    x: Tensor, packed: kernels.PackedConv, activation: Activation | None, geometry: tuple[Any, ...]
) -> Tensor:
    if geometry != _geometry(packed):
        raise ValueError(f"shape and geometry must be {_geometry(packed)}, got {geometry}")
    result: Tensor = kernels.conv(x, packed, activation)
    return result


def _conv_fake(
    x: Tensor,
    packed: Tensor | int,
    activation: Activation | None,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    sides = len(shape) - 2
    lead = x.ndim - 1 - sides  # 1 where there is a dimension of images
    dtype = torch.float32 if channels_last and x.dtype == torch.int8 else x.dtype
    if lead not in (0, 1) or dtype not in _FLOATS:
        form = "[images, channels, (height,) width] float32, float16 or bfloat16"
        raise TypeError(f"x must be {form}, got {kernels.arrays.describe(x)}")
    sizes = []
    for side, n in enumerate(x.shape[lead + 1 :]):
        reach = (shape[2 + side] - 1) * dilation[side] + 1
        sizes.append((n + padding[2 * side] + padding[2 * side + 1] - reach) // stride[side] + 1)
    size = *x.shape[:lead], shape[0], *sizes
    if channels_last or (x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)):
        order = *range(lead), lead + 1, lead + 2, lead
        return torch.empty_permuted(size, order, dtype=dtype, device=x.device)
    return x.new_empty(size)


_library.impl("linear", _linear, "CPU")
_library.impl("linear_here", _linear_here, "CPU")
_library.impl("conv", _conv, "CPU")
_library.impl("conv_here", _conv_here, "CPU")
for _name, _fake in (("linear", _linear_fake), ("conv", _conv_fake)):
    for _form in (_name, f"{_name}_here"):
        torch.library.register_fake(f"pycompress::{_form}", _fake, lib=_library)
