"""Multiply-adds, calls and the bytes of outputs of each module, counted in one run.

torch's own counter (:class:`torch.utils.flop_counter.FlopCounterMode`) sees the operations that run, whatever module or
function calls them: products of matrices, convolutions, attention. Formulas are added here for what it takes for
nothing: products with vectors, oneDNN's LSTM, attention on CPUs, and the fused attention and encoder layers of torch.
Packed layers run no operation of torch: what they multiply follows from their weights and inputs.

Counted are multiply-adds, those with padding included, also of the rows that a padding mask of torch's encoders hides.
Additions of biases, activations, normalizations, pooling, softmax and look-ups count nothing. Of a causal mask the
whole square is counted, as torch computes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from ..attention import PackedMultiheadAttention
from ..cells import PackedCell
from ..convolutions import PackedConv1d, PackedConv2d
from ..formats import Sparse
from ..int8_images import Int8Images
from ..kernels import PackedRecurrent
from ..layers import PackedLinear
from ..recurrent import PackedRecurrentLayer
from .modules import hooked

_ATEN = torch.ops.aten
Shape = tuple[int, ...]


@dataclass
class Counts:
    """What was counted in one run, by module.

    Attributes
    ----------
    calls, own, total, outputs : Counter of Module
        Calls; multiply-adds without and with those of the modules inside; bytes that it returned.

    Examples
    --------
    >>> Counts().calls[nn.ReLU()]
    0
    """

    calls: Counter[nn.Module] = field(default_factory=Counter)
    own: Counter[nn.Module] = field(default_factory=Counter)
    total: Counter[nn.Module] = field(default_factory=Counter)
    outputs: Counter[nn.Module] = field(default_factory=Counter)


def counted(modules: Sequence[nn.Module], call: Callable[[], object], operations: bool = True) -> Counts:
    """Run a model once and count what its modules do.

    Parameters
    ----------
    modules : sequence of Module
    call : callable
        Runs the model.
    operations : bool
        Whether to count multiply-adds.

    Returns
    -------
    Counts

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> found = counted(list(model.modules()), lambda: model(torch.ones(5, 3)))
    >>> found.total[model], found.own[model], found.outputs[model[0]]
    (60, 0, 80)
    """
    watch = _Watch(operations)
    handles: list[RemovableHandle] = []
    nesting = [m for m in modules if isinstance(m, nn.TransformerEncoder) and m.use_nested_tensor]
    try:
        for module in modules:
            handles += hooked(module, watch.enter, watch.leave, with_kwargs=True)
        for encoder in nesting:  # torch's counter knows no nested tensors
            encoder.use_nested_tensor = False
        with torch.no_grad():
            if operations:
                with watch.counter:
                    call()
            else:
                call()
    finally:
        for handle in handles:
            handle.remove()
        for encoder in nesting:
            encoder.use_nested_tensor = True
    return watch.counts


class _Watch:
    def __init__(self, operations: bool) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        self.operations = operations
        self.counts = Counts()
        self.packed = 0
        self.running: list[list[int]] = []  # [operations so far, those of what ran inside]
        self.depth: Counter[nn.Module] = Counter()

    def so_far(self) -> int:
        return self.packed + (self.counter.get_total_flops() // 2 if self.operations else 0)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.depth[module] += 1
        self.running.append([self.so_far(), 0])

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.operations:
            self.packed += packed_operations(module, (*args, *kwargs.values()), output)
        start, inside = self.running.pop()
        ran = self.so_far() - start
        self.counts.calls[module] += 1
        self.counts.own[module] += ran - inside
        self.depth[module] -= 1
        if not self.depth[module]:
            self.counts.total[module] += ran
        if self.running:
            self.running[-1][1] += ran
        self.counts.outputs[module] += _new_bytes((args, kwargs), output)


def packed_operations(module: nn.Module, args: tuple[Any, ...], output: Any) -> int:
    """Return the multiply-adds of one call of a packed layer that torch does not see; 0 of every other module.

    A sparse weight counts its nonzeros, the others all their weights. Attention between packed projections is torch's.

    Examples
    --------
    >>> from pycompress import kernels
    >>> from pycompress.formats import Int8
    >>> layer = PackedLinear(kernels.pack(torch.eye(4), Int8()))
    >>> packed_operations(layer, (torch.ones(3, 4),), torch.ones(3, 4))
    48
    """
    if isinstance(module, PackedLinear):
        per_row = math.prod(module.packed.shape)
        if isinstance(module.packed.format, Sparse):
            per_row = round(per_row * module.packed.density)
        return _rows(args[0]) * per_row
    if isinstance(module, (PackedConv1d, PackedConv2d)):
        values = output.integers if isinstance(output, Int8Images) else output
        each = math.prod(module.packed.shape[1:])
        return round(int(values.numel()) * each * (module.packed.density if isinstance(module.format, Sparse) else 1))
    if isinstance(module, PackedRecurrentLayer):
        return _rows(args[0]) * sum(map(_per_step, module.packed))
    if isinstance(module, PackedCell):
        return _rows(args[0]) * _per_step(module.packed)
    if isinstance(module, PackedMultiheadAttention):
        size = module.embed_dim
        query, key, value = (_rows(x) for x in args[:3])
        return size * (2 * size * query + module.kdim * key + module.vdim * value)
    return 0


def _rows(x: Any) -> int:
    x = x.data if isinstance(x, PackedSequence) else x
    return math.prod(x.shape[:-1])


def _per_step(part: PackedRecurrent) -> int:
    gates = 4 if part.cell == "lstm" else 3
    projection = part.out_size * part.hidden_size if part.has_projection else 0
    return gates * part.hidden_size * (part.input_size + part.out_size) + projection


def _new_bytes(inputs: Any, outputs: Any) -> int:
    """Bytes of the tensors in outputs that are not in the memory of an input."""
    known = {_memory(x) for x in _tensors(inputs)}
    found: dict[tuple[int, int], int] = {}
    for x in _tensors(outputs):
        if _memory(x) not in known:
            found[_memory(x), int(x.storage_offset())] = x.numel() * x.element_size()
    return sum(found.values())


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    leaves = (x.integers if isinstance(x, Int8Images) else x for x in tree_iter(values))
    return [x for x in leaves if isinstance(x, Tensor) and x.layout == torch.strided and x.numel()]


def _vector(matrix: Shape, vector: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _added_vector(start: Shape, matrix: Shape, vector: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _lstm(x: Shape, weight_ih: Shape, weight_hh: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(weight_ih) + math.prod(weight_hh))


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: int,
    heads: int,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    *args: Any,
    out_val: Any = None,
    **kwargs: Any,
) -> int:
    queries, keys = _lengths(query), _lengths(key)
    projections = size * size * (2 * sum(queries) + 2 * sum(keys))
    return 2 * (projections + 2 * size * sum(q * k for q, k in zip(queries, keys, strict=True)))


def _fused_encoder(
    src: Tensor, size: int, heads: int, weight: Tensor, bias: Tensor, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    widths: int = sum(args[place].numel() for place in (0, 9, 11))  # of the output projection and the two linear layers
    lengths = _lengths(src)
    return 2 * (sum(lengths) * (weight.numel() + widths) + 2 * size * sum(n * n for n in lengths))


def _lengths(x: Tensor) -> list[int]:
    """Rows of each item of a batch, also of a nested tensor."""
    return [len(item) for item in x.unbind()] if x.is_nested else [x.shape[1]] * x.shape[0]


for _formula in (_fused_attention, _fused_encoder):
    setattr(_formula, "_get_raw", True)  # noqa: B010  # they take tensors, not their shapes

_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATEN.mv: _vector,
    _ATEN.addmv: _added_vector,
    _ATEN.dot: _vector,
    _ATEN.mkldnn_rnn_layer: _lstm,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._native_multi_head_attention: _fused_attention,
    _ATEN._transformer_encoder_layer_fwd: _fused_encoder,
}
