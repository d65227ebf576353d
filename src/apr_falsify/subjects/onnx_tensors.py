"""Files of one ONNX ``TensorProto``, as test data of ONNX models are (``output_0.pb``), read without onnx.

The message is that of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: dims 1, data_type 2, float_data
4, int32_data 5, int64_data 7, name 8, raw_data 9, double_data 10, data_location 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apr_falsify.subjects.foreign import ForeignArray, Values, broken

_TYPES: Mapping[int, tuple[str, str]] = {
    1: ("f32", "<f4"),
    2: ("u8", "<u1"),
    3: ("i8", "<i1"),
    5: ("i16", "<i2"),
    6: ("i32", "<i4"),
    7: ("i64", "<i8"),
    10: ("f16", "<f2"),
    11: ("f64", "<f8"),
    16: ("bf16", "<u2"),
}
"""Number of a data type -> our number format, and NumPy's of its bits."""

_LISTS: Mapping[int, str] = {4: "<f4", 10: "<f8"}
"""Field of values that stand as they are -> NumPy's format of them."""

_WIRES: Mapping[int, tuple[int, ...]] = {
    1: (0, 2),
    2: (0,),
    4: (2, 5),
    5: (0, 2),
    7: (0, 2),
    8: (2,),
    9: (2,),
    10: (1, 2),
    14: (0,),
}
"""Field -> how protobuf may write it: 0 a whole number, 1 and 5 a float of 64 and 32 bits, 2 bytes."""

_MOST = 1 << 31


def onnx_tensor(file: Path, name: str) -> ForeignArray:
    """Return the tensor of a file; ``name`` is what one without a name of its own is called.

    Raises:
        ValueError: it is no whole TensorProto, or its values lie in another file.
        OSError: it cannot be read.

    """
    own, kind, dims, _ = _parsed(file)
    return ForeignArray(name=own or name, kind=kind, shape=dims, load=partial(_load, file, (kind, dims)))


def _load(file: Path, announced: tuple[str, tuple[int, ...]]) -> Values:
    """Read the values again: those of all files of a folder may not fit into memory at once."""
    try:
        _, kind, dims, values = _parsed(file)
        if (kind, dims) != announced:
            raise ValueError("it was changed while it was read")
        return values
    except (OSError, ValueError) as error:
        raise broken(file, error) from error


def _parsed(file: Path) -> tuple[str, str, tuple[int, ...], Values]:
    """Return name, number format, shape and values of a file's tensor."""
    if file.stat().st_size > _MOST:
        raise ValueError("more than 2 GiB, which no message of ONNX has")
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(file.read_bytes()):
        fields.setdefault(number, []).append(value)
    dims = tuple(_signed(size) for part in fields.get(1, []) for size in _numbers(part))
    kind, dtype = _TYPES.get(_last(fields, 2), (f"type {_last(fields, 2)} of ONNX", "V1"))
    if _last(fields, 14):
        raise ValueError("its values lie in another file")
    if min(dims, default=0) < 0:
        raise ValueError("it has a size below 0")
    try:
        values = _values(fields, dtype)
    except OverflowError as error:
        raise ValueError(f"it has values beyond its number format: {error}") from error
    if dtype != "V1" and values.size != math.prod(dims):
        raise ValueError(f"it has {values.size} values, its dims announce {math.prod(dims)}")
    own = fields[8][-1].decode("utf-8") if fields.get(8) else ""
    return own, kind, dims, values


def _last(fields: Mapping[int, list[Any]], number: int) -> int:
    found = fields.get(number, [0])[-1]
    return found if isinstance(found, int) else 0


def _values(fields: Mapping[int, list[Any]], dtype: str) -> Values:
    if raw := fields.get(9):
        return np.frombuffer(raw[-1], dtype=dtype)
    for number, word in _LISTS.items():
        if number in fields:
            if word != dtype and dtype != "V1":
                raise ValueError("its values stand in the field of another number format")
            parts = [part if isinstance(part, bytes) else b"" for part in fields[number]]
            return np.frombuffer(b"".join(parts), dtype=word)
    listed = [part for number in (5, 7) for part in fields.get(number, [])]
    whole = [_signed(value) for part in listed for value in _numbers(part)]
    if dtype in ("<f2", "<u2"):  # the bits of 16-bit floats stand as whole numbers
        return np.array(whole, dtype="<u4").astype("<u2").view(dtype)
    return np.array(whole, dtype=dtype) if dtype != "V1" else np.zeros(0)


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: whole numbers, or bytes."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire not in _WIRES.get(number, (0, 1, 2, 5)):
            raise ValueError(f"field {number} is written in a way that no message of ONNX has")
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(content, at)
        if size is None or not number or at + size > len(content):
            raise ValueError("no whole message of ONNX")
        yield number, content[at : at + size]
        at += size


def _numbers(part: Any) -> Iterator[int]:
    """Yield what a repeated field of whole numbers holds, packed or not."""
    if isinstance(part, int):
        yield part
        return
    at = 0
    while at < len(part):
        value, at = _varint(part, at)
        yield value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("no whole message of ONNX")
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return value & (1 << 64) - 1, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
