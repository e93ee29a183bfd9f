"""Which activations a packed layer can compute itself: those that alone see the layer's output."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import fx, nn

from .activations import activation_of, fused_identity, is_fused
from .calls import copy_of
from .kernels.ops import Activation
from .layers import PackedLayer
from .linears import is_conv1d, takes_activation
from .recording import Seen

_FORWARD = nn.Sequential.forward


class Pair(NamedTuple):
    """An activation right behind a layer, and its place in the model."""

    parent: nn.Module
    key: str
    module: nn.Module
    name: Activation

    def fuse(self) -> None:
        """Put an Identity where the activation is; no name changes."""
        self.parent._modules[self.key] = fused_identity()


def sequential_pairs(
    model: nn.Module, seen: Mapping[nn.Module, Seen], calls: Counter[nn.Module]
) -> dict[nn.Module, Pair]:
    """Find each recorded layer in front of an activation in a Sequential, both called by their Sequentials alone.

    Parameters
    ----------
    model : nn.Module
    seen, calls
        From :func:`pycompress.recording.record`.

    Returns
    -------
    dict of Module to Pair

    Examples
    --------
    >>> import torch
    >>> from pycompress.recording import record
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.GELU())
    >>> pair = sequential_pairs(model, *record(model, torch.zeros(5, 2), [model[0]]))[model[0]]
    >>> pair.key, pair.name
    ('1', 'gelu')
    """
    places = _places(model)
    sequentials = [m for m in model.modules() if isinstance(m, nn.Sequential) and type(m).forward is _FORWARD]
    expected: Counter[nn.Module | None] = Counter()
    for sequential in sequentials:
        for child in sequential._modules.values():
            expected[child] += calls[sequential]
    pairs = {}
    for sequential in sequentials:
        inside = [(key, child) for key, child in sequential._modules.items() if child is None or not is_fused(child)]
        for (_, layer), (key, behind) in itertools.pairwise(inside):
            if layer is None or layer not in seen or behind is None:
                continue
            alone = places[layer] == 1 and seen[layer].calls == expected[layer] and calls[behind] == expected[behind]
            name = _fusible(behind)
            if name is not None and alone and takes_activation(layer):
                pairs[layer] = Pair(sequential, key, behind, name)
    return pairs


def traced_pairs(model: nn.Module, example_inputs: Any) -> dict[nn.Module, Pair]:
    """Find each layer that only one activation module takes the output of, in the graph that ``torch.fx`` makes.

    Both must have one place and one call. The graph may be another one than that of a real call: whether the activation
    is handed the layer's own output in every call, :func:`seen_together` tells after recording one.

    Parameters
    ----------
    model : nn.Module
        Not changed: a copy that shares its parameters is traced.
    example_inputs : tensor, array, or tuple or dict of them
        Say which arguments are given.

    Returns
    -------
    dict of Module to Pair
        Empty where ``torch.fx`` cannot trace the model.

    Examples
    --------
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc, self.act = nn.Linear(2, 3), nn.Tanh()
    ...     def forward(self, x):
    ...         return self.act(self.fc(x))
    >>> import torch
    >>> [(pair.key, pair.name) for pair in traced_pairs(Net(), torch.zeros(1, 2)).values()]
    [('act', 'tanh')]
    """
    places = _places(model)
    if not any(places[module] == 1 and _fusible(module) for module in model.modules()):
        return {}
    try:
        probe = copy_of(model, share=True)
        with warnings.catch_warnings(action="ignore"):
            graph = _Tracer(_given(probe, example_inputs)).trace(probe)
    except Exception:  # whatever its forward makes of values that are not there: such a model has no graph
        return {}
    uses = Counter(node.target for node in graph.find_nodes(op="call_module"))
    pairs: dict[nn.Module, Pair] = {}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        while isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            if not is_fused(model.get_submodule(str(before.target))):
                break
            before = before.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, behind = model.get_submodule(str(before.target)), model.get_submodule(node.target)
        once = uses[before.target] == uses[node.target] == places[layer] == places[behind] == 1
        name = _fusible(behind)
        if name is not None and once and takes_activation(layer):
            path, _, key = node.target.rpartition(".")
            pairs[layer] = Pair(model.get_submodule(path), key, behind, name)
    return pairs


def seen_together(
    pairs: Mapping[nn.Module, Pair], seen: Mapping[nn.Module, Seen], calls: Counter[nn.Module]
) -> dict[nn.Module, Pair]:
    """Return those of traced pairs whose activation took the layer's output each time that a real call ran either.

    Examples
    --------
    >>> seen_together({}, {}, Counter())
    {}
    """
    return {
        layer: pair
        for layer, pair in pairs.items()
        if layer in seen and seen[layer].calls == seen[layer].followed == calls[pair.module]
    }


class _Tracer(fx.Tracer):
    def __init__(self, given: set[str]) -> None:
        super().__init__()
        self.given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PackedLayer) or is_conv1d(m) or bool(super().is_leaf_module(m, module_qualified_name))

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> Any:
        # An argument that is not given has its default: None, say, which a proxy would not be.
        if kind == "placeholder" and args and target not in self.given:
            return args[0]
        return super().create_proxy(kind, target, args, *rest, **options)


def _given(model: nn.Module, inputs: Any) -> set[str]:
    bind = inspect.signature(model.forward).bind
    if isinstance(inputs, dict):
        return set(bind(**inputs).arguments)
    return set(bind(*(inputs if isinstance(inputs, tuple) else (inputs,))).arguments)


def _places(model: nn.Module) -> Counter[nn.Module | None]:
    return Counter(child for module in model.modules() for child in module._modules.values())


def _fusible(module: nn.Module) -> Activation | None:
    return None if module._forward_hooks or module._forward_pre_hooks else activation_of(module)
