"""int8 products of weights whose zeros come in blocks: only the inputs that a strip of outputs keeps.

Per strip and row the activations of the kept inputs are gathered once, and every output of the strip is a plain dot
product with them. Without a pattern there is nothing to skip: such a weight stays dense here.
"""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import Float, Int8Array
from ..threads import run
from .activations import activate
from .compiling import as_input, kernel

_ROWS = 64
_PART = 1 << 16  # products that an int32 sum surely holds
_WIDTH = 4  # inputs that are kept or dropped together


@dataclass(frozen=True)
class Kept:
    """The kept inputs of each strip of outputs."""

    height: int
    starts: NDArray[np.int64]  # [strips + 1]
    inputs: NDArray[np.int32]  # [kept]
    values: Int8Array  # [kept * height], of a strip [height][its kept inputs]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.starts.nbytes + self.inputs.nbytes + self.values.nbytes


def kept_of(weight: Int8Array, block: tuple[int, int]) -> Kept | None:
    """Return what blocks of a weight [out, in] are kept; None without a pattern."""
    height = block[0]
    if height == 1:
        return None
    outputs, inputs = weight.shape
    strips, groups = -(-outputs // height), -(-inputs // _WIDTH)
    padded = np.zeros((strips * height, groups * _WIDTH), np.int8)
    padded[:outputs, :inputs] = weight
    nonzero = padded.reshape(strips, height, groups, _WIDTH).any(axis=(1, 3))
    columns = np.repeat(nonzero, _WIDTH, axis=1)[:, :inputs]
    starts = np.zeros(strips + 1, np.int64)
    np.cumsum(columns.sum(axis=1), out=starts[1:])
    values = [padded[s * height : (s + 1) * height, :inputs][:, columns[s]].reshape(-1) for s in range(strips)]
    joined = np.concatenate([np.zeros(0, np.int8), *values])
    return Kept(height, as_input(starts), as_input(np.nonzero(columns)[1].astype(np.int32)), as_input(joined))


@kernel
def _strips(q, row_scales, height, starts, inputs, values, scales, bias, residual, activation, y, first, last):
    row_blocks = (y.shape[0] + _ROWS - 1) // _ROWS
    for tile in range(first, last):
        strip, r0 = tile // row_blocks, tile % row_blocks * _ROWS
        begin, count = starts[strip], starts[strip + 1] - starts[strip]
        a = np.empty(count, np.int16)
        columns = inputs[begin : begin + count]
        for r in range(r0, min(r0 + _ROWS, y.shape[0])):
            for k in range(count):
                a[k] = q[r, np.uint32(columns[k])]
            for j in range(min(height, y.shape[1] - strip * height)):
                o = strip * height + j
                w = values[begin * height + j * count : begin * height + (j + 1) * count]
                total = np.int64(0)
                for start in range(0, count, _PART):
                    left, right = a[start : start + _PART], w[start : start + _PART]
                    part = np.int32(0)
                    for k in range(left.size):
                        part = np.int32(part + np.int32(left[k]) * np.int32(right[k]))
                    total += part
                value = np.float32(total) * (row_scales[r] * scales[o]) + bias[o]
                if residual.size:
                    value += residual[r, o]
                y[r, o] = activate(value, activation)


def multiply(
    q: NDArray[np.int16], row_scales: Float, kept: Kept, rest: tuple[Any, Any, Any, int, Float], threads: int
) -> None:
    """Write the outputs of rows: ``rest`` is scale, bias, residual, activation and the result [rows, out]."""
    rows = q.shape[0]
    count = -(-rows // _ROWS) * (kept.starts.size - 1)
    average = kept.inputs.size / max(1, kept.starts.size - 1)
    tile_ns = min(rows, _ROWS) * (average + kept.height * (10 + average / 40)) + 1
    run(_strips, count, tile_ns, threads, q, row_scales, kept.height, kept.starts, kept.inputs, kept.values, *rest)
