"""What must not pass by accident: tests left out, outcomes rewritten, other code run than is bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.pytest_plugin.scope import names_marker
from tests.unit.pytest_plugin.conftest import Project

Said = Callable[..., str]
MARK = "@pytest.mark.falsify_toy_001\n"
TWO = MARK + "@pytest.mark.parametrize('x', ['good', 'bad'])\ndef test_x(x): assert x == 'good'\n"
PASSES = MARK + "def test_x(): pass\n"
EVIDENCE = "--evidence-dir=evidence"
CALLS = "from port import answer\n" + MARK + "def test_x(): assert answer() == 42\n"
ANSWER = "def answer():\n    return 42\n"


def bundle_of(project: Project) -> Path:
    return project.root / "evidence" / "FALSIFY-TOY-001"


def test_one_parameter_by_its_node_id_is_a_part_of_the_falsifier(project: Project) -> None:
    result = project.write(TWO).run("tests/test_toy.py::test_x[good]", EVIDENCE)
    result.stdout.fnmatch_lines(["selected in part, so not judged: FALSIFY-TOY-001"])
    assert not bundle_of(project).exists()


ADDS_A_MARKER = """
import pytest
def pytest_collection_modifyitems(items):
    for item in items:
        if item.name == "test_bad":
            item.add_marker(pytest.mark.{marker})
"""


def test_a_marker_that_a_conftest_adds_counts(project: Project, said: Said) -> None:
    project.write(PASSES + "def test_bad(): assert 0\n")
    project.file("tests/conftest.py", ADDS_A_MARKER.format(marker="falsify_toy_001"))
    assert "FALSIFIED tests/test_toy.py::test_bad: failed" in said(project.run())


def test_a_marker_of_no_falsifier_that_a_conftest_adds_is_refused(project: Project) -> None:
    project.write(PASSES + "def test_bad(): pass\n")
    project.file("tests/conftest.py", ADDS_A_MARKER.format(marker="falsify_toy_009"))
    result = project.run("-o", "addopts=", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no contract has a falsifier of the marker 'falsify_toy_009'*"])


REWRITES = """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.outcome, report.longrepr = "passed", None
    return report
"""


FORGETS = """
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    call.excinfo = None
"""


@pytest.mark.parametrize("conftest", [REWRITES, FORGETS], ids=["the report", "the error"])
def test_a_failure_that_a_plugin_reports_as_passed_is_an_error(
    project: Project, said: Said, conftest: str
) -> None:
    project.write(TWO).file("tests/conftest.py", conftest)
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "ERROR tests/test_toy.py::test_x[bad]: error: it raised, and a plugin" in said(result)


def test_a_test_that_returns_what_it_should_assert_decides_nothing(project: Project, said: Said) -> None:
    project.write(MARK + "def test_x(): return 1 == 2\n")
    result = project.run("-W", "ignore")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "ERROR tests/test_toy.py::test_x: error: " in said(result)
    assert "returned <class 'bool'>" in said(result)


def test_a_python_that_leaves_assertions_out_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("from helper import check\n" + MARK + "def test_x(): check(1, 2)\n")
    project.file("tests/helper.py", "def check(a, b):\n    assert a == b\n")
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    result = project.spawn(EVIDENCE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*PYTHONOPTIMIZE, which leaves assertions out*"])


def test_a_run_that_did_not_finish_leaves_the_bundle_that_is_there(project: Project) -> None:
    project.write(PASSES + MARK + "def test_y(): pass\n").run(EVIDENCE)
    before = read_bundle(bundle_of(project)).statement_sha256
    project.write(PASSES + MARK + "def test_y(): pytest.exit('enough')\n").run(EVIDENCE)
    assert read_bundle(bundle_of(project)).statement_sha256 == before


@pytest.mark.parametrize(
    ("expression", "asks"),
    [
        ("falsify_a", True),
        ("slow or falsify_a", True),
        ("falsify_a(role='control')", True),
        ("not (slow and not falsify_a)", True),
        ("not falsify_a", False),
        ("not  falsify_a", False),
        ("not (slow or falsify_a)", False),
        ("falsify_ab", False),
        ("", False),
        ("falsify_a and", False),
    ],
)
def test_a_falsifier_is_asked_for_where_its_marker_is_not_excluded(expression: str, asks: bool) -> None:
    assert names_marker(expression, "falsify_a") is asks


def committed(project: Project) -> None:
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "x"],
    ):
        project.pytester.run("git", *command)


def test_uncommitted_code_is_told_though_bundles_are_written_among_it(project: Project) -> None:
    project.write(PASSES).file(".gitignore", "__pycache__/\n")
    committed(project)
    project.file("tests/helper.py", "X = 1\n")
    for _ in range(2):
        project.run("--evidence-dir=.")
    facts = read_bundle(project.root / "FALSIFY-TOY-001").facts
    assert facts.sources.uncommitted == ("tests/helper.py",)


def test_where_git_fails_no_source_is_taken_for_committed(project: Project) -> None:
    project.write(PASSES)
    committed(project)
    (project.root / ".git" / "index").write_bytes(b"no index")
    result = project.run(EVIDENCE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no bundle*: git cannot say which sources are uncommitted"])


IGNORES = "__pycache__/\nevidence/\n"


@pytest.mark.parametrize(
    ("ignored", "file"),
    [("port.py\n", "src/port.py"), ("conftest.py\n", "tests/conftest.py"), ("/*\n", "src/port.py")],
    ids=["a bound module", "a conftest", "the whole project"],
)
def test_code_that_git_ignores_is_in_no_commit(project: Project, ignored: str, file: str) -> None:
    project.write(CALLS).file("src/port.py", ANSWER)
    project.file("tests/conftest.py", "")
    project.file(".gitignore", IGNORES + ignored)
    project.pytester.run("git", "init", "-q")
    project.pytester.run("git", "add", "-f", ".gitignore")
    committed(project)
    project.run("-o", "pythonpath=src", EVIDENCE)
    assert file in read_bundle(bundle_of(project)).facts.sources.uncommitted


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_was_told_not_to_look_for_is_uncommitted(project: Project, flag: str) -> None:
    project.write(CALLS).file("src/port.py", ANSWER)
    project.file(".gitignore", IGNORES)
    project.file("table.txt", "1\n")
    committed(project)
    project.pytester.run("git", "update-index", flag, "src/port.py", "table.txt")
    project.file("table.txt", "2\n")
    project.run("-o", "pythonpath=src", EVIDENCE)
    assert read_bundle(bundle_of(project)).facts.sources.uncommitted == ("table.txt",)


def test_an_uncommitted_file_may_have_any_name(project: Project) -> None:
    project.write(PASSES)
    committed(project)
    Path(os.fsdecode(os.fsencode(project.root) + b"/caf\xe9")).touch()
    project.run(EVIDENCE)
    assert "caf\\xe9" in read_bundle(bundle_of(project)).facts.sources.uncommitted


def test_a_file_in_place_of_the_folder_for_bundles_is_refused(project: Project) -> None:
    project.write(PASSES).file("evidence", "a file\n")
    result = project.run(EVIDENCE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--evidence-dir: */evidence is there already, and no folder"])


def test_an_id_that_is_no_name_of_a_folder_leaves_no_bundle_elsewhere(project: Project) -> None:
    project.write("import pytest\n@pytest.mark.falsify_toy_001\ndef test_x(): pass\n")
    contract = project.root / "contracts" / "toy-v1.yaml"
    contract.write_text(contract.read_text().replace("id: FALSIFY-TOY-001", "id: ../FALSIFY-TOY-001"))
    result = project.run("-o", "addopts=", "-W", "ignore::pytest.PytestUnknownMarkWarning", EVIDENCE)
    assert result.ret != pytest.ExitCode.OK
    assert not (project.root / "FALSIFY-TOY-001").exists()


def test_code_that_was_written_while_the_tests_ran_is_not_bound(project: Project) -> None:
    edits = MARK + "def test_y(): open('src/port.py', 'a').write('# later')\n"
    project.write(CALLS + edits).file("src/port.py", ANSWER)
    result = project.spawn("-o", "pythonpath=src", EVIDENCE)
    result.stdout.fnmatch_lines(["*SURVIVED, and no bundle: */src/port.py: was written while the tests ran*"])
    assert not bundle_of(project).exists()


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_another_copy_of_the_code_is_not_taken_for_the_bound_one(
    project: Project, options: tuple[str, ...]
) -> None:
    project.write(CALLS).file("src/port.py", ANSWER)
    project.file("installed/port.py", "def answer():\n    return 40 + 2\n")
    result = project.spawn("-o", "pythonpath=installed", EVIDENCE, *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the tests imported port from *installed/port.py, and the evidence*"])
    assert not bundle_of(project).exists()


def test_a_second_session_of_one_process_binds_what_is_there_then(project: Project) -> None:
    project.write(CALLS).file("src/port.py", ANSWER)
    found = []
    for answer in ("return 42", "return 6 * 7"):
        project.file("src/port.py", ANSWER.replace("return 42", answer))
        project.run("-o", "pythonpath=src", EVIDENCE)
        found.append(read_bundle(bundle_of(project)).facts.bound.functions["src/port.py::answer"])
    assert found[0] != found[1]


def test_the_code_that_is_bound_and_ran_leaves_a_bundle(project: Project) -> None:
    project.write(CALLS).file("src/port.py", ANSWER)
    project.spawn("-o", "pythonpath=src", EVIDENCE)
    assert "src/port.py::answer" in read_bundle(bundle_of(project)).facts.bound.functions
