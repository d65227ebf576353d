"""The engine ``ray``: the same workers, each held by an actor of a Ray cluster.

An actor asks the cluster for a core, for what its jobs are expected to take of memory, and for a GPU where a
lane is on one. What it computes stays with it but for the result, which comes home. Where an actor is killed
its job is given to another, once; the jobs that have ended are stored already.

Source of the interface: Ray's documentation, "Actors" and "Fault tolerance".
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from apr_falsify.errors import ExitCode, MissingDependencyError, ProcessError
from apr_falsify.portable import portable_text
from apr_falsify.sweeps.job import Job
from apr_falsify.sweeps.local import Done, Limits, Room
from apr_falsify.sweeps.runs import JobEnd, JobResult
from apr_falsify.sweeps.worker import SweepWorker

_TRIES = 2
"""How often a job is begun whose actor is lost: once more than the first time."""


_SHORT = 24
"""Characters of a folder in which Ray's paths of sockets find room."""

_PATIENCE = 5.0
"""Seconds in which an address must answer."""


class RayEngine:
    """Runs jobs in actors of a Ray cluster.

    Args:
        limits: what one job may take; ``folder`` is a path that every node has.
        address: of the cluster; ``None`` begins one on this machine.
        workers: how many actors there are; by default one for each core of the cluster.

    Raises:
        MissingDependencyError: ray is not installed.
        ProcessError: the cluster does not answer.

    """

    def __init__(self, limits: Limits, *, address: str | None = None, workers: int | None = None) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise MissingDependencyError(
                f"the engine ray needs ray ({error})",
                remedy="pip install 'apr-falsify[sweep]', or --engine local",
            ) from error
        self._ray, self._limits = ray, limits
        if address is None:  # a cluster of our own stands back behind nothing of ours
            os.environ.setdefault("RAY_worker_niceness", "0")
        if address is not None:
            _answers(address)
        self._running = ExitStack()
        place = self._running.enter_context(_short_folder()) if address is None else None
        try:
            ray.init(
                address=address or "local",
                include_dashboard=False,
                _temp_dir=place,
                log_to_driver=False,
                logging_level=logging.ERROR,
                num_cpus=workers if address is None else None,
            )
        except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
            raise ProcessError(
                f"no Ray cluster answers: {str(error).splitlines()[0]}",
                where=address or "ray",
                remedy="ray start --head, then --address HOST:6379",
            ) from error
        self._running.callback(ray.shutdown)
        self._asked = workers

    def run(self, jobs: Sequence[Job], room: Room, done: Done) -> None:
        """Run ``jobs``; each is given to ``done`` as soon as its result is here."""
        if not jobs:
            return
        needs = self._needs(jobs)
        idle = [self._actor(needs) for _ in range(min(self._fitting(needs), len(jobs)))]
        waiting = [(job, 1) for job in reversed(jobs)]
        running: dict[Any, tuple[Job, Any, int]] = {}
        with self._in_our_words():
            while waiting or running:
                while waiting and idle:
                    job, turn = waiting.pop()
                    actor = idle.pop()
                    running[actor.run.remote(job.to_json())] = (job, actor, turn)
                (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
                job, actor, turn = running.pop(ready)
                result = self._result(ready, turn)
                if result is None:
                    waiting.append((job, turn + 1))
                    idle.append(self._actor(needs))
                    continue
                idle.append(self._actor(needs) if result.ended is JobEnd.DIED else actor)
                with room(job) as place:
                    done(job, result, place)

    def _result(self, ready: Any, turn: int) -> JobResult | None:
        """Return what an actor answered; ``None`` where it was lost and the job is to be begun once more."""
        try:
            return JobResult.from_json(self._ray.get(ready))
        except self._ray.exceptions.ActorDiedError as error:
            if turn < _TRIES:
                return None
            message = f"its actor was lost {turn} times: {str(error).splitlines()[0]}"
        except self._ray.exceptions.RayTaskError as error:  # the actor could not begin a worker, say
            message = str(error.cause)
        return JobResult(
            ended=JobEnd.DIED,
            exit_code=int(ExitCode.INTERNAL),
            seconds=0.0,
            message=portable_text(message),
        )

    def _needs(self, jobs: Sequence[Job]) -> Mapping[str, float]:
        """Return what an actor asks the cluster for: a core, memory, and a GPU where a lane is on one."""
        on_gpu = any(
            pair == ("--device", "cuda") for job in jobs for pair in itertools.pairwise(job.arguments)
        )
        reserve = max([self._limits.memory, *(job.reserve for job in jobs)])
        return {"CPU": 1, "memory": reserve, **({"GPU": 1} if on_gpu else {})}

    def _fitting(self, needs: Mapping[str, float]) -> int:
        """Return how many actors the cluster holds at a time; one more would wait for ever.

        Raises:
            ProcessError: not one.

        """
        there = self._ray.cluster_resources()
        count = min(int(there.get(name, 0) // size) for name, size in needs.items() if size)
        if not count:
            raise ProcessError(
                "the Ray cluster holds no worker of this sweep",
                expected=", ".join(f"{name} {size:g}" for name, size in needs.items()),
                remedy="lower [limits] memory, or add a node",
            )
        return min(count, self._asked or count)

    def _actor(self, needs: Mapping[str, float]) -> Any:
        kind = self._ray.remote(num_cpus=1, num_gpus=needs.get("GPU", 0), memory=int(needs["memory"]))(_Held)
        limits = self._limits
        return kind.remote(str(limits.folder), limits.seconds, limits.memory)

    @contextmanager
    def _in_our_words(self) -> Any:
        """Say in our words that the cluster has gone away."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ProcessError(
                f"the Ray cluster went away: {(str(error).splitlines() or [type(error).__name__])[0]}",
                remedy="start it, and the sweep, once more: what has ended is kept",
            ) from error

    def end(self) -> None:
        """Leave the cluster; actors end with it, and their workers with them."""
        self._running.close()


@contextmanager
def _short_folder() -> Iterator[str]:
    """Give a folder for a cluster's sockets, whose paths a system bounds at 107 bytes (unix(7))."""
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=usual if len(usual) < _SHORT else "/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _answers(address: str) -> None:
    """Refuse an address at once behind which nobody listens; Ray would wait for a minute, and then end us.

    Raises:
        ProcessError: nobody does.

    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", or a name that only Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ProcessError(
            f"no Ray cluster answers: {error}",
            where=address,
            remedy="ray start --head, then --address HOST:6379",
        ) from error


class _Held:
    """An actor: it holds one worker process."""

    def __init__(self, folder: str, seconds: float, memory: int) -> None:
        self._limits = Limits(folder=Path(folder), seconds=seconds, memory=memory)
        self._place = tempfile.TemporaryDirectory(prefix="apr-falsify-sweep-")
        self._worker: SweepWorker | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job; return its result as plain values."""
        limits, wanted = self._limits, Job.from_json(job)
        if self._worker is None or not self._worker.alive:
            log = Path(self._place.name) / "worker.log"
            self._worker = SweepWorker(limits.folder, log, seconds=limits.seconds, memory=limits.memory)
        return self._worker.run(wanted).to_json(wanted)
