"""Which files are validated: those named, and every YAML file below the directories named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from apr_falsify.errors import UsageError

_SUFFIXES = (".yaml", ".yml")


def discover(paths: Iterable[Path]) -> list[Path]:
    """Every contract file under ``paths``, once, sorted; links to directories are not followed.

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
            raise UsageError(
                "no such file or directory", where=path, remedy="name the folder of the contracts"
            )
    if not found:
        shown = ", ".join(map(str, asked))
        raise UsageError("no .yaml or .yml file to validate", where=shown, expected="at least one contract")
    return list(dict.fromkeys(found))


def _below(root: Path) -> list[Path]:
    found: list[str] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "node_modules")
        found.extend(os.path.join(folder, file) for file in sorted(files) if file.endswith(_SUFFIXES))
    return [Path(path) for path in found]
