"""The engine ``local``: worker processes of this machine, as many as cores and memory allow."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.sweeps.job import Job
from apr_falsify.sweeps.runs import JobResult
from apr_falsify.sweeps.worker import SweepWorker

Done = Callable[[Job, JobResult, Path], None]
"""Called with a job, what came of it, and its directory."""

Room = Callable[[Job], AbstractContextManager[Path]]
"""Gives a directory to a job, for as long as it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one job may take.

    Attributes:
        folder: where paths of jobs begin.
        seconds: how long it may take.
        memory: how many bytes, its programs included; 0: no limit.
        keep: whether its traces and its page are kept.

    """

    folder: Path
    seconds: float
    memory: int
    keep: bool = False


class Memory:
    """Lets jobs begin as long as what they are expected to take fits; one always may.

    Args:
        total: bytes that there are; by default what the system says is available.

    """

    def __init__(self, total: int | None = None) -> None:
        self.total = available() if total is None else total
        self._taken, self._running = 0, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes fit, or nothing else runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._taken + size <= self.total)
            self._taken, self._running = self._taken + size, self._running + 1
        try:
            yield
        finally:
            with self._changed:
                self._taken, self._running = self._taken - size, self._running - 1
                self._changed.notify_all()


def available() -> int:
    """Return the bytes of memory that are free for new work. Source: proc(5), ``MemAvailable``."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class LocalEngine:
    """Runs jobs in worker processes of this machine.

    Args:
        limits: what one job may take.
        logs: a folder for what workers print.
        workers: how many run at a time; by default one a core.

    """

    def __init__(self, limits: Limits, logs: Path, workers: int | None = None) -> None:
        self._limits, self._logs = limits, logs
        self._workers = workers or len(os.sched_getaffinity(0))
        self._threads = max(1, len(os.sched_getaffinity(0)) // self._workers)
        self._memory = Memory()
        self._lock, self._ended = threading.Lock(), False
        self._alive: set[SweepWorker] = set()
        self._started = 0

    def run(self, jobs: Sequence[Job], room: Room, done: Done) -> None:
        """Run ``jobs``; each is given to ``done`` as soon as it has ended, in a thread of its worker."""
        waiting = iter(jobs)
        count = max(1, min(self._workers, len(jobs)))
        with ThreadPoolExecutor(count) as slots:
            try:
                running = [slots.submit(self._slot, waiting, room, done) for _ in range(count)]
                for slot in as_completed(running):
                    slot.result()
            except BaseException:
                self.end()  # else leaving the block would wait for what they run
                raise
        self.end()

    def _slot(self, waiting: Iterator[Job], room: Room, done: Done) -> None:
        worker: SweepWorker | None = None
        while (job := self._next(waiting)) is not None:
            with self._memory.taken(max(job.reserve, self._limits.memory)), room(job) as place:
                if worker is not None and worker.is_full:  # of what earlier jobs left in it
                    worker.end()
                if worker is None or not worker.alive:
                    worker = self._start()
                result = worker.run(job, place if self._limits.keep else None)
                if self._ended:
                    return
                done(job, result, place)
        if worker is not None:
            worker.end()

    def _next(self, waiting: Iterator[Job]) -> Job | None:
        with self._lock:
            return None if self._ended else next(waiting, None)

    def _start(self) -> SweepWorker:
        with self._lock:
            self._started += 1
            log = self._logs / f"worker-{self._started}.log"
        limits = self._limits
        worker = SweepWorker(
            limits.folder, log, seconds=limits.seconds, memory=limits.memory, threads=self._threads
        )
        with self._lock:
            self._alive.add(worker)
        if self._ended:  # while it started, when it was in no list yet
            worker.end()
        return worker

    def end(self) -> None:
        """End all workers, in the middle of a job too."""
        self._ended = True
        for worker in list(self._alive):
            worker.end()
