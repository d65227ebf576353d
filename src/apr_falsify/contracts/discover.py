"""Which files are validated: those named, and every YAML file below the directories named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from apr_falsify.errors import UsageError, nearest

_SUFFIXES = (".yaml", ".yml")


def discover(paths: Iterable[Path]) -> list[Path]:
    """Every contract file under ``paths``, once, sorted; links to directories are not followed.

    A file that is asked for twice, or that a link beside it also leads to, is one contract.

    Raises:
        UsageError: a path does not exist, or there is no YAML file at all: nothing checked is no pass.

    """
    found: list[Path] = []
    asked = list(paths)
    for path in asked:
        if path.is_dir():
            found.extend(_below(path))
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise UsageError("no such file or directory", where=path, remedy=_near(path))
    if not found:
        shown = ", ".join(map(str, asked))
        raise UsageError("no .yaml or .yml file to validate", where=shown, expected="at least one contract")
    return _once(found)


def _near(path: Path) -> str:
    beside = path.parent
    found = nearest(path.name, os.listdir(beside)) if beside.is_dir() else ""
    return found or "name the folder of the contracts"


def _once(found: list[Path]) -> list[Path]:
    """Each file once, under the first of its names that is no link."""
    files: dict[str, Path] = {}
    links: dict[str, Path] = {}
    folders: dict[str, str] = {}
    for path in found:
        if path.is_symlink():
            links.setdefault(os.path.realpath(path), path)
        else:
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            files.setdefault(os.path.join(folders[folder], name), path)
    once = {*files.values(), *(path for real, path in links.items() if real not in files)}
    return [path for path in dict.fromkeys(found) if path in once]


def _below(root: Path) -> list[Path]:
    found: list[str] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "node_modules")
        found.extend(os.path.join(folder, file) for file in sorted(files) if file.endswith(_SUFFIXES))
    return [Path(path) for path in found]
