"""The fixtures for people's own falsifiers, as pytest tells them and as tests get them."""

from __future__ import annotations

import pytest

from tests.unit.pytest_plugin.conftest import Project

GET = """
@pytest.mark.falsify_toy_001
def test_claim(falsifier, contract):
    assert falsifier.falsifier == "FALSIFY-TOY-001"
    assert falsifier.fields["rule"] == "the rule of FALSIFY-TOY-001"
    assert contract["metadata"]["id"] == "C-TOY"
"""


def test_each_is_told_with_what_it_gives(project: Project) -> None:
    result = project.write("").run("--fixtures")
    text = str(result.stdout)
    measuring = ("bisection", "oracle_trace", "subject_trace", "embedded_bisection")
    for name in (*measuring, "lane", "contract", "falsifier", "keep_bisection"):
        assert f"\n{name}" in text, name
    assert "captured once a session" in text
    assert "no docstring available" not in text


def test_a_test_gets_its_falsifier_and_its_contract(project: Project) -> None:
    project.write(GET).run().assert_outcomes(passed=1)


@pytest.mark.parametrize("marks", ["", "@pytest.mark.falsify_toy_001\n@pytest.mark.falsify_toy_002\n"])
def test_one_without_a_marker_or_with_two_is_told_why_it_gets_none(project: Project, marks: str) -> None:
    project.write(marks + "def test_x(falsifier): pass\n", falsifiers=2)
    result = project.run("-k", "test_x")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*need one falsifier's marker; it carries *"])


def test_both_traces_of_the_embedded_default(project: Project) -> None:
    tests = """
        def test_x(oracle_trace, subject_trace, bisection, embedded_bisection):
            assert oracle_trace.provenance.runtime == "hf"
            assert subject_trace.provenance.runtime == "embedded"
            assert oracle_trace.tokens == subject_trace.tokens
            assert bisection.kind == "consistent"
            assert embedded_bisection is bisection
    """
    project.write(tests).spawn("-k", "test_x").assert_outcomes(passed=1)


def test_a_side_that_cannot_be_captured_is_an_error_told_in_words(project: Project) -> None:
    tests = "@pytest.mark.falsify_toy_001\ndef test_x(bisection): pass\n"
    (project.root / "empty").mkdir()
    result = project.write(tests).spawn("--oracle-model=empty", "--subject=embedded:empty")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FALSIFY-TOY-001  ERROR *empty*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*raise *")
