"""Changes to a JSON or YAML value, and to its text: other types, entries gone, twice, in disorder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.odd import TEXTS, near_text, odd_value

Path = tuple[str | int, ...]
Change = Callable[[Random, Any], tuple[Any, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A sound value, and the ways to everything in it.

    Attributes:
        value: the value.
        paths: keys and indexes that lead to each value within, the containers among them first.
        containers: how many of them lead to lists and objects.

    """

    value: Any
    paths: tuple[Path, ...]
    containers: int


def tree(value: Any) -> Tree:
    """Return ``value`` with the ways through it."""
    found = list(_paths(value, ()))
    inner = [path for path in found if isinstance(at(value, path), dict | list)]
    leaves = [path for path in found if not isinstance(at(value, path), dict | list)]
    return Tree(value=value, paths=(*inner, *leaves), containers=len(inner))


def _paths(value: Any, path: Path) -> Iterator[Path]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def at(value: Any, path: Path) -> Any:
    """Return what lies at ``path``."""
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    """Return ``value`` with ``new`` at ``path``; what is not on the way there is shared."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def _replaced(chance: Random, old: Any) -> tuple[Any, str]:
    new = odd_value(chance, old)
    return new, f"= {_short(new)}"


def _without(chance: Random, old: Any) -> tuple[Any, str]:
    keys = list(old) if isinstance(old, dict) else list(range(len(old)))
    gone = chance.choice(keys) if keys else None
    if isinstance(old, dict):
        return {key: one for key, one in old.items() if key != gone}, f"without {gone!r}"
    return [one for index, one in enumerate(old) if index != gone], f"without [{gone}]"


def _renamed(chance: Random, old: Any) -> tuple[Any, str]:
    if not isinstance(old, dict) or not old:
        return _reordered(chance, old)
    key = chance.choice(list(old))
    new = near_text(chance, key) if chance.random() < 0.5 else chance.choice((*TEXTS, *old))
    return {new if one == key else one: value for one, value in old.items()}, f"{key!r} -> {new!r:.60}"


def _more(chance: Random, old: Any) -> tuple[Any, str]:
    value = odd_value(chance, chance.choice(list(old.values() if isinstance(old, dict) else old) or [0]))
    if isinstance(old, dict):
        return {**old, chance.choice(TEXTS): value}, "one key more"
    place = chance.randrange(len(old) + 1)
    return [*old[:place], value, *old[place:]], "one item more"


def _repeated(chance: Random, old: Any) -> tuple[Any, str]:
    """Many times the same: what costs little in a file may cost much in memory, or in time."""
    times = min(chance.choice((2, 2, 2, 2, 3, 10, 100, 2000)), 20_000 // _values(old, 20_000) + 1)
    if isinstance(old, dict):
        items = list(old.items())
        pairs = [(f"{key}#{n}" if n else key, value) for n in range(times) for key, value in items]
        return dict(pairs), f"x {times}"
    return old * times, f"x {times}"


def _values(value: Any, most: int) -> int:
    """Return how many values ``value`` consists of, a long text counted as several, or ``most``."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    count = 1 + len(value) // 50 if isinstance(value, str) else 1
    for one in inner:
        if count >= most:
            return most
        count += _values(one, most - count)
    return min(count, most)


def _reordered(chance: Random, old: Any) -> tuple[Any, str]:
    items = list(old.items() if isinstance(old, dict) else old)
    chance.shuffle(items)
    return dict(items) if isinstance(old, dict) else items, "in disorder"


def _exchanged(chance: Random, old: Any) -> tuple[Any, str]:
    """Two values in each other's place."""
    if len(old) < 2:
        return _more(chance, old)
    one, other = chance.sample(list(old) if isinstance(old, dict) else range(len(old)), 2)
    copy = dict(old) if isinstance(old, dict) else list(old)
    copy[one], copy[other] = old[other], old[one]
    return copy, f"{one!r} <-> {other!r}"


_OF_CONTAINERS: tuple[Change, ...] = (_without, _renamed, _more, _repeated, _reordered, _exchanged)


def changed(sound: Tree, chance: Random) -> tuple[Any, tuple[str, ...]]:
    """Return the value with one to three changes, and what they are."""
    value, words = sound.value, []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        container = chance.random() < 0.35
        path = sound.paths[chance.randrange(sound.containers if container else len(sound.paths))]
        try:
            old = at(value, path)
        except (LookupError, TypeError):
            continue  # an earlier change took it away
        container &= isinstance(old, dict | list)
        change = chance.choice(_OF_CONTAINERS) if container else _replaced
        if not container and chance.random() < 0.15:
            new, said = _elsewhere(sound, chance)
        else:
            new, said = change(chance, old)
        value = put(value, path, new)
        words.append(f"{'.'.join(map(str, path)) or 'all'} {said}")
    return value, tuple(words)


def _elsewhere(sound: Tree, chance: Random) -> tuple[Any, str]:
    path = chance.choice(sound.paths)
    return at(sound.value, path), f"= what {'.'.join(map(str, path)) or 'all'} is"


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def json_text(value: Any, chance: Random) -> str:
    """Write ``value`` as JSON: as usual, indented, or packed and with characters as they are."""
    style = chance.random()
    if style < 0.05:  # rarely, as Python itself writes it, and not its C code
        return json.dumps(value, indent=1)
    return json.dumps(value) if style < 0.5 else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def json_bytes(sound: Tree, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return the JSON of a changed value, or a changed text of the sound one."""
    if chance.random() < 0.75:
        value, words = changed(sound, chance)
        return json_text(value, chance).encode("utf-8", "surrogatepass"), words
    return text_bytes(json_text(sound.value, chance).encode("utf-8", "surrogatepass"), chance)


def text_bytes(data: bytes, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return a text with a change that no value has: another encoding, cut off, a key twice, a bomb."""
    change = chance.choice(_OF_TEXTS)
    return change(data, chance), (change.__name__.strip("_").replace("_", " "),)


def _cut_off(data: bytes, chance: Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _a_byte_order_mark(data: bytes, chance: Random) -> bytes:
    return b"\xef\xbb\xbf" + data


def _utf_16(data: bytes, chance: Random) -> bytes:
    return data.decode("utf-8", "replace").encode(chance.choice(("utf-16", "utf-16-le", "utf-32")))


def _text_behind_it(data: bytes, chance: Random) -> bytes:
    return data + chance.choice((b"x", b"\0", b"{}", b"\n" * 5000, data))


def _a_piece_twice(data: bytes, chance: Random) -> bytes:
    """Of JSON with a key a line: that key twice."""
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def _a_key_twice(data: bytes, chance: Random) -> bytes:
    keys = [data.find(b'"', place) for place in (chance.randrange(len(data) or 1) for _ in range(4))]
    place = max(keys)
    end = data.find(b'"', place + 1)
    key = data[place : end + 1]
    return data.replace(b"{", b"{" + key + b": 1, " + key + b": 2, ", 1) if key else data


def _a_piece_gone(data: bytes, chance: Random) -> bytes:
    place, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 5, 50))
    return data[:place] + data[place + size :]


def _a_character_else(data: bytes, chance: Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    scraps = (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"-")
    return data[:place] + chance.choice(scraps) + data[place + 1 :]


def _a_number_else(data: bytes, chance: Random) -> bytes:
    digits = [
        place for place in (chance.randrange(len(data) or 1) for _ in range(20)) if _is_digit(data, place)
    ]
    numbers = (b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"0x1", b"01", b"1_0", b"-0", b"1e-400", b"1.")
    place = digits[0] if digits else 0
    return data[:place] + chance.choice(numbers) + data[place + 1 :]


def _is_digit(data: bytes, place: int) -> bool:
    return data[place : place + 1].isdigit()


def _nested_deeply(data: bytes, chance: Random) -> bytes:
    levels = chance.choice((500, 995, 1100, 5000, 100_000))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b""), (b'[{"a":', b"}]")))
    inner = data if chance.random() < 0.3 else b"1"
    return opened * levels + inner + closed * levels


def _many_small_values(data: bytes, chance: Random) -> bytes:
    """A megabyte or more of the values that cost most memory a byte."""
    piece = chance.choice((b"[],", b"{},", b'{"a":{}},', b"-9,", b'"ab",', b"1e1,", b"[[[[]]]],", b"null,"))
    size = chance.choice((1 << 12, 1 << 16, 1 << 16, 1 << 20, 1 << 22))
    many = b"[" + piece * (size // len(piece)) + b"0]"
    spot = data.rfind(b"}")
    return data[:spot] + b', "extra": ' + many + data[spot:] if spot >= 0 and chance.random() < 0.5 else many


_OF_TEXTS: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_cut_off, _a_byte_order_mark, _utf_16, _text_behind_it, _a_piece_twice, _a_key_twice, _a_piece_gone),
    *(_a_character_else, _a_character_else, _a_number_else, _a_number_else, _nested_deeply),
)

_OF_LARGE_TEXTS: tuple[Callable[[bytes, Random], bytes], ...] = (_many_small_values,)

LARGE = 0.002
"""The share of inputs that are some megabytes, as they cost what a thousand others do."""


def maybe_large(data: bytes, chance: Random) -> tuple[bytes, tuple[str, ...]] | None:
    """Return, now and then, a text of megabytes made from ``data``."""
    if chance.random() >= LARGE:
        return None
    change = chance.choice(_OF_LARGE_TEXTS)
    return change(data, chance), (change.__name__.strip("_").replace("_", " "),)
