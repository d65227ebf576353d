"""``apr-falsify bisect`` with nothing said: the tiny checkpoint, HuggingFace against the embedded runtime."""

from __future__ import annotations

import json
from pathlib import Path

from apr_falsify.model.stages import Key
from tests.acceptance.programs import program, run

# The keys of design section 3.
TOP = {
    "schema", "kind", "complete", "findings", "sources", "stages", "published_rule", "not_checked",
    "tokens", "oracle", "subject",
}  # fmt: skip
STAGE = {
    "layer", "stage", "status", "shape", "layout", "nonfinite", "accumulated", "introduced", "arithmetic",
    "residual", "floor", "verdict",
}  # fmt: skip
FIGURES = {"cosine", "rel_l2", "norm_ratio", "max_abs", "at"}
CHAIN = [
    "attn_norm", "qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax",
    "attention", "attn_out",
]  # fmt: skip


def test_the_program_finds_the_embedded_default_consistent() -> None:
    outcome = program("bisect")
    assert outcome.code == 0
    assert outcome.out.startswith("consistent: no stage introduces an error")
    assert outcome.err == ""


def test_its_nine_cosines_exceed_0_9999999(embedded_run: Path) -> None:
    rule = json.loads((embedded_run / "bisection.json").read_text())["published_rule"]
    assert rule["chain"] == CHAIN
    assert len(rule["cosines"]) == 9
    assert all(0.9999999 < cosine <= 1 for cosine in rule["cosines"])
    assert rule["crossings"] == []


def test_json_has_every_key_of_the_design(embedded_run: Path) -> None:
    found = json.loads((embedded_run / "bisection.json").read_text())
    assert found.keys() >= TOP
    assert found["schema"] == "apr-falsify/bisection/v1"
    assert found["published_rule"].keys() >= {"chain", "cosines", "crossings"}
    compared = [row for row in found["stages"] if row["status"] == "compared"]
    assert all(row.keys() >= STAGE for row in found["stages"])
    assert all(row["accumulated"].keys() >= FIGURES for row in compared)
    assert all(row["nonfinite"].keys() >= {"oracle", "subject"} for row in compared)


def test_stages_that_were_not_asked_for_are_said_to_be_unchecked() -> None:
    found = run("bisect", "--stages", "attn_norm,attn_scores", "--format", "json").json
    assert [row["stage"] for row in found["stages"] if row["status"] == "compared"] == [
        "attn_norm",
        "attn_scores",
    ]
    assert run("bisect", "--layers", "0..1", "--format", "json").json["not_checked"] != []


def test_all_layers_bring_the_whole_model_stages() -> None:
    outcome = run("bisect", "--layers", "0..3", "--format", "json")
    assert outcome.code == 0
    names = {(row["layer"], row["stage"]) for row in outcome.json["stages"] if row["status"] == "compared"}
    assert {Key(None, "final_norm"), Key(None, "lm_head"), Key(2, "post_ffn_residual")} <= names


def test_without_attention_substages_four_stages_are_left_out() -> None:
    outcome = run("bisect", "--no-attn-substages", "--format", "json")
    compared = {row["stage"] for row in outcome.json["stages"] if row["status"] == "compared"}
    assert outcome.code == 0
    assert not compared & {"q_post_rope", "k_post_rope", "attn_scores", "attn_softmax"}
    assert {"attn_norm", "attention"} <= compared


def test_one_token_is_said_to_be_blind_to_rotary_angles_and_softmax() -> None:
    outcome = run("bisect", "--tokens", "90", "--format", "json")
    assert (outcome.code, outcome.json["kind"]) == (4, "unmeasured")
    assert any("one token" in found["explanation"] for found in outcome.json["findings"])
