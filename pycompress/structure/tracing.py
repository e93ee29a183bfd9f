"""The graph of a model by torch.fx, and what each of its values is when it runs."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..data import Tree, forward
from ..selection import LAYERS
from .operations import KNOWN


@dataclass(frozen=True)
class Seen:
    """What a node gave: the shape of a tensor, those of a tuple with tensors (None for others), or a plain value."""

    shape: tuple[int, ...] | None = None
    parts: tuple[tuple[int, ...] | None, ...] | None = None
    value: Any = None


@dataclass(frozen=True)
class Trace:
    """The graph of a model in eval mode.

    Attributes
    ----------
    graph : torch.fx.Graph
    probe : nn.Module
        The copy of the model that was traced.
    inputs : list
        The values of its placeholders.
    seen : dict of node to Seen
    """

    graph: fx.Graph
    probe: nn.Module
    inputs: list[Any]
    seen: dict[fx.Node, Seen]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.probe.get_submodule(str(node.target)) if node.op == "call_module" else None

    def place(self, node: fx.Node) -> str:
        """Return what a node is called in a message."""
        module = self.module(node)
        if module is not None:
            return f"{node.target} ({type(module).__name__})"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
        where = next(reversed(node.meta.get("nn_module_stack", {}).values()), None)
        inside = where is not None and where[0]
        return f"{name} in {where[0]} ({where[1].__name__})" if where and inside else str(name)


class _Tracer(fx.Tracer):
    def __init__(self, given: set[str]) -> None:
        super().__init__()
        self.given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        childless = next(m.children(), None) is None
        known = isinstance(m, (*LAYERS, *KNOWN))
        return bool(known or (own and childless) or super().is_leaf_module(m, module_qualified_name))

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> Any:
        # An argument that is not given has its default: None, say, which a proxy would not be.
        if kind == "placeholder" and args and target not in self.given:
            return args[0]
        return super().create_proxy(kind, target, args, *rest, **options)


class _Recorder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.seen: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if _is_plain(result):
            self.seen[n] = Seen(value=result)
        elif isinstance(result, Tensor):
            self.seen[n] = Seen(shape=tuple(result.shape))
        else:
            parts = result if isinstance(result, (tuple, list)) else ()
            self.seen[n] = Seen(parts=tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in parts))
        return result


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float, str, torch.dtype, torch.device))


def trace(model: nn.Module, example_inputs: Tree) -> Trace:
    """Return the graph of a model in eval mode, run once on example inputs.

    Parameters
    ----------
    model : nn.Module
        Not changed: a copy is traced.
    example_inputs : tensor, or tuple or dict of tensors

    Returns
    -------
    Trace

    Raises
    ------
    ValueError
        When the model does not accept the inputs, or ``torch.fx`` cannot trace it.

    Examples
    --------
    >>> traced = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3))
    >>> [(traced.place(node), seen.shape) for node, seen in traced.seen.items() if node.op == "call_module"]
    [('0 (Linear)', (1, 2)), ('1 (ReLU)', (1, 2))]
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
            graph = _Tracer(set(given)).trace(probe)
            values: list[Any] = []
            for node in graph.find_nodes(op="placeholder"):
                name = str(node.target)
                values += given[name[1:]] if name.startswith("*") else [given[name]]
            recorder = _Recorder(probe, graph)
            recorder.run(*values)
        except Exception as error:
            raise ValueError(f"model must be one that torch.fx can trace, got the error: {error}") from error
    return Trace(graph, probe, values, recorder.seen)


def run(traced: Trace, model: nn.Module) -> tuple[dict[fx.Node, Seen], Any]:
    """Return what the nodes of a graph give with the modules of another model, and its outputs.

    Examples
    --------
    >>> traced = trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    >>> [seen.shape for seen in run(traced, nn.Sequential(nn.Linear(3, 1)))[0].values()]
    [(1, 3), (1, 1), (1, 1)]
    """
    model = copy.deepcopy(model).eval()
    for node in traced.graph.find_nodes(op="get_attr"):  # tensors that the forward makes are kept by the tracer
        if not hasattr(model, name := str(node.target).partition(".")[0]):
            setattr(model, name, getattr(traced.probe, name))
    with torch.no_grad():
        recorder = _Recorder(model, traced.graph)
        outputs = recorder.run(*traced.inputs)
    return recorder.seen, outputs


def layers_before_last(traced: Trace) -> list[str]:
    """Return the names of the Linear, Conv1d and Conv2d layers that have another such layer behind them.

    Parameters
    ----------
    traced : Trace

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
    for node in reversed(traced.graph.nodes):
        behind[node] = any(behind[user] or isinstance(traced.module(user), LAYERS) for user in node.users)
    names = [
        str(node.target) for node in traced.graph.nodes if isinstance(traced.module(node), LAYERS) and behind[node]
    ]
    return list(dict.fromkeys(names))
