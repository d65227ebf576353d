"""``apr-falsify compare``: two traces, nothing run, nothing written, no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.acceptance.programs import (
    APR_TOKENS,
    RECORDINGS,
    TINY,
    altered_model,
    assert_refused,
    edit_json,
    listing,
    program_without,
    run,
)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces called oracle, embedded, other-prompt, one-layer and f16 in one folder."""
    folder = tmp_path_factory.mktemp("traces")
    all_layers = ("--layers", "0..3")
    assert run("capture", "oracle", TINY, "--out", folder / "oracle", *all_layers).code == 0
    assert run("capture", f"embedded:{TINY}", "--out", folder / "embedded", *all_layers).code == 0
    assert run("capture", f"embedded:{TINY}", "--out", folder / "one-layer", "--layers", "1..2").code == 0
    assert run("capture", f"embedded:{TINY}", "--out", folder / "f16", "--arithmetic", "f16").code == 0
    prompt = ("--prompt", "two traces of different text")
    assert run("capture", f"embedded:{TINY}", "--out", folder / "other-prompt", *prompt).code == 0
    return folder


def test_two_traces_are_compared_without_torch_and_nothing_is_written(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = listing(traces)
    outcome = program_without(
        "torch,transformers,tokenizers,huggingface_hub",
        "compare",
        traces / "oracle",
        traces / "embedded",
        "--format",
        "json",
    )
    assert outcome.code == 0, outcome.err
    assert sum(row["status"] == "compared" for row in outcome.json["stages"]) == 54
    assert listing(traces) == before
    assert listing(tmp_path) == {}


def test_a_bare_recording_is_compared_with_a_trace_of_the_same_tokens(tmp_path: Path) -> None:
    oracle = tmp_path / "oracle"
    assert (
        run("capture", "oracle", TINY, "--out", oracle, "--tokens", APR_TOKENS, "--layers", "0..3").code == 0
    )
    outcome = program_without("torch", "compare", oracle, RECORDINGS / "k-bias-zero", "--format", "json")
    assert outcome.code == 1
    assert outcome.json["sources"][0]["stages"] == ["qkv_bias"]
    assert any("token ids" in line for line in outcome.json["not_checked"])
    weights = run("compare", oracle, RECORDINGS / "k-bias-zero", "--weights", TINY, "--format", "json")
    assert weights.code == 1
    assert not any("token ids" in line for line in weights.json["not_checked"])


def test_a_low_precision_run_shows_its_rounding(traces: Path) -> None:
    outcome = run("compare", traces / "oracle", traces / "f16", "--format", "json")
    assert (outcome.code, outcome.json["kind"], outcome.json["sources"]) == (4, "unmeasured", [])
    worst = max(row["accumulated"]["rel_l2"] for row in outcome.json["stages"] if row["accumulated"])
    assert 1e-5 < worst < 1e-2


def test_only_what_both_hold_is_judged(traces: Path) -> None:
    outcome = run("compare", traces / "oracle", traces / "one-layer", "--format", "json")
    assert outcome.code == 0
    assert {row["layer"] for row in outcome.json["stages"] if row["status"] == "compared"} == {1}


def test_traces_of_different_tokens_are_refused(traces: Path) -> None:
    outcome = run("compare", traces / "oracle", traces / "other-prompt")
    assert_refused(outcome, "different tokens", "274, 272, 223", "--tokens")


def test_traces_without_a_stage_in_common_are_refused(traces: Path, tmp_path: Path) -> None:
    assert run("capture", "oracle", TINY, "--out", tmp_path / "a", "--stages", "attn_norm").code == 0
    assert run("capture", f"embedded:{TINY}", "--out", tmp_path / "b", "--stages", "attn_out").code == 0
    assert_refused(run("compare", tmp_path / "a", tmp_path / "b"), "no stage in common", "--stages")


def test_a_stage_that_the_subject_did_not_write_is_never_taken_for_compared(tmp_path: Path) -> None:
    subject = tmp_path / "bare"
    shutil.copytree(RECORDINGS / "base", subject)
    (subject / "layer-0" / "attn_scores.bin").unlink()
    oracle, same = tmp_path / "oracle", ("--tokens", APR_TOKENS, "--layers", "0..3")
    assert run("capture", "oracle", TINY, "--out", oracle, *same).code == 0
    outcome = run("compare", oracle, subject, "--format", "json")
    row = next(r for r in outcome.json["stages"] if r["stage"] == "attn_scores" and r["layer"] == 0)
    assert (row["status"], row["verdict"]) == ("missing-in-subject", "unmeasured")


def test_another_geometry_is_a_finding_and_no_crash(tmp_path: Path, traces: Path) -> None:
    two_layers = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    model = altered_model(tmp_path, lambda path: edit_json(path / "config.json", **two_layers))
    assert run("capture", f"embedded:{model}", "--out", tmp_path / "other").code == 0
    outcome = run("compare", traces / "oracle", tmp_path / "other", "--format", "json")
    assert outcome.code == 1
    said = [found["explanation"] for found in outcome.json["findings"] if found["type"] == "geometry"]
    assert any("layers is 3 in the oracle's model, 2 in the subject's" in line for line in said)
    assert not any(row["status"] == "compared" for row in outcome.json["stages"])


def test_a_trace_needs_no_model_and_no_tokens_but_a_bare_directory_does(traces: Path) -> None:
    outcome = run("compare", RECORDINGS / "base", traces / "oracle")
    assert_refused(outcome, RECORDINGS / "base", "--weights MODEL")
    outcome = run("compare", RECORDINGS / "base", RECORDINGS / "base-q4k", "--weights", TINY)
    assert_refused(outcome, "which tokens were run", APR_TOKENS)
    both = (RECORDINGS / "base", RECORDINGS / "norm-scaled")
    assert run("compare", *both, "--weights", TINY, "--tokens", APR_TOKENS).code == 1


def test_tokens_other_than_those_of_the_trace_are_refused(traces: Path) -> None:
    outcome = run("compare", traces / "oracle", traces / "embedded", "--tokens", "1,2")
    assert_refused(outcome, traces / "oracle", "--tokens", "leave --tokens out")
