"""int8 layers in one call that takes the arguments of torch's own ``quantize_dynamic``."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import masks
from .calls import copy_of
from .choosing import fastest
from .embeddings import EMBEDDINGS
from .embeddings import candidates as tables
from .encoders import (
    PARTS,
    fuse_activations_,
    is_fused,
    is_plain,
    leave_fused_path_,
    restore_,
    take_ordinary_path_,
)
from .explaining import has_weights
from .formats import Format, Int4, Int8
from .images import faster
from .layers import LayerDecision, PackedLayer, PackedLinear, set_decision
from .linears import (
    DYNAMIC,
    ON_REQUEST,
    Shared,
    candidates,
    find_dynamic,
    grid_records,
    is_conv1d,
    is_dynamic,
    joined,
    replaced,
)
from .recording import Seen, record
from .selection import listed
from .sizes import too_small
from .substitutes import RECURRENT, accept, int8_layer, obstacle, rows, tell_ties
from .timing import Clock

_ASKED = "asked for by quantize_dynamic"
_NO_KERNEL = "it has no int8 kernel with scales found at run time"
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_TYPES = {torch.qint8: DYNAMIC, torch.quint8: EMBEDDINGS, torch.quint4x2: (nn.EmbeddingBag,)}
_FORMATS: dict[torch.dtype, Format] = {torch.qint8: Int8(), torch.quint8: Int8(), torch.quint4x2: Int4()}


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Any = None,
    dtype: torch.dtype = torch.qint8,
    mapping: None = None,
    inplace: bool = False,
    *,
    example_inputs: Any = None,
    _clock: Clock = time.perf_counter,
) -> nn.Module:
    """Replace linear and recurrent layers by int8 ones, called as ``torch.ao.quantization.quantize_dynamic`` is.

    Weights are quantized now, per output; activations at run time, per row (see :func:`pycompress.kernels.linear`). A
    weight that lies on a recorded Int8 grid keeps exactly its integers.

    Layers of a size at which int8 gains nothing stay as they are, unless they are asked for by their own name. Which
    sizes these are was measured once (``bench/drop_in.py --sizes``) and follows from the layer alone, so that a
    ``state_dict`` fits the same model wherever it is quantized again. With ``example_inputs`` every layer is timed
    instead, as :func:`pycompress.pack` does. :func:`pycompress.explain` says of each layer what it became and why.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    qconfig_spec : None, set or dict
        Types and names of modules. None: every nn.Linear (and Conv1D of transformers), nn.LSTM, nn.GRU, nn.LSTMCell,
        nn.GRUCell and nn.RNNCell. A set: those, and what is inside them; but an nn.Embedding, nn.EmbeddingBag or
        nn.MultiheadAttention only where its own type or name is asked for. A dict: as the set of its keys, but None as
        value leaves a module out, and a QConfig of torch must be one of 8-bit weights, or of 4-bit ones for embeddings;
        a name counts more than a type, an inner module more than an outer one, and a ``qconfig`` attribute that a
        module has more than all of them. Modules of a type without a kernel (nn.RNN, say) stay as they are.
    dtype : torch.dtype
        torch.qint8; or, where qconfig_spec is None or a set, torch.quint8 for nn.Embedding and nn.EmbeddingBag, and
        torch.quint4x2 for these (by default nn.EmbeddingBag alone) with 4-bit rows. The integers are signed all the
        same, and 4-bit ones have a scale for each 32 columns.
    mapping : None
        torch's own table of replacements has no meaning here.
    inplace : bool
        Change the model itself instead of a copy.
    example_inputs : tensor, array, or tuple or dict of them, optional
        What the model is called with, with the batch size that matters: layers are replaced where that is measured to
        be faster.

    Returns
    -------
    nn.Module
        In eval mode; parameters that are left do not require grad, and pruning masks are applied and dropped. Linear
        layers that must keep their weight (those of dense nn.MultiheadAttention, say) stay dense. Forward hooks go over
        to the packed layers. An
        nn.TransformerEncoderLayer with packed parts takes its ordinary path, not its fused one.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value, a name is not in the model, no such layer is matched, one asked for
        by its name cannot be packed, or example_inputs do not fit. All are named, and the model is not changed.
    NotImplementedError
        When nothing but layers without a kernel, or one by its name, is asked for, weights of torch.float16
        are, or mapping is given.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 2))
    >>> [type(layer).__name__ for layer in quantize_dynamic(model)]
    ['Linear', 'Tanh', 'PackedLinear', 'Tanh', 'Linear']
    >>> [type(layer).__name__ for layer in quantize_dynamic(model, {"4"})]
    ['Linear', 'Tanh', 'Linear', 'Tanh', 'PackedLinear']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    spec = _spec(qconfig_spec, dtype)
    if mapping is not None:
        raise NotImplementedError(f"mapping must be None, got {mapping!r}")
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be a bool, got {type(inplace).__name__}")
    if inplace and (is_dynamic(model) or isinstance(model, ON_REQUEST)):
        raise ValueError("inplace must be False for a model that is itself the layer to replace")
    wanted, dtypes, lacking = _wanted(model, spec)
    find_dynamic(model, wanted)  # refuses before a large model is copied
    twin = masks.finalize_(copy_of(model)).eval()
    found = find_dynamic(twin, wanted)
    layers = {name: layer for name, layer in found.items() if name in wanted}
    attending = {layer: name for name, layer in layers.items() if _attends(layer) and not obstacle(_bare(layer))}
    inside = tuple(f"{name}." if name else "" for name in attending.values())
    layers = {name: layer for name, layer in layers.items() if layer in attending or not name.startswith(inside)}
    kept = {name: reason for name, reason in _obstacles(twin, layers, attending).items() if reason}
    if named := {name: reason for name, reason in kept.items() if wanted[name]}:
        raise ValueError("qconfig_spec must name layers that can be packed, got " + listed(named))
    if len(kept) == len(layers):
        if lacking and not layers:
            raise NotImplementedError(f"qconfig_spec must ask for layers with a kernel, got {listed(lacking)}")
        raise ValueError(f"qconfig_spec must match a layer that can be packed, got {listed(kept) or 'none'}")
    told = {name: LayerDecision(name, kind, reason=_NO_KERNEL) for name, kind in lacking.items()}
    told |= {
        name: LayerDecision(name, type(layer).__name__, reason=kept.get(name, _ASKED)) for name, layer in layers.items()
    }
    if example_inputs is None:
        small = _too_small(twin, {name: layer for name, layer in layers.items() if name not in kept}, wanted, attending)
        told |= {name: replace(told[name], reason=reason) for name, reason in small.items()}
        kept |= small
    made: dict[str, PackedLayer] = {}
    records, shared = grid_records(found.values()), Shared()
    for name, layer in layers.items():
        if name not in kept:
            made[name], note = _packed(_bare(layer), _FORMATS[dtypes[name]], records, shared)
            told[name] = replace(told[name], reason=joined(told[name].reason, note))
    if example_inputs is not None:
        made, told = _measured(twin, {name: layers[name] for name in made}, made, told, example_inputs, _clock)
    target = masks.finalize_(model) if inplace else twin
    targets = dict(target.named_modules())
    for name, decision in told.items():
        if name in made:
            accept(made[name], decision)
            _keep_hooks(targets[name], made[name])
        else:
            set_decision(targets[name], decision)
    substitutes: dict[nn.Module, nn.Module] = {targets[name]: packed for name, packed in made.items()}
    result = replaced(target, substitutes)
    for module in result.modules():
        module.__dict__.pop("qconfig", None)
    fuse_activations_(result)
    take_ordinary_path_(result)
    tell_ties(result, substitutes.items())
    return result.eval().requires_grad_(False)


def _packed(layer: nn.Module, format: Format, records: Mapping[int, Any], shared: Shared) -> tuple[PackedLayer, str]:
    if isinstance(layer, (*RECURRENT, nn.MultiheadAttention)):
        return int8_layer(layer), ""
    if isinstance(layer, EMBEDDINGS):
        [table], note = tables(layer, format, records.get(id(layer.weight)), shared)
        return table, note
    [weight], note = candidates(layer, format, records, shared, static=False)
    return PackedLinear(weight).eval(), note


def _bare(layer: nn.Module) -> nn.Module:
    """A layer with the same parameters and without forward hooks, which go over to the packed one."""
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return layer
    twin = copy.copy(layer)
    twin.__dict__ |= {name: OrderedDict() for name in _HOOKS}
    return twin


def _keep_hooks(layer: nn.Module, packed: PackedLayer) -> None:
    """Let a packed layer run the forward hooks of the one that it stands for, as torch's quantized layers do."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        packed.__dict__ |= {name: OrderedDict(layer.__dict__[name]) for name in _HOOKS}


def _attends(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.MultiheadAttention)


def _obstacles(model: nn.Module, layers: Mapping[str, nn.Module], attending: Iterable[nn.Module]) -> dict[str, str]:
    """Why layers cannot be packed; "" where they can."""
    packed = set(attending)
    readers = [m for m in model.modules() if _attends(m) or isinstance(m, nn.TransformerEncoderLayer)]
    readers = [m for m in readers if not is_plain(m) and m not in packed and m._modules.get("self_attn") not in packed]
    keepers = {child for reader in readers for child in reader._modules.values() if not _attends(child)}
    return {
        name: obstacle(_bare(layer)) or ("its parent reads its weight" if layer in keepers else "")
        for name, layer in layers.items()
    }


def _too_small(
    model: nn.Module, layers: Mapping[str, nn.Module], wanted: Mapping[str, bool], attending: Iterable[nn.Module]
) -> dict[str, str]:
    """Return why layers that are not asked for by their own name gain nothing."""
    free = {name: layer for name, layer in layers.items() if not wanted[name]}
    reasons = {name: reason for name, layer in free.items() if (reason := too_small(layer))}
    packed = set(attending)
    for name, module in model.named_modules():
        if is_fused(module) and module._modules["self_attn"] not in packed:
            parts = [path for part in PARTS if (path := f"{name}.{part}" if name else part) in layers]
            reason = "" if any(wanted[path] for path in parts) else too_small(module)
            reasons |= dict.fromkeys(parts, reason) if reason else {}
    return reasons


def _measured(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    made: Mapping[str, PackedLayer],
    told: Mapping[str, LayerDecision],
    example_inputs: Any,
    clock: Clock,
) -> tuple[dict[str, PackedLayer], dict[str, LayerDecision]]:
    """Return those of the packed layers that are faster on what the layers see, and the decisions about all of them."""
    fused = leave_fused_path_(model)
    seen, _ = record(model, example_inputs, layers.values())
    chosen: dict[str, PackedLayer] = {}
    found = dict(told)
    for name, layer in layers.items():
        entry = seen.get(layer, Seen())
        note = entry.obstacle or ("" if entry.calls else "never called by example_inputs")
        decision = replace(told[name], rows=rows(layer, entry.inputs), reason=note)
        if not note:
            best, decision = fastest([layer], [made[name]], entry.inputs, decision, clock)
            chosen |= {} if best is None else {name: best}
        found[name] = decision
    left = {name: packed for name, packed in chosen.items() if name in fused.parts}
    if left:
        other = copy_of(model, share=True)
        other = replaced(other, {other.get_submodule(name): packed for name, packed in chosen.items()})
        fuse_activations_(other)
        take_ordinary_path_(other)
        dense = copy_of(other, share=True)
        restore_(dense, fused)
        restore_(other, fused, parts=False)
        if faster(dense, other, example_inputs, clock) is None:
            for name in left:
                del chosen[name]
                found[name] = replace(found[name], reason="faster, but for the fused path of its encoder layer")
    restore_(model, fused)
    return chosen, found


def _spec(qconfig_spec: Any, dtype: object) -> dict[Any, torch.dtype | None]:
    """Types and names, and the type of weights that each is to have; None: it is left out."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be torch.qint8, got {dtype!r}")
    if qconfig_spec is not None and not isinstance(qconfig_spec, (set, frozenset, dict)):
        raise TypeError(f"qconfig_spec must be None, a set or a dict, got {type(qconfig_spec).__name__}")
    for key in () if qconfig_spec is None else qconfig_spec:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(f"qconfig_spec must hold module types and names, got {key!r}")
    if isinstance(qconfig_spec, dict):  # what its values say counts, not dtype
        return {key: _weights_of(key, value) for key, value in qconfig_spec.items()}
    if dtype == torch.float16:
        raise NotImplementedError(f"dtype must be torch.qint8, torch.quint8 or torch.quint4x2, got {dtype}")
    if dtype not in _TYPES:
        raise ValueError(f"dtype must be torch.qint8, torch.quint8 or torch.quint4x2, got {dtype}")
    return dict.fromkeys(_TYPES[dtype] if qconfig_spec is None else qconfig_spec, dtype)


def _weights_of(key: Any, qconfig: Any) -> torch.dtype | None:
    """The type of weights that a QConfig of torch asks for; None where there is none."""
    weight = getattr(qconfig, "weight", None)
    found = getattr(weight(), "dtype", None) if callable(weight) else None
    if found is not None and found not in _FORMATS:
        raise NotImplementedError(f"qconfig_spec must ask for weights of {list(_FORMATS)}, got {found} for {key!r}")
    return None if qconfig is None else found or torch.qint8


def _wanted(
    model: nn.Module, spec: Mapping[Any, torch.dtype | None]
) -> tuple[dict[str, bool], dict[str, torch.dtype], dict[str, str]]:
    """First names of the modules that spec asks for, and whether it does so by their own name.

    Beside them the type of weights that each is to have, and the types of those without a kernel.

    Raises
    ------
    ValueError, NotImplementedError
        When a name is not in the model, is that of a layer without a kernel, or of one that has no such weights. All
        are named.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if unknown := [key for key in spec if isinstance(key, str) and key not in modules]:
        raise ValueError(f"qconfig_spec must name modules of the model, got {unknown}")
    asked: dict[str, torch.dtype | None] = {}
    types: dict[nn.Module, torch.dtype] = {}
    wanted: dict[nn.Module, bool] = {}
    lacking: dict[nn.Module, str] = {}
    for name, module in modules.items():  # parents come before what is inside them
        outer = asked[name.rpartition(".")[0]] if name else None
        kinds = (*type(module).__mro__, *((nn.Linear,) if is_conv1d(module) else ()))
        by_type = next((cls for cls in kinds if cls in spec), None)
        own = name in spec or "qconfig" in module.__dict__
        asked[name] = spec[name] if name in spec else outer if by_type is None else spec[by_type]
        if "qconfig" in module.__dict__:
            asked[name] = _weights_of(name, module.__dict__["qconfig"])
        direct = own or by_type is not None
        dtype = asked[name]
        if dtype is None or (isinstance(module, ON_REQUEST) and not direct):
            continue
        if is_dynamic(module) or isinstance(module, ON_REQUEST):
            wanted[module] = wanted.get(module, False) or name in spec
            types[module] = dtype
        elif has_weights(module) and not list(module.children()):
            lacking.setdefault(module, "")
            if name in spec:
                lacking[module] = "by name"
    names = {module: name for name, module in model.named_modules()}
    if named := {names[module]: type(module).__name__ for module, how in lacking.items() if how}:
        raise NotImplementedError(f"qconfig_spec must name layers that there are kernels for, got {listed(named)}")
    wrong = [m for m, dtype in types.items() if dtype != torch.qint8 and not isinstance(m, EMBEDDINGS)]
    if wrong:
        found = listed({names[m]: str(types[m]) for m in wrong})
        raise NotImplementedError(f"dtype must be torch.qint8 for other layers than embeddings, got {found}")
    by_order = {name: wanted[module] for module, name in names.items() if module in wanted}
    return (
        by_order,
        {names[module]: dtype for module, dtype in types.items()},
        {names[module]: type(module).__name__ for module in lacking},
    )
