"""``capture`` and ``bisect --out``: what is written, what is used again, what is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.acceptance.programs import RECORDINGS, TINY, altered_model, assert_refused, edit_json, listing, run


def test_a_run_holds_two_traces_in_aprs_layout_and_the_bisection(embedded_run: Path) -> None:
    assert {path.name for path in embedded_run.iterdir()} == {
        "oracle",
        "subject",
        "bisection.json",
        "report.html",
    }
    for side in ("oracle", "subject"):
        trace = json.loads((embedded_run / side / "trace.json").read_text())
        assert trace["schema"] == "apr-falsify/trace/v1"
        assert len(trace["tokens"]) == 7
        assert len(trace["provenance"]["model_sha256"]) == 64
        names = {path.name for path in (embedded_run / side / "layer-0").iterdir()}
        assert {"embedding.bin", "attn_scores.bin", "ffn_swigl.bin"} <= names
        assert (embedded_run / side / "layer-0" / "attn_norm.bin").read_bytes()[:4] == b"APRT"


def test_every_file_of_a_run_can_be_read_by_whom_the_umask_lets(embedded_run: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in embedded_run.rglob("*") if path.is_file()}
    assert "bisection.json" in modes
    assert set(modes.values()) == {0o666 & ~mask}


def test_a_second_run_reads_what_lies_there_and_runs_nothing(
    embedded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_again = tmp_path / "run"
    shutil.copytree(embedded_run, run_again)
    before = listing(run_again)

    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("a captured side was run again")

    monkeypatch.setattr("apr_falsify.commands.sides.capture_oracle", must_not_run)
    monkeypatch.setattr("apr_falsify.subjects.embedded.capture", must_not_run)
    assert run("bisect", "--out", run_again).code == 0
    assert listing(run_again) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dtype", "bf16"), "dtype is f32, wanted bf16"),
        (("--arithmetic", "f64"), "arithmetic is f32, wanted f64"),
        (("--prompt", "another text"), "tokens are"),
        (("--layers", "0..2"), "wanted stages are not in it"),
    ],
)
def test_a_run_of_something_else_is_not_used_and_not_overwritten(
    embedded_run: Path, options: tuple[str, ...], said: str
) -> None:
    before = listing(embedded_run)
    assert_refused(run("bisect", "--out", embedded_run, *options), said, "--out")
    assert listing(embedded_run) == before


def test_a_run_of_another_model_is_not_used(embedded_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert_refused(run("bisect", "--oracle", model, "--out", embedded_run), "model_sha256")


def test_a_run_of_the_same_weights_under_another_config_is_not_used(
    embedded_run: Path, tmp_path: Path
) -> None:
    model = altered_model(tmp_path, lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3))
    assert_refused(run("bisect", "--oracle", model, "--out", embedded_run), "norm_eps is 1e-06, wanted 0.001")


def test_a_captured_file_that_was_changed_is_refused_by_name(embedded_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(embedded_run, broken)
    victim = broken / "oracle" / "layer-0" / "attn_out.bin"
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    before = listing(broken)
    assert_refused(run("bisect", "--out", broken), victim, "sha256", "capture the trace again")
    assert listing(broken) == before


def test_capture_used_again_is_said_with_the_same_words(tmp_path: Path) -> None:
    command = ("capture", f"embedded:{TINY}", "--out", tmp_path / "t")
    first, second = run(*command), run(*command)
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out == f"18 stages of 7 tokens in {tmp_path / 't'}\n"


def test_capture_never_writes_into_a_folder_that_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    assert_refused(run("capture", f"embedded:{TINY}", "--out", tmp_path), tmp_path, "no trace", "--out")
    assert listing(tmp_path) == before


def test_a_recording_is_copied_into_the_run_with_its_provenance(tmp_path: Path) -> None:
    options = ("--oracle", TINY, "--tokens", "274,272,332,13,20,33", "--out", tmp_path / "run")
    assert run("bisect", "--subject", f"recorded:{RECORDINGS / 'base'}", *options).code == 1
    trace = json.loads((tmp_path / "run" / "subject" / "trace.json").read_text())
    assert trace["provenance"]["runtime"] == "apr"
    assert trace["tokens_verified"] is True
    assert len(trace["stages"]) == 54
    assert run("bisect", "--subject", f"recorded:{RECORDINGS / 'base'}", *options).code == 1


def test_a_run_with_a_broken_trace_json_is_refused(embedded_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(embedded_run, broken)
    edit_json(broken / "oracle" / "trace.json", schema="apr-falsify/trace/v9")
    assert_refused(run("bisect", "--out", broken), broken / "oracle", "apr-falsify/trace/v9", "trace/v1")
