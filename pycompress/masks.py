"""Pruning masks on the parameters of a model that survive any training loop.

A mask is a buffer of the module (so that ``.to()``, ``deepcopy`` and pickling carry it) which is no part of
``state_dict``. Masked weights are zeroed by three guards, and each alone would miss a case:

- before each forward of the module: hand-written updates such as ``p.data -= lr * p.grad``, copies, loaded weights;
- after each ``step`` of any torch optimizer: momentum and weight decay leave exact zeros at once, also between
  forwards (an optimizer's history from before the pruning included);
- when a gradient is accumulated: gradient clipping and line searches see the pruned model's gradient.

Weights are zeroed through ``.data``, which autograd does not count as a change: a module may run twice before one
backward.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

_PREFIX = "_kept_"
# The buffer `_kept_weight`, int8, is -1 (all bits set) where `weight` is kept and 0 where it is pruned. The bits of the
# weights are and-ed with it: an exact +0.0 whatever the weight was, also NaN, and 8 times as fast as `masked_fill_`.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 cannot say


def attach_(module: nn.Module, name: str, mask: Tensor, reader: nn.Module | None = None) -> None:
    """Prune a parameter: its weights outside the mask are zero from now on, whatever trains the module.

    A mask that the parameter has already is replaced. Modules that share the parameter share the mask, once it was
    attached to each of them.

    Parameters
    ----------
    module : Module
        The module that holds the parameter itself.
    name : str
        Name of the parameter in the module.
    mask : [shape of the parameter] bool
        True = kept.
    reader : Module, optional
        The module around it that reads the parameter without calling the module, as attention does with its output
        projection: the guard before each forward stands there too.

    Raises
    ------
    TypeError, ValueError
        When the module has no such parameter, or the mask has another dtype, shape or device.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> attach_(layer, "weight", torch.tensor([[True, False]]))
    >>> (layer.weight == 0).tolist(), list(layer.state_dict())
    ([[False, True]], ['weight', 'bias'])
    """
    parameter = _parameter(module, name)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.shape != parameter.shape or mask.device != parameter.device:
        raise ValueError(
            f"mask must be bool, of shape {tuple(parameter.shape)} and on {parameter.device}, "
            f"got {tuple(mask.shape)} {mask.dtype} on {mask.device}"
        )
    kept = mask.detach().to(torch.int8).neg_()
    if _PREFIX + name not in module._buffers:
        module.register_buffer(_PREFIX + name, None, persistent=False)
        guard = _Guard(name)
        module.register_forward_pre_hook(guard, prepend=True)
        module.register_load_state_dict_post_hook(guard)  # type: ignore[no-untyped-call]
    if reader is not None:
        inner = next(key for key, child in reader._modules.items() if child is module)
        if not any(isinstance(hook, _Guard) and hook.inner == inner for hook in reader._forward_pre_hooks.values()):
            reader.register_forward_pre_hook(_Guard(name, inner), prepend=True)
    module._buffers[_PREFIX + name] = kept
    for owner, owned in _watch(module, name, parameter).owners.items():
        if owner._parameters.get(owned) is parameter:
            owner._buffers[_PREFIX + owned] = kept
    _zero(parameter, kept)


def mask_of(module: nn.Module, name: str = "weight") -> Tensor | None:
    """Return the mask of a parameter, True = kept, or None when it has none.

    Parameters
    ----------
    module : Module
    name : str

    Returns
    -------
    [shape of the parameter] bool, a copy, or None

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> attach_(layer, "weight", torch.tensor([[True, False]]))
    >>> mask_of(layer), mask_of(layer, "bias")
    (tensor([[ True, False]]), None)
    """
    kept = module._buffers.get(_PREFIX + name)
    return None if kept is None else kept.bool()


def has_no_other_hooks(module: nn.Module) -> bool:
    """Whether a module has no forward hooks beside those of its masks, and no forward of its own in the instance.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> attach_(layer, "weight", torch.tensor([[True, False]]))
    >>> before = has_no_other_hooks(layer)
    >>> handle = layer.register_forward_hook(lambda *_: None)
    >>> before, has_no_other_hooks(layer)
    (True, False)
    """
    own = all(isinstance(hook, _Guard) for hook in module._forward_pre_hooks.values())
    return own and not module._forward_hooks and "forward" not in module.__dict__


def masked(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a model by the full names of their parameters, a tied parameter once.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    >>> attach_(model[0], "weight", torch.tensor([[True, False]]))
    >>> masked(model)
    {'0.weight': tensor([[ True, False]])}
    """
    masks: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name in _masked_names(module):
            mask = mask_of(module, name)
            if mask is not None and id(module._parameters.get(name)) not in seen:
                seen.add(id(module._parameters.get(name)))
                masks[f"{prefix}.{name}" if prefix else name] = mask
    return masks


def finalize_(model: nn.Module) -> nn.Module:
    """End pruning: apply every mask of a model one last time, then drop masks and hooks; the zeros stay.

    From then on the model is an ordinary one, and training fills the zeros again.

    Parameters
    ----------
    model : Module
        With or without masks.

    Returns
    -------
    Module
        The model itself.

    Raises
    ------
    TypeError
        When model is not a module.

    Examples
    --------
    >>> import pycompress as pc
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = pc.prune_(model, sparsity=0.5)
    >>> int((pc.finalize_(model)[0].weight == 0).sum())
    4
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        for name in _masked_names(module):
            _detach(module, name)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _Guard) and hook.inner:
                del module._forward_pre_hooks[key]
    return model


def _detach(module: nn.Module, name: str) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        _zero(parameter, module._buffers[_PREFIX + name])
        watch = _known(parameter)
        if watch is not None:
            watch.owners.pop(module, None)
            if not watch.owners:
                del _watches[parameter]
                if watch.handle is not None:
                    watch.handle.remove()
    delattr(module, _PREFIX + name)
    hook_tables: tuple[dict[int, Any], ...] = (module._forward_pre_hooks, module._load_state_dict_post_hooks)
    for hooks in hook_tables:
        own = [key for key, hook in hooks.items() if isinstance(hook, _Guard) and (hook.name, hook.inner) == (name, "")]
        for key in own:
            del hooks[key]


def _masked_names(module: nn.Module) -> list[str]:
    return [name.removeprefix(_PREFIX) for name, _ in module._buffers.items() if name.startswith(_PREFIX)]


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ValueError(f"name must be one of the module's parameters {list(module._parameters)}, got {name!r}")
    return parameter


class _Guard:
    """The hook of a masked parameter, before a forward and after a load; knows names only, so copies are right."""

    def __init__(self, name: str, inner: str = "") -> None:
        self.name = name
        self.inner = inner  # of the module inside that holds the parameter; "": the hooked module itself

    def __call__(self, module: nn.Module, _arguments: Any) -> None:
        if _is_exporting():  # the exported program holds the weights as they are: zeroed already
            return
        holder = cast(nn.Module, module._modules[self.inner]) if self.inner else module
        parameter = holder._parameters[self.name]
        if isinstance(parameter, nn.Parameter):
            if not torch.compiler.is_compiling():
                _watch(holder, self.name, parameter)
            _zero(parameter, holder._buffers.get(_PREFIX + self.name))
        elif parameter is not None:
            _mask_lent(holder, self.name, parameter, module)


def _mask_lent(module: nn.Module, name: str, lent: Tensor, reader: nn.Module) -> None:
    """Mask a tensor that `torch.func.functional_call` lends, for one forward of who reads it, differentiably."""
    kept = module._buffers.get(_PREFIX + name)
    if kept is None:
        return

    def give_back(*_: Any) -> None:
        module._parameters[name] = cast(nn.Parameter, lent)
        handle.remove()

    module._parameters[name] = cast(nn.Parameter, lent.masked_fill(kept == 0, 0))
    handle = reader.register_forward_hook(give_back, always_call=True)


def _zero(tensor: Tensor, kept: Tensor | None) -> None:
    if kept is not None:
        tensor.data.view(_BITS[tensor.element_size()]).bitwise_and_(kept)


@dataclass
class _Watch:
    """What the optimizer and gradient guards know of one parameter."""

    owners: weakref.WeakKeyDictionary[nn.Module, str] = field(default_factory=weakref.WeakKeyDictionary)
    handle: RemovableHandle | None = None


_watches: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of _Watch; parameters of masked modules


def _known(parameter: Tensor) -> _Watch | None:
    watch: _Watch | None = _watches.get(parameter)  # type: ignore[no-untyped-call]
    return watch


def _watch(module: nn.Module, name: str, parameter: nn.Parameter) -> _Watch:
    """Make the optimizer and gradient guards know a parameter: when masked, and at the first forward of a copy."""
    watch = _known(parameter)
    if watch is None:
        _guard_optimizers()
        watch = _watches[parameter] = _Watch()
    if module not in watch.owners:
        watch.owners[module] = name
    if watch.handle is None and parameter.requires_grad:
        watch.handle = parameter.register_post_accumulate_grad_hook(_zero_gradient)  # type: ignore[no-untyped-call]
    return watch


def _kept(parameter: Tensor) -> Tensor | None:
    watch = _known(parameter)
    if watch is not None:
        for module, name in watch.owners.items():
            if module._parameters.get(name) is parameter:
                return module._buffers.get(_PREFIX + name)
    return None


def _zero_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.layout == torch.strided:
        _zero(parameter.grad, _kept(parameter))


@functools.cache
def _guard_optimizers() -> RemovableHandle:
    """Register the one hook of this process on all optimizers, when the first mask is made."""
    return register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            _zero(parameter, _kept(parameter))
