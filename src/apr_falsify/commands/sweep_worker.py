"""A worker process of a sweep: it reads jobs from stdin, one a line, and answers with what came of them.

    python -m apr_falsify.commands.sweep_worker

A job is ``{"arguments": [...], "out": DIR or null}``: the arguments of ``apr-falsify bisect``. The first line
says that it is ready.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from apr_falsify.commands.main import cli, guarded
from apr_falsify.compare.bisection import SCHEMA
from apr_falsify.errors import ExitCode
from apr_falsify.portable import portable_text
from apr_falsify.sweeps.runs import JobEnd
from apr_falsify.sweeps.worker import kill_all


def outcome(arguments: list[str], out: str | None) -> dict[str, Any]:
    """Run one bisection in this process; return how it ended, as plain values."""
    printed, errors = io.StringIO(), io.StringIO()
    kept = [] if out is None else ["--out", out]
    with redirect_stdout(printed), redirect_stderr(errors):
        code = guarded(cli, ["bisect", *arguments, *kept, "--format", "json"], "apr-falsify")
    bisection = _object(printed.getvalue())
    ended = JobEnd.JUDGED if bisection is not None else _ended(code)
    message = "" if bisection is not None else portable_text(errors.getvalue().strip())
    gc.collect()  # a model of the last job is not held through the next
    code = int(code if ended.exit_code is None else ended.exit_code)
    return {"ended": ended.value, "exit_code": code, "message": message, "bisection": bisection}


def _object(printed: str) -> Mapping[str, Any] | None:
    """Return the bisection that was printed; ``None`` where there is none."""
    try:
        found = json.loads(printed)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _ended(code: int) -> JobEnd:
    known = {ExitCode.USAGE: JobEnd.REFUSED, ExitCode.INCONCLUSIVE: JobEnd.UNDECIDED}
    return known.get(ExitCode(code), JobEnd.INTERNAL) if code in list(ExitCode) else JobEnd.INTERNAL


def main() -> None:
    """Answer job after job until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep is interrupted, and it ends its workers itself
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(outcome(request["arguments"], request["out"])), file=answers)


def _end_with(parent: int) -> None:
    """End this process, and what it started, soon after its parent: nobody waits for the answer then."""
    while os.getppid() == parent:
        time.sleep(0.5)
    kill_all(os.getpid())


if __name__ == "__main__":
    main()
