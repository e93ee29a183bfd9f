"""What simplification changes in a model beside its tensors: numbers that modules hold, and modules that are taken out.

Both are noted on the module, where copies and pickles carry them, so that a file can say them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_NUMBERS, _REMOVED = "_pycompress_numbers", "_pycompress_removed"


def numbers_of(module: nn.Module) -> dict[str, int]:
    """Return the attributes of a module that were changed.

    Examples
    --------
    >>> module = nn.Module()
    >>> module.heads = 4
    >>> change_numbers_(module, {"heads": 3})
    >>> numbers_of(module), module.heads
    ({'heads': 3}, 3)
    """
    return dict(module.__dict__.get(_NUMBERS, {}))


def change_numbers_(module: nn.Module, numbers: dict[str, int]) -> None:
    """Set attributes of a module, and note that.

    Examples
    --------
    >>> module = nn.Module()
    >>> change_numbers_(module, {})
    >>> numbers_of(module)
    {}
    """
    for name, value in numbers.items():
        module.__dict__[name] = value
    if numbers:
        module.__dict__[_NUMBERS] = numbers_of(module) | numbers


def removed_of(container: nn.Module) -> tuple[str, ...]:
    """Return the names that children of a module had before they were taken out.

    Examples
    --------
    >>> blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    >>> take_out_(blocks, ["1"])
    >>> take_out_(blocks, ["1"])
    >>> removed_of(blocks), len(blocks)
    (('1', '2'), 2)
    """
    found: tuple[str, ...] = container.__dict__.get(_REMOVED, ())
    return found


def take_out_(container: nn.Module, names: Sequence[str]) -> None:
    """Take children out of a module, and note that: from a ModuleList, or an Identity is put in their place.

    Parameters
    ----------
    container : nn.Module
    names : sequence of str
        As they are now; those behind them in a ModuleList get other ones.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> take_out_(model, ["0"])
    >>> model
    Sequential(
      (0): Identity()
      (1): ReLU()
    )
    """
    before = removed_of(container)
    if isinstance(container, nn.ModuleList):
        original = [str(i) for i in range(len(container) + len(before)) if str(i) not in before]
        gone = [original[list(container._modules).index(name)] for name in names]
        kept = [module for name, module in container._modules.items() if name not in names]
        container._modules.clear()
        container._modules.update({str(i): module for i, module in enumerate(kept)})
    else:
        gone = list(names)
        for name in names:
            training = getattr(container._modules[name], "training", True)
            container._modules[name] = nn.Identity().train(training)
    if gone:
        container.__dict__[_REMOVED] = tuple(sorted({*before, *gone}, key=lambda name: (len(name), name)))
