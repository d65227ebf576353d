"""Where things are kept between runs, and where for one; what killed runs left is swept up."""

from __future__ import annotations

import contextlib
import glob
import os
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


def partial_prefix(path: Path) -> str:
    """Return how the names begin under which ``path`` is written; process id and dash follow."""
    return f".{path.name}.partial-"


def partial_name(path: Path) -> str:
    """Return the name under which this process writes the file ``path``, beside it."""
    return f"{partial_prefix(path)}{os.getpid()}-"


def sweep(folder: Path, prefix: str) -> None:
    """Remove what processes that have ended left in ``folder``; what cannot be removed stays.

    It is known by its name: ``prefix``, process id, dash, anything.
    """
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        pid, dash, _ = path.name.removeprefix(prefix).partition("-")
        if dash and pid.isdecimal() and _has_ended(int(pid)):
            _remove(path)


def temporary_folder(name: str) -> Path:
    """Make an empty folder in the temporary directory; what killed processes left under ``name`` is removed.

    Raises:
        OSError: it cannot be made.

    """
    import tempfile  # here: it, and shutil, cost validate-contracts milliseconds that never uses them

    prefix = f"apr-falsify-{name}-"
    sweep(Path(tempfile.gettempdir()), prefix)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))


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
