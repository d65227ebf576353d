"""A model file, memory-mapped, and what each reader of one checks: its magic, and where tensors end."""

from __future__ import annotations

import mmap
from pathlib import Path

from apr_falsify.errors import ModelError


def map_file(path: Path) -> mmap.mmap:
    """Return the bytes of the file at ``path``, mapped read-only.

    Raises:
        ModelError: it cannot be read, or is empty.

    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=path) from error
    except ValueError as error:
        raise ModelError("the file is empty", where=path) from error


def check_magic(data: mmap.mmap, magic: bytes, *, where: Path, expected: str) -> None:
    """Check that ``data`` starts with ``magic``; ``expected`` says which file that would be.

    Raises:
        ModelError: it starts with something else.

    """
    found = data[: len(magic)]
    if found != magic:
        raise ModelError(f"the file starts with {found!r}", where=where, expected=expected)


def check_within(name: str, end: int, size: int, *, where: Path, remedy: str) -> None:
    """Check that the tensor ``name``, whose last byte lies before ``end``, lies within ``size`` bytes.

    Raises:
        ModelError: it reaches beyond them.

    """
    if end > size:
        raise ModelError(
            f"tensor {name} reaches beyond the end of the file",
            where=where,
            expected=f"at least {end} bytes, the file has {size}",
            remedy=remedy,
        )
