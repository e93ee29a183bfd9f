"""Which modules of a model are looked at, and what each holds itself."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..grids import grid_of
from ..layers import PackedLayer
from ..selection import several_weights
from ..validation.cost import Stored, packed_parts, stored


def watchable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name, in order, but for those inside scripted and compiled ones.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1), torch.jit.script(nn.Sequential(nn.ReLU())))
    >>> list(watchable(model))
    ['', '0', '1']
    """
    found: dict[str, nn.Module] = {}
    closed: list[str] = []
    for name, module in model.named_modules():
        if not name.startswith(tuple(closed)):
            found[name] = module
            if is_closed(module):
                closed.append(f"{name}." if name else "")
    return found


def is_closed(module: nn.Module) -> bool:
    """Whether what runs inside a module is no Python of its modules, so that their hooks would not be called.

    Examples
    --------
    >>> is_closed(nn.Linear(2, 1))
    False
    """
    return isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule"


def hooked(
    module: nn.Module, before: Callable[..., None], after: Callable[..., None], with_kwargs: bool = False
) -> list[RemovableHandle]:
    """Register hooks around all that a call of a module runs, its own hooks before the forward included.

    ``after`` is called also where the module fails.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> handles = hooked(layer, lambda *_: print("begins"), lambda *_: print("ends"))
    >>> _ = layer(torch.ones(1))
    begins
    ends
    """
    # A scripted module refuses hooks, but calls those that it has.
    return [
        nn.Module.register_forward_pre_hook(module, before, prepend=True),
        nn.Module.register_forward_hook(module, after, with_kwargs=with_kwargs, always_call=True),
    ]


def holdings(module: nn.Module) -> dict[int, Stored]:
    """Return what a module itself holds by identity: parameters, buffers, packed weights; all inside a closed one.

    Buffers count as bytes alone.

    Examples
    --------
    >>> [found.parameters for found in holdings(nn.BatchNorm1d(2)).values()]
    [2, 2, 0, 0, 0]
    """
    closed = is_closed(module)
    weights = list(module.parameters(recurse=closed))
    # All of them are held at once, so that no object gets the identity of another.
    buffers = list(module.buffers(recurse=closed))
    found = {id(weight): stored(weight) for weight in (*weights, *packed_parts(module))}
    return found | {id(buffer): Stored(0, 0, stored(buffer).bytes) for buffer in buffers}


def stored_as(module: nn.Module) -> str:
    """Return how a module's own weights are stored: their dtype, with the grid that they lie on, or a packed format.

    Examples
    --------
    >>> stored_as(nn.Linear(2, 1).half()), stored_as(nn.ReLU())
    ('float16', '')
    """
    if isinstance(module, PackedLayer):
        return repr(module.format)
    own = module.parameters(recurse=is_closed(module))
    dtypes = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in own)
    records = [grid_of(module, name) for name in several_weights(module) or ["weight"]]
    known = dict.fromkeys(str(record.format) for record in records if record is not None)
    return ", ".join(dtypes) + (f" on {', '.join(known)}" if known else "")


def parent(name: str, known: Collection[str]) -> str:
    """Return the name of the nearest known module around one.

    Examples
    --------
    >>> parent("encoder.layers.0", {"", "encoder", "encoder.layers.0"})
    'encoder'
    """
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return ""
