"""Every rule has a tree that breaks it, named for its code, and a twin that differs in just that.

``tree`` is the project whose contract is wrong, ``valid`` holds the files that differ in the twin, ``before``
what was committed where the rule compares with a commit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.engine import run
from apr_falsify.contracts.outcome import ValidationOutcome, judge
from apr_falsify.contracts.rules import ERROR, RULES
from apr_falsify.contracts.settings import Settings
from apr_falsify.contracts.standing import Evidence, Standing

CORPUS = Path(__file__).parents[1] / "corpus" / "invalid"
CODES = sorted(path.name for path in CORPUS.iterdir())
EVIDENCE = {
    "functional-without-bundle": "absent",
    "evidence-does-not-verify": "broken",
    "evidence-stale": "stale",
}
CONTRACT = "contracts/parser-v1.yaml"
# these weigh less than an error, or need what only the test can make
ALONGSIDE = {
    "evidence-changed-without-changelog": set[str](),
    "unresolved-sibling": {"unresolved-name"},
}


def make_too_large(root: Path) -> None:
    with open(root / CONTRACT, "a", encoding="utf-8") as file:
        file.write("# padding\n" * 220_000)


def make_a_source_too_large(root: Path) -> None:
    with open(root / "src" / "parser.py", "a", encoding="utf-8") as file:
        file.write("# padding\n" * 440_000)


def make_a_loop(root: Path) -> None:
    (root / "contracts" / "loop-v1.yaml").symlink_to("loop-v1.yaml")


def leave_a_bundle(root: Path) -> None:
    bundle = root / "evidence" / "FALSIFY-PARSER-001"
    bundle.mkdir(parents=True)
    (bundle / "statement.json").write_text("{}", encoding="utf-8")


BUILDERS: dict[str, Callable[[Path], None]] = {
    "file-too-large": make_too_large,
    "source-not-read": make_a_source_too_large,
    "unreadable-file": make_a_loop,
    "bundle-not-named": leave_a_bundle,
}


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    return root


def check(root: Path, code: str, *, twin: bool) -> ValidationOutcome:
    case = CORPUS / code
    if (case / "before").is_dir():
        shutil.copytree(case / "before", root, dirs_exist_ok=True)
        git(root, "init", "-q")
        git(root, "add", "-A")
        git(root, "commit", "-qm", "before")
    shutil.copytree(case / "tree", root, dirs_exist_ok=True)
    if twin and (case / "valid").is_dir():
        shutil.copytree(case / "valid", root, dirs_exist_ok=True)
    if code in BUILDERS and not twin:
        BUILDERS[code](root)
    if code in EVIDENCE:
        state = Standing(state="fresh" if twin else EVIDENCE[code])
        evidence = Evidence(root=root, standings={"FALSIFY-PARSER-001": state})
        report = run([Path("contracts")], {}, cached=False, evidence=evidence)
        return judge(report.problems, report, Settings(), None, strict=False)
    against = "HEAD" if (case / "before").is_dir() else None
    return validate((Path("contracts"),), against=against, cached=False)


def codes(outcome: ValidationOutcome) -> set[str]:
    return {one.problem.code for one in outcome.shown}


@pytest.mark.falsify_validator_003
def test_every_rule_has_a_case() -> None:
    assert set(CODES) == set(RULES)


@pytest.mark.falsify_validator_003
@pytest.mark.parametrize("code", CODES)
def test_the_defect_is_reported_by_its_code(project: Path, code: str) -> None:
    outcome = check(project, code, twin=False)
    assert codes(outcome) - ALONGSIDE.get(code, set()) == {code}
    found = next(one for one in outcome.shown if one.problem.code == code)
    assert found.severity == RULES[code].severity
    assert found.problem.line >= 1
    assert not os.path.isabs(found.problem.path)


@pytest.mark.falsify_validator_002
@pytest.mark.parametrize("code", CODES)
def test_the_valid_twin_is_not_reported(project: Path, code: str) -> None:
    outcome = check(project, code, twin=True)
    assert codes(outcome) - ALONGSIDE.get(code, set()) == set()
    assert outcome.number(ERROR) == 0
