"""docs/adding-a-family.md, executed: its files and its commands; and --family on the verbs that take it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import apr_falsify as af
from apr_falsify.model.families import FAMILIES, graph_of
from tests.acceptance.programs import altered_model, assert_refused, edit_json, run

pytestmark = pytest.mark.bare

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
QUOTER: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "quote_page.py"))

OWN = """
from dataclasses import replace
from apr_falsify.model.families.qwen import QWEN2
OWN = replace(QWEN2, name="own", title="Own words", model_types=("own",), gguf_architectures=())
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a family, which is forgotten again after the test."""
    monkeypatch.setattr("apr_falsify.model.families.of_users._files", {})
    monkeypatch.setattr("apr_falsify.operators.table._of_users", {})
    graph_of.cache_clear()
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny checkpoint under a model_type that the table does not have."""
    return altered_model(tmp_path, lambda folder: edit_json(folder / "config.json", model_type="own"))


def test_the_page_on_families_says_what_its_commands_print(tmp_path: Path) -> None:
    blocks = list(QUOTER["printed"](PAGE, QUOTER["prepared"](tmp_path, PAGE)))
    assert len(blocks) == PAGE.count("\n$ ") >= 10
    for command, quoted, printed in blocks:
        assert quoted == printed, command


def test_the_families_of_the_page_are_short_and_in_no_table_yet() -> None:
    files = dict(QUOTER["SHOWN"].findall(PAGE))
    assert set(files) == {"make_tiny.py", "peri.py", "plain.py"}
    assert all(len(text.splitlines()) < 100 for text in files.values())
    known = {name for each in FAMILIES for name in each.model_types}
    assert not known & set(re.findall(r'model_types=\("(\w+)",\)', PAGE))


def test_a_model_of_an_unknown_family_is_refused_with_the_way_to_bring_one(model: Path) -> None:
    outcome = run("capture", f"embedded:{model}", "--tokens", "1,2", "--out", model.parent / "trace")
    assert_refused(outcome, "'own' is not a known model family", "--family", "docs/adding-a-family.md")


def test_every_verb_that_opens_a_model_or_a_trace_takes_the_file(own: Path, model: Path) -> None:
    family, trace = ("--family", own), model.parent / "trace"
    captured = run("capture", f"embedded:{model}", *family, "--tokens", "1,2,3", "--out", trace)
    assert (captured.code, captured.err) == (0, ""), captured
    assert "own.py" in json.loads((trace / "trace.json").read_text())["provenance"]["driver"]
    same = run("compare", trace, trace, "--weights", model, *family)
    assert same.code == 0, same
    kernel = ("--export-replay", "attn_norm@0", "--out", model.parent / "kernel")
    assert run("capture", f"recorded:{trace}", model, *kernel, *family).code == 0
    listed = run("doctor", *family, "--format", "json").json["checks"]
    assert any("of your own: Own words" in row["detail"] for row in listed if row["part"] == "families")


def test_doctor_lists_the_families_of_the_table() -> None:
    (row,) = [row for row in run("doctor", "--format", "json").json["checks"] if row["part"] == "families"]
    assert row["detail"].partition(";")[0].split(", ") == sorted(
        (title for each in FAMILIES for title in each.title.split(", ")), key=str.casefold
    )


def test_a_kept_run_is_not_used_again_once_the_file_has_changed(own: Path, model: Path) -> None:
    command = ("capture", f"embedded:{model}", "--family", own, "--tokens", "1,2,3")
    command = (*command, "--out", model.parent / "trace")
    assert run(*command).code == 0
    assert run(*command).code == 0
    own.write_text(OWN + "# edited\n")
    assert_refused(run(*command), "another capture lies here: driver is", "own.py")


def test_python_takes_the_file_too(own: Path, model: Path) -> None:
    with pytest.raises(af.AprFalsifyError, match="'own' is not a known model family"):
        af.open_model(model)
    assert af.open_model(model, family=own).geometry.family == "own"
    subject = af.capture(f"embedded:{model}", tokens=[1, 2, 3], family=own)
    assert af.bisect(subject, subject, family=str(own)).kind is af.Kind.CONSISTENT


def test_a_file_that_is_wrong_ends_the_command_with_its_place(own: Path, model: Path) -> None:
    own.write_text(OWN + "1 / 0\n")
    outcome = run("bisect", "--oracle", model, "--family", own)
    assert_refused(outcome, f"{own}:5: running it raised ZeroDivisionError: division by zero")
