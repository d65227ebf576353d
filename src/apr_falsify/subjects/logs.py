"""Where foreign programs write: a log of what they print, and a folder that is gone afterwards."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.errors import OutputError, ProcessError

_QUOTED_LINES, _QUOTED_WIDTH = 8, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A file that holds what programs printed.

    Attributes:
        path: where it lies.

    """

    path: Path

    def tail(self) -> str:
        """Return its last lines, indented, without control characters; says so where it is empty."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - _QUOTED_LINES * 4 * _QUOTED_WIDTH))
                text = file.read().decode("utf-8", "replace")
        except OSError as error:
            return f"    (it cannot be read: {error.strerror})"
        lines = [line for line in map(_printable, text.splitlines()) if line.strip()]
        return "\n".join(f"    | {line[:_QUOTED_WIDTH]}" for line in lines[-_QUOTED_LINES:])


_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in _COLOUR.sub("", line))


@contextmanager
def keeping_log(place: Path | None, name: str) -> Iterator[Log]:
    """Give a fresh log: at ``place``, else a temporary file that is kept only where a program failed.

    A log at ``place`` is removed where the run ended early for another reason than a program's failure.

    Raises:
        OutputError: it cannot be written.

    """
    try:
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"")
            path = place
        else:
            handle, temporary = tempfile.mkstemp(prefix=f"apr-falsify-{name}-", suffix=".log")
            os.close(handle)
            path = Path(temporary)
    except OSError as error:
        raise OutputError(
            f"the log of {name} cannot be written: {error.strerror}",
            where=place or tempfile.gettempdir(),
            remedy="free space, or name another folder: with --out, or in TMPDIR where there is none",
        ) from error
    try:
        yield Log(path=path)
    except ProcessError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if place is None:
        path.unlink(missing_ok=True)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Give an empty folder for what ``name`` writes; those that killed processes left are removed.

    Raises:
        OutputError: it cannot be made.

    """
    prefix = f"apr-falsify-{name}-"
    temporary = Path(tempfile.gettempdir())
    for left in temporary.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if left.is_dir() and pid.isdecimal() and _ended(pid):
            shutil.rmtree(left, ignore_errors=True)
    try:
        folder = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")
    except OSError as error:
        raise OutputError(f"{name} has nowhere to write: {error.strerror}", where=temporary) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ended(pid: str) -> bool:
    """Whether a process is known not to run any more."""
    return Path("/proc/self").exists() and not Path("/proc", pid).exists()
