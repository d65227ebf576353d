"""From judged stages to findings, each from entries made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from apr_falsify.compare.bisection import FindingType, Status, Verdict
from apr_falsify.compare.findings import (
    arithmetic_findings,
    differing_on_equal_inputs,
    one_token_findings,
    reference_findings,
    source_findings,
    unmeasured_findings,
)
from apr_falsify.compare.foreign import foreign_weights, wrong_without_weights
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.replay import Missing
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray
from tests.unit.compare.judged_by_hand import Q8, entry, fit, metrics, of, row
from tests.unit.helpers import small_geometry, small_model

# --- a judged stage ------------------------


@pytest.mark.parametrize(("excess", "wrong"), [(1.0, False), (math.nextafter(1, 2), True), (math.inf, True)])
def test_a_residual_at_its_floor_is_no_error(excess: float, wrong: bool) -> None:
    assert entry("attn_norm", excess).in_error is wrong
    assert not entry("attn_norm", None).in_error


@pytest.mark.parametrize(("share", "explains"), [(0.9, True), (0.899, False), (1.0, True)])
def test_an_arithmetic_explains_a_stage_that_is_right_in_nine_of_ten_places(
    share: float, explains: bool
) -> None:
    assert fit(share=share).explains is explains


def test_stages_of_one_operation_and_weight_type_share_an_arithmetic() -> None:
    assert entry("ffn_up", weight_type="q4_k").kind == (Operation.PROJECTION, "q4_k")
    assert entry("attn_scores").kind == (Operation.SCORES, "")
    assert entry("ffn_silu").kind == (Operation.ELEMENTWISE, "")


# --- a reference that fails, other weights, other arithmetic ------


def test_a_reference_is_suspect_from_one_stage_on_and_the_first_is_named() -> None:
    assert reference_findings(of(entry("attn_norm"), entry("attn_out", 1.0))) == []
    (found,) = reference_findings(of(entry("attn_norm"), entry("attn_out", 1.5, 1), entry("ffn_out", 9.0, 1)))
    assert (found.type, found.layer, found.stages, found.size) == (
        FindingType.REFERENCE,
        1,
        ("attn_out",),
        1e-7,
    )
    assert "in 2 stages, first in layer 1 attn_out: residual 1.0e-07, floor 2.0e-07" in found.explanation
    assert "1.5 x its floor at the worst place" in found.explanation


PRODUCTS = ("qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out")


def products(wrong: int, right: int, names: tuple[str, ...] = PRODUCTS) -> Mapping[Key, Judged]:
    made = [
        entry(names[index % len(names)], 5.0 if index < wrong else 0.5, index // len(names))
        for index in range(wrong + right)
    ]
    return of(*made, entry("attn_norm"))


@pytest.mark.parametrize(
    ("judged", "foreign"),
    [
        (products(5, 0), True),
        (products(9, 1), True),
        (products(8, 1), False),  # fewer than nine of ten
        (products(4, 0), True),
        (products(3, 0), False),  # too few to say so
        (products(8, 0, PRODUCTS[:3]), False),  # of too few stages
        (products(8, 0, PRODUCTS[:4]), True),
    ],
)
def test_where_nearly_every_product_is_wrong_the_weights_are(
    judged: Mapping[Key, Judged], foreign: bool
) -> None:
    assert bool(foreign_weights(judged, False, "f32")) is foreign
    assert foreign_weights(judged, True, "f32") == []


def test_foreign_weights_are_one_finding_of_the_median_size() -> None:
    judged = of(
        *(
            replace(entry(name, 5.0), fit=fit(5.0, residual=size))
            for name, size in zip(PRODUCTS, (0.3, 0.1, 0.2, 0.5, 0.4), strict=True)
        )
    )
    (found,) = foreign_weights(judged, False, "f16")
    assert found.type is FindingType.NOT_THE_SUBJECTS_WEIGHTS
    assert (found.size, found.stages) == (0.3, PRODUCTS)
    assert "5 of 5 projections differ from their replay, by 1.0e-01 to 5.0e-01" in found.explanation
    assert "only saved in f16, let its mapping say dtype: f32" in found.advice
    (found,) = foreign_weights(judged, False, "f32")
    assert found.advice.endswith("as --oracle")


def test_of_stages_without_weights_a_few_wrong_ones_are_wrong_by_themselves() -> None:
    simple = ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention", "ffn_silu")
    few = of(entry("q_post_rope", 5.0), *(entry(name) for name in simple[1:]))
    assert list(wrong_without_weights(few)) == [Key(0, "q_post_rope")]
    half = of(*(entry(name, 5.0) for name in simple[:3]), *(entry(name) for name in simple[3:]))
    assert wrong_without_weights(half) == {}
    below = of(*(entry(name, 5.0) for name in simple[:2]), *(entry(name) for name in simple[2:]))
    assert list(wrong_without_weights(below)) == [Key(0, "q_post_rope"), Key(0, "k_post_rope")]


def test_norms_and_biases_are_counted_apart_from_what_has_no_weights() -> None:
    norms = of(entry("attn_norm", 5.0), entry("ffn_norm"), entry("qkv_bias"), entry("ffn_silu", 5.0))
    assert list(wrong_without_weights(norms)) == [Key(0, "attn_norm")]
    left_out = of(
        entry("embedding", 5.0),
        entry("ffn_up", 5.0),
        entry("attn_norm", 5.0, composed=("embedding",)),
        entry("ffn_norm", None),
        *(entry("ffn_silu", 0.5, layer) for layer in range(4)),
    )
    assert wrong_without_weights(left_out) == {}


def test_an_arithmetic_that_is_not_the_expected_one_is_a_finding_over_its_layers() -> None:
    def other(layer: int, residual: float, **more: Any) -> Judged:
        own = fit(0.5, Q8, residual)
        return replace(entry("ffn_up", 0.5, layer, weight_type="q4_0"), fit=own, **more)

    assert arithmetic_findings(of(entry("ffn_up"))) == []
    assert arithmetic_findings(of(replace(other(0, 1e-7), expected=Q8))) == []
    wrong = replace(other(0, 1e-7), fit=fit(2.0, Q8))
    assert arithmetic_findings(of(wrong, entry("ffn_gate", None))) == []
    (found,) = arithmetic_findings(of(other(0, 1e-7), other(2, 3e-7)))
    assert (
        found.explanation
        == "ffn_up (layers 0, 2): q8_0 blocks of 32 fits (residual 3.0e-07), expected is f32"
    )
    assert (found.layer, found.stages, found.size) == (None, ("ffn_up",), 3e-7)
    (found,) = arithmetic_findings(of(other(2, 3e-7)))
    assert found.layer == 2
    (found,) = arithmetic_findings(of(replace(other(2, 3e-7), expected=Q8, simulated=True)))
    assert "no arithmetic of the table explains it, expected is q8_0 blocks of 32" in found.explanation
    (found,) = arithmetic_findings(of(replace(entry("lm_head", layer=None), fit=fit(0.5, Q8))))
    assert found.explanation.startswith("lm_head (the whole model): ")


@pytest.mark.parametrize(
    ("share", "hidden"), [(0.0099, True), (0.0101, False), (0.015, False), (None, False)]
)
def test_an_error_is_said_not_to_show_where_its_reader_has_less_than_a_hundredth_of_it(
    share: float | None, hidden: bool
) -> None:
    model = small_model()
    key: Key = Key(1, "q_post_rope")
    run = capture(model, Request(tokens=(3, 1, 4), layers=range(2), stages=tuple(STAGES)), MemorySink())
    wrong = replace(run, stages={**run.stages, key: StageArray(data=2 * run.stages[key].data)})
    entries = judge(wrong, model.weights, [key])
    judged = of(replace(entries[key], introduced=metrics(0.5)))
    after = None if share is None else metrics(0.5 * share)
    rows = [row("attn_scores", layer=1, accumulated=after), row("attn_softmax", layer=1)]
    (found,) = source_findings(wrong, model.weights, judged, rows, own_weights=True)
    assert found.explanation.startswith("layer 1 q_post_rope is not what its inputs make it: residual ")
    assert found.explanation.endswith("; attn_scores does not show it") is hidden
    unmeasured = of(replace(judged[key], introduced=None))
    (found,) = source_findings(wrong, model.weights, unmeasured, rows, own_weights=True)
    assert "does not show it" not in found.explanation


# --- without weights, without a second token, without a file ------

GEOMETRY = small_geometry()


@pytest.mark.parametrize(
    ("inputs", "own", "differs"),
    [
        (0.0, 0.03, True),
        (9e-6, 0.03, True),
        (2e-5, 0.03, False),  # its inputs differ already
        (0.0, 0.019, False),  # bf16 may bring as much
        (0.0, 0.021, True),
    ],
)
def test_an_elementwise_stage_that_differs_on_equal_inputs_is_wrong(
    inputs: float, own: float, differs: bool
) -> None:
    rows = [
        row("ffn_silu", accumulated=metrics(inputs)),
        row("ffn_up", accumulated=metrics(0.0)),
        row("ffn_swigl", accumulated=metrics(own)),
    ]
    missing = Missing(what="the weights", remedy="")
    judged = of(entry("ffn_swigl", None, missing=missing))
    found = differing_on_equal_inputs(rows, judged, GEOMETRY)
    assert (list(found) == [Key(0, "ffn_swigl")]) is differs
    if differs:
        assert found[0, "ffn_swigl"] == (rows[2], pytest.approx(inputs, abs=1e-12))
    assert differing_on_equal_inputs(rows[1:], judged, GEOMETRY) == {}
    assert differing_on_equal_inputs(rows, of(entry("ffn_swigl")), GEOMETRY) == {}
    assert differing_on_equal_inputs(rows, {}, GEOMETRY) == {}


def test_a_product_may_differ_on_equal_inputs() -> None:
    rows = [row("ffn_norm", accumulated=metrics(0.0)), row("ffn_up", accumulated=metrics(0.5))]
    judged = of(entry("ffn_up", None, missing=Missing(what="the weights", remedy="")))
    assert differing_on_equal_inputs(rows, judged, GEOMETRY) == {}


def test_one_token_leaves_what_turns_and_weighs_unmeasured() -> None:
    rows = [row("attn_scores"), row("attn_norm"), row("k_post_rope", status=Status.MISSING_IN_SUBJECT)]
    assert one_token_findings(rows, 2) == []
    assert one_token_findings(rows[1:], 1) == []
    (found,) = one_token_findings(rows, 1)
    assert (found.type, found.stages) == (FindingType.UNMEASURED, ("attn_scores",))


def test_what_is_missing_is_told_with_the_remedy_and_by_layer() -> None:
    missing = Missing(what="the weights", remedy="--weights MODEL")
    unjudged: dict[str, Any] = {"status": Status.NOT_REPLAYABLE, "accumulated": metrics(0.5)}
    rows = [
        row("attn_norm", Verdict.UNMEASURED, **unjudged),
        row("ffn_norm", Verdict.UNMEASURED, **unjudged),
        row("attn_norm", Verdict.UNMEASURED, layer=1, **unjudged),
        row("ffn_up", Verdict.INTRODUCES, **unjudged),
        row("ffn_out", Verdict.WITHIN_FLOOR),
    ]
    entries = [entry(each.stage, None, each.layer, missing=missing) for each in rows]
    first, second = unmeasured_findings(rows, of(*entries), {})
    assert (first.layer, first.stages, first.advice) == (0, ("attn_norm", "ffn_norm"), "--weights MODEL")
    assert first.explanation == (
        "attn_norm, ffn_norm: it differs from the oracle and cannot be replayed without the weights"
    )
    assert (second.layer, second.stages) == (1, ("attn_norm",))


def test_models_of_different_geometry_leave_a_stage_unmeasured() -> None:
    rows = [row("attn_norm", Verdict.UNMEASURED, status=Status.NOT_REPLAYABLE)]
    (found,) = unmeasured_findings(rows, of(entry("attn_norm")), {})
    assert found.explanation == "attn_norm: the sides have different geometry"


def test_a_stage_that_the_oracle_lacks_is_unmeasured_unless_its_replay_judged_it() -> None:
    rows = [row("attn_norm", Verdict.UNMEASURED, status=Status.MISSING_IN_ORACLE)]
    (found,) = unmeasured_findings(rows, {}, {})
    assert found.explanation == "attn_norm: the oracle's trace has no such file"
    assert unmeasured_findings([replace(rows[0], verdict=Verdict.WITHIN_FLOOR)], {}, {}) == []


def test_a_stage_that_the_subject_gave_none_of_says_why_unless_it_was_computed_through() -> None:
    rows = [row("ffn_silu", Verdict.UNMEASURED, status=Status.MISSING_IN_SUBJECT)]
    (found,) = unmeasured_findings(rows, {}, {})
    assert "the subject has no such file" in found.explanation
    (found,) = unmeasured_findings(rows, {}, {"ffn_silu": "its kernel is fused"})
    assert "the subject gave none: its kernel is fused" in found.explanation
    through = of(entry("ffn_swigl", composed=("ffn_silu",)))
    assert unmeasured_findings(rows, through, {}) == []
