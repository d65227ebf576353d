"""A small project of a user: a contract, code, tests that decide its falsifiers, and bundles of pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from apr_falsify.evidence.bundle import Draft, read_bundle, write_bundle
from apr_falsify.evidence.outcome import outcome_of

if TYPE_CHECKING:
    from apr_falsify.evidence.sign import SigningKey

ONE, TWO = "FALSIFY-TOY-001", "FALSIFY-TOY-002"
CONTRACT = "contracts/toy-v1.yaml"
BLOCKER, PARTIAL = "BLOCKER_FIXTURE_ABSENT", "PARTIAL_ALGORITHM_LEVEL"

FILES = {
    "pyproject.toml": """\
[project]
name = "toy"
version = "1"

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
addopts = ["--strict-markers", "-p", "no:cacheprovider"]

[tool.apr-falsify]
contracts = ["contracts"]
evidence-dir = "evidence"
""",
    ".gitignore": "__pycache__/\n",
    CONTRACT: f"""\
metadata:
  id: C-TOY
  version: 1.0.0
  status: {BLOCKER}
  description: |
    Lists are split.

    v1.0.0 (2026-01-01): First.
discharge:
  lane: bench
  subject: {{runtime: apr, version: '>=0.72'}}
falsification_tests:
  - id: {ONE}
    rule: 'a list is split at commas'
    prediction: 'two names give two stages'
    test: pytest -m falsify_toy_001
    if_fails: 'the parser is wrong'
    status: {BLOCKER}
    algorithm_evidence:
      file_paths: [src/toy.py]
      function_names: [split]
  - id: {TWO}
    rule: 'a name has no blanks around it'
    prediction: 'blanks go'
    test: pytest -m falsify_toy_002
    if_fails: 'the parser is wrong'
    status: {BLOCKER}
    algorithm_evidence:
      file_paths: [src/blanks.py]
      function_names: [strip]
""",
    "src/toy.py": """\
from blanks import strip


def split(text):
    return [strip(one) for one in text.split(",")]
""",
    "src/blanks.py": "def strip(text):\n    return text.strip()\n\n\ndef unused():\n    return 1\n",
    "tests/test_toy.py": """\
import pytest
from blanks import strip
from toy import split


@pytest.mark.falsify_toy_001
def test_two_names_give_two_stages():
    assert split("a, b") == ["a", "b"]


@pytest.mark.falsify_toy_001(role="control")
def test_a_list_that_is_not_split_is_seen():
    assert split("a, b") != ["a, b"]


@pytest.mark.falsify_toy_002
def test_blanks_go():
    assert strip(" a ") == "a"
""",
}


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def measure(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as the user does, leaving bundles."""
    command = [sys.executable, "-m", "pytest", "-q", "--evidence-dir=evidence", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def make_project(root: Path) -> Path:
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(root, "init", "-q")
    commit(root)
    done = measure(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "state")


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the bundles of both falsifiers, made once by a real run of pytest."""
    return make_project(tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture
def toy(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working directory."""
    root = tmp_path / "project"
    shutil.copytree(measured, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")


def rewritten(bundle: Path, *, key: SigningKey | None = None, **changes: Any) -> str:
    """Write a bundle anew with other facts, as if they had been measured; return its statement's digest."""
    facts = replace(read_bundle(bundle).facts, **changes)
    if "tests" in changes:
        facts = replace(facts, outcome=outcome_of(facts.tests))
    return write_bundle(Draft(facts=facts), bundle, key=key, report=False)
