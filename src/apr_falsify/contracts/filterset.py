"""Expressions by which nextest chooses tests: ``package(a) & test(/name/)``.

Source: nextest's documentation, "Filterset DSL reference".
"""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass

from apr_falsify.contracts.names import expand_braces

_KNOWN = frozenset(
    "all none test group package deps rdeps binary_id kind binary platform default".split()  # noqa: SIM905 - a table of words reads best as words
)
"""Every predicate that nextest knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What an expression may ask of a test."""

    package: str
    kind: str
    binary: str
    test: str

    @property
    def binary_id(self) -> str:
        """``package``, ``package::test``, ``package::bin/tool``."""
        if self.kind == "lib":
            return self.package
        return f"{self.package}::{self.binary if self.kind == 'test' else f'{self.kind}/{self.binary}'}"


Expression = tuple[str, tuple["Expression", ...], str]


@functools.lru_cache(1024)
def parse_filterset(text: str) -> Expression | None:
    """Read an expression; ``None`` where it is none."""
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


def alternatives(expression: Expression) -> list[Expression]:
    """Return the parts of which any is enough: ``test(a) + test(b)`` names two tests."""
    word, inner, _ = expression
    return [one for part in inner for one in alternatives(part)] if word == "or" else [expression]


def any_of(expressions: list[Expression]) -> Expression:
    """Return the expression that chooses what one of several chooses, as several ``-E`` do."""
    return expressions[0] if len(expressions) == 1 else ("or", tuple(expressions), "")


def both(expression: Expression, part: str) -> Expression:
    """Return the expression of the tests that it chooses and whose path holds ``part``."""
    return ("and", (expression, ("holds", (), part)), "")


def tests_named(expression: Expression) -> list[str]:
    """Return the names in all ``test(..)`` that stand under no ``not``, their escapes undone."""
    word, inner, text = expression
    if word == "not":
        return []
    if word == "holds":
        return [text]
    if word == "test":
        return [_unescaped(text.strip().lstrip("=~#"))]
    return [name for part in inner for name in tests_named(part)]


def _asked(word: str, text: str, one: Named) -> bool | None:
    if word in ("all", "none"):
        return word == "all"
    if word == "holds":
        return text in one.test
    if word == "binary" and one.kind == "lib":  # cargo calls a library's target by either spelling
        found = [_matches(text.strip(), name, "#") for name in (one.binary, one.binary.replace("-", "_"))]
        return True if True in found else found[0]
    if word == "kind" and one.kind == "lib" and "proc" in text:
        return None  # a library of procedural macros is of a kind of its own
    values = {
        "test": (one.test, "~"),
        "package": (one.package, "#"),
        "kind": (one.kind, "="),
        "binary": (one.binary, "#"),
        "binary_id": (one.binary_id, "#"),
    }
    if word not in values:
        return None  # deps(..), rdeps(..), platform(..), group(..), default()
    value, usual = values[word]
    return _matches(text.strip(), value, usual)


_NESTED = re.compile(r"[+*}][?+]?\)[+*{]|\\\d")
"""A repetition of a repetition, or a reference to a group."""


def _matches(text: str, value: str, usual: str) -> bool | None:
    if len(text) > 1 and text[0] == "/" and text[-1] == "/":
        if _NESTED.search(text):
            return None  # may take for ever
        try:
            return re.search(text[1:-1].replace("\\/", "/"), value) is not None
        except re.error:
            return None  # Rust's own syntax
    kind, pattern = (text[0], text[1:].strip()) if text[:1] in ("=", "~", "#") else (usual, text)
    if kind == "#":
        glob = _of_glob(pattern)
        return None if glob is None else glob.match(value) is not None
    pattern = _unescaped(pattern)
    return value == pattern if kind == "=" else pattern in value


_ESCAPE = re.compile(r"\\(?:u\{(?P<code>[0-9A-Fa-f]{1,6})\}|(?P<sign>.))", re.DOTALL)
_SIGNS = {"n": "\n", "r": "\r", "t": "\t"}


def _unescaped(text: str) -> str:
    def undo(match: re.Match[str]) -> str:
        if match["code"]:
            code = int(match["code"], 16)
            return chr(code) if code < 0x110000 else ""
        return _SIGNS.get(match["sign"], match["sign"])

    return _ESCAPE.sub(undo, text)


_GLOB_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_MOST_ALTERNATIVES = 256


@functools.lru_cache(1024)
def _of_glob(pattern: str) -> re.Pattern[str] | None:
    """A glob as globset reads it: ``*``, ``?``, ``[a-z]``, ``[!a]``, ``{a,b}``; ``None``."""
    plain = _GLOB_ESCAPE.sub(r"[\1]", pattern).replace("[^", "[!")
    count = 1
    for inner in re.findall(r"\{([^{}]*)\}", plain):
        count *= inner.count(",") + 1
    if count > _MOST_ALTERNATIVES:
        return None
    return re.compile("|".join(map(fnmatch.translate, expand_braces(plain))))


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
    if match is None or match[1] not in _KNOWN:
        raise ValueError("neither a predicate nor a bracket")
    end = _end_of_argument(text, match.end())
    return (match[1], (), text[match.end() : end]), end + 1


def _closed(text: str, at: int) -> int:
    match = _CLOSE.match(text, at)
    if match is None:
        raise ValueError("a bracket is not closed")
    return match.end()


_ARGUMENT = re.compile(r"(?:[^\\)]|\\.)*", re.DOTALL)


def _end_of_argument(text: str, at: int) -> int:
    """A pattern between slashes may hold brackets; elsewhere one that is escaped is a letter."""
    regex = _REGEX.match(text, at)
    argument = _ARGUMENT.match(text, regex.end() if regex else at)
    end = argument.end() if argument else len(text)
    if end >= len(text):
        raise ValueError("a bracket is not closed")
    return end
