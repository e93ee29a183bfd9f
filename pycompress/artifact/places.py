"""Where a model holds tensors, and what the shapes of a module's tensors tell of its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..convolutions import PackedConv1d, PackedConv2d
from ..heads import FewerHeads, fewer_heads_

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

    Linear, convolutions, batch, instance and group normalizations (which lose whole groups), PReLU, embeddings (which
    lose columns), recurrent layers and cells, and attention of torch (which loses whole heads) are known. A size can
    only become smaller.

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


def fits(found: tuple[object, ...], built: tuple[object, ...], sizes: slice) -> bool:
    """Whether what a file says of a packed layer fits the model's: the sizes may be smaller, the rest is the same.

    Examples
    --------
    >>> fits((True, 3, 8), (True, 4, 8), slice(1, None)), fits((True, 5, 8), (True, 4, 8), slice(1, None))
    (True, False)
    """
    numbers = [(one, other) for one, other in zip(found[sizes], built[sizes], strict=True) if one != other]
    rest = [list(values) for values in (found, built)]
    for values in rest:
        del values[sizes]
    smaller = (isinstance(a, int) and isinstance(b, int) and 0 < a < b for a, b in numbers)
    return rest[0] == rest[1] and all(smaller)


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
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and len(first) == 2:
        expected, sizes = {"weight": (module.num_embeddings, first[1])}, {"embedding_dim": first[1]}
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent(module, shapes)
    elif isinstance(module, nn.MultiheadAttention):
        return _heads(module, shapes)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and len(first) == len(module.kernel_size) + 2:
        if first[2:] != tuple(module.kernel_size) or first[0] % groups:
            return None
        expected = {"weight": first, "bias": first[:1]}
        sizes = {"out_channels": first[0], "in_channels": first[1] * groups, "groups": groups}
    elif isinstance(module, nn.modules.conv._ConvTransposeNd) and len(first) == len(module.kernel_size) + 2:
        if first[2:] != tuple(module.kernel_size) or first[0] % groups:
            return None
        expected = {"weight": first, "bias": (first[1] * groups,)}
        sizes = {"in_channels": first[0], "out_channels": first[1] * groups, "groups": groups}
    elif isinstance(module, nn.modules.batchnorm._NormBase) and len(first) == 1:
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


def _recurrent(module: nn.RNNBase | nn.RNNCellBase, shapes: Shapes) -> dict[str, int] | None:
    """Explain the shapes of a recurrent layer or cell."""
    own = own_tensors(module)
    cell = isinstance(module, nn.RNNCellBase)
    begin = "" if cell else "_l0"
    gates = own["weight_ih" + begin].shape[0] // module.hidden_size
    projects = bool(getattr(module, "proj_size", 0))
    if any(len(shapes[name]) != tensor.ndim for name, tensor in own.items()):
        return None
    rows, inputs = shapes["weight_ih" + begin]
    if rows % gates:
        return None
    hidden = rows // gates
    out = shapes["weight_hr" + begin][0] if projects else hidden
    width = out * (2 if getattr(module, "bidirectional", False) else 1)
    for name, shape in shapes.items():
        columns = {"weight_ih": inputs if name.startswith("weight_ih" + begin) else width, "weight_hh": out}
        if name.startswith("weight_hr"):
            expected: tuple[int, ...] = (out, hidden)
        else:
            expected = (rows, columns[name[:9]]) if name.startswith("weight") else (rows,)
        if shape != expected:
            return None
    sizes = {"input_size": inputs, "hidden_size": hidden}
    return sizes | ({"proj_size": out} if projects else {})


def _heads(module: nn.MultiheadAttention, shapes: Shapes) -> dict[str, int] | None:
    """Explain the shapes of attention that has lost heads."""
    joint = module.in_proj_weight is not None
    rows = shapes["in_proj_weight" if joint else "q_proj_weight"][:1]
    if type(module) not in (nn.MultiheadAttention, FewerHeads) or not rows:
        return None
    size = rows[0] // 3 if joint else rows[0]
    names = {
        "in_proj_weight": "embed_dim",
        "q_proj_weight": "embed_dim",
        "k_proj_weight": "kdim",
        "v_proj_weight": "vdim",
    }
    for name, shape in shapes.items():
        every = 3 * size if name.startswith("in_proj") else size
        expected = (every, getattr(module, names[name])) if name in names else (3 * size,)
        if shape != expected or module.bias_k is not None:
            return None
    return None if size % module.head_dim else {"num_heads": size // module.head_dim}


def resize_(module: nn.Module, sizes: dict[str, int]) -> None:
    """Give a module whose tensors were cut the attributes that :func:`smaller` found.

    Examples
    --------
    >>> layer = nn.Linear(8, 4)
    >>> resize_(layer, {"out_features": 3})
    >>> layer
    Linear(in_features=8, out_features=3, bias=True)
    """
    for name, size in sizes.items():
        setattr(module, name, size)
    known: Any = module
    if isinstance(module, nn.MultiheadAttention) and sizes:
        fewer_heads_(module, module.num_heads)
    elif isinstance(module, nn.RNNBase):
        known._init_flat_weights()
