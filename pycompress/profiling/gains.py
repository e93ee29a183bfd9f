"""What packing would save at each layer, tried on copies of its inputs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders import leave_fused_path_
from ..formats import Format, Int8, Sparse
from ..layers import PackedLayer, PackedLinear
from ..linears import Shared, can_be_packed, candidates, find_all, grid_records, is_conv1d, joined
from ..progress import track
from ..recording import Seen, record
from ..substitutes import obstacle, substitutes_for
from ..timing import Clock, compare
from ..validation.cost import packed_parts, stored
from .results import Gain


def layer_gains(
    model: nn.Module,
    example_inputs: Any,
    sparsity: float | None,
    clock: Clock = time.perf_counter,
    progress: bool = True,
) -> dict[str, tuple[tuple[Gain, ...], str]]:
    """Time every layer that can be packed against packed ones, each alone, on the inputs that it gets in one run.

    Parameters
    ----------
    model : Module
        A copy in eval mode, without masks. Its encoder layers take their ordinary path from then on.
    example_inputs : tensor, array, or tuple or dict of them
    sparsity : float, optional
        Of a sparse candidate for each linear layer: of its weights these are set to zero, smallest first.
    clock : callable
    progress : bool

    Returns
    -------
    dict of name to (gains, note)
        The note says why there is none.

    Examples
    --------
    >>> found = layer_gains(nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), torch.ones(1, 64), None)
    >>> list(found), found["0"][0][0].format
    (['0'], 'Int8()')
    """
    if not any(can_be_packed(module) for module in model.modules()):
        return {}
    leave_fused_path_(model)  # on which the parts of torch's encoder layers are not called
    inside = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}  # packed with it
    layers = {name: layer for name, layer in find_all(model).items() if id(layer) not in inside}
    obstacles = {layer: obstacle(layer) for layer in layers.values()}
    seen, _ = record(model, example_inputs, [layer for layer, fault in obstacles.items() if not fault])
    records, shared = grid_records(layers.values()), Shared()
    found: dict[str, tuple[tuple[Gain, ...], str]] = {}
    for name, layer in track(layers.items(), "trying formats", progress):
        entry = seen.get(layer, Seen())
        note = obstacles[layer] or entry.obstacle or ("" if entry.calls else "never called by example_inputs")
        tried: list[tuple[PackedLayer, float | None]] = []
        if not note:
            modules, note = substitutes_for(layer, entry, None, Int8(), records, shared)
            tried = [(module, None) for module in modules]
            if sparsity is not None and (isinstance(layer, nn.Linear) or is_conv1d(layer)):
                tried.append((_sparse(layer, sparsity), sparsity))
        if tried and not _has_rows(entry):
            tried, note = [], joined("example_inputs give it no rows", note)
        found[name] = _compared(layer, tried, entry, clock), note if not tried else ""
    return found


def _compared(
    layer: nn.Module, tried: list[tuple[PackedLayer, float | None]], entry: Seen, clock: Clock
) -> tuple[Gain, ...]:
    if not tried:
        return ()
    with torch.no_grad():
        speedups = compare(
            _runs(layer, entry.inputs), [_runs(module, entry.inputs) for module, _ in tried], clock=clock
        )
    now = sum(stored(parameter).bytes for parameter in layer.parameters())
    times = entry.calls / len(entry.inputs) * 1e6  # the first calls stand for all
    return tuple(
        Gain(
            _written(module.format),
            sparsity,
            speedup.baseline_seconds * times,
            speedup.seconds * times,
            speedup.median,
            speedup.low,
            speedup.high,
            now,
            sum(stored(part).bytes for part in packed_parts(module)),
        )
        for (module, sparsity), speedup in zip(tried, speedups, strict=True)
    )


def _written(format: Format) -> str:
    return "Sparse()" if isinstance(format, Sparse) else repr(format)


def _sparse(layer: nn.Module, sparsity: float) -> PackedLayer:
    """Return a packed sparse layer with the largest weights of a dense one."""
    pruned = copy.deepcopy(layer)
    weight = cast(Tensor, pruned.weight).detach()
    kept = weight.numel() - round(sparsity * weight.numel())
    values = torch.zeros_like(weight).flatten()
    largest = weight.flatten().abs().float().topk(kept).indices
    values[largest] = weight.flatten()[largest]
    weight.copy_(values.view_as(weight))
    [packed], _ = candidates(pruned, Sparse(), {}, {})
    return PackedLinear(packed).eval()


def _has_rows(entry: Seen) -> bool:
    return any(
        x.numel()
        for inputs in entry.inputs
        for x in (inputs if type(inputs) is tuple else (inputs,))[:1]
        for x in (x.data if not isinstance(x, Tensor) else x,)
    )


def _runs(module: nn.Module, inputs: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for x in inputs:
            module(*x) if type(x) is tuple else module(x)

    return run
