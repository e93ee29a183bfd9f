"""Multi-head attention whose projections run on packed int8 weights."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import grids, kernels, torch_ops
from .formats import Int8
from .kernels import PackedWeight, arrays
from .layers import LayerDecision, PackedLayer, arrays_like

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CUT = "_cut_parts"


class PackedMultiheadAttention(PackedLayer):
    """Multi-head attention on packed int8 projections, for inference only; called as nn.MultiheadAttention is.

    ``q = linear(query, w_q)``, likewise k and v, each as :func:`pycompress.kernels.linear` computes it; then torch's
    ``softmax(q k^T / sqrt(head_dim) + mask) v`` for each head (Vaswani et al. 2017, arXiv:1706.03762) in the dtype of
    the inputs, and ``linear(..., w_out)``. Where query, key and value are one tensor, they are projected in one call;
    the numbers are the same. There is no dropout.

    Parameters
    ----------
    packed : tuple of PackedWeight
        From :func:`pycompress.kernels.pack` with Int8: (in, out), with shapes [3 * embed_dim, embed_dim] and
        [embed_dim, embed_dim]; or (q, k, v, out), where keys and values have other sizes than queries.
    num_heads : int
    batch_first : bool
        As that of nn.MultiheadAttention.
    decision : LayerDecision, optional
        Why the layer is packed.

    Attributes
    ----------
    embed_dim, kdim, vdim, head_dim : int
        As those of nn.MultiheadAttention.
    bias : bool
        Whether there are biases.
    in_proj_weight, in_proj_bias : None
        Encoder layers of torch look at them, and take their ordinary path without them.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value, or the weights do not fit each other.

    Notes
    -----
    ``state_dict`` holds ``in_proj_weight`` int8 and ``in_proj_scale`` float32, or ``q_proj_weight``, ``q_proj_scale``
    and so on for q, k and v; ``out_proj.weight`` and ``out_proj.scale``; and where they exist ``in_proj_bias`` (or
    ``q_proj_bias`` and so on) and ``out_proj.bias``.

    Examples
    --------
    >>> layer = packed_attention(nn.MultiheadAttention(8, 2, batch_first=True))
    >>> x = torch.zeros(3, 5, 8)
    >>> y, weights = layer(x, x, x)
    >>> y.shape, weights.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    packed: tuple[PackedWeight, ...]
    in_proj_weight = in_proj_bias = None
    bias_k = bias_v = None
    add_zero_attn = False

    def __init__(
        self,
        packed: tuple[PackedWeight, ...],
        num_heads: int,
        batch_first: bool = False,
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, (tuple, list)) or not all(isinstance(part, PackedWeight) for part in packed):
            raise TypeError(f"packed must be a tuple of PackedWeight, got {packed!r:.99}")
        if len(packed) not in (2, 4):
            raise ValueError(f"packed must be (in, out) or (q, k, v, out), got {len(packed)} weights")
        if any(not isinstance(part.format, Int8) or part.input_scale is not None for part in packed):
            raise ValueError(f"packed must be of format Int8 without input scales, got {packed!r:.99}")
        size = packed[-1].shape[0]
        num_heads = arrays.integer(num_heads, "num_heads", 1)
        inside = [(3 * size, size)] if len(packed) == 2 else [(size, part.shape[1]) for part in packed[:3]]
        expected = [*inside, (size, size)]
        found = [part.shape for part in packed]
        if found != expected or packed[0].shape[1] != size or len({part.bias is None for part in packed}) != 1:
            raise ValueError(f"packed must have shapes {expected}, all with a bias or none, got {found}")
        if size % num_heads or not size:
            raise ValueError(f"num_heads must divide the {size} outputs, got {num_heads}")
        super().__init__(tuple(packed), decision)
        self.num_heads, self.batch_first = num_heads, arrays.flag(batch_first, "batch_first")

    @property
    def format(self) -> Int8:
        """How the weights are stored."""
        return cast(Int8, self.packed[0].format)

    @property
    def kernel(self) -> str:
        """The kernel that runs."""
        return self.packed[0].kernel

    @property
    def embed_dim(self) -> int:
        """Size of queries and outputs."""
        return self.packed[-1].shape[0]

    @property
    def head_dim(self) -> int:
        """Size of a query of one head."""
        return self.embed_dim // self.num_heads

    @property
    def kdim(self) -> int:
        """Size of keys."""
        return self.packed[0 if len(self.packed) == 2 else 1].shape[1]

    @property
    def vdim(self) -> int:
        """Size of values."""
        return self.packed[0 if len(self.packed) == 2 else 2].shape[1]

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.packed[0].bias is not None

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return len(self.packed) == 2

    @property
    def sizes(self) -> str:
        """Sizes and heads, for messages."""
        return f"{self.embed_dim}, num_heads={self.num_heads}"

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return (
            f"{self.sizes}, kdim={self.kdim}, vdim={self.vdim}, bias={self.bias}, batch_first={self.batch_first}, "
            f"format={self.format}, kernel={self.kernel!r}"
        )

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        tensors = {}
        for stem, part in zip(stems(len(self.packed) == 4), self.packed, strict=True):
            tensors[stem + "weight"] = torch.from_numpy(part.canonical_weight())
            tensors[stem + "scale"] = torch.tensor(part.scale)
            if part.bias is not None:
                tensors[stem + "bias"] = torch.tensor(part.bias)
        return tensors

    def repacked(self, tensors: dict[str, Any]) -> tuple[PackedWeight, ...]:
        """Pack tensors that stand for the canonical ones."""
        found = arrays_like(self.canonical_tensors(), tensors)
        return pack_parts(found, len(self.packed) == 4)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, their shapes and what is returned are those of nn.MultiheadAttention.

        Raises
        ------
        TypeError, ValueError
            When an argument does not fit the layer or the others, or requires grad while grad mode is on.
        """
        self._check(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask must be given with is_causal=True, as to nn.MultiheadAttention")
        batched = query.ndim == 3
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q[:, None], k[:, None], v[:, None]
        if not batched or not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v))
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else _mask(q, k, attn_mask, key_padding_mask, batched)
        weights = None
        if need_weights:
            scores = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            y = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, 0.0, hint)
        y = y.transpose(1, 2).reshape(q.shape[0], q.shape[2], self.embed_dim)
        y = _linear(y.contiguous(), self.packed[-1])
        if not batched:
            return y[0], weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if len(self.packed) == 4:
            q, k, v, _ = self.packed
            return _linear(query, q), _linear(key, k), _linear(value, v)
        if query is key and key is value:
            return cast("tuple[Tensor, Tensor, Tensor]", _linear(query, self.packed[0]).chunk(3, dim=-1))
        if torch.compiler.is_compiling():  # nothing is packed while a model is traced
            size, whole = self.embed_dim, self.packed[0]
            found = [_linear(x, whole)[..., i * size : (i + 1) * size] for i, x in enumerate((query, key, value))]
            return found[0], found[1], found[2]
        q, k, v = self._parts()
        return _linear(query, q), _linear(key, k), _linear(value, v)

    def _parts(self) -> tuple[PackedWeight, ...]:
        """Packed weights for q, k and v, made when they are first needed."""
        cached: Any = self.__dict__.get(_CUT)
        if cached is None or cached[0] is not self.packed[0]:
            whole, size = self.packed[0], self.embed_dim
            weight, scale, bias = whole.canonical_weight(), whole.scale, whole.bias
            assert scale is not None
            cuts = [slice(i * size, (i + 1) * size) for i in range(3)]
            made = tuple(kernels.pack(weight[c], Int8(), None if bias is None else bias[c], scale[c]) for c in cuts)
            cached = self.__dict__[_CUT] = whole, made
        return cast("tuple[PackedWeight, ...]", cached[1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _CUT}

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        given = {"query": (query, self.embed_dim), "key": (key, self.kdim), "value": (value, self.vdim)}
        for name, (x, size) in given.items():
            self._check_input(x, name)
            if x.is_nested or x.layout != torch.strided:
                raise ValueError(f"{name} must be a dense tensor, got layout {x.layout}")
            if x.dtype not in _DTYPES or x.dtype != query.dtype:
                raise TypeError(f"{name} must be float32, float16 or bfloat16 as query is, got {arrays.describe(x)}")
            if x.ndim not in (2, 3) or x.ndim != query.ndim or x.shape[-1] != size:
                raise ValueError(f"{name} must be 2-D or 3-D as query is with size {size}, got {arrays.describe(x)}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(f"value must have as many rows as key, got {tuple(value.shape)} and {tuple(key.shape)}")
        side = 0 if self.batch_first else 1
        if query.ndim == 3 and query.shape[side] != key.shape[side]:
            raise ValueError(f"key must have the batch of query, got {tuple(key.shape)} and {tuple(query.shape)}")


def _linear(x: Tensor, packed: PackedWeight) -> Tensor:
    if torch.compiler.is_compiling():
        return torch_ops.traced_linear(x, packed, None)
    return cast(Tensor, kernels.linear(x, packed))


def _mask(
    q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, batched: bool
) -> Tensor | None:
    """Return what is added to scores [batch, heads, queries, keys], or None."""
    batch, heads, queries = q.shape[:3]
    keys = k.shape[2]
    found: Tensor | None = None
    if attn_mask is not None:
        own = _added(attn_mask, "attn_mask", q.dtype)
        if own.shape == (queries, keys):
            found = own
        elif own.shape == (batch * heads, queries, keys):
            found = own.reshape(batch, heads, queries, keys)
        else:
            allowed = f"{(queries, keys)} or {(batch * heads, queries, keys)}"
            raise ValueError(f"attn_mask must have shape {allowed}, got {tuple(own.shape)}")
    if key_padding_mask is not None:
        own = _added(key_padding_mask, "key_padding_mask", q.dtype)
        expected = (batch, keys) if batched else (keys,)
        if own.shape != expected:
            raise ValueError(f"key_padding_mask must have shape {expected}, got {tuple(own.shape)}")
        own = own.reshape(batch, 1, 1, keys)
        found = own if found is None else found + own
    return found


def _added(mask: object, name: str, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added: minus infinity where a bool one is True."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    if not mask.is_floating_point():
        raise TypeError(f"{name} must be bool or float, got {arrays.describe(mask)}")
    return mask.to(dtype)


def stems(apart: bool) -> tuple[str, ...]:
    """Return how the names of the tensors of each packed weight begin.

    Examples
    --------
    >>> stems(False)
    ('in_proj_', 'out_proj.')
    """
    return ("q_proj_", "k_proj_", "v_proj_", "out_proj.") if apart else ("in_proj_", "out_proj.")


def pack_parts(tensors: dict[str, Any], apart: bool) -> tuple[PackedWeight, ...]:
    """Pack the weights of attention from their canonical tensors, by the names of ``state_dict``."""
    found = ({part: tensors.get(stem + part) for part in ("weight", "bias", "scale")} for stem in stems(apart))
    return tuple(kernels.pack(own["weight"], Int8(), own["bias"], own["scale"]) for own in found)


def obstacle(layer: nn.MultiheadAttention) -> str:
    """Return why no packed layer can stand in for this attention, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.MultiheadAttention(4, 2)), obstacle(nn.MultiheadAttention(4, 2, add_zero_attn=True))
    ('', 'it adds a key of zeros (add_zero_attn)')
    """
    if type(layer).forward is not nn.MultiheadAttention.forward or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    if layer.bias_k is not None or layer.bias_v is not None:
        return "it adds a learned key (bias_k, bias_v)"
    if layer.add_zero_attn:
        return "it adds a key of zeros (add_zero_attn)"
    names = ("in_proj_weight",) if layer._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    weights = [*(layer._parameters.get(name) for name in names), layer.out_proj._parameters.get("weight")]
    if any(weight is None for weight in weights):
        return "its weights are computed by a parametrization, which must be removed first"
    if any(m._forward_hooks or m._forward_pre_hooks for m in (layer, layer.out_proj)):
        return "it has forward hooks, which must be removed first"
    dtypes = {parameter.dtype for parameter in layer.parameters()}
    if not dtypes <= set(_DTYPES):
        return "its weights are " + ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return ""


def packed_attention(layer: nn.MultiheadAttention, decision: LayerDecision | None = None) -> PackedMultiheadAttention:
    """Return the packed int8 layer of an nn.MultiheadAttention; its dropout, which eval mode skips, is dropped.

    Weights on recorded Int8 grids keep exactly their integers.

    Parameters
    ----------
    layer : nn.MultiheadAttention
    decision : LayerDecision, optional

    Returns
    -------
    PackedMultiheadAttention
        In eval mode.

    Raises
    ------
    TypeError, ValueError
        When it is no such layer, or there is an :func:`obstacle`.

    Examples
    --------
    >>> packed_attention(nn.MultiheadAttention(8, 2, kdim=5)).kdim
    5
    """
    if not isinstance(layer, nn.MultiheadAttention):
        raise TypeError(f"layer must be an nn.MultiheadAttention, got {type(layer).__name__}")
    if fault := obstacle(layer):
        raise ValueError(f"layer must be one that can be packed: {fault}")
    apart = not layer._qkv_same_embed_dim
    own: dict[str, Any] = {}
    for stem in stems(apart):
        holder, name = (layer.out_proj, "weight") if stem == "out_proj." else (layer, f"{stem}weight")
        own[f"{stem}weight"] = cast(Tensor, holder._parameters[name]).detach()
        if (on_grid := grids.int8_of(holder, name)) is not None:
            own[f"{stem}weight"], own[f"{stem}scale"] = on_grid
    if layer.in_proj_bias is not None:
        bias = layer.in_proj_bias.detach()
        own |= {f"{part}_proj_bias": b for part, b in zip("qkv", bias.chunk(3), strict=True)} if apart else {}
        own |= {"in_proj_bias": bias, "out_proj.bias": layer.out_proj.bias.detach()}
    return PackedMultiheadAttention(pack_parts(own, apart), layer.num_heads, layer.batch_first, decision).eval()
