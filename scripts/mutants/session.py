"""Try mutants in one pytest session: everything is imported and collected once, each mutant is a fork.

1. Measure: every test once, in a fork that notes which lines of the code it runs and how long it takes.
2. Control: the same tests in the order in which mutants meet them, with nothing changed; those that fail in
   either are not used.
3. Each mutant: a fork that puts it in place and runs the tests that reach its lines, the quickest first,
   until one fails.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from mutants.graft import NotPossible, clear_caches, graft
from mutants.places import Mutant

HANG = 10.0
"""A test hangs that takes so many CPU seconds more than ten times what it usually does."""

STANDSTILL = 900
"""Seconds after which a fork that uses no CPU time is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one test did without any mutant.

    Attributes:
        passed: whether it passed; neither failed nor skipped.
        seconds: CPU seconds, while traced.
        lines: file -> lines that it ran.

    """

    passed: bool
    seconds: float
    lines: Mapping[str, frozenset[int]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a mutant.

    Attributes:
        status: ``killed``, ``hangs``, ``alive``, ``unreached`` (alive: no test runs its lines) or ``void``.
        by: the test that noticed.
        seconds: how long it took.
        tests: how many tests were run.

    """

    status: str
    by: str = ""
    seconds: float = 0.0
    tests: int = 0


class Forks(list[pytest.Item]):
    """The collected tests, run in forks of this process."""

    def measure(self, names: Iterable[str], files: Sequence[Path], root: Path) -> dict[str, Measured]:
        """Run tests one after another, with a trace of the lines of ``files``."""
        wanted = set(names)
        items = [item for item in self if item.nodeid in wanted]
        rows = _forked(lambda send: _measure(items, files, root, send))
        return {
            row["test"]: Measured(
                passed=row["passed"],
                seconds=row["seconds"],
                lines={file: frozenset(lines) for file, lines in row["lines"].items()},
            )
            for row in rows
        }

    def failing(self, tests: Sequence[tuple[str, float]]) -> list[str]:
        """Return which of ``tests`` (name, usual seconds) fail in this order, with nothing changed."""
        rows = _forked(lambda send: _run(self._chosen(tests), None, math.inf, math.inf, send))
        return [row["failed"] for row in rows if "failed" in row]

    def answer(
        self, mutant: Mutant, tests: Sequence[tuple[str, float]], budget: float, hang: float
    ) -> Answer:
        """Try one mutant against ``tests``, for ``budget`` CPU seconds; see :data:`HANG`."""
        start = time.monotonic()
        rows = _forked(lambda send: _run(self._chosen(tests), mutant, budget, hang, send))
        if not rows:
            raise RuntimeError(f"nothing came back of {mutant.key}")
        last = rows[-1]
        status = next((known for known in ("failed", "void", "end") if known in last), "hangs")
        names = {"failed": "killed", "end": "alive"}
        return Answer(
            status=names.get(status, status),
            by=str(last.get("failed", last.get("test", last.get("void", "")))),
            seconds=round(time.monotonic() - start, 2),
            tests=sum("test" in row for row in rows),
        )

    def _chosen(self, tests: Sequence[tuple[str, float]]) -> list[tuple[pytest.Item, float]]:
        by_name = {item.nodeid: item for item in self}
        return [(by_name[name], seconds) for name, seconds in tests]


def _forked(work: Callable[[Callable[[dict[str, Any]], None]], None]) -> list[dict[str, Any]]:
    """Run ``work`` in a fork with a place of its own for temporary files; return what it sent."""
    place = Path(tempfile.mkdtemp(prefix="mutant-"))
    log = place / "rows"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            _be_alone(place)
            with log.open("a", encoding="utf-8") as file:
                work(lambda row: _send(file, row))
        except BaseException:
            (place / "crash").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            os._exit(0)  # never back into the session of the process that was forked
    _wait(child)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    if (place / "crash").exists():
        print((place / "crash").read_text(encoding="utf-8"), file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    return rows


def _send(file: Any, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()


def _be_alone(place: Path) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)  # pytest's own name for where tmp_path lies
    signal.alarm(STANDSTILL)


def _wait(child: int) -> None:
    """Wait for a fork, then end what it started and left behind."""
    os.waitpid(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def _run(
    tests: Sequence[tuple[pytest.Item, float]],
    mutant: Mutant | None,
    budget: float,
    hang: float,
    send: Callable[[dict[str, Any]], None],
) -> None:
    clear_caches()
    try:
        if mutant is not None:
            graft(mutant)
    except NotPossible as error:
        return send({"void": str(error)})
    items = [item for item, _ in tests]
    for (item, usual), after in zip(tests, [*items[1:], None], strict=True):
        if time.process_time() > budget:
            break
        send({"test": item.nodeid})
        # The signal's default action ends the process, whatever the test is doing.
        if mutant is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 10 * usual + hang)
        signal.alarm(STANDSTILL)
        if any(report.failed for report in runtestprotocol(item, nextitem=after, log=False)):
            send({"failed": item.nodeid})
            if mutant is not None:
                return None
    return send({"end": True})


def _measure(
    items: Sequence[pytest.Item], files: Sequence[Path], root: Path, send: Callable[[dict[str, Any]], None]
) -> None:
    signal.alarm(0)
    clear_caches()
    tracer = _Tracer(files, root)
    for item, after in zip(items, [*items[1:], None], strict=True):
        start = time.process_time()
        tracer.start()
        reports = runtestprotocol(item, nextitem=after, log=False)
        lines = tracer.stop()
        send(
            {
                "test": item.nodeid,
                "passed": all(report.passed for report in reports),
                "seconds": round(time.process_time() - start, 4),
                "lines": {file: sorted(found) for file, found in lines.items() if found},
            }
        )


class _Tracer:
    """Notes which lines of some files are run, in every thread."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self.names = {str(path): path.relative_to(root).as_posix() for path in files}
        self.found: dict[str, set[int]] = {}
        self.locals = {path: self._local(name) for path, name in self.names.items()}

    def _local(self, name: str) -> Callable[..., Any]:
        def local(frame: FrameType, event: str, arg: object) -> Any:
            self.found[name].add(frame.f_lineno)
            return local

        return local

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        local = self.locals.get(frame.f_code.co_filename)
        return None if local is None else local(frame, event, arg)

    def start(self) -> None:
        self.found = {name: set() for name in self.names.values()}
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> dict[str, set[int]]:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        return self.found
