"""Files of ``torch.save``: tensors, or dicts and lists of them, read without torch; nothing in them is run.

The format is that of torch since 1.6: a zip archive with a pickle of the structure, ``data.pkl``, and each
storage as a file of its own, uncompressed (https://docs.pytorch.org/docs/stable/notes/serialization.html).
The pickle may name the few classes below, for which something harmless stands here: nothing that it names is
imported, and one that names anything else is refused. Where a tensor lay, on CUDA say, does not matter: its
bytes are in the file.
"""

from __future__ import annotations

import collections
import io
import itertools
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from apr_falsify.errors import TraceError
from apr_falsify.reading import opened_zip
from apr_falsify.subjects.foreign import MOST_ARRAYS, ForeignArray, Values, broken

_STORAGES: Mapping[str, tuple[str, str]] = {
    "HalfStorage": ("f16", "<f2"),
    "BFloat16Storage": ("bf16", "<u2"),
    "FloatStorage": ("f32", "<f4"),
    "DoubleStorage": ("f64", "<f8"),
    "CharStorage": ("i8", "<i1"),
    "ShortStorage": ("i16", "<i2"),
    "IntStorage": ("i32", "<i4"),
    "LongStorage": ("i64", "<i8"),
    "ByteStorage": ("u8", "<u1"),
    "BoolStorage": ("bool", "<u1"),
    "ComplexFloatStorage": ("c64", "<c8"),
    "ComplexDoubleStorage": ("c128", "<c16"),
}
"""torch's class of a storage -> our number format, and NumPy's of its values."""

_LONGEST_PICKLE = 1 << 26
_DEEPEST = 12


class _Kind(NamedTuple):
    name: str


class _Storage(NamedTuple):
    kind: str
    dtype: str
    key: str
    values: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unread(NamedTuple):
    why: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor | _Unread:
    if not isinstance(storage, _Storage):
        return _Unread("a tensor without a plain storage")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor with no whole sizes")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _other_tensor(*arguments: Any) -> _Unread:
    return _Unread("a tensor of another kind: sparse, quantised, of 8-bit floats, or a subclass")


_NAMED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Kind,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v3"): _other_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _other_tensor,
    ("torch._utils", "_rebuild_qtensor"): _other_tensor,
    ("torch.serialization", "_get_layout"): _Kind,
    ("torch.storage", "UntypedStorage"): _Kind("UntypedStorage"),
    **{("torch", name): _Kind(name) for name in _STORAGES},
}
"""What a pickle may name, and what stands for it here."""

_FORMAT = re.compile(r"(b?float|u?int|complex)\d+(_e\dm\d\w*)?|bool")
"""torch's names of number formats, which stand beside tensors of 8-bit floats."""


class _Structure(pickle._Unpickler):
    """Reads the structure alone; what it names is looked up in the table, never imported.

    It is the reader in Python, whose steps can be replaced: the state of an object is dropped, since setting
    it would change what stands for the object here.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def _drop_state(self) -> None:
        self.stack.pop()  # type: ignore[attr-defined]  # typeshed lists no attribute of this class

    dispatch[pickle.BUILD[0]] = _drop_state

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and _FORMAT.fullmatch(name):
            return _Kind(name)
        try:
            return _NAMED[module, name]
        except KeyError:
            raise _NotPlainError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", _Kind(name=kind), str() as key, str(), int() as count) if kind in _STORAGES:
                return _Storage(*_STORAGES[kind], key, count)
            case ("storage", *_):
                return _Unread("a storage without a number format")
        raise pickle.UnpicklingError("a reference to something outside the file")


class _NotPlainError(Exception):
    """A pickle names something that is no part of a tensor."""


@dataclass(frozen=True, slots=True)
class _Member:
    start: int
    size: int


def arrays_of_pt(path: Path, name: str = "") -> Iterator[ForeignArray]:
    """Yield the tensors of a file, named by their keys in dicts and lists, joined by dots.

    Args:
        path: the file.
        name: what a tensor that stands alone is called, and what stands before the names of others.

    Raises:
        TraceError: the pickle names anything that loading it could run.
        ValueError: it is no whole file of ``torch.save``.
        OSError: it cannot be read.

    """
    if not zipfile.is_zipfile(path):
        raise ValueError("no zip archive: torch wrote it before 1.6, or something else did; save it again")
    with opened_zip(path, MOST_ARRAYS) as archive:
        members = {member.filename: member for member in archive.infolist()}
        root = next((one.removesuffix("data.pkl") for one in members if one.endswith("/data.pkl")), None)
        if root is None:
            raise ValueError("it has no data.pkl: a scripted module, or no file of torch.save")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its values have their highest byte first")
        if members[f"{root}data.pkl"].file_size > _LONGEST_PICKLE:
            raise ValueError(f"its data.pkl has more than {_LONGEST_PICKLE >> 20} MiB")
        structure = _structure(path, archive.read(f"{root}data.pkl"))
        stored = {
            one.removeprefix(f"{root}data/"): _place(path, member)
            for one, member in members.items()
            if one.startswith(f"{root}data/")
        }
    for key, tensor in _tensors(structure, (name,) if name else (), itertools.count(), 0):
        yield _array(path, key, tensor, stored)


def _structure(path: Path, content: bytes) -> Any:
    try:
        return _Structure(io.BytesIO(content)).load()
    except _NotPlainError as error:
        raise TraceError(
            f"its pickle names {error}: loading it could run any code; nothing of it was run",
            where=path,
            expected="tensors, and dicts and lists of tensors",
            remedy="save the tensors alone: torch.save({name: tensor, ...}, PATH)",
        ) from error
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"its structure cannot be read: {type(error).__name__}: {error!s:.80}") from error


def _place(path: Path, member: zipfile.ZipInfo) -> _Member:
    """Return where the bytes of a file in the archive lie, which is not compressed."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename!r} in it is compressed")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\3\4":
        raise ValueError(f"{member.filename!r} in it is cut off")
    name, extra = struct.unpack("<HH", head[26:30])
    return _Member(member.header_offset + 30 + name + extra, member.file_size)


def _tensors(
    value: Any, path: tuple[str, ...], seen: Iterator[int], depth: int
) -> Iterator[tuple[str, _Tensor]]:
    """Yield the tensors in a structure; what is in it several times counts as often."""
    if next(seen) > 4 * MOST_ARRAYS:
        raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, _Tensor):
        yield ".".join(path) or "tensor", value
    elif isinstance(value, (dict, list)) or type(value) is tuple:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _tensors(part, (*path, str(key)), seen, depth + 1)


def _array(path: Path, name: str, tensor: _Tensor, stored: Mapping[str, _Member]) -> ForeignArray:
    storage, member = tensor.storage, stored.get(tensor.storage.key)
    width = np.dtype(storage.dtype).itemsize
    last = tensor.offset + sum(
        (size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True)
    )
    empty = 0 in tensor.shape
    if member is None or (not empty and (last + 1) * width > member.size):
        raise ValueError(f"the values of {name!r} are cut off")
    if math.prod(tensor.shape) * width > 4 * member.size + (1 << 20):  # strides of 0 repeat values
        raise ValueError(f"{name!r} repeats its values too often")
    load = partial(_load, path, member, tensor)
    return ForeignArray(name=name, kind=storage.kind, shape=tensor.shape, load=load)


def _load(path: Path, member: _Member, tensor: _Tensor) -> Values:
    dtype = np.dtype(tensor.storage.dtype)
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    try:
        whole: Values = np.memmap(
            path, dtype=dtype, mode="r", offset=member.start, shape=(member.size // dtype.itemsize,)
        )
    except (OSError, ValueError) as error:
        raise broken(path, error) from error
    strides = [step * dtype.itemsize for step in tensor.strides]
    return np.ascontiguousarray(as_strided(whole[tensor.offset :], tensor.shape, strides, writeable=False))
