"""Named arrays written one after another into safetensors files, whose header stands before the values.

The format is that of https://github.com/huggingface/safetensors. Room for the header is left at the beginning
of a file, and what is left of it in the end is blanks, which the format allows. Where it is used up, the next
file begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_ROOM = 1 << 17
"""Bytes left for the header: some thousand arrays."""

LONGEST_NAME = 4096
"""Letters of a name."""

METADATA = "__metadata__"
"""The one name that no array can have: the format keeps it for remarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainArray:
    """An array of any program, as its bytes.

    Attributes:
        dtype: its number format, as safetensors calls it: ``F32``, ``BF16``, ``I64`` ...
        shape: its shape.
        data: its bytes in C order, lowest byte first.

    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


NUMPY_TYPES: Mapping[str, str] = {
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    **{f"{sign}{size}": f"{sign.upper()}{8 * size}" for sign in "iu" for size in (1, 2, 4, 8)},
}
"""NumPy's word for a number format, without the order of bytes -> that of safetensors."""


def plain_of_numpy(values: npt.NDArray[Any]) -> PlainArray | None:
    """Return an array of NumPy as its bytes, ``None`` where safetensors has no name for its number format.

    bf16, which NumPy knows only through ``ml_dtypes`` (JAX), keeps its bits.
    """
    if values.dtype.name == "bfloat16":
        values, word = values.view(np.uint16), "BF16"
    else:
        word = NUMPY_TYPES.get(values.dtype.str[1:], "")
    if not word:
        return None
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return PlainArray(dtype=word, shape=values.shape, data=little.reshape(-1).view(np.uint8))


class _Shard:
    """One file that is being written."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._entries: list[str] = []
        self._length = self._end = 0
        self._file.seek(8 + _ROOM)

    def takes(self, entry: int) -> bool:
        """Whether the header has room for so many letters more."""
        return self._length + entry + 2 <= _ROOM

    def add(self, name: str, array: PlainArray) -> None:
        stop = self._end + array.data.nbytes
        said = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [self._end, stop]}
        entry = f"{json.dumps(name)}:{json.dumps(said, separators=(',', ':'))}"
        self._file.write(array.data.data)
        self._entries.append(entry)
        self._length += len(entry) + 1
        self._end = stop

    def close(self) -> None:
        header = "{" + ",".join(self._entries) + "}"
        self._file.seek(0)
        self._file.write(_ROOM.to_bytes(8, "little") + header.encode("ascii").ljust(_ROOM))
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


class SafetensorsWriter:
    """Writes arrays into ``arrays-0.safetensors`` and the next ones of a folder; closed, they are whole.

    What it holds in memory are names and shapes alone. Two threads do not add at the same time, nor after an
    error of writing.

    Args:
        folder: an empty folder that is there.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: _Shard | None = None
        self.files: list[str] = []

    def add(self, name: str, array: PlainArray) -> None:
        """Write one array.

        Args:
            name: its name, at most ``LONGEST_NAME`` letters, which no other array has; not ``METADATA``.
            array: the array.

        Raises:
            OSError: it cannot be written.

        """
        assert array.data.nbytes == math.prod(array.shape) * int(array.dtype.lstrip("BFIU")) // 8
        entry = len(json.dumps(name)) + 26 * (len(array.shape) + 5)
        if self._shard is None or not self._shard.takes(entry):
            self._close()
            self.files.append(f"arrays-{len(self.files)}.safetensors")
            self._shard = _Shard(self._folder / self.files[-1])
        self._shard.add(name, array)

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._close()
        elif self._shard is not None:
            self._shard.abandon()
