"""Tables whose rows are integers with scales: the weights of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .formats import Int4, Int8
from .kernels import arrays, int4
from .kernels.immutable import Immutable
from .kernels.packed import checked_scale, integers_of


class PackedRows(Immutable):
    """A table of rows as integers with scales, made by `pack_rows`.

    Int8: ``w[i, j] = weight[i, j] * scale[i]``. Int4: ``w[i, j] = weight[i, j] * scale[i, j // group]`` with integers
    from -8 to 7, two to a byte.

    Attributes
    ----------
    format : Int8 or Int4
    weight : [rows, columns] int8 tensor, or [rows, ceil(columns / 2)] uint8 tensor
        Of Int4 ``q + 8``, of an even column in the low half of a byte and of the next one in the high half.
    scale : [rows] float32 tensor, or [rows, groups] float16 tensor
    kernel : str
        ``"torch"``: ordinary gathers and one multiplication.
    shape : (int, int)
        Rows and columns.
    nbytes : int
        Bytes that the table holds in memory.
    bias : None

    Examples
    --------
    >>> pack_rows(torch.tensor([[2.0, -1.0]])).weight
    tensor([[127, -64]], dtype=torch.int8)
    """

    __slots__ = ("bias", "format", "kernel", "nbytes", "scale", "shape", "weight")

    weight: Tensor
    scale: Tensor
    format: Int8 | Int4
    kernel: str
    shape: tuple[int, int]
    nbytes: int
    bias: None

    def __repr__(self) -> str:
        return f"PackedRows({self.shape[0]}, {self.shape[1]}, {self.format})"

    def canonical_weight(self) -> NDArray[np.int8]:
        """Return the integers [rows, columns] as an array."""
        whole = self.weight if isinstance(self.format, Int8) else _apart(self.weight, self.shape[1]) - 8
        return whole.to(torch.int8).numpy()

    def gather(self, indices: Tensor) -> Tensor:
        """Return the rows [..., columns] float32 of indices [...].

        Raises
        ------
        IndexError
            When one lies outside the table; torch's own error.

        Examples
        --------
        >>> pack_rows(torch.tensor([[-8.0, 7.0, 4.0]]), format=Int4()).gather(torch.tensor([0]))
        tensor([[-8.,  7.,  4.]])
        """
        if isinstance(self.format, Int8):
            return F.embedding(indices, self.weight) * F.embedding(indices, self.scale[:, None])
        columns, group = self.shape[1], self.format.group
        values = _apart(F.embedding(indices, self.weight), columns).float() - 8
        scale = F.embedding(indices, self.scale).float()
        return values * scale.repeat_interleave(group, dim=-1)[..., :columns]

    def __reduce__(self) -> tuple[Any, ...]:
        return pack_rows, (torch.from_numpy(self.canonical_weight()), self.scale, self.format)


def _apart(nibbles: Tensor, columns: int) -> Tensor:
    """Return the halves of bytes [..., ceil(columns / 2)] as values [..., columns] uint8."""
    return torch.stack([nibbles & 15, nibbles >> 4], dim=-1).flatten(-2)[..., :columns]


def pack_rows(
    weight: arrays.ArrayLike, scale: arrays.ArrayLike | None = None, format: Int8 | Int4 | None = None
) -> PackedRows:
    """Round a table to integers, row by row.

    The formulas are those of ``kernels.pack``, so that a linear layer that shares the weight holds the same integers:
    ``scale[i] = max|w[i]| / 127``, ``q = rint(w / scale)`` with Int8; the same group by group with Int4.

    Parameters
    ----------
    weight : [rows, columns] float32, float16 or bfloat16, finite
        Or int8 with ``scale``: from -127 to 127 with Int8, from -8 to 7 with Int4.
    scale : [rows] or one float; with Int4 [rows, groups], optional
        Scales to use, positive with Int8.
    format : Int8 or Int4, optional
        By default Int8. Int4 without zero points, with float16 scales.

    Returns
    -------
    PackedRows

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype, shape or range.

    Examples
    --------
    >>> pack_rows(torch.zeros(3, 2)).scale
    tensor([1., 1., 1.])
    """
    format = Int8() if format is None else format
    if not isinstance(format, (Int8, Int4)):
        raise TypeError(f"format must be Int8() or Int4(), got {format!r}")
    if isinstance(format, Int4) and not has_rows(format):
        raise ValueError(f"format must be Int4 without zero points, with float16 scales and floats, got {format}")
    array = arrays.view(weight, "weight")
    if array.dtype != np.int8:
        array = arrays.float32(weight, "weight")
        arrays.finite(array, "weight")
    elif scale is None:
        raise ValueError("scale must be given with int8 integers in weight")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D [rows, columns], got {arrays.describe(weight)}")
    if isinstance(format, Int4):
        parts = int4.parts(array, format, scale, None, None)
        assert parts.scale is not None
        return _table(torch.from_numpy(_nibbles(parts.weight)), torch.from_numpy(parts.scale.copy()), format, array)
    values, scales = integers_of(array, checked_scale(scale, "scale", array.shape[0]))
    if (values == -128).any():
        raise ValueError("weight must be integers from -127 to 127, got -128")
    return _table(torch.from_numpy(np.array(values, order="C")), torch.from_numpy(np.array(scales)), format, array)


def has_rows(format: Int4) -> bool:
    """Whether there are tables of rows in a 4-bit format.

    Examples
    --------
    >>> has_rows(Int4(64)), has_rows(Int4(zero_point=True))
    (True, False)
    """
    return not format.zero_point and format.scales == "float16" and format.activations == "float32"


def _nibbles(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    codes = (values + np.int8(8)).view(np.uint8)
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.ascontiguousarray(codes[:, ::2] | codes[:, 1::2] << np.uint8(4))


def _table(weight: Tensor, scale: Tensor, format: Int8 | Int4, array: NDArray[Any]) -> PackedRows:
    return PackedRows(
        weight=weight,
        scale=scale,
        format=format,
        kernel="torch",
        shape=(array.shape[0], array.shape[1]),
        nbytes=weight.nbytes + scale.nbytes,
        bias=None,
    )
