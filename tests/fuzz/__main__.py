"""The fuzzer's command: a campaign over all readers, or one case of it again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.campaign import Campaign, pieces
from tests.fuzz.chunk import Case, Tally, bench
from tests.fuzz.gauge import ALLOWANCE, FACTOR, SECONDS, held, measured
from tests.fuzz.readers.table import READERS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all readers (1000000)")
    parser.add_argument("--readers", default=",".join(READERS), help="some of: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="what all inputs follow from (0)")
    parser.add_argument("--processes", type=int, default=1, help="how many read at the same time (1)")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="start nothing after so many; run it again to go on"
    )
    parser.add_argument(
        "--results", type=Path, help="keeps what was found, one piece a line (a temporary file)"
    )
    parser.add_argument(
        "--replay", metavar="READER:SEED:NUMBER", help="read this one input and say what becomes of it"
    )
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for; 1 where a reader has a defect, 4 where inputs are left to read."""
    asked = _options()
    if asked.replay:
        return _replay(asked.replay)
    readers = asked.readers.split(",")
    if unknown := [name for name in readers if name not in READERS]:
        print(f"no reader is called {unknown[0]!r}; there are {', '.join(READERS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        campaign = Campaign(asked.seed, asked.results or Path(folder) / "results.jsonl")
        todo = pieces(readers, asked.inputs)
        whole = campaign.run(todo, asked.processes, time.monotonic() + 60 * asked.minutes)
    tallies = campaign.tallies()
    found = [tallies[name] for name in readers if name in tallies]
    _print(found)
    if any(tally.defects for tally in found):
        return 1
    return 0 if whole else 4


def _print(tallies: Iterable[Tally]) -> None:
    tallies = list(tallies)
    print(f"{'reader':<21}{'inputs':>9}{'accepted':>10}{'slowest':>10}{'growth':>9}  refused")
    for tally in tallies:
        refused = ", ".join(
            f"{name} {count}" for name, count in tally.ended.most_common() if name != "accepted"
        )
        print(
            f"{tally.reader:<21}{tally.inputs:>9}{tally.ended['accepted']:>10}{tally.slowest[0]:>8.2f} s"
            f"{tally.largest[0] / 2**20:>6.0f} MB  {refused}"
        )
    inputs, defects = sum(tally.inputs for tally in tallies), [tally for tally in tallies if tally.defects]
    print(f"{inputs} inputs, {sum(tally.seconds for tally in tallies):.0f} s of the processor")
    for tally in defects:
        for what, (count, *cases) in sorted(tally.defects.items()):
            print(f"DEFECT in {tally.reader}: {what}, {count} times: --replay {' '.join(cases)}")


def _replay(text: str) -> int:
    reader, seed, index = text.split(":")
    case = Case(reader=reader, seed=int(seed), index=int(index))
    with bench(reader) as make:
        before = held()
        one = make(case.chance)
        print(f"changed: {'; '.join(one.said)}\n{one.size} bytes")
        result = measured(one.read, one.size, before)
    allowed = (FACTOR * one.size + ALLOWANCE) / 2**20
    print(
        f"{result.ended}: {result.seconds:.3f} s of {SECONDS:g}, "
        f"{result.growth / 2**20:.1f} MB of {allowed:.0f}"
    )
    print("\n".join(line[:300] for line in result.details.splitlines()))
    print(f"DEFECT: {result.defect}" if result.defect else "no defect")
    return 1 if result.defect else 0


if __name__ == "__main__":
    sys.exit(main())
