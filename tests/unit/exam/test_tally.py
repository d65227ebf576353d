"""The exam's figures: bounds against sums worked out exactly, groups, and runs that repeat each other."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from math import comb

import pytest

from apr_falsify.commands.faults_table import table
from apr_falsify.exam.cases import ExamCase
from apr_falsify.exam.examination import Examination
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.plan import CORRECT, PAIRS, SMALL
from apr_falsify.exam.tally import bound_of, goals, to_json
from apr_falsify.exam.trial import TrialOutcome

CASE = ExamCase(
    host="formula", material=Material(name="tiny-qwen2", seed=0), setting=SETTINGS["f32"], tokens=(5, 6, 7)
)


def outcome_of(grade: Grade = Grade.LOCATED, **changes: object) -> TrialOutcome:
    return TrialOutcome(
        case=replace(CASE, **changes), grade=grade, published=Grade.LOCATED, explained=False, level=0.0,
        required=(), found=(), said=(),
    )  # fmt: skip


@pytest.mark.parametrize(("accused", "count"), [(0, 59), (1, 100), (5, 3000), (40, 80)])
def test_so_few_accused_are_seen_once_in_twenty_times_at_the_bound(accused: int, count: int) -> None:
    rate = Fraction(bound_of(count, accused))
    seen = sum(comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(accused + 1))
    assert float(seen) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_nothing_is_bounded_where_all_were_accused(count: int) -> None:
    assert bound_of(count, count) == 1.0


def test_a_bound_grows_with_every_accusation_and_never_hides_one() -> None:
    bounds = [bound_of(1000, accused) for accused in range(6)]
    assert bounds == sorted(set(bounds))
    assert all(bound > accused / 1000 for accused, bound in enumerate(bounds))


def test_runs_that_make_the_same_digits_are_one_in_the_bound() -> None:
    """Where a processor lacks a kernel, its libraries take another, and nothing new is tried."""
    held = [outcome_of(kernel=name) for name in ("own", "avx2", "sse")]
    facts = {"own": "a", "avx2": "a", "sse": "b"}
    kernels = {name: {"numpy_digest": digest, "torch_digest": "t"} for name, digest in facts.items()}
    result = to_json(Examination(correct=held, kernels=kernels))
    assert result["correct_runs"] == {"total": 3, "distinct": 2, "accused": 0}
    assert result["false_alarms_below"] == pytest.approx(1 - 0.05 ** (1 / 2))


def test_the_same_tokens_are_one_run_whatever_their_text_is_called() -> None:
    held = [outcome_of(text="natural"), outcome_of(text="random"), outcome_of(tokens=(5, 6, 8))]
    assert to_json(Examination(correct=held))["correct_runs"]["distinct"] == 2


def test_correct_runs_are_split_by_what_they_differ_in() -> None:
    held = [
        outcome_of(),
        outcome_of(kernel="sse", text="natural", tokens=(5,) * 33),
        outcome_of(Grade.WRONG, material=Material(name="qwen2-wide", seed=0, kind="q4_k"), kernel="sse"),
    ]
    result = to_json(Examination(correct=held))
    assert result["correct_by_kernel"] == {
        "own": {"total": 1, "located": 1},
        "sse": {"total": 2, "located": 1},
    }
    assert result["correct_by_text"]["natural"] == {"total": 1, "located": 1}
    assert result["correct_by_width"] == {
        "256": {"total": 2, "located": 2},
        "3584": {"total": 1, "located": 0},
    }
    assert set(result["correct_by_length"]) == {"2 to 3 tokens", "32 to 63 tokens"}


def test_an_accused_run_is_told_with_all_that_it_takes_to_run_it_again() -> None:
    (failure,) = to_json(Examination(correct=[outcome_of(Grade.WRONG, kernel="sse")]))["failures"]
    assert failure["recipe"]["kernel"] == "sse"
    assert failure["recipe"]["tokens"] == [5, 6, 7]
    assert "sse" in failure["case"]


def test_a_stage_that_is_infinitely_far_from_its_replay_leaves_the_result_plain_json() -> None:
    held = replace(outcome_of(Grade.WRONG), right=(0.5, float("inf")), level=float("inf"))
    result = to_json(Examination(correct=[held]))
    json.dumps(result, allow_nan=False)
    assert result["nearest_to_the_floor"] is None
    assert "nearest at inf" in table(Examination(correct=[held]))


def test_the_goals_are_those_of_the_parts_that_were_to_be_held() -> None:
    held = Examination(correct=[outcome_of()], parts=(CORRECT,))
    assert goals(held) == {"no correct run accused": True}
    assert goals(replace(held, parts=(CORRECT, PAIRS)))["95 % of pairs located"] is False
    assert goals(Examination(parts=(SMALL,))) == {}
