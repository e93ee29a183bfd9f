"""The graph of a model by torch.fx, and what each of its values is when it runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

from ..calls import copy_of
from ..data import Tree, forward
from .operations import KNOWN, LOSERS, TABLES, is_block
from .sizes import Attribute, give_sources_, now

_FACTORIES = (
    torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.tensor,
    rnn.pack_padded_sequence, rnn.pad_packed_sequence,
)  # fmt: skip
"""Functions that torch.fx does not see called with the values that it follows."""
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


@dataclass(frozen=True)
class Seen:
    """What a node gave: the shape of a tensor (of the data, packed), the parts of a tuple with tensors, or a value."""

    shape: tuple[int, ...] | None = None
    parts: tuple[Seen, ...] | None = None
    value: Any = None
    boolean: bool = field(default=False, repr=False)


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
    decided : set of nodes
        Numbers that the forward counted its steps by or compared: they are constants in the graph.
    """

    graph: fx.Graph
    probe: nn.Module
    inputs: list[Any]
    seen: dict[fx.Node, Seen]
    decided: set[fx.Node]

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


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


class _Tracer(fx.Tracer):
    """Runs every node as soon as it is recorded, so that loops over sizes and questions about them can be answered."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=_FACTORIES)
        self._autowrap_search += [torch, rnn]
        self.given = given
        self.values: dict[fx.Node, Any] = {}
        self.seen: dict[fx.Node, Seen] = {}
        self.decided: set[fx.Node] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        childless = next(m.children(), None) is None
        if is_block(m):
            return True
        known = isinstance(m, (*LOSERS, *KNOWN))
        return bool(known or (own and childless) or super().is_leaf_module(m, module_qualified_name))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any) -> Any:
        # An argument that is not given has its default: None, say, which a proxy would not be.
        if kind == "placeholder" and args and target not in self.given:
            return args[0]
        return super().create_proxy(kind, target, args, *rest, **options)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        if kind != "output":
            with _untraced():
                self.values[node] = self._computed(node)
            self.seen[node] = seen_of(self.values[node])
        return node

    def _computed(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        target: Any = node.target
        if node.op == "placeholder":
            return self.given[target.removeprefix("*")]
        if node.op == "get_attr":
            return _attribute(self.root, target)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return (self.root.get_submodule(target) if node.op == "call_module" else target)(*args, **kwargs)

    def number(self, proxy: fx.Proxy) -> Any:
        """Return the value of a number, which is a constant in the graph from here on."""
        value = self.values[proxy.node]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("the values of a tensor decide what the model does")
        self.decided.add(proxy.node)
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.number(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return (obj[i] for i in range(_length(obj)))  # type: ignore[index]


def _length(proxy: Any) -> int:
    tracer: _Tracer = proxy.tracer
    value = tracer.values[proxy.node]
    return int(tracer.number(proxy.size(0))) if isinstance(value, Tensor) else len(value)


class _Proxy(fx.Proxy):
    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)

    def __len__(self) -> int:
        return _length(self)

    def __int__(self) -> int:
        return int(self.tracer.number(self))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.number(self))  # type: ignore[attr-defined]


class _Attribute(fx.proxy.Attribute):
    __getattr__, __len__, __int__, __float__ = _Proxy.__getattr__, _Proxy.__len__, _Proxy.__int__, _Proxy.__float__


def _range(*bounds: Any) -> range:
    def constant(bound: Any) -> Any:
        return bound.tracer.number(bound) if isinstance(bound, _Proxy | _Attribute) else bound  # type: ignore[attr-defined]

    return range(*map(constant, bounds))


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Run modules as they are inside a trace."""
    call, get = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = call, get  # type: ignore[method-assign]


@contextlib.contextmanager
def _counting(model: nn.Module) -> Iterator[None]:
    """Let the forwards of a model count by sizes: ``range`` takes no proxies otherwise."""
    forwards = (inspect.unwrap(type(module).forward) for module in model.modules())
    places = {id(f.__globals__): f.__globals__ for f in forwards if not f.__module__.startswith("torch.")}
    changed = [names for names in places.values() if "range" not in names]
    for names in changed:
        names["range"] = _range
    try:
        yield
    finally:
        for names in changed:
            del names["range"]


class _Recorder(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, changed: Mapping[Attribute, int]) -> None:
        super().__init__(module, graph=graph)
        self.seen: dict[fx.Node, Seen] = {}
        self.changed = changed

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given: Any = fx.node.map_aggregate((n.args, n.kwargs), functools.partial(now, changed=self.changed))
        args, kwargs = given
        return self.map_nodes_to_values(args, n), self.map_nodes_to_values(kwargs, n)  # type: ignore[return-value]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen[n] = seen_of(result)
        return result


def seen_of(result: Any) -> Seen:
    """Return what is remembered of a value.

    Examples
    --------
    >>> seen_of((torch.zeros(2), None)).parts
    (Seen(shape=(2,), parts=None, value=None), Seen(shape=None, parts=None, value=None))
    """
    if _is_plain(result):
        return Seen(value=result)
    if isinstance(result, rnn.PackedSequence):
        result = result.data
    if isinstance(result, Tensor):
        return Seen(shape=tuple(result.shape), boolean=result.dtype == torch.bool)
    return Seen(parts=tuple(map(seen_of, result)) if isinstance(result, (tuple, list)) else ())


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
    probe = copy_of(model).eval()
    with torch.no_grad():
        give_sources_(probe, (*LOSERS, *KNOWN))
        try:
            bind = inspect.signature(probe.forward).bind
            if isinstance(example_inputs, dict):
                given = bind(**example_inputs).arguments
            else:
                given = bind(*(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))).arguments
            tracer = _Tracer(given)
            with _counting(probe):
                graph = tracer.trace(probe)
            values: list[Any] = []
            for node in graph.find_nodes(op="placeholder"):
                name = str(node.target)
                values += given[name[1:]] if name.startswith("*") else [given[name]]
        except Exception as error:
            forward(copy_of(model).eval(), example_inputs, "example_inputs")  # raises where it is the inputs
            raise ValueError(f"model must be one that torch.fx can trace, got the error: {error}") from error
    return Trace(graph, probe, values, tracer.seen, tracer.decided)


def run(
    traced: Trace, model: nn.Module, changed: Mapping[Attribute, int] | None = None
) -> tuple[dict[fx.Node, Seen], Any]:
    """Return what the nodes of a graph give with the modules of another model, and its outputs.

    Sizes that are attributes of modules are those in ``changed``.

    Examples
    --------
    >>> traced = trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    >>> [seen.shape for seen in run(traced, nn.Sequential(nn.Linear(3, 1)))[0].values()]
    [(1, 3), (1, 1), (1, 1)]
    """
    model = copy_of(model).eval()
    for node in traced.graph.find_nodes(op="get_attr"):  # tensors that the forward makes are kept by the tracer
        if not hasattr(model, name := str(node.target).partition(".")[0]):
            setattr(model, name, getattr(traced.probe, name))
    with torch.no_grad():
        recorder = _Recorder(model, traced.graph, changed or {})
        outputs = recorder.run(*traced.inputs)
    return recorder.seen, outputs


def losing_layers(traced: Trace) -> list[str]:
    """Return the names of the layers whose outputs are used inside the model: they have another layer behind them.

    Those inside an encoder layer of torch count, and attention, whose heads nobody else sees.

    Parameters
    ----------
    traced : Trace

    Returns
    -------
    list of str, in the order of their calls

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid())
    >>> losing_layers(trace(model, torch.zeros(1, 3)))
    ['0']
    """
    behind: dict[fx.Node, bool] = {}
    for node in reversed(traced.graph.nodes):
        behind[node] = any(behind[user] or _takes(traced.module(user)) for user in node.users)
    names = []
    for node in traced.graph.nodes:
        module = traced.module(node)
        if module is None:
            continue
        if is_block(module):
            for name, child in module.named_modules(prefix=str(node.target)):
                if isinstance(child, nn.MultiheadAttention):
                    names.append(name)
                elif isinstance(child, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
                    names.append(f"{name}.linear1")
        elif isinstance(module, LOSERS) and (behind[node] or isinstance(module, nn.MultiheadAttention)):
            names.append(str(node.target))
    return list(dict.fromkeys(names))


def _takes(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, TABLES) and (isinstance(module, LOSERS) or is_block(module))
