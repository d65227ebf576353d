"""Claim: judging and capturing a layer of 7B width, comparing two large stages, and bisecting the package's
own model take no more time and memory than at an older commit, within 5 %.

The same benchmarks run from both trees in alternation, each run in a process of its own, so that a busy
machine slows both. Printed are medians and the ratio of the working tree to the commit: of seconds, of the
processor's seconds in the whole process (imports included; on a busy machine the steadier of the two), and
of memory.

    python benchmarks/bench_against.py COMMIT [--rounds 5] [--only WORDS] [--tokens 512] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SLACK = 1.05
MIB = 1 << 20
NEEDED = ("src", "benchmarks", "tests/__init__.py", "tests/real_model.py")

_CAPTURED = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import bench_replay
layer, trace = map(Path, sys.argv[1:])
bench_replay.capture(layer, bench_replay.TOKENS, 1, bench_replay.KNOWN, trace)
"""
_COMPARED = """
import json, sys, tracemalloc
sys.path.insert(0, "benchmarks")
import bench_compare
shape, axes = bench_compare.shapes(200)[sys.argv[1]]
oracle, subject = bench_compare.arrays(shape)
bench_compare.compare_arrays(oracle, subject, axes)
compared = lambda: bench_compare.compare_arrays(oracle, subject, axes)
took = min(bench_compare.seconds(compared) for _ in range(3))
print(json.dumps({"seconds": took, "above": bench_compare.peak_extra(compared)[0] * 1e6}))
"""
_BISECTED = """
import contextlib, io, json, resource, sys, time
model = sys.argv[1]
sys.argv = ["apr-falsify", "bisect", "--oracle", model, "--subject", f"embedded:{model}", "--format", "json"]
start = time.perf_counter()
from apr_falsify.commands.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - start, "above": peak}))
"""


def main() -> None:
    """Measure both trees and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commit", help="what to compare the working tree with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the cases whose name has this in it; default: all")
    parser.add_argument(
        "--tokens", type=int, default=512, help="of SmolLM2, one round of all layers; 0: none"
    )
    parser.add_argument("--folder", help="where checkpoints are made and removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trees = {options.commit: _unpacked(options.commit, Path(folder) / "then"), "here": REPOSITORY}
        cases = {case: run for case, run in _cases(trees, Path(folder)).items() if options.only in case}
        found: dict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
        for turn in range(options.rounds):
            for case, command in cases.items():
                for name in sorted(trees, reverse=turn % 2 == 1):  # neither tree is always the first
                    found[case, name].append(_run(trees[name], command(name)))
                    print(f"{case}, {name}: {dict(found[case, name][-1])}", file=sys.stderr, flush=True)
        if options.tokens:
            case = f"judge 30 layers of SmolLM2, {options.tokens} tokens"
            for name, tree in trees.items():
                found[case, name].append(
                    _run(tree, ["benchmarks/bench_replay.py", "long", str(options.tokens)])
                )
    _report(found, options.commit)


def _unpacked(commit: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, *NEEDED], cwd=REPOSITORY, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _cases(trees: Mapping[str, Path], folder: Path) -> Mapping[str, Callable[[str], list[str]]]:
    """Return the command of each case for a tree, by its name; models and traces are made here, once.

    A trace is captured by the tree that judges it, whose form of ``trace.json`` it has.
    """
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_7b_layer
    import bench_replay

    layer, checkpoint = folder / "layer.gguf", bench_7b_layer.write_checkpoint(folder / "layer-0", 1)
    bench_replay.write_layer(layer)
    replay = "benchmarks/bench_replay.py"
    for name, tree in trees.items():
        subprocess.run(
            [sys.executable, "-c", _CAPTURED, str(layer), str(folder / f"of-{name}")],
            cwd=tree,
            env=_environment(tree),
            check=True,
        )
    model = REPOSITORY / "src" / "apr_falsify" / "data" / "tiny-qwen2"
    cases: dict[str, Callable[[str], list[str]]] = {
        "judge a 7B layer, one arithmetic": lambda name: [
            replay,
            "known",
            str(layer),
            str(folder / f"of-{name}"),
        ],
        "judge it, every arithmetic": lambda name: [
            replay,
            "unknown",
            str(layer),
            str(folder / f"of-{name}"),
        ],
        "capture a 7B layer in f16": lambda _: [
            "benchmarks/bench_7b_layer.py",
            "--run",
            "ours",
            str(checkpoint),
        ],
        "bisect the model in the package": lambda _: ["-c", _BISECTED, str(model)],
    }
    for stage in ("ffn_swigl", "attention", "attn_scores"):
        cases[f"compare 200 MB of {stage}"] = partial(_comparison, stage)
    return cases


def _comparison(stage: str, _: str) -> list[str]:
    return ["-c", _COMPARED, stage]


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src")}


def _run(tree: Path, command: list[str]) -> dict[str, float]:
    """Run ``command`` in ``tree`` and return its figures, with the processor's seconds of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env=_environment(tree),
        check=True,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = json.loads(ran.stdout.splitlines()[-1])
    return {
        "s": figures["seconds"],
        "processor s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "MiB": next(figures[key] for key in ("above", "bytes", "peak") if key in figures) / MIB,
    }


def _report(found: Mapping[tuple[str, str], list[Mapping[str, float]]], commit: str) -> None:
    for case in dict.fromkeys(case for case, _ in found):
        print(case)
        for figure in found[case, commit][0]:
            then, now = (
                statistics.median(run[figure] for run in found[case, name]) for name in (commit, "here")
            )
            flag = "  more than the claim" if now > SLACK * then else ""
            print(f"    {figure:12} {then:10.2f} -> {now:10.2f}   x {now / then:.2f}{flag}", flush=True)


if __name__ == "__main__":
    main()
