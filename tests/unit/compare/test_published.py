"""The published rule: nine cosines and where they cross 0.999."""

from __future__ import annotations

import json
import math

import pytest

from apr_falsify.compare.published import published_rule
from apr_falsify.model.stages import ATTENTION_CHAIN

GOOD = dict.fromkeys(ATTENTION_CHAIN, 1.0)


def crossings(**cosines: float | None) -> tuple[tuple[str, str], ...]:
    return published_rule(0, {**GOOD, **cosines}).crossings


def test_nine_good_cosines_cross_nowhere() -> None:
    rule = published_rule(0, GOOD)
    assert (rule.chain, rule.cosines, rule.crossings) == (ATTENTION_CHAIN, (1.0,) * 9, ())
    assert rule.complete


def test_one_crossing_is_a_pair_of_neighbours() -> None:
    assert crossings(attention=0.5, attn_out=0.4) == (("attn_softmax", "attention"),)


def test_a_missing_k_bias_makes_two_crossings() -> None:
    # Domain section 4: q and k are siblings, and the rule takes them for a chain.
    found = crossings(
        qkv_bias=0.7, k_post_rope=0.2, attn_scores=0.1, attn_softmax=0.3, attention=0.6, attn_out=0.5
    )
    assert found == (("qkv_matmul", "qkv_bias"), ("q_post_rope", "k_post_rope"))


@pytest.mark.parametrize(("cosine", "crosses"), [(0.999, False), (math.nextafter(0.999, 0), True)])
def test_the_threshold_itself_is_good(cosine: float, crosses: bool) -> None:
    assert bool(crossings(attn_out=cosine)) is crosses


def test_a_stage_at_the_threshold_is_good_enough_to_be_crossed_from() -> None:
    assert crossings(attention=0.999, attn_out=0.998) == (("attention", "attn_out"),)


def test_a_bad_first_stage_is_no_crossing() -> None:
    assert crossings(attn_norm=0.1) == ()


def test_a_stage_that_the_model_lacks_is_left_out_and_its_neighbours_meet() -> None:
    without = {name: cosine for name, cosine in GOOD.items() if name != "qkv_bias"}
    rule = published_rule(3, {**without, "q_post_rope": 0.5})
    assert len(rule.chain) == 8
    assert rule.crossings == (("qkv_matmul", "q_post_rope"),)
    assert rule.complete


@pytest.mark.parametrize("unmeasured", [None, math.nan])
def test_an_unmeasured_stage_stays_and_crosses_nothing(unmeasured: float | None) -> None:
    rule = published_rule(0, {**GOOD, "attn_scores": unmeasured, "attn_softmax": 0.2})
    assert rule.cosines[5] is None
    assert rule.crossings == ()
    assert not rule.complete


@pytest.mark.falsify_bisect_001
@pytest.mark.parametrize("cosines", [{}, {"attn_norm": 1.0}, {"ffn_norm": 1.0, "ffn_out": 0.1}])
def test_nothing_to_compare_is_never_complete(cosines: dict[str, float]) -> None:
    rule = published_rule(0, cosines)
    assert not rule.complete
    assert rule.crossings == ()


def test_its_json_is_that_of_the_schema() -> None:
    rule = published_rule(2, {"attn_out": 0.5, "attn_norm": 1.0, "attention": None, "qkv_matmul": 0.1})
    assert json.loads(json.dumps(rule.to_json(), allow_nan=False)) == {
        "layer": 2,
        "chain": ["attn_norm", "qkv_matmul", "attention", "attn_out"],
        "cosines": [1.0, 0.1, None, 0.5],
        "crossings": [["attn_norm", "qkv_matmul"]],
    }
