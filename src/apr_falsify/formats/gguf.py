"""The header of a GGUF file: metadata and where each tensor lies, without reading what is not requested.

``gguf.GGUFReader`` builds an object for every token of the vocabulary (2.2 s for a 135M model);
this reader steps over arrays and reads one only when it is requested. The layout is that of the GGUF
specification, versions 2 and 3, little-endian. Types and block sizes come from the ``gguf`` package.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from apr_falsify.errors import ModelError
from apr_falsify.formats.mapped import check_magic, check_within, map_file

_MAGIC = b"GGUF"
_SCALARS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 1 << 16  # more keys or tensors than any model has
_MAX_ITEMS = 1 << 24  # more items than any array of numbers has
_MAX_TEXTS = 1 << 20  # more tokens or merges than any vocabulary has; each is stepped over by itself
_MAX_AXES = 4  # ggml's own limit
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensorInfo:
    """Where one tensor lies.

    Attributes:
        name: its name in the file.
        shape: rows first (GGUF stores the reverse order).
        type: its ggml type, in lower case (``f32``, ``q4_k`` ...).
        offset: its first byte in the file.
        nbytes: its length.
        row_bytes: the bytes of one row of the last axis.

    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    row_bytes: int


class _Cursor:
    """Reads values one after the other from a memory map; knows the file for its messages."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def scalar(self, form: str) -> Any:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error as error:
            raise _truncated(self.path) from error
        self.at += struct.calcsize(form)
        return value

    def count(self, most: int = _MAX_COUNT) -> int:
        value: int = self.scalar("<Q")
        if value > most:
            raise ModelError(
                f"the GGUF header announces {value} items", where=self.path, expected="a sound file"
            )
        return value

    def skip(self, length: int) -> int:
        """Step over ``length`` bytes and return where they start."""
        start = self.at
        if length > len(self.data) - start:
            raise _truncated(self.path)
        self.at = start + length
        return start

    def string(self) -> str:
        start = self.skip(self.scalar("<Q"))
        return self.data[start : self.at].decode("utf-8", errors="surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        raise ModelError(f"GGUF value type {kind} is unknown", where=self.path)

    def skip_array(self) -> None:
        kind = self.scalar("<I")
        count = self.count(_MAX_TEXTS if kind == _STRING else _MAX_ITEMS)
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.scalar("<Q"))
        elif kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise ModelError(f"GGUF array type {kind} is unknown", where=self.path)

    def array(self) -> list[Any]:
        kind, count = self.scalar("<I"), self.count(_MAX_TEXTS)
        return [self.value(kind) for _ in range(count)]


def _truncated(path: Path) -> ModelError:
    return ModelError("the GGUF file ends too early", where=path, remedy="download the file again")


class GgufFile:
    """An open GGUF file.

    Args:
        path: the file.

    Raises:
        ModelError: no such file, another magic, another version, big-endian, or truncated.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = map_file(path)
        cursor = _Cursor(self.data, path)
        self._check_version(cursor)
        tensor_count, key_count = cursor.count(), cursor.count()
        self.metadata: dict[str, Any] = {}
        self._arrays: dict[str, int] = {}
        for _ in range(key_count):
            self._read_key(cursor)
        self.tensors: dict[str, GgufTensorInfo] = {}
        for info in self._read_tensors(cursor, tensor_count):
            self._once(info.name, self.tensors)
            self.tensors[info.name] = info

    def _check_version(self, cursor: _Cursor) -> None:
        check_magic(self.data, _MAGIC, where=self.path, expected="a GGUF file")
        cursor.at = len(_MAGIC)
        version = cursor.scalar("<I")
        if version not in (2, 3):
            raise ModelError(
                f"GGUF version {version} is not read here",
                where=self.path,
                expected="version 2 or 3, little-endian",
            )

    def _read_key(self, cursor: _Cursor) -> None:
        key, kind = cursor.string(), cursor.scalar("<I")
        self._once(key, self.metadata)
        self._once(key, self._arrays)
        if kind == _ARRAY:
            self._arrays[key] = cursor.at
            cursor.skip_array()
        else:
            self.metadata[key] = cursor.value(kind)

    def _once(self, name: str, known: Mapping[str, object]) -> None:
        if name in known:
            raise ModelError(f"{name} is there twice", where=self.path, remedy="download the file again")

    def array(self, key: str) -> list[Any] | None:
        """Return the metadata array called ``key``, ``None`` where the file has none."""
        if key not in self._arrays:
            return None
        cursor = _Cursor(self.data, self.path)
        cursor.at = self._arrays[key]
        return cursor.array()

    def architecture_metadata(self) -> dict[str, Any]:
        """Return the metadata, with the arrays whose keys begin with the architecture."""
        prefix = f"{self.metadata.get('general.architecture')}."
        arrays = {key: self.array(key) for key in self._arrays if key.startswith(prefix)}
        return {**self.metadata, **arrays}

    def _read_tensors(self, cursor: _Cursor, count: int) -> list[GgufTensorInfo]:
        rows = []
        for _ in range(count):
            name, axes = cursor.string(), cursor.scalar("<I")
            if axes > _MAX_AXES:
                raise ModelError(f"tensor {name} has {axes} axes", where=self.path, expected="a sound file")
            shape = tuple(cursor.scalar("<Q") for _ in range(axes))[::-1]
            rows.append((name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
        start = -(-cursor.at // self._alignment) * self._alignment
        return [self._info(name, shape, kind, start + offset) for name, shape, kind, offset in rows]

    @property
    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
            raise ModelError(
                f"general.alignment is {alignment!r}",
                where=self.path,
                expected=f"a whole number from 1 to {_MAX_ALIGNMENT}",
            )
        return alignment

    def _info(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensorInfo:
        try:
            block, block_bytes = self._sizes[kind]
        except KeyError:
            raise ModelError(f"tensor {name} has the unknown type {kind}", where=self.path) from None
        last = shape[-1] if shape else 1
        if last % block:
            raise ModelError(f"tensor {name}: rows of {last} do not fill blocks of {block}", where=self.path)
        row_bytes = last // block * block_bytes
        nbytes = row_bytes
        for size in shape[:-1]:
            nbytes *= size
        if nbytes == 0:
            raise ModelError(f"tensor {name} has the shape {list(shape)}", where=self.path)
        remedy = "download the file again; it is truncated"
        check_within(name, offset + nbytes, len(self.data), where=self.path, remedy=remedy)
        return GgufTensorInfo(
            name=name, shape=shape, type=self._names[kind], offset=offset, nbytes=nbytes, row_bytes=row_bytes
        )

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        import gguf

        return {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}

    @cached_property
    def _names(self) -> dict[int, str]:
        import gguf

        return {int(kind): kind.name.lower() for kind in gguf.GGMLQuantizationType}
