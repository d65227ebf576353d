"""Files of ``torch.save``: tensors, or dicts and lists of them, read without torch; nothing in them is run.

The format is that of torch since 1.6: a zip archive with a pickle of the structure, ``data.pkl``, and each
storage as a file of its own, uncompressed (https://docs.pytorch.org/docs/stable/notes/serialization.html).
The pickle may name the few classes below, for which something harmless stands here: nothing that it names is
imported, and one that names anything else is refused. Where a tensor lay, on CUDA say, does not matter: its
bytes are in the file.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
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

_QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")
_QUANTISED_BY = ("per_tensor_affine", "per_channel_affine", "per_tensor_symmetric", "per_channel_symmetric")
"""torch's names beside quantised tensors, which are passed over."""

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
    if len(rest) > 2 and rest[2]:  # {"neg": True} or {"conj": True}: the storage holds other values
        return _Unread("a negated or conjugated view, whose values are not those that are stored")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor with no whole sizes")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _other_tensor(*arguments: Any) -> _Unread:
    return _Unread(
        "a tensor of another kind: sparse, quantised, of 8-bit floats, without values, or a subclass"
    )


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return {_checked_key(key): value for key, value in pairs}


def _checked_key(key: Any) -> Any:
    """Return a key that costs little to look up: tuples in tuples would be walked each time."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, (str, bytes, int, float)) for part in parts):
        raise pickle.UnpicklingError("a key that is neither text nor a number, nor a row of them")
    return key


_NAMED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Kind,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v3"): _other_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _other_tensor,
    ("torch._utils", "_rebuild_qtensor"): _other_tensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _other_tensor,
    ("torch.serialization", "_get_layout"): _Kind,
    ("torch.storage", "UntypedStorage"): _Kind("UntypedStorage"),
    **{("torch", name): _Kind(name) for name in (*_STORAGES, *_QUANTISED, *_QUANTISED_BY)},
}
"""What a pickle may name, and what stands for it here."""

_FORMAT = re.compile(r"(b?float|u?int|complex)\d+(_e\dm\d\w*)?|bool")
"""torch's names of number formats, which stand beside tensors of 8-bit floats."""

_HARMLESS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.return_types\.\w+|torch\.(nn\.parameter\.)?\w*(Tensor|Buffer|Parameter)"
    r"|collections\.(defaultdict|deque|Counter)|numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)"
)
"""What a pickle of values may name without meaning harm, and is not read here all the same."""


class _Structure(pickle._Unpickler):
    """Reads the structure alone; what it names is looked up in the table, never imported.

    It is the reader in Python, whose steps can be replaced: the state of an object is dropped, since setting
    it would change what stands for the object here; and keys are looked at before they are looked up.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these three are of the class itself; typeshed lists none of them
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def _drop_state(self) -> None:
        self.stack.pop()

    def _fill_set(self) -> None:
        raise pickle.UnpicklingError("a set, which holds no tensors")

    def _fill_dict(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_ordered(zip(items[::2], items[1::2], strict=True)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update({_checked_key(key): value})

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append(_ordered(zip(items[::2], items[1::2], strict=True)))

    dispatch[pickle.BUILD[0]] = _drop_state
    dispatch[pickle.ADDITEMS[0]] = dispatch[pickle.FROZENSET[0]] = _fill_set
    dispatch[pickle.SETITEMS[0]] = _fill_dict
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.DICT[0]] = _make_dict

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and _FORMAT.fullmatch(name):
            return _Kind(name)
        try:
            return _NAMED[module, name]
        except KeyError:
            raise _NotPlainError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", _Kind(name=str() as kind), str() as key, str(), int() as count) if (
                kind in _STORAGES
            ):
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
    structure, stored = _opened(path)
    found = _parts(structure, (name,) if name else (), itertools.count(), 0)
    for key, part in found:
        if isinstance(part, _Tensor):
            yield _array(path, key, part, stored)


def unread_in_pt(path: Path) -> str:
    """Return what of a file is passed over and why, of the first such part; empty where nothing is.

    Raises:
        TraceError: as :func:`arrays_of_pt`.
        ValueError: as :func:`arrays_of_pt`.
        OSError: it cannot be read.

    """
    parts = _parts(_opened(path)[0], (), itertools.count(), 0)
    return next((f"{name!r:.80} is {part.why}" for name, part in parts if isinstance(part, _Unread)), "")


def _opened(path: Path) -> tuple[Any, Mapping[str, _Member]]:
    """Return the structure of a file, and where its storages lie."""
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
    return structure, stored


def _structure(path: Path, content: bytes) -> Any:
    try:
        return _Structure(io.BytesIO(content)).load()
    except _NotPlainError as error:
        harmless = _HARMLESS.fullmatch(str(error))
        why = ", which is not read here" if harmless else ": loading it could run any code"
        raise TraceError(
            f"its pickle names {error!s:.200}{why}; nothing of it was run",
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


def _parts(
    value: Any, path: tuple[str, ...], seen: Iterator[int], depth: int
) -> Iterator[tuple[str, _Tensor | _Unread]]:
    """Yield the tensors in a structure, read or not; what is in it several times counts as often."""
    if next(seen) > 4 * MOST_ARRAYS:
        raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, (_Tensor, _Unread)):
        yield ".".join(path) or "tensor", value
    elif isinstance(value, (dict, list)) or type(value) is tuple:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _parts(part, (*path, str(key)), seen, depth + 1)


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
    try:
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype)
        whole: Values = np.memmap(
            path, dtype=dtype, mode="r", offset=member.start, shape=(member.size // dtype.itemsize,)
        )
        strides = [step * dtype.itemsize for step in tensor.strides]
        return np.ascontiguousarray(
            as_strided(whole[tensor.offset :], tensor.shape, strides, writeable=False)
        )
    except (OSError, ValueError, OverflowError) as error:
        raise broken(path, error) from error
