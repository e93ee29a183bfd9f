"""Matrix products in int64 and float64, rounded at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .activations import activate

Float = NDArray[np.float32]
Int8Array = NDArray[np.int8]

Output = Literal["float32", "bfloat16", "int8"]
DTYPES: dict[Output, Any] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
"""What a kernel can write, and the arrays that hold it."""

ZERO_ROW = np.float32(2.0**-100)
"""A row whose largest magnitude is below this counts as all zeros."""


@dataclass(frozen=True)
class Int8State:
    """An int8 weight as this backend keeps it."""

    weight: Int8Array  # [out, in]
    scale: Float  # [out]
    bias: Float | None  # [out]
    input_scale: float | None
    kept: Any = None  # of a sparse weight: what a backend multiplies instead

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = self.weight.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)
        return own + (0 if self.kept is None else int(self.kept.nbytes))


@dataclass(frozen=True)
class SparseState:
    """A sparse fp32 weight as compressed rows."""

    shape: tuple[int, int]
    starts: NDArray[np.int64]  # [out + 1]
    columns: NDArray[np.int32]  # [nonzeros]
    values: Float  # [nonzeros]
    bias: Float | None  # [out]
    height: int = 1  # so many outputs, from every multiple of it on, have the same columns

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.starts, self.columns, self.values)
        return sum(a.nbytes for a in arrays) + (0 if self.bias is None else self.bias.nbytes)


def pack_int8(
    weight: Int8Array,
    scale: Float,
    bias: Float | None,
    input_scale: float | None,
    block: tuple[int, int] | None = None,
) -> Int8State:
    """Keep the integers as they are, also of a sparse weight."""
    del block
    return Int8State(weight.copy(), scale.copy(), None if bias is None else bias.copy(), input_scale)


def unpack_int8(state: Int8State) -> Int8Array:
    """Return the integers [out, in]."""
    return state.weight.copy()


def pack_sparse(weight: Float, bias: Float | None, height: int) -> SparseState:
    """Compress the rows of weight [out, in]; that `height` outputs share columns changes no number."""
    rows, columns = np.nonzero(weight)
    starts = np.zeros(weight.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=weight.shape[0]), out=starts[1:])
    return SparseState(
        (weight.shape[0], weight.shape[1]),
        starts,
        columns.astype(np.int32),
        weight[rows, columns],
        None if bias is None else bias.copy(),
    )


def unpack_sparse(state: SparseState) -> Float:
    """Return the dense weight [out, in]."""
    dense = np.zeros(state.shape, np.float32)
    rows = np.repeat(np.arange(state.shape[0]), np.diff(state.starts))
    dense[rows, state.columns] = state.values
    return dense


def quantize_rows(x: Float, input_scale: float | None) -> tuple[Int8Array, Float]:
    """Quantize activations, x [rows, in], to int8 with a scale [rows]; the scale of a non-finite row is NaN."""
    finite = cast("NDArray[np.bool_]", np.isfinite(x).all(axis=1))
    if input_scale is None:
        largest = np.abs(x).max(axis=1, initial=0).astype(np.float32)
        largest[~finite] = 0
        zero = largest < ZERO_ROW
        factor = np.float32(127) / np.where(zero, np.float32(1), largest)
        factor[zero] = 0
        scale = np.where(zero, np.float32(0), largest / np.float32(127))
    else:
        factor = np.full(x.shape[0], np.float32(1) / np.float32(input_scale), np.float32)
        scale = np.full(x.shape[0], np.float32(input_scale), np.float32)
    safe = np.where(finite[:, None], x, np.float32(0))
    with np.errstate(over="ignore"):  # a static scale can overflow to infinity, which the clamp takes
        q = np.clip(np.rint(safe * factor[:, None]), -127, 127).astype(np.int8)
    scale[~finite] = np.nan
    return q, scale


def int8_linear(
    x: Float | Int8Array,
    state: Int8State,
    activation: int,
    threads: int,
    residual: Float | None = None,
    output: Output = "float32",
    output_scale: float = 0.0,
) -> NDArray[Any]:
    """``y = activation(float(q_x @ q_w.T) * (s_x * s_w) + bias + residual)``, in fp32, each operation rounded once.

    bfloat16 results are returned as their bits, uint16.
    """
    if x.dtype == np.int8:
        q, scale = cast(Int8Array, x), np.full(x.shape[0], state.input_scale, np.float32)
    else:
        q, scale = quantize_rows(cast(Float, x), state.input_scale)
    sums = q.astype(np.int64) @ state.weight.astype(np.int64).T
    with np.errstate(over="ignore", invalid="ignore"):
        y = sums.astype(np.float32) * (scale[:, None] * state.scale[None, :])
        y = y + (np.float32(0) if state.bias is None else state.bias)
        y = y if residual is None else y + residual
    return as_output(activate(y, activation), output, output_scale)


def as_output(y: Float, output: Output, output_scale: float) -> NDArray[Any]:
    """Round finished fp32 values to what a kernel writes: themselves, the bits of bfloat16, or int8."""
    if output == "bfloat16":
        bits = y.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
        return np.where(np.isnan(y), bits >> 16 | np.uint32(0x40), rounded).astype(np.uint16)
    if output == "int8":
        with np.errstate(over="ignore"):
            scaled = np.where(np.isnan(y), np.float32(0), y) * (np.float32(1) / np.float32(output_scale))
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return y


def sparse_linear(x: Float, state: SparseState, activation: int, threads: int) -> Float:
    """``y = x @ w.T + bias`` over the stored weights only, in float64, rounded at the end."""
    y = np.zeros((x.shape[0], state.shape[0]), np.float64)
    wide = x.astype(np.float64)
    values = state.values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for o in range(state.shape[0]):
            part = slice(int(state.starts[o]), int(state.starts[o + 1]))
            y[:, o] = wide[:, state.columns[part]] @ values[part]
        if state.bias is not None:
            y += state.bias
        return activate(y.astype(np.float32), activation)


def int8_matmul(a: Int8Array, b: Int8Array, threads: int) -> NDArray[np.int64] | NDArray[np.int32]:
    """``a [m, k] @ b [k, n]`` in int64; the caller checks that it fits into int32."""
    return a.astype(np.int64) @ b.astype(np.int64)
