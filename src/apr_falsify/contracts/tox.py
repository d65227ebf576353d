"""The environments of tox: which there are, and the commands of one.

Source: tox 4's documentation, "Configuration": ``tox.ini`` and, as TOML, ``tox.toml`` and ``[tool.tox]`` of
``pyproject.toml``, where ``legacy_tox_ini`` holds the text of a ``tox.ini``.
"""

from __future__ import annotations

import configparser
import functools
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from apr_falsify.contracts.names import expand_braces

_FOLDERS = re.compile(r"\{(?:toxinidir|tox_root)\}/?")
_POSARGS = re.compile(r"\{posargs(?::([^{}]*))?\}|\[\]")
PREFIX = "@-+ \t"
"""What may stand before a command: whether it is shown, and whether its failure counts."""


def environments_of(text: str) -> set[str] | None:
    """Return the factors that a file makes names of; ``None`` where nothing of tox stands in it."""
    table = _table(text)
    if table is not None:
        listed = [one for one in _list(table.get("env_list")) if isinstance(one, str)]
        return {word for one in (*listed, *_tables(table.get("env"))) for word in re.findall(r"[\w.]+", one)}
    sections = _sections(text)
    if "tox" not in sections and "testenv" not in sections:
        return None
    listed = [sections["tox"].get(one, "") for one in ("envlist", "env_list")] if "tox" in sections else []
    named = [one.partition(":")[2] for one in sections if one.startswith("testenv:")]
    conditions = re.findall(r"^[ \t]+([\w.,!{}-]+):(?:\s|$)", text, re.MULTILINE)
    return {word for one in (*listed, *named, *conditions) for word in re.findall(r"[\w.]+", one)}


def commands_of_environment(name: str, text: str, arguments: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Give the line and the text of each command of an environment that is known without tox.

    Args:
        name: of the environment.
        text: of the file.
        arguments: what is handed on for ``posargs``.

    """
    table = _table(text)
    if table is not None:
        yield from _of_toml(name, text, table, arguments)
        return
    sections = _sections(text)
    own, base = sections.get(f"testenv:{name}"), sections.get("testenv")
    section = next((one for one in (own, base) if one is not None and "commands" in one), None)
    if section is None:
        return
    folder = next((one["changedir"] for one in (own, base) if one is not None and "changedir" in one), "")
    given = shlex.join(arguments)
    for line in re.sub(r"\\\n\s*", " ", section["commands"]).splitlines():
        whole = (
            _POSARGS.sub(lambda match: given or match[1] or "", _FOLDERS.sub("", line))
            .lstrip(PREFIX)
            .rstrip()
        )
        condition = _CONDITION.match(whole)
        if condition and not _applies(condition[1], name):
            continue
        whole = whole[condition.end() :] if condition else whole
        if not whole or re.search(r"\{[^}]*\}", whole):
            continue  # what only tox knows
        yield _line_of(text, line), _in_folder(folder, whole)


_CONDITION = re.compile(r"^([\w,!{}.-]+):\s+")


def _applies(condition: str, name: str) -> bool:
    """Whether a line of these factors (``py{311,312}-full,!slow``) is of an environment."""
    factors = name.split("-")
    alternatives = re.split(r",(?![^{}]*\})", condition)
    every = (one.split("-") for each in alternatives for one in expand_braces(each))
    return any(
        all((one[1:] not in factors) if one[:1] == "!" else one in factors for one in all_of)
        for all_of in every
    )


def _in_folder(folder: str, command: str) -> str:
    inside = _FOLDERS.sub("", folder).strip()
    return f"cd {inside} && {command}" if inside else command


def _line_of(text: str, line: str) -> int:
    at = text.find(line.strip().split("\\")[0])
    return text.count("\n", 0, max(at, 0)) + 1


def _sections(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_legacy(text))
    except configparser.Error:
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}


@functools.lru_cache(64)
def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _legacy(text: str) -> str:
    held = _tables(_tables(_parsed(text).get("tool")).get("tox")).get("legacy_tox_ini")
    return held if isinstance(held, str) else text


def _table(text: str) -> Mapping[str, Any] | None:
    """Return tox's own table of a TOML file."""
    top = _parsed(text)
    table = _tables(_tables(top.get("tool")).get("tox")) or top
    known = {"env_list", "env_run_base", "env"} & table.keys()
    return table if known and "legacy_tox_ini" not in table else None


def _tables(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _of_toml(
    name: str, text: str, table: Mapping[str, Any], arguments: tuple[str, ...]
) -> Iterator[tuple[int, str]]:
    """Give the commands of a TOML environment: lists of words, ``posargs`` as a table in their place."""
    own, base = _tables(_tables(table.get("env")).get(name)), _tables(table.get("env_run_base"))
    merged = {**base, **own}
    folder = merged.get("change_dir", merged.get("changedir", ""))
    for words in _list(merged.get("commands")):
        found = [part for word in _list(words) for part in _words(word, arguments)]
        if not found or any(part is None or re.search(r"\{[^}]*\}", part) for part in found):
            continue  # what only tox knows
        command = shlex.join(part for part in found if part is not None).lstrip(PREFIX)
        longest = max((word for word in words if isinstance(word, str)), key=len, default="")
        yield _line_of(text, longest), _in_folder(folder if isinstance(folder, str) else "", command)


def _words(word: object, arguments: tuple[str, ...]) -> list[str | None]:
    """Return what a word of a command stands for; ``None`` is what only tox knows."""
    if isinstance(word, str):
        return [_FOLDERS.sub("", word)]
    table = _tables(word)
    if table.get("replace") != "posargs":
        return [None]
    return [*arguments] or [one if isinstance(one, str) else None for one in _list(table.get("default"))]
