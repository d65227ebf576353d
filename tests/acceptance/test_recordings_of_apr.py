"""What the real ``apr`` 0.72.3 wrote, as ``recorded:``, against the HuggingFace oracle."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, Outcome, assert_refused, program, run

Recorded = dict[str, Outcome]


def sources(outcome: Outcome) -> list[tuple[int | None, list[str]]]:
    return [(found["layer"], found["stages"]) for found in outcome.json["sources"]]


def findings(outcome: Outcome, kind: str) -> list[dict[str, Any]]:
    return [found for found in outcome.json["findings"] if found["type"] == kind]


def test_every_stage_that_apr_wrote_is_compared_and_none_unmeasured(recorded: Recorded) -> None:
    base = recorded["base"].json
    compared = [row for row in base["stages"] if row["status"] == "compared"]
    assert len(compared) == 54
    assert {row["status"] for row in base["stages"]} <= {"compared", "not-applicable"}
    assert base["complete"] is True
    assert base["kind"] == "consistent"
    assert max(row["accumulated"]["rel_l2"] for row in compared) < 2e-6


def test_what_apr_lays_out_differently_is_declared(recorded: Recorded) -> None:
    layouts = {row["stage"]: row["layout"] for row in recorded["base"].json["stages"] if row["layer"] == 0}
    assert layouts["attn_scores"] == ["causal-zeroed"]
    assert layouts["attn_norm"] == []


def test_the_tokenizer_that_gives_other_ids_is_a_finding_and_exits_1(recorded: Recorded) -> None:
    assert recorded["base"].code == 1
    (finding,) = findings(recorded["base"], "tokenizer")
    assert "274, 272, 223" in finding["explanation"]
    assert "274, 272, 332" in finding["explanation"]
    assert recorded["base"].json["tokens"] == [274, 272, 332, 13, 20, 33]


@pytest.mark.parametrize(("name", "stage"), [("k-bias-zero", "qkv_bias"), ("norm-scaled", "attn_norm")])
def test_a_real_fault_is_named_at_its_stage_in_layer_0(recorded: Recorded, name: str, stage: str) -> None:
    assert recorded[name].code == 1
    assert sources(recorded[name])[0] == (0, [stage])


def test_a_norm_scaled_by_one_percent_is_seen_though_its_cosine_is_one(recorded: Recorded) -> None:
    rows = recorded["norm-scaled"].json["stages"]
    row = next(row for row in rows if row["stage"] == "attn_norm" and row["layer"] == 0)
    assert row["accumulated"]["cosine"] > 0.9999999
    assert row["accumulated"]["rel_l2"] == pytest.approx(0.01, rel=0.02)
    assert row["verdict"] != "within-floor"


def test_a_quantised_run_is_compared_in_full(recorded: Recorded) -> None:
    outcome = recorded["base-q4k"]
    assert outcome.code in (0, 1)
    assert sum(row["status"] == "compared" for row in outcome.json["stages"]) == 54


def test_a_quantised_run_against_its_own_dequantised_weights_differs_less(recorded: Recorded) -> None:
    gguf = RECORDINGS / "base-q4k.gguf"
    subject = f"recorded:{RECORDINGS / 'base-q4k'}"
    own = run("bisect", "--oracle", gguf, "--subject", subject, "--tokens", APR_TOKENS, "--format", "json")
    assert own.code in (0, 1)

    def error(outcome: Outcome) -> float:
        rows = {(row["layer"], row["stage"]): row for row in outcome.json["stages"]}
        return float(rows[0, "qkv_matmul"]["accumulated"]["rel_l2"])

    assert error(own) < error(recorded["base-q4k"]) / 2


def test_text_says_in_the_first_lines_why_a_consistent_run_exits_1() -> None:
    outcome = program(
        "bisect", "--oracle", TINY, "--subject", f"recorded:{RECORDINGS / 'base'}", "--tokens", APR_TOKENS
    )
    assert outcome.code == 1
    assert "tokenizer (exit code 1)" in " ".join(outcome.out.splitlines()[:3])
    assert "published rule, layers 0 to 2: crossings of 0.999: none" in outcome.out


def test_tokens_that_are_not_those_of_the_embedding_rows_are_refused() -> None:
    subject = RECORDINGS / "base"
    outcome = run(
        "bisect", "--oracle", TINY, "--subject", f"recorded:{subject}", "--tokens", "274,272,223,13,20,33"
    )
    assert_refused(outcome, subject, "token 2 is given as 223", "332", APR_TOKENS)


def test_a_recording_without_tokens_is_refused_with_the_likely_ones() -> None:
    outcome = run("bisect", "--oracle", TINY, "--subject", f"recorded:{RECORDINGS / 'base'}")
    assert_refused(outcome, "Token ids: [...]", f"--tokens {APR_TOKENS}")


def test_a_recording_with_nothing_to_compare_it_with_is_refused() -> None:
    outcome = run("bisect", "--subject", f"recorded:{RECORDINGS / 'base'}", "--tokens", APR_TOKENS)
    assert_refused(outcome, "--oracle MODEL")


def test_a_bare_directory_given_as_subject_is_refused_with_the_right_words() -> None:
    outcome = run("bisect", "--oracle", TINY, "--subject", RECORDINGS / "base")
    assert_refused(outcome, "--subject", f"--subject recorded:{RECORDINGS / 'base'}")
