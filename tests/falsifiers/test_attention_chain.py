"""FALSIFY-ATTN-SUB-004: of the nine stages of the layer-0 attention chain exactly one introduces the error.

On the embedded default the prediction is of the method: a fault seeded in each of the nine stages is located
there, and a correct subject shows none. On a live lane these are its controls, and the prediction is of the
subject.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.model.stages import ATTENTION_CHAIN
from apr_falsify.pytest_plugin.verdict import Record, assert_one_source
from tests.falsifiers.seeded import FAULT_IN, Bench, places

pytestmark = pytest.mark.falsify_attn_sub_004
Keep = Callable[[str, Bisection], None]


@pytest.mark.parametrize("stage", ATTENTION_CHAIN)
def test_a_fault_seeded_in_one_stage_is_located_exactly_there(
    stage: str, bench: Bench, keep_bisection: Keep, record_property: Record
) -> None:
    found = bench.bisection(stage)
    keep_bisection(f"fault-in-{stage}", found)
    assert FAULT_IN[stage].stages == (stage,)
    assert places(found) == [(0, (stage,))]
    assert assert_one_source(found, ATTENTION_CHAIN, 0, record_property) == stage


def test_a_correct_subject_shows_no_source(embedded_bisection: Bisection) -> None:
    assert embedded_bisection.kind is Kind.CONSISTENT
    assert embedded_bisection.complete
    assert {row.stage for row in embedded_bisection.rows} >= set(ATTENTION_CHAIN)


def test_two_faults_are_two_sources_and_not_one(bench: Bench) -> None:
    found = bench.bisection("qkv_bias", "attention")
    assert places(found) == [(0, ("qkv_bias",)), (0, ("attention",))]
    with pytest.raises(AssertionError, match="qkv_bias, attention"):
        assert_one_source(found, ATTENTION_CHAIN, 0)


@pytest.mark.falsify_attn_sub_004(role="control")
def test_the_published_rule_counts_two_crossings_where_one_stage_is_the_source(bench: Bench) -> None:
    # q and k are siblings and the rule takes them for a chain, so one missing bias of k crosses twice.
    found = bench.bisection("qkv_bias")
    (rule,) = found.published
    assert len(rule.cosines) == 9
    assert rule.crossings == (("qkv_matmul", "qkv_bias"), ("q_post_rope", "k_post_rope"))


@pytest.mark.falsify_attn_sub_004(level="live")
def test_the_subject_of_the_lane_has_exactly_one_source(
    bisection: Bisection, record_property: Record
) -> None:
    assert_one_source(bisection, ATTENTION_CHAIN, 0, record_property)
