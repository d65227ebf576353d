"""Our own contracts pass our validator and the upstream one; the hook and the action run the program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apr_falsify.commands.validate_contracts import validate
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


def test_no_error_in_our_own_contracts() -> None:
    outcome = validate((REPOSITORY / "contracts",), cached=False)
    assert [one.problem for one in outcome.shown if one.severity == "error"] == []
    assert outcome.exit_code == 0


def test_not_even_a_warning_once_the_sources_of_aprender_are_given(aprender: Path) -> None:
    outcome = validate((REPOSITORY / "contracts",), (f"aprender={aprender}",), strict=True, cached=False)
    assert [one.problem for one in outcome.shown] == []
    assert outcome.counts.unresolved == 0


def test_no_bundle_that_is_fresh_names_a_path_of_a_machine() -> None:
    outcome = validate((REPOSITORY / "contracts",), cached=False)
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


def test_the_hook_runs_the_program() -> None:
    (hook,) = yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["id"] == hook["entry"] == "validate-contracts"


def action_script() -> str:
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text(encoding="utf-8"))
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "validate"]
    script: str = step["run"]
    assert "${{" not in script  # what an input holds must never become part of a command
    return script


@pytest.mark.parametrize(("strict", "code"), [("false", 0), ("true", 1)])
def test_the_action_passes_its_inputs_on(tmp_path: Path, strict: str, code: int) -> None:
    program = tmp_path / "bin" / "validate-contracts"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m apr_falsify.commands.validate_contracts "$@"\n')
    program.chmod(0o755)
    contract = tmp_path / "one contract.yaml"
    contract.write_text(
        "metadata: {id: C, version: 1.0.0}\nfalsification_tests:\n- id: F-1\n  rule: r\n  status: PARTIAL\n"
        "  algorithm_evidence: {file_paths: [lib:a.py, far:b.py], function_names: [lib:f]}\n",
        encoding="utf-8",
    )
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("def f(): ...\n", encoding="utf-8")
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "PATHS": "one contract.yaml\n",
        "SOURCES": "lib=lib\n\n",
        "AGAINST": "",
        "BASELINE": "",
        "STRICT": strict,
        "SARIF": "report.sarif",
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", action_script()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert (tmp_path / "output").read_text(encoding="utf-8") == f"exit-code={code}\n"
    assert '"version": "2.1.0"' in (tmp_path / "report.sarif").read_text(encoding="utf-8")
    assert "unresolved-name" in done.stdout
