"""Our own contracts pass our validator and the upstream one; the hook and the action run the program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from apr_falsify.commands.validate_contracts import validate
from apr_falsify.contracts.outcome import ValidationOutcome
from tests.support import MACHINE_PATH

REPOSITORY = Path(__file__).parents[2]
CONTRACTS = sorted((REPOSITORY / "contracts").glob("*-v1.yaml"))
PV = shutil.which("pv")
NAMED = {
    "trace-attn-sub-stages-v1",
    "apr-cli-trace-save-tensor-v1",
    "trace-ffn-sub-block-v1",
    "stage-bisection-v1",
    "contract-validator-v1",
    "evidence-bundle-v1",
}


def test_all_contracts_are_there() -> None:
    assert {path.stem for path in CONTRACTS} >= NAMED


@pytest.fixture(scope="module")
def outcome() -> ValidationOutcome:
    return validate((REPOSITORY / "contracts",), cached=False)


def test_no_error_in_our_own_contracts(outcome: ValidationOutcome) -> None:
    assert [one.problem for one in outcome.shown if one.severity == "error"] == []
    assert outcome.exit_code == 0


def test_not_even_a_warning_once_the_sources_of_aprender_are_given(aprender: Path) -> None:
    outcome = validate((REPOSITORY / "contracts",), (f"aprender={aprender}",), strict=True, cached=False)
    assert [one.problem for one in outcome.shown] == []
    assert outcome.counts.unresolved == 0


def test_no_bundle_that_is_fresh_names_a_path_of_a_machine(outcome: ValidationOutcome) -> None:
    stale = {one.problem.subject for one in outcome.shown if one.problem.code == "evidence-stale"}
    bundles = sorted((REPOSITORY / "evidence").iterdir())
    assert len(bundles) > 20
    fresh = [bundle for bundle in bundles if bundle.name not in stale]
    files = [path for bundle in fresh for path in bundle.rglob("*") if path.is_file()]
    named = {path for path in files if MACHINE_PATH.search(path.read_text(encoding="latin-1"))}
    assert named == set()


@pytest.mark.skipif(PV is None, reason="no pv binary on PATH")
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: path.stem)
def test_the_upstream_validator_has_nothing_to_say(contract: Path) -> None:
    assert PV is not None
    done = subprocess.run(
        [PV, "validate", str(contract)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert "0 error(s), 0 warning(s)" in done.stdout
