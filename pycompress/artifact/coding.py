"""One tensor as the parts that a file holds of it, and back, bit for bit.

A tensor is stored as it is; or as the values that are not zero and the distances between them, where that is smaller;
or, when its layer has a quantization grid that it lies on, as the integers of that grid; or, when it holds integers of
4 bits, two to a byte; or as codes of few bits, and the table of what they stand for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import grids
from ..codes import decode_codes, decode_nibbles, decode_nonzeros, encode_codes, encode_nibbles, encode_nonzeros
from ..formats import Affine, FixedPoint, Grid, Int8
from ..grids import GridRecord
from .container import ArtifactError
from .schema import TensorRecord

PART_BYTES = 160
"""What a coded tensor costs in the header, about; coding must save more than that."""

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(tensor: Tensor, grid: GridRecord | None = None) -> tuple[TensorRecord | None, dict[str, Tensor]]:
    """Code a tensor in the smallest way.

    Parameters
    ----------
    tensor : [any shape] any dtype of safetensors, dense
    grid : GridRecord, optional
        Used when the tensor lies on it exactly; then -0.0 counts as zero.

    Returns
    -------
    record : TensorRecord or None
        None when the tensor is stored as it is.
    parts : dict of tensors
        ``""`` the tensor itself; or ``"gaps"``, ``"values"``, ``"scale"``, ``"zero_point"``, those that are needed.

    Examples
    --------
    >>> record, parts = encode(torch.eye(100))
    >>> record.nonzeros, list(parts), parts["gaps"][:3]
    (True, ['gaps', 'values'], tensor([  0, 100, 100], dtype=torch.uint8))
    """
    tensor = tensor.detach().cpu().contiguous()
    shape, dtype = tuple(tensor.shape), DTYPES[tensor.dtype]
    integers = None if grid is None else grids.integers(tensor, grid)
    if grid is not None and integers is not None:
        kept = (tensor != 0).reshape(-1)
        parts = {"values": integers, "scale": grid.scale.cpu()}
        if bool((grid.zero_point != 0).any()):
            parts["zero_point"] = grid.zero_point.cpu()
        gaps = _gaps(kept, integers.element_size(), needed=not grids.has_zero(grid) and not bool(kept.all()))
        if gaps is not None:
            parts |= {"gaps": gaps, "values": _select(integers, kept)}
        return TensorRecord(shape, dtype, gaps is not None, grid.format), parts
    kept = _bits(tensor) != 0
    gaps = _gaps(kept, tensor.element_size())
    if gaps is None:
        return None, {"": tensor}
    return TensorRecord(shape, dtype, True), {"gaps": gaps, "values": _select(tensor, kept)}


def encode_integers(tensor: Tensor, offset: int) -> tuple[TensorRecord, dict[str, Tensor]]:
    """Code integers from -offset to 15 - offset, two to a byte.

    Parameters
    ----------
    tensor : [any shape] int8
    offset : 0 or 8

    Returns
    -------
    record : TensorRecord
    parts : dict of tensors
        ``"values"``.

    Examples
    --------
    >>> encode_integers(torch.tensor([-8, 7], dtype=torch.int8), 8)[1]
    {'values': tensor([240], dtype=torch.uint8)}
    """
    values = torch.from_numpy(encode_nibbles(tensor.numpy(), offset))
    return TensorRecord(tuple(tensor.shape), "I8", nibbles=offset), {"values": values}


def encode_table(tensor: Tensor, bits: int) -> tuple[TensorRecord, dict[str, Tensor]]:
    """Code integers of which at most 2^bits are different as codes, and their table.

    Parameters
    ----------
    tensor : [any shape] int8
    bits : 1, 2 or 4

    Returns
    -------
    record : TensorRecord
    parts : dict of tensors
        ``"values"``, ``"table"``.

    Examples
    --------
    >>> encode_table(torch.tensor([-8, 7, 7], dtype=torch.int8), 2)[1]
    {'values': tensor([20], dtype=torch.uint8), 'table': tensor([-8,  7], dtype=torch.int8)}
    """
    codes, table = encode_codes(tensor.numpy(), bits)
    parts = {"values": torch.from_numpy(codes), "table": torch.from_numpy(table)}
    return TensorRecord(tuple(tensor.shape), "I8", codes=bits), parts


def part_names(record: TensorRecord) -> tuple[set[str], set[str]]:
    """Return the parts that a coded tensor must have, and those that it may have.

    Examples
    --------
    >>> part_names(TensorRecord((2,), "F32", nonzeros=True)) == ({"gaps", "values"}, set())
    True
    """
    required = {"values"} | ({"gaps"} if record.nonzeros else set()) | ({"scale"} if record.grid else set())
    required |= {"table"} if record.codes is not None else set()
    return required, {"zero_point"} if isinstance(record.grid, Affine) else set()


def decode(record: TensorRecord, parts: dict[str, Tensor], name: str) -> tuple[Tensor, GridRecord | None]:
    """Invert :func:`encode` for a coded tensor. The caller has checked that the shape is one that it can afford.

    Parameters
    ----------
    record : TensorRecord
    parts : dict of tensors
        With the names of :func:`part_names`.
    name : str
        For messages.

    Returns
    -------
    tensor : [shape of record]
    grid : GridRecord or None

    Raises
    ------
    ArtifactError
        When the parts do not fit the record or each other.

    Examples
    --------
    >>> tensor = torch.eye(100)
    >>> torch.equal(decode(*encode(tensor), "weight")[0], tensor)
    True
    """
    try:
        if record.nibbles is not None:
            return torch.from_numpy(decode_nibbles(parts["values"].numpy(), record.nibbles, record.shape)), None
        if record.codes is not None:
            codes, table = parts["values"].numpy(), parts["table"].numpy()
            return torch.from_numpy(decode_codes(codes, table, record.codes, record.shape)), None
        if record.grid is None:
            values = parts["values"]
            _check(values.dtype == TORCH_DTYPES[record.dtype], f"values must be {record.dtype}", values)
            return _expand(parts["gaps"], values, record.shape), None
        return _from_grid(record, record.grid, parts)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"tensor {name!r:.99}: {error!s:.300}") from error


def _from_grid(record: TensorRecord, format: Grid, parts: dict[str, Tensor]) -> tuple[Tensor, GridRecord]:
    values, scale = parts["values"], parts["scale"]
    zero_point = parts.get("zero_point", torch.zeros_like(scale))
    grid = GridRecord(format, scale, zero_point)
    _check(scale.ndim == 0 or scale.shape == record.shape[:1], f"scale must be [] or {record.shape[:1]}", scale)
    if isinstance(format, FixedPoint):
        _check(bool((scale == 2.0**-format.bits).all()), f"scale must be 2^-{format.bits}", scale)
    _check(values.dtype in _integer_types(format), f"values must be {_integer_types(format)}", values)
    numbers, (low, high) = values.numpy(), grids.limits(grid)
    if numbers.size and not (int(numbers.min()) >= low and int(numbers.max()) <= high):
        raise ValueError(f"values must be from {low} to {high}, got {int(numbers.min())} to {int(numbers.max())}")
    zeros = None
    if record.nonzeros:
        zeros = ~_expand(parts["gaps"], torch.ones_like(values, dtype=torch.bool), record.shape)
        values = _expand(parts["gaps"], values, record.shape)
    _check(tuple(values.shape) == record.shape, f"values must have shape {record.shape}", values)
    weight = grids.weight_from(values, grid, zeros).to(TORCH_DTYPES[record.dtype])
    _check(bool(torch.isfinite(weight).all()), f"values times scale must fit into {record.dtype}", values)
    return weight, grid


def _integer_types(format: Grid) -> tuple[torch.dtype, ...]:
    if isinstance(format, Int8):
        return (torch.int8,)
    if isinstance(format, FixedPoint):
        return (torch.int8, torch.int16, torch.int32)
    if format.signed:
        return (torch.int8 if format.bits <= 8 else torch.int16,)
    return (torch.uint8 if format.bits <= 8 else torch.uint16,)


def _check(holds: bool, rule: str, found: Tensor) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {tuple(found.shape)} {DTYPES[found.dtype]}")


def _bits(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as flat integers of its item size: only +0.0 is 0."""
    return tensor.reshape(-1).view(_BITS[tensor.element_size()])


def _select(tensor: Tensor, kept: Tensor) -> Tensor:
    return _bits(tensor.contiguous())[kept].view(tensor.dtype)


def _gaps(kept: Tensor, item_bytes: int, needed: bool = False) -> Tensor | None:
    """Return the distances between the kept values, where they are needed or make the tensor smaller; else None."""
    budget = kept.numel() * item_bytes - PART_BYTES
    count = int(kept.sum())
    if not needed and count * (item_bytes + 1) >= budget:
        return None
    gaps, _ = encode_nonzeros(kept.numpy())
    return torch.from_numpy(gaps) if needed or gaps.size + count * item_bytes < budget else None


def _expand(gaps: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    bits = values.view(_BITS[values.element_size()])
    dense = decode_nonzeros(gaps.numpy(), np.ascontiguousarray(bits.numpy()), shape)
    return torch.from_numpy(dense).reshape(-1).view(values.dtype).reshape(shape)
