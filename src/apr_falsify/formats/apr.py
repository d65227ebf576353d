"""The header of an .apr file: metadata and where each tensor lies, without reading what is not requested.

The container is APR version 2.0 as ``apr`` 0.72.3 writes it: 64 bytes of header, JSON metadata, the table of
tensors, their data; everything little-endian. It is defined in the public repository paiml/aprender, crate
``apr-format``, ``src/v2``: ``header_impl.rs`` (header and its CRC-32), ``mod.rs`` (flags),
``tensor_index_impl.rs`` (table and types), ``writer.rs`` (``add_q8_tensor``, ``add_q4_tensor``).
The data has a CRC-32 of its own behind it only where ``apr`` wrote the file through that crate; as no reader
of theirs checks it and it takes reading the whole file, it is not checked here either.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from apr_falsify.errors import ModelError
from apr_falsify.formats.mapped import check_magic, check_within, map_file
from apr_falsify.reading import mapping, parse_json

MAGIC = b"APR\0"
_VERSION = (2, 0)
_HEADER = struct.Struct("<4s2BHIQIQQI20x")
_CHECKSUM = slice(40, 44)  # its own place in the header, left out of it
_MAX_METADATA = 256 << 20  # no published tokenizer needs a tenth
_MAX_NAME = 256
_MAX_TENSORS = 1 << 16  # more than any model has
_MAX_AXES = 8
_MAX_SIZE = 1 << 32
_SHORTEST_ENTRY = 2 + 1 + 1 + 1 + 8 + 8
_IMPORT_AGAIN = "import the model again; the file is damaged"

_KNOWN_FLAGS = 0x0FFF
_REFUSED_FLAGS: Mapping[int, str] = {
    0x0001: "compressed with LZ4",
    0x0002: "compressed with Zstandard",
    0x0004: "encrypted",
    0x0010: "one shard of several",
    0x0800: "stored by columns",
}
"""Flag -> what the file then is; none of these is read here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a type of numbers lies in the file.

    Attributes:
        name: our name of the type.
        block: values of one block.
        block_bytes: its bytes.
        by_row: whether each row starts a block of its own; its last block is filled up.
        head_bytes: bytes before the first block.

    """

    name: str
    block: int
    block_bytes: int
    by_row: bool = True
    head_bytes: int = 0

    def row_bytes(self, width: int) -> int:
        """Return the bytes of a row of ``width`` values."""
        return -(-width // self.block) * self.block_bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor."""
        rows, width = math.prod(shape[:-1]), shape[-1]
        if not self.by_row:
            rows, width = 1, rows * width
        return self.head_bytes + rows * self.row_bytes(width)


APR_Q4 = Packing(name="apr_q4", block=32, block_bytes=18, by_row=False)
"""An f16 scale and 32 nibbles, less 8, over the tensor's values in order."""
APR_Q8 = Packing(name="apr_q8", block=1, block_bytes=1, by_row=False, head_bytes=4)
"""One f32 scale for the whole tensor, then one signed byte a value."""

PACKINGS: Mapping[int, Packing] = {
    0: Packing(name="f32", block=1, block_bytes=4),
    1: Packing(name="f16", block=1, block_bytes=2),
    30: Packing(name="bf16", block=1, block_bytes=2),
    3: Packing(name="f64", block=1, block_bytes=8),
    4: Packing(name="i32", block=1, block_bytes=4),
    5: Packing(name="i64", block=1, block_bytes=8),
    6: Packing(name="i8", block=1, block_bytes=1),
    7: Packing(name="u8", block=1, block_bytes=1),
    12: Packing(name="q4_k", block=256, block_bytes=144),
    14: Packing(name="q6_k", block=256, block_bytes=210),
    128: APR_Q4,
    129: APR_Q8,
    8: APR_Q4,  # as these two were numbered before
    9: APR_Q8,
}
"""The table's number for a type -> how it lies in the file (``TensorDType``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AprTensorInfo:
    """Where one tensor lies.

    Attributes:
        name: its name in the file.
        shape: rows first.
        packing: its type.
        offset: its first byte in the file.
        nbytes: its length; 0 for a tensor that is announced and has no data.

    """

    name: str
    shape: tuple[int, ...]
    packing: Packing
    offset: int
    nbytes: int

    @property
    def type(self) -> str:
        """Its type: ``f32``, ``q4_k``, ``apr_q8`` ..."""
        return self.packing.name

    @property
    def row_bytes(self) -> int:
        """The bytes of one row of the last axis, where rows start blocks of their own."""
        return self.packing.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The numbers of the header: counts, and where the sections lie."""

    flags: int
    count: int
    metadata: int
    metadata_size: int
    table: int
    data: int


class AprFile:
    """An open .apr file.

    Args:
        path: the file.

    Raises:
        ModelError: no such file, another magic or version, a flag that is not read here, a wrong checksum,
            sections or tensors that overlap or reach beyond the file, or metadata that is no JSON object.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = map_file(path)
        header = self._header()
        self.metadata: Mapping[str, Any] = self._metadata(header)
        self.tensors: Mapping[str, AprTensorInfo] = self._table(header)
        self._check_overlap()

    def _header(self) -> _Header:
        expected = f"an .apr file of version 2, which starts with {MAGIC!r}"
        check_magic(self.data, MAGIC, where=self.path, expected=expected)
        head = self.data[: _HEADER.size]
        if len(head) < _HEADER.size:
            raise self._damaged("the file ends within its header")
        _, major, minor, flags, count, metadata, size, table, data, checksum = _HEADER.unpack(head)
        if (major, minor) != _VERSION:
            raise ModelError(
                f".apr version {major}.{minor} is not read here", where=self.path, expected="version 2.0"
            )
        if zlib.crc32(head[: _CHECKSUM.start] + head[_CHECKSUM.stop :]) != checksum:
            raise self._damaged("the header's checksum is wrong")
        self._check_flags(flags)
        header = _Header(
            flags=flags, count=count, metadata=metadata, metadata_size=size, table=table, data=data
        )
        self._check_sections(header)
        return header

    def _check_flags(self, flags: int) -> None:
        if flags & ~_KNOWN_FLAGS:
            raise ModelError(f"the flags {flags:#06x} are unknown", where=self.path, expected="APR 2.0 flags")
        for flag, meaning in _REFUSED_FLAGS.items():
            if flags & flag:
                raise ModelError(
                    f"the file is {meaning}",
                    where=self.path,
                    expected="a single plain file, as apr import writes it",
                )

    def _check_sections(self, header: _Header) -> None:
        if header.metadata_size > _MAX_METADATA:
            raise self._damaged(f"the header announces {header.metadata_size} bytes of metadata")
        ends = (
            _HEADER.size,
            header.metadata,
            header.metadata + header.metadata_size,
            header.table,
            header.table + header.count * _SHORTEST_ENTRY,
            header.data,
        )
        if list(ends) != sorted(ends):
            raise self._damaged("the sections named in the header overlap or are out of order")
        if header.count > _MAX_TENSORS:
            raise self._damaged(f"the header announces {header.count} tensors")
        if header.data > len(self.data):
            raise self._damaged(f"the data starts at byte {header.data} of {len(self.data)}")

    def _metadata(self, header: _Header) -> Mapping[str, Any]:
        raw = self.data[header.metadata : header.metadata + header.metadata_size]
        try:
            return mapping(parse_json(raw.decode("utf-8")), "the metadata")
        except ValueError as error:
            raise self._damaged(f"the metadata cannot be read: {error}") from error

    def _table(self, header: _Header) -> Mapping[str, AprTensorInfo]:
        tensors: dict[str, AprTensorInfo] = {}
        at = header.table
        for _ in range(header.count):
            try:
                info, at = self._entry(at, header.data)
            except struct.error as error:
                raise self._damaged("the table of tensors ends too early") from error
            if info.name in tensors:
                raise self._damaged(f"{info.name} is there twice")
            tensors[info.name] = info
        if at > header.data:
            raise self._damaged("the table of tensors reaches into their data")
        return tensors

    def _entry(self, at: int, data: int) -> tuple[AprTensorInfo, int]:
        (length,) = struct.unpack_from("<H", self.data, at)
        name = self._name(self.data[at + 2 : at + 2 + length], length)
        at += 2 + length
        kind, axes = struct.unpack_from("<2B", self.data, at)
        if not 1 <= axes <= _MAX_AXES:
            raise self._damaged(f"tensor {name} has {axes} axes")
        *shape, offset, nbytes = struct.unpack_from(f"<{axes + 2}Q", self.data, at + 2)
        info = self._info(name, tuple(shape), kind, data + offset, nbytes)
        return info, at + 2 + 8 * (axes + 2)

    def _name(self, raw: bytes, length: int) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a tensor's name is not UTF-8") from error
        if not 1 <= length <= _MAX_NAME:
            raise self._damaged(f"a tensor's name has {length} bytes")
        return name

    def _info(self, name: str, shape: tuple[int, ...], kind: int, offset: int, nbytes: int) -> AprTensorInfo:
        packing = PACKINGS.get(kind)
        if packing is None:
            raise ModelError(f"tensor {name} has the unknown type {kind}", where=self.path)
        if any(not 1 <= size <= _MAX_SIZE for size in shape):
            raise self._damaged(f"tensor {name} has the shape {list(shape)}")
        if nbytes and nbytes != packing.nbytes(shape):
            raise ModelError(
                f"tensor {name} of type {packing.name} and shape {list(shape)} has {nbytes} bytes",
                where=self.path,
                expected=f"{packing.nbytes(shape)} bytes",
                remedy=_IMPORT_AGAIN,
            )
        remedy = "import or copy the model again; the file is truncated"
        check_within(name, offset + nbytes, len(self.data), where=self.path, remedy=remedy)
        return AprTensorInfo(name=name, shape=shape, packing=packing, offset=offset, nbytes=nbytes)

    def _check_overlap(self) -> None:
        """Refuse two tensors that share bytes: one of them is not what its name says."""
        held = sorted((info for info in self.tensors.values() if info.nbytes), key=lambda info: info.offset)
        for first, second in pairwise(held):
            if first.offset + first.nbytes > second.offset:
                raise self._damaged(f"the tensors {first.name} and {second.name} overlap")

    def _damaged(self, what: str) -> ModelError:
        return ModelError(what, where=self.path, expected="a whole .apr file", remedy=_IMPORT_AGAIN)
