"""Reading what others wrote, strictly: JSON files, and values of the type they should have."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return the content of the JSON file at ``path``.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: not UTF-8, no JSON, nested too deeply, or a key stands twice in one object.

    """
    if path.exists() and not path.is_file():
        raise OSError(None, "not a regular file")  # a pipe would be waited for without end
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def whole(value: object, name: str) -> int:
    """Return ``value`` if it is a whole number; a bool, a float or a string is none.

    Raises:
        ValueError: it is none; ``name`` says which value.

    """
    if type(value) is not int:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a whole number")
    return value


def number(value: object, name: str) -> float:
    """Return ``value`` as a float if it is a finite number.

    Raises:
        ValueError: it is none; ``name`` says which value.

    """
    try:
        if type(value) in (int, float) and math.isfinite(result := float(value)):  # type: ignore[arg-type]
            return result
    except OverflowError:
        pass
    raise ValueError(f"{name} is {reprlib.repr(value)}, not a finite number")


def text(value: object, name: str) -> str:
    """Return ``value`` if it is a string.

    Raises:
        ValueError: it is none; ``name`` says which value.

    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a text")
    return value


def flag(value: object, name: str) -> bool:
    """Return ``value`` if it is true or false.

    Raises:
        ValueError: it is neither; ``name`` says which value.

    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not true or false")
    return value


def items(value: object, name: str) -> list[Any]:
    """Return ``value`` if it is a list (a tuple counts as one).

    Raises:
        ValueError: it is none; ``name`` says which value.

    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not a list")
    return list(value)


def mapping(value: object, name: str) -> Mapping[str, Any]:
    """Return ``value`` if it is an object (a mapping).

    Raises:
        ValueError: it is none; ``name`` says which value.

    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not an object")
    return value
