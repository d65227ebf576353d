"""Under pytest-xdist: the same outcomes, one capture, and what a dead worker leaves unsaid."""

from __future__ import annotations

import pytest

from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.outcome import Result
from apr_falsify.evidence.verify import verify
from tests.unit.pytest_plugin.conftest import Project

pytestmark = pytest.mark.bare

XDIST = ("-n", "2", "-p", "xdist")

COUNTING = """
import os, pathlib
import apr_falsify.subjects.embedded as embedded
from apr_falsify.subjects.embedded import capture

def counted(*arguments, **options):
    log = pathlib.Path(__file__).parent / "captures.txt"
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return capture(*arguments, **options)

embedded.capture = counted
"""
MEASURED = """
import time
@pytest.mark.falsify_toy_001
@pytest.mark.parametrize("x", range(4))
def test_it(bisection, x):
    time.sleep(0.3)
    assert bisection.kind == "consistent"
@pytest.mark.falsify_toy_001(role="control")
def test_control(bisection, keep_bisection):
    keep_bisection("again", bisection)
"""


def test_a_lane_is_captured_once_for_all_workers_and_nothing_is_left_but_the_bundle(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(MEASURED)
    temporary = project.root / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    project.file("tests/conftest.py", COUNTING)
    result = project.spawn(*XDIST, "--evidence-dir=evidence")
    result.stdout.fnmatch_lines(["FALSIFY-TOY-001  SURVIVED   4 predictions and 1 control passed"])
    assert len((project.root / "tests" / "captures.txt").read_text().splitlines()) == 1
    bundle = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001")
    assert len(bundle.facts.tests) == 5
    assert list(bundle.controls) == ["again"]
    assert bundle.traces is not None
    assert verify(bundle.path).holds
    assert [one for one in temporary.iterdir() if one.name.startswith("apr-falsify")] == []


CRASHING = """
import os
@pytest.mark.falsify_toy_001
def test_dies(): os._exit(3)
@pytest.mark.falsify_toy_002
def test_lives(): pass
"""


def test_a_test_whose_worker_died_is_unfinished_and_its_falsifier_did_not_survive(project: Project) -> None:
    result = project.write(CRASHING, falsifiers=2).spawn(*XDIST, "--evidence-dir=evidence")
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        [
            "FALSIFY-TOY-001  NOT_RUN    tests/test_toy.py::test_dies: did not finish: *crashed*",
            "FALSIFY-TOY-002  SURVIVED   1 prediction passed",
        ]
    )
    facts = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001").facts
    assert facts.outcome.result is Result.NOT_RUN


FAILING_CAPTURE = """
import os
from apr_falsify.errors import ModelError
import apr_falsify.subjects.embedded as embedded
from apr_falsify.subjects.embedded import capture
import pathlib

def first_fails(model, request, sink, **options):
    flag = pathlib.Path(__file__).parent / "failed.txt"
    if not flag.exists():
        flag.write_text("")
        os._exit(9) if {kill} else None
        raise ModelError("cannot be captured")
    return capture(model, request, sink, **options)

embedded.capture = first_fails
"""


def test_what_a_failed_or_killed_capture_left_is_not_used(project: Project) -> None:
    project.write(MEASURED)
    project.file("tests/conftest.py", FAILING_CAPTURE.format(kill=True))
    result = project.spawn(*XDIST)
    text = str(result.stdout)
    assert "SURVIVED" not in text
    assert "did not finish" in text
    assert "4 passed" in text, "the other tests were measured anew"


def test_a_falsifier_with_no_test_is_an_error_of_the_whole_suite_too(project: Project) -> None:
    result = project.write(CRASHING.replace("os._exit(3)", "pass"), falsifiers=3).spawn(*XDIST)
    assert result.ret == 4
    assert "FALSIFY-TOY-003" in str(result.stderr)
    assert "no test carries the marker" in str(result.stderr)
