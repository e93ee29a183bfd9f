"""The calls of an LSTM or GRU over a sequence: the contract, the checks, and the calls of the backend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from .. import arrays, backends
from ..arrays import ArrayLike
from ..reference import Cell, Float, Starts
from .packed import PackedRecurrent


def lstm(
    x: ArrayLike,
    packed: PackedRecurrent,
    state: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    backwards: bool = False,
    batch_sizes: ArrayLike | Sequence[int] | None = None,
) -> Any:
    """Run one layer of an LSTM over a sequence.

    ::

        i = sigmoid(u_i + v_i), f = sigmoid(u_f + v_f), g = tanh(u_g + v_g), o = sigmoid(u_o + v_o)
        c' = f * c + i * g,  h' = o * tanh(c')

    with ``u = weight_hh h + bias_hh`` and ``v = weight_ih x + bias_ih``, each as :func:`linear` computes it with
    :class:`Int8`: every row of x and of h is quantized by itself. A projection is applied to h' in the same way,
    without a bias. All else is in fp32, each operation rounded once: the same bits on every CPU, with every backend and
    any number of threads. A row that holds NaN or infinity gives NaN from its step on.

    Parameters
    ----------
    x : [steps, batch, input_size] float32, float16 or bfloat16
        NumPy array or torch CPU tensor; [rows, input_size] with ``batch_sizes``.
    packed : PackedRecurrent
        From :func:`pack_lstm`.
    state : (h [batch, out_size], c [batch, hidden_size]) float, optional
        The state before the first step; zeros by default.
    backwards : bool
        Run from the last step to the first.
    batch_sizes : [steps] int, optional
        For sequences of several lengths, packed as torch packs them: the number of rows in each step, which never
        grows. Row b of the state belongs to the b-th longest sequence.

    Returns
    -------
    y : [steps, batch, out_size] or [rows, out_size], kind and dtype of x
    (h, c) : the state after the last step of each sequence, kind and dtype of x

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype or shape.

    Examples
    --------
    >>> from pycompress.kernels import pack_lstm
    >>> bias = np.full(8, 9.0, np.float32)
    >>> packed = pack_lstm(np.zeros((8, 3), np.float32), np.zeros((8, 2), np.float32), bias)
    >>> y, (h, c) = lstm(np.zeros((2, 1, 3), np.float32), packed)
    >>> y.shape, c.round(2)
    ((2, 1, 2), array([[2., 2.]], dtype=float32))
    """
    _check_cell(packed, "lstm")
    if state is not None and not (isinstance(state, tuple) and len(state) == 2):
        raise TypeError(f"state must be a tuple (h, c), got {type(state).__name__}")
    y, h, c = _run(x, packed, state, backwards, batch_sizes)
    return y, (h, c)


def gru(
    x: ArrayLike,
    packed: PackedRecurrent,
    state: ArrayLike | None = None,
    *,
    backwards: bool = False,
    batch_sizes: ArrayLike | Sequence[int] | None = None,
) -> Any:
    """Run one layer of a GRU over a sequence.

    ::

        r = sigmoid(u_r + v_r), z = sigmoid(u_z + v_z), n = tanh(r * u_n + v_n)
        h' = (h - n) * z + n

    with ``u = weight_hh h + bias_hh`` and ``v = weight_ih x + bias_ih`` as in :func:`lstm`, and the same guarantees.

    Parameters
    ----------
    x : [steps, batch, input_size] float32, float16 or bfloat16
        NumPy array or torch CPU tensor; [rows, input_size] with ``batch_sizes``.
    packed : PackedRecurrent
        From :func:`pack_gru`.
    state : [batch, hidden_size] float, optional
        The state before the first step; zeros by default.
    backwards : bool
        Run from the last step to the first.
    batch_sizes : [steps] int, optional
        As in :func:`lstm`.

    Returns
    -------
    y : [steps, batch, hidden_size] or [rows, hidden_size], kind and dtype of x
    h : [batch, hidden_size], the state after the last step of each sequence, kind and dtype of x

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype or shape.

    Examples
    --------
    >>> from pycompress.kernels import pack_gru
    >>> packed = pack_gru(np.zeros((6, 3), np.float32), np.zeros((6, 2), np.float32), np.ones(6, np.float32))
    >>> y, h = gru(np.zeros((4, 1, 3), np.float32), packed)
    >>> y.shape, h.round(2)
    ((4, 1, 2), array([[0.54, 0.54]], dtype=float32))
    """
    _check_cell(packed, "gru")
    y, h, _ = _run(x, packed, None if state is None else (state,), backwards, batch_sizes)
    return y, h


def _check_cell(packed: object, cell: Cell) -> None:
    if not isinstance(packed, PackedRecurrent):
        raise TypeError(f"packed must be a PackedRecurrent, got {type(packed).__name__}")
    if packed.cell != cell:
        raise ValueError(f"packed must be weights of pack_{cell}, got {packed!r}")


def _run(
    x: ArrayLike, packed: PackedRecurrent, state: tuple[Any, ...] | None, backwards: object, batch_sizes: Any
) -> tuple[Any, Any, Any]:
    array = arrays.float32(x, "x")
    backwards = arrays.flag(backwards, "backwards")
    wanted = 3 if batch_sizes is None else 2
    if array.ndim != wanted or array.shape[-1] != packed.input_size:
        shape = "[steps, batch, input_size]" if batch_sizes is None else "[rows, input_size] with batch_sizes"
        raise ValueError(f"x must be {shape} with input_size {packed.input_size}, got {arrays.describe(x)}")
    if batch_sizes is None:
        steps, batch = array.shape[:2]
        starts = uniform_starts(steps, batch)
        array = array.reshape(steps * batch, packed.input_size)
    else:
        starts, batch = packed_starts(batch_sizes, array.shape[0])
    sizes = (packed.out_size, packed.hidden_size if packed.cell == "lstm" else 0)
    h, c = (np.zeros((batch, size), np.float32) for size in sizes)
    if state is not None:
        for own, given in zip((h, c), state, strict=False):
            copy_state(own, given)
    y = np.empty((array.shape[0], packed.out_size), np.float32)
    run_layer(packed, np.ascontiguousarray(array), starts, h, c, y, backwards, backends.threads_for(x))
    shaped = y if batch_sizes is not None else y.reshape(*cast(Any, x).shape[:2], packed.out_size)
    return arrays.restore(shaped, x), arrays.restore(h, x), arrays.restore(c, x)


def run_layer(
    packed: PackedRecurrent, x: Float, starts: Starts, h: Float, c: Float, y: Float, backwards: bool, threads: int
) -> None:
    """Run contiguous rows x [rows, input_size] whose steps begin at ``starts``; nothing is checked.

    Updates h [batch, out_size] and, for an LSTM, c [batch, hidden_size]; writes y [rows, out_size], whose rows may lie
    apart.
    """
    packed._module.int8_recurrent(x, starts, h, c, y, packed._state, backwards, threads)


def copy_state(own: Float, given: ArrayLike, name: str = "state") -> None:
    """Copy a given state [batch, size] into the one that is updated."""
    array = arrays.float32(given, name)
    if array.shape != own.shape:
        raise ValueError(f"{name} must have shape {own.shape}, got {tuple(array.shape)}")
    own[...] = array


def uniform_starts(steps: int, batch: int) -> Starts:
    """Return the first row of each step, and the end, when every step has the whole batch."""
    return np.arange(steps + 1, dtype=np.uint64) * np.uint64(batch)


def packed_starts(batch_sizes: ArrayLike | Sequence[int], rows: int) -> tuple[Starts, int]:
    """Return the first row of each step, and the end, and the size of the batch."""
    if isinstance(batch_sizes, np.ndarray) or arrays.is_tensor(batch_sizes):
        sizes = arrays.view(batch_sizes, "batch_sizes")
    elif isinstance(batch_sizes, (list, tuple)) and all(type(size) is int for size in batch_sizes):
        sizes = np.array([min(size, 2**62) for size in batch_sizes], np.int64)
    else:
        raise TypeError(f"batch_sizes must hold ints, got {batch_sizes!r:.99}")
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1:
        raise TypeError(f"batch_sizes must be 1-D integers, got {sizes.shape} {sizes.dtype}")
    listed = [int(size) for size in sizes]
    if any(size < 1 for size in listed) or any(a < b for a, b in itertools.pairwise(listed)):
        raise ValueError(f"batch_sizes must be positive and never grow, got {listed!r:.99}")
    if sum(listed) != rows:
        raise ValueError(f"batch_sizes must add up to the {rows} rows of x, got {sum(listed)}")
    starts = np.zeros(len(listed) + 1, np.uint64)
    starts[1:] = np.cumsum(np.array(listed, np.uint64))
    return starts, listed[0] if listed else 0
