"""Changes to YAML as people write it: lines, indentation, anchors, tags, documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.odd import TEXTS, odd_value
from tests.fuzz.trees import text_bytes

Lines = list[str]

_VALUES: tuple[str, ...] = (
    *(
        "",
        "~",
        "null",
        "true",
        "no",
        "0",
        "-1",
        "0x1F",
        "0b1",
        "010",
        "1_000",
        "1e3",
        ".inf",
        "-.inf",
        ".nan",
    ),
    *(
        "12:30:00",
        "190:20:30",
        "2026-05-04",
        "2026-05-04T10:00:00Z",
        "2026-99-99",
        "[]",
        "{}",
        "[[]]",
        "{a: }",
    ),
    *(
        "{[a]: b}",
        "? a",
        "- a",
        "'",
        '"',
        '"\\x"',
        '"\\ud800"',
        '"\\0"',
        "|",
        ">",
        "|2",
        ">-",
        "|9",
        "&a",
        "*a",
    ),
    *("&a [*a]", "!!int x", "!!float x", "!!timestamp x", "!!binary '###'", "!!set {a, b}", "!!omap [a]"),
    *("!!python/object/apply:os.getpid []", "!!python/name:os.system", "!x y", "!<tag:x> y", "!!null x", "%"),
    *(
        "@a",
        "`a",
        "a: b",
        "a:b",
        "a #b",
        "[a, b",
        "{a: b",
        "[a]]",
        "<<",
        "=",
        "---",
        "...",
        "\t",
        " \t a",
        "?",
    ),
    *("{<<: [{a: 1}]}", "{<<: x}", "!!str {a: 1}", "!!map [a]", "!!seq {a: 1}", "!!bool x", "9" * 5000),
    *(
        "[" * 300,
        "{a: " * 300,
        "- " * 300,
        "1.2.3",
        "'a'b",
        "&a &b c",
        "*",
        "!",
        "!!",
        "|+-",
        "'" + "a" * 70_000,
    ),
)


def _gone(lines: Lines, place: int, chance: Random) -> Lines:
    return lines[:place] + lines[place + chance.choice((1, 1, 1, 3)) :]


def _twice(lines: Lines, place: int, chance: Random) -> Lines:
    return lines[: place + 1] + lines[place : place + chance.choice((1, 1, 2, 8))] + lines[place + 1 :]


def _elsewhere(lines: Lines, place: int, chance: Random) -> Lines:
    other = chance.randrange(len(lines))
    copy = list(lines)
    copy[place], copy[other] = copy[other], copy[place]
    return copy


def _indented(lines: Lines, place: int, chance: Random) -> Lines:
    line, by = lines[place], chance.choice((-4, -2, -1, 1, 2, 7, 300))
    new = line[-by:] if by < 0 else " " * by + line
    return [*lines[:place], new, *lines[place + 1 :]]


def _with_tab(lines: Lines, place: int, chance: Random) -> Lines:
    line = lines[place]
    new = chance.choice(("\t" + line, line.replace("  ", "\t", 1), line.replace(": ", ":\t", 1), line + "\t"))
    return [*lines[:place], new, *lines[place + 1 :]]


def _other_value(lines: Lines, place: int, chance: Random) -> Lines:
    key, colon, old = lines[place].partition(": ")
    value = chance.choice(_VALUES) if chance.random() < 0.6 else _as_flow(odd_value(chance, old))
    new = f"{key}{colon or ': '}{value}" if chance.random() < 0.8 else value
    return [*lines[:place], new, *lines[place + 1 :]]


def _as_flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _other_key(lines: Lines, place: int, chance: Random) -> Lines:
    key, colon, value = lines[place].partition(":")
    word = key.strip(" -")
    new = chance.choice(
        (*TEXTS, "<<", "? a", "[a, b]", "{a: b}", "*a", "&a b", "!!int 5", "null", "1", word * 2)
    )
    return [*lines[:place], f"{key.replace(word, new, 1)}{colon}{value}", *lines[place + 1 :]]


def _anchored(lines: Lines, place: int, chance: Random) -> Lines:
    """An anchor here and an alias, or a merge, further down."""
    copy, other = list(lines), chance.randrange(len(lines))
    copy[place] = copy[place].replace(": ", ": &x ", 1) if ": " in copy[place] else copy[place] + " &x"
    key, colon, _ = copy[other].partition(": ")
    copy[other] = f"{key}{colon}*x" if colon and chance.random() < 0.7 else f"{' ' * len(key)}<<: *x"
    return copy


def _bomb(lines: Lines, place: int, chance: Random) -> Lines:
    if chance.random() < 0.9:  # a bomb costs what a hundred other changes do
        return _anchored(lines, place, chance)
    levels, width = chance.choice(((9, 9), (30, 2), (4, 60), (200, 2)))
    first = f"a0: &a0 [{', '.join(['x'] * width)}]"
    rest = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return [*lines, first, *rest] if chance.random() < 0.5 else [first, *rest, *lines]


def _documents(lines: Lines, place: int, chance: Random) -> Lines:
    mark = chance.choice(("---", "...", "--- a", "%YAML 1.2", "%TAG ! x", "--- !!map", "--- |", "%"))
    return [*lines[:place], mark, *lines[place:]]


def _other_line(lines: Lines, place: int, chance: Random) -> Lines:
    return [*lines[:place], chance.choice((*_VALUES, *TEXTS)), *lines[place:]]


def _line_ends(lines: Lines, place: int, chance: Random) -> Lines:
    end = chance.choice(("\r", "\x85", "\u2028", "\x0b", "\x0c", "\r\r", " "))
    return [line + end for line in lines] if chance.random() < 0.5 else [end.join(lines)]


_CHANGES: tuple[Callable[[Lines, int, Random], Lines], ...] = (
    *(_gone, _twice, _elsewhere, _indented, _with_tab, _other_value, _other_value, _other_value, _other_key),
    *(_anchored, _bomb, _documents, _other_line, _line_ends),
)


def yaml_bytes(text: str, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return a YAML text with one to three changes, and what they are."""
    if chance.random() < 0.15:
        return text_bytes(text.encode("utf-8", "surrogatepass"), chance)
    lines, words = text.split("\n"), []
    for change in chance.choices(_CHANGES, k=chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(len(lines))
        words.append(f"{change.__name__.strip('_').replace('_', ' ')} at line {place + 1}")
        lines = change(lines, place, chance) or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass"), tuple(words)


def large_yaml(text: str, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return a text of up to two megabytes: many values, deep or long ones."""
    piece, end = chance.choice(
        (("- b\n", ""), ("b, ", "]"), ("[], ", "]"), ("a b: - # ", ""), ("{a: {}}, ", "]"))
    )
    start = {"": "\nmany:\n" if piece.endswith("\n") else "\nmany: '", "]": "\nmany: ["}[end]
    if start.endswith("'"):
        end = "'"
    size = chance.choice((1 << 14, 1 << 17, 1 << 20, (1 << 21) - len(text) - 100))
    many = piece * (size // len(piece))
    return (text + start + many + end + "\n").encode("utf-8", "surrogatepass"), (
        f"{size} bytes of {piece!r}",
    )


_TOML_VALUES = (
    *(
        '""',
        "''",
        '"""',
        "1",
        "-1",
        "1.5",
        "nan",
        "inf",
        "true",
        "[]",
        "{}",
        "[1]",
        '["a"]',
        "[[]]",
        "{a = 1}",
    ),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "9" * 5000, '"\\u0000"', '"\\ud800"', "[" * 300, "x"),
    *(
        '{code = "says-not-yet"}',
        "[{}]",
        '"' + "a" * 70_000 + '"',
        "0x1F",
        "1_000",
        '"../.."',
        '"/"',
        '"\\\\"',
    ),
)


def _other_toml_value(lines: Lines, place: int, chance: Random) -> Lines:
    key, sign, _ = lines[place].partition(" = ")
    new = f"{key}{sign or ' = '}{chance.choice(_TOML_VALUES)}"
    return [*lines[:place], new, *lines[place + 1 :]]


def toml_bytes(text: str, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return a TOML text with one to three changes, and what they are."""
    if chance.random() < 0.2:
        return text_bytes(text.encode("utf-8", "surrogatepass"), chance)
    usual = (
        _gone,
        _twice,
        _elsewhere,
        _indented,
        _other_toml_value,
        _other_toml_value,
        _other_line,
        _line_ends,
    )
    lines, words = text.split("\n"), []
    for change in chance.choices(usual, k=chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(len(lines))
        words.append(f"{change.__name__.strip('_').replace('_', ' ')} at line {place + 1}")
        lines = change(lines, place, chance) or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass"), tuple(words)
