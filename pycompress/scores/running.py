"""What the scores share: running a model without a trace, and looking at it meanwhile."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import data as data_module
from ..calls import applied
from ..data import Data
from ..undo import modes_kept

Score = Callable[[nn.Module, dict[str, nn.Module]], dict[str, Tensor]]
"""What a score function is."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, targets) -> scalar tensor``, the mean over the items."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode; afterwards all training flags and torch's random numbers are as before.

    Examples
    --------
    >>> model = nn.Dropout()
    >>> with undisturbed(model):
    ...     assert not model.training
    >>> model.training
    True
    """
    with torch.random.fork_rng(), modes_kept(model):
        model.eval()
        yield


@contextlib.contextmanager
def watched_inputs(layers: dict[str, nn.Module], see: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, module, x)`` with the input of each layer, whenever it runs inside the block.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> with watched_inputs({"fc": layer}, lambda name, module, x: print(name, x.shape)):
    ...     _ = layer(torch.zeros(3, 2))
    fc torch.Size([3, 2])
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, args, kwargs: see(name, module, args[0] if args else kwargs["input"])

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_reached(layers: dict[str, nn.Module], reached: dict[str, Any], argument: str) -> None:
    """Raise a ValueError that names the layers which the data did not reach.

    Examples
    --------
    >>> check_reached({"fc": nn.Linear(2, 1)}, {"fc": 0.5}, "data")
    """
    missing = [name for name in layers if name not in reached]
    if missing:
        raise ValueError(f"{argument} must reach every layer when the model runs on it, got none for {missing}")


def layer_weight(module: nn.Module) -> Tensor:
    """Return the weight of a layer, detached.

    Examples
    --------
    >>> layer_weight(nn.Linear(2, 1)).requires_grad
    False
    """
    return cast(Tensor, module.weight).detach()


def wide(weight: Tensor) -> Tensor:
    """Return a weight, detached, as float64 when it is, else as float32.

    Examples
    --------
    >>> wide(torch.ones(1, dtype=torch.bfloat16))
    tensor([1.])
    """
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def check_arguments(data: Data, loss: Loss | None = None, batch_size: int = 1) -> None:
    """Check the arguments of the functions that make scores.

    Examples
    --------
    >>> check_arguments((torch.ones(2, 3), torch.ones(2)), nn.functional.mse_loss, batch_size=2)
    """
    data_module.check(data, "data")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of (outputs, targets), got {type(loss).__name__}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def mean_loss(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of a batch, after checking that it is one finite number.

    Examples
    --------
    >>> mean_loss(nn.functional.mse_loss, torch.ones(2), torch.zeros(2))
    tensor(1.)
    """
    value = applied(loss, "loss", outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise TypeError(f"loss must return a scalar tensor, got {type(value).__name__}{shape}")
    if not math.isfinite(value.item()):
        raise ValueError(f"loss must be finite on the data, got {value.item()}")
    return value.reshape(())
