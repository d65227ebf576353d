"""Worker processes: what comes of a case depends on the case alone, also where one dies."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from apr_falsify.commands.exam_pool import Pool
from apr_falsify.exam.cases import ExamCase, Seeded
from apr_falsify.exam.faults import fault_named
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.results import Results
from apr_falsify.model.stages import Key

pytestmark = pytest.mark.bare

CORRECT = ExamCase(
    host="formula",
    material=Material(name="tiny-qwen2", seed=0),
    setting=SETTINGS["f32"],
    tokens=(5, 6, 7, 8),
)
PARTS = {
    "single faults": [
        replace(CORRECT, seeded=(Seeded(fault=fault_named("down-one-channel"), layer=1, seed=3),)),
    ],
    "correct runs": [
        CORRECT,
        replace(CORRECT, host="torch", tokens=(9, 8)),
        replace(CORRECT, kernel="sse", tokens=(9, 9, 9)),
        replace(CORRECT, kernel="sse", material=Material(name="llama-like", seed=0)),
    ],
}


def held(
    directory: Path, jobs: int, results: Results
) -> tuple[dict[str, object], list[tuple[str, int, int]]]:
    directory.mkdir()
    told: list[tuple[str, int, int]] = []
    with Pool(directory, jobs, results, lambda *what: told.append(what)) as pool:
        return dict(pool(PARTS)), told


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "results.jsonl"


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> dict[str, object]:
    found, told = held(tmp_path_factory.mktemp("pool") / "one", 1, Results(kept))
    assert told[-1][1:] in {(1, 1), (4, 4)}
    return found


def test_outcomes_come_in_the_order_of_their_cases(by_one: dict[str, list[object]]) -> None:
    for part, cases in PARTS.items():
        assert [outcome.case for outcome in by_one[part]] == cases
    assert [outcome.grade for outcome in by_one["correct runs"]] == [Grade.LOCATED] * 4
    assert by_one["single faults"][0].found == (Key(1, "ffn_out"),)


def test_two_workers_at_a_time_give_the_same_outcomes(tmp_path: Path, by_one: dict[str, object]) -> None:
    results = Results(None)
    found, _ = held(tmp_path / "two", 2, results)
    assert found == by_one
    assert results.kernels.keys() == {"own", "sse"}


def test_an_exam_goes_on_where_it_was_left_and_starts_no_worker_for_what_is_there(
    tmp_path: Path, kept: Path, by_one: dict[str, object]
) -> None:
    found, told = held(tmp_path / "again", 1, Results(kept))
    assert found == by_one
    assert told == [("single faults", 1, 1), ("correct runs", 4, 4)]
    assert not list((tmp_path / "again").glob("worker-*"))


def test_a_worker_that_is_killed_fails_its_case_and_not_the_exam(tmp_path: Path) -> None:
    parts = {"correct runs": [replace(CORRECT, tokens=(1, 2, n)) for n in range(3)]}

    def kill_once(part: str, done: int, total: int) -> None:
        if done == 1:
            for worker in pool.workers:
                os.kill(worker.pid, signal.SIGKILL)

    with Pool(tmp_path, 1, Results(None), kill_once) as pool:
        first, second, third = pool(parts)["correct runs"]
    assert (first.grade, second.grade, third.grade) == (Grade.LOCATED, Grade.WRONG, Grade.LOCATED)
    assert "ended with -9" in second.said[0]


def test_no_worker_is_left_when_an_exam_is_interrupted(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(part: str, done: int, total: int) -> None:
        if done:
            pids.extend(worker.pid for worker in pool.workers)
            raise KeyboardInterrupt

    parts = {"correct runs": [CORRECT, replace(CORRECT, tokens=(1, 2, 3))]}
    with Pool(tmp_path, 1, Results(None), interrupt) as pool, pytest.raises(KeyboardInterrupt):
        pool(parts)
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
