"""`apr-falsify --help` answers in <= 100 ms: the median of 20 starts, of the group and of each verb.

Beside it, what the interpreter alone needs, and which of the heavy libraries a start imported (none).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from apr_falsify.commands.main import VERBS

PROGRAM = Path(sys.executable).parent / "apr-falsify"
STARTS = 20
LIMIT_MS = 100
HEAVY = ("torch", "transformers", "numpy", "matplotlib")


def median_ms(command: list[str]) -> float:
    times = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def imported(arguments: list[str]) -> set[str]:
    command = [sys.executable, "-X", "importtime", str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def main() -> int:
    bare = median_ms([sys.executable, "-c", "pass"])
    print(f"interpreter alone: {bare:.0f} ms (median of {STARTS})")
    worst = 0.0
    for arguments in (["--help"], *([verb, "--help"] for verb in VERBS)):
        took = median_ms([str(PROGRAM), *arguments])
        heavy = sorted(set(HEAVY) & imported(arguments))
        print(f"apr-falsify {' '.join(arguments):16} {took:4.0f} ms, heavy imports: {heavy or 'none'}")
        worst = max(worst, took)
    print(f"{'holds' if worst <= LIMIT_MS else 'FAILS'}: at most {worst:.0f} ms, claimed <= {LIMIT_MS} ms")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
