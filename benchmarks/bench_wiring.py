"""Claim: arrays without names are wired to their stages: none wrongly, and the faulty stage with them.

Makes recordings of every family of the tests' recipes (``tests/wired_bags.py``): cryptic names, odd orders,
parts split and fused, copies, some stages not saved, and one fault in two of three. Wires each, compares with
the truth, and prints the figures and what is not right.

Measured on 198 recordings: of 8,959 places one is wired wrongly (beside an embedding that is scaled, and
is not found), two stay open, and 115 of 130 faulty stages are found as themselves. The rest are left out,
and accuse nothing.

    python benchmarks/bench_wiring.py [COUNT [FIRST]]
"""

from __future__ import annotations

import functools
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers
from tests.checkpoints import RECIPES, make_checkpoint
from tests.wired_bags import TOKENS, Case, Score, bag_of, cases, save, score

from apr_falsify.commands.starter_names import likeness
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.matching.result import Wiring
from apr_falsify.matching.wire import wire
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    count, first = (int(each) for each in (sys.argv[1:] + ["200", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        @functools.lru_cache(maxsize=8)
        def model(recipe: str) -> Model:
            return open_model(make_checkpoint(folder / recipe, recipe))

        @functools.lru_cache(maxsize=8)
        def oracle(recipe: str) -> Trace:
            geometry = model(recipe).geometry
            request = Request(tokens=TOKENS, layers=range(geometry.layers), stages=tuple(STAGES))
            return capture(model(recipe), request, MemorySink())

        tally: Counter[str] = Counter()
        seconds = 0.0
        for case in itertools.islice(cases(count, list(RECIPES), model), first, None):
            try:
                bag = bag_of(model(case.recipe), case)
            except (ValueError, KeyError, IndexError, AssertionError) as error:
                print(f"not made: {case}: {type(error).__name__} {error}")
                continue
            path = save(folder / "bag", bag)
            began = time.perf_counter()
            left_out = frozenset({"ids"})
            try:
                wiring = wire(
                    path,
                    read_dump(path),
                    model(case.recipe).weights,
                    TOKENS,
                    oracle=oracle(case.recipe),
                    likeness=likeness,
                    left_out=left_out,
                )
            except TraceError as error:
                print(f"refused: {case}: {error.what}")
                tally["refused"] += 1
                continue
            spent = time.perf_counter() - began
            seconds += spent
            got = score(bag, wiring, model(case.recipe).geometry)
            tally["cases"] += 1
            tally["places wired"] += sum(len(stage.names) for stage in wiring.stages)
            tally["wrong"] += bool(got.wrong)
            tally["with open places"] += bool(got.open)
            tally["faulty"] += bool(bag.wrong)
            tally["fault found"] += bool(bag.wrong) and not got.missed
            print("." if not (got.wrong or got.missed) else told(case, got, wiring), flush=True)
    for name, number in tally.items():
        print(f"{name}: {number}")
    print(f"seconds a case: {seconds / max(tally['cases'], 1):.2f}")


def told(case: Case, got: Score, wiring: Wiring) -> str:
    """Say what is not right in one case."""
    opened = ", ".join(str(one.place) for one in wiring.open[:4])
    missed = ", ".join(f"{key.stage}@{key.layer}" for key in sorted(got.missed, key=str)[:4])
    return f"{case}: wrong {list(got.wrong[:3])}; missed {missed}; open {opened}; {wiring.left_out[:2]}"


if __name__ == "__main__":
    main()
