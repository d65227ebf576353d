"""``apr import``: other formats into apr's own, stored by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apr_falsify.errors import ModelError, OutputError
from apr_falsify.folders import CACHE_VARIABLE, cache_folder
from apr_falsify.subjects.logs import Log, keeping_log
from apr_falsify.subjects.process import Program
from apr_falsify.traces.identity import model_sha256

FOLDER = "apr-import"
"""Where imports are stored, in the cache folder."""

MOST_KEPT = 8
"""How many imports are stored, those used last."""

_ABANDONED = 24 * 3600.0
"""Age in seconds at which an unfinished import is taken for one that was killed."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def source_files(source: Path) -> tuple[Path, ...]:
    """Return every file that an import of ``source`` may read: a directory's own, but for pickled weights.

    Raises:
        ModelError: nothing usable there.

    """
    try:
        if source.is_file() and source.suffix in (".apr", ".gguf"):
            return (source,)
        if (source / "config.json").is_file():
            return tuple(
                path
                for path in sorted(source.iterdir())
                if path.is_file() and not path.name.startswith(".") and path.suffix not in _PICKLED
            )
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=source) from error
    raise ModelError(
        "not a model" if source.exists() else "no such file or directory",
        where=source,
        expected="MODEL.apr, MODEL.gguf or a HuggingFace directory",
    )


def imported(program: Program, source: Path) -> Path:
    """Return ``source`` as an .apr file: itself, one that was imported before, or one imported now.

    An import is known by the sha256 of the source's files and that of the binary. It is written beside its
    place and moved there last; what the binary printed lies next to it.

    Raises:
        ModelError: nothing usable there.
        ProcessError: the import failed or wrote nothing.
        OutputError: the cache folder cannot be written to.

    """
    files = source_files(source)
    if source.suffix == ".apr" and source.is_file():
        return source
    key = f"{model_sha256(files)} {model_sha256((program.binary,))}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    place = cache_folder() / FOLDER / f"{source.absolute().stem[:40]}-{digest}.apr"
    with _in_cache(place):
        if place.is_file():
            os.utime(place)
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        _prune(place.parent)
    with keeping_log(None, "apr-import") as log:
        partial = place.with_name(f".{os.getpid()}-{place.name}")
        try:
            import_model(program, source, partial, log)
            with _in_cache(place):
                shutil.copyfile(log.path, place.with_suffix(".log"))
                os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
    return place


def import_model(program: Program, source: Path, place: Path, log: Log) -> None:
    """Import ``source`` into the file ``place``.

    Raises:
        ProcessError: the import failed or wrote nothing.

    """
    program.run("import", str(source.absolute()), "-o", str(place), "--offline", log=log)
    if not place.is_file() or place.stat().st_size == 0:
        raise program.failed("`apr import` exited with 0 and wrote nothing", log)


@contextmanager
def _in_cache(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the imported model cannot be saved: {error.strerror}",
            where=place.parent,
            remedy=f"free space, or name another folder in {CACHE_VARIABLE}",
        ) from error


def _prune(folder: Path) -> None:
    """Leave room for one more import, and remove what killed ones left."""
    kept = sorted(folder.glob("[!.]*.apr"), key=lambda path: path.stat().st_mtime, reverse=True)
    stale = [path for path in folder.glob(".*.apr") if time.time() - path.stat().st_mtime > _ABANDONED]
    for path in (*kept[MOST_KEPT - 1 :], *stale):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.unlink()
        path.with_suffix(".log").unlink(missing_ok=True)
