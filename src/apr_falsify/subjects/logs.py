"""Where foreign programs write: a log of what they print, and a folder that is gone afterwards."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.errors import OutputError, ProcessError
from apr_falsify.folders import temporary_folder
from apr_falsify.portable import portable_text

_QUOTED_LINES, _QUOTED_WIDTH = 8, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A file that holds what programs printed.

    Attributes:
        path: where it lies while programs run.
        kept: where it lies after one failed, ``None`` where that is the same place.

    """

    path: Path
    kept: Path | None = None

    @property
    def named(self) -> Path:
        """Where a reader of an error finds it."""
        return self.kept or self.path

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
    """Give a fresh log: at ``place``, else a temporary file that stays only where a program failed.

    What a killed process left of a temporary one is removed by the next. A log at ``place`` is handed on with
    what lies beside it, so paths of this machine are shortened in it at the end; it is removed where the run
    ended early for another reason than a program's failure.

    Raises:
        OutputError: it cannot be written.

    """
    with _temporary_log(name) if place is None else _log_at(place, name) as log:
        yield log


@contextmanager
def _log_at(place: Path, name: str) -> Iterator[Log]:
    with _writing(place, name):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    try:
        yield Log(path=place)
    except ProcessError:
        with suppress(OSError):
            _shorten_paths(place)
        raise
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    with _writing(place, name):
        _shorten_paths(place)


def _shorten_paths(log: Path) -> None:
    text = log.read_bytes().decode("utf-8", "surrogateescape")
    log.write_bytes(portable_text(text).encode("utf-8", "surrogateescape"))


@contextmanager
def _temporary_log(name: str) -> Iterator[Log]:
    temporary = Path(tempfile.gettempdir())
    with _writing(temporary, name):
        folder = temporary_folder(f"{name}-log")
    kept = f"apr-falsify-{name}-{folder.name.rpartition('-')[2]}.log"
    log = Log(path=folder / "log", kept=temporary / kept)
    try:
        with _writing(temporary, name):
            log.path.touch(mode=0o600)
        yield log
    except ProcessError:
        with suppress(OSError):
            log.path.rename(log.named)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(place: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the log of {name} cannot be written: {error.strerror}",
            where=place,
            remedy="free space, or name another folder: with --out, or in TMPDIR where there is none",
        ) from error


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Give an empty folder for what ``name`` writes; those that killed processes left are removed.

    Raises:
        OutputError: it cannot be made.

    """
    try:
        folder = temporary_folder(name)
    except OSError as error:
        raise OutputError(
            f"{name} has nowhere to write: {error.strerror}", where=tempfile.gettempdir()
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
