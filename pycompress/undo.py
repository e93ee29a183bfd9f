"""Undo what was done to a model in place: a call that fails leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put training modes back; on an error, an interrupt too, also all parameters, buffers and gradients.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> before = layer.weight.tolist()
    >>> try:
    ...     with unchanged_on_error(layer):
    ...         _ = layer.weight.data.zero_()
    ...         raise KeyError("a mistake")
    ... except KeyError:
    ...     layer.weight.tolist() == before
    True
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    restore = snapshot(model)
    with modes_kept(model):
        try:
            yield
        except BaseException:
            restore()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            raise


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put the training mode of each module back.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> with modes_kept(layer):
    ...     layer.eval().training
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Copy all parameters and buffers; calling the result puts the copies back.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> restore = snapshot(layer)
    >>> before, _ = layer.weight.tolist(), layer.weight.data.zero_()
    >>> restore()
    >>> layer.weight.tolist() == before
    True
    """
    copies: dict[Tensor, Tensor] = {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    places.append((tensors, name, tensor))
                    if tensor not in copies:
                        copies[tensor] = tensor.detach().clone()

    def restore() -> None:
        for tensor, copy in copies.items():
            tensor.data.copy_(copy)
        for tensors, name, tensor in places:
            tensors[name] = tensor

    return restore
