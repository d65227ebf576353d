"""Named arrays in files that any program can write: ``.npz``, ``.safetensors``, a directory of ``.npy``.

Shapes and number formats are known before any value is read. The formats are those of numpy.lib.format and
of https://github.com/huggingface/safetensors; nothing pickled is ever loaded.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.reading import parse_json
from apr_falsify.tensors import SAFETENSORS_TYPES

Values = npt.NDArray[Any]

BF16_BITS = ("u16", "v16")
"""Number formats of arrays that may hold the bits of bf16, for which NumPy has no type."""

_WHOLE_SAFETENSORS: Mapping[str, tuple[str, str]] = {
    f"{sign}{bits}": (f"{sign.lower()}{bits}", f"<{sign.lower()}{bits // 8}")
    for sign in "IU"
    for bits in (8, 16, 32, 64)
}
_TYPES: Mapping[str, tuple[str, str]] = {**SAFETENSORS_TYPES, **_WHOLE_SAFETENSORS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignArray:
    """One array of a file, not yet read.

    Attributes:
        name: its name there.
        kind: its number format: ``f16``, ``bf16``, ``f32``, ``f64``, ``i64``, ``u16`` ...
        shape: its shape.
        load: reads its values in C order, in any shape; bf16 as the bits. Raises :class:`TraceError` where
            they are cut off.

    """

    name: str
    kind: str
    shape: tuple[int, ...]
    load: Callable[[], Values]


Dump = Mapping[str, ForeignArray]
"""The arrays of one recording, by name."""


def read_dump(path: Path) -> Dump:
    """Return the arrays at ``path``.

    Raises:
        TraceError: no such format, cut off, pickled, a name that is there twice, or no array at all.

    """
    reader = _from_directory if path.is_dir() else _READERS.get(path.suffix)
    if reader is None:
        raise TraceError(
            "not a file of arrays that is read here",
            where=path,
            expected=".npz, .safetensors, or a directory of .npy files",
            remedy="save the run's arrays with numpy.savez or safetensors.numpy.save_file",
        )
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise TraceError("not a regular file", where=path)  # a pipe would be waited for without end
    try:
        arrays = list(reader(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from error
    found = {array.name: array for array in arrays}
    if len(found) != len(arrays):
        twice = next(name for name in found if sum(array.name == name for array in arrays) > 1)
        raise TraceError(f"the array {twice!r} is there twice", where=path, remedy="write it once")
    if not found:
        raise TraceError(
            "no arrays",
            where=path,
            expected="at least one .npy file" if path.is_dir() else "at least one named array",
            remedy="save the run's arrays with NumPy; files of torch.save are not read",
        )
    return found


def _broken(path: Path, error: Exception) -> TraceError:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return TraceError(
        f"cannot be read: {said}",
        where=path,
        expected="a whole file of plain arrays",
        remedy="write it again; the writer may have been cut off",
    )


def _from_npz(path: Path) -> Iterator[ForeignArray]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename!r} in it is no array")
            with archive.open(member) as file:
                shape, kind, start = _npy_header(file)
            _check_size(member.filename, member.file_size, start, shape, kind)
            load = partial(_load_member, path, member.filename)
            yield _array(member.filename.removesuffix(".npy"), shape, kind, load)


def _from_directory(path: Path) -> Iterator[ForeignArray]:
    root = path.resolve()
    for file in sorted(path.rglob("*.npy")):
        if not file.is_file() or not file.resolve().is_relative_to(root):
            raise TraceError("no regular file, or a link that leads out of the recording", where=file)
        try:
            with file.open("rb") as stream:
                shape, kind, start = _npy_header(stream)
            _check_size(file.name, file.stat().st_size, start, shape, kind)
        except (OSError, ValueError) as error:
            raise _broken(file, error) from error
        name = file.relative_to(path).as_posix().removesuffix(".npy")
        yield _array(name, shape, kind, partial(_load_npy, file))


def _from_safetensors(path: Path) -> Iterator[ForeignArray]:
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the whole header (offsets, sizes, types); the map below then trusts it.
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length).decode("utf-8"))  # refuses a name that is there twice
    for name, entry in header.items():
        if name != "__metadata__":
            kind, dtype = _TYPES.get(entry["dtype"], (entry["dtype"].lower(), "V1"))
            begin, end = entry["data_offsets"]
            load = partial(_load_span, path, 8 + length + begin, end - begin, dtype)
            yield ForeignArray(name=name, kind=kind, shape=tuple(entry["shape"]), load=load)


_READERS: Mapping[str, Callable[[Path], Iterable[ForeignArray]]] = {
    ".npz": _from_npz,
    ".safetensors": _from_safetensors,
}


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and the length of the header of an ``.npy`` stream."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, kind = np.lib.format.read_array_header_2_0(file)
    if kind.hasobject:
        raise ValueError("its values are pickled: loading them could run any code; save plain numbers")
    return shape, kind, file.tell()


def _check_size(name: str, size: int, start: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    expected = start + math.prod(shape) * kind.itemsize
    if size != expected:
        raise ValueError(f"{name} has {size} bytes, its header announces {expected}")


def _array(
    name: str, shape: tuple[int, ...], kind: np.dtype[Any], load: Callable[[], Values]
) -> ForeignArray:
    word = f"{kind.kind.lower()}{8 * kind.itemsize}" if kind.kind in "fiuV" else kind.name
    return ForeignArray(name=name, kind=word, shape=shape, load=load)


def _load_member(path: Path, member: str) -> Values:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            values: Values = np.lib.format.read_array(file, allow_pickle=False)
            file.read()  # the checksum is looked at where the data end
            return values
    except Exception as error:  # zlib, struct, zipfile: each has errors of its own for data that are cut off
        raise _broken(path, error) from error


def _load_npy(path: Path) -> Values:
    try:
        values: Values = np.load(path, mmap_mode="r" if path.stat().st_size > _SMALL else None)
        return values
    except (OSError, ValueError, EOFError) as error:
        raise _broken(path, error) from error


_SMALL = 1 << 16
"""Files up to here are read whole: a map holds a descriptor, and recordings have thousands of files."""


def _load_span(path: Path, start: int, size: int, dtype: str) -> Values:
    with path.open("rb") as file:
        file.seek(start)
        return np.frombuffer(file.read(size), dtype=dtype)
