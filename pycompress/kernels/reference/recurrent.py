"""LSTM and GRU on int8 weights: the written fp32 formula, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .activations import CODES, activate
from .matmul import Float, Int8Array, Int8State, int8_linear, pack_int8

Cell = Literal["lstm", "gru"]
GATES: dict[str, int] = {"lstm": 4, "gru": 3}
"""Gates of a cell: i, f, g, o or r, z, n."""

Starts = NDArray[np.uint64]
"""First row of each step, and the number of rows: [steps + 1]."""


@dataclass(frozen=True)
class RecurrentState:
    """The weights of one layer in one direction as this backend keeps them."""

    cell: Cell
    input: Int8State  # [gates * hidden, in]
    recurrent: Int8State  # [gates * hidden, out]
    projection: Int8State | None  # [out, hidden]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        weights = (self.input, self.recurrent, self.projection)
        return sum(weight.nbytes for weight in weights if weight is not None)


def pack_recurrent(
    cell: Cell,
    input_weight: Int8Array,
    input_weight_scale: Float,
    input_bias: Float,
    input_scale: float | None,
    recurrent_weight: Int8Array,
    recurrent_scale: Float,
    recurrent_bias: Float,
    projection_weight: Int8Array | None,
    projection_scale: Float | None,
) -> RecurrentState:
    """Keep the integers as they are."""
    projection = None
    if projection_weight is not None and projection_scale is not None:
        projection = pack_int8(projection_weight, projection_scale, None, None)
    return RecurrentState(
        cell,
        pack_int8(input_weight, input_weight_scale, input_bias, input_scale),
        pack_int8(recurrent_weight, recurrent_scale, recurrent_bias, None),
        projection,
    )


def unpack_recurrent(state: RecurrentState) -> tuple[Int8Array, Int8Array, Int8Array | None]:
    """Return the integers of the input, recurrent and projection weights."""
    projection = None if state.projection is None else state.projection.weight.copy()
    return state.input.weight.copy(), state.recurrent.weight.copy(), projection


def int8_recurrent(
    x: Float, starts: Starts, h: Float, c: Float, y: Float, state: RecurrentState, backwards: bool, threads: int
) -> None:
    """Run a sequence x [rows, in]; updates h [batch, out] and c [batch, hidden], writes y [rows, out].

    Step t holds the first ``starts[t + 1] - starts[t]`` rows of the batch. The formula is in `kernels.lstm` and `gru`.
    """
    inputs = int8_linear(x, state.input, 0, threads)
    cells = {"lstm": _lstm, "gru": _gru}
    steps = range(len(starts) - 1)
    for t in reversed(steps) if backwards else steps:
        first, last = int(starts[t]), int(starts[t + 1])
        part = slice(0, last - first)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            u = int8_linear(h[part], state.recurrent, 0, threads)
            y[first:last] = h[part] = cells[state.cell](state, inputs[first:last], u, h[part], c[part])


def _lstm(state: RecurrentState, v: Float, u: Float, h: Float, c: Float) -> Float:
    total = u + v
    hidden = c.shape[1]
    i, f, g, o = (total[:, k * hidden : (k + 1) * hidden] for k in range(4))
    i, f, o = (activate(gate, CODES["sigmoid"]) for gate in (i, f, o))
    c[...] = _one_nan(f * c + i * activate(g, CODES["tanh"]))
    after = _one_nan(o * activate(c, CODES["tanh"]))
    return after if state.projection is None else int8_linear(after, state.projection, 0, 1)


def _gru(state: RecurrentState, v: Float, u: Float, h: Float, c: Float) -> Float:
    hidden = h.shape[1]
    gates = activate(u[:, : 2 * hidden] + v[:, : 2 * hidden], CODES["sigmoid"])
    r, z = gates[:, :hidden], gates[:, hidden:]
    n = activate(r * u[:, 2 * hidden :] + v[:, 2 * hidden :], CODES["tanh"])
    return _one_nan((h - n) * z + n)


def _one_nan(x: Float) -> Float:
    """The sign of a NaN depends on the order of operands, which compilers choose: there is one NaN in states."""
    x[np.isnan(x)] = np.nan
    return x
