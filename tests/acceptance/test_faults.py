"""``apr-falsify faults``: a part of the suite's own exam, as a user runs it."""

from __future__ import annotations

import pytest

from apr_falsify.faults import CATALOGUE
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


def test_a_third_of_the_runs_share_no_code_with_the_replay(exam: Outcome) -> None:
    runs = {host: counts["total"] for host, counts in exam.json["by_host"].items()}
    assert runs["torch"] + runs.get("apr", 0) >= sum(runs.values()) / 3


def test_the_published_rule_does_worse_on_the_same_material(exam: Outcome) -> None:
    result = exam.json
    assert result["published_rule"]["single"]["located"] < result["single"]["located"] / 2


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
