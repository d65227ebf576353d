"""Command lines that cannot be meant: exit 2, the option named, what is right, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.programs import TINY, assert_refused, listing, run

BISECT: dict[tuple[str, ...], tuple[str, ...]] = {
    ("--layers", "0..9"): ("--layers", "beyond the model", "0..3"),
    ("--layers", "3..4"): ("--layers", "0..3"),
    ("--layers", "2..2"): ("--layers", "empty"),
    ("--layers", "2..1"): ("--layers",),
    ("--layers", "3"): ("--layers", "A..B", "0..1"),
    ("--layers", "-1..1"): ("--layers", "A..B"),
    ("--layers", "0..99999999999999999999"): ("--layers",),
    ("--stages", "attn_score"): ("--stages", "did you mean 'attn_scores'?"),
    ("--stages", "attn_norm,,attn_out"): ("--stages", "empty stage name"),
    ("--stages", ""): ("--stages",),
    ("--stages", "moe_router"): ("--stages", "none of the stages moe_router exists"),
    ("--tokens", "a,b"): ("--tokens", "e.g. 274"),
    ("--tokens", ""): ("--tokens",),
    ("--tokens", "1,2,512"): ("--tokens", "512", "0 to 511"),
    ("--tokens", "-1"): ("--tokens",),
    ("--prompt", ""): ("--tokens", "no tokens", "--prompt TEXT"),
    ("--prompt", "x", "--tokens", "1"): ("--prompt and --tokens",),
    ("--subject", "aprr:x"): ("--subject", "'aprr:x'", "embedded:", "recorded:"),
    ("--subject", "x"): ("--subject", "recorded:DIRECTORY"),
    ("--device", "tpu"): ("--device", "'cpu', 'cuda'"),
    ("--dtype", "f8"): ("--dtype", "'f16', 'bf16', 'f32'"),
    ("--arithmetic", "int3"): ("'int3'", "f64", "q8_0 blocks of 32"),
    ("--format", "xml"): ("--format", "'text', 'json'"),
    ("--bogus",): ("--bogus",),
    ("extra",): ("unexpected extra argument",),
}


@pytest.mark.parametrize("options", BISECT, ids=" ".join)
def test_a_wrong_option_is_refused_by_its_name(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("bisect", *options, "--out", tmp_path / "run"), *BISECT[options])
    assert listing(tmp_path) == {}


OTHERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("bisekt",): ("No such command 'bisekt'", "Did you mean 'bisect'?"),
    (): ("Usage: apr-falsify",),
    ("capture",): ("Missing argument",),
    ("capture", "oracle"): ("Missing option '--out'",),
    ("capture", "oracle", "--out", "t"): ("the oracle needs a model", "capture oracle MODEL --out TRACE"),
    ("capture", f"embedded:{TINY}"): ("Missing option '--out'",),
    ("capture", f"embedded:{TINY}", "extra", "--out", "t"): ("unexpected argument 'extra'",),
    ("capture", "orakel", str(TINY), "--out", "t"): ("not a subject: 'orakel'", "embedded:"),
    ("capture", "recorded:x", "--out", "t"): ("which model was recorded", "capture recorded:x MODEL"),
    ("capture", f"embedded:{TINY}", "--out", "t", "--dtype", "f16"): ("--dtype", "--arithmetic"),
    ("capture", f"embedded:{TINY}", "--out", "t", "--device", "cuda"): ("--device", "the oracle's"),
    ("capture", "oracle", str(TINY), "--out", "t", "--arithmetic", "f16"): ("--arithmetic", "--dtype"),
    ("compare", "a"): ("Missing argument 'SUBJECT_TRACE'",),
    ("doctor", "extra"): ("unexpected extra argument",),
}


@pytest.mark.parametrize("arguments", OTHERS, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_a_wrong_command_is_refused(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code == 2
    for words in OTHERS[arguments]:
        assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert listing(tmp_path) == {}


def test_a_trace_as_oracle_without_a_subject_is_refused(embedded_run: Path) -> None:
    outcome = run("bisect", "--oracle", embedded_run / "oracle")
    assert_refused(outcome, "a trace as oracle needs a subject", "--subject")


def test_a_trace_as_oracle_judges_a_subject_on_its_tokens(embedded_run: Path) -> None:
    outcome = run(
        "bisect", "--oracle", embedded_run / "oracle", "--subject", f"embedded:{TINY}", "--format", "json"
    )
    assert outcome.code == 0
    assert outcome.json["tokens"] == [274, 272, 223, 20, 13, 20, 33]
    other = run(
        "bisect", "--oracle", embedded_run / "oracle", "--subject", f"embedded:{TINY}", "--tokens", "1,2"
    )
    assert_refused(other, "--tokens", "274")


@pytest.mark.parametrize("option", [("--dtype", "f16"), ("--device", "cpu"), ("--prompt", "x")])
def test_an_option_that_a_trace_as_oracle_leaves_idle_is_refused(
    embedded_run: Path, option: tuple[str, str]
) -> None:
    oracle = ("--oracle", embedded_run / "oracle", "--subject", f"embedded:{TINY}")
    assert_refused(run("bisect", *oracle, *option), option[0], "changes nothing", f"leave {option[0]} out")


def test_capturing_a_trace_as_oracle_is_refused(embedded_run: Path, tmp_path: Path) -> None:
    outcome = run("capture", "oracle", embedded_run / "oracle", "--out", tmp_path / "t")
    assert_refused(outcome, embedded_run / "oracle", "a trace already")
    assert listing(tmp_path) == {}


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(run("bisect", "--out", tmp_path / "file"), tmp_path / "file")
    assert listing(tmp_path).keys() == {"file"}
