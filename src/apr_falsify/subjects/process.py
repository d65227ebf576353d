"""Foreign programs: run in a process group of their own, with a time limit, what they print in a log."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from apr_falsify.errors import MissingDependencyError, OutputError, ProcessError
from apr_falsify.subjects.logs import Log

LOG_LIMIT = 64 << 20
"""Bytes of output after which a program is taken for one that will never stop printing."""

_HEAD = 1 << 20
"""Bytes of output, from its start, in which something is looked for."""

_AFTER_KILL = 2.0
"""Seconds that a killed program's output is waited for."""

_MARK = "APR_FALSIFY_RUN"
"""Variable in a program's environment: by it, what it started is known, in its process group or out of it."""

_KILLS = 5
"""How often what a program started is looked for: it may start more while it is being killed."""


def find_program(name: str, given: Path | None, remedy: str, option: str = "") -> Path:
    """Return the program that the user named, a file first, else the one called ``name`` on PATH.

    Args:
        name: what it is called.
        given: the program that the user named.
        remedy: the command that installs it.
        option: the option that names another, where there is one.

    Raises:
        MissingDependencyError: there is none, or it is not executable.

    """
    if given is not None and given.exists():  # `./apr` is `apr` by now, and PATH may hold another
        given = given.absolute()
    found = shutil.which(name if given is None else given)
    if found is not None:
        return Path(found).absolute()
    if given is None:
        or_named = f", or {option} PATH to where it lies" if option else ""
        raise MissingDependencyError(f"no program `{name}` on PATH", remedy=remedy + or_named)
    raise MissingDependencyError(
        "is not executable" if given.exists() else "no such program",
        where=given,
        expected=f"an executable `{name}`",
        remedy=f"{option} PATH" if option else remedy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A foreign program and the limits that it runs under.

    Attributes:
        name: what people call it.
        binary: the file that is executed.
        seconds: how long one run of it may take.
        exits: what its exit codes mean, where that is known.

    """

    name: str
    binary: Path
    seconds: float
    exits: Mapping[int, str] = field(default_factory=dict)

    def run(self, *arguments: str, log: Log) -> str:
        """Run it to its end and return the start of what it printed, at most 1 MiB.

        Raises:
            ProcessError: it could not be started, failed, or ran past its time.

        """
        with self.start(*arguments, log=log) as running:
            running.finish()
            return running.printed

    @contextmanager
    def start(self, *arguments: str, log: Log) -> Iterator[Running]:
        """Start it, and kill it, with all that it started, when the context is left.

        Raises:
            ProcessError: it could not be started.

        """
        running = None
        try:
            with _ctrl_c_put_off():  # between its start and our knowing of it, nobody would end it
                running = Running(self, arguments, log)
            yield running
        finally:
            if running is not None:
                running.end()

    def failed(self, what: str, log: Log, expected: str = "", remedy: str = "") -> ProcessError:
        """Return an error of this program that names its log and quotes the last lines of it."""
        tail = log.tail()
        ends = f"its log is {log.named}" + (f" and ends with\n{tail}" if tail else ", and it printed nothing")
        return ProcessError(
            what, where=self.binary, expected=expected, remedy=f"{remedy}; {ends}" if remedy else ends
        )


class Running:
    """A program that runs, in a process group of its own; see :meth:`Program.start`.

    Args:
        program: what to run.
        arguments: its arguments.
        log: where its output goes, after a line that says what was run.

    Raises:
        ProcessError: it could not be started.
        OutputError: the log cannot be written.

    """

    def __init__(self, program: Program, arguments: Sequence[str], log: Log) -> None:
        self.program, self.log = program, log
        self.verb = " ".join([program.name, *arguments[:1]])
        self._deadline = time.monotonic() + program.seconds
        self._mark = uuid.uuid4().hex
        self._head, self._news = bytearray(), threading.Condition()
        self._ended = self._flooded = False
        self._unwritten: OSError | None = None
        command = [str(program.binary), *arguments]
        file = _opened(log, " ".join(command))
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, _MARK: self._mark},
                start_new_session=True,
            )
        except OSError as error:
            file.close()
            raise program.failed(f"cannot be run: {error.strerror}", log) from error
        self._pump = threading.Thread(target=self._copy, args=(file,), daemon=True)
        self._pump.start()

    @property
    def printed(self) -> str:
        """What it printed so far, at most 1 MiB from the start."""
        with self._news:
            return self._head.decode("utf-8", "replace")

    def wait_for(self, pattern: re.Pattern[str] | None) -> re.Match[str] | None:
        """Return where ``pattern`` stands in what it prints, ``None`` where it ended without.

        Without a pattern its end is waited for, however it ends.

        Raises:
            ProcessError: it ran past its time.

        """
        while True:
            with self._news:
                match = pattern.search(self._head.decode("utf-8", "replace")) if pattern else None
                if match is not None or self._ended:
                    return match
                self._news.wait(timeout=0.1)
            if self._process.poll() is not None:
                self._end_group()  # what it left behind may hold its output open
                with self._news:
                    self._ended = True
            elif time.monotonic() > self._deadline:
                self._overdue()

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            ProcessError: it failed, or ran past its time.
            OutputError: its log could not be written.

        """
        try:
            code = self._process.wait(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._overdue()
        self._end_group()
        if self._flooded:
            raise self.program.failed(f"`{self.verb}` printed more than {LOG_LIMIT >> 20} MiB", self.log)
        if self._unwritten is not None:
            raise OutputError(
                f"the log cannot be written: {self._unwritten.strerror}", where=self.log.path
            ) from self._unwritten
        if code != 0:
            raise self.program.failed(f"`{self.verb}` {exit_text(code, self.program.exits)}", self.log)

    def end(self) -> None:
        """Kill it, and all that it started, where it still runs."""
        self._end_group()
        if self._process.poll() is None:
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _overdue(self) -> NoReturn:
        self._end_group()
        raise self.program.failed(
            f"`{self.verb}` did not end within {self.program.seconds:g} s and was killed",
            self.log,
            remedy="--timeout SECONDS, if it needs longer",
        )

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: none of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(_KILLS):
            if not (left := list(_marked(self._mark))):
                break
            for pid in left:
                _kill(pid)
        self._pump.join(_AFTER_KILL)

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return os.read(self._process.stdout.fileno(), 1 << 16)
        except (OSError, ValueError):  # closed: somebody out of reach had it open for too long
            return b""

    def _copy(self, file: IO[bytes]) -> None:
        """Copy its output into the log, until it ends."""
        size = 0
        with file:
            while chunk := self._read():
                size += len(chunk)
                if size > LOG_LIMIT:
                    self._flooded = True
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                    break
                try:
                    file.write(chunk)
                except OSError as error:
                    self._unwritten = error
                with self._news:
                    self._head += chunk[: _HEAD - len(self._head)]
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def _marked(mark: str) -> Iterator[int]:
    """Give the processes that have ``mark`` in their environment; none where the system does not show it."""
    wanted = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def _ctrl_c_put_off() -> Iterator[None]:
    """Let Ctrl-C wait until the context is left."""
    if threading.current_thread() is not threading.main_thread():  # others never get it
        yield
        return
    pressed: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _opened(log: Log, title: str) -> IO[bytes]:
    try:
        file = log.path.open("ab", buffering=0)
        file.write(f"$ {title}\n".encode())
    except OSError as error:
        raise OutputError(f"the log cannot be written: {error.strerror}", where=log.path) from error
    return file


def exit_text(code: int, known: Mapping[int, str]) -> str:
    """Say how a process ended, by what ``wait`` returned: an exit status, or the signal that killed it."""
    number = -code if code < 0 else code - 128  # a shell passes its child's signal on as 128 + its number
    name = signal.Signals(number).name if number in signal.valid_signals() else ""
    if code < 0:
        return f"was killed by {name or f'signal {number}'}"
    meaning = known.get(code) or (f"128 + {name}" if name and code > 128 else "")
    return f"exited with {code}" + (f" ({meaning})" if meaning else "")
