"""From a model to the bytes of an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import grids, masks
from ..activations import is_fused
from ..attention import PackedMultiheadAttention
from ..cells import PackedCell
from ..chains import ChainedSequential
from ..changes import numbers_of, removed_of
from ..convolutions import PackedConv1d, PackedConv2d
from ..embeddings import PackedEmbedding, PackedEmbeddingBag
from ..formats import Int4, Int8, code_bits, has_bfloat16_weights
from ..kernels import PackedConv, PackedWeight
from ..layers import PackedLayer, PackedLinear, decisions
from ..recurrent import PackedRecurrentLayer
from ..rows import PackedRows
from . import attention, coding, embeddings, recurrent
from .container import ArtifactError, apart, write_container
from .contents import packed_names
from .durable import check_path, write_file
from .kinds import ConvRecord
from .places import Place, groups_of, places
from .schema import LayerRecord, Metadata, PackedRecord, TensorRecord, write_metadata


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write a model to an artifact: a safetensors file with a digest, as FORMAT.md describes.

    Weights are stored in canonical form: pruned ones as their nonzeros, quantized ones as the integers of their grid,
    packed ones as they are but for the layout; a tied one once. Masks are dropped, and the zeros stay. Architecture
    and code are not stored: :func:`load` takes a module to fill. The model is not changed.

    The file is replaced atomically: after a crash, at any moment, there is the old one or the new one, whole.

    Parameters
    ----------
    model : nn.Module
        Dense, pruned, quantized, simplified or packed; parameters and buffers of any dtype.
    path : str or path
        The file to write or replace.

    Raises
    ------
    TypeError
        When model is no module or path no path.
    ArtifactError
        When the model holds what no artifact can hold (all of it is named), or path is a folder or a device.
    OSError
        When the file cannot be written. The old file is then as it was.

    Examples
    --------
    >>> import tempfile, pycompress as pc
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pc.save(model, folder + "/model.safetensors")
    ...     again = pc.load(folder + "/model.safetensors", into=torch.nn.Linear(2, 1))
    >>> torch.equal(again.weight, model.weight)
    True
    """
    check_path(path)
    write_file(path, to_bytes(model))


def to_bytes(model: nn.Module) -> bytes:
    """Return what :func:`save` writes. The same model gives the same bytes.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    bytes

    Raises
    ------
    TypeError, ArtifactError
        As :func:`save`.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> to_bytes(model) == to_bytes(model)
    True
    """
    tensors, metadata = _collect(model)
    return write_container(tensors, write_metadata(metadata))


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes that a model takes on disk.

    Those of its artifact when the model is compressed (a packed layer, a mask, a grid, or a weight of two or more
    dimensions whose zeros make it smaller); otherwise those of a plain safetensors file of its ``state_dict``.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    int

    Raises
    ------
    TypeError, ArtifactError
        As :func:`save`.

    Examples
    --------
    >>> stored_bytes(nn.Linear(100, 10))
    4176
    """
    tensors, metadata = _collect(model)
    sparse = any(len(record.shape) > 1 or record.grid for record in metadata.tensors.values())
    if sparse or any(layer.packed for layer in metadata.layers.values()) or masks.masked(model):
        return len(write_container(tensors, write_metadata(metadata)))
    from safetensors.torch import save

    plain = {id(place.tensor): (name, place.tensor) for name, place in reversed(list(places(model)))}
    return len(save(apart({name: tensor.detach().cpu().contiguous() for name, tensor in plain.values()})))


def _collect(model: nn.Module) -> tuple[dict[str, Tensor], Metadata]:
    """Return the parts and the metadata of a model's file."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    _check_storable(model)
    stored: dict[str, Tensor] = {}
    metadata = Metadata()
    owners: dict[int, str] = {}
    twins: dict[tuple[object, ...], str] = {}
    sharing: dict[int, dict[str, Place]] = {}
    for name, place in places(model):
        sharing.setdefault(id(place.tensor), {})[name] = place
    for shared in sharing.values():
        name, *others = shared
        metadata.tied.update(dict.fromkeys(others, name))
        tensor = shared[name].tensor.detach()
        for place in shared.values():
            mask = masks.mask_of(place.module, place.attribute)
            tensor = tensor if mask is None else tensor.masked_fill(~mask, 0)
        known = [grids.grid_of(place.module) for place in shared.values() if place.attribute == "weight"]
        grid = next((grid for grid in known if grid is not None), None)
        _add(stored, metadata.tensors, name, *coding.encode(tensor, grid))
    found = decisions(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedLinear | PackedConv1d | PackedConv2d):
            _add_packed(stored, metadata, owners, twins, path, module)
            weight = module.packed
            packed = PackedRecord(weight.format, module.activation)
            if isinstance(weight, PackedConv):
                sides = (weight.stride, weight.padding, weight.dilation, weight.channels_last)
                last = getattr(module, "output_scale", None), coding.DTYPES[getattr(module, "dtype", torch.float32)]
                packed = replace(packed, convolution=ConvRecord(*sides, *last))
            input_scale = weight.input_scale
        elif isinstance(module, PackedEmbedding | PackedEmbeddingBag):
            _add_packed(stored, metadata, owners, twins, path, module)
            packed, input_scale = PackedRecord(module.format, embedding=embeddings.record_of(module)), None
        elif isinstance(module, PackedRecurrentLayer | PackedCell):
            recurrence = recurrent.record_of(path, module)
            _add_named(stored, metadata, owners, path, module, partial(recurrent.full_names, record=recurrence))
            activation = getattr(module, "nonlinearity", None)
            packed, input_scale = PackedRecord(module.format, activation, recurrent=recurrence), None
        elif isinstance(module, PackedMultiheadAttention):
            attends = attention.record_of(module)
            _add_named(stored, metadata, owners, path, module, partial(attention.full_names, record=attends))
            packed, input_scale = PackedRecord(module.format, attention=attends), None
        else:
            packed, input_scale = None, _input_scale(metadata, path, module)
        chains = module.chains if isinstance(module, ChainedSequential) else ()
        told = (groups_of(module), input_scale, is_fused(module), chains, removed_of(module), numbers_of(module))
        record = LayerRecord(packed, found.get(path), *told)
        if record != LayerRecord():
            metadata.layers[path] = record
    return stored, metadata


def _add(
    stored: dict[str, Tensor],
    records: dict[str, TensorRecord],
    name: str,
    record: TensorRecord | None,
    parts: dict[str, Tensor],
) -> None:
    if record is not None:
        records[name] = record
    for part, tensor in parts.items():
        full = f"{name}:{part}" if part else name
        if full in stored:
            raise ArtifactError(f"model must not have a tensor named {full!r}, the name of a part of another")
        stored[full] = tensor.contiguous()


def _add_packed(
    stored: dict[str, Tensor],
    metadata: Metadata,
    owners: dict[int, str],
    twins: dict[tuple[object, ...], str],
    path: str,
    layer: PackedLayer,
) -> None:
    packed = layer.packed
    names = packed_names(path)
    owner = owners.setdefault(id(packed), path)
    arrays = {"weight": packed.canonical_weight(), "scale": packed.scale, "bias": packed.bias}
    if isinstance(packed, PackedWeight):
        arrays |= {"zero_point": packed.zero_point, "multiplier": packed.multiplier}
    for part, array in arrays.items():
        if array is None:
            continue
        if owner != path:
            first = packed_names(owner)[part]
            metadata.tied[names[part]] = metadata.tied.get(first, first)
            continue
        tensor = torch.tensor(np.asarray(array))
        if (twin := _twin(twins, packed, part, tensor, names[part])) is not None:
            metadata.tied[names[part]] = metadata.tied.get(twin, twin)
        elif part == "weight" and isinstance(packed.format, Int4):
            offset = 0 if packed.format.zero_point else 8
            _add(stored, metadata.tensors, names[part], *coding.encode_integers(tensor, offset))
        elif part == "weight" and has_bfloat16_weights(packed.format) and packed.scale is None:
            _add(stored, metadata.tensors, names[part], *coding.encode(tensor.bfloat16()))
        elif part == "weight" and (bits := code_bits(packed.format)) is not None:
            _add(stored, metadata.tensors, names[part], *coding.encode_table(tensor, bits))
        else:
            _add(stored, metadata.tensors, names[part], *coding.encode(tensor))


def _twin(twins: dict[tuple[object, ...], str], packed: object, part: str, tensor: Tensor, name: str) -> str | None:
    """Return the stored tensor with the same integers (or scales) of a linear layer, for an embedding, and vice versa.

    Where both share a weight, as language models do, both are rounded alike, and one copy is enough.
    """
    if part not in ("weight", "scale") or not isinstance(packed, PackedRows | PackedWeight):
        return None
    if not isinstance(packed.format, Int8) or not tensor.numel():
        return None
    content = part, tuple(tensor.shape), hashlib.sha256(tensor.reshape(-1).numpy().data).digest()
    twins.setdefault((type(packed), *content), name)
    return twins.get((PackedWeight if isinstance(packed, PackedRows) else PackedRows, *content))


def _add_named(
    stored: dict[str, Tensor],
    metadata: Metadata,
    owners: dict[int, str],
    path: str,
    layer: PackedLayer,
    full_names: Callable[[str], dict[str, str]],
) -> None:
    """Add a layer whose tensors have the names of its ``state_dict``; ``full_names`` gives those in the file."""
    owner = owners.setdefault(id(layer.packed), path)
    theirs = full_names(owner)
    for name, full in full_names(path).items():
        if owner != path:
            metadata.tied[full] = theirs[name]
    if owner == path:
        for name, tensor in layer.canonical_tensors().items():
            _add(stored, metadata.tensors, theirs[name], *coding.encode(tensor))


def _input_scale(metadata: Metadata, path: str, module: nn.Module) -> float | None:
    """Return the input scale of a layer whose weight was stored as the integers of an Int8 grid."""
    name = f"{path}.weight" if path else "weight"
    record = metadata.tensors.get(metadata.tied.get(name, name))
    grid = grids.grid_of(module)
    return None if record is None or grid is None or not isinstance(record.grid, Int8) else grid.input_scale


def _check_storable(model: nn.Module) -> None:
    """Raise an error that names everything in a model that an artifact cannot hold."""
    problems = []
    names = set()
    for name, place in places(model):
        names.add(name)
        tensor = place.tensor
        if is_lazy(tensor):
            problems.append(f"{name} is not initialized")
        elif tensor.is_meta:
            problems.append(f"{name} is on the meta device")
        elif tensor.layout != torch.strided or tensor.dtype not in coding.DTYPES:
            problems.append(f"{name} is {tensor.layout} {tensor.dtype}")
    if not problems:
        modules = model.named_modules(remove_duplicate=False)
        packed = tuple(f"{path}." if path else "" for path, module in modules if isinstance(module, PackedLayer))
        others = [name for name in model.state_dict(keep_vars=True) if name not in names]
        problems.extend(f"{name} is no parameter or buffer" for name in others if not name.startswith(packed))
    if problems:
        raise ArtifactError(f"model must hold tensors that an artifact can store, got: {'; '.join(problems)}")
