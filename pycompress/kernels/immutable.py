"""What packed weights have in common: they never change, so that copies are the thing itself."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NoReturn, TypeVar

_Self = TypeVar("_Self", bound="Immutable")
_Kind = TypeVar("_Kind", bound="Numbered")


class Immutable:
    """Attributes are given once, by name; copies are the object itself."""

    __slots__ = ()

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a packed weight is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a packed weight is immutable: {name} cannot be deleted")

    def __copy__(self: _Self) -> _Self:
        return self

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        return self


class Numbered(Immutable):
    """A packed weight with a number that no other one of this process ever has: compiled code finds it by that."""

    __slots__ = ("__weakref__", "number")

    number: int

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "number", next(_numbers))
        _alive[self.number] = self


_alive: weakref.WeakValueDictionary[int, Numbered] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def numbered(number: int, kind: type[_Kind]) -> _Kind | None:
    """Return the packed weight of this kind with this number, or None where there is none (any more)."""
    packed = _alive.get(number)
    return packed if isinstance(packed, kind) else None
