"""``scripts/mutate.py`` on a project of one small file: killed, alive, equivalent, and a second start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "mutate.py"

CODE = """
def larger(a, b):
    return a if a > b else b


def never(a):
    return a + 1
"""

TESTS = """
from apr_falsify.numerics.arithmetic import larger


def test_larger():
    assert (larger(1, 2), larger(2, 1)) == (2, 2)


def test_that_fails_anyway():
    assert larger(1, 1) == 2
"""

SPINNING = """
def spin(a):
    while a > 0:
        a -= 1
    return a
"""

EQUIVALENT = """
src/apr_falsify/numerics/arithmetic.py:
  larger:
    - changes: ["a > b -> a >= b"]
      reason: of two equal numbers either is the larger
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "src/apr_falsify/__init__.py": "",
        "src/apr_falsify/pytest_plugin/__init__.py": "",
        "src/apr_falsify/pytest_plugin/entry.py": "",  # which this environment's pytest loads
        "src/apr_falsify/numerics/arithmetic.py": CODE,
        "tests/unit/test_arithmetic.py": TESTS,
        "scripts/mutants/equivalent.yaml": EQUIVALENT,
        "pyproject.toml": "[tool.pytest.ini_options]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def mutate(project: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), "rules", *options]
    path = os.pathsep.join([str(project / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_a_test_notices_is_killed_and_what_none_does_is_reported(project: Path) -> None:
    code, output = mutate(project, "--goal", "1.0")
    assert "does not pass by itself: tests/unit/test_arithmetic.py::test_that_fails_anyway" in output
    assert "unreached: src/apr_falsify/numerics/arithmetic.py | never | a + 1 -> a - 1" in output
    assert "larger | a > b -> a >= b" not in output.partition("rules: 1")[2]
    assert "1 equivalent" in output
    assert code == 1

    again, output = mutate(project, "--goal", "0.3")
    assert "measuring" not in output  # nothing changed: everything is known
    assert again == 0


def test_a_listed_mutant_that_a_test_notices_is_reported(project: Path) -> None:
    wrong = EQUIVALENT.replace("a > b -> a >= b", "a > b -> a <= b")
    (project / "scripts/mutants/equivalent.yaml").write_text(wrong)
    code, output = mutate(project, "--goal", "0.1")
    assert "listed as equivalent, but killed by tests/unit/test_arithmetic.py::test_larger" in output
    assert code == 1


def test_a_line_of_the_list_that_fits_no_mutant_is_reported(project: Path) -> None:
    listed = EQUIVALENT.replace("a > b -> a >= b", "a > c -> a >= c")
    (project / "scripts/mutants/equivalent.yaml").write_text(listed)
    code, output = mutate(project, "--goal", "0.1")
    assert (
        "no such mutant is there: src/apr_falsify/numerics/arithmetic.py | larger | a > c -> a >= c" in output
    )
    assert code == 1


def test_every_change_of_a_function_or_constant_may_be_listed_at_once(project: Path) -> None:
    listed = EQUIVALENT + "  never:\n    - changes: ['*']\n      reason: nobody calls it\n"
    (project / "scripts/mutants/equivalent.yaml").write_text(listed)
    code, output = mutate(project, "--goal", "1.0")
    assert "5 equivalent, 0 alive" in output
    assert code == 0


def test_a_changed_test_is_tried_again_and_a_kill_by_another_file_stands(project: Path) -> None:
    mutate(project)
    test = project / "tests/unit/test_blocks_by_hand.py"
    test.write_text(
        "from apr_falsify.numerics.arithmetic import never\n\n\ndef test_never():\n    assert never(1) == 2\n"
    )
    _, output = mutate(project)
    assert "measuring 1 tests" in output
    assert "killed" in output.partition("never | a + 1 -> a - 1")[0].splitlines()[-1]
    assert "larger | a > b -> a <= b" not in output


def test_a_mutant_that_never_ends_is_killed(project: Path) -> None:
    (project / "src/apr_falsify/numerics/arithmetic.py").write_text(SPINNING)
    (project / "tests/unit/test_arithmetic.py").write_text(
        "from apr_falsify.numerics.arithmetic import spin\n\n\ndef test_spin():\n    assert spin(3) == 0\n"
    )
    _, output = mutate(project, "--hang", "0.2")
    assert "hangs" in output.partition("spin | a -= 1 -> pass")[0].splitlines()[-1]
    assert "alive: src/apr_falsify/numerics/arithmetic.py | spin | a -= 1 -> pass" not in output


def test_a_room_that_is_not_there_is_refused(project: Path) -> None:
    command = [sys.executable, str(SCRIPT), "kitchen"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 2
    assert "no room is called kitchen; there are compare, rules, operators, evidence" in done.stderr
