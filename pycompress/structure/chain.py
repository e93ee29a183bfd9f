"""Which modules take a layer's outputs, found in the graph of a model: plain chains from a layer to the next one."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from ..data import Tree, forward
from ..selection import LAYERS

_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softplus, nn.Softsign,
    nn.Threshold,
)  # fmt: skip
_ELEMENTWISE_CALLS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "contiguous",
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.selu_,
    F.celu, F.gelu, F.silu, F.mish, F.sigmoid, torch.sigmoid, F.logsigmoid, F.tanh, torch.tanh, F.hardtanh,
    F.hardsigmoid, F.hardswish, F.softplus, F.softsign, F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout,
    torch.dropout,
}  # fmt: skip
_POOLING = {
    nn.MaxPool1d: 1, nn.AvgPool1d: 1, nn.AdaptiveMaxPool1d: 1, nn.AdaptiveAvgPool1d: 1,
    nn.MaxPool2d: 2, nn.AvgPool2d: 2, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveAvgPool2d: 2,
}  # fmt: skip
_POOLING_CALLS = {
    F.max_pool1d: 1, F.avg_pool1d: 1, F.adaptive_max_pool1d: 1, F.adaptive_avg_pool1d: 1, torch.max_pool1d: 1,
    F.max_pool2d: 2, F.avg_pool2d: 2, F.adaptive_max_pool2d: 2, F.adaptive_avg_pool2d: 2, torch.max_pool2d: 2,
}  # fmt: skip
_KNOWN_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class _Axis:
    """Where a layer's outputs are in a tensor: the dimension, and which output each position along it comes from."""

    dim: int
    source: Tensor


class _Tracer(fx.Tracer):
    def __init__(self, given: set[str]) -> None:
        super().__init__()
        self.given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        childless = next(m.children(), None) is None
        known = (*LAYERS, *_PER_CHANNEL, *_ELEMENTWISE, *_POOLING)
        return bool(isinstance(m, known) or (own and childless) or super().is_leaf_module(m, module_qualified_name))

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> Any:
        # An argument that is not given has its default: None, say, which a proxy would not be.
        if kind == "placeholder" and args and target not in self.given:
            return args[0]
        return super().create_proxy(kind, target, args, *rest, **options)


class _RecordShapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def trace(model: nn.Module, example_inputs: Tree) -> fx.Graph:
    """Return the graph of a model in eval mode, with the shape of each value in ``node.meta["shape"]``.

    Parameters
    ----------
    model : nn.Module
        Not changed: a copy is traced.
    example_inputs : tensor, or tuple or dict of tensors

    Returns
    -------
    torch.fx.Graph
        Its ``owning_module`` holds the copy.

    Raises
    ------
    ValueError
        When the model does not accept the inputs, or ``torch.fx`` cannot trace it.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3))
    >>> [(node.target, node.meta["shape"]) for node in graph.nodes if node.op == "call_module"]
    [('0', (1, 2)), ('1', (1, 2))]
    """
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        forward(probe, example_inputs, "example_inputs")
        try:
            bind = inspect.signature(probe.forward).bind
            if isinstance(example_inputs, dict):
                given = bind(**example_inputs).arguments
            else:
                given = bind(*(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))).arguments
            traced = fx.GraphModule(probe, _Tracer(set(given)).trace(probe))
            values: list[Any] = []
            for node in traced.graph.find_nodes(op="placeholder"):
                name = str(node.target)
                values += given[name[1:]] if name.startswith("*") else [given[name]]
            _RecordShapes(traced).run(*values)
        except Exception as error:
            raise ValueError(f"model must be one that torch.fx can trace, got the error: {error}") from error
    return traced.graph


def layers_before_last(graph: fx.Graph) -> list[str]:
    """Return the names of the Linear, Conv1d and Conv2d layers that have another such layer behind them.

    Parameters
    ----------
    graph : torch.fx.Graph
        Of :func:`trace`.

    Returns
    -------
    list of str, in the order of their calls

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid())
    >>> layers_before_last(trace(model, torch.zeros(1, 3)))
    ['0']
    """
    behind: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        behind[node] = any(behind[user] or isinstance(_module(user), LAYERS) for user in node.users)
    names = [str(node.target) for node in graph.nodes if isinstance(_module(node), LAYERS) and behind[node]]
    return list(dict.fromkeys(names))


def follow(model: nn.Module, graph: fx.Graph, layers: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return, for each layer, the modules that take its outputs: what is on the way to the next layer, and that one.

    Parameters
    ----------
    model : nn.Module
    graph : torch.fx.Graph
        Of :func:`trace` of this model.
    layers : list of str
        Some of :func:`layers_before_last`.

    Returns
    -------
    dict of layer name to dict of module name to [inputs of the module] int64
        For each input (feature, channel) of the module, the layer's output that it comes from.

    Raises
    ------
    ValueError
        When a layer's outputs go another way than through a plain chain, or a module on it cannot lose channels. All
        such places are named.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 3, 1))
    >>> follow(model, trace(model, torch.zeros(1, 1, 1, 3)), ["0"])
    {'0': {'2': tensor([0, 0, 0, 1, 1, 1])}}
    """
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    direct = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    owners: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(prefix)
    followers: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target in layers:
            followers[str(node.target)], found = _walk(node)
            problems += found
    for name in dict.fromkeys(name for layer, found in followers.items() for name in (layer, *found)):
        module = model.get_submodule(name)
        label = f"{name} ({type(module).__name__})"
        problems += [f"{label} {problem}" for problem in _module_problems(module)]
        if calls[name] > 1:
            problems.append(f"{label} is called {calls[name]} times")
        if name in direct:
            problems.append(f"{label} has parameters that are used without calling it")
        shared = [owners[id(parameter)] for parameter in module.parameters(recurse=False)]
        problems += [f"{' and '.join(names)} share a parameter" for names in shared if len(names) > 1]
    if problems:
        raise ValueError(
            "model must be a plain chain from each layer that loses outputs to the next layer (exclude=[...] leaves"
            f" layers as they are); cannot follow: {'; '.join(dict.fromkeys(problems))}"
        )
    return followers


def _module_problems(module: nn.Module) -> list[str]:
    """Say what keeps a Linear, a convolution, a batch normalization or a PReLU from losing channels."""
    own = module.state_dict(keep_vars=True)
    problems = []
    if not own.keys() <= _KNOWN_TENSORS:
        problems.append(f"has tensors of unknown meaning ({', '.join(sorted(own.keys() - _KNOWN_TENSORS))})")
    elif any(is_lazy(tensor) or tensor.is_meta for tensor in own.values()):
        problems.append("has parameters without values")
    elif not all(bool(torch.isfinite(tensor).all()) for tensor in own.values()):
        problems.append("has parameters that are NaN or infinite")
    if getattr(module, "groups", 1) != 1:
        problems.append(f"has {module.groups} groups")
    return problems


def _walk(start: fx.Node) -> tuple[dict[str, Tensor], list[str]]:
    """Follow a layer's outputs to the next layer; return the modules on the way, and what cannot be followed."""
    shape = start.meta["shape"]
    dim = _feature_dim(_module(start), len(shape))
    axis = _Axis(dim, torch.arange(shape[dim]))
    followers: dict[str, Tensor] = {}
    node = start
    while True:
        users = [user for user in node.users if not _only_asks_batch_size(user)]
        if len(users) != 1:
            return followers, [f"{_label(node)} has an output used by {' and '.join(map(_label, users))}"]
        previous, node = node, users[0]
        module, shape = _module(node), previous.meta["shape"]
        if [source for source in node.all_input_nodes if not _is_batch_size(source)] != [previous]:
            return followers, [f"{_label(node)} has more than one input"]
        if isinstance(module, LAYERS) and axis.dim == _feature_dim(module, len(shape)):
            return {**followers, str(node.target): axis.source}, []
        after = _through(node, module, axis, shape)
        if after is None:
            return followers, [f"{_label(node)} is not known to keep the outputs of {_label(start)} apart"]
        if isinstance(module, _PER_CHANNEL) and getattr(module, "num_parameters", None) != 1:
            followers[str(node.target)] = axis.source
        axis = after


def _through(node: fx.Node, module: nn.Module | None, axis: _Axis, shape: tuple[int, ...]) -> _Axis | None:
    """Return where the outputs are behind an operation; None when it mixes them or is not known."""
    function: Any = node.target if module is None else None
    pooled = next((dims for kind, dims in _POOLING.items() if isinstance(module, kind)), _POOLING_CALLS.get(function))
    if node.meta["shape"] is None:
        return None
    if isinstance(module, _ELEMENTWISE) or function in _ELEMENTWISE_CALLS:
        return axis
    if isinstance(module, _PER_CHANNEL):
        return axis if axis.dim == 1 or getattr(module, "num_parameters", None) == 1 else None
    if pooled:
        return axis if axis.dim < len(shape) - pooled else None
    if isinstance(module, nn.Flatten):
        return _flatten(axis, shape, module.start_dim, module.end_dim)
    if function in ("flatten", torch.flatten):
        names = ("start_dim", "end_dim")
        ends: dict[str, Any] = {"start_dim": 0, "end_dim": -1} | dict(zip(names, node.args[1:], strict=False))
        ends |= node.kwargs
        return _flatten(axis, shape, ends["start_dim"], ends["end_dim"])
    if function in ("view", "reshape", torch.reshape) and len(node.args) > 1:
        sizes: Any = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        kept = node.meta["shape"][0] == shape[0] and len(sizes) == 2 and _is_batch_size(sizes[0]) and sizes[1] == -1
        return _flatten(axis, shape, 1, -1) if kept else None
    return None


def _flatten(axis: _Axis, shape: tuple[int, ...], start: int, end: int) -> _Axis | None:
    start, end = start % len(shape), end % len(shape)
    if not start <= axis.dim <= end:
        return _Axis(axis.dim - (end - start) if axis.dim > end else axis.dim, axis.source)
    if start == 0 and axis.dim != 0:
        return None
    own = [axis.source.numel() if dim == axis.dim else 1 for dim in range(start, end + 1)]
    return _Axis(start, axis.source.reshape(own).expand(shape[start : end + 1]).reshape(-1))


def _feature_dim(module: nn.Module | None, dims: int) -> int:
    return dims - 1 - (0 if isinstance(module, nn.Linear) else 1 if isinstance(module, nn.Conv1d) else 2)


def _module(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def _is_shape(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    method = node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs
    return method or (node.op == "call_function" and node.target is getattr and node.args[1] == "shape")


def _is_batch_size(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return (*node.args[1:], *node.kwargs.values()) == (0,)
    item = node.op == "call_function" and node.target is operator.getitem
    return bool(item and _is_shape(node.args[0]) and node.args[1] == 0)


def _only_asks_batch_size(node: fx.Node) -> bool:
    return _is_batch_size(node) or (
        _is_shape(node) and all(_is_batch_size(user) or not user.users for user in node.users)
    )


def _label(node: fx.Node) -> str:
    module = _module(node)
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    where = next(reversed(node.meta.get("nn_module_stack", {}).values()), None)
    return f"{name} in {where[0]} ({where[1].__name__})" if where else str(name)
