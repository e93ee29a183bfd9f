"""Who takes the outputs of a model's modules, seen while it runs: what is written in the code does not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class Flow:
    """What was seen of givers and takers.

    Attributes
    ----------
    took : Counter of (giver or None, taker)
        How often a taker took an output of a giver, or something else (None).
    leaking : set of Module
        Givers of which something else read an output, or that the model returned.
    exposed : set of Module
        Givers and takers of which something but their own forward read a parameter.
    """

    took: Counter[tuple[nn.Module | None, nn.Module]] = field(default_factory=Counter)
    leaking: set[nn.Module] = field(default_factory=set)
    exposed: set[nn.Module] = field(default_factory=set)

    def groups(self) -> dict[nn.Module, list[nn.Module]]:
        """Return the givers all of whose outputs go to takers, and these takers, which take nothing else."""
        calls: Counter[nn.Module] = Counter()
        for (_, taker), count in self.took.items():
            calls[taker] += count
        found: dict[nn.Module, list[nn.Module]] = {}
        unfit = self.leaking | self.exposed
        for (giver, taker), count in self.took.items():
            if giver is not None:
                found.setdefault(giver, []).append(taker)
                if count != calls[taker] or taker in self.exposed:
                    unfit.add(giver)
        return {giver: takers for giver, takers in found.items() if giver not in unfit}


def observed(
    givers: Iterable[nn.Module],
    takers: Iterable[nn.Module],
    runs: Iterable[Callable[[], Any]],
    passes: Callable[[Any, nn.Module], bool] | None = None,
    look: Callable[[nn.Module, Tensor], None] | None = None,
) -> Flow:
    """Run a model and see who takes the outputs of some of its modules.

    Parameters
    ----------
    givers, takers : Modules
        Without hooks that change anything; each returns one tensor. A taker takes what is its only argument, an
        nn.MultiheadAttention what is its query, key and value at once.
    runs : iterable of callables
        Each runs the model, and returns what the model does. Outputs are kept until the run ends.
    passes : callable (operation, giver), optional
        Whether the result (the first one) of an operation of torch, such as ``torch.ops.aten.relu``, counts as the
        output of the giver that it was given.
    look : callable (giver, output), optional
        Called with each output.

    Returns
    -------
    Flow

    Examples
    --------
    >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 3), nn.ReLU())
    >>> flow = observed([model[0]], [model[1]], [lambda: model(torch.ones(1, 2))])
    >>> flow.groups() == {model[0]: [model[1]]}
    True
    """
    watch = _Watch(set(givers), set(takers), passes, look)
    handles = []
    for module in dict.fromkeys((*watch.givers, *watch.takers)):
        # First of all: the hook of a mask reads the module's own weight.
        handles.append(module.register_forward_pre_hook(watch.enters, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(watch.leaves))
    try:
        with torch.no_grad():
            for run in runs:
                with watch:
                    watch.note(run())
                watch.made.clear()
    finally:
        for handle in handles:
            handle.remove()
    return watch.flow


class _Watch(TorchDispatchMode):
    """Sees every operation while a model runs, and when givers and takers begin and end."""

    def __init__(
        self,
        givers: set[nn.Module],
        takers: set[nn.Module],
        passes: Callable[[Any, nn.Module], bool] | None,
        look: Callable[[nn.Module, Tensor], None] | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.givers, self.takers, self.passes, self.look = givers, takers, passes, look
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}  # holding the tensors, so that no other one gets their ids
        self.inside: list[tuple[nn.Module, Tensor | None]] = []  # the modules that run, with what they took
        self.looking = False
        self.flow = Flow()
        self.owners: dict[int, set[nn.Module]] = {}
        for module in givers | takers:
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), set()).add(module)

    def enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = self.made.get(id(_taken(module, args, kwargs))) if module in self.takers else None
        if module in self.takers:
            self.flow.took[None if found is None else found[0], module] += 1
        self.inside.append((module, None if found is None else found[1]))

    def leaves(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()
        if module in self.givers:
            self.made[id(output)] = module, output
            if self.look is not None:
                self.looking = True
                self.look(module, output)
                self.looking = False

    def note(self, values: Any) -> None:
        """Note who is read."""
        module, taken = self.inside[-1] if self.inside else (None, None)
        for value in _tensors(values):
            if value is not taken and id(value) in self.made:
                self.flow.leaking.add(self.made[id(value)][0])
            owners = self.owners.get(id(value), set())
            if module not in owners:
                self.flow.exposed |= owners

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.looking:
            return func(*args, **kwargs)
        giver = self.made[id(args[0])][0] if args and not self.inside and id(args[0]) in self.made else None
        if self.passes is not None and giver is not None and self.passes(getattr(func, "overloadpacket", None), giver):
            result = func(*args, **kwargs)
            first = result[0] if isinstance(result, tuple) else result
            self.made[id(first)] = giver, first
            return result
        self.note((args, kwargs))
        return func(*args, **kwargs)


def _taken(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the only argument of a call, or what attention takes as query, key and value at once; None where more."""
    values = [*args, *kwargs.values()]
    if isinstance(module, nn.MultiheadAttention):
        values = [*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)][:3]
        return values[0] if values and all(value is values[0] for value in values) else None
    return values[0] if len(values) == 1 else None


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and dicts, and in the attributes of other objects among them."""
    for leaf in tree_iter(values):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            yield from (value for value in tree_iter(list(vars(leaf).values())) if isinstance(value, Tensor))
