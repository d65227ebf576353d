"""Quick pickling of frozen data classes: the standard library asks for the fields of every single object."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, TypeVar

Class = TypeVar("Class")


def quickly_pickled(cls: type[Class]) -> type[Class]:
    """Have a slotted data class of several fields pickled as the tuple of its values."""
    names: tuple[str, ...] = cls.__slots__  # type: ignore[attr-defined]  # a slotted dataclass has them
    values = attrgetter(*names)

    def get(self: Any) -> Any:
        return values(self)

    def set_(self: Any, state: tuple[Any, ...], put: Any = object.__setattr__) -> None:
        for name, value in zip(names, state, strict=True):
            put(self, name, value)

    for name, function in (("__getstate__", get), ("__setstate__", set_)):
        setattr(cls, name, function)
    return cls
