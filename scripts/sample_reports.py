"""Draw a sample of what validate-contracts reports, to be read against the sources by a person.

    python scripts/sample_reports.py --seed 16 --count 100 \\
        REAL/contracts REAL/contracts,aprender=NAMES REAL/drift/*

Each argument is one run: a folder of contracts, or one that holds such a folder, and the sources given with
it. Of every code one report is drawn, then errors and warnings, then notices; a report that several runs make
counts once. docs/findings/precision-of-validate-contracts.md holds what a reading found.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import JudgedProblem

_AROUND = 2


def main() -> None:
    """Print the sample, each report with the lines that it is about, and the tally of codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="FOLDER[,NAME=DIR]")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    pool = list(distinct(report for run in given.runs for report in reports(run)))
    drawn = sample(pool, given.count, random.Random(given.seed))
    for at, (problem, shown) in enumerate(drawn, 1):
        print(f"--- {at} {shown}\n{lines_around(Path(problem.problem.path), problem.problem.line)}")
    of, from_ = (Counter(one.problem.code for one, _ in some) for some in (drawn, pool))
    print("\n".join(f"{code:28} {of[code]:4} of {count:4}" for code, count in sorted(from_.items())))


def reports(run: str) -> Iterator[tuple[JudgedProblem, str]]:
    """What one run reports; a folder of contracts alone is copied first, so that no tree is around it."""
    folder, *sources = run.split(",")
    root = Path(folder)
    contracts = root / "contracts" if (root / "contracts").is_dir() else root
    if contracts == root:
        contracts = Path(shutil.copytree(root, Path(tempfile.mkdtemp()) / "contracts"))
    for one in validate((contracts,), tuple(sources), cached=False).shown:
        problem = one.problem
        place = f"{root.name}/{Path(problem.path).name}:{problem.line}"
        hint = re.sub(r"[\w./]*/contracts/", "contracts/", problem.hint)
        yield one, f"{one.severity} {problem.code} {place} {problem.message} | {problem.key} | {hint}"


def distinct(found: Iterator[tuple[JudgedProblem, str]]) -> Iterator[tuple[JudgedProblem, str]]:
    """Reports, each once."""
    seen: set[str] = set()
    for one, shown in found:
        if shown not in seen:
            seen.add(shown)
            yield one, shown


def sample(
    pool: Sequence[tuple[JudgedProblem, str]], count: int, chance: random.Random
) -> list[tuple[JudgedProblem, str]]:
    """One report of every code, then others as the severity goes, at random."""
    mixed = list(pool)
    chance.shuffle(mixed)
    codes: set[str] = set()
    first: list[tuple[JudgedProblem, str]] = []
    rest: list[tuple[JudgedProblem, str]] = []
    for one in mixed:
        (rest if one[0].problem.code in codes else first).append(one)
        codes.add(one[0].problem.code)
    rest.sort(key=lambda one: ("error", "warning", "notice").index(one[0].severity))
    return sorted([*first, *rest][:count], key=lambda one: one[1])


def lines_around(path: Path, line: int) -> str:
    """The lines of a contract that a report is about."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    start = max(0, line - 1 - _AROUND)
    return "\n".join(f"{at + 1:5}  {lines[at][:150]}" for at in range(start, min(len(lines), line + _AROUND)))


if __name__ == "__main__":
    main()
