"""The stage files of a directory in apr's layout: ``layer-<N>/<stage>.bin`` and ``<stage>.bin``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from apr_falsify.errors import StageError, TraceError
from apr_falsify.model.stages import Key, Scope, stage

INCOMPLETE = "INCOMPLETE"
"""A file that stands in a directory while it is being written; nothing reads such a directory."""

_LAYER_DIRECTORY = re.compile(r"layer-([0-9]{1,10})")


def scan(directory: Path) -> dict[Key, Path]:
    """Return the stage files under ``directory``, by layer and stage, in the table's order.

    Raises:
        TraceError: an unfinished directory, an unknown or misplaced stage, a stage that is there
            twice, a link that leaves the directory, or no stage at all.

    """
    try:
        return _scan(directory)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=directory) from error


def _scan(directory: Path) -> dict[Key, Path]:
    if not directory.is_dir():
        raise TraceError("no such directory", where=directory, expected="a directory of APRT stage files")
    if (directory / INCOMPLETE).exists():
        raise TraceError(
            "the capture that wrote it did not finish", where=directory, remedy="remove it and capture again"
        )
    found: dict[Key, Path] = {}
    for layer, path in _stage_files(directory):
        key = Key(layer, _stage_name(path, layer))
        if key in found:
            raise TraceError(f"{path.name} is there twice: also as {found[key]}", where=path)
        found[key] = path
    if not found:
        raise TraceError(
            "no stage files",
            where=directory,
            expected="layer-<N>/<stage>.bin",
            remedy="capture the run first",
        )
    return found


def _stage_files(directory: Path) -> Iterator[tuple[int | None, Path]]:
    root = directory.resolve()
    layers = sorted(
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _LAYER_DIRECTORY.fullmatch(path.name)) and path.is_dir()
    )
    folders: list[tuple[int | None, Path]] = [*layers, (None, directory)]
    for layer, folder in folders:
        for path in sorted(folder.glob("*.bin")):
            check_place(path, root)
            yield layer, path


def check_place(path: Path, root: Path) -> None:
    """Check that a file of a trace is a file, and lies within its directory ``root``.

    Raises:
        TraceError: it is none, or a link leads elsewhere.

    """
    if not path.is_file():
        raise TraceError("is no regular file", where=path, expected="a file of the trace")
    if not path.resolve().is_relative_to(root):
        raise TraceError("a link leads out of the trace", where=path, expected="files within the directory")


def _stage_name(path: Path, layer: int | None) -> str:
    try:
        row = stage(path.stem)
    except StageError as error:
        raise TraceError(error.what, where=path, expected=error.expected, remedy=error.remedy) from error
    if (layer is None) != (row.scope is Scope.MODEL):
        place = "beside the layer directories" if row.scope is Scope.MODEL else "in a directory layer-<N>"
        raise TraceError(f"{row.name} lies in the wrong place", where=path, expected=place)
    if row.scope is Scope.FIRST_LAYER and layer != 0:
        raise TraceError(f"{row.name} exists in layer 0 alone", where=path)
    return row.name
