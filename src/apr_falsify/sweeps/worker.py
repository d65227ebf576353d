"""A worker process of a sweep, seen from outside: it runs job after job, within a time and a memory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from apr_falsify.errors import ProcessError
from apr_falsify.portable import portable_text
from apr_falsify.sweeps.job import Job
from apr_falsify.sweeps.runs import JobEnd, JobResult

PROGRAM = "apr_falsify.commands.sweep_worker"

_LOOK = 0.05
"""Seconds between two looks at the memory of a job."""

_QUOTED = 2000
"""Characters of what a worker printed that a message quotes."""

_PROC = Path("/proc")


class SweepWorker:
    """One process that runs the jobs of a sweep, one at a time.

    Torch is imported once in it, not once a job. After a time-out, too much memory or its death it is gone,
    and :attr:`alive` is false.

    Args:
        folder: where the paths of the jobs begin.
        log: a file for what its libraries print.
        seconds: how long one job may take.
        memory: how many bytes a job may take, its programs included; 0: no limit.
        threads: how many threads its libraries compute with, where the environment does not say that.

    Raises:
        ProcessError: it could not be started.

    """

    def __init__(self, folder: Path, log: Path, *, seconds: float, memory: int, threads: int = 1) -> None:
        self._seconds, self._memory, self._log = seconds, memory, log
        usual = {
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        environment = {**usual, **os.environ}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # what a job starts can be found and ended with it
            )
        if self._answer(time.monotonic() + 60, 0)[0] is None:
            self.end()
            raise ProcessError("a sweep's worker could not be started", expected=self._log_end())

    @property
    def alive(self) -> bool:
        """Whether it takes another job."""
        return self._process.poll() is None

    @property
    def is_full(self) -> bool:
        """Whether it holds so much of earlier jobs that the next might be ended for it."""
        return bool(self._memory) and self.alive and 2 * self._bytes() > self._memory

    @property
    def pid(self) -> int:
        """The id of its process, and of the session of all that it starts."""
        return self._process.pid

    def run(self, job: Job, out: Path | None = None) -> JobResult:
        """Run one job; never raises for what the job does.

        Args:
            job: the job.
            out: a directory for its traces and its page; without one they are not kept.

        """
        start = time.monotonic()
        request = {"arguments": job.arguments, "out": None if out is None else str(out.absolute())}
        with suppress(BrokenPipeError):
            self._write(json.dumps(request))
        answer, ended, peak = self._answer(start + self._seconds, self._memory)
        seconds = time.monotonic() - start
        if answer is not None:
            return _result(answer, seconds, peak)
        message = self._why(ended)
        self.end()
        assert ended.exit_code is not None
        return JobResult(
            ended=ended, exit_code=int(ended.exit_code), seconds=seconds, peak=peak, message=message
        )

    def _write(self, line: str) -> None:
        stream = _open(self._process.stdin)
        stream.write(line.encode() + b"\n")
        stream.flush()

    def _answer(self, until: float, memory: int) -> tuple[dict[str, Any] | None, JobEnd, int]:
        """Wait for a line; return it, how the job ended where none came, and the memory at its highest."""
        stream, read, peak = _open(self._process.stdout), b"", 0
        while not read.endswith(b"\n"):
            if not select.select([stream], [], [], _LOOK)[0]:
                peak = max(peak, self._bytes())
                if memory and peak > memory:
                    return None, JobEnd.OUT_OF_MEMORY, peak
                if time.monotonic() > until:
                    return None, JobEnd.TIMED_OUT, peak
                continue
            more = os.read(stream.fileno(), 1 << 20)
            if not more:
                return None, JobEnd.DIED, peak
            read += more
        peak = max(peak, self._bytes())
        if memory and peak > memory:
            return None, JobEnd.OUT_OF_MEMORY, peak
        found: dict[str, Any] = json.loads(read)
        return found, JobEnd.JUDGED, peak

    def _bytes(self) -> int:
        """Return the memory of its own, and of all that it started; 0 where the system does not say."""
        return sum(_anonymous(pid) for pid in (self.pid, *descendants(self.pid)))

    def _why(self, ended: JobEnd) -> str:
        if ended is JobEnd.TIMED_OUT:
            return f"it took more than {self._seconds:g} s"
        if ended is JobEnd.OUT_OF_MEMORY:
            return f"it took more than {self._memory / (1 << 30):.2f} GiB"
        code = self._process.wait()
        how = f"by signal {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
        return portable_text(f"its process ended {how}: {self._log_end()}")

    def _log_end(self) -> str:
        with suppress(OSError):
            end = self._log.read_text(encoding="utf-8", errors="replace").strip()[-_QUOTED:]
            return end or "it printed nothing"
        return "it printed nothing"

    def end(self) -> None:
        """End it, and all that it started."""
        if self.alive:
            kill_all(self.pid)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                _open(stream).close()


def _result(answer: dict[str, Any], seconds: float, peak: int) -> JobResult:
    return JobResult(
        ended=JobEnd(answer["ended"]),
        exit_code=answer["exit_code"],
        seconds=seconds,
        peak=peak,
        message=answer["message"],
        bisection=answer["bisection"],
    )


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did, in whatever session.

    Source: proc(5), ``/proc/PID/stat``: the parent is the 4th field. Empty where there is no ``/proc``.
    """
    children: dict[int, list[int]] = {}
    for place in _PROC.glob("[0-9]*") if _PROC.is_dir() else ():
        with suppress(OSError, IndexError, ValueError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = list(children.get(pid, []))
    for each in found:  # which grows on the way
        found += children.get(each, [])
    return found


def kill_all(pid: int) -> None:
    """Kill a process, its group, and all that it started."""
    for each in (*descendants(pid), pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _anonymous(pid: int) -> int:
    """Return the bytes that a process cannot give back. Source: proc(5), ``RssAnon`` of ``status``."""
    with suppress(OSError, IndexError, ValueError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0
