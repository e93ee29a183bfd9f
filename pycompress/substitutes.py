"""What can stand in the place of each kind of layer, and what the decision about it says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import attention, cells, conv_formats, convolutions, embeddings, linears, recurrent
from .attention import PackedMultiheadAttention
from .cells import CELLS, PackedCell
from .convolutions import CONVOLUTIONS, PackedConv1d, PackedConv2d
from .embeddings import EMBEDDINGS
from .formats import Format, Int8
from .grids import GridRecord, int8_of
from .kernels.ops import Activation
from .layers import LayerDecision, PackedLayer, PackedLinear, set_decision
from .linears import Shared, joined
from .recording import Seen
from .recurrent import PackedGRU, PackedLSTM
from .selection import several_weights

RECURRENT = (nn.LSTM, nn.GRU, *CELLS)


def obstacle(layer: nn.Module) -> str:
    """Return why no packed layer can stand in for this one, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.LSTM(2, 1)), obstacle(nn.Embedding(2, 1).double())
    ('', 'its weight is float64')
    """
    if isinstance(layer, nn.RNNBase):
        return recurrent.obstacle(layer)
    if isinstance(layer, CELLS):
        return cells.obstacle(layer)
    if isinstance(layer, nn.MultiheadAttention):
        return attention.obstacle(layer)
    return embeddings.obstacle(layer) if isinstance(layer, EMBEDDINGS) else linears.obstacle(layer)


def substitutes_for(
    layer: nn.Module,
    entry: Seen,
    activation: Activation | None,
    format: Format | None,
    records: Mapping[int, GridRecord],
    shared: Shared,
) -> tuple[list[PackedLayer], str]:
    """Return the packed layers worth trying in the place of a layer, in eval mode, and a note.

    Parameters
    ----------
    layer : nn.Module
        Without an :func:`obstacle`.
    entry : Seen
        What the layer saw.
    activation : str or None
        The activation behind it, which the packed layer has to compute.
    format : Int8, Int4, Sparse or None
    records : mapping
        The recorded grid of each weight by the weight's id.
    shared : dict
        What was packed already; is added to.

    Examples
    --------
    >>> [packed], note = substitutes_for(nn.GRU(2, 3), Seen(), None, Int8(), {}, {})
    >>> type(packed).__name__, note
    ('PackedGRU', '')
    """
    if isinstance(layer, EMBEDDINGS):
        tables, note = embeddings.candidates(layer, format, records.get(id(layer.weight)), shared)
        return [*tables], note
    if isinstance(layer, (*RECURRENT, nn.MultiheadAttention)):
        if isinstance(format, Int8) or (format is None and on_int8_grids(layer)):
            return [int8_layer(layer)], ""
        kind = "attention" if isinstance(layer, nn.MultiheadAttention) else "recurrent"
        return [], "packed with Int8() alone" if format is None else f"{type(format).__name__} has no {kind} kernel"
    if not isinstance(layer, CONVOLUTIONS):
        weights, note = linears.candidates(layer, format, records, shared, rows=rows(layer, entry.inputs))
        return [PackedLinear(weight, activation).eval() for weight in weights], note
    form = convolutions.geometry(layer, entry.inputs)
    if isinstance(form, str):
        return [], form
    packed, note = conv_formats.candidates(layer, form, format, records.get(id(layer.weight)), shared)
    if isinstance(layer, nn.Conv1d):
        return [PackedConv1d(weight, activation).eval() for weight in packed], note
    return [PackedConv2d(weight, activation, dtype=layer.weight.dtype).eval() for weight in packed], note


def on_int8_grids(layer: nn.Module) -> bool:
    """Whether all weights of a recurrent layer, or of attention, lie on recorded Int8 grids.

    Examples
    --------
    >>> on_int8_grids(nn.GRUCell(2, 3))
    False
    """
    places = [(layer, name) for name in several_weights(layer)]
    if isinstance(layer, nn.MultiheadAttention):
        places.append((layer.out_proj, "weight"))
    return bool(places) and all(int8_of(module, name) is not None for module, name in places)


def int8_layer(
    layer: nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell | nn.RNNCell | nn.MultiheadAttention,
) -> PackedLSTM | PackedGRU | PackedCell | PackedMultiheadAttention:
    """Return the packed int8 layer of a recurrent one or of attention.

    Examples
    --------
    >>> type(int8_layer(nn.GRUCell(2, 3))).__name__
    'PackedGRUCell'
    """
    if isinstance(layer, nn.MultiheadAttention):
        return attention.packed_attention(layer)
    if isinstance(layer, CELLS):
        return cells.packed_cell(layer)
    return recurrent.packed_of(layer)


def accept(module: PackedLayer, decision: LayerDecision) -> None:
    """Record on a packed layer why it is there.

    Examples
    --------
    >>> packed = int8_layer(nn.GRUCell(2, 3))
    >>> accept(packed, LayerDecision("cell", "GRUCell", reason="faster"))
    >>> packed.decision.format, packed.decision.reason
    (Int8(), 'faster')
    """
    set_decision(module, replace(decision, format=module.format, kernel=module.kernel))


def rows(layer: nn.Module, inputs: list[Any]) -> int:
    """Count the rows of a linear or recurrent layer, images (or signals) of a convolution, indices of an embedding.

    Examples
    --------
    >>> import torch
    >>> rows(nn.Linear(3, 1), [torch.zeros(2, 5, 3)]), rows(nn.Embedding(9, 1), [torch.zeros(2, 5)])
    (10, 10)
    """
    first: list[Tensor] = [x[0] if type(x) is tuple else x for x in inputs]
    if isinstance(layer, EMBEDDINGS):
        return sum(x.numel() for x in first)
    if isinstance(layer, nn.RNNBase):
        first = [x.data if isinstance(x, PackedSequence) else x for x in first]
    inner = 2 if isinstance(layer, nn.Conv1d) else 3 if isinstance(layer, nn.Conv2d) else 1
    return sum(math.prod(x.shape[:-inner]) for x in first)


def tell_ties(model: nn.Module, substitutes: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Say in the decisions of packed layers where the dense weight that they stand for is left in the model.

    It is where another layer shares it that stays dense: then the model holds the weight twice, and so do files.

    Parameters
    ----------
    model : nn.Module
        With the packed layers in it.
    substitutes : pairs of a layer and its packed one

    Examples
    --------
    >>> table = nn.Embedding(3, 2)
    >>> packed = PackedLinear(linears.candidates(nn.Linear(2, 3), Int8(), {}, {})[0][0])
    >>> packed.decision = LayerDecision("head", "Linear", reason="faster")
    >>> head = nn.Linear(2, 3)
    >>> head.weight = table.weight
    >>> tell_ties(nn.ModuleDict({"table": table, "head": packed}), [(head, packed)])
    >>> packed.decision.reason
    'faster; table.weight, which it shared, stays dense beside it'
    """
    left = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer, packed in substitutes:
        name, decision = left.get(id(layer._parameters.get("weight"))), getattr(packed, "decision", None)
        if name is not None and decision is not None:
            note = f"{name}, which it shared, stays dense beside it"
            set_decision(packed, replace(decision, reason=joined(decision.reason, note)))
