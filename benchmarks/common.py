"""What several benchmarks share: the real model, this process's memory, runs in a process of their own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the fetch of the real model is shared with the tests

from tests.real_model import smollm2

__all__ = ["in_own_process", "memory", "options_of_rounds", "peak_since", "smollm2"]


def memory() -> dict[str, int]:
    """Return this process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at its highest, ``RssAnon`` now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM", "RssAnon")}


def peak_since() -> int:
    """Forget the highest memory so far and return what is used now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory()["VmRSS"]


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run ``script`` (a benchmark's own file) with ``arguments`` and return the JSON it prints last."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def options_of_rounds(description: str | None) -> argparse.Namespace:
    """Return the options of a benchmark that makes checkpoints and runs each way in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the checkpoints are made and removed")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "CHECKPOINT"), help="one run, as JSON")
    return parser.parse_args()
