"""A skip has its reason in tests/skips.md, and a test that needs something says so by its marker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
SETTINGS = """
[pytest]
addopts = -p no:cacheprovider --strict-markers
markers =
    real_apr: needs the real apr
    live: runs llama.cpp
"""
TESTS = """
import pytest
def test_unlisted(): pytest.skip("not today")
def test_unmarked(): pytest.skip("no apr binary on PATH")
@pytest.mark.live
def test_marked_otherwise(): pytest.skip("no apr binary on PATH")
@pytest.mark.real_apr
def test_marked(): pytest.skip("no apr binary on PATH")
@pytest.fixture
def apr(): pytest.skip("no apr binary on PATH")
def test_unmarked_by_its_fixture(apr): pass
def test_that_needs_no_marker(): pytest.skip("no pv binary on PATH")
@pytest.mark.xfail(reason="not today")
def test_expected(): assert 0
"""


def test_a_skip_that_is_not_listed_or_whose_test_is_not_marked_fails(pytester: pytest.Pytester) -> None:
    shutil.copy(HERE / "conftest.py", pytester.path)
    shutil.copy(HERE / "skips.md", pytester.path)
    pytester.makefile(".ini", pytest=SETTINGS)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-rA")
    result.assert_outcomes(failed=3, errors=1, skipped=2, xfailed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*skipped for a reason that tests/skips.md does not list: not today",
            "*skipped without the marker real_apr, which says what it needs: no apr binary on PATH",
            "FAILED *test_unlisted*",
            "FAILED *test_unmarked*",
            "FAILED *test_marked_otherwise*",
            "ERROR *test_unmarked_by_its_fixture*",
        ]
    )
