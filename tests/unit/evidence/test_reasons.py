"""The reasons of a refusal in full: what was found, what was expected, how many more there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.contracts.claim import Claim
from apr_falsify.contracts.standing import BROKEN, STALE
from apr_falsify.contracts.statuses import BLOCKER, FUNCTIONAL, PARTIAL
from apr_falsify.evidence.discharge import unmet
from apr_falsify.evidence.earn import Earned, Refusal, earned, standing_of, state_of
from apr_falsify.evidence.facts import Bound, Facts, LaneFacts, Side
from apr_falsify.evidence.files import BundleProblem
from apr_falsify.evidence.outcome import HOLLOW, Ended, Level, Outcome, Result, Role, SeenRun, TestRecord
from tests.unit.evidence.test_earn import BOUND, CLAIM, FACTS, LANE, OTHER_CLAIM, TESTS, verification


def reasons(facts: Facts = FACTS, *, claim: Claim = CLAIM, now: Bound = BOUND, **changes: Any) -> list[str]:
    project = changes.pop("project", "p")
    answer = earned(verification(facts, **changes), claim, bound_now=now, project=project)
    return list(answer.needs)


def with_tests(*tests: TestRecord) -> Facts:
    return replace(FACTS, tests=tests)


# --- what bars PARTIAL --------------------------------------------------------------


def test_a_bundle_of_something_else_names_both() -> None:
    assert reasons(replace(FACTS, falsifier="F-2")) == ["other-falsifier: it is of F-2, not of F-1"]
    assert reasons(replace(FACTS, contract="C-Y")) == [
        "other-contract: it is of the contract C-Y, not of C-X"
    ]
    assert reasons(project="q") == ["other-project: it was made in the project 'p', this is 'q'"]
    assert reasons(project=None) == []


@pytest.mark.parametrize("how", [Ended.FAILED, Ended.SKIPPED, Ended.DESELECTED])
def test_every_control_that_did_not_pass_is_named(how: Ended) -> None:
    one, two = (replace(TESTS[2], name=f"t.py::test_control_{n}", ended=how) for n in (1, 2))
    assert reasons(with_tests(*TESTS[:2], one, two))[:2] == [
        f"control-failed: t.py::test_control_1 {how}: the instrument is not shown to work",
        f"control-failed: t.py::test_control_2 {how}: the instrument is not shown to work",
    ]
    failed = replace(TESTS[0], ended=how)
    assert not any("control-failed" in line for line in reasons(with_tests(failed, *TESTS[1:])))


def test_an_outcome_that_did_not_survive_says_why() -> None:
    outcome = Outcome(result=Result.NOT_RUN, reason="t.py::test_one: skipped")
    assert reasons(replace(FACTS, outcome=outcome)) == [
        "not-survived: the outcome is NOT_RUN: t.py::test_one: skipped"
    ]


def test_a_changed_claim_names_the_fields_that_changed() -> None:
    changed = replace(CLAIM, fields={**CLAIM.fields, "rule": "another", "prediction": "new"})
    assert reasons(claim=changed) == [
        "claim-changed: the claim has changed since it was measured: prediction, rule"
    ]


def test_changed_code_names_each_place_and_how_it_changed() -> None:
    now = Bound(functions={"a.py::f": "99", "b.py::g": "03"}, unbound={"h": "not found"})
    assert reasons(now=now) == [
        "code-changed: the code it rests on has changed since: a.py::f differs, b.py::g is new, "
        "t.py::test_one is gone, h is bound no more, lib:g is named no more, or bound now"
    ]


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " and 1 more"), (9, " and 4 more")])
def test_of_many_changes_five_are_named(count: int, more: str) -> None:
    new = {f"n{index}.py::f": "00" for index in range(count)}
    (reason,) = reasons(now=replace(BOUND, functions={**BOUND.functions, **new}))
    assert reason.count(" is new") == 5
    assert reason.endswith(f"n4.py::f is new{more}")


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " and 1 more"), (8, " and 3 more")])
def test_of_many_uncommitted_files_five_are_named(count: int, more: str) -> None:
    files = tuple(f"src/{index}.py" for index in range(count))
    (reason,) = reasons(replace(FACTS, sources=replace(FACTS.sources, uncommitted=files)))
    assert reason.endswith(f"src/3.py, src/4.py{more}")


def test_a_folder_of_evidence_is_no_source_and_a_file_beside_it_is() -> None:
    def left(*files: str) -> list[str]:
        facts = replace(FACTS, sources=replace(FACTS.sources, uncommitted=files))
        answer = earned(
            verification(facts), CLAIM, bound_now=BOUND, project="p", not_sources=("evidence/", "NOTES")
        )
        return [line.rpartition("sources: ")[2] for line in answer.needs]

    assert left("evidence", "evidence/F-1/bundle.json", "NOTES", "contracts/x.yaml") == []
    assert left("evidence2/a", "NOTES/b", "x/evidence/c") == ["evidence2/a, NOTES/b, x/evidence/c"]


# --- what bars FUNCTIONAL -----------------------------------------------------------


def test_what_nothing_pins_names_the_keys_that_would() -> None:
    (reason,) = reasons(state="unpinned")
    assert reason == (
        "unpinned: nothing pins it: no --expect SHA256, no signature by a key that the contract lists (none)"
    )
    claim = replace(CLAIM, keys={"lane": "a", "reviewer": "b"})
    (reason,) = reasons(state="unpinned", claim=claim)
    assert reason.endswith("(lane, reviewer)")


@pytest.mark.parametrize(
    ("lane", "words"),
    [
        (replace(LANE, subject=None), "no subject was run"),
        (replace(LANE, name="embedded"), "it comes from the embedded runtime"),
        (
            replace(LANE, subject=Side(runtime="embedded")),
            "it comes from the embedded runtime, which shows the method, not the subject",
        ),
    ],
)
def test_what_shows_no_subject_says_so(lane: LaneFacts, words: str) -> None:
    found = [line for line in reasons(replace(FACTS, lane=lane)) if line.startswith("embedded-runtime")]
    assert len(found) == 1
    assert words in found[0]


def test_each_side_that_was_read_from_a_recording_is_named() -> None:
    assert LANE.oracle is not None
    assert LANE.subject is not None
    both = replace(
        LANE, oracle=replace(LANE.oracle, recorded=True), subject=replace(LANE.subject, recorded=True)
    )
    assert [line.split()[2] for line in reasons(replace(FACTS, lane=both))] == ["oracle", "subject"]
    alone = replace(LANE, oracle=None)
    assert not any("recording" in line for line in reasons(replace(FACTS, lane=alone)))


LIVE = TESTS[1]


@pytest.mark.parametrize(
    ("live", "words"),
    [
        (None, "no live test of the prediction passed: none measured the subject of a lane"),
        (replace(LIVE, measured=(SeenRun.EMBEDDED,)), f"t.py::test_live {HOLLOW}: let it ask for bisection"),
        (replace(LIVE, measured=None), "before bundles recorded whether t.py::test_live measured the lane"),
        (replace(LIVE, ended=Ended.SKIPPED), "no live test of the prediction passed"),
        (replace(LIVE, role=Role.CONTROL), "no live test of the prediction passed"),
        (replace(LIVE, level=Level.ALGORITHM), "no live test of the prediction passed"),
    ],
)
def test_a_live_test_that_showed_nothing_says_how(live: TestRecord | None, words: str) -> None:
    tests = [one for one in (TESTS[0], live, TESTS[2]) if one is not None]
    found = [line for line in reasons(with_tests(*tests)) if line.startswith("no-live-test")]
    assert len(found) == 1
    assert words in found[0]


# --- rungs and states ---------------------------------------------------------------


def test_a_refusal_bars_its_rung_and_those_above() -> None:
    low, high = (
        Refusal(code=code, rung=rung, message=code) for code, rung in (("a", PARTIAL), ("b", FUNCTIONAL))
    )
    answer = Earned(rung=BLOCKER, refusals=(low, high, low))
    assert answer.bars(PARTIAL) == (low, low)
    assert answer.bars(FUNCTIONAL) == (low, high, low)
    assert answer.bars(BLOCKER) == ()
    assert answer.lacks == ("a", "b")
    assert answer.needs == ("a: a", "b: b", "a: a")


def test_every_problem_of_a_bundle_that_does_not_verify_is_a_reason() -> None:
    problems = tuple(BundleProblem(code="c", file=file, message="is wrong") for file in ("a.json", ""))
    answer = earned(verification(problems=problems), CLAIM, bound_now=BOUND)
    assert answer.needs == ("does-not-verify: a.json is wrong", "does-not-verify: the bundle is wrong")
    assert answer.rung == BLOCKER
    unread = earned(verification(None), CLAIM, bound_now=BOUND)
    assert unread.needs == ("does-not-verify: it cannot be read",)


def test_a_standing_names_the_bundle_and_the_lane_that_would_renew_it() -> None:
    found = standing_of(CLAIM, STALE, ("why",))
    assert (found.state, found.why, found.bundle, found.lane) == (STALE, ("why",), "evidence/F-1", "")
    assert standing_of(replace(CLAIM, rung=FUNCTIONAL), STALE).lane == "rtx4090"
    assert standing_of(replace(CLAIM, rung=FUNCTIONAL, fields={"id": "F-1"}), STALE).lane == ""
    assert standing_of(replace(CLAIM, pin=None), BROKEN).bundle == ""


def test_a_state_says_why() -> None:
    def why(claim: Claim = CLAIM, found: Any = verification(), now: Bound = BOUND) -> tuple[str, ...]:  # noqa: B008 - frozen
        return state_of(found, claim, bound_now=now, project="p").why

    assert why() == ()
    assert why(found=None) == ("there is no bundle",)
    assert why(replace(CLAIM, pin=replace(CLAIM.pin, statement_sha256=""))) == (
        "the contract gives no statement_sha256",
    )
    assert why(OTHER_CLAIM) == ("claim-changed: the claim has changed since it was measured: rule",)
    outdated = verification(problems=(BundleProblem(code="replay-differs", file="", message="m"),))
    assert why(found=outdated, now=Bound()) == ("the code that replays it has changed since",)
    assert "replayed it otherwise than" in why(found=outdated)[0]
    lane = replace(FACTS, lane=LaneFacts(name="embedded"), tests=(TESTS[0], TESTS[2]))
    assert why(replace(CLAIM, rung=PARTIAL), verification(lane)) == ()
    assert len(why(replace(CLAIM, rung=FUNCTIONAL), verification(lane))) > 1


def test_a_claim_that_stands_on_no_rung_needs_what_partial_does() -> None:
    lowest = replace(CLAIM, rung=BLOCKER)
    assert state_of(verification(replace(FACTS, contract="C-Y")), lowest, bound_now=BOUND).state == BROKEN
    assert state_of(verification(state="unpinned"), lowest, bound_now=BOUND).why == ()


# --- the words of discharge ---------------------------------------------------------


@pytest.mark.parametrize(
    ("discharge", "met"),
    [
        ({"lane": "RTX4090"}, True),  # names are not told apart by case
        ({"model": "qwen/qwen2.5-coder-7b-instruct"}, False),  # ids and texts are
        ({"prompt": "what is 2+2?"}, False),
        ({"oracle": {"runtime": "HuggingFace"}}, True),
        ({"oracle": {"dtype": "half"}}, True),
        ({"oracle": {"dtype": "bf16"}}, False),
        ({"subject_device": "CUDA"}, True),
        ({"subject_device": "cud"}, False),
        ({"oracle_device": "cuda:0"}, False),
        ({"subject": {"model": "model.apr"}}, True),
        ({"subject": {"model": "MODEL.apr"}}, False),
        ({"tokens": ["1", " 2 "]}, True),
        ({"tokens": ["1"]}, False),
        ({"layers": "0..1"}, True),
        ({"layers": "0..0"}, False),
        ({"layers": "00..1 "}, True),
        ({"oracle": {"version": "5.23.0"}}, True),
        ({"oracle": {"version": "==5.*"}}, True),
        ({"oracle": {"version": "<5"}}, False),
        ({"third": {"version": "1"}}, False),
        ({"subject": {"colour": "red"}}, False),
    ],
)
def test_a_word_of_discharge_is_met_by_what_it_means(discharge: dict[str, Any], met: bool) -> None:
    assert (list(unmet(discharge, LANE)) == []) is met


def test_a_word_that_nothing_answers_is_unknown() -> None:
    bare = LaneFacts(name="x")
    assert list(
        unmet({"layers": "0..1", "tokens": "1", "model": "m", "subject": {"version": "1"}}, bare)
    ) == [
        "layers is unknown, expected 0..1",
        "tokens is unknown, expected 1",
        "model is unknown, expected m",
        "subject.version is unknown, expected 1",
    ]


@pytest.mark.parametrize(
    ("word", "model", "name", "hinted"),
    [
        ("model", "/data/m", "rtx", True),
        ("oracle.model", "/data/m", "rtx", True),
        ("subject.model", "/data/m", "rtx", False),
        ("model", "data/m", "rtx", False),
        ("model", "/data/m", "embedded", False),
    ],
)
def test_a_folder_is_hinted_at_where_an_id_would_do(word: str, model: str, name: str, hinted: bool) -> None:
    lane = LaneFacts(
        name=name, oracle=Side(runtime="hf", model=model), subject=Side(runtime="apr", model=model)
    )
    (line,) = unmet({word: "Qwen/Q"}, lane)
    assert ("hf download Qwen/Q" in line) is hinted
    assert "model_sha256" not in line
    (absolute,) = unmet({word: "/other/m"}, lane)
    assert "hf download" not in absolute


def test_paths_of_the_test_are_those_of_a_contract() -> None:
    assert CLAIM.path == Path("contracts/x.yaml")
