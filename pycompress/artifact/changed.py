"""What files say of a model's structure beside its tensors: modules that were taken out, and numbers that changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..changes import numbers_of, removed_of, take_out_
from .container import ArtifactError
from .schema import LayerRecord

_NOTE = "_pycompress_removed"


@contextlib.contextmanager
def without_removed(model: nn.Module, layers: dict[str, LayerRecord]) -> Iterator[None]:
    """Take out of a model what the file has not; put it back when the block fails.

    Raises
    ------
    ArtifactError
        When the model has no such modules.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> with without_removed(model, {"": LayerRecord(removed=("0",))}):
    ...     model[0]
    Identity()
    """
    before: list[tuple[nn.Module, dict[str, Any], tuple[str, ...]]] = []
    try:
        for path in sorted(layers, key=lambda path: path.count(".") if path else -1):  # names inside are the new ones
            wanted = layers[path].removed
            if wanted:
                container = _container(model, path)
                missing = [name for name in wanted if name not in removed_of(container)]
                before.append((container, dict(container._modules), removed_of(container)))
                _take(container, path, missing, wanted)
        yield
    except BaseException:
        for container, modules, note in reversed(before):
            container._modules.clear()
            container._modules.update(modules)
            container.__dict__.pop(_NOTE, None)
            if note:
                container.__dict__[_NOTE] = note
        raise


def _container(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArtifactError(f"the file must fit the model, but there is no module {path!r:.99}") from error


def _take(container: nn.Module, path: str, names: list[str], wanted: tuple[str, ...]) -> None:
    gone = removed_of(container)
    if isinstance(container, nn.ModuleList):  # its names have moved
        original = [str(i) for i in range(len(container) + len(gone)) if str(i) not in gone]
        now = dict(zip(original, container._modules, strict=True))
    else:
        now = {name: name for name in container._modules}
    wrong = [name for name in names if name not in now] + [name for name in gone if name not in wanted]
    if wrong or any(container._modules[now[name]] is None for name in names):
        raise ArtifactError(
            f"the file must fit the model, but {path!r:.99} has other modules than the file: {wrong!r:.300}"
        )
    take_out_(container, [now[name] for name in names])


def number_faults(path: str, module: nn.Module, numbers: dict[str, int]) -> list[str]:
    """Name the numbers of a file that a module does not have, or that are larger than the module's.

    Examples
    --------
    >>> number_faults("0", nn.Linear(2, 2), {"heads": 3})
    ['0.heads, 3 in the file and no number in the model']
    """
    norm = isinstance(module, nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d)  # may have no tensors that tell
    own = not type(module).__module__.startswith("torch.") or norm
    faults = []
    for name, value in numbers.items():
        built = module.__dict__.get(name) if own else None
        if type(built) is not int:
            faults.append(f"{path}.{name}, {value} in the file and no number in the model")
        elif built < value:
            faults.append(f"{path}.{name}, {value} in the file and {built} in the model")
    faults += [
        f"{path}.{name}, changed in the model and not in the file" for name in numbers_of(module).keys() - numbers
    ]
    return faults
