"""A sample of the fuzzer's inputs for every reader; and that it finds what it is for, and finds it again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import gauge, planted
from tests.fuzz.campaign import Campaign, Piece, pieces
from tests.fuzz.chunk import Case, bench, read_some
from tests.fuzz.readers.documents import REPOSITORY
from tests.fuzz.readers.table import READERS

pytestmark = pytest.mark.bare

SAMPLE = 1000
"""Inputs over all readers: what fits into some five seconds of a test run."""

SEED = 1

FOUND = {
    "raises": ("KeyError", "KeyError outside the package"),
    "hangs": ("stopped", "took over 0.2 s outside the package"),
    "waits": ("stopped", "took over 0.2 s outside the package"),
    "grows": ("accepted", "grew beyond the limit"),
    "keeps": ("accepted", "grew beyond the limit"),
    "warns": ("RuntimeWarning", "RuntimeWarning outside the package"),
    "exits": ("SystemExit", "SystemExit outside the package"),
    "tells-nothing": ("ValueError", "ValueError in errors.py:"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_sample_of_every_reader_is_accepted_or_refused_by_a_typed_error(reader: str) -> None:
    shares = sum(row.share for row in READERS.values())
    tally = read_some(reader, SEED, range(max(40, SAMPLE * READERS[reader].share // shares)))
    assert tally.defects == {}
    assert tally.ended["accepted"] > 0  # what it changes is sound to begin with


@pytest.mark.parametrize("reader", READERS)
def test_a_number_makes_the_same_input_wherever_it_stands(reader: str) -> None:
    def said_of(case: Case) -> tuple[tuple[str, ...], int]:
        one = make(case.chance)
        return one.said, one.size

    cases = [Case(reader=reader, seed=SEED, index=index) for index in range(12)]
    with bench(reader) as make:
        first = [said_of(case) for case in cases]
    with bench(reader) as make:
        again = [said_of(case) for case in reversed(cases)]
    assert first == again[::-1]
    assert len(set(first)) > 6


@pytest.mark.parametrize("reader", FOUND)
def test_a_defect_is_found_and_named_with_its_case(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "SECONDS", 0.2)
    monkeypatch.setattr(gauge, "WAITING", 2.0)
    tally = read_some(reader, 5, range(12), rows=planted.READERS)
    ended, defect = FOUND[reader]
    found = {what: counted for what, counted in tally.defects.items() if what.startswith(defect)}
    assert list(found.values()) == [[1, f"{reader}:5:{planted.AT}"]]
    assert tally.ended[ended] >= 1
    assert ("keeps memory from input to input" in tally.defects) == (reader == "keeps")


def test_of_sound_readers_nothing_is_said() -> None:
    tally = read_some("sound", 5, range(40), rows=planted.READERS)
    assert (tally.inputs, tally.defects) == (40, {})
    assert set(tally.ended) == {"accepted", "ModelError"}


def test_a_reader_that_kills_its_process_costs_one_input(tmp_path: Path) -> None:
    campaign = Campaign(5, tmp_path / "results.jsonl", planted.__name__)
    assert campaign.run([Piece(reader="dies", start=0, stop=12)], 1, time.monotonic() + 60)
    tally = campaign.tallies()["dies"]
    assert tally.inputs == 12
    assert tally.ended["killed"] == 1
    assert tally.defects == {"the process was ended by signal 9": [1, f"dies:5:{planted.AT}"]}


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    results, far = tmp_path / "results.jsonl", time.monotonic() + 60
    todo = [Piece(reader="sound", start=0, stop=20), Piece(reader="sound", start=20, stop=40)]
    Campaign(5, results, planted.__name__).run(todo[:1], 1, far)
    before = results.read_text()
    results.write_text(before + '{"seed": 5, "piece": {"rea')  # where a run was killed in mid-line
    again = Campaign(5, results, planted.__name__)
    assert again.run(todo, 2, far)
    assert results.read_text().startswith(before)
    assert again.tallies()["sound"].inputs == 40
    other = Campaign(6, results, planted.__name__)
    assert other.tallies() == {}
    assert not other.run(todo, 1, time.monotonic() - 1)


def test_inputs_are_shared_among_all_readers() -> None:
    todo = pieces(list(READERS), 1_000_000)
    assert sum(piece.stop - piece.start for piece in todo) >= 1_000_000
    assert {piece.reader for piece in todo} == READERS.keys()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY)


def test_the_command_reads_and_counts() -> None:
    done = command("--inputs", "60", "--readers", "aprt,config", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "61 inputs" in done.stdout  # each reader's share is rounded up
    assert "AprtError" in done.stdout
    assert command("--readers", "aprt,confg").returncode == 2


def test_the_command_reads_one_case_again() -> None:
    case = Case(reader="aprt", seed=3, index=11)
    done = command("--replay", str(case))
    assert done.returncode == 0, done.stderr
    with bench("aprt") as make:
        assert "; ".join(make(case.chance).said) in done.stdout
    assert "no defect" in done.stdout


def test_a_chance_is_its_cases_own() -> None:
    cases = [
        Case(reader=name, seed=seed, index=index) for name in "ab" for seed in (0, 1) for index in (0, 1)
    ]
    assert len({case.chance.random() for case in cases}) == len(cases)
    assert cases[0].chance.random() == Random("a/0/0").random()
