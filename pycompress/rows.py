"""Tables whose rows are int8 integers with one scale for each row: the weights of embeddings."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .formats import Int8
from .kernels import arrays
from .kernels.immutable import Immutable
from .kernels.packed import checked_scale, integers_of


class PackedRows(Immutable):
    """A table of rows as integers with one scale for each row: ``w[i] = weight[i] * scale[i]``. Made by `pack_rows`.

    Attributes
    ----------
    weight : [rows, columns] int8 tensor
    scale : [rows] float32 tensor
    format : Int8
    kernel : str
        ``"torch"``: an ordinary gather and one multiplication.
    shape : (int, int)
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
    format: Int8
    kernel: str
    shape: tuple[int, int]
    nbytes: int
    bias: None

    def __repr__(self) -> str:
        return f"PackedRows({self.shape[0]}, {self.shape[1]}, {self.format})"

    def canonical_weight(self) -> NDArray[np.int8]:
        """Return the integers as an array."""
        return cast("NDArray[np.int8]", self.weight.numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        return pack_rows, (self.weight, self.scale)


def pack_rows(weight: arrays.ArrayLike, scale: arrays.ArrayLike | None = None) -> PackedRows:
    """Round a table to integers, row by row: ``scale[i] = max|w[i]| / 127``, ``q = rint(w / scale)``.

    The formula is that of ``kernels.pack`` with Int8, so that a linear layer that shares the weight holds the same
    integers.

    Parameters
    ----------
    weight : [rows, columns] float32, float16 or bfloat16, finite; or int8 from -127 to 127 with ``scale``
    scale : [rows] or one float, optional
        Positive scales to use.

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
    array = arrays.view(weight, "weight")
    if array.dtype != np.int8:
        array = arrays.float32(weight, "weight")
        arrays.finite(array, "weight")
    elif scale is None:
        raise ValueError("scale must be given with int8 integers in weight")
    if array.ndim != 2:
        raise ValueError(f"weight must be 2-D [rows, columns], got {arrays.describe(weight)}")
    values, scales = integers_of(array, checked_scale(scale, "scale", array.shape[0]))
    if (values == -128).any():
        raise ValueError("weight must be integers from -127 to 127, got -128")
    return PackedRows(
        weight=torch.from_numpy(np.array(values, order="C")),
        scale=torch.from_numpy(np.array(scales)),
        format=Int8(),
        kernel="torch",
        shape=(values.shape[0], values.shape[1]),
        nbytes=values.nbytes + scales.nbytes,
        bias=None,
    )
