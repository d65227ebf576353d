"""Reading what others wrote, strictly: JSON and YAML files, and values of the type they should have."""

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
    return parse_json(_bytes(path).decode("utf-8"))


def parse_json(content: str) -> Any:
    """Return what ``content`` says.

    Raises:
        ValueError: no JSON, nested too deeply, or a key stands twice in one object.

    """
    try:
        return json.loads(content, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(path: Path) -> Any:
    """Return the content of the one document in the YAML file at ``path``, as YAML 1.1 plain values.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: not UTF-8, no YAML, over 2 MiB, nested too deeply, several documents, an anchor or alias,
            or a key stands twice in one mapping; with the line where it has one.

    """
    import yaml

    content = _bytes(path).decode("utf-8")
    if len(content) > _MOST_YAML:
        raise ValueError(f"it has {len(content)} characters, more than {_MOST_YAML}")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.SafeLoader)):
            raise ValueError("it holds an alias (*name): write the value out")
        document = yaml.compose(content, yaml.SafeLoader)
        if document is None:
            return None
        _check_keys(document)
        return yaml.safe_load(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from None


_MOST_YAML = 2 << 20


def _check_keys(node: Any) -> None:
    """Refuse a key that stands twice in one mapping; PyYAML takes the last."""
    for pair in node.value if isinstance(node.value, list) else ():
        children = pair if isinstance(pair, tuple) else (pair,)
        for child in children:
            _check_keys(child)
    if node.id == "mapping":
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(str(key.value))


def _bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError(None, "not a regular file")  # a pipe would be waited for without end
    return path.read_bytes()


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
        if type(value) in (int, float) and math.isfinite(result := float(value)):  # type: ignore[arg-type]  # as above
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
