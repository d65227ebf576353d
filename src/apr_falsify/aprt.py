"""One APRT stage file: a 12-byte header and f32 values, read by memory map and written whole.

The format is that of ``apr`` 0.72 (contract apr-cli-trace-save-tensor-v1): the magic ``APRT``,
the layer as u32 little-endian (0xFFFFFFFF for a whole-model stage), the number of values as u32
little-endian, then that many f32 little-endian. It stores neither shape nor layout nor stage name.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import AprtError

MAGIC = b"APRT"
WHOLE_MODEL_LAYER = 0xFFFFFFFF
HEADER = struct.Struct("<4sII")
MAX_VALUES = 2**32 - 1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AprtFile:
    """What one APRT file says.

    Attributes:
        layer: the layer in its header, ``None`` for a whole-model stage.
        values: the body, f32, one-dimensional, read-only; a memory map where the file has values.

    """

    layer: int | None
    values: npt.NDArray[np.float32]


def read_aprt(path: Path) -> AprtFile:
    """Read the APRT file at ``path``; NaN bits stay as they are.

    Raises:
        AprtError: no such file, another magic, or a size other than ``12 + 4 * dim_product``.

    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        raise AprtError(
            f"cannot be read: {error.strerror}", where=path, remedy="capture the stage again"
        ) from error
    layer, count = _parse_header(header, size, path)
    if count == 0:
        return AprtFile(layer=layer, values=np.empty(0, dtype="<f4"))
    values = np.memmap(path, dtype="<f4", mode="r", offset=HEADER.size, shape=(count,))
    return AprtFile(layer=layer, values=values)


def _parse_header(header: bytes, size: int, path: Path) -> tuple[int | None, int]:
    if len(header) < HEADER.size:
        raise AprtError(
            f"{size} bytes are too few for an APRT header",
            where=path,
            expected=f"at least {HEADER.size} bytes",
            remedy="capture the stage again; the writer was cut off",
        )
    magic, layer, count = HEADER.unpack(header)
    if magic != MAGIC:
        raise AprtError(
            f"the file starts with {magic!r}",
            where=path,
            expected=f"the magic {MAGIC!r} of an APRT stage file",
            remedy="point to a directory that `apr trace --save-tensor` or `apr-falsify capture` wrote",
        )
    expected = HEADER.size + 4 * count
    if size != expected:
        raise AprtError(
            f"the file has {size} bytes",
            where=path,
            expected=f"{expected} bytes: {HEADER.size} + 4 * {count} values announced in the header",
            remedy="capture the stage again; the file is truncated or has trailing bytes",
        )
    return (None if layer == WHOLE_MODEL_LAYER else layer), count


def write_aprt(file: BinaryIO, values: npt.NDArray[np.generic], layer: int | None) -> str:
    """Write ``values``, flattened in C order and as f32, to ``file``; return the sha256 of its bytes.

    Values pass through block by block, so that no second copy of a large tensor is made.

    Raises:
        AprtError: more values than the header can count.

    """
    if values.size > MAX_VALUES:
        raise AprtError(f"{values.size} values", expected=f"at most {MAX_VALUES}, the header's u32")
    digest = hashlib.sha256()
    header = HEADER.pack(MAGIC, WHOLE_MODEL_LAYER if layer is None else layer, values.size)
    blocks: Iterator[bytes | memoryview] = itertools.chain((header,), _blocks(values))
    for block in blocks:
        digest.update(block)
        file.write(block)
    return digest.hexdigest()


def _blocks(values: npt.NDArray[np.generic]) -> Iterator[memoryview]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield np.ascontiguousarray(flat[start : start + _BLOCK], dtype="<f4").view(np.uint8).data
