"""What keeping the garbage collector off torch and transformers saves a short run: >= 20 % of CPU time.

Medians of alternating starts in this one session. Each imports what `oracle/libraries.py` imports and ends:
with the collector as Python has it; and as the program does it, off while they are imported and with nothing
left to look through at the end. CPU time, which a busy machine changes less than wall time.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

ROUNDS = 7
AT_MOST = 0.8
AS_IT_IS = "import apr_falsify.numerics.arithmetic, torch, transformers, transformers.modeling_utils"
KEPT_OFF = "import gc, apr_falsify.oracle.libraries; gc.freeze()"


def cpu_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    cpu_seconds(AS_IT_IS)  # once, for the files to be in memory
    rounds = [(cpu_seconds(AS_IT_IS), cpu_seconds(KEPT_OFF)) for _ in range(ROUNDS)]
    plain, kept_off = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = kept_off / plain
    print(
        f"collector as it is {plain:.2f} s, kept off {kept_off:.2f} s of CPU: "
        f"ratio {ratio:.2f}, target <= {AT_MOST}"
    )
    return 0 if ratio <= AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main())
