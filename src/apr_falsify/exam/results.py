"""The results file: every outcome as soon as it is there, so that an exam that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

from apr_falsify.errors import OutputError, UsageError
from apr_falsify.exam.cases import ExamCase
from apr_falsify.exam.recipes import key_of, outcome_of, outcome_to_json, recipe_of
from apr_falsify.exam.trial import TrialOutcome

SCHEMA = "apr-falsify/faults-results/v1"


@cache
def suite_sha256() -> str:
    """Return a digest of this package's code: outcomes of other code do not count."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


class Results:
    """Outcomes by case: in memory, and in a file of one JSON object a line where one is named.

    Args:
        path: the file, read where it is there; ``None`` for none.

    Raises:
        UsageError: the file is no results file, or holds outcomes of other code.
        OutputError: it cannot be written.

    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        self.kernels: dict[str, dict[str, str]] = {}
        if path is not None and path.exists():
            self._read(path)
        elif path is not None:
            self._append({"schema": SCHEMA, "suite_sha256": suite_sha256()})

    def _read(self, path: Path) -> None:
        try:
            content = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"it cannot be read: {error.strerror}", where=path) from error
        head, *lines = content.splitlines() or [""]
        written = _parsed(head) or {}
        if written.get("schema") != SCHEMA:
            raise UsageError("not a results file", where=path, expected=SCHEMA, remedy="name another file")
        if written.get("suite_sha256") != suite_sha256():
            raise UsageError(
                "its outcomes are those of other code", where=path, remedy="name a file that is not there yet"
            )
        if not content.endswith("\n"):  # a killed exam may have left half a line: let the next begin anew
            self._write("\n")
        for entry in filter(None, map(_parsed, lines)):
            if "kernel" in entry:
                self.kernels[entry["kernel"]] = entry["facts"]
            else:
                self._records[json.dumps(entry["case"], sort_keys=True)] = entry["outcome"]

    def get(self, case: ExamCase) -> TrialOutcome | None:
        """Return what came of ``case``, ``None`` where it has not run yet."""
        record = self._records.get(key_of(case))
        return None if record is None else outcome_of(case, record)

    def put(self, outcome: TrialOutcome) -> None:
        """Keep an outcome."""
        record = outcome_to_json(outcome)
        with self._lock:
            self._records[key_of(outcome.case)] = record
            self._append({"case": recipe_of(outcome.case), "outcome": record})

    def put_kernel(self, name: str, facts: dict[str, str]) -> None:
        """Keep what a worker process says of its kernels."""
        with self._lock:
            self.kernels[name] = facts
            self._append({"kernel": name, "facts": facts})

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(json.dumps(entry) + "\n")

    def _write(self, text: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"the results cannot be saved: {error.strerror}", where=self._path) from error


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
