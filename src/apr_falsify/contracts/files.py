"""Reading a contract's bytes: what cannot be read is a problem with a code, never an exception."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from apr_falsify.contracts.problem import Problem

MOST_BYTES = 2 * 2**20


def read_bytes(path: Path) -> bytes | Problem:
    """Read a contract's bytes; what cannot be read is a problem with a code."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return _problem(path, "unreadable-file", "is not a regular file", hint="name a YAML file")
        if status.st_size > MOST_BYTES:
            size = f"{status.st_size / 2**20:.1f} MiB"
            return _problem(path, "file-too-large", f"is {size}", hint="contracts are at most 2 MiB")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        return _problem(path, "unreadable-file", f"cannot be read: {reason}")


def _problem(path: Path, code: str, message: str, hint: str = "") -> Problem:
    return Problem(code=code, path=path.as_posix(), line=1, column=1, message=message, hint=hint)


def shown_path(path: Path) -> str:
    """A path relative to the working directory, with forward slashes: what every format prints."""
    text = os.fspath(path)
    if os.path.isabs(text):
        text = os.path.relpath(text)
    return os.path.normpath(text).replace(os.sep, "/")
