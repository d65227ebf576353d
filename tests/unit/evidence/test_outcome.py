"""What the tests of a falsifier say together: the order of the answers, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apr_falsify.evidence.outcome import (
    HOLLOW,
    Ended,
    Level,
    Outcome,
    Result,
    Role,
    SeenRun,
    TestRecord,
    outcome_of,
)

GOOD = TestRecord(name="t.py::test_good", ended=Ended.PASSED)
CONTROL = replace(GOOD, name="t.py::test_control", role=Role.CONTROL)
LIVE = replace(GOOD, name="t.py::test_live", level=Level.LIVE, measured=(SeenRun.SUBJECT,))
EMPTY = replace(LIVE, name="t.py::test_empty", measured=(SeenRun.EMBEDDED,))


def ended(how: Ended, one: TestRecord = GOOD, reason: str = "") -> TestRecord:
    return replace(one, ended=how, reason=reason)


IDLE = {
    Ended.SKIPPED: "skipped",
    Ended.XFAILED: "expected to fail, so it decides nothing",
    Ended.XPASSED: "passed although expected to fail",
    Ended.DESELECTED: "deselected",
    Ended.UNCOLLECTED: "not collected",
    Ended.UNFINISHED: "did not finish",
}


def test_no_test_is_not_run() -> None:
    assert outcome_of([]) == Outcome(result=Result.NOT_RUN, reason="no test carries its marker")


@pytest.mark.parametrize("how", IDLE)
@pytest.mark.parametrize("one", [GOOD, CONTROL, LIVE], ids=["prediction", "control", "live"])
def test_one_test_that_decided_nothing_leaves_all_undecided(how: Ended, one: TestRecord) -> None:
    found = outcome_of([GOOD, ended(how, one), CONTROL])
    assert found == Outcome(result=Result.NOT_RUN, reason=f"{one.name}: {IDLE[how]}")


def test_a_failed_prediction_outranks_what_decided_nothing() -> None:
    found = outcome_of([ended(Ended.SKIPPED), ended(Ended.FAILED, LIVE, "cosine 0.3"), CONTROL])
    assert found == Outcome(result=Result.FALSIFIED, reason="t.py::test_live: failed: cosine 0.3")


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (ended(Ended.FAILED, CONTROL), "control failed"),
        (ended(Ended.ERROR), "error"),
        (ended(Ended.ERROR, CONTROL), "error"),
    ],
)
def test_a_broken_instrument_outranks_a_failed_prediction(broken: TestRecord, word: str) -> None:
    found = outcome_of([ended(Ended.FAILED, LIVE), broken])
    assert found == Outcome(result=Result.ERROR, reason=f"{broken.name}: {word}")


def test_several_of_one_kind_are_counted_behind_the_first() -> None:
    found = outcome_of(
        [ended(Ended.SKIPPED, LIVE, "no GPU"), ended(Ended.DESELECTED), ended(Ended.SKIPPED, CONTROL)]
    )
    assert found.reason == "t.py::test_live: skipped (and 2 more): no GPU"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ([GOOD], "1 prediction passed"),
        ([GOOD, LIVE], "2 predictions passed"),
        ([GOOD, CONTROL], "1 prediction and 1 control passed"),
        ([GOOD, LIVE, CONTROL, CONTROL], "2 predictions and 2 controls passed"),
        ([GOOD, EMPTY], f"1 prediction passed; t.py::test_empty: {HOLLOW}"),
        (
            [LIVE, EMPTY, EMPTY, CONTROL],
            f"1 prediction and 1 control passed; t.py::test_empty: {HOLLOW} (and 1 more)",
        ),
    ],
)
def test_what_passed_is_counted(tests: list[TestRecord], reason: str) -> None:
    assert outcome_of(tests) == Outcome(result=Result.SURVIVED, reason=reason)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ([CONTROL], "only controls ran: nothing measured the prediction"),
        ([EMPTY], f"t.py::test_empty: {HOLLOW}"),
        ([CONTROL, EMPTY], f"t.py::test_empty: {HOLLOW}"),
    ],
)
def test_without_a_prediction_that_measured_nothing_survives(tests: list[TestRecord], reason: str) -> None:
    assert outcome_of(tests) == Outcome(result=Result.NOT_RUN, reason=reason)


@pytest.mark.parametrize(
    ("one", "shows", "hollow"),
    [
        (LIVE, True, False),
        (replace(LIVE, measured=(SeenRun.ORACLE, SeenRun.SUBJECT)), True, False),
        (EMPTY, False, True),
        (replace(LIVE, measured=()), False, True),
        (replace(LIVE, measured=None), False, False),  # an earlier version did not say
        (replace(LIVE, role=Role.CONTROL), False, False),
        (replace(EMPTY, role=Role.CONTROL), False, False),
        (replace(LIVE, level=Level.ALGORITHM), False, False),
        (replace(EMPTY, level=Level.ALGORITHM), False, False),
        (ended(Ended.FAILED, LIVE), False, False),
        (ended(Ended.SKIPPED, EMPTY), False, False),
    ],
)
def test_only_a_live_prediction_that_passed_shows_the_subject_or_is_hollow(
    one: TestRecord, shows: bool, hollow: bool
) -> None:
    assert (one.shows_the_subject, one.is_hollow) == (shows, hollow)
    assert replace(one, reason="why").remark == (HOLLOW if hollow else "why")


def test_an_outcome_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"compare outcome\.result"):
        assert outcome_of([GOOD])


@pytest.mark.parametrize("one", [GOOD, CONTROL, LIVE, replace(LIVE, measured=(), reason="r", seconds=0.5)])
def test_a_test_comes_back_from_json(one: TestRecord) -> None:
    data = one.to_json()
    assert TestRecord.from_json(data) == one
    assert ("measured" in data) is (one.measured is not None)


def test_what_json_leaves_out_of_a_test_is_empty() -> None:
    data = {key: value for key, value in GOOD.to_json().items() if key not in ("reason", "seconds")}
    assert TestRecord.from_json(data) == GOOD
    assert TestRecord.from_json({**data, "seconds": 3}).seconds == 3.0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seconds", True, "seconds is no number"),
        ("seconds", "0.1", "seconds is no number"),
        ("seconds", None, "seconds is no number"),
        ("name", None, "name"),
        ("ended", "perhaps", "perhaps"),
        ("role", 1, "role"),
        ("level", "dead", "dead"),
        ("reason", None, "reason"),
        ("measured", "subject", "measured"),
        ("measured", ["moon"], "moon"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TestRecord.from_json({**GOOD.to_json(), name: value})


def test_an_outcome_comes_back_from_json_and_another_word_is_refused() -> None:
    found = outcome_of([GOOD])
    assert Outcome.from_json(found.to_json()) == found
    for wrong, words in (
        ({"result": "MAYBE", "reason": ""}, "MAYBE"),
        ({"result": "SURVIVED"}, "reason"),
        ({"reason": ""}, "result"),
        ([], "outcome"),
    ):
        with pytest.raises(ValueError, match=words):
            Outcome.from_json(wrong)
