"""What breaks down within a run of the program costs neither verdict nor files; ``--debug`` shows where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.compare import causes
from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.variations.case import Variation
from apr_falsify.model.stages import Key
from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, run

FAULTED = ("--oracle", TINY, "--subject", f"recorded:{RECORDINGS / 'k-bias-zero'}", "--tokens", APR_TOKENS)
NOTE = "the cause a-new-one at layer 0 qkv_bias: it broke down (ValueError: no)"


def raising(error: BaseException) -> Callable[..., Any]:
    def broken_on_purpose(*_: object, **__: object) -> Any:
        raise error

    return broken_on_purpose


def with_a_broken_cause(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    row = Variation(name="a-new-one", guesses=raising(error))
    monkeypatch.setattr(causes, "TABLE", (row, *causes.TABLE))


def test_a_cause_that_breaks_down_stands_in_text_json_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_broken_cause(monkeypatch, ValueError("no"))
    outcome = run("bisect", *FAULTED, "--out", tmp_path / "run")

    assert outcome.code == 1
    assert "source: layer 0, qkv_bias" in outcome.out
    assert f"not checked: {NOTE}" in " ".join(outcome.out.split())
    assert outcome.err == f"report: {tmp_path / 'run' / 'report.html'}\n"
    bisection = json.loads((tmp_path / "run" / "bisection.json").read_text())
    assert NOTE in bisection["not_checked"]
    assert bisection["kind"] == "localised"
    assert NOTE in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_debug_alone_prints_the_traceback_of_a_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_broken_cause(monkeypatch, ValueError("no"))
    plain, debugged = run("bisect", *FAULTED), run("bisect", *FAULTED, "--debug")

    assert "Traceback" not in plain.err
    assert debugged.err.count("Traceback") == 1
    assert "in broken_on_purpose" in debugged.err
    assert "the cause a-new-one" in debugged.err
    assert (debugged.code, debugged.out) == (plain.code, plain.out)
    assert run("bisect", *FAULTED).err == ""  # what --debug set up is gone again


def test_an_interruption_within_a_cause_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_broken_cause(monkeypatch, KeyboardInterrupt())
    outcome = run("bisect", *FAULTED)
    assert (outcome.code, outcome.out) == (130, "")


def test_a_replay_that_breaks_down_exits_3_and_prints_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Replayer.replay

    def replay(self: Replayer, key: Any, rules: Any) -> Any:
        if key == Key(0, "ffn_up"):
            raise IndexError("out of bounds")
        return plain(self, key, rules)

    monkeypatch.setattr(Replayer, "replay", replay)
    outcome = run("bisect", "--format", "json")

    assert outcome.code == 3
    assert outcome.json["kind"] == "unmeasured"
    assert not outcome.json["complete"]
    verdicts = {row["stage"]: row["verdict"] for row in outcome.json["stages"] if row["layer"] == 0}
    assert verdicts["ffn_up"] == "unmeasured"
    assert verdicts["ffn_out"] == "within-floor"
    assert run("bisect", *FAULTED).code == 1  # a source outranks what could not be measured


FIGURES = {
    "apr_falsify.evidence.page.heat._map": "the heat map at layer 0 qkv_bias",
    "apr_falsify.evidence.page.heat._introduced": "the replay for the heat map at layer 0 qkv_bias",
    "apr_falsify.evidence.page.sections.overviews": "the overview",
    "apr_falsify.evidence.page.sections.dot_plot": "the dot plots",
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_breaks_down_costs_neither_verdict_nor_page(
    figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure, raising(ZeroDivisionError("no")))
    outcome = run("bisect", *FAULTED, "--out", tmp_path / "run")

    assert outcome.code == 1
    told = f"{FIGURES[figure]}: it broke down (ZeroDivisionError: no)"
    assert told in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert told in json.loads((tmp_path / "run" / "bisection.json").read_text())["not_checked"]
    assert f"not checked: {told}" in " ".join(outcome.out.split())


def test_stages_that_cannot_be_compared_with_the_oracles_are_told_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apr_falsify.compare.rows.compare_arrays", raising(ValueError("no")))
    outcome = run("bisect", *FAULTED, "--out", tmp_path / "run")

    assert outcome.code == 1
    assert "source: layer 0, qkv_bias" in outcome.out
    assert "the comparison broke down" in outcome.out
    assert "comparison with the oracle at layers 0, 1, 2 qkv_bias: it broke down" in (
        tmp_path / "run" / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [RecursionError("too deep"), MemoryError()])
def test_a_page_that_breaks_down_costs_no_verdict(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apr_falsify.evidence.report.render", raising(error))
    outcome = run("bisect", *FAULTED, "--out", tmp_path / "run")

    assert outcome.code == 1
    assert outcome.err == "no report.html: making it broke down; --debug shows where\n"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "bisection.json",
        "oracle",
        "subject",
    ]
    assert f"not checked: report.html: it broke down ({type(error).__name__}" in " ".join(outcome.out.split())
