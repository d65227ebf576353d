"""The program ``validate-contracts``, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONTRACT = """\
metadata:
  id: C-PARSER
  version: 1.0.0
  status: PARTIAL_ALGORITHM_LEVEL
falsification_tests:
- id: FALSIFY-PARSER-001
  rule: a stage list is read
  prediction: two names give two stages
  test: pytest tests/test_parser.py::test_two_names
  if_fails: the parser is wrong
  status: PARTIAL_ALGORITHM_LEVEL
  algorithm_evidence:
    file_paths: [src/parser.py]
    function_names: ["parse_stage_list (splits at commas)"]
"""


def project(root: Path, contract: str = CONTRACT) -> Path:
    files = {
        "pyproject.toml": "[project]\nname = 'p'\n",
        "contracts/parser-v1.yaml": contract,
        "src/parser.py": "def parse_stage_list(text):\n    return text.split(',')\n",
        "tests/test_parser.py": "def test_two_names():\n    assert True\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apr_falsify.commands.validate_contracts", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.falsify_validator_002
def test_a_tree_that_agrees_is_silent(tmp_path: Path) -> None:
    done = run(project(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "names: 3 of 3 resolved" in done.stdout
    assert "error " not in done.stdout


@pytest.mark.falsify_validator_001
def test_a_renamed_function_is_reported_with_place_and_nearest_name(tmp_path: Path) -> None:
    done = run(project(tmp_path, CONTRACT.replace("parse_stage_list", "parse_stages_list")))
    assert done.returncode == 1
    assert "contracts/parser-v1.yaml:14:22 error symbol-not-found 'parse_stages_list'" in done.stdout
    assert "did you mean 'parse_stage_list'?" in done.stdout
    assert "falsification_tests[0].algorithm_evidence.function_names[0]" in done.stdout


@pytest.mark.falsify_validator_004
def test_one_bad_file_never_stops_the_rest(tmp_path: Path) -> None:
    root = project(tmp_path, CONTRACT.replace("parse_stage_list", "parse_stages_list"))
    (root / "contracts" / "a-broken.yaml").write_bytes(b"\x00\xff{")
    (root / "contracts" / "b-loop.yaml").symlink_to("b-loop.yaml")
    (root / "contracts" / "c-deep.yaml").write_text("[" * 10_000, encoding="utf-8")
    done = run(root)
    assert done.returncode == 1
    for code in ("not-utf8", "unreadable-file", "yaml-too-deep", "symbol-not-found"):
        assert code in done.stdout
