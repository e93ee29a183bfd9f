"""From the bytes of an artifact to a model: everything is checked and decoded before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import grids, kernels, masks
from ..activations import activation_of, fused_identity
from ..chains import chained
from ..changes import change_numbers_
from ..convolutions import PackedConv1d, PackedConv2d
from ..encoders import take_ordinary_path_
from ..formats import Int4, Int8, Sparse
from ..grids import GridRecord
from ..heads import keep_plain_
from ..layers import PackedLayer, PackedLinear, decisions, set_decision
from ..rows import PackedRows
from ..selection import several_weights
from . import attention, coding, embeddings, recurrent
from .changed import without_removed
from .container import ArtifactError, digest_fits, read_container
from .contents import Contents, packed_names, read_contents
from .durable import check_path, read_file
from .fitting import Fit, fit
from .kinds import ConvRecord, EmbeddingRecord
from .places import Place, resize_
from .schema import LayerRecord, PackedRecord

PackedNumbers = kernels.PackedWeight | kernels.PackedConv | PackedRows


@dataclass
class _Decoded:
    """What a file holds, ready to be put into a model: tensors and grids by the name that they are stored under."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, GridRecord | None] = field(default_factory=dict)
    packed: dict[str, PackedLayer] = field(default_factory=dict)


def load(path: str | PathLike[str], into: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Fill a model from an artifact that :func:`save` wrote.

    The model gets the numbers, dtypes and ties of the file, bit for bit, on the devices that it has. Layers are made
    smaller where the file holds fewer channels, hidden units or heads (what :func:`pycompress.simplify` takes away),
    taken out where it was, and replaced by packed ones where it holds these, with the decisions about them; the weights
    are packed for the CPU at hand, and nothing is measured. Grids of quantized layers are recorded again. Masks that
    the model had are dropped. A model with packed layers is for inference: it is in eval mode then and its parameters
    require no grad.

    Parameters
    ----------
    path : str or path
    into : nn.Module or function that makes one
        A model of the architecture that was saved. A module is filled in place; when the call fails, it is as it was.

    Returns
    -------
    nn.Module
        ``into`` itself, or what it made; but a new layer where the whole model is one packed layer.

    Raises
    ------
    TypeError
        When an argument has another type.
    ArtifactError
        A ValueError: the file is damaged, hostile, of another version, or no artifact; or it does not fit the model:
        *all* missing, unexpected and mismatched names are listed.
    OSError
        When the file cannot be read.

    Examples
    --------
    >>> import tempfile, pycompress as pc
    >>> def build():
    ...     return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> packed = pc.pack(build(), torch.zeros(1, 64), pc.Int8(), force=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pc.save(packed, folder + "/model.safetensors")
    ...     again = pc.load(folder + "/model.safetensors", into=build)
    >>> torch.equal(again(torch.ones(1, 64)), packed(torch.ones(1, 64)))
    True
    """
    check_path(path)
    if not isinstance(into, nn.Module) and not callable(into):
        raise TypeError(f"into must be an nn.Module or a function that makes one, got {type(into).__name__}")
    data = read_file(path)
    contents = read_contents(data)
    if not digest_fits(data, contents.header):
        raise ArtifactError("the file must have the digest that it says: it is damaged, or was changed")
    model = into if isinstance(into, nn.Module) else into()
    if not isinstance(model, nn.Module):
        raise TypeError(f"into must make an nn.Module, got {type(model).__name__}")
    # Tensors made in inference mode could never be trained.
    with without_removed(model, contents.metadata.layers), torch.inference_mode(False):
        fitting = fit(model, contents)
        return _apply(model, fitting, contents, _decode(fitting, contents, data))


def _decode(fit: Fit, contents: Contents, data: bytes) -> _Decoded:
    """Decode all tensors and pack all packed layers. The fit bounds what is allocated."""
    parts = read_container(data, contents.header)
    decoded = _Decoded()
    for name, stored in contents.tensors.items():
        if name in contents.metadata.tied:
            continue
        if stored.record is None:
            decoded.tensors[name] = parts[name]
        else:
            found = {part: parts[full] for part, full in stored.parts.items()}
            decoded.tensors[name], decoded.grids[name] = coding.decode(stored.record, found, name)
    weights: dict[tuple[str | None, ...], PackedNumbers] = {}
    for path, layer in contents.metadata.layers.items():
        if layer.packed is not None and (record := layer.packed.recurrent) is not None:
            full = recurrent.full_names(path, record)
            own = {name: decoded.tensors[contents.owner(stored)] for name, stored in full.items()}
            decoded.packed[path] = recurrent.build(path, record, layer.packed.activation, own)
        elif layer.packed is not None and (attends := layer.packed.attention) is not None:
            full = attention.full_names(path, attends)
            own = {name: decoded.tensors[contents.owner(stored)] for name, stored in full.items()}
            decoded.packed[path] = attention.build(path, attends, own)
        elif layer.packed is not None:
            names = {part: contents.owner(name) for part, name in packed_names(path).items()}
            present = tuple(name if name in decoded.tensors else None for name in names.values())
            kind = layer.packed.embedding is not None
            rules = (layer.packed.format, layer.packed.convolution, layer.groups, layer.input_scale, kind)
            key = (*present, repr(rules))
            if key not in weights:
                weights[key] = _pack(path, layer, {p: decoded.tensors.get(n) for p, n in names.items()})
            decoded.packed[path] = _module(path, weights[key], layer.packed)
    for name, place in fit.places.items():  # a device that is full fails here
        owner = contents.owner(name)
        if not place.tensor.is_meta:
            decoded.tensors[owner] = decoded.tensors[owner].to(place.tensor.device)
    return decoded


def _module(path: str, weight: PackedNumbers, record: PackedRecord) -> PackedLayer:
    if isinstance(weight, PackedRows):
        return embeddings.module_of(weight, cast(EmbeddingRecord, record.embedding))
    if isinstance(weight, kernels.PackedWeight):
        return PackedLinear(weight, record.activation)
    if len(weight.stride) == 1:
        return PackedConv1d(weight, record.activation)
    conv = cast(ConvRecord, record.convolution)
    try:
        dtype = coding.TORCH_DTYPES[conv.dtype]
        return PackedConv2d(weight, record.activation, output_scale=conv.output_scale, dtype=dtype)
    except ValueError as error:  # a scale that no float32 holds
        raise ArtifactError(f"packed layer {path!r:.99}: {error!s:.300}") from error


def _pack(path: str, layer: LayerRecord, tensors: dict[str, Tensor | None]) -> PackedNumbers:
    weight, format = cast(Tensor, tensors["weight"]), cast(PackedRecord, layer.packed).format
    if cast(PackedRecord, layer.packed).embedding is not None:
        return embeddings.build(path, cast(Any, format), weight, cast(Tensor, tensors["scale"]))
    if weight.dtype == torch.int8 and not isinstance(format, Int4) and bool((weight == -128).any()):
        raise ArtifactError(f"packed layer {path!r:.99} must have integers from -127 to 127, got -128")
    try:
        conv = cast(PackedRecord, layer.packed).convolution
        bias, scale, input_scale = tensors["bias"], tensors["scale"], layer.input_scale
        if conv is None:
            sides = {name: tensors[name] for name in ("zero_point", "multiplier")}
            return kernels.pack(weight, format, bias, scale, input_scale, **sides)
        assert isinstance(format, (Int8, Sparse))  # read_contents checked it
        geometry: Any = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        geometry |= {"groups": layer.groups, "channels_last": conv.channels_last}
        return kernels.pack_conv(weight, format, bias, scale, input_scale, **geometry)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"packed layer {path!r:.99}: {error!s:.300}") from error


def _apply(model: nn.Module, fit: Fit, contents: Contents, decoded: _Decoded) -> nn.Module:
    """Make a model the one in the file. Everything that can fail was done before."""
    masks.finalize_(model)
    for module in fit.modules.values():
        for name in ("weight", *several_weights(module)):
            grids.set_grid(module, None, name)
    for path in decisions(model):
        set_decision(fit.modules[path], None)
    groups: dict[str, list[Place]] = {}
    for name, place in fit.places.items():
        owner = contents.owner(name)
        groups.setdefault(owner, []).append(place)
        grid = decoded.grids.get(owner)
        if grid is not None and place.attribute == "weight":
            layer = contents.metadata.layers.get(name.rpartition(".")[0], LayerRecord())
            grids.set_grid(place.module, replace(grid, input_scale=layer.input_scale))
    holders = Counter(id(place.tensor) for place in fit.places.values())
    for owner, group in groups.items():
        holder = group[0].tensor
        alone = all(place.tensor is holder for place in group) and holders[id(holder)] == len(group)
        _fill(group, decoded.tensors[owner], keep=alone and not holder.is_meta)
    for module, sizes in fit.sizes:
        resize_(module, sizes)
    for path, record in contents.metadata.layers.items():
        change_numbers_(fit.modules[path], record.numbers)
    keep_plain_(model)
    result = model
    put: dict[int, PackedLayer] = {}
    for path, packed in decoded.packed.items():
        substitute = put.setdefault(id(fit.modules[path]), packed)
        if path:
            _replace(fit.modules[path.rpartition(".")[0]], path.rpartition(".")[2], substitute)
        else:
            result = substitute
    take_ordinary_path_(result)
    for path, record in contents.metadata.layers.items():
        if record.fused:
            parent, _, key = path.rpartition(".")
            fit.modules[parent]._modules[key] = fused_identity()
        if record.chains:
            chained(cast(nn.Sequential, fit.modules[path]), record.chains)
        if record.decision is not None:
            module = fit.modules[path]
            set_decision(put[id(module)] if path in decoded.packed else module, record.decision)
    return result.eval().requires_grad_(False) if put else result


def _fill(group: list[Place], tensor: Tensor, keep: bool) -> None:
    """Put one tensor into places: into the parameter or buffer that they hold, where these alone share it."""
    holder = group[0].tensor
    if keep:
        if holder.dtype != tensor.dtype or holder.shape != tensor.shape:
            holder.grad = None
        holder.data = tensor
        return
    parameter = next((place.tensor for place in group if isinstance(place.tensor, nn.Parameter)), None)
    new = tensor if parameter is None else nn.Parameter(tensor, parameter.requires_grad)
    for place in group:
        table = place.module._parameters if place.attribute in place.module._parameters else place.module._buffers
        cast(dict[str, Tensor], table)[place.attribute] = new


def _replace(parent: nn.Module, key: str, layer: PackedLayer) -> None:
    """Put a packed layer into its parent; the activation behind it in a Sequential that it computes goes."""
    parent._modules[key] = layer
    activation = getattr(layer, "activation", None)
    if type(parent).forward is nn.Sequential.forward and activation is not None:
        keys = list(parent._modules)
        behind = keys[keys.index(key) + 1 :][:1]
        if behind and activation_of(parent._modules[behind[0]]) == activation:
            parent._modules[behind[0]] = nn.Identity()
