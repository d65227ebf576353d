"""Named arrays in files that any program can write: ``.npz``, ``.safetensors``, a directory of ``.npy``.

Shapes and number formats are known before any value is read. The formats are those of numpy.lib.format and
of https://github.com/huggingface/safetensors; nothing pickled is ever loaded.
"""

from __future__ import annotations

import ast
import math
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from apr_falsify.errors import TraceError
from apr_falsify.formats.safetensors import read_header
from apr_falsify.formats.tensors import SAFETENSORS_TYPES
from apr_falsify.reading import opened_zip

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


def broken(path: Path, error: Exception) -> TraceError:
    """Return the error of a file that is not whole."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return TraceError(
        f"cannot be read: {said}",
        where=path,
        expected="a whole file of plain arrays",
        remedy="write it again; the writer may have been cut off",
    )


MOST_ARRAYS = 10_000
"""Arrays of one recording: 80 layers of all stages are 2,000, and each costs a look at its header."""


def arrays_of_npz(path: Path) -> Iterator[ForeignArray]:
    """Yield the arrays of an ``.npz`` archive."""
    unpacked: dict[str, int] = {}
    with opened_zip(path, MOST_ARRAYS) as archive:
        for member in members_of(archive):
            yield npz_array(archive, member, partial(_load_member, path, member, unpacked))


def members_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive.

    Raises:
        ValueError: there are more than any recording has.

    """
    found = archive.infolist()
    if len(found) > MOST_ARRAYS:
        raise ValueError(f"it has {len(found)} arrays, more than {MOST_ARRAYS}")
    return found


def npz_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, load: Callable[[], Values]) -> ForeignArray:
    """Return what the header of an archive's array says; ``load`` reads its values.

    Raises:
        ValueError: it is no array of plain numbers, or has another size than its header says.

    """
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r} in it is no array")
    with archive.open(member) as file:
        shape, kind, start = _npy_header(file)
    _check_size(member.filename, member.file_size, start, shape, kind)
    return _array(member.filename.removesuffix(".npy"), shape, kind, load)


def npy_array(file: Path, name: str) -> ForeignArray:
    """Return what the header of an ``.npy`` file says.

    Raises:
        TraceError: it is not whole, or no array of plain numbers.

    """
    try:
        with file.open("rb") as stream:
            shape, kind, start = _npy_header(stream)
        _check_size(file.name, file.stat().st_size, start, shape, kind)
    except (OSError, ValueError) as error:
        raise broken(file, error) from error
    return _array(name, shape, kind, partial(_load_npy, file))


def arrays_of_safetensors(path: Path) -> Iterator[ForeignArray]:
    """Yield the arrays of a safetensors file."""
    header, start = read_header(path)
    for name, entry in header.items():
        kind, dtype = _TYPES.get(entry["dtype"], (entry["dtype"].lower(), "V1"))
        begin, end = entry["data_offsets"]
        load = partial(_load_span, path, start + begin, end - begin, dtype)
        yield ForeignArray(name=name, kind=kind, shape=tuple(entry["shape"]), load=load)


_NPY = struct.Struct("<6sBB")
NPY_MAGIC = b"\x93NUMPY"
"""How every ``.npy`` file begins."""

_LENGTHS: Mapping[int, str] = {1: "<H", 2: "<I", 3: "<I"}
"""Version of the format -> how the length of the header is written."""

_LONGEST_HEADER = 10_000  # numpy's own limit: what is longer could keep Python's parser busy


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and the length of the header of an ``.npy`` stream.

    NumPy's own reader takes headers of Python 2 with a warning, and lets errors of Python's parser through.
    """
    head = file.read(_NPY.size)
    magic, version, _ = _NPY.unpack(head) if len(head) == _NPY.size else (b"", 0, 0)
    if magic != NPY_MAGIC or version not in _LENGTHS:
        raise ValueError("no .npy file of version 1, 2 or 3")
    width = struct.calcsize(_LENGTHS[version])
    length = int.from_bytes(file.read(width), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, more than {_LONGEST_HEADER}")
    shape, kind = _described(file.read(length).decode("utf-8" if version == 3 else "latin1"))
    if kind.hasobject:
        raise ValueError("its values are pickled: loading them could run any code; save plain numbers")
    return shape, kind, _NPY.size + width + length


def _described(header: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        said = ast.literal_eval(header)
        if set(said) != {"descr", "fortran_order", "shape"} or type(said["fortran_order"]) is not bool:
            raise ValueError("other keys")
        shape = said["shape"]
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("no shape")
        return shape, np.lib.format.descr_to_dtype(said["descr"])
    except Exception as error:  # Python's parser and NumPy's types have many errors of their own
        raise ValueError(f"its header {reprlib.repr(header)} describes no array") from error


def _check_size(name: str, size: int, start: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    expected = start + math.prod(shape) * kind.itemsize
    if size != expected:
        raise ValueError(f"{name} has {size} bytes, its header announces {expected}")


def _array(
    name: str, shape: tuple[int, ...], kind: np.dtype[Any], load: Callable[[], Values]
) -> ForeignArray:
    word = f"{kind.kind.lower()}{8 * kind.itemsize}" if kind.kind in "fiuV" else kind.name
    return ForeignArray(name=name, kind=word, shape=shape, load=load)


def _load_member(path: Path, member: zipfile.ZipInfo, unpacked: dict[str, int]) -> Values:
    """Read an array; ``unpacked`` keeps the sizes of those that were read from the same archive."""
    unpacked[member.filename] = member.file_size
    check_expansion(path, sum(unpacked.values()))
    try:
        with opened_zip(path, MOST_ARRAYS) as archive:
            return read_member(archive, member)
    except (OSError, ValueError, MemoryError) as error:
        raise broken(path, error) from error


def check_expansion(path: Path, size: int) -> None:
    """Refuse ``size`` bytes of arrays that were packed too tightly: a small file must not fill the memory.

    Raises:
        TraceError: they are more than the file at ``path`` can stand for.

    """
    packed = path.stat().st_size
    if size > _EXPANSION * packed + _SPARE:
        raise TraceError(
            f"the arrays that are read have {size} bytes, the file {packed}",
            where=path,
            expected=f"at most {_EXPANSION} times the file and {_SPARE >> 20} MiB",
            remedy="write it again with numpy.savez, which does not compress",
        )


_EXPANSION, _SPARE = 4, 48 << 20


def load_all(path: Path, wanted: Dump) -> Iterator[tuple[str, Values]]:
    """Yield name and values of the arrays ``wanted`` of the recording at ``path``, whose file is opened once.

    Raises:
        TraceError: they are cut off, or packed too tightly.

    """
    if path.suffix != ".npz" or not path.is_file():
        yield from ((name, array.load()) for name, array in wanted.items())
        return
    try:
        with opened_zip(path, MOST_ARRAYS) as archive:
            found = {member.filename.removesuffix(".npy"): member for member in members_of(archive)}
            check_expansion(path, sum(found[name].file_size for name in wanted))
            yield from ((name, read_member(archive, found[name])) for name in wanted)
    except (OSError, ValueError, MemoryError) as error:
        raise broken(path, error) from error


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Values:
    """Return the values of an array whose header was read by :func:`npz_array`.

    Raises:
        ValueError: they are cut off.

    """
    with archive.open(member) as file:
        values: Values = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # the checksum is looked at where the data end
        return values


def _load_npy(path: Path) -> Values:
    try:
        values: Values = np.load(path, mmap_mode="r" if path.stat().st_size > _SMALL else None)
        return values
    except (OSError, ValueError, EOFError) as error:
        raise broken(path, error) from error


_SMALL = 1 << 16
"""Files up to here are read whole: a map holds a descriptor, and recordings have thousands of files."""


def _load_span(path: Path, start: int, size: int, dtype: str) -> Values:
    with path.open("rb") as file:
        file.seek(start)
        return np.frombuffer(file.read(size), dtype=dtype)
