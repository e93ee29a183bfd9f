"""Whether a file fits a model: names, dtypes, shapes and ties, compared before anything is decoded or changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..activations import NORMS, activation_of
from ..attention import PackedMultiheadAttention
from ..cells import PackedCell
from ..chains import chained
from ..convolutions import PackedConv1d, PackedConv2d
from ..layers import PackedLayer, PackedLinear
from ..linears import is_conv1d
from ..recurrent import PackedRecurrentLayer
from . import attention, coding, embeddings, recurrent
from .changed import number_faults
from .container import ArtifactError
from .contents import Contents, packed_names
from .kinds import AttentionRecord, ConvRecord
from .places import Place, groups_of, own_tensors, places, smaller
from .schema import LayerRecord, PackedRecord


@dataclass(frozen=True)
class Fit:
    """A model that a file fits.

    Attributes
    ----------
    modules : dict
        Every module by every path.
    places : dict
        Every place to fill by its name, those of layers that become packed left out.
    sizes : list
        Modules that become smaller, and their new attributes.
    """

    modules: dict[str, nn.Module]
    places: dict[str, Place]
    sizes: list[tuple[nn.Module, dict[str, int]]]


def fit(model: nn.Module, contents: Contents) -> Fit:
    """Compare a model with a file.

    Parameters
    ----------
    model : nn.Module
    contents : Contents

    Returns
    -------
    Fit

    Raises
    ------
    ArtifactError
        When they do not fit: all that is missing, unexpected or mismatched is named.

    Examples
    --------
    >>> from pycompress.artifact import to_bytes
    >>> from pycompress.artifact.contents import read_contents
    >>> file = read_contents(to_bytes(nn.Linear(2, 1)))
    >>> fit(nn.Linear(2, 3), file).sizes
    [(Linear(in_features=2, out_features=3, bias=True), {'out_features': 1, 'in_features': 2})]
    >>> fit(nn.Linear(2, 1, bias=False), file)
    Traceback (most recent call last):
    pycompress.artifact.container.ArtifactError: the file must fit the model, but there are unexpected in the file: bias
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = contents.metadata.layers
    packed = {path for path, layer in layers.items() if layer.packed is not None}
    gone = packed | {path for path, layer in layers.items() if layer.fused}
    attending = {path for path in packed if layers[path].packed.attention is not None}  # type: ignore[union-attr]
    gone |= {f"{path}.out_proj" if path else "out_proj" for path in attending}  # a layer of its own in the model
    filled = {name: place for name, place in places(model) if name.rpartition(".")[0] not in gone}
    expected = set(filled)
    stored = set(contents.tensors)
    faults = [f"{path}, which is no layer of the model" for path in layers if path not in modules]
    for path, layer in layers.items():
        if layer.fused and path in modules and not _can_be_fused(path, modules[path]):
            faults.append(f"{path}, part of a packed layer in the file and {type(modules[path]).__name__} in the model")
    faults += [f"{path}, a Sequential with chains in the file" for path in _unchainable(modules, layers)]
    sizes = []
    for path, module in modules.items():
        recurrence = layers[path].packed.recurrent if path in packed else None  # type: ignore[union-attr]
        if recurrence is not None:
            expected |= set(recurrent.full_names(path, recurrence).values())
            activation = cast(PackedRecord, layers[path].packed).activation
            faults += recurrent.faults(path, module, recurrence, activation, contents.tensors)
        elif path in attending:
            attends = cast(AttentionRecord, cast(PackedRecord, layers[path].packed).attention)
            expected |= set(attention.full_names(path, attends).values())
            faults += attention.faults(path, module, attends, contents.tensors)
        elif isinstance(module, PackedMultiheadAttention):
            faults.append(f"{path}, packed attention in the model and another layer in the file")
        elif isinstance(module, PackedRecurrentLayer | PackedCell):
            faults.append(f"{path}, a packed recurrent layer in the model and another one in the file")
        elif path in packed or isinstance(module, PackedLayer):
            names = packed_names(path)
            stored -= {names["scale"], names["zero_point"], names["multiplier"]}
            expected |= {names["weight"]} | ({names["bias"]} if _has_bias(module) else set())
            stored -= {names["bias"]} - expected  # of a normalization behind a layer that has none
            faults += _packed_faults(path, module, contents)
        elif path not in gone:
            found, attributes = _dense_faults(path, module, contents)
            faults += found
            if attributes:
                sizes.append((module, attributes))
    faults += _tie_faults(filled, contents.metadata.tied)
    for path, module in modules.items():
        faults += number_faults(path, module, layers.get(path, LayerRecord()).numbers)
    report = {
        "missing in the file": sorted(expected - stored),
        "unexpected in the file": sorted(stored - expected),
        "mismatched": faults,
    }
    if any(report.values()):
        told = [f"{what}: {', '.join(map(_shown, names))}" for what, names in report.items() if names]
        raise ArtifactError(f"the file must fit the model, but there are {'; '.join(told)}")
    return Fit(modules, filled, sizes)


def _can_be_fused(path: str, module: nn.Module) -> bool:
    return bool(path) and (activation_of(module) is not None or type(module) in (nn.Identity, *NORMS))


def _unchainable(modules: dict[str, nn.Module], layers: dict[str, LayerRecord]) -> Iterator[str]:
    for path, layer in layers.items():
        if layer.chains and path in modules:
            try:
                chained(copy.copy(cast(nn.Sequential, modules[path])), layer.chains)
            except (TypeError, ValueError):
                yield path


def _shown(name: str) -> str:
    """Shorten a name, and escape what a terminal would obey: it may come from an attacker."""
    return f"{name if name.isprintable() else ascii(name):.200}"


def _dense_faults(path: str, module: nn.Module, contents: Contents) -> tuple[list[str], dict[str, int]]:
    """Compare the tensors of a module; return what does not fit, and how it becomes smaller where that explains it."""
    prefix = f"{path}." if path else ""
    own = {name: tensor for name, tensor in own_tensors(module).items() if prefix + name in contents.tensors}
    faults = []
    for name, tensor in own.items():
        if is_lazy(tensor):
            return [f"{prefix}{name}, not initialised in the model (run it once)"], {}
        dtype = coding.TORCH_DTYPES[contents.tensors[prefix + name].dtype]
        if dtype != tensor.dtype and not (dtype.is_floating_point and tensor.is_floating_point()):
            faults.append(f"{prefix}{name}, {dtype} in the file and {tensor.dtype} in the model")
    if len(own) < len(own_tensors(module)):
        return faults, {}
    shapes = {name: contents.tensors[prefix + name].shape for name in own}
    groups = contents.metadata.layers[path].groups if path in contents.metadata.layers else 1
    attributes = smaller(module, shapes, groups)
    if attributes is not None:
        return faults, attributes
    for name, tensor in own.items():
        if shapes[name] != tuple(tensor.shape):
            faults.append(f"{prefix}{name}, {shapes[name]} in the file and {tuple(tensor.shape)} in the model")
    if groups != groups_of(module):
        faults.append(f"{path}, {groups} groups in the file and {groups_of(module)} in the model")
    return faults, {}


def _packed_faults(path: str, module: nn.Module, contents: Contents) -> list[str]:
    stored = contents.tensors.get(packed_names(path)["weight"])
    layer = contents.metadata.layers.get(path)
    if stored is None:
        return []
    if layer is None or layer.packed is None:
        return [f"{path}, dense in the file and packed in the model"]
    if layer.packed.embedding is not None:
        return embeddings.faults(path, module, layer.packed.embedding, stored.shape)
    if layer.packed.convolution is not None:
        return _convolution_faults(path, module, layer.packed.convolution, layer.groups, stored.shape)
    if is_conv1d(module):  # its weight is [in, out]
        built = tuple(cast(Tensor, module.weight).shape[::-1])
    elif isinstance(module, (nn.Linear, PackedLinear)):
        built = (module.out_features, module.in_features)
    else:
        return [f"{path}, a packed linear layer in the file and {type(module).__name__} in the model"]
    if own_tensors(module).keys() - {"weight", "bias"}:
        return [f"{path}, which has other tensors in the model than a packed layer has"]
    fits = all(0 < size <= largest or size == largest for size, largest in zip(stored.shape, built, strict=True))
    if not fits or layer.groups != 1:
        return [f"{path}, a packed layer of {stored.shape} in the file and one of {built} in the model"]
    return []


def _convolution_faults(
    path: str, module: nn.Module, convolution: ConvRecord, groups: int, shape: tuple[int, ...]
) -> list[str]:
    """Compare a packed convolution with its place; the padding is the file's, for a module may do it in its forward."""
    sides = len(convolution.stride)
    kinds = (nn.Conv1d, PackedConv1d) if sides == 1 else (nn.Conv2d, PackedConv2d)
    if not isinstance(module, kinds):
        return [f"{path}, a packed {sides}-D convolution in the file and {type(module).__name__} in the model"]
    if own_tensors(module).keys() - {"weight", "bias"}:
        return [f"{path}, which has other tensors in the model than a packed layer has"]
    found = (convolution.stride, convolution.dilation, shape[2:])
    if isinstance(module, PackedConv1d | PackedConv2d):
        built = (module.packed.stride, module.packed.dilation, module.packed.shape[2:])
    else:
        built = (tuple(module.stride), tuple(module.dilation), tuple(module.kernel_size))
    if found != built:
        return [f"{path}, stride, dilation and kernel {found} in the file and {built} in the model"]
    channels, most = (shape[0], shape[1] * groups), (module.out_channels, module.in_channels)
    if any(size > largest for size, largest in zip(channels, most, strict=True)):
        return [f"{path}, a convolution of {channels} channels in the file and one of {most} in the model"]
    if channels == most and groups != groups_of(module):
        return [f"{path}, {groups} groups in the file and {groups_of(module)} in the model"]
    return []


def _has_bias(module: nn.Module) -> bool:
    if isinstance(module, PackedLinear | PackedConv1d | PackedConv2d):
        return module.packed.bias is not None
    return getattr(module, "bias", None) is not None


def _tie_faults(filled: dict[str, Place], tied: dict[str, str]) -> list[str]:
    """Name the places that one module has under two names and that the file fills with two tensors."""
    owners: dict[tuple[int, str], str] = {}
    faults = []
    for name, place in filled.items():
        first = owners.setdefault((id(place.module), place.attribute), name)
        if tied.get(first, first) != tied.get(name, name):
            faults.append(f"{name}, which is {first} in the model and not in the file")
    return faults
