"""Markers come from contracts, and what does not fit is refused where it is collected."""

from __future__ import annotations

import pytest

from tests.unit.pytest_plugin.conftest import Project

ONE = "@pytest.mark.falsify_toy_001\ndef test_one(): pass\n"


def refused(result: pytest.RunResult, *said: str) -> None:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = str(result.stderr)
    for words in said:
        assert words in text
    assert "Traceback" not in text


def test_every_falsifier_is_a_marker_that_strict_markers_know(project: Project) -> None:
    project.write(ONE, falsifiers=2)
    project.run("-k", "one").assert_outcomes(passed=1)
    project.run("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.falsify_toy_001*FALSIFY-TOY-001: the rule*", "@pytest.mark.falsify_toy_002*"]
    )


@pytest.mark.parametrize("strict", [True, False])
def test_a_marker_with_no_contract_is_a_collection_error_and_the_nearest_is_offered(
    project: Project, strict: bool
) -> None:
    project.write(ONE + "@pytest.mark.falsify_toy_01\ndef test_two(): pass\n")
    options = () if strict else ("-o", "addopts=", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    result = project.run(*options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*no contract has a falsifier of the marker 'falsify_toy_01'*(FALSIFY-TOY-001)*"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("role='contrl'", "'prediction', 'control'"),
        ("level='gpu'", "'algorithm', 'live'"),
        ("rolle='control'", "takes no rolle="),
        ("'control'", "takes no 'control'"),
    ],
)
def test_a_marker_with_other_arguments_is_a_collection_error(
    project: Project, arguments: str, said: str
) -> None:
    project.write(f"@pytest.mark.falsify_toy_001({arguments})\ndef test_x(): pass\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert said in str(result.stdout)


def test_a_falsifier_with_no_test_is_an_error_of_the_whole_suite(project: Project) -> None:
    project.write(ONE, falsifiers=3)
    for arguments in ((), ("tests",), ("--collect-only",)):
        refused(project.run(*arguments), "FALSIFY-TOY-002", "FALSIFY-TOY-003", "toy-v1.yaml")


@pytest.mark.parametrize(
    "arguments",
    [("-k", "one"), ("-m", "falsify_toy_001"), ("tests/test_toy.py::test_one",), ("--deselect=tests/x.py",)],
    ids=" ".join,
)
def test_and_none_where_a_part_of_it_was_asked_for(project: Project, arguments: tuple[str, ...]) -> None:
    project.write(ONE, falsifiers=2)
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)


def test_a_falsifier_that_cargo_tests_needs_no_test_here(project: Project) -> None:
    project.write(ONE, falsifiers=2)
    contract = project.root / "contracts" / "toy-v1.yaml"
    contract.write_text(contract.read_text().replace("pytest -m falsify_toy_002", "cargo test -p toy two"))
    assert project.run().ret == pytest.ExitCode.OK


def test_two_ids_that_give_one_marker_are_refused(project: Project) -> None:
    project.write(ONE)
    text = (project.root / "contracts" / "toy-v1.yaml").read_text()
    project.file("contracts/other-v1.yaml", text.replace("FALSIFY-TOY-001", "FALSIFY_TOY-001"))
    refused(project.run(), "FALSIFY_TOY-001", "FALSIFY-TOY-001", "one marker, falsify_toy_001")


def test_a_broken_contract_is_refused_by_file_and_line(project: Project) -> None:
    project.write(ONE)
    project.file("contracts/broken-v1.yaml", "metadata:\n  id: C\n  id: D\n")
    refused(project.run(), "broken-v1.yaml:3")


def test_contracts_from_elsewhere_take_the_place_of_those_configured(project: Project) -> None:
    project.write(ONE)
    (project.root / "contracts").rename(project.root / "elsewhere")
    refused(project.run(), "contracts")
    project.run("--contracts", "elsewhere").assert_outcomes(passed=1)


def test_an_unknown_key_of_the_table_is_refused_with_the_known_ones(project: Project) -> None:
    project.write(ONE, table='evidence_dir = "x"')
    refused(project.run(), "'evidence_dir'", "did you mean 'evidence-dir'", "gpu-lane")


def test_the_closest_of_two_markers_on_a_test_counts(project: Project) -> None:
    project.write("""
        @pytest.mark.falsify_toy_001(role="control")
        class TestX:
            def test_control(self): pass
            @pytest.mark.falsify_toy_001
            def test_prediction(self): pass
    """)
    project.run().stdout.fnmatch_lines(["*SURVIVED*1 prediction and 1 control passed"])
