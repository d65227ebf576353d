"""Changes to a binary file whose fields are known: numbers at their edges, sections moved, ends cut off."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from tests.fuzz.odd import EDGES, near


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Some bytes of a file that belong together.

    Attributes:
        start: the first.
        stop: the one behind the last.
        name: what they are.

    """

    start: int
    stop: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A sound file and where its fields lie.

    Attributes:
        data: its bytes.
        numbers: its counts, sizes, offsets and codes, little-endian.
        texts: its names and other texts.
        sections: what may be there twice, or left out, or in another order.

    """

    data: bytes
    numbers: tuple[Span, ...] = ()
    texts: tuple[Span, ...] = ()
    sections: tuple[Span, ...] = ()


Said = tuple[bytes, str]
"""Changed bytes, and what was changed in words."""

_FORMS: Mapping[int, str] = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def number(blob: Blob, data: bytes, chance: Random) -> Said:
    """Set a number to an edge of its type, or to nearly what it was."""
    span = chance.choice(blob.numbers)
    form = _FORMS[span.stop - span.start]
    (old,) = struct.unpack_from(form, blob.data, span.start)
    limit = 1 << 8 * (span.stop - span.start)
    new = (near(chance, old) if chance.random() < 0.4 else chance.choice(EDGES)) % limit
    return _put(data, span.start, struct.pack(form, new)), f"{span.name} {old} -> {new}"


def swapped(blob: Blob, data: bytes, chance: Random) -> Said:
    """Give one field the bytes of another."""
    one, other = chance.choice(blob.numbers), chance.choice(blob.numbers)
    width = min(one.stop - one.start, other.stop - other.start)
    return _put(data, one.start, blob.data[other.start : other.start + width]), f"{one.name} = {other.name}"


_SCRAPS = (b"\0", b"\xff", b"\xed\xa0\x80", b"\xc0", b"../", b"\x1b[31m", b" ", b"\xf4\x90\x80\x80")


def text(blob: Blob, data: bytes, chance: Random) -> Said:
    """Put something that is no text into a text, or the name of another in its place."""
    span = chance.choice(blob.texts)
    width = span.stop - span.start
    if chance.random() < 0.4:
        other = chance.choice(blob.texts)
        return _put(
            data, span.start, blob.data[other.start : other.stop][:width]
        ), f"{span.name} = {other.name}"
    scrap = chance.choice(_SCRAPS)
    return _put(
        data, span.start + chance.randrange(max(1, width)), scrap[: width or 1]
    ), f"{scrap!r} in {span.name}"


def cut(blob: Blob, data: bytes, chance: Random) -> Said:
    """End the file at a boundary of its structure, or a byte beside it."""
    spans = chance.choice([spans for spans in (blob.numbers, blob.texts, blob.sections) if spans])
    span = chance.choice(spans)
    at = max(0, chance.choice((span.start, span.stop)) + chance.choice((-1, 0, 0, 1)))
    return data[:at], f"cut off at {at} ({span.name})"


def longer(blob: Blob, data: bytes, chance: Random) -> Said:
    """Put bytes behind the end, or a part of the file once more."""
    more = chance.choice((b"\0", b"\xff" * 7, data[:64], data[-64:], bytes(4096), data[: 1 << 16]))
    return data + more, f"{len(more)} bytes more"


def moved(blob: Blob, data: bytes, chance: Random) -> Said:
    """Leave a section out, or write it twice, or in the place of another, or exchange two."""
    one, other = chance.choice(blob.sections), chance.choice(blob.sections)
    body, way = data[one.start : one.stop], chance.randrange(4)
    if way == 0:
        return data[: one.start] + data[one.stop :], f"without {one.name}"
    if way == 1:
        return data[: one.stop] + body + data[one.stop :], f"{one.name} twice"
    if way == 2:
        return data[: other.start] + body + data[other.stop :], f"{one.name} in the place of {other.name}"
    first, second = sorted((one, other), key=lambda span: span.start)
    if first.stop > second.start:
        return data[: one.start] + body[::-1] + data[one.stop :], f"{one.name} turned round"
    between = data[first.stop : second.start]
    tail = data[first.start : first.stop] + data[second.stop :]
    return data[: first.start] + data[
        second.start : second.stop
    ] + between + tail, f"{one.name} <-> {other.name}"


def bits(blob: Blob, data: bytes, chance: Random) -> Said:
    """Flip some bits, most of them where the structure is."""
    found = bytearray(data)
    end = max((span.stop for span in (*blob.numbers, *blob.texts)), default=len(data))
    places = [chance.randrange(max(1, min(end, len(found)))) for _ in range(chance.choice((1, 1, 2, 8)))]
    for at in places if found else ():
        found[at] ^= 1 << chance.randrange(8)
    return bytes(found), f"bits of bytes {places}"


def filled(blob: Blob, data: bytes, chance: Random) -> Said:
    """Overwrite a stretch with one byte."""
    at = chance.randrange(max(1, len(data)))
    size = chance.choice((1, 4, 8, 64, 4096))
    fill = chance.choice((0, 0xFF, 0x80, 0x20))
    return data[:at] + bytes([fill]) * min(size, len(data) - at) + data[
        at + size :
    ], f"{size} x {fill} at {at}"


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


_CHANGES: tuple[tuple[int, Callable[[Blob, bytes, Random], Said], str], ...] = (
    (40, number, "numbers"),
    (8, swapped, "numbers"),
    (10, text, "texts"),
    (12, cut, "numbers"),
    (4, longer, ""),
    (14, moved, "sections"),
    (8, bits, ""),
    (4, filled, ""),
)
"""How often, what, and which fields it needs."""


def changed(blob: Blob, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return the file with one to three changes, and what they are."""
    usual = [(weight, change) for weight, change, needs in _CHANGES if not needs or getattr(blob, needs)]
    weights, changes = zip(*usual, strict=True)
    data, words = blob.data, []
    for change in chance.choices(changes, weights, k=chance.choice((1, 1, 1, 2, 2, 3))):
        data, said = change(blob, data, chance)
        words.append(said)
    return data, tuple(words)


def grafted(head: Blob, body: Blob, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return the beginning of one file and the end of another, both cut at a boundary."""
    one, other = chance.choice(head.sections), chance.choice(body.sections)
    data = head.data[: one.stop] + body.data[other.start :]
    return data, (f"up to {one.name}, then from another's {other.name}",)
