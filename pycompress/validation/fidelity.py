"""Where a compressed model departs from its original: the error of each layer's output."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..activations import MODULES, activated
from ..data import Tree, forward
from ..kernels.ops import Activation
from .predictions import evaluating


@dataclass(frozen=True)
class LayerError:
    """Relative error of one layer's output, ``||compressed - original|| / ||original||`` (L2, over all inputs).

    Examples
    --------
    >>> LayerError("fc1", 0.02).error
    0.02
    """

    name: str
    error: float


@dataclass(frozen=True)
class Fidelity:
    """Errors of the layers, worst first, and the layers that cannot be compared.

    Attributes
    ----------
    layers : tuple of LayerError
    not_comparable : tuple of (name, reason)

    Examples
    --------
    >>> Fidelity((LayerError("fc1", 0.02),), (("fc2", "not in the compressed model"),)).layers[0].name
    'fc1'
    """

    layers: tuple[LayerError, ...]
    not_comparable: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON; an infinite error is None."""
        return {
            "layers": [
                {"name": row.name, "error": row.error if math.isfinite(row.error) else None} for row in self.layers
            ],
            "not_comparable": [{"name": name, "reason": reason} for name, reason in self.not_comparable],
        }


def layer_errors(original: nn.Module, compressed: nn.Module, inputs: Tree) -> Fidelity:
    """Run both models on the same inputs and compare the outputs of layers of the same name.

    Layers are the modules that hold weights of their own. An error includes that of all layers before. Where the
    compressed layer applies an activation itself (its attribute ``activation`` is ``"relu"``, say), the original's
    output is compared after that activation. Of several outputs the first tensor is compared.

    Parameters
    ----------
    original, compressed : torch.nn.Module
    inputs : tensor, tuple or dict of tensors

    Returns
    -------
    Fidelity
        The error is infinite where the original's output is all zeros and the other's is not, or one is NaN.

    Examples
    --------
    >>> import torch
    >>> first, second = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    >>> for model, factor in ((first, 1.0), (second, 0.9)):
    ...     _ = model[0].weight.data.fill_(factor), model[0].bias.data.zero_()
    >>> fidelity = layer_errors(first, second, torch.ones(4, 2))
    >>> fidelity.layers[0].name, round(fidelity.layers[0].error, 3)
    ('0', 0.1)
    """
    layers, others = _layers(original), _layers(compressed)
    reasons = {name: "not in the compressed model" for name in layers if name not in others}
    reasons |= {name: "not in the original model" for name in others if name not in layers}
    common = [name for name in layers if name in others]
    outputs: dict[str, list[Any]] = {name: [] for name in common}
    sums: dict[str, tuple[float, float]] = {}
    calls = dict.fromkeys(common, 0)

    def keep(name: str, output: Any) -> None:
        # An operation after the layer may change its output in place: a copy is kept.
        tensor = _first_tensor(output)
        outputs[name].append(None if tensor is None else tensor.detach().clone())

    def compare(name: str, output: Any) -> None:
        calls[name] += 1
        call = calls[name] - 1
        if name in reasons or call >= len(outputs[name]):
            return
        before, after = outputs[name][call], _first_tensor(output)
        if before is None or after is None:
            reasons[name] = "its output is no tensor"
        elif before.shape != after.shape:
            reasons[name] = f"output {tuple(before.shape)} became {tuple(after.shape)}"
        else:
            fused = _fused(others[name])
            if fused is not None and _fused(layers[name]) is None:
                before = activated(before, fused)
            error, size = sums.get(name, (0.0, 0.0))
            before, after = before.double(), after.double()
            sums[name] = error + float((after - before).square().sum()), size + float(before.square().sum())

    with evaluating(original, compressed):
        _watch(original, {name: layers[name] for name in common}, keep, inputs)
        _watch(compressed, {name: others[name] for name in common}, compare, inputs)
    for name in common:
        if name not in reasons and (not outputs[name] or calls[name] != len(outputs[name])):
            reasons[name] = f"called {len(outputs[name])} times in the original, {calls[name]} in the compressed model"
    errors = [LayerError(name, _relative(*sums[name])) for name in common if name not in reasons]
    return Fidelity(tuple(sorted(errors, key=lambda row: -row.error)), tuple(reasons.items()))


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
        or (next(module.children(), None) is None and module.state_dict())
    }


def _watch(model: nn.Module, layers: dict[str, nn.Module], see: Callable[[str, Any], None], inputs: Tree) -> None:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: see(name, output)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name)).remove)
        forward(model, inputs)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def _fused(layer: nn.Module) -> Activation | None:
    name = getattr(layer, "activation", None)
    return name if isinstance(name, str) and name in MODULES else None


def _relative(error: float, size: float) -> float:
    if math.isnan(error) or math.isnan(size):
        return math.inf
    if size == 0:
        return math.inf if error > 0 else 0.0
    return math.sqrt(error / size)
