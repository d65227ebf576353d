"""The arrays of a recording at a path: by the suffix of a file, or of the files in a folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from apr_falsify.errors import TraceError
from apr_falsify.subjects.foreign import (
    MOST_ARRAYS,
    Dump,
    ForeignArray,
    arrays_of_npz,
    arrays_of_safetensors,
    broken,
    npy_array,
)
from apr_falsify.subjects.onnx_tensors import onnx_tensor
from apr_falsify.subjects.recording_json import read_facts
from apr_falsify.subjects.torch_files import arrays_of_pt, unread_in_pt

_FILES: Mapping[str, Callable[[Path], Iterable[ForeignArray]]] = {
    ".npz": arrays_of_npz,
    ".safetensors": arrays_of_safetensors,
    ".pt": arrays_of_pt,
    ".pth": arrays_of_pt,
    ".pb": lambda path: [onnx_tensor(path, path.stem)],
}
"""Suffix of a file that is a recording by itself -> its reader."""

_PARTS: Mapping[str, Callable[[Path, str], Iterable[ForeignArray]]] = {
    ".npy": lambda file, name: [npy_array(file, name)],
    ".pt": arrays_of_pt,
    ".pb": lambda file, name: [onnx_tensor(file, name)],
}
"""Suffix of a file in a folder, which names its arrays -> its reader; a folder is read by the first."""

_EXPECTED = ".npz, .safetensors, .pt of torch.save, .pb of ONNX, or a directory of .npy, .pt or .pb files"


def read_dump(path: Path) -> Dump:
    """Return the arrays at ``path``.

    Raises:
        TraceError: no such format, cut off, pickled, a name that is there twice, or no array at all.

    """
    reader = _arrays_of_folder if path.is_dir() else _FILES.get(path.suffix)
    if reader is None:
        raise TraceError(
            "not a file of arrays that is read here",
            where=path,
            expected=_EXPECTED,
            remedy="save the run's arrays with numpy.savez or safetensors.numpy.save_file",
        )
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise TraceError("not a regular file", where=path)  # a pipe would be waited for without end
    try:
        arrays = list(reader(path))
    except (OSError, ValueError) as error:
        raise broken(path, error) from error
    found = {array.name: array for array in arrays}
    if len(found) != len(arrays):
        twice = next(name for name in found if sum(array.name == name for array in arrays) > 1)
        raise TraceError(f"the array {twice!r} is there twice", where=path, remedy="write it once")
    if not found:
        unread = _unread(path)
        raise TraceError(
            f"no arrays that are read here: {unread}" if unread else "no arrays",
            where=path,
            expected="at least one .npy, .pt or .pb file" if path.is_dir() else "at least one named array",
            remedy="save them as plain floats: tensor.float().contiguous()"
            if unread
            else "save the run's arrays with NumPy",
        )
    for array in arrays:
        _check_shape(path, array)
    return found


def _check_shape(path: Path, array: ForeignArray) -> None:
    """Refuse sizes that no array has; one of 0 beside them would let them through."""
    values = math.prod(size for size in array.shape if size)
    if len(array.shape) > _MOST_AXES or values > _MOST_VALUES:
        said = f"{array.name!r} has the shape {list(array.shape)!r:.80}, which no array has"
        raise broken(path, ValueError(said))


_MOST_AXES, _MOST_VALUES = 32, 1 << 56


def _unread(path: Path) -> str:
    """Return what is passed over where nothing is read, empty where that is not known."""
    files = sorted(path.rglob("*.pt")) if path.is_dir() else [path]
    return next(
        filter(None, map(unread_in_pt, (file for file in files if file.suffix in (".pt", ".pth")))), ""
    )


def holds_arrays(folder: Path) -> bool:
    """Whether a folder holds files of arrays."""
    if read_facts(folder) is not None:
        return True
    return not any(folder.rglob("*.bin")) and any(any(folder.rglob(f"*{suffix}")) for suffix in _PARTS)


def _arrays_of_folder(folder: Path) -> Iterator[ForeignArray]:
    """Yield the arrays of a folder: those of ``apr_falsify.record``, else those of its files of one kind."""
    facts = read_facts(folder)
    if facts is not None:
        for name in facts.files:
            yield from arrays_of_safetensors(_inside(folder, folder / name))
        return
    for suffix, read in _PARTS.items():
        files = sorted(itertools.islice(folder.rglob(f"*{suffix}"), MOST_ARRAYS + 1))
        if len(files) > MOST_ARRAYS:
            raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
        for file in files:
            name = file.relative_to(folder).as_posix().removesuffix(suffix)
            try:
                yield from read(_inside(folder, file), name)
            except (OSError, ValueError) as error:
                raise broken(file, error) from error
        if files:
            return


def _inside(folder: Path, file: Path) -> Path:
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        raise TraceError("no regular file, or a link that leads out of the recording", where=file)
    return file
