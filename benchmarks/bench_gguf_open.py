"""Claim: opening SmolLM2's GGUF and dequantising all of one layer takes <= 1 s, without counting imports.

Printed: opening alone, layer 0 (nine tensors, Q4_1 and f32), and layer 0 with the embedding table.
transformers itself dequantises the whole file, in 36 to 48 s here; ``--plain`` measures that too.

    python benchmarks/bench_gguf_open.py [--rounds 5] [--plain]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import gguf  # noqa: F401  # its import is not what is measured
from common import smollm2

from apr_falsify.formats.weights import Model, open_model
from apr_falsify.oracle.loading import weight_sites

TARGET = 1.0


def decode(model: Model, sites: Sequence[tuple[str, int | None]]) -> int:
    """Decode the tensors at ``sites`` and return how many values they have."""
    tensors = [model.weights.tensor(role, layer) for role, layer in sites]
    return sum(tensor.rows(0, tensor.shape[0]).size for tensor in tensors)


def median(run: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="measure transformers' own reading too")
    options = parser.parse_args()
    path = smollm2()
    sites = weight_sites(open_model(path).geometry, layers=1, head=False)
    layer = [site for site in sites if site[1] == 0]

    opening = median(lambda: open_model(path), options.rounds)
    one_layer = median(lambda: decode(open_model(path), layer), options.rounds)
    with_tables = median(lambda: decode(open_model(path), sites), options.rounds)
    print(f"open                        {opening:.3f} s")
    print(f"open and decode layer 0     {one_layer:.3f} s  (target <= {TARGET} s)")
    print(f"the same with the embedding {with_tables:.3f} s")
    if options.plain:
        from transformers import AutoModelForCausalLM

        plain = median(
            lambda: AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name), rounds=1
        )
        print(f"transformers' own reading   {plain:.1f} s = {plain / one_layer:.0f} x")


if __name__ == "__main__":
    main()
