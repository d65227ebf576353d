"""Bundles: one for every falsifier that was run, and none that claims more than was run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.outcome import Ended, Result
from apr_falsify.evidence.verify import verify
from tests.support import machine_paths_in
from tests.unit.helpers import TINY
from tests.unit.pytest_plugin.conftest import Project

TESTS = """
@pytest.mark.falsify_toy_001
def test_one(record_property): record_property("cosine.x", "0.5")
@pytest.mark.falsify_toy_001(role="control")
def test_control(): pass
@pytest.mark.falsify_toy_002
def test_two(): assert 0
@pytest.mark.falsify_toy_003
def test_three(): pytest.skip("no GPU")
def test_other(): pass
"""


def test_every_falsifier_that_was_run_leaves_one_that_verifies(project: Project) -> None:
    result = project.write(TESTS, falsifiers=3).run("--evidence-dir=evidence")
    results = {}
    for number in (1, 2, 3):
        path = project.root / "evidence" / f"FALSIFY-TOY-00{number}"
        facts = read_bundle(path).facts
        found = verify(path)
        assert found.holds, found.problems
        results[facts.falsifier[-1]] = facts.outcome.result
        assert f"    statement sha256 {found.statement_sha256}" in result.outlines
    assert results == {"1": Result.SURVIVED, "2": Result.FALSIFIED, "3": Result.NOT_RUN}


def test_its_junit_holds_the_tests_of_that_falsifier_alone_with_what_they_recorded(project: Project) -> None:
    project.write(TESTS, falsifiers=3).run("--evidence-dir=evidence")
    junit = ElementTree.parse(project.root / "evidence" / "FALSIFY-TOY-001" / "junit.xml")
    assert {one.get("name") for one in junit.iter("testcase")} == {"test_one", "test_control"}
    assert [one.get("value") for one in junit.iter("property")] == ["0.5"]


def test_it_tells_the_claim_the_code_and_the_environment(project: Project) -> None:
    project.write(TESTS, falsifiers=3).run("--evidence-dir=evidence")
    facts = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001").facts
    assert facts.contract_path == "contracts/toy-v1.yaml"
    assert facts.claim["rule"] == "the rule of FALSIFY-TOY-001"
    assert set(facts.bound.functions) == {"tests/test_toy.py::test_one", "tests/test_toy.py::test_control"}
    assert facts.sources.project == "toy"
    assert {"python", "numpy", "pytest"} <= facts.environment.keys()
    assert facts.lane.name == "embedded"
    assert facts.lane.oracle is None


PATHS = """
import os, pathlib
ELSEWHERE = pathlib.Path(os.environ["ELSEWHERE"])
@pytest.mark.falsify_toy_001(level="live")
def test_subject(bisection, keep_bisection, record_property):
    keep_bisection("again", bisection)
    record_property("seen", ELSEWHERE / "x")
    assert bisection.kind == "consistent"
@pytest.mark.falsify_toy_001(role="control")
def test_default(embedded_bisection): assert embedded_bisection.kind == "consistent"
@pytest.mark.falsify_toy_002
def test_missing(): (ELSEWHERE / "nothing").read_text()
@pytest.mark.falsify_toy_003
def test_skipped(): pytest.skip(f"no {ELSEWHERE}/recording.npz")
"""


def test_it_names_no_path_of_the_machine_that_made_it(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    shutil.copytree(TINY, elsewhere / "tiny")
    project.write(PATHS, falsifiers=3)
    (project.root / "contracts").rename(elsewhere / "contracts")
    project.spawn(
        f"--subject=embedded:{elsewhere / 'tiny'}",
        f"--contracts={elsewhere / 'contracts'}",
        "--evidence-dir=evidence",
    )
    evidence = project.root / "evidence"
    assert machine_paths_in(evidence, elsewhere, project.root) == {}
    facts = [read_bundle(evidence / f"FALSIFY-TOY-00{number}").facts for number in (1, 2, 3)]
    results = [one.outcome.result for one in facts]
    assert results == [Result.SURVIVED, Result.ERROR, Result.NOT_RUN]
    assert facts[0].contract_path == ".../toy-v1.yaml"
    assert set(read_bundle(evidence / "FALSIFY-TOY-001").controls) == {"again", "embedded-default"}
    assert facts[0].lane.subject is not None
    assert facts[0].lane.subject.model.startswith("tiny@sha256:")
    assert [one.reason for one in facts[2].tests] == ["no .../recording.npz"]


@pytest.mark.parametrize("arguments", [("-k", "one"), ("tests/test_toy.py::test_one",)], ids=" ".join)
def test_one_that_was_selected_in_part_leaves_none(project: Project, arguments: tuple[str, ...]) -> None:
    project.write(TESTS, falsifiers=3).run(*arguments, "--evidence-dir=evidence")
    assert list((project.root / "evidence").iterdir()) == []


def test_one_of_which_nothing_was_begun_keeps_the_bundle_that_it_had(project: Project) -> None:
    project.write(TESTS, falsifiers=3).run("--evidence-dir=evidence")
    path = project.root / "evidence" / "FALSIFY-TOY-001"
    before = verify(path).statement_sha256
    project.file("tests/test_a.py", "def test_a(): assert 0\n")
    result = project.run("--exitfirst", "--evidence-dir=evidence")
    result.stdout.fnmatch_lines(["FALSIFY-TOY-001  NOT_RUN*did not finish*"])
    assert verify(path).statement_sha256 == before


def test_one_that_stopped_half_way_claims_nothing(project: Project) -> None:
    marked = "@pytest.mark.falsify_toy_001\n"
    tests = f"{marked}def test_a(): pass\ndef test_b(): assert 0\n{marked}def test_c(): pass\n"
    project.write(tests).run("--exitfirst", "--evidence-dir=evidence")
    facts = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001").facts
    assert facts.outcome.result is Result.NOT_RUN
    assert [one.ended for one in facts.tests] == [Ended.PASSED, Ended.UNFINISHED]


def test_a_second_run_replaces_the_first(project: Project) -> None:
    project.write(TESTS, falsifiers=3).run("--evidence-dir=evidence")
    project.write(TESTS.replace("assert 0", "assert 1"), falsifiers=3).run("--evidence-dir=evidence")
    path = project.root / "evidence" / "FALSIFY-TOY-002"
    assert read_bundle(path).facts.outcome.result is Result.SURVIVED
    assert verify(path).holds


def unwritable(root: Path) -> Path:
    (root / "a-file").write_text("")
    return root / "a-file" / "evidence"


def test_a_directory_that_cannot_be_written_to_is_refused_before_anything_runs(project: Project) -> None:
    path = unwritable(project.root)
    result = project.write(TESTS, falsifiers=3).run(f"--evidence-dir={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--evidence-dir: {path} cannot be written to: *"])
    result.stdout.no_fnmatch_line("*collected*")


def test_a_bundle_that_cannot_be_written_fails_the_session_and_says_so(project: Project) -> None:
    project.write(TESTS.replace("assert 0", "pass"), falsifiers=3)
    project.file("evidence/FALSIFY-TOY-001/notes.txt", "somebody's own\n")
    result = project.run("--evidence-dir=evidence")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FALSIFY-TOY-001: SURVIVED, and no bundle: *"])
    assert [one.name for one in (project.root / "evidence" / "FALSIFY-TOY-001").iterdir()] == ["notes.txt"]


MEASURED = """
from apr_falsify.pytest_plugin.verdict import Falsified

@pytest.mark.falsify_toy_001
def test_it(bisection, record_property):
    record_property("kind", bisection.kind.value)

@pytest.mark.falsify_toy_001(role="control")
def test_control(bisection, keep_bisection):
    keep_bisection("the same", bisection)

@pytest.mark.falsify_toy_002
def test_refuted(bisection):
    raise Falsified("predicted: one source; found: none", bisection)
"""


def test_a_measured_lane_is_in_the_bundle_and_a_refuting_bisection_is_shown_as_a_table(
    project: Project,
) -> None:
    result = project.write(MEASURED, falsifiers=2).spawn("--evidence-dir=evidence")
    result.stdout.fnmatch_lines(
        [
            "predicted: one source; found: none",
            "consistent: *",
            "stage * cosine *",
            " attn_scores *",
            "published rule*",
        ]
    )
    result.stdout.no_fnmatch_line("*raise Falsified*")
    bundle = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001")
    assert bundle.bisection is not None
    assert bundle.bisection["kind"] == "consistent"
    assert bundle.traces is not None
    assert bundle.facts.lane.subject is not None
    assert bundle.facts.lane.subject.runtime == "embedded"
    assert bundle.facts.lane.layers == (0, 1)
    assert list(bundle.controls) == ["the-same"]
    assert verify(bundle.path).holds
    refuted = read_bundle(project.root / "evidence" / "FALSIFY-TOY-002").facts
    assert refuted.outcome.reason.endswith("predicted: one source; found: none")


def test_the_sources_that_differ_from_the_commit_are_told_and_bundles_are_none(project: Project) -> None:
    project.write(TESTS, falsifiers=3)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "x"],
    ):
        project.pytester.run("git", *command)
    project.file("contracts/toy-v1.yaml", (project.root / "contracts/toy-v1.yaml").read_text() + "\n")
    for _ in range(2):
        project.run("--evidence-dir=evidence")
    facts = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001").facts
    assert facts.sources.uncommitted == ("contracts/toy-v1.yaml",)
    assert re.fullmatch("[0-9a-f]{40}", facts.sources.commit or "")
