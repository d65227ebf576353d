"""Generated projects that real pytest runs on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

# Imported here, once: what a run in this process imports is forgotten after it, and numpy cannot be twice.
import apr_falsify.commands.sides
import apr_falsify.compare.localise
import apr_falsify.evidence.binding
import apr_falsify.evidence.bundle
import apr_falsify.evidence.earn
import apr_falsify.pytest_plugin.drafting
import apr_falsify.pytest_plugin.finish
import apr_falsify.pytest_plugin.session
import apr_falsify.pytest_plugin.verdict  # noqa: F401 - for its being loaded, see above

PYPROJECT = """\
[project]
name = "toy"

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--strict-markers", "-p", "no:cacheprovider"]

[tool.apr-falsify]
contracts = ["contracts"]
{table}
"""
FALSIFIER = """\
- id: {id}
  rule: the rule of {id}
  prediction: p
  test: pytest -m {marker}
  status: BLOCKER_FIXTURE_ABSENT
"""
WITHOUT = ("-p", "no:unraisableexception", "-p", "no:hypothesispytest", "-p", "no:anyio")
"""What would cost seconds in each run: garbage collections over all of torch, modules imported anew."""

Result = pytest.RunResult


class Project:
    """A project with falsifiers FALSIFY-TOY-001, 002 ..., and its tests.

    Args:
        pytester: pytest's own fixture; its folder is the project.

    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.root: Path = pytester.path

    def write(self, tests: str, *, falsifiers: int = 1, table: str = "", lanes: str = "") -> Project:
        """Write contract, settings and ``tests/test_toy.py``."""
        ids = [f"FALSIFY-TOY-{number:03}" for number in range(1, falsifiers + 1)]
        rows = [FALSIFIER.format(id=one, marker=one.lower().replace("-", "_")) for one in ids]
        self.file("pyproject.toml", PYPROJECT.format(table=table) + lanes)
        self.file(
            "contracts/toy-v1.yaml",
            "metadata: {id: C-TOY, version: 1.0.0}\nfalsification_tests:\n" + "".join(rows),
        )
        self.file("tests/test_toy.py", "import pytest\n" + textwrap.dedent(tests))
        return self

    def file(self, name: str, content: str) -> Path:
        """Write one file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content), encoding="utf-8")
        return path

    def run(self, *arguments: str) -> Result:
        """Run pytest in this process, without others' plugins."""
        return self.pytester.runpytest_inprocess(*WITHOUT, *arguments)

    def spawn(self, *arguments: str) -> Result:
        """Run pytest in a process of its own."""
        return self.pytester.runpytest_subprocess(*arguments, timeout=600)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    """A project to be filled."""
    return Project(pytester)


@pytest.fixture
def said() -> Callable[[Result, str], str]:
    """A function that returns the line of the summary on a falsifier."""

    def line(result: Result, falsifier: str = "FALSIFY-TOY-001") -> str:
        found = [one for one in result.outlines if one.startswith(falsifier)]
        assert len(found) == 1, result.outlines
        return " ".join(found[0].split())

    return line
