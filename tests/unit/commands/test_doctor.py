"""``apr-falsify doctor``: each part by name, and a command for what is missing."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from apr_falsify.commands.checks import CheckState
from apr_falsify.commands.doctor import CHECKS
from tests.acceptance.programs import program_without, run
from tests.llama_models import package_or_skip


def states(output: str) -> dict[str, str]:
    lines = [line for line in output.splitlines() if not line.startswith(" ")]
    return {line[9:24].strip(): line.split()[0] for line in lines}


def test_every_part_is_told_with_its_state_and_nothing_needed_is_missing() -> None:
    outcome = run("doctor")
    assert outcome.code == 0
    found = states(outcome.out)
    assert len(found) == len(CHECKS)
    assert set(found.values()) <= {CheckState.FOUND.value, CheckState.OPTIONAL.value}
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


def apr_told(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> dict[str, str]:
    """Return what is told of an ``apr`` on PATH that is the shell script ``script``."""
    if script is not None:
        (folder / "apr").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "apr").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    (row,) = [row for row in run("doctor", "--format", "json").json["checks"] if row["part"] == "apr"]
    found: dict[str, str] = row
    return found


def test_apr_that_is_not_on_path_is_absent_and_its_command_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = apr_told(tmp_path, monkeypatch, None)
    assert (told["state"], told["try"]) == ("absent", "cargo install apr-cli")


APRS = {
    "silent": ("", "found", "unknown, ", "does not say which stages"),
    "old": (
        'echo "apr 0.60.1 (0123abc)"; echo "unknown stage x; valid stages: embedding,attn_norm"',
        "found",
        "0.60.1 (0123abc), ",
        "does not know qkv_matmul, qkv_bias, q_post_rope",
    ),
    "broken": ("exit 127", "absent", "", "exited with 127"),
}


@pytest.mark.parametrize("kind", APRS)
def test_apr_is_told_with_its_version_and_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    script, state, version, said = APRS[kind]
    told = apr_told(tmp_path, monkeypatch, script)
    assert told["state"] == state
    assert told["detail"].startswith(f"{version}{tmp_path / 'apr'}")
    assert said in told["detail"]


@pytest.mark.real_apr
@pytest.mark.skipif(shutil.which("apr") is None, reason="no apr binary on PATH")
def test_the_real_apr_knows_every_stage() -> None:
    (row,) = [row for row in run("doctor", "--format", "json").json["checks"] if row["part"] == "apr"]
    assert row["detail"].startswith("0.")
    assert row["detail"].endswith("knows every stage")


@pytest.mark.live
def test_a_llama_cpp_that_is_there_is_told_with_its_version_and_what_it_lacks() -> None:
    package_or_skip("llama_cpp")
    (row,) = [row for row in run("doctor", "--format", "json").json["checks"] if row["part"] == "llama.cpp"]
    assert row["state"] == "found"
    assert row["detail"].startswith(f"llama-cpp-python {version('llama-cpp-python')}, ggml ")
    assert "takes every setting" in row["detail"]


def test_a_llama_cpp_that_is_not_installed_is_optional_and_its_command_told() -> None:
    outcome = program_without("llama_cpp", "doctor")
    assert outcome.code == 0, outcome.err
    assert states(outcome.out)["llama.cpp"] == "absent"
    assert "try: pip install 'apr-falsify[llama-cpp]'" in outcome.out
