"""Sequences through packed LSTM and GRU layers: every form of torch's input, and the operators of traced models.

``torch.ops.pycompress.recurrent_here(Tensor x, Tensor[] states, Tensor? batch_sizes, int[] numbers, int[] sizes, bool
bidirectional) -> Tensor[]`` takes the numbers of packed weights that live in this process, and the sizes of h and, of
an LSTM, c; it returns the output and the final states. ``recurrent``, with ``Tensor[] packed`` in place of the numbers,
takes the bytes of the weights (:mod:`pycompress.weight_bytes`), so that an exported program holds them. All shapes
follow from the call alone: torch keeps compiled code on disk by its calls, and in the next process a number means
another weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .kernels import PackedRecurrent, arrays, backends
from .kernels import recurrent as steps
from .kernels.immutable import numbered
from .weight_bytes import exported, found

_NO_CELL_STATE = np.empty((0, 0), np.float32)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Result = tuple[Any, list[Tensor]]


def run(
    parts: Sequence[PackedRecurrent],
    bidirectional: bool,
    batch_first: bool,
    x: Tensor | PackedSequence,
    states: Sequence[Tensor],
) -> Result:
    """Run all layers.

    Parameters
    ----------
    parts : sequence of PackedRecurrent
        Layer by layer, forward before backward.
    bidirectional, batch_first : bool
    x : tensor [steps, batch, input_size], [batch, steps, input_size], [steps, input_size], or PackedSequence
    states : [] or [h] or [h, c]
        As torch takes them for this input.

    Returns
    -------
    (output, [h] or [h, c])
        As torch gives them for this input.

    Raises
    ------
    TypeError, ValueError
        When x or a state does not fit; they are named x and state.

    Examples
    --------
    >>> part = steps.pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    >>> y, [h] = run([part], False, True, torch.zeros(4, 9, 3), [])
    >>> y.shape, h.shape
    (torch.Size([4, 9, 2]), torch.Size([1, 4, 2]))
    """
    directions = 2 if bidirectional else 1
    if isinstance(x, Tensor) and (found := _run_plain(parts, directions, batch_first, x, states)) is not None:
        return found
    sequence = x if isinstance(x, PackedSequence) else None
    data = x if isinstance(x, Tensor) else x.data
    rows = arrays.float32(data, "x")
    batched = True
    if sequence is not None:
        starts, batch = steps.packed_starts(sequence.batch_sizes, len(rows))
    else:
        batched = rows.ndim == 3
        if rows.ndim not in (2, 3):
            raise ValueError(f"x must be 2-D or 3-D, got {arrays.describe(data)}")
        rows = rows if batched else rows[:, None]
        rows = rows.swapaxes(0, 1) if batch_first and batched else rows
        count, batch = rows.shape[:2]
        if count == 0:
            raise ValueError(f"x must hold at least one step, got {arrays.describe(data)}")
        starts = steps.uniform_starts(count, batch)
    if rows.shape[-1] != parts[0].input_size:
        raise ValueError(f"x must have {parts[0].input_size} features, got {arrays.describe(data)}")
    rows = np.ascontiguousarray(rows.reshape(int(starts[-1]), parts[0].input_size))
    order = None if sequence is None else sequence.sorted_indices
    own = _initial(parts, states, batch, batched, order)
    threads = backends.threads_for(data)
    for first in range(0, len(parts), directions):
        out = parts[first].out_size
        y = np.empty((len(rows), directions * out), np.float32)
        for way in range(directions):
            index, columns = first + way, y[:, way * out : (way + 1) * out]
            cell_state = own[1][index] if len(own) > 1 else _NO_CELL_STATE
            steps.run_layer(parts[index], rows, starts, own[0][index], cell_state, columns, way == 1, threads)
        rows = y
    finals = [cast(Tensor, arrays.restore(state if batched else state[:, 0], data)) for state in own]
    if sequence is not None:
        back = sequence.unsorted_indices
        finals = finals if back is None else [final.index_select(1, back) for final in finals]
        return PackedSequence(arrays.restore(rows, data), sequence.batch_sizes, order, back), finals
    shaped = rows.reshape(len(starts) - 1, batch, rows.shape[1])
    result = arrays.restore(shaped if batched else shaped[:, 0], data)
    return (result.transpose(0, 1) if batch_first and batched else result), finals


def _run_plain(
    parts: Sequence[PackedRecurrent], directions: int, batch_first: bool, x: Tensor, states: Sequence[Tensor]
) -> Result | None:
    """Run a batch of float32 tensors by their addresses; None where there is no short way."""
    first, sizes = parts[0], _sizes(parts)
    if first._native is None or x.ndim != 3 or x.dtype is not torch.float32 or not x.numel() or not all(sizes):
        return None
    y = x.transpose(0, 1).contiguous() if batch_first else x
    count, batch, features = y.shape
    shapes = [(len(parts), batch, size) for size in sizes]
    if features != first.input_size or not all(map(arrays.is_plain_tensor, (y, *states))):
        return None
    if states and [tuple(state.shape) for state in states] != shapes:
        return None
    own = [state.clone() for state in states] or [x.new_zeros(shape) for shape in shapes]
    threads, out = backends.get_num_threads(True), first.out_size
    for index, part in enumerate(parts):
        way = index % directions
        if way == 0:
            rows, y = y, x.new(count, batch, directions * out)  # float32, in half of new_empty's time
        h, c = own[0][index].data_ptr(), own[-1][index].data_ptr()
        to = y.data_ptr() + 4 * way * out
        part._native.run_at(rows.data_ptr(), count, batch, h, c, to, directions * out, way == 1, threads)
    return (y.transpose(0, 1) if batch_first else y), own


def step(part: PackedRecurrent, x: Tensor, states: Sequence[Tensor]) -> list[Tensor] | None:
    """Run one step: the numbers of :func:`run`, with less around the kernel; None where there is no short way.

    Parameters
    ----------
    part : PackedRecurrent
        Without a projection.
    x : tensor [batch, input_size]
    states : [] or [h] or [h, c]
        Of the shape [batch, hidden_size].

    Examples
    --------
    >>> part = steps.pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    >>> found = step(part, torch.zeros(4, 3), [])
    >>> found is None or found[0].shape == (4, 2)
    True
    """
    native, rows = part._native, len(x)
    if native is None or x.ndim != 2 or not x.numel() or not all(map(arrays.is_plain_tensor, (x, *states))):
        return None
    own = [state.clone() for state in states] or [x.new_zeros(rows, size) for size in _sizes([part])]
    if not own[0].numel():
        return None
    y, threads = x.new(rows, part.out_size), backends.get_num_threads(True)
    h, c = own[0].data_ptr(), own[-1].data_ptr()
    native.run_at(x.data_ptr(), 1, rows, h, c, y.data_ptr(), part.out_size, False, threads)
    return own


def check_parts(parts: Sequence[PackedRecurrent], bidirectional: bool) -> None:
    """Raise unless these are weights of layers that follow each other.

    Raises
    ------
    ValueError
        When there are too few, or their cells or sizes do not fit.

    Examples
    --------
    >>> part = steps.pack_gru(np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    >>> check_parts([part, part], False)
    Traceback (most recent call last):
    ValueError: packed[1] must have cell and sizes ('gru', 2, 2, 2), got ('gru', 3, 2, 2)
    """
    directions = 2 if bidirectional else 1
    if not parts or len(parts) % directions:
        raise ValueError(f"packed must hold {directions} of each layer, got {len(parts)}")
    first, width = parts[0], parts[0].input_size
    for index, part in enumerate(parts):
        sizes = (part.cell, part.input_size, part.hidden_size, part.out_size)
        expected = (first.cell, width, first.hidden_size, first.out_size)
        if sizes != expected:
            raise ValueError(f"packed[{index}] must have cell and sizes {expected}, got {sizes}")
        if index % directions == directions - 1:
            width = directions * part.out_size


def _initial(
    parts: Sequence[PackedRecurrent], states: Sequence[Tensor], batch: int, batched: bool, order: Tensor | None
) -> list[NDArray[np.float32]]:
    """Copies of the given states, or zeros: h, and for an LSTM c."""
    own = [np.zeros((len(parts), batch, size), np.float32) for size in _sizes(parts)]
    for array, state in zip(own, states, strict=False):
        given = state if batched or state.ndim != 2 else state[:, None]
        given = given if order is None or given.ndim != 3 else given.index_select(1, order)
        steps.copy_state(array, given)
    return own


def _sizes(parts: Sequence[PackedRecurrent]) -> list[int]:
    return [parts[0].out_size] + ([parts[0].hidden_size] if parts[0].cell == "lstm" else [])


def traced(
    parts: Sequence[PackedRecurrent],
    bidirectional: bool,
    batch_first: bool,
    x: Tensor | PackedSequence,
    states: Sequence[Tensor],
) -> Result:
    """Call the operator that stands for :func:`run` in what is being traced.

    Raises
    ------
    RuntimeError
        Under ``torch.export`` with ``strict=True``, which cannot put the weights into the program.
    """
    sequence = x if isinstance(x, PackedSequence) else None
    data = x if isinstance(x, Tensor) else x.data
    batched = sequence is not None or data.ndim != 2
    flip = batch_first and sequence is None and batched
    data = data.transpose(0, 1) if flip else data if batched else data[:, None]
    states = [state if batched or state.ndim != 2 else state[:, None] for state in states]
    order = None if sequence is None else sequence.sorted_indices
    if order is not None:
        states = [state.index_select(1, order) for state in states]
    batch_sizes = None if sequence is None else sequence.batch_sizes
    exporting = torch.compiler.is_exporting()
    call = torch.ops.pycompress.recurrent if exporting else torch.ops.pycompress.recurrent_here
    weights = [exported(part) for part in parts] if exporting else [part.number for part in parts]
    y, *finals = call(data, states, batch_sizes, weights, _sizes(parts), bidirectional)
    if sequence is not None:
        back = sequence.unsorted_indices
        finals = finals if back is None else [final.index_select(1, back) for final in finals]
        return PackedSequence(y, sequence.batch_sizes, order, back), finals
    finals = finals if batched else [final[:, 0] for final in finals]
    return y.transpose(0, 1) if flip else y if batched else y[:, 0], finals


_library: Any = torch.library.Library("pycompress", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "recurrent_here(Tensor x, Tensor[] states, Tensor? batch_sizes, int[] numbers, int[] sizes, bool bidirectional)"
    " -> Tensor[]"
)
_library.define(
    "recurrent(Tensor x, Tensor[] states, Tensor? batch_sizes, Tensor[] packed, int[] sizes, bool bidirectional)"
    " -> Tensor[]"
)


def _found(numbers: Sequence[int]) -> list[PackedRecurrent]:
    parts = [numbered(number, PackedRecurrent) for number in numbers]
    if not parts or None in parts:
        raise ValueError(f"numbers must be those of packed weights in this process, got {numbers}")
    return cast(list[PackedRecurrent], parts)


def _recurrent_here(
    x: Tensor,
    states: list[Tensor],
    batch_sizes: Tensor | None,
    numbers: list[int],
    sizes: list[int],
    bidirectional: bool,
) -> list[Tensor]:
    return _run_all(x, states, batch_sizes, _found(numbers), sizes, bidirectional)


def _recurrent(
    x: Tensor,
    states: list[Tensor],
    batch_sizes: Tensor | None,
    packed: list[Tensor],
    sizes: list[int],
    bidirectional: bool,
) -> list[Tensor]:
    parts = [found(content, None) for content in packed]
    if not parts or not all(isinstance(part, PackedRecurrent) for part in parts):
        raise ValueError("packed must be the bytes of recurrent weights, got other ones")
    return _run_all(x, states, batch_sizes, parts, sizes, bidirectional)


def _run_all(
    x: Tensor,
    states: list[Tensor],
    batch_sizes: Tensor | None,
    parts: list[PackedRecurrent],
    sizes: list[int],
    bidirectional: bool,
) -> list[Tensor]:
    sequence = x if batch_sizes is None else PackedSequence(x, batch_sizes)
    check_parts(parts, bidirectional)
    if sizes != _sizes(parts):
        raise ValueError(f"sizes must be {_sizes(parts)}, got {sizes}")
    y, finals = run(parts, bidirectional, False, sequence, states)
    return [y if batch_sizes is None else y.data, *finals]


def _recurrent_fake(
    x: Tensor,
    states: list[Tensor],
    batch_sizes: Tensor | None,
    weights: list[Any],
    sizes: list[int],
    bidirectional: bool,
) -> list[Tensor]:
    if x.ndim != (3 if batch_sizes is None else 2) or x.dtype not in _DTYPES:
        raise TypeError(f"x must be a sequence of float32, float16 or bfloat16, got {arrays.describe(x)}")
    if batch_sizes is None:
        batch: Any = x.shape[1]
    else:
        batch = states[0].shape[1] if states else torch.library.get_ctx().new_dynamic_size()
    y = x.new_empty((*x.shape[:-1], sizes[0] * (2 if bidirectional else 1)))
    return [y, *(x.new_empty((len(weights), batch, size)) for size in sizes)]


_library.impl("recurrent_here", _recurrent_here, "CPU")
_library.impl("recurrent", _recurrent, "CPU")
for _form in ("recurrent", "recurrent_here"):
    torch.library.register_fake(f"pycompress::{_form}", _recurrent_fake, lib=_library)
