"""The exam's worker processes: each has one kernel and a share of the cases.

A packet is all cases of one model under one kernel. A slot runs packets one after another and keeps its
worker as long as the kernel stays the same. Of wide models one runs at a time, since each takes gigabytes.
What comes of a case depends on the case alone, so neither slots nor their order show in the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from apr_falsify.compare.attempts import error_line
from apr_falsify.errors import ProcessError
from apr_falsify.exam.cases import ExamCase
from apr_falsify.exam.kernels import KERNELS
from apr_falsify.exam.material import Material
from apr_falsify.exam.recipes import outcome_of, recipe_of
from apr_falsify.exam.results import Results
from apr_falsify.exam.store import remove
from apr_falsify.exam.trial import TrialOutcome, broken_down

_PROGRAM = "apr_falsify.commands.exam_worker"
_QUOTED = 2000
"""Characters of what a worker printed that an error quotes."""

Watch = Callable[[str, int, int], None]
"""Called with the part that runs, how many cases are done, and of how many."""


class WorkerDied(Exception):
    """A worker process that ended before it answered."""


class Worker:
    """One process that runs cases under one kernel.

    Args:
        kernel: the kernel's name.
        models: the folder of models.
        own: a folder for it alone.

    """

    def __init__(self, kernel: str, models: Path, own: Path) -> None:
        self.kernel = kernel
        own.mkdir()
        self._output = own / "said.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(models), str(own)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=KERNELS[kernel].environment(os.environ),
                text=True,
                encoding="utf-8",
                bufsize=1,
            )
        self.facts: dict[str, str] = self._answer()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def hold(self, case: ExamCase) -> dict[str, Any]:
        """Return what came of ``case``, as plain values.

        Raises:
            WorkerDied: the process ended instead.

        """
        with suppress(BrokenPipeError):
            print(json.dumps(recipe_of(case)), file=_open(self._process.stdin), flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = _open(self._process.stdout).readline()
        if not line:
            code = self._process.wait()
            output = self._output.read_text(encoding="utf-8", errors="replace").strip()[-_QUOTED:]
            raise WorkerDied(f"the worker process ended with {code}: {output or 'it printed nothing'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End it, in the middle of a case too."""
        self._process.terminate()
        with suppress(BrokenPipeError):
            _open(self._process.stdin).close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _open(self._process.stdout).close()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """All cases of one model under one kernel.

    Attributes:
        kernel: the kernel's name.
        material: the model.
        cases: the cases, each with the title of its part.

    """

    kernel: str
    material: Material
    cases: list[tuple[str, ExamCase]] = field(default_factory=list)


class Pool:
    """Runs cases in worker processes.

    Args:
        directory: where models and workers write; the caller removes it.
        jobs: how many workers run at a time.
        results: what has run already, and where outcomes are stored.
        watch: called with the progress.

    """

    def __init__(self, directory: Path, jobs: int, results: Results, watch: Watch) -> None:
        self._directory, self.models = directory, directory / "models"
        self.models.mkdir(exist_ok=True)
        self._jobs, self._results, self._watch = jobs, results, watch
        self._lock = threading.Lock()
        self._waiting: list[Packet] = []
        self._wide_runs = self._ended = False
        self.workers: set[Worker] = set()
        self._spare: list[Worker] = []
        self._started = 0
        self._counts: dict[str, list[int]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()

    def __call__(self, parts: Mapping[str, Sequence[ExamCase]]) -> Mapping[str, list[TrialOutcome]]:
        """Run the cases of ``parts`` that have not run yet, and return the outcomes of all."""
        self._plan(parts)
        with ThreadPoolExecutor(self._jobs) as slots:
            try:
                for done in [slots.submit(self._run_slot) for _ in range(self._jobs)]:
                    done.result()
            except BaseException:
                self._end_all()  # else leaving the block would wait for what they hold
                raise
        return {part: [self._outcome(case) for case in cases] for part, cases in parts.items()}

    def _plan(self, parts: Mapping[str, Sequence[ExamCase]]) -> None:
        packets: dict[tuple[str, Material], Packet] = {}
        self._counts = {part: [0, len(cases)] for part, cases in parts.items()}
        for part, case in ((part, case) for part, cases in parts.items() for case in cases):
            if self._results.get(case) is not None:
                self._counts[part][0] += 1
                continue
            packet = Packet(kernel=case.kernel, material=case.material)
            packets.setdefault((case.kernel, case.material), packet).cases.append((part, case))
        self._waiting = list(packets.values())
        for part, (done, total) in self._counts.items():
            self._watch(part, done, total)

    def _outcome(self, case: ExamCase) -> TrialOutcome:
        found = self._results.get(case)
        assert found is not None
        return found

    def _run_slot(self) -> None:
        worker = self._spare.pop() if self._spare else None
        while (packet := self._next(worker)) is not None:
            if worker is not None and worker.kernel != packet.kernel:
                self._end(worker)
                worker = None
            worker = self._run_packet(packet, worker)
        if worker is not None:
            self._spare.append(worker)

    def _next(self, worker: Worker | None) -> Packet | None:
        """Take the next packet: a wide one first, then one of the same kernel, then of the one with most."""
        with self._lock:
            open_ones = [each for each in self._waiting if not (each.material.wide and self._wide_runs)]
            if not open_ones or self._ended:
                return None
            sizes: dict[str, int] = {}
            for each in open_ones:
                sizes[each.kernel] = sizes.get(each.kernel, 0) + len(each.cases)

            def rank(each: Packet) -> tuple[bool, bool, int]:
                same = worker is not None and each.kernel == worker.kernel
                return each.material.wide, same, sizes[each.kernel]

            chosen = max(open_ones, key=rank)
            self._waiting.remove(chosen)
            self._wide_runs |= chosen.material.wide
            return chosen

    def _run_packet(self, packet: Packet, worker: Worker | None) -> Worker | None:
        try:
            for part, case in packet.cases:
                if self._ended:
                    break
                worker = worker or self._start(packet.kernel)
                try:
                    outcome = outcome_of(case, worker.hold(case))
                except WorkerDied as error:
                    if self._ended:
                        break
                    self._end(worker)
                    worker, outcome = None, broken_down(case, "the run", error_line(error))
                self._done(part, outcome)
        finally:
            self._finish(packet)
        return worker

    def _done(self, part: str, outcome: TrialOutcome) -> None:
        self._results.put(outcome)
        with self._lock:
            self._counts[part][0] += 1
            done, total = self._counts[part]
        self._watch(part, done, total)

    def _finish(self, packet: Packet) -> None:
        """Let the next wide packet run, and remove a wide model that none waits for."""
        if not packet.material.wide:
            return
        with self._lock:
            self._wide_runs = False
            wanted = any(each.material == packet.material for each in self._waiting)
        if not wanted:
            remove(self.models / packet.material.file_name)

    def _start(self, kernel: str) -> Worker:
        with self._lock:
            self._started += 1
            own = self._directory / f"worker-{self._started}"
        try:
            worker = Worker(kernel, self.models, own)
        except WorkerDied as error:
            raise ProcessError("an exam's worker could not be started", expected=str(error)) from error
        with self._lock:
            self.workers.add(worker)
        if self._ended:  # while it started, when it was in no list yet
            worker.end()
        self._results.put_kernel(kernel, worker.facts)
        return worker

    def _end(self, worker: Worker) -> None:
        worker.end()
        with self._lock:
            self.workers.discard(worker)

    def _end_all(self) -> None:
        self._ended = True
        for worker in list(self.workers):
            worker.end()
