"""A program of its own: forks a run after the imports, kills it at a random moment, tells what it left.

It is one thread, for which it needs ``TOKENIZERS_PARALLELISM=false`` and one thread in OpenMP and OpenBLAS.

``killing.py sessions`` runs pytest in the working directory, ``killing.py runs`` bisects into its folder
``run``. Both print one JSON object; whether it is as it should be is for the tests to say that start it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENTS = 100 if os.environ.get("APR_FALSIFY_EVERY") else 30
IMPORTED = (
    "_pytest.stepwise",
    "_pytest.unittest",
    "apr_falsify.commands.bisect",
    "apr_falsify.evidence.binding",
    "apr_falsify.evidence.earn",
    "apr_falsify.evidence.traces",
    "apr_falsify.evidence.verify",
    "apr_falsify.pytest_plugin.drafting",
    "apr_falsify.pytest_plugin.finish",
    "apr_falsify.pytest_plugin.session",
    "apr_falsify.pytest_plugin.verdict",
    "apr_falsify.symbols.python",
    "packaging.tags",
    "xdist.plugin",
)
"""What a session or a bisection imports late; the first run in :func:`main` imports the rest."""

PYTEST = ("-q", "-p", "no:unraisableexception", "-p", "no:hypothesispytest", "-p", "no:anyio")
LOG = Path("said.log")
RUN = Path("run")
SIDES = ("oracle", "subject")

Seen = dict[str, Any]


def session() -> int:
    import pytest

    return int(pytest.main([*PYTEST, "--evidence-dir=evidence"]))


def bisection() -> int:
    return bisected(RUN)


def bisected(run: Path) -> int:
    from apr_falsify.commands.main import cli, guarded

    with LOG.open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return guarded(cli, ["bisect", "--out", str(run)], "apr-falsify")


def forked(work: Callable[[], int]) -> int:
    """Begin ``work`` in a process and a process group of its own; what it prints goes into the log."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work()
            sys.stdout.flush()
        finally:
            os._exit(code)
    return child


def whole(work: Callable[[], int]) -> tuple[int, float]:
    """Return the exit code of ``work`` and the seconds that it took."""
    start = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])
    return code, time.monotonic() - start


def killed(work: Callable[[], int], seconds: float) -> bool:
    """Kill ``work``, and what it started, after so long; return whether it had not ended by then."""
    child = forked(work)
    time.sleep(seconds)
    for kill in (os.killpg, os.kill):  # one that has hardly begun leads no group yet
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def moments(
    work: Callable[[], int], look: Callable[[], Seen], enough: Callable[[list[Seen]], bool]
) -> list[Seen]:
    """Kill ``work`` at random moments and return what each left.

    At least ``MOMENTS``, and up to six times as many until there are ``enough`` kinds of what was killed in
    time; ever later ones, where the machine has become slower.
    """
    longest = min(whole(work)[1] for _ in range(3))
    chance = random.Random(11)
    seen: list[Seen] = []
    while len(seen) < MOMENTS or (
        len(seen) < 6 * MOMENTS and not enough([one for one in seen if one["killed"]])
    ):
        if len(seen) % MOMENTS == MOMENTS - 1:
            longest *= 1.2
        in_time = killed(work, chance.uniform(0, 1.2 * longest))
        seen.append({"killed": in_time, **look()})
    return seen


def kinds(seen: list[Seen]) -> set[int]:
    return {one["kind"] for one in seen}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(folder: Path, pattern: str = "*") -> dict[str, str]:
    return {str(one.relative_to(folder)): sha256(one) for one in folder.rglob(pattern) if one.is_file()}


def strays(folder: Path, *ours: str) -> list[str]:
    """What lies in ``folder`` and is not of ``ours``; nor is the empty folder that torch makes."""
    names = set(os.listdir(folder)) - set(ours) if folder.exists() else ()
    return sorted(name for name in names if not name.startswith("torchinductor_"))


# sessions


def bundle_at(path: Path, verified: dict[str, Seen]) -> Seen | None:
    """What there is to say of a bundle; ``None`` where there is none.

    One whose files are all as in ``verified`` is not verified again.
    """
    if not path.exists():
        return None
    files = files_of(path)
    known = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    if known not in verified:
        verified[known] = said_of(path, files)
    return verified[known]


def said_of(path: Path, files: dict[str, str]) -> Seen:
    from apr_falsify.evidence.bundle import read_bundle
    from apr_falsify.evidence.verify import verify

    found = verify(path)
    facts = read_bundle(path).facts if found.holds else None
    return {
        "problems": [str(one) for one in found.problems],
        "digest": found.statement_sha256,
        "files": sorted(files),
        "result": facts and str(facts.outcome.result),
        "tests": facts and sorted(one.name for one in facts.tests),
    }


def sessions() -> Seen:
    evidence, temporary = Path("evidence"), Path(tempfile.gettempdir())

    def look() -> Seen:
        names = sorted(one.name for one in evidence.iterdir() if not one.name.startswith("."))
        bundles = {name: bundle_at(evidence / name, verified) for name in names}
        new = [name for name in names if (bundles[name] or {}).get("digest") != before.get(name)]
        before.update({name: one["digest"] for name, one in bundles.items() if one})
        return {
            "kind": len(new),
            "new": new,
            "bundles": bundles,
            "contracts": files_of(Path("contracts")),
            "evidence": strays(evidence, *names),
            "temporary": strays(temporary),
        }

    before: dict[str, str] = {}
    verified: dict[str, Seen] = {}
    first = {"code": whole(session)[0], **look()}
    seen = moments(session, look, lambda seen: kinds(seen) >= {0, 1} and any(one["evidence"] for one in seen))
    return {"first": first, "seen": seen, "last": {"code": whole(session)[0], **look()}}


# runs


def side_at(path: Path) -> Seen | None:
    """What there is to say of one side's folder: whether it is taken for a trace, and its files."""
    from apr_falsify.errors import AprFalsifyError
    from apr_falsify.traces.trace import read_trace

    if not path.exists():
        return None
    try:
        stages = len(read_trace(path).stages)
    except AprFalsifyError as error:
        return {"refused": str(error)}
    return {"stages": stages, "files": files_of(path, "*.bin"), "record": sha256(path / "trace.json")}


def result_at(path: Path) -> Seen | None:
    found: Seen | None = json.loads(path.read_text()) if path.exists() else None
    return found


def runs() -> Seen:
    def look() -> Seen:
        sides = {name: side_at(RUN / name) for name in SIDES}
        partial = [name for name in strays(RUN) if name.startswith(".") and (RUN / name).is_dir()]
        results = [name for name in ("report.html", "bisection.json") if (RUN / name).exists()]
        return {
            "kind": sum(one is not None for one in sides.values()) + len(results),
            "sides": sides,
            "partial": {name: side_at(RUN / name) for name in partial},
            "results": results,
            "result": result_at(RUN / "bisection.json"),
            "strays": strays(RUN, *SIDES, "report.html", "bisection.json"),
            "temporary": strays(Path(tempfile.gettempdir())),
        }

    def look_and_go_on() -> Seen:
        """The next run goes on where this one was killed, until there is nothing left to do."""
        seen = look()
        if seen["result"] is not None:
            shutil.rmtree(RUN)
        return seen

    first = {"code": whole(bisection)[0], **look()}
    shutil.rmtree(RUN)
    seen = moments(bisection, look_and_go_on, lambda seen: kinds(seen) >= {0, 1, 2})
    return {"first": first, "seen": seen, "last": {"code": whole(bisection)[0], **look()}}


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # imports what is left, fills what is made once a process
        assert bisected(Path(folder) / "run") == 0, LOG.read_text()
    assert len(os.listdir("/proc/self/task")) == 1  # else a fork may inherit a lock that nobody lets go of
    gc.freeze()
    print(json.dumps({"sessions": sessions, "runs": runs}[sys.argv[1]]()))


if __name__ == "__main__":
    main()
