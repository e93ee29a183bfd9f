"""Where the time, the memory and the operations of a model go, module by module, and what could be saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import kernels, masks
from ..calls import check_model, copy_of, forward
from ..kernels.arrays import flag
from ..layers import PackedLayer
from ..recording import copied, run
from ..schedules import number
from ..scores.running import undisturbed
from ..timing import Clock
from ..validation.cost import Stored
from .counting import counted
from .gains import layer_gains
from .modules import holdings, parent, stored_as, watchable
from .results import Amount, Gain, LayerProfile, Profile
from .times import module_times

__all__ = ["Amount", "Gain", "LayerProfile", "Profile", "profile"]


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    gains: bool = True,
    sparsity: float | None = None,
    seconds: float = 1.0,
    progress: bool = True,
    _clock: Clock = time.perf_counter,
) -> Profile:
    """Measure each module of a model: parameters, bytes, operations, calls, time, and what packing would save.

    A copy of the model runs in eval mode on copies of the inputs, with the threads of :func:`torch.get_num_threads` or
    what :func:`pycompress.kernels.set_num_threads` was told. Times are medians over runs in which hooks note when each
    module begins and ends; runs without hooks take turns with them. Each watched call costs about two microseconds of
    Python, which its caller's own time holds. Watched modules run one by one: torch's encoder layers leave their fused
    path and :func:`pycompress.pack`'s chains their single call then. ``Profile.microseconds`` and
    ``watched_microseconds`` tell what that makes.

    Operations are multiply-adds. :class:`torch.utils.flop_counter.FlopCounterMode` counts the products of matrices,
    convolutions (padding included) and attention that run anywhere in the model, functions that its code calls
    included; formulas of our own count products with vectors, oneDNN's LSTM, and torch's attention on CPUs and fused
    layers, which it takes for nothing; packed layers, which run no operation of torch, by their weights (of sparse ones
    the nonzeros) and inputs. Everything else, such as normalizations, softmax and element-wise functions, counts
    nothing.

    Gains are estimates: every layer that there are kernels for is timed against its packed copy, alone, on the inputs
    that it gets in one run. In the packed model activations and normalizations may be fused, layers that follow each
    other may hand on int8, and caches hold other things: there it can save more, or less. :func:`pycompress.pack`
    decides by measuring all of that.

    Parameters
    ----------
    model : nn.Module
        On the CPU: dense, pruned, quantized or packed. It is not changed.
    example_inputs : tensor, array, or tuple or dict of them
        What the model is called with, with the batch size that matters.
    gains : bool
        Whether to try int8 at each layer.
    sparsity : float, optional
        Try also sparse weights at each linear layer, with this fraction set to zero; 0 to below 1.
    seconds : float
        About how long to time the modules; each gain takes up to a second more, mostly far less.
    progress : bool
        Whether progress is shown on stderr.

    Returns
    -------
    Profile
        ``layers`` with the numbers of each module; ``print`` shows a tree, ``to_dict()`` and ``to_json()`` give JSON.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, parameters are not on the CPU, have no values or hold NaN or
        infinity (all are named), the model cannot be copied, or example_inputs do not fit it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> found = profile(model, torch.zeros(8, 64), seconds=0.01)
    >>> [(layer.name, layer.total.parameters, layer.total.operations) for layer in found.layers]
    [('', 2410, 18944), ('0', 2080, 16384), ('1', 0, 0), ('2', 330, 2560)]
    >>> found.layers[1].gains[0].format
    'Int8()'
    """
    check_model(model)
    elsewhere = [
        f"{name} on {tensor.device}"
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
        if tensor.device.type != "cpu"
    ]
    if elsewhere:
        raise ValueError(f"model must be on the CPU, got {'; '.join(elsewhere)}")
    flag(gains, "gains")
    flag(progress, "progress")
    if sparsity is not None:
        sparsity = number(sparsity, "sparsity", 0, 1, high_open=True)
        if not gains:
            raise ValueError(f"sparsity must be None with gains=False, got {sparsity}")
    seconds = number(seconds, "seconds", 0, math.inf, low_open=True, high_open=True)
    twin = _copy(model)
    threads, own_threads = kernels.get_num_threads(for_torch=True), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with undisturbed(twin), torch.no_grad():
            run(twin, example_inputs)
            return _measured(twin, example_inputs, gains, sparsity, seconds, threads, _clock, progress)
    finally:
        torch.set_num_threads(own_threads)


def _measured(
    twin: nn.Module,
    example_inputs: Any,
    gains: bool,
    sparsity: float | None,
    seconds: float,
    threads: int,
    clock: Clock,
    progress: bool,
) -> Profile:
    modules = watchable(twin)
    stock = {name: holdings(module) for name, module in modules.items()}
    formats = {name: stored_as(module) for name, module in modules.items()}

    def call() -> Callable[[], Any]:
        inputs = copied(example_inputs)
        return lambda: forward(twin, inputs, "example_inputs")

    notes: list[str] = []
    watched = list(modules.values())
    try:
        counts = counted(watched, call())
    except ValueError as error:  # a tensor that torch's counter does not know, a nested one say
        counts = counted(watched, call(), operations=False)
        notes.append(f"Operations are not known: torch's counter says {error.__cause__!r}.")
    times = module_times(watched, call, seconds, clock, progress)
    # Last: what it changes of the copy, masks that end, is no longer looked at.
    tried: dict[str, tuple[tuple[Gain, ...], str]] = {}
    if gains:
        tried = layer_gains(masks.finalize_(twin), example_inputs, sparsity, clock, progress)
    inside: dict[str, dict[int, Stored]] = {name: dict(own) for name, own in stock.items()}
    for name, own in stock.items():
        outer = name
        while outer:
            outer = parent(outer, modules)
            inside[outer] |= own
    layers = []
    for name, module in modules.items():
        found, note = tried.get(name, ((), ""))
        layers.append(
            LayerProfile(
                name,
                type(module).__name__,
                formats[name],
                module.kernel if isinstance(module, PackedLayer) else None,
                counts.calls[module],
                _sparsity(inside[name]),
                counts.outputs[module],
                _amount(stock[name], counts.own[module], times.own[module], not notes),
                _amount(inside[name], counts.total[module], times.total[module], not notes),
                found,
                note,
            )
        )
    return Profile(tuple(layers), times.plain, times.watched, times.runs, threads, tuple(notes))


def _amount(held: dict[int, Stored], operations: int, microseconds: float, known: bool) -> Amount:
    return Amount(
        sum(each.parameters for each in held.values()),
        sum(each.nonzero for each in held.values()),
        sum(each.bytes for each in held.values()),
        operations if known else None,
        microseconds,
    )


def _sparsity(held: dict[int, Stored]) -> float:
    weights = sum(each.weights for each in held.values())
    return sum(each.zeros for each in held.values()) / weights if weights else 0.0


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy_of(model)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"model must be one that can be copied, got {type(error).__name__}: {error}") from error
