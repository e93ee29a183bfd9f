"""LSTM and GRU: their weights packed once, and the calls of the backend over a sequence."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats import Int8
from . import arrays, backends
from .arrays import ArrayLike
from .immutable import Immutable
from .packed import checked_bias, checked_scale, integers_of, positive
from .reference import GATES, Cell, Float, Int8Array, Starts

_INT8 = Int8()

alive: weakref.WeakValueDictionary[int, PackedRecurrent] = weakref.WeakValueDictionary()
"""The packed weights of this process by their numbers."""

_numbers = itertools.count(1)
_WEIGHTS = ("weight_ih", "weight_hh", "weight_hr")


class PackedRecurrent(Immutable):
    """The weights of one layer of an LSTM or GRU, in one direction, in the layout that this CPU runs best.

    Made by :func:`pack_lstm` and :func:`pack_gru`. Immutable; pickles, copies and files hold the canonical form (the
    integers in torch's order of gates, scales, biases) and are packed again where they are opened.

    Attributes
    ----------
    cell : "lstm" or "gru"
    format : Int8
    input_size, hidden_size, out_size : int
        Features of the input, of the cell state and of the output, which is smaller with a projection.
    nbytes : int
        Bytes that the packed weights hold in memory.
    kernel : str
        The kernel that runs, such as ``"native/avx2"``.
    input_scale : float or None
        Scale of the inputs; None when it is found per row at run time, as that of the hidden state always is.
    number : int
        Tells packed weights of one process apart.

    Examples
    --------
    >>> packed = pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    >>> packed.cell, packed.input_size, packed.hidden_size
    ('gru', 3, 2)
    """

    __slots__ = (
        "__weakref__",
        "_module",
        "_state",
        "_vectors",
        "cell",
        "format",
        "hidden_size",
        "input_scale",
        "input_size",
        "kernel",
        "nbytes",
        "number",
        "out_size",
    )

    _module: Any  # the backend
    _state: Any
    _vectors: dict[str, NDArray[np.float32]]  # scales and biases
    cell: Cell
    format: Int8
    input_size: int
    hidden_size: int
    out_size: int
    nbytes: int
    kernel: str
    input_scale: float | None
    number: int

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "number", next(_numbers))
        alive[self.number] = self

    def __repr__(self) -> str:
        sizes = f"input_size={self.input_size}, hidden_size={self.hidden_size}, out_size={self.out_size}"
        return f"PackedRecurrent({self.cell!r}, {self.format}, {sizes}, kernel={self.kernel!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _pack, (self.cell, self.format, self.canonical(), self.input_scale)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias."""
        return "bias_ih" in self._vectors or "bias_hh" in self._vectors

    @property
    def has_projection(self) -> bool:
        """Whether the hidden state is projected."""
        return "scale_hr" in self._vectors

    def canonical(self) -> dict[str, NDArray[Any]]:
        """Return what files hold: weights int8 in torch's order of gates, scales and biases float32, by name.

        The names are those of :func:`pack_lstm`: ``weight_ih``, ``weight_hh``, ``scale_ih``, ``scale_hh`` and, where
        they exist, ``bias_ih``, ``bias_hh``, ``weight_hr`` and ``scale_hr``.

        Examples
        --------
        >>> packed = pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
        >>> list(packed.canonical()), packed.canonical()["weight_hh"][0]
        (['weight_ih', 'weight_hh', 'scale_ih', 'scale_hh'], array([127, 127], dtype=int8))
        """
        weights = self._module.unpack_recurrent(self._state)
        present = {name: weight for name, weight in zip(_WEIGHTS, weights, strict=True) if weight is not None}
        return {**present, **self._vectors}


def pack_lstm(
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    format: Int8 = _INT8,
    *,
    weight_hr: ArrayLike | None = None,
    scale_ih: ArrayLike | None = None,
    scale_hh: ArrayLike | None = None,
    scale_hr: ArrayLike | None = None,
    input_scale: float | None = None,
) -> PackedRecurrent:
    """Pack the weights of one layer of an LSTM, in one direction, for :func:`lstm`.

    A float weight is rounded as :func:`pack` rounds it, with one scale for each row; an int8 weight is kept as exactly
    those integers. The gates stand in torch's order: i, f, g, o.

    Parameters
    ----------
    weight_ih : [4 * hidden_size, input_size] float32, float16, bfloat16, or int8 with ``scale_ih``
    weight_hh : [4 * hidden_size, out_size] likewise
        ``out_size`` is ``hidden_size``, or the size of the projection.
    bias_ih, bias_hh : [4 * hidden_size] float, optional
    format : Int8
        The one format with a kernel.
    weight_hr : [out_size, hidden_size] likewise, optional
        The projection of the hidden state (Sak et al. 2014, arXiv:1402.1128).
    scale_ih, scale_hh, scale_hr : [rows of the weight] or one float, optional
        Scales of the integers, positive.
    input_scale : float, optional
        Fixed scale of the inputs; by default it is found per row at run time.

    Returns
    -------
    PackedRecurrent

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype, shape or range, or holds NaN or infinity.

    Examples
    --------
    >>> pack_lstm(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)).hidden_size
    2
    """
    given = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    given |= {"weight_hr": weight_hr, "scale_ih": scale_ih, "scale_hh": scale_hh, "scale_hr": scale_hr}
    return _pack("lstm", format, given, input_scale)


def pack_gru(
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    format: Int8 = _INT8,
    *,
    scale_ih: ArrayLike | None = None,
    scale_hh: ArrayLike | None = None,
    input_scale: float | None = None,
) -> PackedRecurrent:
    """Pack the weights of one layer of a GRU, in one direction, for :func:`gru`.

    A float weight is rounded as :func:`pack` rounds it, with one scale for each row; an int8 weight is kept as exactly
    those integers. The gates stand in torch's order: r, z, n.

    Parameters
    ----------
    weight_ih : [3 * hidden_size, input_size] float32, float16, bfloat16, or int8 with ``scale_ih``
    weight_hh : [3 * hidden_size, hidden_size] likewise
    bias_ih, bias_hh : [3 * hidden_size] float, optional
    format : Int8
        The one format with a kernel.
    scale_ih, scale_hh : [3 * hidden_size] or one float, optional
        Scales of the integers, positive.
    input_scale : float, optional
        Fixed scale of the inputs; by default it is found per row at run time.

    Returns
    -------
    PackedRecurrent

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, dtype, shape or range, or holds NaN or infinity.

    Examples
    --------
    >>> pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32)).hidden_size
    2
    """
    given = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    given |= {"scale_ih": scale_ih, "scale_hh": scale_hh}
    return _pack("gru", format, given, input_scale)


def _pack(cell: Cell, format: Int8, given: dict[str, Any], input_scale: float | None) -> PackedRecurrent:
    if not isinstance(format, Int8):
        raise TypeError(f"format must be Int8(), got {format!r}")
    gates = GATES[cell]
    weights: dict[str, Int8Array] = {}
    vectors: dict[str, Float] = {}
    for name in _WEIGHTS:
        weight, scale_name = given.get(name), name.replace("weight", "scale")
        if weight is None and name == "weight_hr":
            if given.get(scale_name) is not None:
                raise ValueError(f"{scale_name} must be None without weight_hr")
            continue
        weights[name], vectors[scale_name] = _weight(weight, name, given.get(scale_name), scale_name)
    rows, input_size = weights["weight_ih"].shape
    if rows % gates:
        raise ValueError(f"weight_ih must have {gates} * hidden_size rows, got {rows}")
    hidden = rows // gates
    out = weights["weight_hr"].shape[0] if "weight_hr" in weights else hidden
    if "weight_hr" in weights and weights["weight_hr"].shape[1] != hidden:
        raise ValueError(f"weight_hr must have shape (out_size, {hidden}), got {weights['weight_hr'].shape}")
    if weights["weight_hh"].shape != (rows, out):
        where = "with this weight_hr" if "weight_hr" in weights else "without weight_hr"
        raise ValueError(f"weight_hh must have shape ({rows}, {out}) {where}, got {weights['weight_hh'].shape}")
    biases = []
    for name in ("bias_ih", "bias_hh"):
        if (bias := checked_bias(given.get(name), name, rows)) is not None:
            vectors[name] = bias
        biases.append(np.zeros(rows, np.float32) if bias is None else bias)
    scale = None if input_scale is None else positive(input_scale, "input_scale")
    for vector in vectors.values():
        vector.flags.writeable = False
    module = backends.backend()
    inputs = (weights["weight_ih"], vectors["scale_ih"], biases[0], scale)
    recurrent = (weights["weight_hh"], vectors["scale_hh"], biases[1])
    state = module.pack_recurrent(cell, *inputs, *recurrent, weights.get("weight_hr"), vectors.get("scale_hr"))
    return PackedRecurrent(
        _module=module,
        _state=state,
        _vectors=vectors,
        cell=cell,
        format=format,
        input_size=input_size,
        hidden_size=hidden,
        out_size=out,
        nbytes=int(state.nbytes),
        kernel=backends.kernel_name(module, state),
        input_scale=scale,
    )


def _weight(weight: ArrayLike, name: str, scale: ArrayLike | None, scale_name: str) -> tuple[Int8Array, Float]:
    array = arrays.view(weight, name)
    if array.dtype != np.int8:
        array = arrays.float32(weight, name)
        arrays.finite(array, name)
    elif scale is None:
        raise ValueError(f"{scale_name} must be given with int8 integers in {name}")
    if array.ndim != 2:
        raise ValueError(f"{name} must be 2-D [outputs, inputs], got {arrays.describe(weight)}")
    values, scales = integers_of(array, checked_scale(scale, scale_name, array.shape[0]))
    return np.ascontiguousarray(values), scales


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
