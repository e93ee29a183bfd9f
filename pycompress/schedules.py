"""How the learning rate changes from epoch to epoch: small functions that make a scheduler of torch.optim."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from .kernels.arrays import integer

Schedule = Callable[[Optimizer, int], LRScheduler]
"""``schedule(optimizer, epochs)``: the scheduler, which is advanced once after each epoch."""


def step_schedule(every: int, factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by ``factor`` after every ``every`` epochs.

    Parameters
    ----------
    every : int
        Epochs between two steps, at least 1.
    factor : float
        Above 0, at most 1.

    Returns
    -------
    callable (optimizer, epochs) -> scheduler

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range.

    Examples
    --------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> scheduler = step_schedule(every=2, factor=0.5)(optimizer, 10)
    >>> for _ in range(2):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> scheduler.get_last_lr()
    [0.05]
    """
    every = integer(every, "every", 1)
    factor = number(factor, "factor", 0, 1, low_open=True)
    return lambda optimizer, epochs: StepLR(optimizer, every, factor)


def cosine(warmup: int = 0, final: float = 0.0) -> Schedule:
    """Lower the learning rate along half a cosine, after a linear warm-up.

    Epoch e (from 0) of E with W epochs of warm-up has ``lr * (e + 1) / (W + 1)`` while ``e < W``, then
    ``lr * (final + (1 - final) * (1 + cos(pi * (e - W) / (E - W))) / 2)``.

    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017 (without the restarts).

    Parameters
    ----------
    warmup : int
        Epochs of warm-up, fewer than the epochs of the training.
    final : float
        Where the cosine ends, as a fraction of the learning rate, 0 to 1; the last epoch is one step before the end.

    Returns
    -------
    callable (optimizer, epochs) -> scheduler

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range; when training, if it has not more epochs than ``warmup``.

    Examples
    --------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> scheduler = cosine(warmup=1)(optimizer, 4)
    >>> [round(scheduler.lr_lambdas[0](epoch), 3) for epoch in range(4)]
    [0.5, 1.0, 0.75, 0.25]
    """
    warmup = integer(warmup, "warmup", 0)
    final = number(final, "final", 0, 1)

    def schedule(optimizer: Optimizer, epochs: int) -> LRScheduler:
        if epochs <= warmup:
            raise ValueError(f"warmup must be less than the {epochs} epochs of the training, got {warmup}")

        def fraction(epoch: int) -> float:
            if epoch < warmup:
                return (epoch + 1) / (warmup + 1)
            angle = math.pi * (epoch - warmup) / (epochs - warmup)
            return final + (1 - final) * (1 + math.cos(angle)) / 2

        return LambdaLR(optimizer, fraction)

    return schedule


def plateau(patience: int = 3, factor: float = 0.5) -> Schedule:
    """Multiply the learning rate by ``factor`` when the loss has not fallen for more than ``patience`` epochs.

    The loss is that of the held-out part where there is one, else that of the training.

    Parameters
    ----------
    patience : int
        Epochs, at least 0.
    factor : float
        Above 0, below 1.

    Returns
    -------
    callable (optimizer, epochs) -> scheduler

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range.

    Examples
    --------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> scheduler = plateau(patience=0)(optimizer, 10)
    >>> for loss in (1.0, 0.9, 0.9):
    ...     scheduler.step(loss)
    >>> scheduler.get_last_lr()
    [0.05]
    """
    patience = integer(patience, "patience", 0)
    factor = number(factor, "factor", 0, 1, low_open=True, high_open=True)
    return lambda optimizer, epochs: ReduceLROnPlateau(optimizer, factor=factor, patience=patience)


def number(
    value: object, name: str, low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> float:
    """Return value as a float inside the bounds.

    Examples
    --------
    >>> number(1, "alpha", 0, 1)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    real = float(value)
    if not ((low < real if low_open else low <= real) and (real < high if high_open else real <= high)):
        bounds = f"{'above' if low_open else 'at least'} {low} and {'below' if high_open else 'at most'} {high}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return real
