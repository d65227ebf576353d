"""``bisect --out`` leaves a page that says what the terminal says; what it lacks is told, not fatal."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.programs import (
    APR_TOKENS,
    RECORDINGS,
    TINY,
    Outcome,
    listing,
    program,
    program_without,
    run,
)

ROOT = Path(__file__).parents[2]
FAULTED = ("--oracle", TINY, "--subject", f"recorded:{RECORDINGS / 'k-bias-zero'}", "--tokens", APR_TOKENS)
NAMED = "the bias of k missing"


@pytest.fixture(scope="module")
def faulted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run of the recording whose K bias was zeroed, and what the program said."""
    folder = tmp_path_factory.mktemp("faulted") / "run"
    with contextlib.chdir(ROOT):
        return folder, run("bisect", *FAULTED, "--out", folder)


def test_a_run_has_a_page_with_the_verdict_and_says_where(faulted: tuple[Path, Outcome]) -> None:
    folder, outcome = faulted
    assert outcome.code == 1
    assert outcome.err == f"report: {folder / 'report.html'}\n"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"Layer 0&#39;s qkv_bias is wrong: “{NAMED}” explains all of its error." in page
    assert f"--oracle {TINY.relative_to(ROOT)} --subject recorded:tests/data/" in page
    assert f"--tokens {APR_TOKENS} --out RUN" in page
    assert "apr-falsify compare oracle subject --weights MODEL<" in page


def test_the_map_shows_the_error_in_the_heads_of_k_alone(faulted: tuple[Path, Outcome]) -> None:
    page = (faulted[0] / "report.html").read_text(encoding="utf-8")
    assert "12 of 72 cells hold an error that rounding does not explain" in page
    assert "recomputed from the subject&#39;s own inputs" in page


def test_the_cause_stands_in_the_json_by_itself(faulted: tuple[Path, Outcome]) -> None:
    findings = json.loads((faulted[0] / "bisection.json").read_text())["findings"]
    assert [each["cause"] for each in findings if each["type"] == "source"] == [
        {"name": "missing-bias", "says": NAMED}
    ]
    assert [each["cause"] for each in findings if each["type"] == "tokenizer"] == [None]


def test_json_on_stdout_stays_json(tmp_path: Path) -> None:
    outcome = run("bisect", "--out", tmp_path / "run", "--format", "json")
    assert outcome.json["kind"] == "consistent"
    assert outcome.err.startswith("report: ")


def test_the_page_can_be_read_by_whoever_may_read_the_folder(embedded_run: Path) -> None:
    new = embedded_run / "probe"
    new.touch()
    assert (embedded_run / "report.html").stat().st_mode == new.stat().st_mode
    new.unlink()


def test_without_jinja2_the_run_is_complete_and_says_what_to_install(
    tmp_path: Path, embedded_run: Path
) -> None:
    stale = tmp_path / "run" / "report.html"
    stale.parent.mkdir()
    stale.write_text("of another run")
    outcome = program_without("jinja2", "bisect", "--out", tmp_path / "run")
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("no report.html: ")
    assert "pip install 'apr-falsify[report]'" in outcome.err
    assert listing(tmp_path / "run").keys() == listing(embedded_run).keys() - {"report.html"}


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_no_run(tmp_path: Path) -> None:
    taken = tmp_path / "run" / "report.html"
    taken.mkdir(parents=True)
    outcome = run("bisect", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert str(taken) in outcome.err
    assert list(listing(tmp_path)) == ["run", "run/report.html"]


def test_nothing_of_the_page_is_loaded_where_none_is_written() -> None:
    code = (
        "import sys\n"
        "from apr_falsify.commands.main import cli, guarded\n"
        "guarded(cli, ['bisect'], 'apr-falsify')\n"
        "print('apr_falsify.evidence.report' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_command_is_told_as_it_was_typed(tmp_path: Path) -> None:
    typed = ("--layers", "1..2", "--stages", "attn_norm,qkv_bias", "--no-attn-substages", "--tokens", "5,6")
    outcome = program("bisect", *typed, "--debug", "--out", tmp_path / "run")
    assert outcome.code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    (told,) = re.findall("<pre>(apr-falsify bisect .*)</pre>", page)
    assert shlex.split(told) == ["apr-falsify", "bisect", *typed, "--out", "RUN"]
