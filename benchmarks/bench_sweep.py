"""Claim: a sweep of 12 tiny families x 3 subjects x 4 prompts says the same here and on a Ray cluster, whose
worker is killed in the middle; two workers take <= 0.6 of the time of one; the engine itself costs <= 50 ms a
job (local) and <= 200 ms (Ray); a job takes <= 3 s with everything.

What the engine costs is the time of the sweep that no job accounts for, with one worker, over the jobs, less
what starting that worker takes, which is measured by a sweep of one job.

    python benchmarks/bench_sweep.py [--families 12] [--without-ray] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.checkpoints import RECIPES, make_checkpoint

PROGRAM = Path(sys.executable).parent / "apr-falsify"
TEXTS = {"two": [7, 3], "five": [1, 2, 4, 8, 16], "more": [2, 3, 5, 7, 11, 13], "same": [9] * 8}
SUBJECTS = {
    "f32": "embedded:{model}",
    "f16": {"spec": "embedded:{model}", "arithmetic": "f16"},
    "q8": {"spec": "embedded:{model}", "arithmetic": "f32; q8_0 blocks of 32"},
}
ENGINE = {"local": 0.05, "ray": 0.2}
PARALLEL, A_JOB = 0.6, 3.0


def write_sweep(folder: Path, families: int) -> Path:
    """Write one checkpoint of each of some families, and the sweep file."""
    chosen: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        if recipe.family not in chosen.values() and len(chosen) < families:
            chosen[name] = recipe.family
            make_checkpoint(folder / name, name)
    rows = [f'{name} = "{name}"' for name in chosen]
    subjects = [f"{name} = {_toml(spec)}" for name, spec in SUBJECTS.items()]
    prompts = [f"{name} = {ids}" for name, ids in TEXTS.items()]
    file = folder / "bench.toml"
    lines = ("[models]", *rows, "[subjects]", *subjects, "[prompts]", *prompts)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _toml(spec: str | Mapping[str, str]) -> str:
    if isinstance(spec, str):
        return json.dumps(spec)
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in spec.items()) + " }"


def swept(file: Path, out: str, *options: str, kill: bool = False) -> float:
    """Run the sweep and return its seconds; ``kill``: one of Ray's workers is killed on the way."""
    command = [str(PROGRAM), "sweep", "run", str(file), "--out", str(file.parent / out), *options]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = threading.Thread(target=process.stderr.read)
        said.start()
        for number, _ in enumerate(process.stdout):
            if kill and number == 10:
                os.kill(next(_held(process.pid)), signal.SIGKILL)
        said.join()
    if process.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - start


def _held(pid: int) -> Any:
    """Give the actors that hold workers."""
    for each in psutil.Process(pid).children(recursive=True):
        if "_Held" in each.name() or "_Held" in " ".join(each.cmdline()):
            yield each.pid


def reported(file: Path, out: str) -> dict[str, Any]:
    """Return the report, without what a run measures."""
    command = [str(PROGRAM), "sweep", "report", str(file.parent / out), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _said(report: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    return [(job["id"], job["word"], job["sources"]) for job in report["jobs"]]


def main() -> int:
    """Measure and print; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", type=int, default=12)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--folder", help="where checkpoints are made and removed")
    options = parser.parse_args()
    good: list[bool] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        file = write_sweep(Path(place), options.families)
        first = json.loads(
            subprocess.run(
                [str(PROGRAM), "sweep", "plan", str(file), "--format", "json"],
                capture_output=True, text=True, check=True,
            ).stdout
        )["jobs"][0]["id"]  # fmt: skip
        engines = {"local": ("--engine", "local"), "ray": ("--engine", "ray")}
        if options.without_ray:
            del engines["ray"]
        reports = {}
        for name, chosen in engines.items():
            start = swept(file, f"{name}-start", *chosen, "--workers", "1", "--job", first)
            alone = reported(file, f"{name}-start")["jobs"][0]["seconds"]
            one = swept(file, f"{name}-1", *chosen, "--workers", "1")
            two = swept(file, f"{name}-2", *chosen, "--workers", "2", kill=name == "ray")
            reports[f"{name}, 1 worker"] = reported(file, f"{name}-1")
            reports[f"{name}, 2 workers"] = reported(file, f"{name}-2")
            jobs = reports[f"{name}, 1 worker"]["jobs"]
            cost = max(0.0, one - sum(job["seconds"] for job in jobs) - (start - alone)) / len(jobs)
            print(
                f"{name}: {len(jobs)} jobs, {one / len(jobs):.2f} s a job with one worker (claim {A_JOB:g})"
            )
            print(f"    the engine itself: {1000 * cost:.0f} ms a job (claim {1000 * ENGINE[name]:.0f})")
            print(f"    two workers: {two / one:.2f} of the time of one (claim {PARALLEL})", flush=True)
            good += [one / len(jobs) <= A_JOB, cost <= ENGINE[name], two <= PARALLEL * one or name == "ray"]
        (told, *others) = reports.values()
        print(f"counts: {told['counts']}; the same in all {len(reports)} reports: ", end="")
        good.append(all(_said(other) == _said(told) for other in others))
        print("yes" if good[-1] else "NO")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
