"""Expressions of ``pytest -k`` and ``-m``: ``a and not (b or c)``, decided in three values.

Source: pytest's documentation, "Using -k expr to select tests based on their name" and "Using markers".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

Decide = Callable[[str], bool | None]
"""A name -> whether it holds of a test; ``None`` where that is not known."""

Expression = tuple[str, tuple["Expression", ...]]
"""``and``, ``or``, ``not`` and what they join; or a name and nothing."""

_TOKEN = re.compile(
    r"\s*(?:(?P<sign>[()])|(?P<call>(?:\w|:|\+|-|\.|\[|\]|/|\\)+\(.*?\))|(?P<word>(?:\w|:|\+|-|\.|\[|\]|/|\\)+))"
)


@functools.lru_cache(1024)
def parse_expression(text: str) -> Expression | None:
    """Read an expression; ``None`` where pytest would refuse it, or it asks for a mark's arguments."""
    tokens: list[str] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match["call"]:
            return None
        tokens.append(match["sign"] or match["word"])
        at = match.end()
    try:
        found, at = _either(tokens, 0)
    except (IndexError, ValueError, RecursionError):
        return None
    return found if at == len(tokens) else None


def chooses(expression: Expression, decide: Decide) -> bool | None:
    """Whether an expression chooses a test."""
    word, inner = expression
    found = [chooses(one, decide) for one in inner]
    if word == "not" and inner:
        return None if found[0] is None else not found[0]
    if word == "and" and inner:
        return False if False in found else None if None in found else True
    if word == "or" and inner:
        return True if True in found else None if None in found else False
    return decide(word)


def alternatives(expression: Expression) -> list[Expression]:
    """Return the parts of which any is enough."""
    word, inner = expression
    return [one for part in inner for one in alternatives(part)] if word == "or" and inner else [expression]


def shown(expression: Expression) -> str:
    """An expression as it is written."""
    word, inner = expression
    if not inner:
        return word
    parts = [f"({shown(one)})" if one[0] == "or" and one[1] else shown(one) for one in inner]
    return f"not {parts[0]}" if word == "not" else f" {word} ".join(parts)


def names_in(expression: Expression) -> list[str]:
    """Return the names that stand under no ``not``."""
    word, inner = expression
    if word == "not" and inner:
        return []
    return [name for one in inner for name in names_in(one)] if inner else [word]


def _either(tokens: list[str], at: int) -> tuple[Expression, int]:
    found, at = _both(tokens, at)
    parts = [found]
    while at < len(tokens) and tokens[at] == "or":
        found, at = _both(tokens, at + 1)
        parts.append(found)
    return (found if len(parts) == 1 else ("or", tuple(parts))), at


def _both(tokens: list[str], at: int) -> tuple[Expression, int]:
    found, at = _one(tokens, at)
    parts = [found]
    while at < len(tokens) and tokens[at] == "and":
        found, at = _one(tokens, at + 1)
        parts.append(found)
    return (found if len(parts) == 1 else ("and", tuple(parts))), at


def _one(tokens: list[str], at: int) -> tuple[Expression, int]:
    token = tokens[at]
    if token == "not":
        found, at = _one(tokens, at + 1)
        return ("not", (found,)), at
    if token == "(":
        found, at = _either(tokens, at + 1)
        if tokens[at] != ")":
            raise ValueError("a bracket is not closed")
        return found, at + 1
    if token in (")", "and", "or"):
        raise ValueError("a name was expected")
    return (token, ()), at + 1
