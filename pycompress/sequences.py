"""Sequences through packed LSTM and GRU layers: every form of torch's input, and the operator of compiled models.

``torch.ops.pycompress.recurrent_here(Tensor x, Tensor[] states, Tensor? batch_sizes, int[] numbers, int[] sizes, bool
bidirectional) -> Tensor[]`` takes the numbers of packed weights that live in this process, and the sizes of h and, of
an LSTM, c; it returns the output and the final states. Their shapes follow from the call alone: torch keeps compiled
code on disk by its calls, and in the next process a number means another weight.
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
    directions = 2 if bidirectional else 1
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
    """Call the operator that stands for :func:`run` in what torch.compile traces.

    Raises
    ------
    RuntimeError
        Under ``torch.export``, for which there is no operator yet.
    """
    if torch.compiler.is_exporting():
        raise RuntimeError("packed LSTM and GRU layers cannot be exported yet; export the dense model")
    sequence = x if isinstance(x, PackedSequence) else None
    data = x if isinstance(x, Tensor) else x.data
    batched = sequence is not None or data.ndim != 2
    flip = batch_first and sequence is None and batched
    data = data.transpose(0, 1) if flip else data if batched else data[:, None]
    states = [state if batched or state.ndim != 2 else state[:, None] for state in states]
    order = None if sequence is None else sequence.sorted_indices
    if order is not None:
        states = [state.index_select(1, order) for state in states]
    numbers = [part.number for part in parts]
    batch_sizes = None if sequence is None else sequence.batch_sizes
    y, *finals = torch.ops.pycompress.recurrent_here(data, states, batch_sizes, numbers, _sizes(parts), bidirectional)
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
    sequence = x if batch_sizes is None else PackedSequence(x, batch_sizes)
    parts = _found(numbers)
    if sizes != _sizes(parts):
        raise ValueError(f"sizes must be {_sizes(parts)}, got {sizes}")
    y, finals = run(parts, bidirectional, False, sequence, states)
    return [y if batch_sizes is None else y.data, *finals]


def _recurrent_fake(
    x: Tensor,
    states: list[Tensor],
    batch_sizes: Tensor | None,
    numbers: list[int],
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
    return [y, *(x.new_empty((len(numbers), batch, size)) for size in sizes)]


_library.impl("recurrent_here", _recurrent_here, "CPU")
torch.library.register_fake("pycompress::recurrent_here", _recurrent_fake, lib=_library)
