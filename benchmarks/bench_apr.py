"""Bisecting the real apr costs <= 4 s beyond `apr trace` alone (tiny model), <= 10 s (SmolLM2), all layers.

Wall time of `apr-falsify bisect --subject apr:MODEL` less that of the `apr trace` that it runs, each the
median of alternating runs in this one session; the model is imported before (`apr import` is timed beside it,
once). The oracle is HuggingFace on the same model. Beside it: the CPU time of the bisection, which a busy
machine changes less, and how long the import of torch and transformers takes by itself.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import smollm2

from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES

PROGRAM = Path(sys.executable).parent / "apr-falsify"
TINY = Path(__file__).parents[1] / "src" / "apr_falsify" / "data" / "tiny-qwen2"
ROUNDS = 5
MIXTURE = ("moe_router", "moe_ffn_out")


LIBRARIES = [sys.executable, "-c", "import apr_falsify.oracle.libraries"]


def timed(command: Sequence[object], good: tuple[int, ...] = (0,)) -> float:
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode not in good:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def cpu_time() -> float:
    """Return the seconds that ended children have computed, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trace_command(apr: str, model: Path, layers: int, place: Path) -> list[object]:
    stages = ",".join(name for name in STAGES if name not in MIXTURE)
    save = ("--save-tensor", stages, "--save-tensor-dir", place, "--save-tensor-layers", f"0..{layers}")
    return [apr, "trace", "--payload", model, *save]


def measure(title: str, apr: str, model: Path, limit: float, folder: Path) -> bool:
    layers = open_model(model).geometry.layers
    imported = folder / f"{title}.apr"
    took = timed([apr, "import", model, "-o", imported, "--offline"])
    bisect = [PROGRAM, "bisect", "--oracle", model, "--subject", f"apr:{model}", "--layers", f"0..{layers}"]
    timed(bisect, good=(0, 1))  # imports into the cache, and warms it
    alone, whole, busy, libraries = [], [], [], []
    for turn in range(ROUNDS):
        alone.append(timed(trace_command(apr, imported, layers, folder / f"{title}-{turn}")))
        before = cpu_time()
        whole.append(timed(bisect, good=(0, 1)))
        busy.append(cpu_time() - before)
        libraries.append(timed(LIBRARIES))
    extra = statistics.median(whole) - statistics.median(alone)
    print(
        f"{title:8} {layers} layers: bisect {statistics.median(whole):.2f} s "
        f"({min(whole):.2f} to {max(whole):.2f}), apr trace alone {statistics.median(alone):.2f} s; "
        f"difference {extra:.2f} s, best {min(whole) - min(alone):.2f} s, target <= {limit:g} s; "
        f"CPU {statistics.median(busy):.2f} s; "
        f"torch and transformers alone {statistics.median(libraries):.2f} s; "
        f"apr import {took:.1f} s, once; load {os.getloadavg()[0]:.1f}"
    )
    return extra <= limit


def main() -> int:
    apr = shutil.which("apr")
    if apr is None:
        sys.exit("no apr binary on PATH: cargo install apr-cli")
    with tempfile.TemporaryDirectory() as name:
        os.environ["APR_FALSIFY_CACHE"] = f"{name}/cache"
        met = [measure("tiny", apr, TINY, 4.0, Path(name))]
        del os.environ["APR_FALSIFY_CACHE"]
        model = smollm2()
        os.environ["APR_FALSIFY_CACHE"] = f"{name}/cache"
        met.append(measure("smollm2", apr, model, 10.0, Path(name)))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
