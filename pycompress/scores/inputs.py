"""What each weight of a layer multiplies: the squared norms of its inputs, for every kind of layer that is pruned."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..selection import HOLDERS, LAYERS, TABLES, owners, place_of
from .running import layer_weight

Squares = dict[str, Tensor]
"""Sums of squared inputs, float64, by the name of the weight: [inputs] or what broadcasts to the weight's shape."""


@contextlib.contextmanager
def watched_squares(
    model: nn.Module, layers: Mapping[str, nn.Module], add: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``add(name, squares)`` for each layer whenever it runs inside the block.

    Parameters
    ----------
    model : Module
    layers : dict of name to module
        As ``select_weights`` gives them.
    add : callable

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> with watched_squares(layer, {"fc": layer}, lambda name, squares: print(name, squares.tolist())):
    ...     _ = layer(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
    fc [5.0, 9.0]
    """
    # Attention reads the weight of its output projection without calling it.
    attention = {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    wanted: dict[nn.Module, list[tuple[str, str]]] = {}
    for name, layer in layers.items():
        # A shared weight multiplies the inputs of all its layers.
        holders = owners(model, cast(nn.Parameter, layer.weight))
        known = [place for place in holders if isinstance(place[0], (*LAYERS, *TABLES, *HOLDERS))]
        for module, attribute in known or [place_of(layer)]:
            if module in attention:
                module, attribute = attention[cast(Any, module)], "out_proj.weight"
            wanted.setdefault(module, []).append((attribute, name))

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = squares(module, args, kwargs)
        for attribute, name in wanted[module]:
            if attribute in found:
                add(name, found[attribute])

    handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def squares(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Squares:
    """Return the squares of one call of a layer, by the names of its weights.

    Those of ``weight_hr``, the projection of an LSTM, are not among them: what it multiplies never leaves the layer.

    Examples
    --------
    >>> lstm = nn.LSTM(2, 3)
    >>> found = squares(lstm, (torch.ones(5, 1, 2),), {})
    >>> found["weight_ih_l0"], found["weight_hh_l0"].shape
    (tensor([5., 5.], dtype=torch.float64), torch.Size([3]))
    """
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    x, state = (*given.values(), None)[:2]
    with torch.no_grad():
        if isinstance(module, nn.RNNBase):
            return _recurrent(module, x, state)
        if isinstance(module, nn.RNNCellBase):
            return _cell(module, x, state)
        if isinstance(module, nn.MultiheadAttention):
            return _attention(module, given)
        if isinstance(module, TABLES):
            return {"weight": torch.bincount(x.flatten(), minlength=len(layer_weight(module))).double()[:, None]}
        return {"weight": _sums(x) if isinstance(module, nn.Linear) else _convolution(module, x)}


def _sums(x: Any) -> Tensor:
    """Sum of squares over all but the last dimension: [features] float64."""
    x = x.data if isinstance(x, PackedSequence) else x
    x = x.to_padded_tensor(0.0) if x.is_nested else x
    rows: Tensor = x.detach().reshape(-1, x.shape[-1])
    return rows.double().square().sum(0)


def _convolution(module: nn.Module, x: Tensor) -> Tensor:
    # The derivative of sum(conv(x^2)) with respect to a weight is the sum of the x^2 that it multiplies.
    with torch.enable_grad():
        weight = torch.zeros(layer_weight(module).shape, dtype=torch.float64, device=x.device, requires_grad=True)
        y = cast(nn.Conv2d, module)._conv_forward(x.double().square(), weight, None)
        return torch.autograd.grad(y.sum(), weight)[0]


def _recurrent(layer: nn.RNNBase, x: Any, states: Any) -> Squares:
    """Run layer by layer; steps multiply the states that they start from: the first and all outputs but the last."""
    directions = 2 if layer.bidirectional else 1
    found: Squares = {}
    for i in range(layer.num_layers):
        one, own = _single(layer, i), slice(i * directions, (i + 1) * directions)
        first = tuple(s[own] for s in states) if isinstance(states, tuple) else None if states is None else states[own]
        y, last = one(x, first)
        h_first: Any = first[0] if isinstance(first, tuple) else first
        h_last = last[0] if isinstance(last, tuple) else last
        whole = _sums(y)
        size = len(whole) // directions
        for way in range(directions):
            suffix = f"_l{i}" + ("_reverse" if way else "")
            steps = whole[way * size : (way + 1) * size] - _sums(h_last[way])
            start = 0.0 if h_first is None else _sums(h_first[way])
            found[f"weight_ih{suffix}"] = _sums(x)
            found[f"weight_hh{suffix}"] = steps.clamp_min(0) + start
        x = y
    return found


def _single(layer: nn.RNNBase, i: int) -> nn.RNNBase:
    """Return one layer of a recurrent one, with the very same parameters."""
    kind = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(layer, kind))
    more: dict[str, Any] = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    more |= {"proj_size": layer.proj_size} if layer.proj_size else {}
    width = layer.input_size
    if i:
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    made = kind(
        *(width, layer.hidden_size),
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        device="meta",
        **more,
    )
    for name in made._flat_weights_names:
        setattr(made, name, getattr(layer, name.replace("_l0", f"_l{i}")))
    return made.eval()


def _cell(cell: nn.RNNCellBase, x: Tensor, state: Any) -> Squares:
    h = state[0] if isinstance(state, (tuple, list)) else state
    zeros = torch.zeros(cell.hidden_size, dtype=torch.float64, device=x.device)
    return {"weight_ih": _sums(x), "weight_hh": zeros if h is None else _sums(h)}


def _attention(layer: nn.MultiheadAttention, given: dict[str, Any]) -> Squares:
    q, k, v = (_sums(given[name]) for name in ("query", "key", "value"))
    size = layer.num_heads * layer.head_dim  # less than the embedding where heads were removed
    found = {"q_proj_weight": q, "k_proj_weight": k, "v_proj_weight": v}
    if layer.in_proj_weight is not None:
        found = {"in_proj_weight": torch.stack([q, k, v]).repeat_interleave(size, dim=0)}
    same = copy.copy(layer)  # that gives out what the output projection takes
    identity = copy.copy(layer.out_proj)
    weight = layer.out_proj.weight
    identity._parameters = {
        "weight": nn.Parameter(torch.eye(size, dtype=weight.dtype, device=weight.device), requires_grad=False),
        "bias": None if layer.out_proj.bias is None else nn.Parameter(weight.new_zeros(size)),
    }
    same._modules = {"out_proj": identity}
    attended, _ = same.forward(**given)
    return {**found, "out_proj.weight": _sums(attended)}
