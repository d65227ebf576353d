"""Small trees of others in which contract and evidence drifted apart, and the twin of each that agrees."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome

DRIFT = Path(__file__).parents[1] / "data" / "drift"
CONTRACT = "contracts/c-v1.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tree: what must be reported of it, where, and the replacement that makes its twin."""

    name: str
    code: str
    line: int
    told: str
    old: str
    new: str
    file: str = CONTRACT


CASES = [
    Case(
        name="d06-changelog-cites-unregistered-falsifier",
        code="id-not-registered",
        line=8,
        told="FALSIFY-D-009",
        old="FALSIFY-D-009 is",
        new="FALSIFY-D-001 is",
    ),
    Case(
        name="d10-phantom-binding",
        code="symbol-not-found",
        line=7,
        told="'ghost_function' exists nowhere in demo",
        old="function: ghost_function",
        new="function: add",
        file="contracts/binding.yaml",
    ),
    Case(
        name="d11-test-harness-prose-with-mutated-name",
        code="name-in-prose",
        line=10,
        told="test_add_two_numberz",
        old="numberz",
        new="numbers",
    ),
    Case(
        name="d12-falsification_test-inline-code",
        code="test-not-found",
        line=9,
        told="falsify_004_spot_check",
        old="falsify_004_spot_check",
        new="test_add_two_numbers",
    ),
    Case(
        name="d14c-test_locations-drift",
        code="symbol-not-found",
        line=15,
        told="tests::falsify_gone",
        old="falsify_gone",
        new="test_add_two_numbers",
    ),
    Case(
        name="d19-verdict-pass-no-evidence",
        code="claim-without-evidence",
        line=7,
        told="GATE-D-002",
        old="    verdict: pass\n",
        new="    verdict: pass\n    verified_by: src/lib.rs::tests::test_add_two_numbers\n",
    ),
    Case(
        name="d21-verdict-vs-discharge-status",
        code="verdict-disagrees",
        line=10,
        told="verdict 'pending' and discharge_status 'DISCHARGED'",
        old="verdict: pending",
        new="verdict: pass",
    ),
    Case(
        name="d26-test-of-comments-only",
        code="test-of-comments-only",
        line=10,
        told="comments only",
        old="      # The CLI rejects the unknown stage.\n",
        new="      cargo test -p demo test_add_two_numbers\n",
    ),
    Case(
        name="d28-metadata-below-falsifiers-summary-zero",
        code="summary-disagrees",
        line=8,
        told="tested is 0",
        old="tested: 0",
        new="tested: 1",
    ),
    Case(
        name="d32-kani-id-and-foreign-obligation",
        code="obligation-not-found",
        line=12,
        told="AL-BND-001",
        old="AL-BND-001",
        new="ALB-INV-001",
    ),
    Case(
        name="w30-functional-no-bundle",
        code="functional-without-bundle",
        line=7,
        told="names no bundle",
        old="    status: FUNCTIONAL\n    alg",
        new="    status: FUNCTIONAL\n    functional_evidence: [src/lib.rs]\n    alg",
    ),
]


def check(root: Path, *, strict: bool = False) -> ValidationOutcome:
    return validate((root / "contracts",), strict=strict, cached=False)


def copy(case: Case, root: Path) -> Path:
    shutil.copytree(DRIFT / case.name, root)
    return root


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_drift_is_reported_where_it_is(case: Case, tmp_path: Path) -> None:
    outcome = check(copy(case, tmp_path / "tree"))
    (found,) = [one for one in outcome.shown if one.problem.code == case.code]
    assert found.problem.path.endswith(case.file)
    assert (found.problem.line, case.told in found.problem.message) == (case.line, True)
    assert check(tmp_path / "tree", strict=True).exit_code == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_that_agrees_is_not_reported(case: Case, tmp_path: Path) -> None:
    root = copy(case, tmp_path / "tree")
    file = root / case.file
    text = file.read_text(encoding="utf-8")
    assert case.old in text
    file.write_text(text.replace(case.old, case.new), encoding="utf-8")
    assert [one.problem for one in check(root).shown if one.problem.code == case.code] == []


def test_every_vendored_tree_of_claims_is_a_case() -> None:
    of_tests = ("d05-", "d09b-", "s", "w0", "w1", "w2")  # those are cases of test_drift_of_tests.py
    vendored = {path.name for path in DRIFT.iterdir() if not path.name.startswith(of_tests)}
    assert {case.name for case in CASES} == vendored
