"""A folder that the processes of one session share, and a lock on a part of it."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apr_falsify.folders import temporary_folder
from apr_falsify.pytest_plugin.sources import imported

WORKER_INPUT = "apr_falsify_shared"
"""The key under which pytest-xdist hands the folder to a worker."""


class Shared:
    """The session's folder: made when it is first requested, removed by the process that made it.

    One that a killed session left is removed by the next.

    Args:
        config: pytest's; under pytest-xdist a worker's names the controller's folder.

    """

    def __init__(self, config: pytest.Config) -> None:
        given = getattr(config, "workerinput", {}).get(WORKER_INPUT)
        self._path = None if given is None else Path(given)
        self._is_ours = given is None

    @property
    def path(self) -> Path:
        """The folder."""
        if self._path is None:
            self._path = temporary_folder("session")
        return self._path

    def tell_imported(self, worker: str) -> None:
        """Leave what this worker imported, for the controller."""
        (self.path / f"imported-{worker}.json").write_text(json.dumps(imported()), encoding="utf-8")

    def imported(self) -> dict[str, frozenset[str]]:
        """Return, for every module, the files that this process and the workers imported under its name."""
        told = [json.loads(one.read_text(encoding="utf-8")) for one in self.path.glob("imported-*.json")]
        found: dict[str, set[str]] = {}
        for modules in (imported(), *told):
            for name, file in modules.items():
                found.setdefault(name, set()).add(file)
        return {name: frozenset(files) for name, files in found.items()}

    def remove(self) -> None:
        """Remove it, where this process made it."""
        if self._is_ours and self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
