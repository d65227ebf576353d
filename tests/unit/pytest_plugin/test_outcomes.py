"""What the tests of a falsifier say together, and what a session says by its exit code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.pytest_plugin.conftest import Project

Said = Callable[..., str]
MARK = "@pytest.mark.falsify_toy_001\n"

BROKEN = "@pytest.fixture\ndef broken():\n    {}\n" + MARK + "def test_x(broken): pass"
CONTROL = "@pytest.mark.falsify_toy_001(role='control')\ndef test_c(): {}\n"
X = "tests/test_toy.py::test_x"
IDLE = "expected to fail, so it decides nothing"
ENDINGS = {
    "pass": (MARK + "def test_x(): pass", "SURVIVED 1 prediction passed", 0),
    "fail": (MARK + "def test_x(): assert 1 == 2", f"FALSIFIED {X}: failed: assert 1 == 2", 1),
    "fail by name": (MARK + "def test_x(): pytest.fail('refuted')", f"FALSIFIED {X}: failed: refuted", 1),
    "any exception": (MARK + "def test_x(): 1 / 0", f"FALSIFIED {X}: failed: division by zero", 1),
    "skip": (MARK + "def test_x(): pytest.skip('no GPU')", f"NOT_RUN {X}: skipped: no GPU", 1),
    "skip mark": (
        MARK + "@pytest.mark.skip(reason='later')\ndef test_x(): pass",
        f"NOT_RUN {X}: skipped: later",
        1,
    ),
    "error in set-up": (BROKEN.format("raise RuntimeError('no')"), f"ERROR {X}: error: no", 1),
    "error in tear-down": (BROKEN.format("yield\n    raise RuntimeError('no')"), f"ERROR {X}: error: no", 1),
    "a file is missing": (
        MARK + "def test_x(): open('/no/such/file')",
        f"ERROR {X}: error: [[]Errno 2] No such file or directory: '/no/such/file'",
        1,
    ),
    "xfail": (
        MARK + "@pytest.mark.xfail(reason='known')\ndef test_x(): assert 0",
        f"NOT_RUN {X}: {IDLE}: known",
        1,
    ),
    "xfail that is not run": (
        MARK + "@pytest.mark.xfail(run=False, reason='known')\ndef test_x(): pass",
        f"NOT_RUN {X}: {IDLE}: *known",
        1,
    ),
    "xpass": (
        MARK + "@pytest.mark.xfail\ndef test_x(): pass",
        f"NOT_RUN {X}: passed although expected to fail",
        1,
    ),
    "strict xpass": (
        MARK + "@pytest.mark.xfail(strict=True, reason='known')\ndef test_x(): pass",
        f"NOT_RUN {X}: passed although expected to fail: *",
        1,
    ),
    "one of two skipped": (
        MARK + "@pytest.mark.parametrize('x', [1, 2])\ndef test_x(x):\n    if x == 2: pytest.skip('half')",
        f"NOT_RUN {X}[[]2]: skipped: half",
        1,
    ),
    "no parameters": (
        MARK + "@pytest.mark.parametrize('x', [])\ndef test_x(x): pass",
        f"NOT_RUN {X}*: skipped: *empty parameter set*",
        1,
    ),
    "a control fails": (
        CONTROL.format("assert 0") + MARK + "def test_x(): assert 0",
        "ERROR tests/test_toy.py::test_c: control failed: assert 0",
        1,
    ),
    "controls alone": (
        CONTROL.format("pass"),
        "NOT_RUN only controls ran: nothing measured the prediction",
        1,
    ),
    "a live test without a lane": (
        "@pytest.mark.falsify_toy_001(level='live')\ndef test_l(): assert 0\n" + MARK + "def test_x(): pass",
        "SURVIVED 1 prediction passed",
        0,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_is_an_outcome_and_an_exit_code(project: Project, ending: str) -> None:
    tests, said, code = ENDINGS[ending]
    result = project.write(tests).run()
    result.stdout.fnmatch_lines([f"FALSIFY-TOY-001  {said.partition(' ')[0]:9}  {said.partition(' ')[2]}"])
    assert result.ret == code


def test_a_session_in_which_one_falsifier_survived_passes_although_another_was_not_run(
    project: Project,
) -> None:
    tests = MARK + "def test_x(): pass\n@pytest.mark.falsify_toy_002\ndef test_y(): pytest.skip('later')\n"
    result = project.write(tests, falsifiers=2).run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["FALSIFY-TOY-001  SURVIVED*", "FALSIFY-TOY-002  NOT_RUN *"])


def test_a_falsifier_of_live_tests_alone_says_what_it_needs(project: Project, said: Said) -> None:
    project.write("@pytest.mark.falsify_toy_001(level='live')\ndef test_l(): pass\ndef test_other(): pass")
    result = project.run("-m", "falsify_toy_001")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "NOT_RUN" in said(result)
    assert "--gpu or --lane=NAME" in said(result)


TWO = MARK + "def test_one(): pass\n" + MARK + "def test_two(): assert 0\n"


@pytest.mark.parametrize(
    "arguments",
    [("-k", "one"), ("tests/test_toy.py::test_one",), ("--deselect=tests/test_toy.py::test_two",)],
)
def test_a_falsifier_selected_in_part_is_not_judged_and_fails_nothing(
    project: Project, arguments: tuple[str, ...]
) -> None:
    result = project.write(TWO).run(*arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["selected in part, so not judged: FALSIFY-TOY-001"])
    result.stdout.no_fnmatch_line("*SURVIVED*")


def test_but_one_that_is_asked_for_by_its_marker_does_not_pass_in_part(project: Project, said: Said) -> None:
    result = project.write(TWO).run("-m", "falsify_toy_001", "-k", "one")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "NOT_RUN tests/test_toy.py::test_two: deselected" in said(result)


def test_a_test_in_a_file_that_is_not_collected_is_told(project: Project, said: Said) -> None:
    project.write(MARK + "def test_one(): pass\n")
    project.file(
        "tests/test_more.py",
        "import pytest\npytest.importorskip('no_such_module')\n" + MARK + "def test_two(): pass\n",
    )
    result = project.run("-m", "falsify_toy_001")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "NOT_RUN tests/test_more.py::test_two: not collected" in said(result)


@pytest.mark.parametrize("option", ["--exitfirst", "--maxfail=1"])
def test_what_was_not_begun_when_the_session_stopped_is_unfinished(
    project: Project, said: Said, option: str
) -> None:
    tests = "def test_a(): assert 0\n" + MARK + "def test_x(): pass\n"
    result = project.write(tests).run(option)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "NOT_RUN tests/test_toy.py::test_x: did not finish" in said(result)


def test_a_test_that_was_interrupted_is_unfinished(project: Project, said: Said) -> None:
    tests = MARK + "def test_a(): pass\n" + MARK + "def test_x(): raise KeyboardInterrupt\n"
    result = project.write(tests).spawn()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "NOT_RUN tests/test_toy.py::test_x: did not finish" in said(result)


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only"])
def test_a_session_that_only_sets_up_proves_nothing(project: Project, option: str) -> None:
    result = project.write(MARK + "def test_x(): assert 0\n").run(option)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*SURVIVED*")


@pytest.mark.parametrize("arguments", [("--collect-only",), ("--co", "-q")])
def test_collecting_alone_judges_nothing(project: Project, arguments: tuple[str, ...]) -> None:
    result = project.write(TWO).run(*arguments)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("FALSIFY-TOY-001*")


def test_the_last_failed_alone_judge_nothing(project: Project, said: Said) -> None:
    project.write(TWO)
    cache = ("-o", "addopts=--strict-markers")
    assert "FALSIFIED" in said(project.run(*cache))
    result = project.run(*cache, "--lf")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["selected in part, so not judged: FALSIFY-TOY-001"])


def test_parameters_and_classes_count_each_for_itself(project: Project, said: Said) -> None:
    tests = """
        @pytest.mark.falsify_toy_001
        class TestX:
            @pytest.mark.parametrize("x", [1, 2, 3])
            def test_a(self, x): pass
            class TestInner:
                def test_b(self): pass
        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.falsify_toy_001), 2])
        def test_c(x): pass
    """
    assert said(project.write(tests).run()) == "FALSIFY-TOY-001 SURVIVED 5 predictions passed"


def test_a_subtest_that_fails_refutes(project: Project, said: Said) -> None:
    tests = (
        MARK
        + "def test_x(subtests):\n    with subtests.test('a'): assert 0\n    with subtests.test('b'): pass\n"
    )
    if not hasattr(pytest, "Subtests"):
        tests = MARK + "def test_x(): assert 0\n"  # pytest 8 has none
    assert "FALSIFIED" in said(project.write(tests).run())


def test_a_unittest_case_counts_too(project: Project, said: Said) -> None:
    tests = "import unittest\n" + MARK + "class TestX(unittest.TestCase):\n    def test_a(self): pass\n"
    assert "SURVIVED 1 prediction passed" in said(project.write(tests).run())


def test_a_typed_error_is_printed_without_a_traceback(project: Project, said: Said) -> None:
    tests = (
        "from apr_falsify.errors import ModelError\n"
        + MARK
        + "def test_x(): raise ModelError('is no model', where='m.apr', remedy='do that')\n"
    )
    result = project.write(tests).run()
    assert "ERROR tests/test_toy.py::test_x: error: m.apr: is no model" in said(result)
    result.stdout.fnmatch_lines(["m.apr: is no model", "  try: do that"])
    result.stdout.no_fnmatch_line("*raise ModelError*")
