"""The activation modules that kernels compute, by their kernels' names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .kernels.ops import Activation

MODULES: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu6": nn.ReLU6,
}

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""The normalizations that become part of the layer in front of them."""

_FUNCTIONS = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": nn.functional.relu6,
}


def activation_of(module: nn.Module | None) -> Activation | None:
    """Return what kernels call a module's function, or None where they have none: subclasses, GELU's approximation.

    Examples
    --------
    >>> activation_of(nn.SiLU(inplace=True)), activation_of(nn.GELU(approximate="tanh"))
    ('silu', None)
    """
    if type(module) is nn.GELU and module.approximate != "none":
        return None
    return next((name for name, cls in MODULES.items() if type(module) is cls), None)


def activated(y: Tensor, name: Activation) -> Tensor:
    """Apply an activation by its kernels' name, out of place.

    Examples
    --------
    >>> activated(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    return _FUNCTIONS[name](y)


_FUSED = "_pack_fused"


def fused_identity() -> nn.Identity:
    """Return what stands in a model where an activation was that a packed layer computes.

    Examples
    --------
    >>> is_fused(fused_identity()), is_fused(nn.Identity())
    (True, False)
    """
    module = nn.Identity().eval()
    setattr(module, _FUSED, True)
    return module


def is_fused(module: nn.Module) -> bool:
    """Whether a module comes from :func:`fused_identity`, or is a copy of one."""
    return _FUSED in module.__dict__
