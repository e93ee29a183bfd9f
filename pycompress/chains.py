"""Packed layers that follow each other in a Sequential and run in one call of the kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .kernels.arrays import is_plain_tensor
from .kernels.ops import chain_call
from .layers import LayerDecision, PackedLinear, set_decision
from .timing import Clock, Speedup, compare

Keys = tuple[str, ...]
"""Keys of the packed layers of one chain in their Sequential."""

_PLAN = "_chain_plan"


class ChainedSequential(nn.Sequential):
    """A Sequential in which some packed layers run in one call: the same numbers, names and modules, only faster.

    A call looks at its modules first. Where one was replaced, given other weights or a hook, or is traced, and for
    other inputs than contiguous float32 tensors, the modules are called one by one.

    Attributes
    ----------
    chains : tuple of tuples of str
        Keys of the :class:`PackedLinear` layers of each chain; between them is nothing but identities.

    Examples
    --------
    >>> from pycompress import kernels
    >>> from pycompress.formats import Int8
    >>> layers = [PackedLinear(kernels.pack(torch.eye(2), Int8())) for _ in range(2)]
    >>> model = chained(nn.Sequential(*layers).eval(), (("0", "1"),))
    >>> model(torch.tensor([[127.0, 1.0]]))
    tensor([[127.,   1.]])
    """

    chains: tuple[Keys, ...]

    def forward(self, input: Any) -> Any:
        """Run the modules."""
        if torch.compiler.is_compiling() or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return super().forward(input)  # type: ignore[no-untyped-call]
        state = [_state(module) for module in self._modules.values()]
        plan = self.__dict__.get(_PLAN)
        if plan is None or plan[0] != state:
            plan = state, list(_steps(self))
            self.__dict__[_PLAN] = plan
        for modules, call in plan[1]:
            if call is not None and is_plain_tensor(input):
                y = call(input)
                if y is not None:
                    input = y
                    continue
            for module in modules:
                input = module(input)
        return input

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _PLAN}


def chained(sequential: nn.Sequential, chains: tuple[Keys, ...]) -> nn.Sequential:
    """Make a Sequential run chains in one call each, in place; return it.

    Raises
    ------
    TypeError
        When its type is neither nn.Sequential nor ChainedSequential.
    ValueError
        When a key is unknown, or keys are not in their order.

    Examples
    --------
    >>> chained(nn.Sequential(nn.ReLU()), (("0", "1"),))
    Traceback (most recent call last):
    ValueError: chains must hold keys of the Sequential in their order, at least 2 each, got (('0', '1'),)
    """
    if type(sequential) not in (nn.Sequential, ChainedSequential):
        raise TypeError(f"sequential must be an nn.Sequential, got {type(sequential).__name__}")
    order = {key: place for place, key in enumerate(sequential._modules)}
    places = [order.get(key, -1) for keys in chains for key in keys]
    if sorted(set(places)) != places or -1 in places or any(len(keys) < 2 for keys in chains):
        raise ValueError(f"chains must hold keys of the Sequential in their order, at least 2 each, got {chains!r:.99}")
    if chains:
        sequential.__class__ = ChainedSequential
        cast(ChainedSequential, sequential).chains = chains
        sequential.__dict__.pop(_PLAN, None)
    return sequential


def chain_(
    model: nn.Module,
    inputs: Mapping[nn.Module, list[Tensor]],
    force: bool = False,
    clock: Clock = time.perf_counter,
    alternatives: Mapping[nn.Module, tuple[PackedLinear, LayerDecision]] = MappingProxyType({}),
) -> None:
    """Make the Sequentials of a packed model run their chains in one call each, where that is measured to be faster.

    Parameters
    ----------
    model : nn.Module
        In eval mode; changed in place.
    inputs : mapping
        Inputs of packed layers; a chain whose first layer has none is not measured and stays as it is.
    force : bool
        Do not measure.
    clock : callable
    alternatives : mapping
        Layers in another format, and the decisions about them as they stand. A chain with them is tried too: each may
        be slower than the layer in whose place it comes, and yet they are faster in one call.

    Examples
    --------
    >>> from pycompress import kernels
    >>> from pycompress.formats import Sparse
    >>> model = nn.Sequential(PackedLinear(kernels.pack(torch.eye(2), Sparse())), nn.ReLU())
    >>> chain_(model, {}, force=True)  # there is none
    >>> type(model).__name__
    'Sequential'
    """
    for sequential in [module for module in model.modules() if type(module) is nn.Sequential]:
        found = [keys for keys in _found(sequential) if force or _is_faster(sequential, keys, inputs, clock)]
        chained(sequential, tuple(found))
        if alternatives and not force:
            _join_(sequential, inputs, clock, alternatives)


def _join_(
    sequential: nn.Sequential,
    inputs: Mapping[nn.Module, list[Tensor]],
    clock: Clock,
    alternatives: Mapping[nn.Module, tuple[PackedLinear, LayerDecision]],
) -> None:
    """Put alternatives into a Sequential where a chain of them is faster than what stands there."""
    modules = sequential._modules
    twin = _sequential({key: alternatives[m][0] if m in alternatives else m for key, m in modules.items()})
    for keys in _found(twin):
        others = {key: alternatives[modules[key]] for key in keys if modules[key] in alternatives}
        samples = inputs.get(modules[keys[0]], [])
        if not others or not any(x.numel() for x in samples):
            continue
        inside = dict(_between(sequential, keys))
        own = tuple(c for c in getattr(sequential, "chains", ()) if set(c) <= set(inside))
        present = chained(_sequential(inside), own)
        joined = chained(_sequential(dict(_between(twin, keys))), (keys,))
        speedup = _speedup(present, joined, samples, clock)
        if speedup.low > 1:
            left = tuple(c for c in getattr(sequential, "chains", ()) if c not in own)
            note = f"with the layers beside it in one call, which is {speedup.median:.2f}x as fast as apart"
            for key, (layer, decision) in others.items():
                modules[key] = layer
                unknown: Any = dict.fromkeys(("packed_us", "speedup", "low", "high"))
                set_decision(layer, replace(decision, format=layer.format, kernel=layer.kernel, reason=note, **unknown))
            order = list(modules)
            chained(sequential, tuple(sorted([*left, keys], key=lambda c: order.index(c[0]))))


def _is_faster(sequential: nn.Sequential, keys: Keys, inputs: Mapping[nn.Module, list[Tensor]], clock: Clock) -> bool:
    samples = inputs.get(sequential._modules[keys[0]], [])
    if not any(x.numel() for x in samples):
        return False
    inside = dict(_between(sequential, keys))
    plain, joined = _sequential(inside), chained(_sequential(inside), (keys,))
    return _speedup(plain, joined, samples, clock).low > 1


def _speedup(plain: nn.Module, joined: nn.Module, samples: list[Tensor], clock: Clock) -> Speedup:
    with torch.no_grad():
        [speedup] = compare(_runs(plain, samples), [_runs(joined, samples)], clock=clock)
    return speedup


def _sequential(modules: dict[str, nn.Module]) -> nn.Sequential:
    result = nn.Sequential().eval()
    result._modules.update(modules)
    return result


def _runs(module: nn.Module, inputs: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for x in inputs:
            module(x)

    return run


def _found(sequential: nn.Sequential) -> Iterator[Keys]:
    """Longest runs of packed layers with nothing but identities between them, that one call can run."""
    run: list[str] = []
    for key, module in [*sequential._modules.items(), ("", None)]:
        layers = [cast(PackedLinear, sequential._modules[each]) for each in run]
        if isinstance(module, PackedLinear) and _is_clean(module) and _call([*layers, module]) is not None:
            run.append(key)
        elif not run or module is None or not _is_identity(module):
            if len(run) > 1:
                yield tuple(run)
            run = []
            if isinstance(module, PackedLinear) and _is_clean(module) and _call([module]) is not None:
                run = [key]


def _call(layers: list[PackedLinear]) -> Callable[[Any], Any] | None:
    return chain_call([layer.packed for layer in layers], [layer.activation for layer in layers])


def _steps(sequential: ChainedSequential) -> Iterator[tuple[list[nn.Module], Callable[[Any], Any] | None]]:
    """What runs one after the other: modules, and the one call that stands for them all or None."""
    modules = sequential._modules
    calls: dict[str, tuple[dict[str, nn.Module], Callable[[Any], Any]]] = {}
    for keys in sequential.chains:
        inside = dict(_between(sequential, keys)) if all(key in modules for key in keys) else {}
        layers = [module for key, module in inside.items() if key in keys]
        others = [module for key, module in inside.items() if key not in keys]
        if layers and all(map(_is_clean, layers)) and all(map(_is_identity, others)):
            call = _call(cast("list[PackedLinear]", layers))
            if call is not None:
                calls[keys[0]] = inside, call
    covered: set[str] = set()
    for key, module in modules.items():
        if key in calls:
            inside, call = calls[key]
            covered.update(inside)
            yield list(inside.values()), call
        elif key not in covered:
            yield [module], None


def _between(sequential: nn.Sequential, keys: Keys) -> Iterator[tuple[str, nn.Module]]:
    names = list(sequential._modules)
    for name in names[names.index(keys[0]) : names.index(keys[-1]) + 1]:
        yield name, sequential._modules[name]


def _has_no_hooks(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _is_clean(module: nn.Module) -> bool:
    return type(module) is PackedLinear and _has_no_hooks(module)


def _is_identity(module: nn.Module) -> bool:
    idle = type(module) is nn.Dropout and not module.training
    return (idle or type(module) is nn.Identity) and _has_no_hooks(module)


def _state(module: nn.Module | None) -> tuple[object, ...]:
    """All that a plan depends on."""
    if module is None:
        return (None,)
    values = module.__dict__
    return module, values.get("packed"), values.get("activation"), module.training, _has_no_hooks(module)
