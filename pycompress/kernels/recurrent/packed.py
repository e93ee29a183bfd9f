"""The weights of an LSTM or GRU, packed once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats import Int8
from .. import arrays, backends
from ..arrays import ArrayLike
from ..immutable import Numbered
from ..packed import checked_bias, checked_scale, integers_of, positive
from ..reference import GATES, Cell, Float, Int8Array

_INT8 = Int8()
_WEIGHTS = ("weight_ih", "weight_hh", "weight_hr")


class PackedRecurrent(Numbered):
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
        "_module",
        "_native",
        "_state",
        "_vectors",
        "cell",
        "format",
        "hidden_size",
        "input_scale",
        "input_size",
        "kernel",
        "nbytes",
        "out_size",
    )

    _module: Any  # the backend
    _native: Any  # the state where the native backend runs, which takes addresses, else None
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
        _native=state if hasattr(state, "run_at") else None,
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
