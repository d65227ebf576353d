"""``apr-falsify doctor``: each part by name, and a command for what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apr_falsify.commands.doctor import CHECKS, State
from tests.acceptance.programs import program_without, run


def states(output: str) -> dict[str, str]:
    lines = [line for line in output.splitlines() if not line.startswith(" ")]
    return {line[9:24].strip(): line.split()[0] for line in lines}


def test_every_part_is_told_with_its_state_and_nothing_needed_is_missing() -> None:
    outcome = run("doctor")
    assert outcome.code == 0
    found = states(outcome.out)
    assert len(found) == len(CHECKS)
    assert set(found.values()) <= {State.FOUND.value, State.OPTIONAL.value}
    for part in ("python", "numpy", "safetensors", "gguf", "default model"):
        assert found[part] == "found"


def test_json_holds_the_same_parts() -> None:
    outcome = run("doctor", "--format", "json")
    assert outcome.json["schema"] == "apr-falsify/doctor/v1"
    told = states(run("doctor").out)
    assert {row["part"]: row["state"] for row in outcome.json["checks"]} == told
    assert all(row.keys() == {"part", "state", "detail", "try"} for row in outcome.json["checks"])


def test_an_oracle_that_is_not_installed_is_optional_and_its_command_told() -> None:
    outcome = program_without("torch,transformers,tokenizers", "doctor")
    assert outcome.code == 0, outcome.err
    found = states(outcome.out)
    assert (found["torch"], found["transformers"], found["cuda"]) == ("absent", "absent", "absent")
    assert "pip install 'apr-falsify[oracle]'" in outcome.out


def test_a_base_package_that_is_missing_exits_2_with_its_command() -> None:
    outcome = program_without("gguf", "doctor")
    assert outcome.code == 2, outcome.err
    assert states(outcome.out)["gguf"] == "missing"
    assert "try: pip install" in outcome.out


def test_apr_is_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states(run("doctor").out)["apr"] == "absent"
    (tmp_path / "apr").write_text("#!/bin/sh\n")
    (tmp_path / "apr").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path), os.defpath)))
    assert str(tmp_path / "apr") in run("doctor").out
