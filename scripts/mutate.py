"""Would a test notice? Change the code in one place at a time, and run the tests of that room against it.

    .venv/bin/python scripts/mutate.py                    # every room, the sample of seed 0; in the root
    .venv/bin/python scripts/mutate.py rules --seed 1     # one room, another sample
    .venv/bin/python scripts/mutate.py --only compare/sums.py --sample 1000     # every mutant of a file

A mutant is *killed* when a test fails (or hangs), and *alive* when none does. ``mutants/equivalent.yaml``
lists those that no test can tell from the code, each with the reason. What was found stays in
``build/mutants``: a second start goes on where the first was ended. A kill stands while the changed file and
the killing test's file are as they were, a survivor while all tests of the room are.

The sample is drawn by the digest of seed and mutant, so that a mutant stays in it while the code around it
changes. A room's tests are those that ``ROOMS`` names and no others, without the real ``apr``.

Exits 1 where fewer than ``--goal`` are killed of those that are not equivalent, or a listed one is killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mutants.graft import module_of
from mutants.places import Mutant, Uses, mutants_of
from mutants.session import HANG, Answer, Forks, Measured

ROOT = Path.cwd()
PACKAGE = ROOT / "src" / "apr_falsify"
STORE = ROOT / "build" / "mutants"
EQUIVALENT = ROOT / "scripts" / "mutants" / "equivalent.yaml"
GOAL = 0.9
BUDGET = 20.0
"""CPU seconds of tests, the quickest first, after which a mutant counts as alive."""
PIECE = 250
"""So many tests are measured before that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is changed, and by which tests it must be noticed.

    Attributes:
        sources: patterns below the package.
        without: file names that are left out: they show, and decide nothing.
        tests: files or folders below ``tests/unit``.
        too_slow: files of these that take minutes to measure; a mutant's budget would end before them.
        sample: how many mutants are tried.

    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int
    without: tuple[str, ...] = ()
    too_slow: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """Return the files that are changed."""
        found = {path for pattern in self.sources for path in PACKAGE.glob(pattern)}
        return sorted(path for path in found if path.name not in self.without)


_ABOUT_RULES = ("rules", "rules_of_runtimes", "quantise", "blocks_by_hand", "arithmetic")

_OF_FORMULAS = tuple(
    f"compare/test_{about}.py"
    for about in (
        "experts",
        "floor_by_hand",
        "floor_of_attention",
        "guesses_by_hand",
        "replay_of_families",
        "smallest_numbers",
    )
)

ROOMS: Mapping[str, Room] = {
    "compare": Room(
        sources=("compare/**/*.py",),
        tests=("compare",),
        too_slow=("compare/test_every_family.py",),
        sample=300,
    ),
    "rules": Room(
        sources=("numerics/operand_rules.py", "numerics/quantise.py", "numerics/arithmetic.py"),
        tests=tuple(f"test_{about}.py" for about in _ABOUT_RULES),
        sample=100,
    ),
    "operators": Room(
        sources=("operators/*.py",), tests=("test_ops.py", "test_family_file.py", *_OF_FORMULAS), sample=100
    ),
    "evidence": Room(
        sources=("evidence/*.py",),
        without=("report.py", "report_figures.py", "report_bundle.py"),
        tests=("evidence",),
        sample=150,
    ),
}


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _sample(mutants: Sequence[Mutant], seed: int, size: int) -> list[Mutant]:
    order = sorted(mutants, key=lambda mutant: _digest(str(seed).encode(), mutant.key.encode()))
    return order[:size]


class State:
    """What earlier starts found, one JSON line each; the last of a key counts."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        STORE.mkdir(parents=True, exist_ok=True)
        self.path = STORE / "answers.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    @staticmethod
    def _tests(answer: Answer, room_digest: str) -> str:
        """Return the digest of the tests that an answer rests on."""
        killed = answer.status in ("killed", "hangs")
        return _file_digest(ROOT / answer.by.partition("::")[0]) if killed else room_digest

    def known(self, mutant: Mutant, room_digest: str) -> Answer | None:
        """Return what was found of a mutant, where that still stands."""
        row = self.rows.get(mutant.key)
        if row is None or row["file"] != _file_digest(ROOT / mutant.file):
            return None
        answer = Answer(**row["answer"])
        tests = (
            _file_digest(ROOT / answer.by.partition("::")[0]) if answer.status == "killed" else room_digest
        )
        return answer if row["tests"] == tests else None

    def add(self, mutant: Mutant, answer: Answer, room_digest: str) -> None:
        """Keep an answer."""
        row = {
            "key": mutant.key,
            "file": _file_digest(ROOT / mutant.file),
            "tests": self._tests(answer, room_digest),
            "budget": self.budget,
            "answer": asdict(answer),
        }
        self.rows[mutant.key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _file_digest(path: Path) -> str:
    return _digest(path.read_bytes()) if path.is_file() else ""


def _equivalents() -> set[str]:
    """Return the mutants that are listed as equivalent; ``*`` stands for every change of a constant."""
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else None
    return {
        f"{file} | {function} | {change}"
        for file, functions in (listed or {}).items()
        for function, entries in functions.items()
        for entry in entries
        for change in entry["changes"]
    }


class Run:
    """The session: measures the tests, then tries the mutants instead of running the tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.state = State(options.budget)
        self.answers: dict[str, list[tuple[Mutant, Answer]]] = {}
        self.mutants: list[Mutant] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the mutants of each room; called by pytest once everything is collected."""
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        for name in self.options.rooms:
            room, start = ROOMS[name], time.monotonic()
            mutants = [each for path in room.files() for each in mutants_of(path, ROOT)]
            self.mutants += mutants
            for file in {mutant.file for mutant in mutants}:
                module_of(file)  # once here, not in every fork
            mutants = [each for each in mutants if self.options.only in each.file]
            chosen = _sample(mutants, self.options.seed, self.options.sample or room.sample)
            self.answers[name] = list(self._room(name, room, chosen, session.items))
            print(f"{name}: {len(mutants)} mutants, {time.monotonic() - start:.0f} s", flush=True)
        return True

    def _room(
        self, name: str, room: Room, mutants: Sequence[Mutant], items: Sequence[pytest.Item]
    ) -> Iterator[tuple[Mutant, Answer]]:
        paths = tuple(f"tests/unit/{test}" for test in room.tests)
        forks = Forks(item for item in items if item.nodeid.startswith(paths))
        test_files = sorted({item.nodeid.partition("::")[0] for item in forks})
        scripts = sorted(Path(__file__).parent.rglob("mut*/*.py"))
        digest = _digest(*(_file_digest(ROOT / file).encode() for file in [*test_files, *scripts]))
        measured: dict[str, Measured] | None = None
        uses = Uses(room.files(), ROOT)
        listed = _equivalents()
        texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in test_files}
        for number, mutant in enumerate(mutants, 1):
            answer = self.state.known(mutant, digest)
            if mutant.of_constant in listed:  # every change of it: none needs to be tried
                answer = Answer(status="listed")
            if answer is None:
                if measured is None:
                    measured = measure(name, room, forks)
                tests = _tests_of(mutant, measured, uses, texts)
                answer = (
                    forks.answer(mutant, tests, self.options.budget, self.options.hang)
                    if tests
                    else Answer(status="unreached")
                )
                self.state.add(mutant, answer, digest)
                print(
                    f"{number}/{len(mutants)} {answer.status:9} {answer.seconds:6.1f} s  {mutant.key}",
                    flush=True,
                )
            if answer.status != "void":
                yield mutant, answer


def measure(name: str, room: Room, forks: Forks) -> dict[str, Measured]:
    """Return what each usable test of the room runs; measured anew where code or test changed."""
    path = STORE / f"tests-{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sources = _digest(*(_file_digest(file).encode() for file in room.files()))
    names = {item.nodeid: _digest(sources.encode(), _file_digest(item.path).encode()) for item in forks}
    new = [test for test, digest in names.items() if stored.get(test, {}).get("digest") != digest]
    rows = {test: row for test, row in stored.items() if test in names and test not in new}
    if new:
        print(f"{name}: measuring {len(new)} tests", flush=True)
    for start in range(0, len(new), PIECE):
        rows |= _measured(name, room, forks, {test: names[test] for test in new[start : start + PIECE]})
        path.write_text(json.dumps(rows), encoding="utf-8")
    return {
        test: Measured(
            passed=row["passed"],
            seconds=row["seconds"],
            lines={file: frozenset(numbers) for file, numbers in row["lines"].items()},
        )
        for test, row in rows.items()
    }


def _measured(name: str, room: Room, forks: Forks, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Measure some tests, and see which do not pass by themselves or in another order."""
    found = forks.measure(list(digests), room.files(), ROOT)
    order = [(test, found[test].seconds) for test in _in_order(found) if found[test].passed]
    bad = set(forks.failing(order))
    for test in sorted(bad | {test for test in found if not found[test].passed}):
        print(f"{name}: not used, does not pass by itself: {test}", flush=True)
    return {
        test: {
            "digest": digests[test],
            "passed": row.passed and test not in bad,
            "seconds": row.seconds,
            "lines": {file: sorted(numbers) for file, numbers in row.lines.items()},
        }
        for test, row in found.items()
    }


def _in_order(measured: Mapping[str, Measured]) -> list[str]:
    """Return tests, the quickest first; in steps of four, so that a module's fixtures are made few times."""
    classes = {test: max(0, int(row.seconds * 50)).bit_length() // 2 for test, row in measured.items()}
    return sorted(measured, key=lambda test: (classes[test], test.partition("::")[0]))


def _tests_of(
    mutant: Mutant, measured: Mapping[str, Measured], uses: Uses, texts: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Return the tests that can notice a mutant, in order: those that run its lines or what depends on it."""
    built = uses.built(mutant.function.partition(".")[0]) if mutant.lines else mutant.defines
    names = uses.closed(built)
    lines = uses.of(names)
    lines.setdefault(mutant.file, set()).update(mutant.lines)
    naming = {file for file, text in texts.items() if any(re.search(rf"\b{name}\b", text) for name in names)}
    reached = {
        test: row
        for test, row in measured.items()
        if row.passed
        and (
            test.partition("::")[0] in naming
            or any(not found.isdisjoint(row.lines.get(file, ())) for file, found in lines.items())
        )
    }
    return [(test, reached[test].seconds) for test in _in_order(reached)]


def _report(run: Run, goal: float) -> int:
    """Print what became of the mutants; 1 where too few were killed or a listed one was."""
    listed, total = _equivalents(), Counter[str]()
    wrong = _without_mutant(listed, run.mutants)
    for name, rows in run.answers.items():
        counts: Counter[str] = Counter()
        for mutant, answer in rows:
            dead = answer.status in ("killed", "hangs")
            equivalent = not {mutant.key, mutant.of_constant}.isdisjoint(listed)
            counts["killed" if dead else "equivalent" if equivalent else "alive"] += 1
            if dead and mutant.key in listed:
                wrong += 1
                print(f"listed as equivalent, but killed by {answer.by}: {mutant.key}")
            if not dead and not equivalent:
                print(f"{answer.status}: {mutant.key}")
        print(f"{name}: {_counted(counts)}")
        total += counts
    print(f"all: {_counted(total)}")
    tried = total["killed"] + total["alive"]
    return int(bool(wrong) or not tried or total["killed"] < goal * tried)


def _without_mutant(listed: set[str], mutants: Sequence[Mutant]) -> int:
    """Print which lines of the list fit no mutant of these files; how many they are."""
    files = {mutant.file for mutant in mutants}
    keys = {key for mutant in mutants for key in (mutant.key, mutant.of_constant)}
    stale = sorted(line for line in listed - keys if line.partition(" | ")[0] in files)
    for line in stale:
        print(f"listed as equivalent, but no such mutant is there: {line}")
    return len(stale)


def _counted(counts: Mapping[str, int]) -> str:
    tried, killed, listed = sum(counts.values()), counts.get("killed", 0), counts.get("equivalent", 0)
    share = f"{100 * killed / max(1, tried - listed):.1f} % of those that are not equivalent"
    return f"{tried} tried, {killed} killed ({share}), {listed} equivalent, {counts.get('alive', 0)} alive"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rooms", nargs="*", default=list(ROOMS), metavar="ROOM", help=f"of {', '.join(ROOMS)}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, help="mutants of each room (default: as the room says)")
    parser.add_argument("--only", default="", help="only mutants of files whose path has this in it")
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU seconds of tests for one mutant")
    parser.add_argument("--hang", type=float, default=HANG, help="CPU seconds from which a test hangs")
    parser.add_argument("--goal", type=float, default=GOAL)
    options = parser.parse_args()
    for name in options.rooms:
        if name not in ROOMS:
            parser.error(f"no room is called {name}; there are {', '.join(ROOMS)}")
    return options


def main() -> int:
    """Run the command line."""
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tests = [f"tests/unit/{test}" for name in options.rooms for test in ROOMS[name].tests]
    tests = [test for test in tests if (ROOT / test).exists()]
    slow = [f"--ignore=tests/unit/{test}" for name in options.rooms for test in ROOMS[name].too_slow]
    arguments = ["-qq", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *slow, *tests]
    run = Run(options)
    code = pytest.main(arguments, plugins=[run])
    if not run.answers:
        print(f"pytest ended with {code}", file=sys.stderr)
        return 2
    return _report(run, options.goal)


if __name__ == "__main__":
    sys.exit(main())
