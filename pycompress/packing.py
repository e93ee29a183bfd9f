"""Replace layers by packed ones: where that is measured to be faster, or where it is asked for by name."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import masks
from .attention import keep_dense_
from .chains import chain_
from .convolutions import PackedConv2d
from .embeddings import EMBEDDINGS
from .embeddings import candidates as tables
from .explaining import has_weights
from .folding import fold_, unfold_
from .formats import Format, Int4, Int8, Sparse
from .fusing import seen_together, sequential_pairs, traced_pairs
from .grids import grid_of
from .images import alternative, channels_last, faster, together
from .layers import LayerDecision, PackedLayer, PackedLinear, set_decision
from .linears import (
    DYNAMIC,
    ON_REQUEST,
    Shared,
    candidates,
    find_all,
    find_dynamic,
    grid_records,
    is_conv1d,
    is_dynamic,
    joined,
    replaced,
)
from .progress import track
from .recording import Seen, record, run
from .selection import listed
from .substitutes import RECURRENT, accept, int8_layer, obstacle, rows, substitutes_for, tell_ties
from .timing import Clock, compare


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
    nn.MultiheadAttention, nn.Embedding and nn.EmbeddingBag that ``example_inputs`` reach is timed against packed
    candidates on the very inputs that it gets in that forward pass, in turns with them (see
    :func:`pycompress.timing.compare`). It is replaced by the candidate with the largest lower end of the 95 % interval
    of the speedup dense / packed, if that is above 1. An activation module (nn.ReLU, nn.ReLU6, nn.GELU without
    approximation, nn.SiLU, nn.Tanh, nn.Sigmoid) that alone takes the output of a linear layer or a convolution, in an
    nn.Sequential or in the graph that torch.fx makes of the model, is fused, timed with it, and replaced by an
    nn.Identity, so that no name changes. A batch normalization behind a layer that gets Int8 weights becomes part of
    their scales, whatever stands between them in the code, as long as it alone takes the layer's outputs. Int8 linear
    layers that follow each other in an nn.Sequential become one call where that is measured to be faster than one by
    one. Convolutions on a static Int8 grid hand each other int8 images whose channels come last, also those that are
    not faster on their own, where the whole model is measured to be faster that way; the numbers are the same.
    :func:`pycompress.explain` lists every decision and why; copies and pickles of the model keep them.

    Without a ``format`` a candidate keeps the layer's numbers as ``quantize_`` and ``prune_`` left them: Int8 with
    exactly the recorded integers and input scale where the weight still lies on its Int8 grid, and Sparse where less
    than 70 % of the weights are not zero. Other layers stay dense.

    Parameters
    ----------
    model : nn.Module
        On the CPU, with at least one such layer. It is not changed.
    example_inputs : tensor, array, or tuple or dict of them
        What the model is called with, with the batch size that matters.
    format : Int8, Int4 or Sparse, optional
        The one format to try on every layer. A weight that lies on no Int8 grid is rounded by Int8; Int4 rounds all.
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
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> packed = pack(model, torch.zeros(8, 64), Int8(), force=True)
    >>> [type(layer).__name__ for layer in packed]
    ['PackedLinear', 'Identity', 'PackedLinear']
    """
    if format is not None and not isinstance(format, (Int8, Int4, Sparse)):
        raise TypeError(f"format must be Int8(), Int4(), Sparse() or None, got {format!r}")
    if not isinstance(force, bool):
        raise TypeError(f"force must be a bool, got {type(force).__name__}")
    find_all(model)
    twin = masks.finalize_(copy.deepcopy(model)).eval().requires_grad_(False)
    folds = fold_(twin, lambda: run(twin, example_inputs), lambda layer: _is_int8(layer, format))
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
            chosen, decision = _fastest(dense, modules, entry.inputs, decision, _clock)
        told[layer] = decision
        if modules and isinstance(modules[0], PackedConv2d) and (last := channels_last(modules[0])) is not None:
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
    keep_dense_(result)
    unfold_(result, (fold for layer, fold in folds.items() if layer not in substitutes))
    if other is not None:
        keep_dense_(other)
        unfold_(other, (fold for layer, fold in folds.items() if layer not in substitutes.keys() | lasts.keys()))
        speedup = None if force else faster(result, other, example_inputs, _clock)
        if force or speedup is not None:
            result = other
            for layer, last in lasts.items():
                accept(last, together(told[layer], speedup))
            substitutes |= lasts
    tell_ties(result, substitutes.items())
    inputs = {packed: seen[layer].inputs for layer, packed in substitutes.items() if layer in seen}
    chain_(result, inputs, force, _clock)
    try:
        run(result, example_inputs)
    except ValueError as error:
        names = [name for name, layer in layers.items() if layer in substitutes]
        raise ValueError(f"model must run when {names} are packed, got {error.__cause__!r}") from error.__cause__
    return result


def _is_int8(layer: nn.Module, format: Format | None) -> bool:
    record = grid_of(layer)
    return isinstance(format if record is None else record.format, Int8)


def _fastest(
    dense: list[nn.Module], modules: list[PackedLayer], inputs: list[Any], decision: LayerDecision, clock: Clock
) -> tuple[PackedLayer | None, LayerDecision]:
    """Time packed layers against dense modules; return the one with the best lower end, or None, and the decision."""
    if not decision.rows:
        return None, replace(decision, reason=joined("example_inputs give it no rows", decision.reason))
    tail = [nn.Identity().eval() for _ in dense[1:]]
    with torch.no_grad():
        speedups = compare(_calls(dense, inputs), [_calls([module, *tail], inputs) for module in modules], clock=clock)
    best = max(range(len(modules)), key=lambda i: speedups[i].low)
    speedup = speedups[best]
    tried = " and ".join(type(module.format).__name__ for module in modules)
    timed = replace(
        decision,
        dense_us=speedup.baseline_seconds * 1e6,
        packed_us=speedup.seconds * 1e6,
        speedup=speedup.median,
        low=speedup.low,
        high=speedup.high,
        reason=joined("faster" if speedup.low > 1 else f"{tried} not faster", decision.reason),
    )
    return (modules[best] if speedup.low > 1 else None), timed


def _calls(chain: list[nn.Module], inputs: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for x in inputs:
            for module in chain:
                x = module(*x) if type(x) is tuple else module(x)

    return run


_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_READS_ITS_LINEARS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Any = None,
    dtype: torch.dtype = torch.qint8,
    mapping: None = None,
    inplace: bool = False,
) -> nn.Module:
    """Replace linear and recurrent layers by int8 ones, called as ``torch.ao.quantization.quantize_dynamic`` is.

    Weights are quantized now, per output; activations at run time, per row (see :func:`pycompress.kernels.linear`).
    Nothing is measured: the layers are asked for by name. A weight that lies on a recorded Int8 grid keeps exactly its
    integers.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    qconfig_spec : None, set or dict
        Types and names of modules. None: every nn.Linear (and Conv1D of transformers), nn.LSTM, nn.GRU, nn.LSTMCell and
        nn.GRUCell. A set: those, and what is inside them; but an nn.Embedding, nn.EmbeddingBag or nn.MultiheadAttention
        only where its own type or name is asked for. A dict: as the set of its keys, but None as value leaves a module
        out; a name counts more than a type, an inner module more than an outer one.
    dtype : torch.dtype
        torch.qint8.
    mapping : None
        torch's own table of replacements has no meaning here.
    inplace : bool
        Change the model itself instead of a copy.

    Returns
    -------
    nn.Module
        In eval mode; parameters that are left do not require grad, and pruning masks are applied and dropped. Linear
        layers that must keep their weight (those of dense nn.MultiheadAttention, say) stay dense: ``explain`` tells. An
        nn.TransformerEncoderLayer whose attention is packed takes its ordinary path, not its fused one.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value, a name is not in the model, no such layer is matched, or one
        asked for by its name cannot be packed. All are named, and the model is not changed.
    NotImplementedError
        When a layer without a kernel is asked for (RNN and RNNCell, anything else by its type or name),
        or dtype is another of torch's quantized types.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> [type(layer).__name__ for layer in quantize_dynamic(model, {"2"})]
    ['Linear', 'Tanh', 'PackedLinear']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _check_dtype(dtype)
    if mapping is not None:
        raise NotImplementedError(f"mapping must be None, got {mapping!r}")
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be a bool, got {type(inplace).__name__}")
    if inplace and (is_dynamic(model) or isinstance(model, ON_REQUEST)):
        raise ValueError("inplace must be False for a model that is itself the layer to replace")
    wanted = _wanted(model, _spec(qconfig_spec))
    twin = masks.finalize_(copy.deepcopy(model))
    found = find_dynamic(twin, wanted)
    layers = {name: layer for name, layer in found.items() if name in wanted}
    attending = {layer: name for name, layer in layers.items() if _attends(layer) and not obstacle(layer)}
    inside = tuple(f"{name}." if name else "" for name in attending.values())
    layers = {name: layer for name, layer in layers.items() if layer in attending or not name.startswith(inside)}
    readers = [m for m in twin.modules() if isinstance(m, _READS_ITS_LINEARS)]
    readers = [m for m in readers if m not in attending and m._modules.get("self_attn") not in attending]
    keepers = {child for reader in readers for child in reader._modules.values() if not _attends(child)}
    kept = {
        name: reason
        for name, layer in layers.items()
        if (reason := obstacle(layer) or ("its parent reads its weight" if layer in keepers else ""))
    }
    if named := {name: reason for name, reason in kept.items() if wanted[name]}:
        raise ValueError("qconfig_spec must name layers that can be packed, got " + listed(named))
    if len(kept) == len(layers):
        raise ValueError(f"qconfig_spec must match a layer that can be packed, got {listed(kept) or 'none'}")
    records, shared = grid_records(found.values()), Shared()
    target = masks.finalize_(model) if inplace else twin
    targets = find_dynamic(target, wanted)
    substitutes: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        decision = LayerDecision(name, type(layer).__name__, reason=kept.get(name, "asked for by quantize_dynamic"))
        if name in kept:
            set_decision(targets[name], decision)
        else:
            packed: PackedLayer
            if isinstance(layer, (*RECURRENT, nn.MultiheadAttention)):
                packed, note = int8_layer(layer), ""
            elif isinstance(layer, EMBEDDINGS):
                [packed], note = tables(layer, Int8(), records.get(id(layer.weight)), shared)
            else:
                [weight], note = candidates(layer, Int8(), records, shared, static=False)
                packed = PackedLinear(weight)
            accept(packed, replace(decision, reason=joined(decision.reason, note)))
            substitutes[targets[name]] = packed
    result = replaced(target, substitutes)
    keep_dense_(result)
    tell_ties(result, substitutes.items())
    return result.eval().requires_grad_(False)


def _attends(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.MultiheadAttention)


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be torch.qint8, got {dtype!r}")
    if dtype in (torch.float16, torch.quint8, torch.quint4x2):
        raise NotImplementedError(f"dtype must be torch.qint8, the one type that there are kernels for, got {dtype}")
    if dtype != torch.qint8:
        raise ValueError(f"dtype must be torch.qint8, got {dtype}")


def _spec(qconfig_spec: Any) -> dict[Any, bool]:
    """Types and names, and whether each is to be replaced."""
    if qconfig_spec is None:
        return dict.fromkeys(DYNAMIC, True)
    if not isinstance(qconfig_spec, (set, frozenset, dict)):
        raise TypeError(f"qconfig_spec must be None, a set or a dict, got {type(qconfig_spec).__name__}")
    for key in qconfig_spec:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(f"qconfig_spec must hold module types and names, got {key!r}")
    if isinstance(qconfig_spec, dict):
        return {key: value is not None for key, value in qconfig_spec.items()}
    return dict.fromkeys(qconfig_spec, True)


def _wanted(model: nn.Module, spec: dict[Any, bool]) -> dict[str, bool]:
    """First names of the modules that spec asks for, and whether it does so by their own name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if unknown := [key for key in spec if isinstance(key, str) and key not in modules]:
        raise ValueError(f"qconfig_spec must name modules of the model, got {unknown}")
    asked: dict[str, bool] = {}
    wanted: dict[nn.Module, bool] = {}
    lacking: dict[str, str] = {}
    for name, module in modules.items():  # parents come before what is inside them
        outer = bool(name) and asked[name.rpartition(".")[0]]
        kinds = (*type(module).__mro__, *((nn.Linear,) if is_conv1d(module) else ()))
        by_type = next((cls for cls in kinds if cls in spec), None)
        asked[name] = spec[name] if name in spec else outer if by_type is None else spec[by_type]
        direct = name in spec or by_type is not None
        if not asked[name] or (isinstance(module, ON_REQUEST) and not direct):
            continue
        wanted[module] = wanted.get(module, False) or name in spec
        leaf = direct and not list(module.children())
        known = is_dynamic(module) or isinstance(module, ON_REQUEST)
        if not known and (isinstance(module, _RECURRENT) or (leaf and has_weights(module))):
            lacking[name] = type(module).__name__
    if lacking:
        raise NotImplementedError(f"qconfig_spec must ask for layers that there are kernels for, got {listed(lacking)}")
    return {name: wanted[module] for name, module in model.named_modules() if module in wanted}
