"""How the reports of one test come to one ending."""

from __future__ import annotations

from typing import Any

import pytest

from apr_falsify.evidence.outcome import Ended, Level, Role
from apr_falsify.pytest_plugin.observe import NOTE
from apr_falsify.pytest_plugin.records import Collected, Ran


def report(when: Any, outcome: Any, ended: Ended | None = None, reason: str = "") -> pytest.TestReport:
    made = pytest.TestReport("t.py::test_x", ("t.py", 1, "test_x"), {}, outcome, None, when, duration=0.5)
    if ended is not None:
        note = {"ended": ended.value, "reason": reason, "measured": [], "kept": []}
        setattr(made, NOTE, note)
    return made


def ran(*reports: pytest.TestReport) -> Ran:
    found = Ran()
    for one in reports:
        found.add(one)
    return found


SETUP = report("setup", "passed", Ended.PASSED)
PASSED = report("call", "passed", Ended.PASSED)
TEARDOWN = report("teardown", "passed", Ended.PASSED)


def test_three_passed_phases_are_a_pass() -> None:
    found = ran(SETUP, PASSED, TEARDOWN)
    assert (found.ended, found.why, found.seconds) == (Ended.PASSED, "", 1.5)


@pytest.mark.parametrize("phases", [(), (SETUP,), (SETUP, PASSED), (SETUP, TEARDOWN)])
def test_a_phase_that_is_lacking_leaves_it_unfinished(phases: tuple[pytest.TestReport, ...]) -> None:
    assert ran(*phases).ended is Ended.UNFINISHED


def test_a_failing_tear_down_outweighs_a_pass() -> None:
    broken = report("teardown", "failed", Ended.ERROR, "no space")
    assert (ran(SETUP, PASSED, broken).ended, ran(SETUP, PASSED, broken).why) == (Ended.ERROR, "no space")


def test_the_worst_of_a_tests_subtests_counts() -> None:
    failed = report("call", "failed", Ended.FAILED, "a")
    assert ran(SETUP, failed, PASSED, TEARDOWN).ended is Ended.FAILED
    assert ran(SETUP, PASSED, report("call", "skipped", Ended.SKIPPED), TEARDOWN).ended is Ended.SKIPPED


def test_one_that_failed_and_passed_when_it_was_run_again_decides_nothing() -> None:
    again = report("call", "rerun", Ended.FAILED, "flaky")
    found = ran(SETUP, again, TEARDOWN, SETUP, PASSED, TEARDOWN)
    assert found.ended is Ended.ERROR
    assert found.why == "failed, and passed when it was run again: it decides nothing: flaky"


def test_one_that_failed_twice_failed() -> None:
    failed = report("call", "failed", Ended.FAILED, "still")
    found = ran(SETUP, report("call", "rerun", Ended.FAILED, "once"), SETUP, failed, TEARDOWN)
    assert found.ended is Ended.FAILED


def test_a_report_of_a_dead_worker_leaves_it_unfinished() -> None:
    dead = report("???", "failed")
    dead.longrepr = "worker 'gw0' crashed while running 't.py::test_x'"
    found = ran(SETUP, dead)
    assert found.ended is Ended.UNFINISHED
    assert "crashed" in found.why


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("t.py::test_x", "t.py::test_x"),
        ("t.py::TestX::test_x[a-1]", "t.py::TestX::test_x"),
        ("t.py::test_x[a::b[0]]", "t.py::test_x"),
        ("t.py::test_x[a]@group", "t.py::test_x"),
        ("a[b]/t.py::test_x", "a[b]/t.py::test_x"),
        ("a@b/t.py::test_x@group", "a@b/t.py::test_x"),
    ],
)
def test_the_function_of_a_node(name: str, function: str) -> None:
    one = Collected(
        name=name, falsifier="F", role=Role.PREDICTION, level=Level.ALGORITHM, selected=True, waits=False
    )
    assert one.function == function
    assert Collected.from_json(one.to_json()) == one
