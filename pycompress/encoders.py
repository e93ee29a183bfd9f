"""Encoder layers of torch have a fused path that reads the weights of their parts: which take it, how they leave it.

On the ordinary path the numbers are the same but for rounding, with two exceptions that torch has too: at padded
positions a whole nn.TransformerEncoder gives zeros on its fused path alone (nested tensors), and other numbers there on
its ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from .layers import PackedLayer

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


def take_ordinary_path_(model: nn.Module) -> None:
    """Let encoder layers with packed parts leave their fused path, and encoders hand them plain tensors.

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
    """

    switches: dict[str, int]
    parts: dict[str, nn.Module]
    nested: dict[str, bool]


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
    return Fused(switches, parts, nested)


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
    for name, used in fused.nested.items():
        encoder = model.get_submodule(name)
        if not any(isinstance(module, PackedLayer) for module in encoder.modules()):
            encoder.use_nested_tensor = used  # type: ignore[assignment]
