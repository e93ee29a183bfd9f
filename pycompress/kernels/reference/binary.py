"""Products of signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .activations import activate
from .matmul import Float, Int8Array


@dataclass(frozen=True)
class BinaryState:
    """A weight of signs as this backend keeps it."""

    weight: Int8Array  # [out, in], -1 or 1
    scale: Float  # [out]
    bias: Float | None  # [out]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


def pack_binary(weight: Int8Array, scale: Float, bias: Float | None) -> BinaryState:
    """Keep the integers as they are."""
    return BinaryState(weight.copy(), scale.copy(), None if bias is None else bias.copy())


def unpack_binary(state: BinaryState) -> Int8Array:
    """Return the integers [out, in]."""
    return state.weight.copy()


def _binarize(x: Float) -> tuple[NDArray[np.bool_], Float]:
    """Return ``x >= 0`` [rows, in], and the mean of |x| [rows], NaN for a row that holds NaN or infinity.

    In float64 with 16 partial sums, each of every 16th input in its order, which are then added by halves.
    """
    rows, inputs = x.shape
    sums = np.zeros((rows, 16), np.float64)
    for i in range(0, inputs, 16):
        part = np.abs(x[:, i : i + 16]).astype(np.float64)
        sums[:, : part.shape[1]] += part
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half : 2 * half]
    mean = sums[:, 0] / max(inputs, 1)
    mean[~np.isfinite(mean)] = np.nan
    return x >= 0, mean.astype(np.float32)


def binary_linear(x: Float, state: BinaryState, activation: int, threads: int) -> Float:
    """``y = float(signs of x @ signs of w) * (K * alpha) + bias``, in fp32, each operation rounded once."""
    positive, mean = _binarize(x)
    sums = np.where(positive, 1, -1) @ state.weight.astype(np.int64).T
    with np.errstate(over="ignore", invalid="ignore"):
        y = sums.astype(np.float32) * (mean[:, None] * state.scale[None, :])
        return activate(y + (np.float32(0) if state.bias is None else state.bias), activation)
