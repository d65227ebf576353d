"""What each test had measured: a live test that passes without the lane's subject shows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.outcome import Result
from apr_falsify.evidence.verify import verify
from tests.acceptance.programs import TINY
from tests.unit.pytest_plugin.conftest import Project

pytestmark = pytest.mark.bare

LANE = (f"--oracle-model={TINY}", f"--subject=embedded:{TINY}", "--evidence-dir=evidence")
NOTHING = "passed, but measured nothing of the lane's subject"
TESTS = """
@pytest.fixture(scope="session")
def stages(subject_trace): return subject_trace.stages

@pytest.mark.falsify_toy_001(level="live")
def test_by_argument(bisection): assert bisection.rows
@pytest.mark.falsify_toy_001(level="live")
def test_by_a_fixture_of_its_own(stages): assert stages
@pytest.mark.falsify_toy_001(level="live")
def test_while_it_runs(request): assert request.getfixturevalue("subject_trace").stages
@pytest.mark.falsify_toy_001(level="live")
def test_nothing(lane): assert lane.name
@pytest.mark.falsify_toy_001(level="live")
def test_the_oracle_alone(oracle_trace): assert oracle_trace.stages
@pytest.mark.falsify_toy_001
def test_the_default(embedded_bisection): assert embedded_bisection.rows

@pytest.mark.falsify_toy_002(level="live")
def test_nothing_at_all(): pass
@pytest.mark.falsify_toy_002
def test_of_the_method(): pass

class TestOwn:
    @pytest.fixture
    def bisection(self): return "read from a file of last week"
    @pytest.mark.falsify_toy_003(level="live")
    def test_another_bisection(self, bisection): assert bisection
    @pytest.mark.falsify_toy_003(role="control")
    def test_the_lane(self, subject_trace): assert subject_trace
"""


@pytest.fixture
def result(project: Project) -> pytest.RunResult:
    return project.write(TESTS, falsifiers=3).spawn(*LANE)


def said(result: pytest.RunResult, number: int) -> str:
    (line,) = [one for one in result.outlines if one.startswith(f"FALSIFY-TOY-00{number}  ")]
    return " ".join(line.split()[1:])


def bundle(project: Project, number: int) -> Path:
    return project.root / "evidence" / f"FALSIFY-TOY-00{number}"


def test_what_each_test_had_measured_is_told_and_who_measured_nothing_is_told_apart(
    project: Project, result: pytest.RunResult
) -> None:
    facts = read_bundle(bundle(project, 1)).facts
    assert {one.name.partition("::")[2]: one.measured for one in facts.tests} == {
        "test_by_argument": ("oracle", "subject"),
        "test_by_a_fixture_of_its_own": ("subject",),
        "test_while_it_runs": ("subject",),
        "test_nothing": (),
        "test_the_oracle_alone": ("oracle",),
        "test_the_default": ("embedded",),
    }
    hollow = f"tests/test_toy.py::test_nothing: {NOTHING} (and 1 more)"
    assert said(result, 1) == f"SURVIVED 3 predictions and 1 control passed; {hollow}"
    assert verify(bundle(project, 1)).holds

    # a falsifier all of whose live tests looked at nothing was not run, whatever others measured
    assert said(result, 2) == f"NOT_RUN tests/test_toy.py::test_nothing_at_all: {NOTHING}"
    assert said(result, 3) == f"NOT_RUN tests/test_toy.py::TestOwn::test_another_bisection: {NOTHING}"
    for number in (2, 3):
        assert read_bundle(bundle(project, number)).facts.outcome.result is Result.NOT_RUN
        assert verify(bundle(project, number)).holds


def test_a_session_whose_live_tests_looked_at_nothing_does_not_pass(project: Project) -> None:
    tests = "@pytest.mark.falsify_toy_001(level='live')\ndef test_x(): pass\n"
    done = project.write(tests).spawn(*LANE, "-n", "1", "-p", "xdist")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert said(done, 1) == f"NOT_RUN tests/test_toy.py::test_x: {NOTHING}"


ALONE = """
@pytest.mark.falsify_toy_001
def test_x(bisection): assert bisection.kind == "consistent"
@pytest.mark.falsify_toy_002
def test_y(bisection): assert bisection.kind == "consistent"
@pytest.mark.falsify_toy_002(role="control")
def test_c(): pass
"""


def test_a_bisection_without_a_control_earns_nothing_and_the_summary_says_what_it_lacks(
    project: Project,
) -> None:
    done = project.write(ALONE, falsifiers=2).spawn("--evidence-dir=evidence")
    done.stdout.fnmatch_lines(
        [
            "FALSIFY-TOY-001  SURVIVED *",
            "    status BLOCKER_FIXTURE_ABSENT, this run earns BLOCKER_FIXTURE_ABSENT",
            "    needs for PARTIAL_ALGORITHM_LEVEL: no-control: no bisection of it*",
            "FALSIFY-TOY-002  SURVIVED *",
            "    status BLOCKER_FIXTURE_ABSENT, this run earns PARTIAL_ALGORITHM_LEVEL",
        ]
    )
    assert verify(bundle(project, 1)).kinds == {"bisection.json": "consistent"}
