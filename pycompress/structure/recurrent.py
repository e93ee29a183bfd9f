"""Recurrent layers: the hidden units of each layer and direction are outputs that can be taken away.

A unit goes with its row in every gate of ``weight_ih``, ``weight_hh`` and the biases, with its column of ``weight_hh``,
and with the inputs that it is elsewhere: of the next layer, or of what takes the output or the last state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .call import Call, Labels
from .labels import NONE, Part, Stack, along, unlabelled
from .operations import CELLS, GATES


def recurrent(call: Call) -> Labels | str:
    """Follow an RNN, LSTM or GRU, or a cell of one: outputs, and last states."""
    module: Any = call.module
    kinds: dict[Any, int] = GATES
    if not any(type(module).forward is kind.forward for kind in kinds):
        return "has a forward of its own"
    given = call.argument(0, "input")
    entering = _entering(call, call.labels_of(given), module.input_size)
    first = str(call.node.target) not in call.coupling.inputs
    call.coupling.enter(str(call.node.target), entering, call.place)
    rows, states = _units(call, first)
    two = isinstance(module, (nn.LSTM, nn.LSTMCell))
    state = call.labels_of(call.argument(1, "hx"))
    if state is not None:
        pairs = zip(state, (rows, states), strict=True) if two else [(state, rows)]
        for labels, own in pairs:
            _meet(call, labels, own)
    seen = call.seen[call.node]
    if isinstance(module, CELLS):
        dims = len(call.seen[given].shape or ())
        found = (_last(rows[0], dims), _last(states[0], dims))
        return found if two else found[0]
    assert seen.parts is not None
    ways = 2 if module.bidirectional else 1
    output = _last(torch.cat(rows[-ways:]), len(seen.parts[0].shape or ()))
    dims = len((seen.parts[1].parts or (seen.parts[1],))[0].shape or ()) - 1
    last, cells = _stack(rows, dims), _stack(states, dims)
    return output, ((last, cells) if two else last)


def _last(units: Tensor, dims: int) -> Tensor:
    return units.reshape([1] * (dims - 1) + [-1])


def _stack(rows: list[Tensor], dims: int) -> Labels:
    found = [_last(row, dims) for row in rows]
    return found[0][None] if len(found) == 1 else Stack(tuple(found))


def _entering(call: Call, labels: Tensor, size: int) -> Tensor:
    found = along(labels, labels.ndim - 1, size)
    if found is None:
        call.coupling.mark("unknown", labels, f"{call.place} takes another dimension as its inputs")
        return torch.full((size,), NONE)
    return found


def _meet(call: Call, labels: Tensor | Stack, rows: list[Tensor]) -> None:
    """Let the units of a first state go together with those of the layer."""
    own = labels.rows if isinstance(labels, Stack) else [labels] * len(rows)
    if len(own) != len(rows):
        own = [unlabelled(1)] * len(rows)
    for units, state in zip(rows, own, strict=True):
        call.coupling.couple(units, _entering(call, state, units.numel()), call.place)


def _units(call: Call, first: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return the units of the outputs and of the cell states, by layer and direction; note which entries they have."""
    module, name, coupling = call.module, str(call.node.target), call.coupling
    cell, gates = isinstance(module, CELLS), next(n for kind, n in GATES.items() if isinstance(module, kind))
    ways = ("", "_reverse") if getattr(module, "bidirectional", False) else ("",)
    entering, rows, states = coupling.inputs[name], [], []
    parts: list[Part] = []
    for layer in range(getattr(module, "num_layers", 1)):
        for way in ways:
            end = "" if cell else f"_l{layer}{way}"
            key = f"{name}.weight_ih{end}"
            hidden = coupling.add_layer(key, module.hidden_size, name).expand(module.hidden_size)
            states.append(hidden)
            rows.append(hidden)
            if getattr(module, "proj_size", 0):
                other = f"{name}.weight_hr{end}"
                rows[-1] = coupling.add_layer(other, module.proj_size, name).expand(module.proj_size)
                parts += [Part("weight_hr" + end, 0, rows[-1], other), Part("weight_hr" + end, 1, hidden)]
            every = hidden.repeat(gates)
            parts += [Part("weight_ih" + end, 0, every, key), Part("weight_ih" + end, 1, entering)]
            parts += [Part("weight_hh" + end, 0, every, key), Part("weight_hh" + end, 1, rows[-1])]
            parts += [Part(kind + end, 0, every) for kind in ("bias_ih", "bias_hh")]
        entering = torch.cat(rows[-len(ways) :])
    if first:
        coupling.parts[name] = [part for part in parts if module._parameters.get(part.parameter) is not None]
        coupling.even[name] = states
        if rows[0] is not states[0]:
            coupling.even[f"{name} (projections)"] = rows
    return rows, states
