"""Multi-head attention that has lost some of its heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FewerHeads(nn.MultiheadAttention):
    """nn.MultiheadAttention with fewer heads than its embedding has room for; dense, trainable, called as torch's is.

    ``head_i = softmax(q_i k_i^T / sqrt(head_dim) + mask) v_i`` for the heads that are left, and
    ``out_proj(concat(head_1, ..., head_n))`` (Vaswani et al. 2017, arXiv:1706.03762). torch's own class computes the
    size of a head from the number of heads, and cannot. :func:`fewer_heads_` makes one.

    Attributes
    ----------
    embed_dim, kdim, vdim, head_dim : int
        Those of the original.
    num_heads : int
        Heads that are left.
    in_proj_weight, in_proj_bias, q_proj_weight, k_proj_weight, v_proj_weight, out_proj
        As in the original, with ``num_heads * head_dim`` rows for each of q, k and v, and columns in ``out_proj``.

    Examples
    --------
    >>> layer = nn.MultiheadAttention(8, 4, batch_first=True)
    >>> layer.in_proj_weight = nn.Parameter(torch.randn(3 * 6, 8))
    >>> layer.in_proj_bias, layer.out_proj.weight = nn.Parameter(torch.zeros(18)), nn.Parameter(torch.randn(8, 6))
    >>> fewer_heads_(layer, 3)
    >>> x = torch.zeros(2, 5, 8)
    >>> layer(x, x, x)[0].shape, layer.num_heads
    (torch.Size([2, 5, 8]), 3)
    """

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
        """Attend; arguments, their shapes and what is returned are those of nn.MultiheadAttention."""
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        q, k, v = self._heads_of(q), self._heads_of(k), self._heads_of(v)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else self._mask(q, k, attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            scores = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), self.dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, hint)
        y = F.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return y[0], weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value and self.in_proj_weight is not None:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        inputs = (query, key, value)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.in_proj_weight is not None:
            weights: Any = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _heads_of(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return what is added to scores [batch, heads, queries, keys], or None."""
        found = None
        if attn_mask is not None:
            found = _added(attn_mask, q.dtype)
            if found.dim() == 3:
                found = found.reshape(q.shape[0], self.num_heads, q.shape[2], k.shape[2])
        if padding is not None:
            own = _added(padding, q.dtype)[:, None, None]
            found = own if found is None else found + own
        return found


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)


def fewer_heads_(layer: nn.MultiheadAttention, heads: int) -> None:
    """Make attention work whose tensors have been cut to some of its heads.

    Parameters
    ----------
    layer : nn.MultiheadAttention
        Changed in place: its class, and ``num_heads``. ``head_dim`` stays.
    heads : int
        Heads that are left.

    Examples
    --------
    >>> layer = nn.MultiheadAttention(8, 4)
    >>> fewer_heads_(layer, 3)
    >>> type(layer).__name__, layer.num_heads, layer.head_dim
    ('FewerHeads', 3, 2)
    """
    layer.num_heads = heads
    layer.__class__ = FewerHeads
    layer._qkv_same_embed_dim = False  # keeps encoder layers of torch from their fused path, which reads the weights


def keep_plain_(model: nn.Module) -> None:
    """Let encoders of torch hand plain tensors to attention with fewer heads: nested ones are for their fused path.

    Examples
    --------
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 9, batch_first=True), 1)
    >>> fewer_heads_(encoder.layers[0].self_attn, 1)
    >>> keep_plain_(encoder)
    >>> encoder.use_nested_tensor
    False
    """
    for encoder in model.modules():
        inside = encoder.layers.modules() if isinstance(encoder, nn.TransformerEncoder) else ()
        if any(isinstance(module, FewerHeads) for module in inside):
            encoder.use_nested_tensor = False  # type: ignore[assignment]
