"""Calling what a user gave, models and functions of (outputs, targets): what they refuse becomes a clear error.

Their own error is always the cause of ours. Too little memory and interrupts stay what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_NO_MEMORY = (MemoryError, torch.OutOfMemoryError)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def copy_of(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Return a deep copy that computes the same: torch's of a decoder layer forgets an activation that is a module.

    Parameters
    ----------
    model : Module
    share : bool
        Whether the copy holds the parameters of the model itself.

    Examples
    --------
    >>> block = nn.TransformerDecoderLayer(8, 2, 9, activation=nn.GELU())
    >>> copy.deepcopy(block).activation is nn.functional.relu, type(copy_of(block).activation).__name__
    (True, 'GELU')
    """
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()} if share else None)
    for module, own in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(module, nn.TransformerDecoderLayer) and "activation" not in module.__dict__:
            own.__dict__.pop("activation", None)
    return twin


def forward(model: nn.Module, inputs: Any, name: str = "inputs") -> Any:
    """Call the model: ``model(*inputs)`` for a tuple, ``model(**inputs)`` for a dict, else ``model(inputs)``.

    Parameters
    ----------
    model : Module
    inputs : tensor, or tuple or dict of tensors
    name : str
        What the inputs are, for messages.

    Raises
    ------
    ValueError
        When the model raises; its own error is the cause.

    Examples
    --------
    >>> forward(nn.Identity(), torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    >>> forward(nn.Linear(3, 2), torch.zeros(1, 4), "data inputs")
    Traceback (most recent call last):
        ...
    ValueError: data inputs must fit the model, got (1, 4) float32; its forward says RuntimeError: mat1 and mat2 ...
    """
    try:
        if isinstance(inputs, tuple):
            return model(*inputs)
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(inputs)
    except _NO_MEMORY:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} must fit the model, got {described(inputs)}; its forward says {said}") from error


def applied(function: Callable[[Any, Any], Any], name: str, outputs: Any, targets: Any, data: str = "data") -> Any:
    """Call a loss, a metric or a score of items with the outputs of a model and the targets of data.

    Parameters
    ----------
    function : callable (outputs, targets)
    name, data : str
        Names of the arguments that the function and the targets come from, for messages.

    Raises
    ------
    TypeError, ValueError
        A TypeError when the function raises one, a ValueError when it raises what NumPy and torch raise for wrong
        values and shapes (ValueError, IndexError, RuntimeError). Other errors are the function's own.

    Examples
    --------
    >>> applied(nn.functional.cross_entropy, "loss", torch.zeros(1, 3), torch.tensor([3]))
    Traceback (most recent call last):
        ...
    ValueError: loss must take the outputs and the targets of data, got (1, 3) float32 and (1,) int64; it says ...
    """
    try:
        return function(outputs, targets)
    except _NO_MEMORY:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} must take the outputs and the targets of {data}, got {described(outputs)} and "
            f"{described(targets)}; it says {type(error).__name__}: {error}"
        ) from error


def real(value: Any, name: str) -> float:
    """Return what a metric gave as a float.

    Examples
    --------
    >>> real(torch.tensor(0.5), "metric")
    0.5
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must return a number, got {described(value)}") from None


def check_model(model: object, name: str = "model") -> None:
    """Raise unless this is a module whose parameters have values that are finite.

    Raises
    ------
    TypeError, ValueError
        All offending parameters are named, and buffers without values. Buffers may hold infinity, as attention masks
        do.

    Examples
    --------
    >>> check_model(nn.Linear(2, 1, device="meta"), "teacher")
    Traceback (most recent call last):
        ...
    ValueError: teacher must have finite weights, got weight: on the meta device; bias: on the meta device
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")
    found = [f"{key}: {fault}" for key, parameter in model.named_parameters() if (fault := _fault(parameter, True))]
    found += [f"{key}: {fault}" for key, buffer in model.named_buffers() if (fault := _fault(buffer, False))]
    if found:
        raise ValueError(f"{name} must have finite weights, got {'; '.join(found)}")


def _fault(tensor: Tensor, finite: bool) -> str:
    if is_lazy(tensor):
        return "not initialised (run the model once)"
    if tensor.is_meta:
        return "on the meta device"
    if not finite or tensor.dtype not in _FLOATS or tensor.layout != torch.strided:
        return ""
    good = torch.isfinite(tensor.detach())
    return "" if bool(good.all()) else f"{int((~good).sum())} NaN or infinite entries"


def blame(inputs: Any, name: str) -> str:
    """Return, for a message about results that are not finite, that the inputs are not; "" when they are.

    Examples
    --------
    >>> blame(torch.tensor([1.0, float("nan")]), "data inputs")
    ' (data inputs hold 1 NaN or infinite entries)'
    """
    bad = sum(int((~torch.isfinite(leaf)).sum()) for leaf in _tensors(inputs) if leaf.dtype in _FLOATS)
    return f" ({name} hold {bad} NaN or infinite entries)" if bad else ""


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def described(value: Any) -> str:
    """Return what inputs, outputs or targets are, for messages.

    Examples
    --------
    >>> described((torch.zeros(2, 3), {"mask": None}))
    "((2, 3) float32, {'mask': NoneType})"
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {described(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(described, value)) + ")"
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested tensor of {value.size(0)} {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
