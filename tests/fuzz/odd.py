"""Values that readers stumble over: the edges of every type, and values of other types."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

Item = TypeVar("Item")

EDGES: tuple[int, ...] = (
    *(0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256, 257, 1023, 1024, 4096),
    *(0x7FFF, 0x8000, 0xFFFF, 0x10000, 1 << 20, 1 << 24, (1 << 24) + 1, 1 << 28),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 48, 1 << 61),
    *((1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
"""Whole numbers at which counts, sizes and offsets overflow, alone or in a product."""

NUMBERS: tuple[Any, ...] = (
    *(-1, -2, -(1 << 31), -(1 << 63), 1 << 64, 10**40, 10**4000, -0.0, 0.5, 1.5, 2.0, 1e-320, 1e308, -1e308),
    *(float("inf"), float("-inf"), float("nan"), True, False),
)
"""Numbers that are no sizes; the last are literals that JSON does not have and Python's reader takes."""

TEXTS: tuple[str, ...] = (
    *("", " ", "\0", "a\0b", "\ud800", "\udcff", "\x1b[31m", "\n", "\t", "../x", "/etc/passwd", "/", "."),
    *(
        "..",
        "~",
        "a" * 300,
        "a" * 70_000,
        "\u202e",
        "\ufeff",
        "é",
        "İ",
        "\U0001f600",
        "null",
        "true",
        "1",
        "-1",
    ),
    *("NaN", "1e999", "{layer}", "{", "}", "{0}", "{x.y}", "%s", "%n", "${x}", "\\", '"', "'", "__class__"),
    *("f32", "bf16", "q4_k", "cpu", "unknown", "*", "[", "(" * 200, "a" * 64, "0" * 64, "2" * 5000),
)

EMPTY: tuple[Any, ...] = (None, [], {}, [[]], [None], {"": None}, [0], {"a": 1})


def deep(levels: int, of_objects: bool = False) -> Any:
    """Return a value nested so deeply."""
    found: Any = 0
    for _ in range(levels):
        found = {"a": found} if of_objects else [found]
    return found


def odd_value(chance: Random, old: Any = None) -> Any:
    """Return a value to put in the place of ``old``: often near it, often of another type."""
    kind = chance.randrange(10)
    if kind < 3 and type(old) is int:
        return near(chance, old)
    if kind < 3 and isinstance(old, str):
        return near_text(chance, old)
    if kind == 3:
        return other_type(chance, old)
    if kind == 4:
        return chance.choice(EMPTY)
    if kind == 5:
        return deep(chance.choice((3, 50, 150, 400)), chance.random() < 0.5)
    if kind == 6:
        return [chance.choice(EDGES)] * chance.choice((1, 2, 3, 5, 100, 5000))
    return chance.choice(chance.choice((EDGES, NUMBERS, TEXTS)))


def near(chance: Random, old: int) -> int:
    """Return a whole number that is nearly ``old``."""
    return chance.choice((old - 1, old + 1, -old, 2 * old, old // 2, old ^ 1, old << 8, old + (1 << 32)))


def near_text(chance: Random, old: str) -> str:
    """Return ``old`` with one thing changed."""
    at = chance.randrange(len(old) + 1)
    piece = chance.choice(TEXTS)
    return chance.choice(
        (old + piece, piece + old, old[:at], old[at:], old[:at] + piece + old[at:], old.upper(), old * 2)
    )


def other_type(chance: Random, old: Any) -> Any:
    """Return what ``old`` says in a value of another type."""
    words: tuple[Any, ...] = (str(old), [old], {"value": old}, None, True)
    if isinstance(old, str) and old.lstrip("-").isdecimal() and len(old) < 20:
        words = (*words, int(old))
    if type(old) is int and abs(old) < 1 << 53:
        words = (*words, float(old), bool(old), str(old))
    if isinstance(old, dict):
        words = (*words, list(old), list(old.items()), list(old.values()))
    if isinstance(old, list):
        words = (*words, dict.fromkeys(map(str, old)), {str(n): one for n, one in enumerate(old)})
    return chance.choice(words)


def some_of(chance: Random, items: Sequence[Item]) -> Item | None:
    """Return one of ``items``, ``None`` where there is none."""
    return chance.choice(items) if items else None
