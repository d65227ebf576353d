"""A live test that passed and looked at no subject: what it earns, where it is told; bundles of before."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest

from apr_falsify.contracts.claim import read_claims
from apr_falsify.contracts.statuses import FUNCTIONAL, PARTIAL
from apr_falsify.evidence.bundle import Draft, read_bundle, write_bundle
from apr_falsify.evidence.earn import earned
from apr_falsify.evidence.facts import Facts, LaneFacts, Side
from apr_falsify.evidence.outcome import HOLLOW, Ended, Level, Result, Role, SeenRun, TestRecord, outcome_of
from apr_falsify.evidence.report import bundle_html
from apr_falsify.evidence.verify import verify
from tests.acceptance.programs import run
from tests.unit.evidence.bundles import facts_of
from tests.unit.evidence.test_earn import BOUND, CLAIM, FACTS, TESTS, verification

DATA = Path(__file__).parents[2] / "data"
OF_BEFORE, PIN = (
    DATA / "bundle-v1-live.zip",
    "dcefef10626711ce010b7b0b929c20cca945f790910fc79ed7102fb5dad5538f",
)
LIVE = TestRecord(name="t.py::test_live", ended=Ended.PASSED, level=Level.LIVE, measured=(SeenRun.SUBJECT,))
EMPTY = replace(LIVE, name="t.py::test_of_nothing", measured=())
ON_A_LANE = LaneFacts(name="bench", oracle=Side(runtime="hf"), subject=Side(runtime="apr"))
CONTROL = TestRecord(name="t.py::test_control", ended=Ended.PASSED, role=Role.CONTROL, measured=())


def of(*live: TestRecord) -> Facts:
    tests = (*live, *(one for one in TESTS if one.level is not Level.LIVE))
    return replace(FACTS, tests=tests, outcome=outcome_of(tests))


@pytest.mark.parametrize(
    "measured", [(), (SeenRun.ORACLE,), (SeenRun.EMBEDDED,), (SeenRun.ORACLE, SeenRun.EMBEDDED)]
)
def test_a_live_test_that_had_no_subject_measured_earns_no_functional(measured: tuple[SeenRun, ...]) -> None:
    facts = of(replace(LIVE, measured=measured))
    answer = earned(verification(facts), CLAIM, bound_now=BOUND, project="p")
    assert answer.rung == PARTIAL
    assert answer.needs == (
        f"no-live-test: t.py::test_live {HOLLOW}: let it ask for bisection or subject_trace",
    )


def test_beside_one_that_had_it_measured_it_takes_nothing_away() -> None:
    assert earned(verification(of(EMPTY, LIVE)), CLAIM, bound_now=BOUND, project="p").rung == FUNCTIONAL


def test_alone_it_decides_nothing_and_beside_others_it_is_counted_apart() -> None:
    alone = outcome_of((EMPTY, CONTROL))
    assert (alone.result, alone.reason) == (Result.NOT_RUN, f"t.py::test_of_nothing: {HOLLOW}")
    beside = outcome_of((EMPTY, LIVE, CONTROL))
    assert beside.result is Result.SURVIVED
    assert beside.reason == f"1 prediction and 1 control passed; t.py::test_of_nothing: {HOLLOW}"


@pytest.mark.parametrize(
    "one",
    [replace(EMPTY, level=Level.ALGORITHM), replace(EMPTY, role=Role.CONTROL), replace(EMPTY, measured=None)],
)
def test_only_a_live_test_of_the_prediction_that_says_so_is_hollow(one: TestRecord) -> None:
    assert not one.is_hollow


def test_what_it_had_measured_comes_back_from_a_bundle_and_is_shown(tmp_path: Path) -> None:
    facts = facts_of(LIVE, EMPTY, CONTROL)
    write_bundle(Draft(facts=facts), tmp_path / "bundle")
    assert verify(tmp_path / "bundle").problems == ()
    assert read_bundle(tmp_path / "bundle").facts.tests == facts.tests
    said = " ".join(run("evidence", "show", tmp_path / "bundle").out.split())
    assert f"passed (prediction, live) t.py::test_of_nothing: {HOLLOW}" in said
    assert "passed (prediction, live) t.py::test_live passed (prediction" in said


def test_the_report_tells_it_apart_and_asks_for_a_test_that_measures() -> None:
    page = html.unescape(bundle_html(facts_of(EMPTY, CONTROL, lane=ON_A_LANE), None, None, {}))
    assert f"<td>{HOLLOW}</td>" in page
    assert f"t.py::test_of_nothing: {HOLLOW}." in page
    assert "For FUNCTIONAL: a test that measures the lane's subject." in page
    measured = bundle_html(facts_of(LIVE, CONTROL, lane=ON_A_LANE), None, None, {})
    assert "a test that measures" not in measured


@pytest.mark.parametrize("measured", ['"lane"', '["gpu"]', "[1]", "null"])
def test_what_no_test_can_have_measured_is_refused(measured: str) -> None:
    record = {**LIVE.to_json(), "measured": json.loads(measured)}
    with pytest.raises(ValueError, match=r"measured|not a valid Seen"):
        TestRecord.from_json(record)


# bundles that were written before tests told what they had measured


def test_a_bundle_of_before_verifies_and_says_what_it_said() -> None:
    """Made on a live lane by the last version that did not tell; tests/data/README.md says how."""
    found = verify(OF_BEFORE, pin=PIN)
    assert found.problems == ()
    assert found.state == "verified"
    assert found.facts is not None
    assert [one.measured for one in found.facts.tests] == [None, None, None]
    assert outcome_of(found.facts.tests).reason == "2 predictions and 1 control passed"
    assert sorted(found.kinds.values()) == ["consistent", "localised"]
    assert {"outcome", "statement.json: what it says of the bundle"} <= set(found.recomputed)


def test_of_a_bundle_of_before_no_live_test_is_believed(tmp_path: Path) -> None:
    contract = tmp_path / "toy-v1.yaml"
    contract.write_text(
        "metadata: {id: C-TOY, version: 1.0.0}\nfalsification_tests:\n- id: FALSIFY-TOY-001\n"
        "  rule: no stage of layer 0 introduces an error\n"
        "  prediction: every stage is what its own inputs make it\n"
        "  test: pytest -m falsify_toy_001\n  status: BLOCKER_FIXTURE_ABSENT\n"
    )
    (claim,) = read_claims(contract)
    found = verify(OF_BEFORE, pin=PIN)
    assert found.facts is not None
    answer = earned(found, claim, bound_now=found.facts.bound)
    assert answer.rung == PARTIAL
    (said,) = (one.message for one in answer.refusals if one.code == "no-live-test")
    assert said.startswith("it was made before bundles recorded whether tests/test_toy.py::test_")
