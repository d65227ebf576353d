"""Zip archives, ``.npz`` among them: members gone, twice, bombs, pickles; and the archive's own bytes."""

from __future__ import annotations

import functools
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.fuzz import blobs, maps
from tests.fuzz.odd import TEXTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of an archive.

    Attributes:
        name: its name.
        data: its bytes.
        packed: whether they are compressed.
        mode: its Unix mode, 0 for none.

    """

    name: str
    data: bytes
    packed: bool = False
    mode: int = 0


Members = list[Member]


@functools.lru_cache(maxsize=1024)
def _packed(data: bytes, packed: bool) -> tuple[int, bytes]:
    """Return the checksum, and the bytes as the archive holds them."""
    if not packed:
        return zlib.crc32(data), data
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    return zlib.crc32(data), deflate.compress(data) + deflate.flush()


_DATE, _UTF8 = 0x5C21, 0x800  # 2026-01-01; names are UTF-8


def zip_bytes(members: Sequence[Member]) -> bytes:
    """Return the archive of ``members``, which ``zipfile`` would refuse to write where they are strange."""
    parts, directory, at = [], [], 0
    for one in members:
        checksum, body = _packed(one.data, one.packed)
        name = one.name.encode("utf-8", "surrogatepass")[:0xFFFF]
        sizes = (8 if one.packed else 0, 0, _DATE, checksum, len(body), len(one.data), len(name), 0)
        parts += [struct.pack("<4s2H3H3I2H", b"PK\3\4", 20, _UTF8, *sizes), name, body]
        more = (0, 0, 0, one.mode << 16 & 0xFFFFFFFF, at)
        directory += [struct.pack("<4s3H3H3I2H3H2I", b"PK\1\2", 0x314, 20, _UTF8, *sizes, *more), name]
        at += 30 + len(name) + len(body)
    size, count = sum(map(len, directory)), len(members)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, at, 0)
    return b"".join((*parts, *directory, end))


def npy_bytes(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """Return an ``.npy`` file with this header, whatever it says."""
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(width, "little") + text + data


_KINDS = (
    *(
        "|O",
        "<f4",
        ">f4",
        "<f2",
        "<f8",
        "<i8",
        "|u1",
        "|b1",
        "<c16",
        "<V2",
        "|V0",
        "|S0",
        "|S5",
        "<U4",
        "<M8[s]",
    ),
    *(
        "<m8",
        "<M8[99999999999s]",
        "f4",
        "<f16",
        "<f3",
        "",
        "x",
        "float32",
        "object",
        "<f4,<f4",
        "2f4",
        "V2",
        "bfloat16",
    ),
)
_SHAPES = (
    *(
        "()",
        "(0,)",
        "(1,)",
        "(-1,)",
        "(6, 256)",
        "(256, 6)",
        "(6, 255)",
        "(1536,)",
        "(1 << 40,)",
        "(1099511627776,)",
    ),
    *(
        "(4294967296, 4294967296)",
        "(0, 9223372036854775808)",
        "(9223372036854775807, 2)",
        "(True, 6)",
        "(6.0,)",
    ),
    *(
        "[6, 256]",
        "6",
        "None",
        "('6',)",
        "(6, 256, 1, 1)",
        "(-6, -256)",
        "(" + "1, " * 70 + ")",
        "((6,),)",
        "(2L,)",
    ),
)
_DESCRIPTIONS = (
    *(
        "[('a', '<f4')]",
        "[('a', '|O')]",
        "[('a', [('b', '<f4')])]",
        "('<f4', (2,))",
        "[]",
        "None",
        "5",
        "b'<f4'",
    ),
    *(
        "[('a', '<f4', (1000000000,))]",
        "[('', '<f4')]",
        "[('a', '<f4'), ('a', '<f4')]",
        "{'names': ['a']}",
        "(1, 2)",
    ),
)
_HEADERS = (
    *(
        "{",
        "{}",
        "[]",
        "1",
        "",
        "a",
        "{'descr': '<f4'}",
        "(" * 500,
        "[" * 90,
        "{1: 2, 'a': 3}",
        "{'descr': '<f4', 1: 2}",
    ),
    *(
        "__import__('os')",
        "'a' * 10",
        "-" * 3000 + "1",
        "1" * 5000,
        "{'descr': '<f4', 'fortran_order': False,",
        "\0",
    ),
    *(
        "{'descr': '<f4', 'shape': (1L,), 'fortran_order': ",
        "'\\ud800'",
        "lambda: 0",
        "{**{}}",
        "x" * 20_000,
        "1 1 1",
    ),
)


def npy_changed(data: bytes, chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return another ``.npy`` file: other bytes, or a header that says something else."""
    if chance.random() < 0.4:
        return blobs.changed(maps.npy(data), chance)
    length = int.from_bytes(data[8:10], "little")
    sound, body = data[10 : 10 + length].decode(), data[10 + length :]
    change = chance.choice((_other_kind, _other_shape, _other_order, _other_description, _other_header))
    header = change(sound, chance)
    version = (
        (1, 0)
        if chance.random() < 0.6
        else chance.choice(((2, 0), (2, 0), (3, 0), (3, 0), (1, 7), (4, 0), (0, 0)))
    )
    return npy_bytes(header, body, version), (f"{header.strip():.100} version {version}",)


def _other_kind(header: str, chance: Random) -> str:
    start = header.index("'descr': ") + 9
    return f"{header[:start]}{chance.choice(_KINDS)!r}{header[header.index(',', start) :]}"


def _other_shape(header: str, chance: Random) -> str:
    start = header.index("'shape': ") + 9
    return f"{header[:start]}{chance.choice(_SHAPES)}{header[header.index(')', start) + 1 :]}"


def _other_order(header: str, chance: Random) -> str:
    return header.replace("False", chance.choice(("True", "True", "None", "1", "'x'", "[]")))


def _other_description(header: str, chance: Random) -> str:
    start = header.index("'descr': ") + 9
    return f"{header[:start]}{chance.choice(_DESCRIPTIONS)}{header[header.index(',', start) :]}"


def _other_header(header: str, chance: Random) -> str:
    return chance.choice(_HEADERS)


def _gone(members: Members, at: int, chance: Random) -> Members:
    return members[:at] + members[at + 1 :]


def _twice(members: Members, at: int, chance: Random) -> Members:
    other = chance.choice(members)
    return [*members, replace(members[at], data=other.data if chance.random() < 0.5 else members[at].data)]


def _renamed(members: Members, at: int, chance: Random) -> Members:
    text = chance.choice(TEXTS)[:60_000]
    old = members[at].name
    name = chance.choice(
        (text, text + ".npy", f"{text}/{old}", old + text, chance.choice(members).name, old.upper())
    )
    if chance.random() < 0.3:
        name = re.sub(r"[0-9]+", str(chance.choice(("00", "1", "77", "-1", "99999999999", "9" * 5000))), old)
    return [*members[:at], replace(members[at], name=name), *members[at + 1 :]]


def _exchanged(members: Members, at: int, chance: Random) -> Members:
    other = chance.randrange(len(members))
    copy = list(members)
    copy[at] = replace(members[at], data=members[other].data)
    copy[other] = replace(members[other], data=members[at].data)
    return copy


def _in_disorder(members: Members, at: int, chance: Random) -> Members:
    return chance.sample(members, len(members))


def _more(members: Members, at: int, chance: Random) -> Members:
    names = (
        "x.npy",
        "readme.txt",
        "folder/",
        "../x.npy",
        "/x.npy",
        "x",
        ".npy",
        "x.npy/y.npy",
        "__MACOSX/x.npy",
    )
    return [*members, Member(name=chance.choice(names), data=chance.choice((b"", b"x", members[at].data)))]


def _cut_off(members: Members, at: int, chance: Random) -> Members:
    data = members[at].data[: chance.choice((0, 1, 6, 8, 10, 100, 127, 128, 129, -1))]
    return [*members[:at], replace(members[at], data=data), *members[at + 1 :]]


def _of_a_mode(members: Members, at: int, chance: Random) -> Members:
    mode = chance.choice((0o120777, 0o010644, 0o040755, 0o060644, 0o100000, 0o777777 & 0xFFFF))
    return [*members[:at], replace(members[at], mode=mode), *members[at + 1 :]]


_CHANGES: tuple[Callable[[Members, int, Random], Members], ...] = (
    *(_gone, _twice, _renamed, _renamed, _exchanged, _in_disorder, _more, _cut_off, _of_a_mode),
)


@functools.cache
def _blob(members: tuple[Member, ...], which: int) -> blobs.Blob:
    """Return the archive with none, every other or all of its members compressed."""
    return maps.zipped(zip_bytes([replace(one, packed=at % 2 < which) for at, one in enumerate(members)]))


def changed(members: tuple[Member, ...], chance: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return an archive with other members, or other bytes of the same one."""
    if chance.random() < 0.5:
        return blobs.changed(_blob(members, chance.randrange(3)), chance)
    words, found = [], [replace(one, packed=chance.random() < 0.3) for one in members]
    for change in chance.choices(_CHANGES, k=chance.choice((1, 1, 2))):
        if found:
            at = chance.randrange(len(found))
            words.append(f"{found[at].name:.60} {change.__name__.strip('_').replace('_', ' ')}")
            found = change(found, at, chance)
    return zip_bytes(found), tuple(words)


BOMB = 192 << 20
"""Bytes that a bomb expands to: three times what a reader may take for a small file."""


@functools.cache
def bomb(members: tuple[Member, ...], name: str, start: bytes, size: int = BOMB) -> bytes:
    """Return the archive of ``members`` in which ``name`` begins with ``start`` and goes on with zeros."""
    file, zeros = io.BytesIO(), bytes(1 << 20)
    with zipfile.ZipFile(file, "w") as archive:
        for one in members:
            if one.name != name:
                archive.writestr(zipfile.ZipInfo(one.name, (2026, 1, 1, 0, 0, 0)), one.data)
        info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w") as entry:
            entry.write(start)
            for _ in range(size >> 20):
                entry.write(zeros)
    return file.getvalue()
