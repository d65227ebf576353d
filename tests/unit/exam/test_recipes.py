"""Recipes and results: what a case is made of survives the way through a file, and bad files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from apr_falsify.errors import UsageError
from apr_falsify.exam.cases import ExamCase, Seeded
from apr_falsify.exam.faults import fault_named
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.recipes import case_of, outcome_of, outcome_to_json, recipe_of
from apr_falsify.exam.results import Results
from apr_falsify.exam.trial import TrialOutcome
from apr_falsify.model.stages import Key

CASE = ExamCase(
    host="formula",
    material=Material(name="tiny-qwen2", seed=1, kind="q4_0", rows="near"),
    setting=SETTINGS["q4_0 x q8 of 256"],
    tokens=(5, 5, 6),
    seeded=(Seeded(fault=fault_named("k-stale"), layer=1, seed=3, amount=0.1 + 0.2),),
    kernel="sse",
    text="runs of repeats",
)
OUTCOME = TrialOutcome(
    case=CASE,
    grade=Grade.WRONG,
    published=Grade.MISSED,
    explained=True,
    level=float("inf"),
    required=(Key(1, "k_post_rope"),),
    found=(Key(None, "lm_head"),),
    said=("x",),
    right=(0.1, 0.25),
    guilty=(1e9,),
)


def test_a_case_is_the_same_after_a_way_through_json() -> None:
    assert case_of(json.loads(json.dumps(recipe_of(CASE)))) == CASE


def test_an_outcome_is_the_same_after_a_way_through_json() -> None:
    assert outcome_of(CASE, json.loads(json.dumps(outcome_to_json(OUTCOME)))) == OUTCOME


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("setting", "f23", "f32"), ("kernel", "ssse", "sse"), ("text", "naturel", "natural")],
)
def test_a_recipe_with_an_unknown_name_is_refused_with_the_nearest(
    key: str, value: str, nearest: str
) -> None:
    with pytest.raises(UsageError) as refused:
        case_of({**recipe_of(CASE), key: value})
    assert value in refused.value.what
    assert nearest in refused.value.remedy


def test_a_recipe_that_lacks_a_key_is_refused_with_its_name() -> None:
    recipe = recipe_of(CASE)
    del recipe["tokens"]
    with pytest.raises(UsageError, match="tokens"):
        case_of(recipe)


def test_results_are_read_back_by_another_exam(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = Results(path)
    results.put(OUTCOME)
    results.put_kernel("sse", {"openblas": "Nehalem"})
    again = Results(path)
    assert again.get(CASE) == OUTCOME
    assert again.get(replace(CASE, kernel="own")) is None
    assert again.kernels == {"sse": {"openblas": "Nehalem"}}


def test_half_a_line_of_a_killed_exam_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).put(OUTCOME)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert Results(path).get(CASE) is None
    Results(path).put(OUTCOME)
    assert Results(path).get(CASE) == OUTCOME


def test_results_of_other_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path)
    head = json.loads(path.read_text())
    path.write_text(json.dumps({**head, "suite_sha256": "0" * 64}) + "\n")
    with pytest.raises(UsageError, match="other code"):
        Results(path)


@pytest.mark.parametrize("content", ["", "{}\n", "not JSON\n", "[1]\n", '{"schema": "x"}\n'])
def test_a_file_that_is_no_results_file_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match="not a results file"):
        Results(path)
    assert path.read_text() == content
