"""``apr-falsify faults``: a part of the suite's own exam, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_falsify.exam.faults import CATALOGUE
from tests.acceptance.programs import Outcome, assert_refused, program_without, run


@pytest.fixture(scope="module")
def exam() -> Outcome:
    return run("faults", "--quick", "--format", "json")


@pytest.mark.falsify_bisect_004
def test_a_part_of_the_exam_meets_every_goal(exam: Outcome) -> None:
    result = exam.json
    assert result["failures"] == []
    assert all(result["goals"].values())
    assert exam.code == 0
    assert exam.err == ""


def test_the_result_has_the_published_shape(exam: Outcome) -> None:
    result = exam.json
    assert result["schema"] == "apr-falsify/faults/v1"
    single = {"faults", "total", "located", "wrong", "missed", "explained"}
    for counts in (result, result["published_rule"]):
        assert counts["single"].keys() == single
        assert counts["pairs"].keys() == {"total", "located"}
        assert counts["correct_runs"].keys() == {"total", "distinct", "accused"}
    assert [row["fault"] for row in result["rows"]] == [fault.name for fault in CATALOGUE]


def test_correct_runs_are_told_by_kernel_text_and_width(exam: Outcome) -> None:
    result = exam.json
    total = result["correct_runs"]["total"]
    for what in ("setting", "kernel", "text", "width", "host", "length"):
        assert sum(group["total"] for group in result[f"correct_by_{what}"].values()) == total
    assert len(result["correct_by_kernel"]) >= 2
    assert len(result["correct_by_text"]) >= 3
    assert result["kernels"].keys() == result["correct_by_kernel"].keys()
    assert all(facts["numpy_digest"] and facts["torch_digest"] for facts in result["kernels"].values())


def test_a_third_of_the_runs_share_no_code_with_the_replay(exam: Outcome) -> None:
    runs = {host: counts["total"] for host, counts in exam.json["by_host"].items()}
    assert runs["torch"] + runs.get("apr", 0) >= sum(runs.values()) / 3


def test_the_published_rule_does_worse_on_the_same_material(exam: Outcome) -> None:
    result = exam.json
    assert result["published_rule"]["single"]["located"] < result["single"]["located"] / 2


RECIPE = {
    "host": "formula", "model": "llama-like", "seed": 0, "kind": "", "rows": "", "setting": "f32",
    "kernel": "own", "text": "random", "tokens": [5, 6, 7], "faults": [],
}  # fmt: skip


def test_an_accused_run_can_be_run_again_alone(tmp_path: Path) -> None:
    fault = {"fault": "o-one-channel", "layer": 1, "seed": 3, "amount": 1.0}
    told = {"failures": [{"recipe": RECIPE}, {"recipe": {**RECIPE, "faults": [fault]}}]}
    (tmp_path / "exam.json").write_text(json.dumps(told))
    kept = tmp_path / "kept.jsonl"
    outcome = run("faults", "--case", tmp_path / "exam.json", "--results", kept, "--format", "json")
    assert outcome.code == 0
    assert outcome.json["correct_runs"] == {"total": 1, "distinct": 1, "accused": 0}
    assert outcome.json["single"]["located"] == 1
    assert len(outcome.json["goals"]) == 3
    # What is in the results is not run again: no worker starts, and the answer is the same.
    again = run("faults", "--case", tmp_path / "exam.json", "--results", kept, "--format", "json")
    assert {**again.json, "seconds": 0} == {**outcome.json, "seconds": 0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**RECIPE, "kernel": "sso"}, "'sse'"),
        ({"host": "formula"}, "it lacks 'model'"),
        ({"failures": []}, "at least one case"),
        ([RECIPE], "an object with host"),
    ],
)
def test_a_file_that_describes_no_case_is_refused(tmp_path: Path, content: object, said: str) -> None:
    (tmp_path / "case.json").write_text(json.dumps(content))
    assert_refused(run("faults", "--case", tmp_path / "case.json"), tmp_path / "case.json", said)


def test_a_file_that_is_no_json_describes_no_case(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_bytes(b"\xff{")
    assert_refused(run("faults", "--case", tmp_path / "case.json"), tmp_path / "case.json", "not JSON")


@pytest.mark.parametrize(
    ("option", "name", "near"), [("--parts", "correct run", "correct runs"), ("--kernels", "sso", "sse")]
)
def test_an_unknown_part_or_kernel_is_refused_with_the_nearest(option: str, name: str, near: str) -> None:
    assert_refused(run("faults", option, name), option, f"'{near}'")


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    assert_refused(run("faults", "--models", "lama-like"), "--models", "'llama-like'")


def test_a_model_that_is_not_at_hand_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_FALSIFY_CACHE", "/nowhere")
    assert_refused(run("faults", "--models", "smollm2-135m"), "/nowhere", "APR_FALSIFY_CACHE")


def test_a_plot_without_matplotlib_is_refused_before_the_exam() -> None:
    outcome = program_without("matplotlib", "faults", "--plot", "x.svg")
    assert_refused(outcome, "pip install 'apr-falsify[report]'")


def test_an_exam_without_torch_is_refused() -> None:
    assert_refused(program_without("torch", "faults", "--quick"), "pip install 'apr-falsify[oracle]'")
