"""docs/adding-a-runtime.md, executed: its file, its line in the registry, its line in the harness."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.subjects import registry
from tests.acceptance.programs import TINY, run
from tests.subjects.harness import CHECKS, Driven

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-runtime.md"
INSTALLED = "killed-half-way"
"""Runs the installed program, which does not know the page's runtime."""

_BROKEN = {"hangs": "sleep 1000", "fails": "echo 'out of luck'; exit 7", "is-killed": "kill -KILL $$"}


def script(place: Path, lines: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\n{lines}\n")
    place.chmod(0o755)
    return place


def broken_tinyrun(folder: Path, how: str) -> Mapping[str, Any]:
    return {"program": script(folder / "tinyrun", _BROKEN[how])}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driven:
    """The page's runtime, in the registry and on PATH."""
    file, line, harness_line = blocks()
    module = types.ModuleType("apr_falsify.subjects.tinyrun")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(file, str(PAGE), "exec"), module.__dict__)
    row = eval(f"{{{line}}}", {**vars(registry), **module.__dict__})
    monkeypatch.setattr(registry, "RUNTIMES", {**registry.RUNTIMES, **row})
    monkeypatch.setattr("apr_falsify.commands.specs.RUNTIMES", registry.RUNTIMES)
    program = Path(__file__).with_name("tinyrun.py")
    script(tmp_path / "bin" / "tinyrun", f'PYTHONPATH="{ROOT}" exec "{sys.executable}" "{program}" "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    names = {"Driven": Driven, "TINY": TINY, "broken_tinyrun": broken_tinyrun}
    found: Driven = eval(f"{{{harness_line}}}", names)["tinyrun"]
    return found


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("fixed-tokens", INSTALLED)])
def test_the_runtime_of_the_page_keeps_what_every_subject_promises(
    driven: Driven, tmp_path: Path, check: str
) -> None:
    assert check not in driven.unfit
    (tmp_path / "work").mkdir()
    CHECKS[check](driven, tmp_path / "work")


def test_the_runtime_of_the_page_can_be_bisected_and_is_used_again(
    driven: Driven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bisect", "--subject", f"tinyrun:{TINY}", "--out", tmp_path / "run", "--format", "json")
    first = run(*command)
    assert (first.code, first.json["kind"], first.json["subject"]["runtime"]) == (0, "consistent", "tinyrun")
    script(tmp_path / "bin" / "tinyrun", "exit 9")
    assert "binary_sha256" in run(*command).err
    (tmp_path / "other").mkdir()
    refused = run("bisect", "--subject", f"tinyrun:{TINY}", "--out", tmp_path / "other" / "run")
    assert (refused.code, "`tinyrun" in refused.err, "exited with 9" in refused.err) == (2, True, True)


def test_the_file_of_the_page_is_as_short_as_it_says() -> None:
    file, line, harness_line = blocks()
    assert len(file.splitlines()) < 100
    assert len(line.splitlines()) == 1
    assert len(ast.parse(f"{{{harness_line}}}").body) == 1
