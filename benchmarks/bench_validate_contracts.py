"""Claim: 1,000 contracts of 14 KB citing 100 Python and 300 Rust files are validated in seconds on 2 cores.

Cold <= 1.5 s, warm <= 0.25 s, after one changed file <= 0.15 s, peak <= 150 MB; `--help` <= 100 ms.
`pv lint` and `check-jsonschema` run on the same files in the same run, where they are on PATH.

Where 1,000 contracts cite cargo tests of a crate of 2,000 files, against `pv lint` in the same run: cold <= 8
times as long, warm <= 1; 5,000 contracts <= 6 times as long as 1,000; 10,000 files and 60 MB: cold <= 15 s,
warm <= 0.5 s; never more than 400 MB.

Run: python benchmarks/bench_validate_contracts.py [--contracts N] [--cargo-only] [--rounds N] [--json FILE]
The contract that is varied is a real one where APR_FALSIFY_REAL points to a folder of them, else our own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cargo_trees import write_contracts, write_crate

REPOSITORY = Path(__file__).resolve().parent.parent
GOALS = {"cold": 1.5, "warm": 0.25, "one changed": 0.15, "one file named": 0.15, "--help": 0.1}
PYTHON_FILES, RUST_FILES, FUNCTIONS = 100, 300, 12


def template() -> str:
    real = os.environ.get("APR_FALSIFY_REAL")
    name = "contracts/trace-attn-sub-stages-v1.yaml"
    source = Path(real) / name if real else REPOSITORY / name
    return source.read_text(encoding="utf-8")


def write_sources(root: Path) -> None:
    for number in range(PYTHON_FILES):
        body = "\n".join(
            f"def compute_{number}_{at}(value):\n    '''Doubles.'''\n    return value * 2\n"
            for at in range(FUNCTIONS)
        )
        write(root / f"src/package_{number % 10}/module_{number}.py", body * 3)
    for number in range(RUST_FILES):
        body = "\n".join(
            f"/// Doubles.\npub fn stage_{number}_{at}(value: f32) -> f32 {{\n"
            "    let twice = value * 2.0;\n    twice\n}\n"
            for at in range(FUNCTIONS)
        )
        tests = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn works() { assert!(true); }\n}\n"
        write(root / f"crates/engine/src/stage_{number}.rs", body * 3 + tests)
    write(root / "Cargo.toml", "[workspace]\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def vary(text: str, number: int) -> str:
    """The same contract about other code: its own ids, and names of the generated files."""
    rust, python = number % RUST_FILES, number % PYTHON_FILES
    text = text.replace("C-TRACE-ATTN-SUB-STAGES", f"C-VARIED-{number}")
    text = re.sub(r"FALSIFY-ATTN-SUB-(\d+)", rf"FALSIFY-V{number}-\1", text)
    text = re.sub(r"(file_paths:\n)(?:\s+- .*\n)+", rf"\1      - crates/engine/src/stage_{rust}.rs\n"
                  rf"      - src/package_{python % 10}/module_{python}.py\n", text)  # fmt: skip
    text = re.sub(r"(function_names:\n)(?:\s+- .*\n)+", rf"\1      - stage_{rust}_3 (varied)\n"
                  rf"      - compute_{python}_5\n", text)  # fmt: skip
    text = re.sub(r"applies_to: .*", f"applies_to: crates/engine/src/stage_{rust}.rs::stage_{rust}_1", text)
    text = re.sub(r"(?m)^    cargo test .*$", "    apr trace model.apr", text)
    text = re.sub(r"(?ms)^  references:.*?(?=^equations)", "", text)
    return text.replace("8 capture points", "9 capture points")


def build(root: Path, count: int) -> None:
    write_sources(root)
    text = template()
    for number in range(count):
        write(root / f"contracts/varied-{number:04}-v1.yaml", vary(text, number))


def measure(command: list[str], root: Path, cache: Path) -> dict[str, float]:
    """Wall time of a command, the processor's seconds and the peak memory of it and its children together."""
    # an installed package has its byte code, and users write theirs: so does what is measured
    bytecode = {"PYTHONPYCACHEPREFIX": str(root.parent / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)} | bytecode
    start, before = time.perf_counter(), processor()
    process = psutil.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process))
        # looking costs a part of a core, which what is measured needs: seldom where it runs for long
        time.sleep(min(0.2, max(0.005, (time.perf_counter() - start) / 20)))
    return {
        "seconds": time.perf_counter() - start,
        "processor": processor() - before,
        "peak_mb": peak / 2**20,
        "exit": process.returncode,
    }


def processor() -> float:
    """Seconds of the processor that all ended children, and theirs, have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory(process: psutil.Popen) -> int:
    total = 0
    for one in (process, *children(process)):
        try:
            total += one.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def median(
    command: list[str], root: Path, cache: Path, before: object = None, times: int = 5
) -> dict[str, float]:
    runs = []
    for _ in range(times):
        if callable(before):
            before()
        runs.append(measure(command, root, cache))
    return {
        "seconds": statistics.median(one["seconds"] for one in runs),
        "processor": statistics.median(one["processor"] for one in runs),
        "peak_mb": max(one["peak_mb"] for one in runs),
        "exit": max(one["exit"] for one in runs),
    }


CARGO_GOALS = {
    "cold / pv lint": 8.0,
    "warm / pv lint": 1.0,
    "5,000 / 1,000 contracts": 6.0,
    "60 MB cold, s": 15.0,
    "60 MB warm, s": 0.5,
    "most memory, MB": 400.0,
}


def cargo(folder: Path, program: str, rounds: int) -> dict[str, float]:
    """Ratios where contracts cite cargo tests, each side measured in this run."""
    many, more, large, cache = (folder / name for name in ("many", "more", "large", "cargo-cache"))
    text = template()
    for root, contracts, files, size in (
        (many, 1000, 2000, 1500),
        (more, 5000, 2000, 1500),
        (large, 20, 10_000, 6000),
    ):
        write_crate(root, files, size)
        write_contracts(root, text, contracts, files)

    def forget() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    runs: dict[str, dict[str, float]] = {}
    for name, root in (("1,000", many), ("5,000", more), ("60 MB", large)):
        runs[f"{name} cold"] = median([program], root, cache, forget, times=rounds)
        runs[f"{name} warm"] = median([program], root, cache, times=rounds)
        forget()
        if root is many and (pv := others(root).get("pv lint")):
            runs["pv lint"] = median(pv, root, cache, times=rounds)
    show(runs)
    for row in ("seconds", "processor"):
        print(f"5,000 / 1,000 contracts by {row}: {runs['5,000 cold'][row] / runs['1,000 cold'][row]:.2f}")
        if "pv lint" in runs:
            ratios = (
                f"{name} {runs[f'1,000 {name}'][row] / runs['pv lint'][row]:.2f}" for name in ("cold", "warm")
            )
            print(f"against pv lint by {row}: {', '.join(ratios)}")
    found = {
        "5,000 / 1,000 contracts": runs["5,000 cold"]["seconds"] / runs["1,000 cold"]["seconds"],
        "60 MB cold, s": runs["60 MB cold"]["seconds"],
        "60 MB warm, s": runs["60 MB warm"]["seconds"],
        "most memory, MB": max(one["peak_mb"] for one in runs.values()),
    }
    if "pv lint" in runs:
        for name in ("cold", "warm"):
            found[f"{name} / pv lint"] = runs[f"1,000 {name}"]["seconds"] / runs["pv lint"]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contracts", type=int, default=1000)
    parser.add_argument("--cargo-only", action="store_true")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of each with cargo tests; medians are shown"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    program = shutil.which("validate-contracts", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "install the package first"
    with tempfile.TemporaryDirectory() as folder:
        ratios = cargo(Path(folder), program, arguments.rounds)
        for name, value in ratios.items():
            print(f"{name:24} {value:8.2f}  goal {CARGO_GOALS[name]:g}")
        if arguments.cargo_only:
            return
        root, cache = Path(folder) / "tree", Path(folder) / "cache"
        build(root, arguments.contracts)
        changed = root / "contracts/varied-0007-v1.yaml"

        def touch() -> None:
            changed.write_text(changed.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")

        def forget() -> None:
            shutil.rmtree(cache, ignore_errors=True)

        results = {
            "cold": median([program], root, cache, forget),
            "warm": median([program], root, cache),
            "one changed": median([program], root, cache, touch),
            "one file named": median([program, str(changed)], root, cache, touch),
            "--help": median([program, "--help"], root, cache),
        }
        for name, command in others(root).items():
            results[name] = median(command, root, cache, times=1)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def others(root: Path) -> dict[str, list[str]]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = {}
    if pv := shutil.which("pv", path=path):
        found["pv lint"] = [pv, "lint", "--no-cache", str(root / "contracts")]
    if check := shutil.which("check-jsonschema", path=path):
        schema = REPOSITORY / "src/apr_falsify/contracts/schema.json"
        files = [str(one) for one in sorted((root / "contracts").iterdir())]
        found["check-jsonschema"] = [check, "--schemafile", str(schema), *files]
    return found


def show(results: dict[str, dict[str, float]]) -> None:
    for name, row in results.items():
        goal = f"goal {GOALS[name]} s" if name in GOALS else ""
        took = f"{row['seconds']:7.3f} s  processor {row['processor']:7.3f} s"
        print(f"{name:18} {took}  {row['peak_mb']:6.0f} MB  exit {row['exit']:.0f}  {goal}")


if __name__ == "__main__":
    main()
