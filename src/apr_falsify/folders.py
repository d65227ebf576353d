"""Where things are stored between runs, and where for one; what killed runs left is swept up."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
import time
import zlib
from pathlib import Path

CACHE_VARIABLE = "APR_FALSIFY_CACHE"
"""Names the folder itself; without it, it is ``apr-falsify`` under ``$XDG_CACHE_HOME``, else ``~/.cache``."""


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not exist.

    Raises:
        RuntimeError: neither variable is set and the user has no home directory.

    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "apr-falsify"


_WRITER = re.compile(r"(\d+)-([0-9a-f]{8})-")
_ABANDONED = 24 * 3600.0
"""Age in seconds at which what another machine writes is taken for left: its processes cannot be seen."""


def writer(pid: int) -> str:
    """Return what names a process of this machine in a file's name; several machines may share a folder."""
    return f"{pid}-{_machine()}-"


@functools.cache
def _machine() -> str:
    """Return eight hexadecimal digits for where a process id means something: a host or a container."""
    name = os.uname().nodename
    with contextlib.suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"


def partial_prefix(path: Path) -> str:
    """Return how the names begin under which ``path`` is written; who writes it follows."""
    return f".{path.name}.partial-"


def partial_name(path: Path) -> str:
    """Return the name under which this process writes the file ``path``, beside it."""
    return f"{partial_prefix(path)}{writer(os.getpid())}"


def sweep(folder: Path, prefix: str) -> None:
    """Remove what processes that have ended left in ``folder``; what cannot be removed stays.

    It is known by its name: ``prefix``, ``writer``, anything.
    """
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        found = _WRITER.match(path.name.removeprefix(prefix))
        if found and _is_left(path, int(found[1]), found[2]):
            _remove(path)


def _is_left(path: Path, pid: int, machine: str) -> bool:
    if machine == _machine():
        return _has_ended(pid)
    try:
        return time.time() - path.lstat().st_mtime > _ABANDONED
    except OSError:  # its own writer was faster
        return False


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; what killed writers of it left beside it is removed.

    Raises:
        OSError: it cannot be written; what was there before still is.

    """
    sweep(path.parent, partial_prefix(path))
    partial = path.with_name(partial_name(path))
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def temporary_folder(name: str) -> Path:
    """Make an empty folder in the temporary directory; what killed processes left under ``name`` is removed.

    Raises:
        OSError: it cannot be made.

    """
    import tempfile  # here: it, and shutil, cost validate-contracts milliseconds that never uses them

    prefix = f"apr-falsify-{name}-"
    sweep(Path(tempfile.gettempdir()), prefix)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{writer(os.getpid())}"))


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter: no number of a process at all
        return True
    except PermissionError:  # another user's
        pass
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
