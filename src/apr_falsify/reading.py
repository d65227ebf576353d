"""Reading what others wrote, strictly: JSON, YAML and TOML files, and values of the type they should have."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zipfile


def read_json(path: Path) -> Any:
    """Return the content of the JSON file at ``path``.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: not UTF-8, or as for :func:`parse_json`.

    """
    return parse_json(_bytes(path).decode("utf-8"))


def parse_json(content: str) -> Any:
    """Return what ``content`` says.

    Raises:
        ValueError: no JSON, nested too deeply, a key that stands twice in one object, half of a surrogate
            pair, which no file can hold, or so many small values that memory would be filled with them.

    """
    needed = sum(content.count(sign) * size for sign, size in _BYTES_OF_JSON.items())
    if needed > 4 * len(content) + _SPARE:
        raise ValueError("it holds more values than any file of its kind")
    try:
        value = json.loads(content, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _SURROGATE.search(content):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_BYTES_OF_JSON: Mapping[str, int] = {"{": 190, "[": 90, ",": 80, ":": 80}
"""Sign -> the bytes that Python takes for what it begins or parts, at the most (measured: 188, 88, 79)."""

_SPARE = 48 << 20
"""Bytes that values may take beyond four times their text: no file that is meant well needs a tenth."""


def read_yaml(path: Path, *, aliases: bool = False) -> Any:
    """Return the content of the one document in the YAML file at ``path``, as YAML 1.1 plain values.

    Args:
        path: the file.
        aliases: whether it may hold any, as PyYAML writes them for a list that stands in two places. Their
            values count each time.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: not UTF-8, no YAML, over 2 MiB or 65536 values, nested too deeply, several documents, an
            alias, or a key stands twice in one mapping; with the line where it has one.

    """
    import yaml

    # The parser in C, where PyYAML was built with it, is ten times faster.
    kind: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = _bytes(path, most=_MOST_YAML).decode("utf-8")
    try:
        _check_events(content, kind, aliases)
        loader = kind(content)
        try:
            return _constructed(loader)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, OverflowError) as error:
        # The latter four come from values that a tag (!!int, !!timestamp) says to be what they are not.
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from None


_MOST_YAML = 2 << 20
_MOST_VALUES = 1 << 16
_MOST_DEPTH = 100


def _check_events(content: str, kind: Any, aliases: bool) -> None:
    """Refuse what would cost too much to be made into values; reading events needs no recursion."""
    import yaml

    depth, values = 0, 0
    begun: list[tuple[str | None, int]] = []  # of each collection that is open: its anchor, what came before
    sizes: dict[str, int] = {}
    for event in yaml.parse(content, kind):
        values += isinstance(event, yaml.NodeEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, values - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes |= {anchor: values - before} if anchor is not None else {}
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                raise ValueError("it holds an alias (*name): write the value out")
            if event.anchor not in sizes:  # not begun, or it would stand within itself
                raise ValueError(f"the alias *{event.anchor} stands for nothing that is whole before it")
            values += sizes[event.anchor] - 1
        if values > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES} values")
        if depth > _MOST_DEPTH:
            raise ValueError("it is nested too deeply")


def _constructed(loader: Any) -> Any:
    document = loader.get_single_node()
    if document is None:
        return None
    _check_keys(document)
    return loader.construct_document(document)


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


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of the TOML file at ``path``.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: not UTF-8, no TOML, over 1 MiB, or nested too deeply.

    """
    import tomllib

    try:
        return tomllib.loads(_bytes(path, most=_MOST_TOML).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


_MOST_TOML = 1 << 20


def table(data: object, *keys: str) -> dict[str, Any]:
    """Return the table of a TOML file to which ``keys`` lead, empty where none is there."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


@contextmanager
def opened_zip(path: Path, most: int) -> Iterator[zipfile.ZipFile]:
    """Open the zip archive at ``path``; what is raised while it is open is as :func:`unzipping` gives it.

    Raises:
        OSError: it cannot be read.
        ValueError: no whole archive, or one whose directory is larger than that of ``most`` files ever is.

    """
    import zipfile

    with unzipping():
        if _directory_size(path) > most * _LONGEST_ENTRY:
            raise ValueError(f"it has more than {most} files")
        with zipfile.ZipFile(path) as archive:
            yield archive


_LONGEST_ENTRY = 256  # bytes of a file in the directory of an archive, on average
_END, _LOCATOR, _END_64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"
_LONGEST_TAIL = 20 + 22 + 0xFFFF  # a locator, the end of the directory, a comment


def _directory_size(path: Path) -> int:
    """Return the bytes of an archive's directory, 0 where none is found.

    ``zipfile`` makes an object of every file in it, ten millions a minute, before anyone can count them.
    Source: PKWARE's APPNOTE, 4.3.14 to 4.3.16.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LONGEST_TAIL))
        tail = file.read()
        at = tail.rfind(_END)
        directory = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
        if directory == 0xFFFFFFFF and tail[at - 20 : at - 16] == _LOCATOR:
            file.seek(min(size, int.from_bytes(tail[at - 12 : at - 4], "little")))
            record = file.read(56)
            directory = int.from_bytes(record[40:48], "little") if record[:4] == _END_64 else 0
    return directory


@contextmanager
def unzipping() -> Iterator[None]:
    """Give all that ``zipfile`` and its decompressors raise on garbled data one type.

    Raises:
        ValueError: what was read within is no whole archive, or packed in a way that is not read.

    """
    import lzma
    import struct
    import zipfile
    import zlib

    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, IndexError),
        RuntimeError,  # encrypted; NotImplementedError, another method, is one too
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _bytes(path: Path, most: int | None = None) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError(None, "not a regular file")  # a pipe would be waited for without end
    with path.open("rb") as file:
        content = file.read() if most is None else file.read(most + 1)
    if most is not None and len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return content


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
