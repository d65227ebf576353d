"""Expressions by which nextest chooses tests: ``package(a) & test(/name/)``.

Source: nextest's documentation, "Filterset DSL reference".
"""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What an expression may ask of a test."""

    package: str
    kind: str
    binary: str
    test: str


Expression = tuple[str, tuple["Expression", ...], str]


@functools.lru_cache(1024)
def parse_filterset(text: str) -> Expression | None:
    """Read an expression; ``None`` where it is none, or asks what only cargo knows."""
    try:
        expression, at = _either(text, 0)
    except (ValueError, RecursionError):
        return None
    return expression if not text[at:].strip() else None


def chooses(expression: Expression, one: Named) -> bool | None:
    """Whether an expression chooses a test; ``None`` where it asks what is not known here."""
    word, inner, text = expression
    found = [chooses(part, one) for part in inner]
    if word == "not":
        return None if found[0] is None else not found[0]
    if word == "and":
        return False if False in found else None if None in found else True
    if word == "or":
        return True if True in found else None if None in found else False
    return _asked(word, text, one)


def tests_named(expression: Expression) -> list[str]:
    """Return the texts of all ``test(..)`` that stand under no ``not``."""
    word, inner, text = expression
    if word == "not":
        return []
    return [text] if word == "test" else [name for part in inner for name in tests_named(part)]


def _asked(word: str, text: str, one: Named) -> bool | None:
    if word in ("all", "none"):
        return word == "all"
    values = {
        "test": (one.test, "~"),
        "package": (one.package, "#"),
        "kind": (one.kind, "="),
        "binary": (one.binary, "#"),
    }
    if word not in values:
        return None  # deps(..), rdeps(..), platform(..), binary_id(..), default()
    value, usual = values[word]
    return _matches(text.strip(), value, usual)


def _matches(text: str, value: str, usual: str) -> bool | None:
    kind, pattern = (text[0], text[1:]) if text[:1] in ("=", "~", "#") else (usual, text)
    if len(text) > 1 and text[0] == "/" and text[-1] == "/":
        try:
            return re.search(text[1:-1], value) is not None
        except re.error:
            return None  # Rust's own syntax
    if kind == "=":
        return value == pattern
    return pattern in value if kind == "~" else fnmatch.fnmatchcase(value, pattern)


_OR = re.compile(r"\s*(?:\bor\b|\|\|?|\+)")
_AND = re.compile(r"\s*(?:\band\b|&&?|(?P<less>-))")
_NOT = re.compile(r"\s*(?:\bnot\b|!)")
_OPEN, _CLOSE = re.compile(r"\s*\("), re.compile(r"\s*\)")
_CALL = re.compile(r"\s*([a-z_]+)\s*\(")
_REGEX = re.compile(r"\s*/(?:[^/\\]|\\.)*/\s*")


def _either(text: str, at: int) -> tuple[Expression, int]:
    found, at = _both(text, at)
    parts = [found]
    while match := _OR.match(text, at):
        found, at = _both(text, match.end())
        parts.append(found)
    return (parts[0] if len(parts) == 1 else ("or", tuple(parts), "")), at


def _both(text: str, at: int) -> tuple[Expression, int]:
    found, at = _one(text, at)
    parts = [found]
    while match := _AND.match(text, at):
        found, at = _one(text, match.end())
        parts.append(("not", (found,), "") if match["less"] else found)
    return (parts[0] if len(parts) == 1 else ("and", tuple(parts), "")), at


def _one(text: str, at: int) -> tuple[Expression, int]:
    if match := _NOT.match(text, at):
        found, at = _one(text, match.end())
        return ("not", (found,), ""), at
    if match := _OPEN.match(text, at):
        found, at = _either(text, match.end())
        return found, _closed(text, at)
    match = _CALL.match(text, at)
    if match is None:
        raise ValueError("neither a predicate nor a bracket")
    end = _end_of_argument(text, match.end())
    return (match[1], (), text[match.end() : end]), end + 1


def _closed(text: str, at: int) -> int:
    match = _CLOSE.match(text, at)
    if match is None:
        raise ValueError("a bracket is not closed")
    return match.end()


def _end_of_argument(text: str, at: int) -> int:
    """A pattern between slashes may hold brackets."""
    regex = _REGEX.match(text, at)
    end = text.find(")", regex.end() if regex else at)
    if end < 0:
        raise ValueError("a bracket is not closed")
    return end
