"""Distillation: a small student learns what a teacher answers, not only what is right."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calls import applied, blame, check_model, forward
from .data import Data, Tree, as_pair, batches, length
from .progress import track
from .schedules import Schedule, number
from .training import History, MakeOptimizer, adam, run_epochs_
from .undo import modes_kept

_TEACHER_BATCH = 256


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    epochs: int,
    temperature: float = 4.0,
    alpha: float = 0.9,
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
    """Train the student in place on the teacher's outputs t and the targets y.

    Targets that are class indices (integers): ``alpha * T^2 * KL(softmax(t / T) || softmax(s / T))
    + (1 - alpha) * cross_entropy(s, y)``, a mean over the items, with classes in dimension 1.
    Floating targets: ``alpha * mse(s, t) + (1 - alpha) * mse(s, y)``.

    The teacher runs in evaluation mode and stays bit-identical. It sees each item once where data is held in memory (a
    pair, a TensorDataset), and each batch anew where it is not, because that data may be augmented. As with
    :func:`pycompress.fit_`, whatever is raised, the student is then as it was before.

    Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015.

    Parameters
    ----------
    student : torch.nn.Module
        Pruned weights stay pruned.
    teacher : torch.nn.Module
        Returns a tensor of the shape that the student returns. The two may share frozen parameters, but no module.
    data : pair, Dataset or batches
    epochs : int
        Passes over the data, at least 1.
    temperature : float
        T, above 0: higher shows more of how the teacher ranks the wrong classes. Floating targets do not use it.
    alpha : float
        Weight of the teacher against the targets, 0 to 1; with 1 the values of the targets are not used.
    lr, optimizer, batch_size, schedule, clip_norm, validation_fraction, patience, seed, progress
        As in :func:`pycompress.fit_`.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, outputs do not fit each other or the targets, no parameter of the
        student requires grad, or the loss becomes NaN or infinite.

    Examples
    --------
    >>> teacher = nn.Linear(2, 3)
    >>> student = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = (torch.randn(64, 2), torch.randint(3, (64,)))
    >>> history = distill_(student, teacher, data, epochs=30, alpha=1.0, lr=0.01)
    >>> history.train_loss[-1] < history.train_loss[0]
    True
    """
    check_model(student, "student")
    check_model(teacher, "teacher")
    temperature = number(temperature, "temperature", 0, math.inf, low_open=True, high_open=True)
    alpha = number(alpha, "alpha", 0, 1)
    _check_apart(student, teacher)
    pair = as_pair(data)

    @functools.cache
    def lessons() -> Tensor:
        assert pair is not None
        everything = track(list(batches((pair[0], _numbers(pair)), _TEACHER_BATCH)), "teacher", progress)
        return torch.cat([_answer(teacher, inputs) for inputs, _ in everything])

    def batch_loss(inputs: Tree, targets: Any) -> Tensor:
        if pair is None:
            answer = _answer(teacher, inputs)
        else:
            targets, rows = targets
            answer = lessons()[rows]
        return _loss(forward(student, inputs, "data inputs"), answer, targets, temperature, alpha)

    with modes_kept(teacher):
        teacher.eval()
        return run_epochs_(
            student,
            data if pair is None else (pair[0], (pair[1], _numbers(pair))),
            batch_loss,
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
            description="distillation",
            name="student",
        )


def _loss(outputs: Any, answer: Tensor, targets: Any, temperature: float, alpha: float) -> Tensor:
    shape = tuple(answer.shape)
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != shape:
        got = str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"student must return a tensor of the teacher's shape {shape}, got {got}")
    if not isinstance(targets, Tensor) or targets.dtype == torch.bool or targets.is_complex():
        got = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"data targets must be one tensor of class indices or of real numbers, got {got}")
    hard: Callable[[Tensor, Tensor], Tensor]
    if targets.is_floating_point():
        if tuple(targets.shape) != shape:
            raise ValueError(f"data targets must have the outputs' shape {shape}, got {tuple(targets.shape)}")
        soft, hard = F.mse_loss(outputs, answer), F.mse_loss
    else:
        if len(shape) < 2:
            raise ValueError(f"student must return classes in dimension 1, got outputs of shape {shape}")
        soft, hard = _divergence(outputs, answer, temperature), F.cross_entropy
    return soft if alpha == 1 else alpha * soft + (1 - alpha) * applied(hard, "loss", outputs, targets)


def _divergence(outputs: Tensor, answer: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(answer / T) || softmax(outputs / T)), a mean over all but the classes."""
    student = F.log_softmax(outputs / temperature, dim=1)
    teacher = F.log_softmax(answer / temperature, dim=1)
    items = outputs.numel() // outputs.shape[1]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / items)


def _answer(teacher: nn.Module, inputs: Tree) -> Tensor:
    with torch.no_grad():
        answer = forward(teacher, inputs, "data inputs")
    if not isinstance(answer, Tensor) or not answer.is_floating_point():
        got = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
        raise TypeError(f"teacher must return one floating tensor, got {got}")
    if not answer.isfinite().all():
        raise ValueError(f"teacher must return finite outputs, got NaN or infinite ones{blame(inputs, 'data inputs')}")
    return answer


def _numbers(pair: tuple[Tree, Tree]) -> Tensor:
    """The items' row numbers, which travel with the targets through shuffling."""
    return torch.arange(length(pair[1]))


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that training the student would change."""
    modules = set(teacher.modules())
    tensors = {tensor.untyped_storage().data_ptr() for tensor in (*teacher.parameters(), *teacher.buffers())}
    trained: list[tuple[str, Tensor]] = [item for item in student.named_parameters() if item[1].requires_grad]
    trained += [item for item in student.named_buffers() if item[1].is_floating_point()]
    shared = [name or "itself" for name, module in student.named_modules() if module in modules]
    shared += [name for name, tensor in trained if tensor.numel() and tensor.untyped_storage().data_ptr() in tensors]
    if shared:
        raise ValueError(f"teacher must share nothing with student that training changes, got {', '.join(shared)}")
