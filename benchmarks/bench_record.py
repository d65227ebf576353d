"""Claim: recording all that a SmolLM2-shaped module computes (30 layers, random weights, f32) in memory costs
<= 1.06 times the same eager forward without it; written to a folder, that plus the bytes at this machine's
own speed of writing. Wiring its 500 or so arrays takes <= 10 s and <= 1 GiB above the arrays.

Plain and recording runs alternate, who goes first alternates too; the ratio is the median of the pairs'.
``bare hooks`` are hooks that do nothing. Times are the clock's, and the processor's of this process, which
other work on the machine changes less; both are ratios in one run.

Measured on two cores (64 tokens, 548 arrays of 110 MB): 1.23 times plain in memory, and 1.32 to a folder
without the writing, where bare hooks cost 1.03; so this claim does not hold yet. The wiring of 548 arrays
took 3.9 s and 930 MiB.

    python benchmarks/bench_record.py [--pairs 15] [--tokens 64]
    python benchmarks/bench_record.py --wiring
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import memory, peak_since

import apr_falsify
from apr_falsify.commands.starter_names import likeness
from apr_falsify.commands.wired import every_stage
from apr_falsify.formats.weights import open_model
from apr_falsify.matching.wire import wire
from apr_falsify.subjects.dumps import read_dump

library: Any = transformers
"""Untyped: its annotations cover a part of what it exports."""

TARGET = 1.06
SHAPE = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def module() -> Any:
    torch.manual_seed(0)
    config = library.LlamaConfig(**SHAPE, attn_implementation="sdpa")
    return library.LlamaForCausalLM(config).eval()


Taken = tuple[float, float]
CLOCKS: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)


def seconds(run: Callable[[], object]) -> Taken:
    """Return what a run takes, by the clock and of the processor."""
    began = [clock() for clock in CLOCKS]
    kept = run()
    spent = [clock() - start for clock, start in zip(CLOCKS, began, strict=True)]
    del kept
    return spent[0], spent[1]


def told(
    name: str, plain: Callable[[], object], other: Callable[[], object], count: int, spare: Taken
) -> None:
    """Print the medians of other / plain over alternating pairs; ``spare`` may come on top of it."""
    taken: list[tuple[Taken, Taken]] = []
    for number in range(count):
        first, second = (plain, other) if number % 2 else (other, plain)
        one, two = seconds(first), seconds(second)
        taken.append((one, two) if number % 2 else (two, one))
    for at, clock in enumerate(("clock", "processor")):
        base = statistics.median(a[at] for a, _ in taken)
        ratio = statistics.median((b[at] - spare[at]) / a[at] for a, b in taken)
        less = f" less {1e3 * spare[at]:.0f} ms of writing" if spare[at] else ""
        print(f"{name:11} {clock:9} {ratio:.3f} x plain ({1e3 * base:.0f} ms){less}", flush=True)


def overhead(options: argparse.Namespace, folder: Path) -> None:
    model, ids = module(), np.random.default_rng(0).integers(5, 49_000, options.tokens).tolist()
    tokens = torch.tensor([ids])

    def plain() -> object:
        with torch.no_grad():
            return model(tokens, use_cache=False)

    def bare() -> object:
        with ExitStack() as undo:
            for part in model.modules():
                undo.callback(part.register_forward_hook(lambda *given: None).remove)
            return plain()

    def in_memory() -> apr_falsify.Recorder:
        with apr_falsify.record(model=model, tokens=ids) as rec:
            plain()
        return rec

    fresh = (folder / str(number) for number in itertools.count())

    def to_disk() -> object:
        with apr_falsify.record(next(fresh), model=model, tokens=ids):
            plain()
        return None

    arrays = list(in_memory().arrays.values())

    def writing() -> object:
        with next(fresh).open("wb") as file:
            for array in arrays:
                file.write(array.data)
        return None

    plain()
    print(f"{len(arrays)} arrays, {sum(array.nbytes for array in arrays) / 1e6:.0f} MB; target <= {TARGET}")
    nothing = (0.0, 0.0)
    told("bare hooks", plain, bare, options.pairs, nothing)
    told("in memory", plain, in_memory, options.pairs, nothing)
    each = [seconds(writing) for _ in range(options.pairs)]
    alone = (statistics.median(a for a, _ in each), statistics.median(b for _, b in each))
    told("to disk", plain, to_disk, options.pairs, alone)


def wiring(folder: Path, count: int) -> None:
    model, ids = module(), np.random.default_rng(0).integers(5, 49_000, count).tolist()
    model.save_pretrained(folder / "model")
    with torch.no_grad(), apr_falsify.record(folder / "run", model=model, tokens=ids):
        model(torch.tensor([ids]), use_cache=False)
    del model
    opened = open_model(folder / "model")
    oracle = every_stage(opened, tuple(ids), dtype="f32", device="cpu")
    dump = read_dump(folder / "run")
    before = peak_since()
    clock, processor = time.perf_counter(), time.process_time()
    found = wire(folder / "run", dump, opened.weights, tuple(ids), oracle=oracle, likeness=likeness)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    size = sum(array.load().nbytes for array in dump.values())
    above = memory()["VmHWM"] - before - size
    wired = sum(len(stage.names) for stage in found.stages)
    print(f"{len(dump)} arrays, {size / 1e6:.0f} MB; {wired} stages wired, {len(found.open)} open")
    print(f"clock {clock:.1f} s, processor {processor:.1f} s (target <= 10 s)")
    print(f"{above / 2**20:.0f} MiB above the arrays (target <= 1024)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--wiring", action="store_true", help="only the wiring")
    options = parser.parse_args()
    library.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        if options.wiring:
            wiring(Path(place), 16)
            return
        overhead(options, Path(place))


if __name__ == "__main__":
    main()
