"""Where a model holds tensors, and what the shapes of a module's tensors tell of its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..convolutions import PackedConv1d, PackedConv2d

Shapes = dict[str, tuple[int, ...]]


class Place(NamedTuple):
    """A place in a model that holds a tensor: parameter or persistent buffer ``attribute`` of ``module``."""

    module: nn.Module
    attribute: str
    tensor: Tensor


def places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Yield every place of a model by its name in ``state_dict``, also those that share a tensor.

    Examples
    --------
    >>> [name for name, place in places(nn.Sequential(nn.Linear(2, 1)))]
    ['0.weight', '0.bias']
    """
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in own_tensors(module).items():
            yield f"{path}.{name}" if path else name, Place(module, name, tensor)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and persistent buffers.

    Examples
    --------
    >>> [tuple(tensor.shape) for tensor in own_tensors(nn.Linear(3, 2)).values()]
    [(2, 3), (2,)]
    """
    tensors = {**module._parameters, **module._buffers}
    transient = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and name not in transient}


def smaller(module: nn.Module, shapes: Shapes, groups: int = 1) -> dict[str, int] | None:
    """Return the attributes of a module that has lost channels, found from the shapes of its tensors.

    Linear, convolutions (not transposed), batch and group normalizations (which lose whole groups) and PReLU are known.
    A size can only become smaller.

    Parameters
    ----------
    module : nn.Module
        As it was built.
    shapes : dict of shapes
        Those that its own parameters and persistent buffers shall have, one for each.
    groups : int
        Groups of a convolution.

    Returns
    -------
    dict of attribute to size, or None
        Empty when the module has these shapes already; None when nothing that is known here explains them.

    Examples
    --------
    >>> smaller(nn.Linear(8, 4), {"weight": (3, 6), "bias": (3,)})
    {'out_features': 3, 'in_features': 6}
    >>> smaller(nn.Linear(8, 4), {"weight": (5, 8), "bias": (5,)}) is None
    True
    >>> smaller(nn.GroupNorm(4, 8), {"weight": (6,), "bias": (6,)})
    {'num_channels': 6, 'num_groups': 3}
    """
    if all(tuple(tensor.shape) == shapes[name] for name, tensor in own_tensors(module).items()):
        return {} if groups == groups_of(module) else None
    found = _explained(module, shapes, groups)
    if found is None or any(not 0 < size <= getattr(module, name) for name, size in found.items()):
        return None
    return found


def groups_of(module: nn.Module) -> int:
    """Return the groups of a convolution, 1 for other modules.

    Examples
    --------
    >>> groups_of(nn.Conv2d(4, 4, 3, groups=2))
    2
    """
    if isinstance(module, PackedConv1d | PackedConv2d):
        return module.packed.groups
    return module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1


def _explained(module: nn.Module, shapes: Shapes, groups: int) -> dict[str, int] | None:
    first = shapes.get("weight", shapes.get("running_mean", ()))
    if isinstance(module, nn.Linear) and len(first) == 2:
        expected: Shapes = {"weight": first, "bias": first[:1]}
        sizes = {"out_features": first[0], "in_features": first[1]}
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and len(first) == len(module.kernel_size) + 2:
        if first[2:] != tuple(module.kernel_size) or first[0] % groups:
            return None
        expected = {"weight": first, "bias": first[:1]}
        sizes = {"out_channels": first[0], "in_channels": first[1] * groups, "groups": groups}
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and len(first) == 1:
        expected = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), first)
        expected["num_batches_tracked"] = ()
        sizes = {"num_features": first[0]}
    elif isinstance(module, nn.GroupNorm) and len(first) == 1:
        channels = module.num_channels // module.num_groups  # groups go as a whole
        if first[0] % channels:
            return None
        expected = dict.fromkeys(("weight", "bias"), first)
        sizes = {"num_channels": first[0], "num_groups": first[0] // channels}
    elif isinstance(module, nn.PReLU) and len(first) == 1:
        expected, sizes = {"weight": first}, {"num_parameters": first[0]}
    else:
        return None
    return sizes if all(expected.get(name) == shape for name, shape in shapes.items()) else None
