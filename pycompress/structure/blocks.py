"""Whole blocks that are taken out of a model, those first that it needs least."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import copy_of
from ..changes import take_out_
from ..data import Data, Tree, forward
from ..progress import track
from ..scores.running import Loss, undisturbed
from ..selection import weight_or_self
from .importance import mean_over
from .operations import LOSERS


def without_blocks(
    model: nn.Module,
    example_inputs: Tree,
    wanted: int | Mapping[str, int],
    data: Data,
    loss: Loss,
    selected: Collection[nn.Module],
    progress: bool,
) -> nn.Module:
    """Return a model without some of its blocks.

    Parameters
    ----------
    model : nn.Module
        Changed in place where nothing fails.
    example_inputs : inputs of the model
    wanted : int, or dict of name pattern to int
        How many blocks.
    data, loss
        What the model is measured with.
    selected : modules
        A block that holds another layer stays.
    progress : bool

    Raises
    ------
    ValueError
        When there are not as many, or the model does not run without them; they are named.

    Examples
    --------
    >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)), nn.Linear(2, 1))
    >>> pair, every = (torch.ones(3, 2), torch.zeros(3, 1)), [*model.modules()]
    >>> without_blocks(model, torch.ones(1, 2), 2, pair, nn.functional.mse_loss, every, False)
    Sequential(
      (0): Identity()
      (1): Identity()
      (2): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    every = {"*": wanted} if isinstance(wanted, int) else wanted
    named = isinstance(wanted, Mapping)
    found = _blocks(model, example_inputs, selected, every if named else None)
    steps = sum(every.values()) * max(len(found), 1)
    gone: dict[str, nn.Module] = {}
    with undisturbed(model), torch.no_grad(), track(steps, "blocks", progress) as done:
        for pattern, count in every.items():
            for _ in range(count):
                left = {
                    name: block
                    for name, block in found.items()
                    if (not named or fnmatch.fnmatchcase(name, pattern))
                    and not any(map(_nested, [name] * len(gone), gone))
                }
                if not left:
                    names = ", ".join(found) or "none"
                    raise ValueError(f"blocks must be at most as many as can be taken out, got {wanted} for {names}")
                losses = {}
                for name, block in left.items():
                    with _skipped(model, [*gone.values(), block]):
                        losses[name] = mean_over(model, data, loss)
                    done.advance()
                least = min(losses, key=losses.__getitem__)
                gone[least] = left[least]
    with undisturbed(model), torch.no_grad(), _skipped(model, [*gone.values()]):
        expected = forward(model, example_inputs, "example_inputs")
    _take_out_(model, gone, example_inputs, expected)
    return model


def _nested(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _blocks(
    model: nn.Module, example_inputs: Tree, selected: Collection[nn.Module], patterns: Mapping[str, int] | None
) -> dict[str, nn.Module]:
    """Return the blocks that can be taken out: called once, with a tensor of the shape that they return.

    Without patterns, those that are entries of a Sequential or a ModuleList and have modules inside.
    """
    calls: dict[nn.Module, list[bool]] = {}

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        like = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        same = like and args[0].shape == output.shape and args[0].dtype == output.dtype
        listed = isinstance(model.get_submodule(names[module].rpartition(".")[0]), nn.ModuleList)
        calls.setdefault(module, []).append(same and (listed or (len(args) == 1 and not kwargs)))

    chosen = {id(weight_or_self(module)) for module in selected}
    names = {module: name for name, module in model.named_modules() if name}
    for module, name in [*names.items()]:
        parent = model.get_submodule(name.rpartition(".")[0])
        layers = [part for part in module.modules() if isinstance(part, LOSERS)]
        holds = next(module.parameters(), None) is not None
        protected = any(id(weight_or_self(layer)) not in chosen for layer in layers)
        if patterns is None:
            listed = isinstance(parent, (nn.Sequential, nn.ModuleList)) and next(module.children(), None) is not None
        else:
            listed = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if not listed or not holds or protected:
            del names[module]
    with undisturbed(model), torch.no_grad(), _slow_path(), contextlib.ExitStack() as stack:
        for module in names:
            handle = module.register_forward_hook(see, with_kwargs=True)
            stack.callback(handle.remove)
        forward(model, example_inputs, "example_inputs")
    return {name: module for module, name in names.items() if calls.get(module) == [True]}


@contextlib.contextmanager
def _slow_path() -> Iterator[None]:
    """Let encoders of torch call their layers, with plain tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Skip(nn.Module):
    """Returns what it is given, and looks like the block in whose place it is."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


@contextlib.contextmanager
def _skipped(model: nn.Module, blocks: list[nn.Module]) -> Iterator[None]:
    """Run a model as if some blocks returned what they are given."""
    places = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent._modules.items()
        if any(module is block for block in blocks)
    ]
    try:
        for parent, name, module in places:
            assert module is not None
            parent._modules[name] = _Skip(module)
        yield
    finally:
        for parent, name, module in places:
            parent._modules[name] = module


def _take_out_(model: nn.Module, gone: dict[str, nn.Module], example_inputs: Tree, expected: Any) -> None:
    """Take blocks out, and see that the model computes what it does when they are skipped."""
    trial = copy_of(model)
    targets = {name: trial.get_submodule(name) for name in gone}
    for which in (targets, gone):
        owner = trial if which is targets else model
        for block in which.values():
            for parent in [*owner.modules()]:
                own = [name for name, module in parent._modules.items() if module is block]
                if own:
                    take_out_(parent, own)
        if which is targets:
            _check(trial, gone, example_inputs, expected)


def _check(trial: nn.Module, gone: Collection[str], example_inputs: Tree, expected: Any) -> None:
    try:
        with undisturbed(trial), torch.no_grad():
            found, error = forward(trial, example_inputs, "example_inputs"), ""
    except ValueError as failure:
        found, error = None, f": {failure}"
    if error or not _close(found, expected):
        raise ValueError(
            f"blocks must leave a model that runs without them, got another result without {', '.join(gone)} (its"
            f" forward calls them by number, say){error}"
        )


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        scale = float(b.abs().max()) if b.numel() else 0.0
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=scale * 1e-4, equal_nan=True)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_close, a, b))
    return True


def check_options(blocks: object, score: object, data: object, loss: object) -> None:
    """Refuse a number of blocks that is none, and data or a loss that nothing would use.

    Examples
    --------
    >>> check_options(0, len, None, None)
    """
    numbers = blocks if isinstance(blocks, Mapping) else {"*": blocks}
    for pattern, count in numbers.items():
        if not isinstance(pattern, str) or isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"blocks must be a number of blocks, or numbers by name pattern, got {blocks!r:.99}")
    asked = any(numbers.values()) or score is None
    if min(numbers.values(), default=-1) < (1 if isinstance(blocks, Mapping) else 0):
        raise ValueError(f"blocks must be at least 0, and at least 1 by name pattern, got {blocks!r:.99}")
    for name, value in (("data", data), ("loss", loss)):
        if asked and value is None:
            raise TypeError(f"{name} must be given with blocks or with score=None, for what is measured, got None")
        if not asked and value is not None:
            raise ValueError(f"{name} must come with blocks or with score=None: nothing else is measured")
