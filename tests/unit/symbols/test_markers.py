"""The static finder of marked tests, against what pytest itself collects with ``-m``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apr_falsify.symbols.markers import is_marker, marked_tests, selected_markers
from apr_falsify.symbols.tree import SourceTree

PYPROJECT = """
[tool.pytest.ini_options]
testpaths = ["tests"]
markers = ["falsify_a_001", "falsify_b_001"]
"""
PLACES = """
import pytest
import pytest as pt
from pytest import mark, param

alias = pytest.mark.falsify_a_001

@pytest.mark.falsify_a_001
def test_plain(): pass

@pytest.mark.falsify_a_001(role="control")
async def test_called(): pass

@pt.mark.falsify_a_001
def test_renamed(): pass

@mark.falsify_a_001
def test_from_import(): pass

@alias
def test_alias(): pass

@pytest.mark.falsify_b_001
def test_of_another(): "falsify_a_001"

@pytest.mark.parametrize("x", [1, param(2, marks=pytest.mark.falsify_a_001)])
def test_one_of_its_parameters(x): pass

@pytest.mark.falsify_a_001
class TestClass:
    def test_within(self): pass
    class TestInner:
        def test_deep(self): pass
    def helper(self): pass

class TestOwn:
    pytestmark = [pytest.mark.falsify_a_001]
    def test_by_class_mark(self): pass

if True:
    @pytest.mark.falsify_a_001
    def test_under_a_condition(): pass

@pytest.mark.falsify_a_001
def not_a_test(): pass

def test_bare(): pass
"""
WHOLE = "import pytest\npytestmark = pytest.mark.falsify_a_001\ndef test_by_module(): pass\n"
OUTSIDE = "import pytest\n@pytest.mark.falsify_a_001\ndef test_elsewhere(): pass\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in {
        "pyproject.toml": PYPROJECT,
        "tests/test_places.py": PLACES,
        "tests/deep/test_whole.py": WHOLE,
        "tests/helpers.py": OUTSIDE,
        "scripts/test_outside.py": OUTSIDE,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def collected_by_pytest(project: Path, marker: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--strict-markers", "-m", marker], cwd=project, capture_output=True, text=True, check=False
    )
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize("marker", ["falsify_a_001", "falsify_b_001"])
def test_it_finds_exactly_what_pytest_collects(project: Path, marker: str) -> None:
    found = {one.node for one in marked_tests(SourceTree(project), marker) if not one.why_not}
    assert found == collected_by_pytest(project, marker)
    assert found


def test_a_marked_function_that_pytest_would_not_collect_comes_with_the_reason(project: Path) -> None:
    idle = [one for one in marked_tests(SourceTree(project), "falsify_a_001") if one.why_not]
    assert [one.parts for one in idle] == [("TestClass", "helper"), ("not_a_test",)]
    assert "does not match" in idle[-1].why_not


def test_a_test_that_is_skipped_always_is_told(tmp_path: Path) -> None:
    code = "import pytest\n@pytest.mark.skip\n@pytest.mark.falsify_a_001\ndef test_x(): pass\n"
    (tmp_path / "test_x.py").write_text(code)
    (found,) = marked_tests(SourceTree(tmp_path), "falsify_a_001")
    assert found.skipped


def test_a_marker_that_nothing_carries_is_found_nowhere(project: Path) -> None:
    assert marked_tests(SourceTree(project), "falsify_c_001") == ()


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("pytest -m falsify_a_001", ("falsify_a_001",)),
        ("pytest -m falsify_a_001 --gpu", ("falsify_a_001",)),
        ("PYTHONPATH=. uv run python -m pytest -q -m 'falsify_a_001'", ("falsify_a_001",)),
        ('pytest -m="falsify_a_001 and not slow"', ("falsify_a_001 and not slow",)),
        ("pytest -m a\npytest -m b\npytest -m a", ("a", "b")),
        ("python -m pytest tests/test_x.py::test_y", ()),
        ("cargo test -p crate", ()),
        ("the -m option of pytest", ()),
    ],
)
def test_markers_are_read_from_commands(text: str, markers: tuple[str, ...]) -> None:
    assert selected_markers(text) == markers


def test_an_expression_is_no_marker() -> None:
    assert is_marker("falsify_a_001")
    assert not is_marker("a and b")
    assert not is_marker("not")
