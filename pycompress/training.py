"""Train a model: one loop for fine-tuning and distillation that either succeeds or changes nothing.

Masked weights stay zero here by the masks' own hooks, and quantized weights are trained as what they are: plain floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Subset

from .calls import applied, blame, check_model, forward
from .data import Data, Tree, as_pair, batches, check, gather, is_dataset, length, pick
from .kernels.arrays import integer
from .progress import track
from .schedules import Schedule, number
from .schedules import cosine as cosine
from .schedules import plateau as plateau
from .schedules import step_schedule as step_schedule
from .undo import snapshot, unchanged_on_error

Optimizer = torch.optim.Optimizer

MakeOptimizer = Callable[..., Optimizer]
"""``make(parameters, lr=lr)``: any class of torch.optim, or a partial of one."""

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class History:
    """How a training went, one number for each epoch."""

    train_loss: tuple[float, ...]
    """Mean loss over the training items, in training mode."""
    validation_loss: tuple[float, ...]
    """Mean loss over the held-out items after the epoch; empty without a held-out part."""
    lr: tuple[float, ...]
    """Learning rate during the epoch."""
    best_epoch: int | None
    """The epoch, from 1, whose weights the model has now; None without a held-out part."""
    stopped_epoch: int | None
    """The epoch, from 1, after which patience ended the training; None when it ran to its end."""


def adam(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Return torch's Adam in its fused form, which takes a third less time for a step of a small model.

    Kingma and Ba, Adam: a method for stochastic optimization, 2015.

    Examples
    --------
    >>> adam(nn.Linear(2, 1).parameters(), lr=0.01).defaults["lr"]
    0.01
    """
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def fit_(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy,
    lr: float = 1e-3,
    optimizer: MakeOptimizer = adam,
    batch_size: int = 64,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    validation_fraction: float = 0.0,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a model in place: ``loss(model(inputs), targets)`` falls for the parameters that require grad.

    The model trains in training mode (dropout drops, batch norm learns) and gets its modes back. Equal seeds give
    equal models, and torch's own random state stays as it is. Whatever is raised, an interrupt too, the model is then
    as it was before.

    Parameters
    ----------
    model : torch.nn.Module
    data : pair, Dataset or batches
        What to train on. Pairs and Datasets are shuffled in every epoch.
    epochs : int
        Passes over the data, at least 1.
    loss : callable (outputs, targets) -> [] float tensor
        A mean over the items. For label smoothing pass ``functools.partial(cross_entropy, label_smoothing=0.1)``.
    lr : float
        Learning rate, above 0.
    optimizer : callable (parameters, lr) -> torch.optim.Optimizer
        A class of torch.optim, or ``functools.partial(torch.optim.SGD, momentum=0.9)``.
    batch_size : int
        Items for one step; data that comes in batches keeps its own.
    schedule : step_schedule(...), cosine(...), plateau(...) or another callable (optimizer, epochs) -> scheduler
        How the learning rate changes after each epoch; None keeps it.
    clip_norm : float, optional
        Gradients of a larger 2-norm are scaled down to it.
    validation_fraction : float
        The part of the data, 0 to below 1, that is held out. The model gets the weights of the epoch with the least
        loss on it. Batches of a DataLoader cannot be held out: pass its dataset.
    patience : int, optional
        Training stops once that loss has not fallen for so many epochs.
    seed : int
        Of the shuffling, the held-out items and the model's dropout; at least 0.
    progress : bool
        Whether to show progress on stderr.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, no parameter requires grad, or the loss becomes NaN or infinite.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> inputs = torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 8)
    >>> history = fit_(model, (inputs, torch.tensor([0, 1] * 8)), epochs=50, lr=0.1, batch_size=4)
    >>> model(inputs[:2]).argmax(1).tolist(), history.train_loss[-1] < 0.1
    ([0, 1], True)
    """
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> tensor, got {type(loss).__name__}")
    return run_epochs_(
        model,
        data,
        lambda inputs, targets: applied(loss, "loss", forward(model, inputs, "data inputs"), targets),
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        batch_size=batch_size,
        schedule=schedule,
        clip_norm=clip_norm,
        validation_fraction=validation_fraction,
        patience=patience,
        seed=seed,
        progress=progress,
    )


def run_epochs_(
    model: nn.Module,
    data: Data,
    batch_loss: Callable[[Tree, Tree], Tensor],
    *,
    epochs: int,
    lr: float,
    optimizer: MakeOptimizer,
    batch_size: int,
    schedule: Schedule | None,
    clip_norm: float | None,
    validation_fraction: float,
    patience: int | None,
    seed: int,
    progress: bool,
    description: str = "training",
    name: str = "model",
) -> History:
    """Train a model in place on ``batch_loss(inputs, targets)``; everything else is as in :func:`fit_`.

    ``name`` is what messages call the model.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> def distance(inputs, targets):
    ...     return (model(inputs) - targets).square().mean()
    >>> history = run_epochs_(
    ...     model, (torch.ones(2, 1), torch.full((2, 1), 9.0)), distance, epochs=2, lr=0.1, optimizer=torch.optim.SGD,
    ...     batch_size=2, schedule=None, clip_norm=None, validation_fraction=0.0, patience=None, seed=0, progress=False
    ... )
    >>> history.train_loss[1] < history.train_loss[0]
    True
    """
    check_model(model, name)
    epochs, batch_size = integer(epochs, "epochs", 1), integer(batch_size, "batch_size", 1)
    seed = integer(seed, "seed", 0, 2**63 - 1)
    lr = number(lr, "lr", 0, math.inf, low_open=True, high_open=True)
    validation_fraction = number(validation_fraction, "validation_fraction", 0, 1, high_open=True)
    if clip_norm is not None:
        clip_norm = number(clip_norm, "clip_norm", 0, math.inf, low_open=True, high_open=True)
    if patience is not None:
        patience = integer(patience, "patience", 1)
        if validation_fraction == 0:
            raise ValueError("patience must come with a validation_fraction above 0, got validation_fraction 0")
    if not callable(optimizer):
        raise TypeError(f"optimizer must be a callable (parameters, lr), got {type(optimizer).__name__}")
    if schedule is not None and not callable(schedule):
        raise TypeError(f"schedule must be None or a callable (optimizer, epochs), got {type(schedule).__name__}")
    check(data)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{name} must have parameters that require grad, got none")
    generator = torch.Generator().manual_seed(seed)
    training, held_out = _hold_out(data, validation_fraction, generator)

    train_losses, validation_losses, rates = [], [], []
    best, best_epoch, stopped, restore_best = math.inf, None, None, None
    with (
        unchanged_on_error(model),
        _own_randomness(seed),
        track(epochs * _steps(training, batch_size), description, progress) as bar,
    ):
        stepper = optimizer(parameters, lr=lr)
        if not isinstance(stepper, Optimizer):
            raise TypeError(f"optimizer must make a torch.optim.Optimizer, got {type(stepper).__name__}")
        scheduler = None if schedule is None else schedule(stepper, epochs)
        if not (scheduler is None or callable(getattr(scheduler, "step", None))):
            raise TypeError(f"schedule must make a scheduler of torch.optim, got {type(scheduler).__name__}")
        for epoch in range(1, epochs + 1):
            where = f"epoch {epoch} of {epochs}"
            bar.description = f"{description}, {where}"
            rates.append(float(stepper.param_groups[0]["lr"]))
            model.train()
            total, items = 0.0, 0
            for inputs, targets in batches(training, batch_size, shuffle=True, generator=generator):
                loss = batch_loss(inputs, targets)
                value = _value(loss, where, inputs)
                for parameter in parameters:
                    parameter.grad = None
                loss.backward()  # type: ignore[no-untyped-call]
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                stepper.step()
                count = length(targets)
                total += value * count
                items += count
                bar.advance()
            train_losses.append(total / items)
            if held_out is not None:
                validation_losses.append(_mean_loss(model, held_out, batch_loss, where))
                if validation_losses[-1] < best:
                    best, best_epoch, restore_best = validation_losses[-1], epoch, snapshot(model)
                elif patience is not None and best_epoch is not None and epoch - best_epoch >= patience:
                    stopped = epoch
                    break
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(validation_losses[-1] if validation_losses else train_losses[-1])
            elif scheduler is not None:
                scheduler.step()
        if restore_best is not None:
            restore_best()
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            raise ValueError(f"loss must keep the weights finite, got NaN or infinite weights in {where}")
    for parameter in parameters:
        parameter.grad = None
    return History(tuple(train_losses), tuple(validation_losses), tuple(rates), best_epoch, stopped)


def reestimate_batch_norm_(model: nn.Module, data: Data, *, batch_size: int = 64, seed: int = 0) -> int:
    """Compute the running mean and variance of all batch-norm layers anew, for a model whose weights were changed.

    They become the average over batches of what each layer sees in a pass over the data; dropout is off, as it is when
    the statistics are used. Whatever is raised, the model is then as it was before.

    Parameters
    ----------
    model : torch.nn.Module
    data : pair, Dataset or batches
        Training data; targets are not used. Pairs and Datasets are shuffled.
    batch_size : int
        Items in a batch; data that comes in batches keeps its own.
    seed : int
        Of the shuffling, at least 0.

    Returns
    -------
    int
        Number of layers.

    Raises
    ------
    TypeError, ValueError
        When the model has no batch norm with running statistics, data is wrong, or the statistics are not finite.

    Examples
    --------
    >>> model = nn.BatchNorm1d(1)
    >>> reestimate_batch_norm_(model, (torch.tensor([[1.0], [3.0]]), torch.zeros(2)))
    1
    >>> model.running_mean, model.running_var
    (tensor([2.]), tensor([2.]))
    """
    check_model(model)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ValueError("model must have batch-norm layers with running statistics, got none")
    batch_size = integer(batch_size, "batch_size", 2)
    generator = torch.Generator().manual_seed(integer(seed, "seed", 0, 2**63 - 1))
    check(data, finite=as_pair(data) is not None)
    momenta = [layer.momentum for layer in layers]
    try:
        with unchanged_on_error(model), torch.no_grad():
            model.eval()
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the mean over all batches
                layer.train()
            for inputs, _ in batches(data, batch_size, shuffle=True, generator=generator):
                forward(model, inputs, "data inputs")
            statistics = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
            if not all(value is None or bool(value.isfinite().all()) for value in statistics):
                raise ValueError("data must give finite statistics, got NaN or infinite ones")
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed torch for what the model draws, with gradients on, and leave the caller's random state alone."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        yield


def _hold_out(data: Data, fraction: float, generator: torch.Generator) -> tuple[Data, Data | None]:
    if fraction == 0:
        pair = as_pair(data)
        return data if pair is None else pair, None
    pair = gather(data) if isinstance(data, list) else as_pair(data)
    if pair is None and not is_dataset(data):
        raise ValueError(
            f"validation_fraction must be 0 for data that comes in batches, got {fraction} with {type(data).__name__}: "
            "pass its dataset"
        )
    count = len(data) if pair is None else length(pair[1])
    if count < 2:
        raise ValueError(f"validation_fraction must be 0 for fewer than 2 items, got {fraction}")
    held = min(max(round(count * fraction), 1), count - 1)
    order = torch.randperm(count, generator=generator)
    parts = (order[held:], order[:held])
    if pair is None:
        return Subset(data, parts[0].tolist()), Subset(data, parts[1].tolist())
    inputs, targets = pair
    return tuple((pick(inputs, part), pick(targets, part)) for part in parts)  # type: ignore[return-value]


def _mean_loss(model: nn.Module, data: Data, batch_loss: Callable[[Tree, Tree], Tensor], where: str) -> float:
    model.eval()
    total, items = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches(data, _EVALUATION_BATCH):
            loss = batch_loss(inputs, targets)
            total += _value(loss, f"validation after {where}", inputs, grad=False) * length(targets)
            items += length(targets)
    return total / items


def _value(loss: object, where: str, inputs: Tree, grad: bool = True) -> float:
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        got = f"{tuple(loss.shape)} {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss must return a 0-D floating tensor, got {got}")
    value = float(loss.item())
    if not math.isfinite(value):
        raise ValueError(
            f"loss must stay finite, got {value} in {where}{blame(inputs, 'data inputs')}: "
            "try a smaller lr or clip_norm (the model is as before)"
        )
    if grad and not loss.requires_grad:
        raise ValueError("loss must depend on parameters that require grad, got one that does not")
    return value


def _steps(data: Data, batch_size: int) -> int:
    """Return the number of batches, 0 where only reading them would tell."""
    pair = as_pair(data)
    if pair is not None:
        return -(-length(pair[1]) // batch_size)
    try:
        return -(-len(data) // batch_size) if is_dataset(data) else len(data)
    except TypeError:
        return 0
