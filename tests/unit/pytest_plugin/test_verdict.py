"""The rule of one source: held, refuted, or not measured; never one for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apr_falsify.compare.bisection import Bisection, Finding, FindingType, Kind, Status, Verdict
from apr_falsify.model.stages import ATTENTION_CHAIN
from apr_falsify.pytest_plugin.verdict import UNMEASURED, Falsified, assert_one_source, printed
from tests.unit.evidence.bundles import measured_draft, scaled

CHAIN = ("attn_norm", "qkv_matmul", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax")


@pytest.fixture(scope="module")
def faulty() -> Bisection:
    """One source, attn_softmax."""
    return measured_draft(scaled("attn_softmax", 1.5))[1]


@pytest.fixture(scope="module")
def sound() -> Bisection:
    return measured_draft()[1]


def with_row(bisection: Bisection, stage: str, **changes: object) -> Bisection:
    rows = tuple(replace(row, **changes) if row.stage == stage else row for row in bisection.rows)
    return replace(bisection, rows=rows)


def with_finding(bisection: Bisection, kind: FindingType, *stages: str, layer: int | None = 0) -> Bisection:
    finding = Finding(type=kind, explanation="because", layer=layer, stages=stages)
    return replace(bisection, findings=(*bisection.findings, finding))


def test_one_source_is_named_and_its_figures_are_kept(faulty: Bisection) -> None:
    kept: list[tuple[str, object]] = []
    assert assert_one_source(faulty, CHAIN, 0, lambda *pair: kept.append(pair)) == "attn_softmax"
    names = [name for name, _ in kept]
    assert names[: len(CHAIN)] == [f"cosine.{name}" for name in CHAIN]
    assert ("source", "attn_softmax") in kept
    assert dict(kept)["crossings"] == "0", "a scale changes no cosine"


def test_none_is_refuted_with_the_stage_table(sound: Bisection) -> None:
    with pytest.raises(Falsified, match="found: none") as refuted:
        assert_one_source(sound, CHAIN, 0)
    assert refuted.value.report().startswith("predicted: exactly one of 6 stages of layer 0")
    assert "attn_scores" in refuted.value.report()


def test_several_are_refuted_by_name(faulty: Bisection) -> None:
    both = with_finding(faulty, FindingType.SOURCE, "qkv_matmul")
    with pytest.raises(Falsified, match="found: qkv_matmul, attn_softmax"):
        assert_one_source(both, CHAIN, 0)


def test_two_findings_on_one_stage_are_one_source(faulty: Bisection) -> None:
    twice = with_finding(faulty, FindingType.WEIGHTS, "attn_softmax")
    assert assert_one_source(twice, CHAIN, 0) == "attn_softmax"


def test_a_span_cannot_be_narrowed_to_one(sound: Bisection) -> None:
    with pytest.raises(Falsified, match="found: q_post_rope, attn_scores"):
        assert_one_source(with_finding(sound, FindingType.SOURCE, "q_post_rope", "attn_scores"), CHAIN, 0)


def test_a_source_elsewhere_does_not_count(faulty: Bisection) -> None:
    elsewhere = with_finding(faulty, FindingType.SOURCE, "ffn_out")
    other_layer = with_finding(elsewhere, FindingType.SOURCE, "attn_norm", layer=1)
    assert assert_one_source(other_layer, CHAIN, 0) == "attn_softmax"


NOT_MEASURED: dict[str, tuple[Callable[[Bisection], Bisection], str]] = {
    "a stage is missing": (
        lambda found: with_row(found, "attn_norm", status=Status.MISSING_IN_SUBJECT),
        "layer 0 lacks attn_norm",
    ),
    "a stage cannot be judged": (
        lambda found: with_row(found, "attn_norm", verdict=Verdict.UNMEASURED),
        "layer 0: attn_norm could not be judged",
    ),
    "the reference is suspect": (
        lambda found: replace(found, kind=Kind.REFERENCE_SUSPECT),
        "the reference fails its own replay",
    ),
    "a finding says so": (
        lambda found: with_finding(found, FindingType.UNMEASURED, "qkv_matmul"),
        "because",
    ),
    "the weights are not the subject's": (
        lambda found: with_finding(found, FindingType.NOT_THE_SUBJECTS_WEIGHTS, layer=None),
        "because",
    ),
}


@pytest.mark.parametrize("why", NOT_MEASURED)
def test_what_was_not_measured_is_neither(faulty: Bisection, why: str) -> None:
    change, said = NOT_MEASURED[why]
    with pytest.raises(pytest.skip.Exception) as skipped:
        assert_one_source(change(faulty), CHAIN, 0)
    assert str(skipped.value).startswith(UNMEASURED + said)


def test_a_layer_or_a_stage_that_was_not_captured_is_not_measured(faulty: Bisection) -> None:
    for chain, layer in ((CHAIN, 3), (ATTENTION_CHAIN, 0)):
        with pytest.raises(pytest.skip.Exception, match="lacks"):
            assert_one_source(faulty, chain, layer)


def test_what_is_told_has_no_colours(faulty: Bisection) -> None:
    assert "\x1b" not in printed(faulty)
    assert "source: layer 0, attn_softmax" in printed(faulty)
