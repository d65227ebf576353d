"""Where the fields of sound binary files lie; written from their formats, not with the readers under test."""

from __future__ import annotations

import io
import json
import struct
import zipfile

from tests.fuzz.blobs import Blob, Span


class _Walk:
    """Steps through a file and notes what it steps over."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.numbers: list[Span] = []
        self.texts: list[Span] = []
        self.sections: list[Span] = []

    def number(self, width: int, name: str) -> int:
        found = int.from_bytes(self.data[self.at : self.at + width], "little")
        self.numbers.append(Span(start=self.at, stop=self.at + width, name=name))
        self.at += width
        return found

    def text(self, width: int, name: str) -> bytes:
        found = self.data[self.at : self.at + width]
        self.texts.append(Span(start=self.at, stop=self.at + width, name=name))
        self.at += width
        return found

    def section(self, start: int, name: str) -> None:
        self.sections.append(Span(start=start, stop=self.at, name=name))

    def blob(self) -> Blob:
        return Blob(
            data=self.data,
            numbers=tuple(self.numbers),
            texts=tuple(self.texts),
            sections=tuple(self.sections),
        )


def aprt(data: bytes) -> Blob:
    """Magic, layer, count, values."""
    walk = _Walk(data)
    walk.text(4, "magic")
    walk.number(4, "layer")
    walk.number(4, "count")
    walk.section(0, "header")
    walk.at = len(data)
    walk.section(12, "values")
    return walk.blob()


_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_NOTED = 3  # of an array's items: the others are like them


def gguf(data: bytes) -> Blob:
    """The GGUF specification, version 3."""
    walk = _Walk(data)
    walk.text(4, "magic")
    walk.number(4, "version")
    tensors, keys = walk.number(8, "tensor count"), walk.number(8, "key count")
    walk.section(0, "header")
    for _ in range(keys):
        start = walk.at
        name = walk.text(walk.number(8, "length of a key"), "a key").decode()
        _gguf_value(walk, walk.number(4, f"type of {name}"), name)
        walk.section(start, name)
    for _ in range(tensors):
        start = walk.at
        name = walk.text(walk.number(8, "length of a name"), "a tensor's name").decode()
        for axis in range(walk.number(4, f"axes of {name}")):
            walk.number(8, f"axis {axis} of {name}")
        walk.number(4, f"type of {name}")
        walk.number(8, f"offset of {name}")
        walk.section(start, f"info of {name}")
    start, walk.at = walk.at, len(data)
    walk.section(start, "data")
    return walk.blob()


def _gguf_value(walk: _Walk, kind: int, name: str) -> None:
    if kind == 8:
        walk.text(walk.number(8, f"length of {name}"), name)
    elif kind == 9:
        inner, count = walk.number(4, f"item type of {name}"), walk.number(8, f"count of {name}")
        for index in range(count):
            marks = len(walk.numbers), len(walk.texts)
            _gguf_value(walk, inner, f"{name}[{index}]")
            if index >= _MOST_NOTED:
                del walk.numbers[marks[0] :], walk.texts[marks[1] :]
    else:
        walk.number(_GGUF_SIZES[kind], name)


APR_HEADER = struct.Struct("<4s2BHIQIQQI20x")
_APR_FIELDS = (
    *(("major version", 1), ("minor version", 1), ("flags", 2), ("tensor count", 4)),
    *(("metadata offset", 8), ("metadata size", 4), ("table offset", 8), ("data offset", 8), ("checksum", 4)),
)


def apr(data: bytes) -> Blob:
    """APR 2.0: ``header_impl.rs`` and ``tensor_index_impl.rs`` of the crate apr-format."""
    walk = _Walk(data)
    walk.text(4, "magic")
    _, _, _, _, count, metadata, size, table, start, _ = APR_HEADER.unpack_from(data)
    for name, width in _APR_FIELDS:
        walk.number(width, name)
    walk.at = 64
    walk.section(0, "header")
    walk.at = metadata
    walk.text(size, "metadata")
    walk.section(metadata, "metadata")
    walk.at = table
    for _ in range(count):
        begin = walk.at
        name = walk.text(walk.number(2, "length of a name"), "a tensor's name").decode()
        walk.number(1, f"type of {name}")
        for axis in range(walk.number(1, f"axes of {name}")):
            walk.number(8, f"axis {axis} of {name}")
        walk.number(8, f"offset of {name}")
        walk.number(8, f"size of {name}")
        walk.section(begin, f"entry of {name}")
    walk.at = len(data)
    walk.section(start, "data")
    return walk.blob()


def safetensors(data: bytes) -> Blob:
    """A length, a JSON header, the tensors."""
    walk = _Walk(data)
    length = walk.number(8, "header length")
    header = json.loads(data[8 : 8 + length])
    walk.text(length, "header")
    walk.section(0, "header")
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            walk.at = end
            walk.section(begin, name)
    return walk.blob()


def npy(data: bytes) -> Blob:
    """``numpy.lib.format``, version 1.0."""
    walk = _Walk(data)
    walk.text(6, "magic")
    walk.number(1, "major version")
    walk.number(1, "minor version")
    walk.text(walk.number(2, "header length"), "header")
    walk.section(0, "header")
    start, walk.at = walk.at, len(data)
    walk.section(start, "values")
    return walk.blob()


_LOCAL = (
    *(("version", 2), ("flags", 2), ("method", 2), ("time", 2), ("date", 2), ("crc", 4), ("packed size", 4)),
    *(("size", 4), ("name length", 2), ("extra length", 2)),
)
_CENTRAL = (
    *(("made by", 2), *_LOCAL, ("comment length", 2), ("disk", 2), ("attributes", 2), ("mode", 4)),
    ("offset", 4),
)
_END = (
    *(("disk", 2), ("directory's disk", 2), ("entries here", 2), ("entries", 2), ("directory size", 4)),
    *(("directory offset", 4), ("comment length", 2)),
)


def zipped(data: bytes) -> Blob:
    """PKWARE's APPNOTE, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end)."""
    walk = _Walk(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members, directory = archive.infolist(), archive.start_dir
    for member in members:
        name, start = member.filename, member.header_offset
        walk.at = start
        walk.text(4, "signature")
        sizes = {field: walk.number(width, f"{field} of {name}") for field, width in _LOCAL}
        walk.text(sizes["name length"], f"name of {name}")
        walk.at += sizes["extra length"] + member.compress_size
        walk.section(start, name)
    walk.at = directory
    for member in members:
        start = walk.at
        walk.text(4, "signature")
        name = f"{member.filename} in the directory"
        sizes = {field: walk.number(width, f"{field} of {name}") for field, width in _CENTRAL}
        walk.text(sizes["name length"], f"name of {name}")
        walk.at += sizes["extra length"] + sizes["comment length"]
        walk.section(start, name)
    start = walk.at
    walk.text(4, "signature")
    for field, width in _END:
        walk.number(width, field)
    walk.section(start, "end of the directory")
    return walk.blob()
