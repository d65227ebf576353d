"""Whole sessions of pytest and whole bisections killed at random moments leave what is whole, or nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import killing
from tests.acceptance.programs import run
from tests.acceptance.toy_project import CONTRACT, FILES, ONE, TWO, commit, git

pytestmark = pytest.mark.bare

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MEASURED = """\
import pytest


@pytest.mark.falsify_toy_001
def test_the_embedded_runtime_is_right(bisection):
    assert bisection.kind == "consistent"


@pytest.mark.falsify_toy_001(role="control")
def test_it_is_kept(bisection, keep_bisection):
    keep_bisection("again", bisection)


@pytest.mark.falsify_toy_002
def test_the_subject_introduces_nothing(bisection):
    assert not bisection.sources
"""
RUN_FILES = {"oracle", "subject", "report.html", "bisection.json"}


def seen_of(kind: str, folder: Path) -> dict[str, Any]:
    """Let ``killing`` work in ``folder``; the temporary directory is a folder beside it."""
    temporary = folder.parent / "temporary"
    temporary.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    cache = {"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(folder.parent / "cache")}
    command = [sys.executable, killing.__file__, kind]
    environment = {**kept, **ONE_THREAD, **cache}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured_project(root: Path) -> Path:
    for name, text in {**FILES, "tests/test_toy.py": MEASURED}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / ".gitignore").write_text(f"__pycache__/\n{killing.LOG}\n", encoding="utf-8")
    git(root, "init", "-q")
    commit(root)
    return root


def test_a_session_killed_at_random_moments_leaves_whole_bundles_and_the_next_nothing_else(
    tmp_path: Path,
) -> None:
    project = measured_project(tmp_path / "project")
    contract = (project / CONTRACT).read_bytes()
    found = seen_of("sessions", project)
    first, seen, last = found["first"], found["seen"], found["last"]
    assert len(seen) >= killing.MOMENTS
    digests = {name: {bundle["digest"]} for name, bundle in first["bundles"].items()}
    for one in seen:
        for name, bundle in one["bundles"].items():
            assert_whole(bundle, first["bundles"][name])
            assert (bundle["digest"] in digests[name]) is (name not in one["new"])
            digests[name].add(bundle["digest"])
        assert set(one["bundles"]) <= {ONE, TWO}
        assert one["contracts"] == first["contracts"]
        assert len(one["temporary"]) <= 1, "each session sweeps what those before it left"
    assert {one["kind"] for one in seen if one["killed"]} >= {0, 1}, "none was killed between two bundles"
    assert any(one["evidence"] for one in seen), "none was killed while it wrote a bundle"
    assert (project / CONTRACT).read_bytes() == contract
    assert_nothing_else(first)
    assert_nothing_else(last)
    for name, bundle in last["bundles"].items():
        assert_whole(bundle, first["bundles"][name])


def assert_whole(bundle: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """It verifies, and holds all that the bundle of a session holds that nobody killed."""
    assert bundle["problems"] == []
    same = ("files", "tests", "result")
    assert {name: bundle[name] for name in same} == {name: reference[name] for name in same}


def assert_nothing_else(left: Mapping[str, Any]) -> None:
    assert left["code"] == 0
    assert left["new"] == [ONE, TWO]
    assert (left["evidence"], left["temporary"]) == ([], [])


def test_a_bisection_killed_at_random_moments_goes_on_with_whole_sides_alone(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    found = seen_of("runs", folder)
    first, seen, last = found["first"], found["seen"], found["last"]
    assert len(seen) >= killing.MOMENTS
    before: dict[str, Any] = {}
    for one in seen:
        for name, side in one["sides"].items():
            assert_same_side(side, first["sides"][name])
            if before.get(name) is not None:
                assert side == before[name], "a side already captured was run again"
        for name, partial in one["partial"].items():
            if "refused" not in partial:  # killed between its completion and its renaming
                assert_same_side(partial, first["sides"][name.split(".")[1]])
        assert one["result"] is None or without_times(one["result"]) == without_times(first["result"])
        assert len(one["strays"]) <= 1, "each run sweeps what those before it left"
        before = {} if one["result"] else one["sides"]
    assert {one["kind"] for one in seen if one["killed"]} >= {0, 1, 2}, "none was killed between the sides"
    assert any("refused" in side for one in seen for side in one["partial"].values())
    assert (last["code"], last["strays"], last["temporary"]) == (0, [], [])
    assert set(os.listdir(folder / killing.RUN)) == RUN_FILES
    assert without_times(last["result"]) == without_times(first["result"])
    assert run("evidence", "verify", folder / killing.RUN).code == 2, "a run is no bundle"


def assert_same_side(side: Mapping[str, Any] | None, reference: Mapping[str, Any]) -> None:
    """There is none, or it is taken for a trace whose stages are byte for byte those of a run that ended."""
    if side is not None:
        assert "refused" not in side, side
        assert (side["stages"], side["files"]) == (reference["stages"], reference["files"])


def without_times(result: Mapping[str, Any]) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "TIME", json.dumps(result))
