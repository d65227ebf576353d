"""The directory of a sweep: one directory for each job that has run, whole or not there.

    OUT/sweep.json               what is to run
    OUT/jobs/ID/result.json      how the job ended, in which time and memory, and its bisection
    OUT/jobs/ID/...              the traces and the page, where the sweep keeps them
    OUT/lock                     held while a sweep runs here

A job's directory is filled under another name and then renamed. What a killed sweep left is removed by the
next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from apr_falsify import __version__
from apr_falsify.compare.bisection import SCHEMA, Kind, Status
from apr_falsify.errors import ExitCode, OutputError, SweepError
from apr_falsify.folders import partial_name, partial_prefix, sweep, write_whole
from apr_falsify.reading import items, mapping, number, read_json, text, whole
from apr_falsify.sweeps.job import Job

SWEEP_SCHEMA = "apr-falsify/sweep/v1"
RESULT_SCHEMA = "apr-falsify/sweep-job/v1"

RESULT_JSON = "result.json"
SWEEP_JSON = "sweep.json"


class JobEnd(StrEnum):
    """How a job ended; all but the first have no bisection."""

    JUDGED = "judged"
    REFUSED = "refused"
    UNDECIDED = "undecided"
    INTERNAL = "internal error"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    DIED = "died"

    @property
    def exit_code(self) -> ExitCode | None:
        """What a process says of it; ``None`` where that is the bisection's to say."""
        return _EXIT.get(self)


_EXIT: Mapping[JobEnd, ExitCode] = {
    JobEnd.REFUSED: ExitCode.USAGE,
    JobEnd.UNDECIDED: ExitCode.INCONCLUSIVE,
    JobEnd.INTERNAL: ExitCode.INTERNAL,
    JobEnd.TIMED_OUT: ExitCode.INCONCLUSIVE,
    JobEnd.OUT_OF_MEMORY: ExitCode.INCONCLUSIVE,
    JobEnd.DIED: ExitCode.INTERNAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What came of one job.

    Attributes:
        ended: how it ended.
        exit_code: what its process would have said.
        seconds: how long it took.
        peak: bytes of memory at the most, its programs included; 0 where that is not known.
        message: what it said where it was not judged.
        bisection: the object of schema ``apr-falsify/bisection/v1``, where it was judged.
        version: of apr-falsify.

    """

    ended: JobEnd
    exit_code: int
    seconds: float
    peak: int = 0
    message: str = ""
    bisection: Mapping[str, Any] | None = field(default=None, repr=False)
    version: str = __version__

    def to_json(self, job: Job) -> dict[str, Any]:
        """Return it as plain JSON values, with the job that it is of."""
        return {
            "schema": RESULT_SCHEMA,
            "job": job.to_json(),
            "sha256": job.sha256,
            "ended": self.ended.value,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "peak": self.peak,
            "message": self.message,
            "version": self.version,
            "bisection": self.bisection,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is not of that form.

        """
        if data.get("schema") != RESULT_SCHEMA:
            raise ValueError(f"schema is {data.get('schema')!r}, not {RESULT_SCHEMA!r}")
        ended = JobEnd(text(data.get("ended"), "ended"))
        held = data.get("bisection")
        if (held is None) == (ended is JobEnd.JUDGED):
            raise ValueError(
                f"ended is {ended.value!r}, and bisection is {'missing' if held is None else 'there'}"
            )
        code = ExitCode(whole(data.get("exit_code"), "exit_code"))
        if held is None and code is not ended.exit_code:
            raise ValueError(f"exit_code is {code:d} of a job that {ended.value}")
        if held is not None:
            _check_bisection(mapping(held, "bisection"), code)
        return cls(
            ended=ended,
            exit_code=int(code),
            seconds=number(data.get("seconds"), "seconds"),
            peak=whole(data.get("peak"), "peak"),
            message=text(data.get("message"), "message"),
            version=text(data.get("version"), "version"),
            bisection=None if held is None else mapping(held, "bisection"),
        )


def _check_bisection(held: Mapping[str, Any], code: ExitCode) -> None:
    """Check that a bisection is one, and that nothing passes which is not consistent and compared nothing.

    Raises:
        ValueError: it is none, or its exit code is not that of its headline.

    """
    if held.get("schema") != SCHEMA:
        raise ValueError(f"its bisection's schema is {held.get('schema')!r}, not {SCHEMA!r}")
    kind = Kind(text(held.get("kind"), "kind"))
    for name in ("sources", "findings", "stages"):
        rows = [mapping(one, name) for one in items(held.get(name), name)]
        if (
            name == "stages"
            and code is ExitCode.OK
            and not any(one.get("status") == _COMPARED for one in rows)
        ):
            raise ValueError("it passed, and compared nothing")
    if code is ExitCode.OK and kind is not Kind.CONSISTENT:
        raise ValueError(f"it passed, and is {kind.value}")


_COMPARED = Status.COMPARED.value


class Runs:
    """The runs of one sweep.

    Args:
        folder: the directory.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, job: Job) -> Path:
        """Return the directory of a job, there or not."""
        return self.folder / "jobs" / job.id

    def get(self, job: Job) -> JobResult | None:
        """Return what came of a job, ``None`` where it has not run.

        Raises:
            SweepError: what lies there is of another job, or not as it was written.

        """
        path = self.place(job) / RESULT_JSON
        if not path.exists():
            return None
        data = _read(path)
        if data.get("sha256") != job.sha256:
            raise SweepError(
                "another job of this name ran here, with other arguments",
                where=path,
                expected=job.command,
                remedy="choose another --out, or remove that directory",
            )
        try:
            return JobResult.from_json(data)
        except ValueError as error:
            raise SweepError(f"is not as it was written: {error}", where=path, remedy=_REMOVE) from error

    @contextmanager
    def room(self, job: Job) -> Iterator[Path]:
        """Give a directory that a job may fill; it is removed where :meth:`put` did not take it."""
        path = self.place(job)
        partial = path.with_name(partial_name(path))
        try:
            sweep(path.parent, partial_prefix(path))
            partial.mkdir(parents=True)
        except OSError as error:
            raise _not_written(path, error) from error
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def put(self, job: Job, result: JobResult, room: Path) -> None:
        """Store what came of a job, with what lies in its ``room``: whole or not at all.

        Raises:
            OutputError: it cannot be written.

        """
        path = self.place(job)
        try:
            data = json.dumps(result.to_json(job), indent=1) + "\n"
            (room / RESULT_JSON).write_text(data, encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            os.rename(room, path)
        except OSError as error:
            raise _not_written(path, error) from error

    def write_plan(self, name: str, jobs: Sequence[Job]) -> None:
        """Store what is to run, so that a report knows what has not.

        Raises:
            SweepError: another sweep lies here.
            OutputError: it cannot be written.

        """
        data = {"schema": SWEEP_SCHEMA, "name": name, "jobs": [job.to_json() for job in jobs]}
        path = self.folder / SWEEP_JSON
        if path.exists() and self.read_plan()[0] != name:
            raise SweepError(
                f"the runs of another sweep lie here: {self.read_plan()[0]}",
                where=self.folder,
                remedy="choose another --out",
            )
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(data, indent=1) + "\n").encode())
        except OSError as error:
            raise _not_written(path, error) from error

    def read_plan(self) -> tuple[str, tuple[Job, ...]]:
        """Return the sweep's name and its jobs.

        Raises:
            SweepError: no sweep lies here.

        """
        path = self.folder / SWEEP_JSON
        if not path.is_file():
            raise SweepError(
                "no sweep lies here",
                where=self.folder,
                expected=f"a directory of `sweep run` with {SWEEP_JSON}",
            )
        data = _read(path)
        try:
            if data.get("schema") != SWEEP_SCHEMA:
                raise ValueError(f"schema is {data.get('schema')!r}, not {SWEEP_SCHEMA!r}")
            jobs = tuple(Job.from_json(mapping(one, "jobs")) for one in data.get("jobs", ()))
            return text(data.get("name"), "name"), jobs
        except (ValueError, TypeError) as error:
            raise SweepError(f"is not as it was written: {error}", where=path, remedy=_REMOVE) from error

    @contextmanager
    def locked(self, *, shared: bool) -> Iterator[None]:
        """Keep other sweeps out of the directory; ``shared``: jobs asked for by name run side by side.

        Raises:
            SweepError: another sweep runs here.
            OutputError: it cannot be written to.

        """
        path = self.folder / "lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise _not_written(path, error) from error
        with file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SweepError(
                    "another sweep runs in this directory",
                    where=self.folder,
                    remedy="wait for it, or choose another --out",
                ) from None
            yield


_REMOVE = "remove it: the sweep runs that job again"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return mapping(read_json(path), path.name)
    except OSError as error:
        raise SweepError(f"cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise SweepError(f"is not as it was written: {error}", where=path, remedy=_REMOVE) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written: {error.strerror or error}", where=path, remedy="choose another --out"
    )
