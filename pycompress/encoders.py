"""Encoder layers of torch have a fused path that reads the weights of their parts: which take it, how they leave it.

On the ordinary path the numbers are the same but for rounding, with two exceptions that torch has too: at padded
positions a whole nn.TransformerEncoder gives zeros on its fused path alone (nested tensors), and other numbers there on
its ordinary one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import activation_of
from .kernels.ops import Activation
from .layers import PackedLayer, PackedLinear

PARTS = ("self_attn", "linear1", "linear2")
"""What an encoder layer's fused path reads the weights of."""

_SWITCH = "activation_relu_or_gelu"  # 0: some other activation, for which there is no fused path


def is_fused(layer: nn.Module) -> bool:
    """Whether a module is an encoder layer of torch that takes its fused path, where inputs and modes allow it.

    Examples
    --------
    >>> is_fused(nn.TransformerEncoderLayer(8, 2, 9, batch_first=True)), is_fused(nn.TransformerEncoderLayer(8, 2, 9))
    (True, False)
    """
    if not isinstance(layer, nn.TransformerEncoderLayer) or not is_plain(layer):
        return False
    attention = layer._modules.get("self_attn")
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and bool(getattr(layer, _SWITCH))
        and getattr(layer.norm1, "eps", None) == getattr(layer.norm2, "eps", None)
    )


def is_plain(layer: nn.Module) -> bool:
    """Whether an encoder layer has torch's own forward, which reads weights on its fused path alone.

    Examples
    --------
    >>> is_plain(nn.TransformerEncoderLayer(8, 2, 9)), is_plain(nn.Linear(2, 1))
    (True, False)
    """
    own = "forward" in layer.__dict__ or type(layer).forward is not nn.TransformerEncoderLayer.forward
    return isinstance(layer, nn.TransformerEncoderLayer) and not own


def pass_on(x: Tensor) -> Tensor:
    """Return x: what an encoder layer calls in place of the activation that its packed layer computes.

    Examples
    --------
    >>> pass_on(torch.ones(1))
    tensor([1.])
    """
    return x


_FUNCTIONS: dict[Any, Activation] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu"}


def _activation(block: nn.Module) -> Activation | None:
    """Which activation of the kernels a block of a transformer has behind its first linear layer."""
    value = block.__dict__.get("activation", block._modules.get("activation"))
    if not isinstance(value, nn.Module):
        return _FUNCTIONS.get(value)
    return None if value._forward_hooks or value._forward_pre_hooks else activation_of(value)


def _is_block(module: nn.Module) -> bool:
    """Whether this is an encoder or decoder layer of torch whose code is torch's own."""
    for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        if isinstance(module, kind):
            names = ("forward", "_ff_block")
            return not any(n in module.__dict__ or getattr(type(module), n) is not getattr(kind, n) for n in names)
    return False


def fuse_activations_(model: nn.Module) -> None:
    """Let packed layers compute the activations behind them in encoder and decoder layers of torch.

    :func:`take_ordinary_path_` then takes the activations out.

    Examples
    --------
    >>> from pycompress import kernels
    >>> from pycompress.formats import Int8
    >>> block = nn.TransformerDecoderLayer(8, 2, 9)
    >>> block.linear1 = PackedLinear(kernels.pack(torch.ones(9, 8), Int8()))
    >>> fuse_activations_(block)
    >>> block.linear1.activation
    'relu'
    """
    places = Counter(child for module in model.modules() for child in module._modules.values())
    blocks = [module for module in model.modules() if _is_block(module)]
    found: dict[nn.Module | None, list[Activation | None]] = {}
    for block in blocks:
        found.setdefault(block._modules.get("linear1"), []).append(_activation(block))
    for layer, names in found.items():
        alone = len(names) == places[layer] and len(set(names)) == 1
        if type(layer) is PackedLinear and alone and not (layer._forward_hooks or layer._forward_pre_hooks):
            layer.activation = layer.activation or names[0]


def take_ordinary_path_(model: nn.Module) -> None:
    """Let encoder layers with packed parts leave their fused path, and encoders hand them plain tensors.

    Activations that packed layers compute in encoder and decoder layers are taken out.

    Examples
    --------
    >>> from pycompress.attention import packed_attention
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 9, batch_first=True), 1)
    >>> encoder.layers[0].self_attn = packed_attention(encoder.layers[0].self_attn)
    >>> take_ordinary_path_(encoder)
    >>> encoder.use_nested_tensor
    False
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_packed(module):
            setattr(module, _SWITCH, 0)
        if _is_block(module) and getattr(module._modules.get("linear1"), "activation", None) is not None:
            module.__dict__["activation"] = pass_on  # before a module of this name, which stays for its name
        if isinstance(module, nn.TransformerEncoder):
            inside = module.layers.modules()
            if any(isinstance(part, PackedLayer) for part in inside):
                module.use_nested_tensor = False


def _has_packed(layer: nn.Module) -> bool:
    return any(isinstance(layer._modules.get(part), PackedLayer) for part in PARTS)


@dataclass(frozen=True)
class Fused:
    """What encoder layers were on their fused path.

    Attributes
    ----------
    switches : dict of name to int
        Of each encoder layer.
    parts : dict of name to module
        What they read the weights of.
    nested : dict of name to bool
        Whether encoders used nested tensors.
    activations : dict of name to function or None
        Of each encoder layer; None where it is a module.
    """

    switches: dict[str, int]
    parts: dict[str, nn.Module]
    nested: dict[str, bool]
    activations: dict[str, Any]


def leave_fused_path_(model: nn.Module) -> Fused:
    """Let all encoder layers take their ordinary path, so that each of their parts is called by itself.

    Returns
    -------
    Fused
        What :func:`restore_` needs; without switches where there was no such layer.

    Examples
    --------
    >>> layer = nn.TransformerEncoderLayer(8, 2, 9, batch_first=True)
    >>> before = leave_fused_path_(layer)
    >>> is_fused(layer), sorted(before.parts)
    (False, ['linear1', 'linear2', 'self_attn'])
    >>> restore_(layer, before)
    >>> is_fused(layer)
    True
    """
    layers = {name: module for name, module in model.named_modules() if is_fused(module)}
    switches = {name: int(getattr(layer, _SWITCH)) for name, layer in layers.items()}
    parts = {
        f"{name}.{part}" if name else part: cast(nn.Module, layer._modules[part])
        for name, layer in layers.items()
        for part in PARTS
    }
    nested = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoder) and not layers.keys().isdisjoint(_inside(name, module)):
            nested[name] = bool(module.use_nested_tensor)
            module.use_nested_tensor = False
    for layer in layers.values():
        setattr(layer, _SWITCH, 0)
    activations = {name: layer.__dict__.get("activation") for name, layer in layers.items()}
    return Fused(switches, parts, nested, activations)


def _inside(name: str, module: nn.Module) -> set[str]:
    return {path for path, _ in module.named_modules(prefix=name)}


def restore_(model: nn.Module, fused: Fused, parts: bool = True) -> None:
    """Let encoder layers without packed parts take their fused path again.

    Parameters
    ----------
    model : nn.Module
        That of :func:`leave_fused_path_`, or a copy.
    fused : Fused
    parts : bool
        Put back the dense parts of all of them first.

    Examples
    --------
    >>> model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 9, batch_first=True))
    >>> before = leave_fused_path_(model)
    >>> model[0].linear1 = nn.Linear(8, 9)
    >>> restore_(model, before)
    >>> is_fused(model[0]), model[0].linear1 is before.parts["0.linear1"]
    (True, True)
    """
    for path, part in fused.parts.items() if parts else ():
        parent, _, key = path.rpartition(".")
        model.get_submodule(parent)._modules[key] = part
    for name, switch in fused.switches.items():
        layer = model.get_submodule(name)
        if not _has_packed(layer):
            setattr(layer, _SWITCH, switch)
            layer.__dict__.pop("activation", None)
            layer.__dict__ |= {} if fused.activations[name] is None else {"activation": fused.activations[name]}
    for name, used in fused.nested.items():
        encoder = model.get_submodule(name)
        if not any(isinstance(module, PackedLayer) for module in encoder.modules()):
            encoder.use_nested_tensor = used  # type: ignore[assignment]
