"""Replace layers by packed ones where that is measured to be faster."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

from torch import nn

from . import masks
from .calls import copy_of
from .chains import chain_
from .choosing import fastest
from .conv_formats import is_pruned
from .convolutions import CONVOLUTIONS, PackedConv2d
from .encoders import Fused, fuse_activations_, leave_fused_path_, restore_, take_ordinary_path_
from .folding import fold_, unfold_
from .formats import Binary, Codebook, Format, Int4, Int8, Sparse, has_bfloat16_weights, has_int8_weights
from .fusing import seen_together, sequential_pairs, traced_pairs
from .grids import grid_of
from .images import alternative, channels_last, faster, together
from .layers import LayerDecision, PackedLayer, PackedLinear, set_decision
from .linears import Shared, find_all, grid_records, joined, replaced
from .progress import track
from .recording import Seen, record, run
from .substitutes import accept, obstacle, rows, substitutes_for, tell_ties
from .timing import Clock


def pack(
    model: nn.Module,
    example_inputs: Any,
    format: Format | None = None,
    force: bool = False,
    *,
    _clock: Clock = time.perf_counter,
) -> nn.Module:
    """Return a copy of a model for inference, in which each layer is replaced where that makes it faster.

    Every nn.Linear (and Conv1D of transformers), nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell,
    nn.RNNCell, nn.MultiheadAttention, nn.Embedding and nn.EmbeddingBag that ``example_inputs`` reach is timed against
    packed candidates on the very inputs that it gets in that forward pass, in turns with them (see
    :func:`pycompress.timing.compare`). It is replaced by the candidate with the largest lower end of the 95 % interval
    of the speedup dense / packed, if that is above 1. An activation module (nn.ReLU, nn.ReLU6, nn.GELU without
    approximation, nn.SiLU, nn.Tanh, nn.Sigmoid) that alone takes the output of a linear layer or a convolution, in an
    nn.Sequential or in the graph that torch.fx makes of the model, is fused, timed with it, and replaced by an
    nn.Identity, so that no name changes. The attention and the linear layers of an nn.TransformerEncoderLayer are timed
    one by one; they stay packed where the model is faster with them than with that layer's fused path. There, and
    in an nn.TransformerDecoderLayer, the first linear layer computes the activation too. A batch normalization behind
    a layer that gets Int8 weights becomes part of their scales, and behind a sparse convolution part of its weights,
    whatever stands between them in the code, as long as it alone takes the layer's outputs. Int8 linear layers that
    follow each other in an nn.Sequential become one call where that is measured to be faster than one by one; in a
    pruned model that may be dense Int8 where single layers are faster sparse. Convolutions on a static Int8 grid hand
    each other int8 images whose channels come last, also those that are not faster on their own, where the whole model
    is measured to be faster that way; the numbers are the same.
    :func:`pycompress.explain` lists every decision and why; copies and pickles of the model keep them.

    Without a ``format`` a candidate keeps the layer's numbers as ``quantize_`` and ``prune_`` left them: Int8 with
    exactly the recorded integers and input scale where the weight still lies on its Int8 grid, and Sparse where less
    than 70 % of the weights are not zero, in the blocks that :func:`pycompress.kernels.find_block` sees. Other layers
    stay dense.

    Parameters
    ----------
    model : nn.Module
        On the CPU, with at least one such layer. It is not changed.
    example_inputs : tensor, array, or tuple or dict of them
        What the model is called with, with the batch size that matters.
    format : Int8, Int4, Codebook, Binary or Sparse, optional
        The one format to try on every layer. A weight that lies on no Int8 grid is rounded by Int8; Int4,
        Codebook and Binary round all.
    force : bool
        Replace without measuring.

    Returns
    -------
    nn.Module
        In eval mode; parameters that are left do not require grad; pruning masks are applied and dropped. A weight
        that layers share is packed once.

    Raises
    ------
    TypeError
        When an argument has another type.
    ValueError
        When the model has no such layer, weights are not finite or not on the CPU (all layers are named), or
        example_inputs do not fit the model (its own error is the cause).

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> packed = pack(model, torch.zeros(8, 64), Int8(), force=True)
    >>> [type(layer).__name__ for layer in packed]
    ['PackedLinear', 'Identity', 'PackedLinear']
    """
    if format is not None and not isinstance(format, (Int8, Int4, Codebook, Binary, Sparse)):
        raise TypeError(f"format must be Int8(), Int4(), Codebook(), Binary(), Sparse() or None, got {format!r}")
    if not isinstance(force, bool):
        raise TypeError(f"force must be a bool, got {type(force).__name__}")
    find_all(model)
    twin = masks.finalize_(copy_of(model)).eval().requires_grad_(False)
    folds = fold_(twin, lambda: run(twin, example_inputs), lambda layer: _takes_norm(layer, format))
    fused = leave_fused_path_(twin)
    layers = find_all(twin)
    obstacles = {layer: obstacle(layer) for layer in layers.values()}
    traced = traced_pairs(twin, example_inputs)
    followers = {layer: pair.module for layer, pair in traced.items()}
    free = [layer for layer, fault in obstacles.items() if not fault]
    seen, calls = record(twin, example_inputs, free, followers)
    pairs = seen_together(traced, seen, calls) | sequential_pairs(twin, seen, calls)
    records, shared = grid_records(layers.values()), Shared()
    substitutes: dict[nn.Module, nn.Module] = {}
    lasts: dict[nn.Module, PackedConv2d] = {}
    told: dict[nn.Module, LayerDecision] = {}
    joinable: dict[nn.Module, tuple[PackedLinear, LayerDecision] | None] = {}
    for name, layer in track(layers.items(), "packing"):
        entry, pair = seen.get(layer, Seen()), pairs.get(layer)
        note = obstacles[layer] or entry.obstacle or ("" if entry.calls else "never called by example_inputs")
        modules: list[PackedLayer] = []
        if not note:
            modules, note = substitutes_for(layer, entry, None if pair is None else pair.name, format, records, shared)
        dense = [layer] if layer not in folds else [folds[layer].layer, folds[layer].norm]
        dense += [] if pair is None else [pair.module]
        kind = "+".join(type(module).__name__ for module in dense)
        decision = LayerDecision(name, kind, rows=rows(layer, entry.inputs), reason=note)
        chosen: PackedLayer | None = None
        if modules and force:
            chosen, decision = modules[0], replace(decision, reason=joined("forced, not measured", note))
        elif modules:
            chosen, decision = fastest(dense, modules, entry.inputs, decision, _clock)
            joinable[layer if chosen is None else chosen] = next(
                ((m, decision) for m in modules if isinstance(m, PackedLinear) and has_int8_weights(m.format)), None
            )
        told[layer] = decision
        convolutions = [module for module in modules if isinstance(module, PackedConv2d)]
        if last := next((last for module in convolutions if (last := channels_last(module)) is not None), None):
            lasts[layer] = last
        if chosen is None:
            set_decision(dense[0], decision)
            continue
        accept(chosen, decision)
        substitutes[layer] = chosen
    other = alternative(twin, substitutes | lasts, pairs, example_inputs) if len(lasts) > 1 else None
    for layer in substitutes.keys() & pairs.keys():
        pairs[layer].fuse()
    result = replaced(twin, substitutes)
    fuse_activations_(result)
    take_ordinary_path_(result)
    unfold_(result, (fold for layer, fold in folds.items() if layer not in substitutes))
    if other is not None:
        take_ordinary_path_(other)
        unfold_(other, (fold for layer, fold in folds.items() if layer not in substitutes.keys() | lasts.keys()))
        speedup = None if force else faster(result, other, example_inputs, _clock)
        if force or speedup is not None:
            result = other
            for layer, last in lasts.items():
                accept(last, together(told[layer], speedup))
            substitutes |= lasts
    _settle_(result, fused, substitutes, told, example_inputs, force, _clock)
    tell_ties(result, substitutes.items())
    inputs = {packed: seen[layer].inputs for layer, packed in substitutes.items() if layer in seen}
    alternatives = {
        module: other
        for module, other in joinable.items()
        if other is not None and other[0] is not module and (module in inputs or module not in pairs)
    }
    chain_(result, inputs | {m: seen[m].inputs for m in alternatives if m in seen}, force, _clock, alternatives)
    try:
        run(result, example_inputs)
    except ValueError as error:
        names = [name for name, layer in layers.items() if layer in substitutes]
        raise ValueError(f"model must run when {names} are packed, got {error.__cause__!r}") from error.__cause__
    return result


def _takes_norm(layer: nn.Module, format: Format | None) -> bool:
    """Whether a layer gets Int8 weights, or is a convolution that may stay sparse."""
    record = grid_of(layer)
    if record is None and isinstance(layer, CONVOLUTIONS) and (format is None or isinstance(format, Sparse)):
        wanted = is_pruned(layer.weight) if format is None else not has_bfloat16_weights(format)
        return wanted and layer.weight.shape[1] > 1
    return has_int8_weights(format if record is None else record.format)


def _settle_(
    model: nn.Module,
    fused: Fused,
    substitutes: dict[nn.Module, nn.Module],
    told: dict[nn.Module, LayerDecision],
    example_inputs: Any,
    force: bool,
    clock: Clock,
) -> None:
    """Put encoder layers back to their fused path, unless the model is faster with their packed parts."""
    left = [layer for layer in fused.parts.values() if layer in substitutes]
    speedup = None
    if left and not force:
        dense = copy_of(model, share=True)
        restore_(dense, fused)
        speedup = faster(dense, model, example_inputs, clock)
    stays = bool(left) and (force or speedup is not None)
    restore_(model, fused, parts=not stays)
    for layer in left:
        if not stays:
            del substitutes[layer]
            set_decision(layer, replace(told[layer], reason="faster, but for the fused path of its encoder layer"))
        elif speedup is not None:
            packed = cast(PackedLayer, substitutes[layer])
            note = f"the model is {speedup.median:.2f}x as fast as on the fused path of its encoder layers"
            decision = cast(LayerDecision, packed.decision)
            set_decision(packed, replace(decision, reason=joined(decision.reason, note)))
