"""One APRT stage file: a 12-byte header and f32 values, read by memory map and written whole.

The format is that of ``apr`` 0.72 (contract apr-cli-trace-save-tensor-v1): the magic ``APRT``,
the layer as u32 little-endian (0xFFFFFFFF for a whole-model stage), the number of values as u32
little-endian, then that many f32 little-endian. It stores neither shape nor layout nor stage name.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import resource
import stat
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
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "not a regular file")  # a pipe would be waited for without end
        with path.open("rb") as file:
            header, size = file.read(HEADER.size), path.stat().st_size
        layer, count = _parse_header(header, size, path)
        return AprtFile(layer=layer, values=_map(path, count) if count else np.empty(0, dtype="<f4"))
    except OSError as error:
        raise AprtError(
            f"cannot be read: {error.strerror}", where=path, remedy="capture the stage again"
        ) from error


def parse_aprt(data: bytes, where: Path) -> AprtFile:
    """Return what the bytes of an APRT file say; ``where`` is the file that errors name.

    Raises:
        AprtError: another magic, or a size other than ``12 + 4 * dim_product``.

    """
    layer, _ = _parse_header(data[: HEADER.size], len(data), where)
    return AprtFile(layer=layer, values=np.frombuffer(data, dtype="<f4", offset=HEADER.size))


def _map(path: Path, count: int) -> npt.NDArray[np.float32]:
    try:
        return np.memmap(path, dtype="<f4", mode="r", offset=HEADER.size, shape=(count,))
    except OSError as error:
        # A map holds a descriptor: two traces of 30 layers exceed the usual soft limit of 1024.
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
        return np.memmap(path, dtype="<f4", mode="r", offset=HEADER.size, shape=(count,))


def _allow_more_files() -> bool:
    """Raise the soft limit of open files to the hard one; whether that changed anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft != hard


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

    Values pass through block by block, so that no second copy of a large contiguous tensor is made.
    What is beyond the range of f32 becomes infinite.

    Raises:
        AprtError: more values than the header can count, no real numbers, or a layer that it cannot hold.

    """
    if values.size > MAX_VALUES:
        raise AprtError(f"{values.size} values", expected=f"at most {MAX_VALUES}, the header's u32")
    if values.dtype.kind not in "fiub":
        raise AprtError(f"values of type {values.dtype}", expected="real numbers")
    if layer is not None and not 0 <= layer < WHOLE_MODEL_LAYER:
        raise AprtError(f"layer {layer}", expected=f"a layer from 0 to {WHOLE_MODEL_LAYER - 1}")
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
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(flat[start : start + _BLOCK], dtype="<f4")
        yield block.view(np.uint8).data
