"""The linear layers of a model: which can be replaced, by which packed weights, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import breakeven, grids, kernels
from .formats import Format, Int8, Sparse, has_int8_weights
from .kernels import PackedWeight
from .selection import count_bad, listed

PRUNED_DENSITY = 0.7
"""A layer counts as pruned when less than this fraction of its weights is not zero."""

KINDS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell),
    *(nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention),
)
"""The layers that can be packed, beside what :func:`is_conv1d` knows."""

DYNAMIC = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
"""The layers that are quantized as they run, as torch's ``quantize_dynamic`` does; Conv1D counts as nn.Linear."""

ON_REQUEST = (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
"""Those that ``quantize_dynamic`` replaces only where their type or name is asked for, as torch's does."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module looks like the Conv1D of transformers (GPT-2): ``y = x @ weight + bias``, weight [in, out].

    Whether it computes that, :func:`obstacle` finds out.

    Examples
    --------
    >>> is_conv1d(nn.Conv1d(1, 1, 1))
    False
    """
    if type(module).__name__ != "Conv1D":
        return False
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or bias is None or nn.parameter.is_lazy(weight):
        return False
    outputs = module.__dict__.get("nf")
    return weight.ndim == 2 and isinstance(outputs, int) and weight.shape[1:] == bias.shape == (outputs,)


def can_be_packed(module: nn.Module) -> bool:
    """Whether there are kernels for a layer like this one; it may have an :func:`obstacle` all the same.

    Examples
    --------
    >>> can_be_packed(nn.Linear(2, 1)), can_be_packed(nn.Tanh())
    (True, False)
    """
    return isinstance(module, KINDS) or is_conv1d(module)


def is_dynamic(module: nn.Module) -> bool:
    """Whether ``quantize_dynamic`` replaces a layer like this one also where nobody names its kind.

    Examples
    --------
    >>> is_dynamic(nn.Linear(2, 1)), is_dynamic(nn.Embedding(2, 1))
    (True, False)
    """
    return isinstance(module, DYNAMIC) or is_conv1d(module)


def takes_activation(module: nn.Module) -> bool:
    """Whether the packed layer can compute the activation behind it.

    Examples
    --------
    >>> takes_activation(nn.Linear(2, 1)), takes_activation(nn.Embedding(2, 1))
    (True, False)
    """
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or is_conv1d(module)


def find_all(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer of a model that there are kernels for by its first name, after the checks of :func:`find`.

    Examples
    --------
    >>> list(find_all(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    described = (
        "an nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU, one of their cells, an embedding or attention, the layers"
    )
    return _find(model, lambda name, layer: can_be_packed(layer), described)


def find_dynamic(model: nn.Module, asked: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return the layers that ``quantize_dynamic`` replaces, after the checks of :func:`find`.

    Parameters
    ----------
    model : nn.Module
    asked : collection of str
        First names of layers that are asked for: embeddings and attention are found among these alone.

    Examples
    --------
    >>> list(find_dynamic(nn.Sequential(nn.Embedding(3, 2), nn.Linear(3, 1), nn.GRU(2, 3))))
    ['1', '2']
    """

    def known(name: str, layer: nn.Module) -> bool:
        return is_dynamic(layer) or (isinstance(layer, ON_REQUEST) and name in asked)

    return _find(model, known, "an nn.Linear, nn.LSTM, nn.GRU or one of their cells, the layers")


def find(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every nn.Linear of a model by its first name, after checking that all can be packed as far as numbers go.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of name to nn.Linear, subclasses included

    Raises
    ------
    TypeError
        When model is not a module.
    ValueError
        When there is no nn.Linear, or weights or biases are not on the CPU, not initialised, or hold NaN or infinity.
        All offending layers are named.

    Examples
    --------
    >>> list(find(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    found = _find(model, lambda name, layer: isinstance(layer, nn.Linear), "an nn.Linear, the layer")
    return cast(dict[str, nn.Linear], found)


def _find(model: nn.Module, known: Callable[[str, nn.Module], bool], described: str) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if known(name, module)}
    if not layers:
        kinds = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise ValueError(f"model must have {described} that there are kernels for, got {found}")
    faults = {name: fault for name, layer in layers.items() if (fault := _fault(layer))}
    if faults:
        raise ValueError("model must have finite weights on the CPU, got " + listed(faults))
    return layers


def _fault(layer: nn.Module) -> str:
    for name, parameter in layer._parameters.items():
        if parameter is None:
            continue
        if nn.parameter.is_lazy(parameter):
            return f"{name} not initialised (run the model once)"
        if parameter.device.type != "cpu":
            return f"{name} on {parameter.device}"
        if parameter.is_floating_point() and (bad := count_bad(parameter)):
            return f"{name} with {bad} NaN or infinite entries"
    return ""


def obstacle(layer: nn.Module) -> str:
    """Return why no packed layer can stand in for this one, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.Linear(2, 1)), obstacle(nn.Linear(2, 1).double())
    ('', 'its weight is float64')
    """
    own = isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward  # convolutions are looked at
    if own or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    weight = layer._parameters.get("weight")
    if weight is None or ("bias" not in layer._parameters):
        return "its weight is computed by a parametrization, which must be removed first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which must be removed first"
    if weight.dtype not in _DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    if is_conv1d(layer) and not _multiplies(layer):
        return f"{type(layer).__name__} does not compute x @ weight + bias"
    return ""


def _multiplies(layer: nn.Module) -> bool:
    """Whether a Conv1D computes what the one of transformers does, tried on two rows."""
    weight, bias = (cast(Tensor, layer._parameters[name]).detach() for name in ("weight", "bias"))
    x = torch.linspace(-1, 1, 2 * len(weight)).reshape(2, -1).to(weight.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            y = layer.forward(x[None])
    except Exception:  # whatever a forward of somebody else's may do
        return False
    expected = torch.addmm(bias, x, weight)[None]
    if not isinstance(y, Tensor) or y.shape != expected.shape or y.dtype != expected.dtype:
        return False
    error = (y - expected).abs().amax() if y.numel() else y.sum()
    largest = expected.abs().amax() if y.numel() else y.sum()
    return bool(error <= 16 * torch.finfo(y.dtype).eps * largest)


def grid_records(layers: Iterable[nn.Module]) -> dict[int, grids.GridRecord]:
    """Return the recorded grid of each weight by the weight's id: one record serves all layers that share a weight.

    Examples
    --------
    >>> grid_records([nn.Linear(2, 1)])
    {}
    """
    return {
        id(layer._parameters.get("weight")): record for layer in layers if (record := grids.grid_of(layer)) is not None
    }


Shared = dict[tuple[Any, ...], Any]
"""What was packed already, by weight, bias and format: layers that share a weight get one."""


def candidates(
    layer: nn.Module,
    format: Format | None,
    records: Mapping[int, grids.GridRecord],
    shared: Shared,
    static: bool = True,
    rows: int = 1,
) -> tuple[list[PackedWeight], str]:
    """Pack a layer's weight in the formats worth trying.

    Parameters
    ----------
    layer : nn.Linear, or the Conv1D of :func:`is_conv1d`, whose weight is transposed
        Without an :func:`obstacle`.
    format : Int8, Int4, Codebook, Binary, Sparse or None
        None: the formats that keep the layer's numbers, Int8 on its recorded grid and Sparse where it is pruned, in
        the blocks that its zeros come in.
    records : mapping
        From :func:`grid_records`.
    shared : dict
        What was packed already; is added to.
    static : bool
        Whether a recorded input scale is used.
    rows : int
        How many rows the layer gets: they decide whether a sparse int8 weight is worth trying.

    Returns
    -------
    (list of PackedWeight, note)
        The note says why there is none, or which record was ignored; or is "".

    Examples
    --------
    >>> [packed], note = candidates(nn.Linear(2, 1), Sparse(), {}, {})
    >>> packed.shape, note
    ((1, 2), '')
    """
    turned = is_conv1d(layer)
    parameter, added = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    record = None if turned else records.get(id(parameter))
    weight = parameter.detach().t() if turned else parameter.detach()
    bias = None if added is None else added.detach()
    on_grid: Tensor | None = None
    note = ""
    if record is not None and isinstance(record.format, Int8):
        on_grid = grids.integers(weight, record)
        if on_grid is None:
            note = "the weight was changed since it was quantized, so that its Int8 grid no longer holds"
    elif record is not None and format is None:
        note = f"{record.format} has no kernel yet"
    formats: list[Format] = [format] if format is not None else []
    if format is None and on_grid is not None:
        formats.append(Int8())
        few = torch.count_nonzero(on_grid) < PRUNED_DENSITY * on_grid.numel()
        if few and (skipping := breakeven.worth_trying(on_grid.numpy(), rows)) is not None:
            formats.append(skipping)
    if format is None and torch.count_nonzero(weight) < PRUNED_DENSITY * weight.numel():
        formats.append(Sparse(kernels.find_block(weight)))
    if not formats:
        return [], joined("neither quantized to Int8 nor pruned", note)
    found = []
    for each in formats:
        scale = input_scale = None
        if record is not None and on_grid is not None and isinstance(each, (Int8, Sparse)):
            scale = record.scale
            input_scale = record.input_scale if static and has_int8_weights(each) else None
        key = (id(parameter), id(added), turned, each, scale is None, input_scale)
        if key not in shared:
            values = weight if scale is None or on_grid is None else on_grid
            shared[key] = kernels.pack(values, each, bias, scale, input_scale)
        found.append(shared[key])
    return found, note


def joined(*parts: str) -> str:
    """Return the parts of a reason as one, without the empty ones.

    Examples
    --------
    >>> joined("faster", "")
    'faster'
    """
    return "; ".join(part for part in parts if part)


def replaced(model: nn.Module, substitutes: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put substitutes where modules are, in place and wherever they are used; return the model (or its substitute).

    Examples
    --------
    >>> model = nn.Sequential(nn.ReLU(), nn.Tanh())
    >>> replaced(model, {model[1]: nn.Identity()})
    Sequential(
      (0): ReLU()
      (1): Identity()
    )
    """
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in substitutes:
                parent._modules[key] = substitutes[child]
    return substitutes.get(model, model)
