"""``apr-falsify doctor --lane``: what a lane lacks, and what it will take of memory and disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.commands.specs import DEFAULT_MODEL
from tests.acceptance.programs import run

LANES = f"""
[tool.apr-falsify.lanes.here]
oracle = "{DEFAULT_MODEL}"
subject = "embedded:{DEFAULT_MODEL}"
tokens = [1, 2, 3, 4]
layers = "0..1"

[tool.apr-falsify.lanes.gone]
device = "cuda"
oracle = "nowhere/at-all"
subject = "apr:absent.apr"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text(LANES)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def rows(*names: str, lane: str) -> dict[str, list[dict[str, str]]]:
    checks = run("doctor", "--format", "json", "--lane", lane).json["checks"]
    return {name: [row for row in checks if row["part"] == name] for name in names}


@pytest.mark.usefixtures("project")
def test_what_a_lane_lacks_is_told_with_the_command_that_gets_it() -> None:
    outcome = run("doctor", "--lane", "gone")
    assert outcome.code == 2
    (told,) = rows("lane gone", lane="gone").values()
    assert {row["state"] for row in told} == {"missing"}
    said = " ".join(row["detail"] for row in told)
    assert "CUDA" in said
    assert "nowhere/at-all" in said
    assert "absent.apr" in said
    assert all(row["try"] for row in told)


@pytest.mark.usefixtures("project")
def test_memory_and_disk_of_a_lane_are_those_of_its_model() -> None:
    """By hand: hidden 256, H 8, K 2, D 32, F and vocabulary from config.json, 4 tokens, layer 0 in f32."""
    import json

    config = json.loads((DEFAULT_MODEL / "config.json").read_text())
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    q, kv, heads = 8 * 32, 2 * 32, 8
    per_token = 7 * hidden + 2 * (q + 2 * kv) + q + kv + q + 4 * ffn
    traced = 2 * 4 * (4 * per_token + 2 * heads * 4 * 4)
    found = rows("lane here", "memory", "disk", lane="here")
    assert found["lane here"][0]["state"] == "found"
    assert f"traces {traced / 2**20:.1f} MiB at 4 tokens" in found["disk"][0]["detail"]
    assert "in f32 on cpu" in found["memory"][0]["detail"]


@pytest.mark.usefixtures("project")
def test_a_lane_that_is_not_there_is_refused_with_the_nearest() -> None:
    outcome = run("doctor", "--lane", "her")
    assert outcome.code == 2
    assert "did you mean 'here'?" in outcome.err


def test_a_folder_without_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("doctor", "--lane", "here")
    assert outcome.code == 2
    assert "[tool.apr-falsify.lanes.here]" in outcome.err


def test_the_text_fits_eighty_columns_but_for_paths_and_commands() -> None:
    lines = [line for line in run("doctor", "--lane", "embedded").out.splitlines() if "try:" not in line]
    assert [line for line in lines if len(line) > 80 and len(line.split()[-1]) < 57] == []
