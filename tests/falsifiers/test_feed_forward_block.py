"""FALSIFY-FFN-SUB-001 and 002: the six stages of layer 3's feed-forward block, and its one source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.pytest_plugin.verdict import Record, assert_one_source
from tests.falsifiers.real_apr import Apr, contents, stages_it_knows, values
from tests.falsifiers.seeded import FAULT_IN, Bench, places

BLOCK = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out")
LAYER = 3
Keep = Callable[[str, Bisection], None]


@pytest.mark.real_apr
@pytest.mark.falsify_ffn_sub_001
def test_the_real_apr_knows_the_six_stages_and_writes_them_in_every_layer(apr: Apr, captured: Path) -> None:
    said = apr.run("trace", "--payload", str(apr.model), "--save-tensor", "no_such_stage")
    assert set(BLOCK) <= set(stages_it_knows(said.stderr + said.stdout))
    files = contents(captured)
    sizes = {name: {values(files[f"layer-{n}/{name}.bin"]).size for n in range(3)} for name in BLOCK}
    hidden, inner = {6 * 256}, {6 * 512}
    assert [sizes[name] for name in BLOCK] == [hidden, inner, inner, inner, inner, hidden]


@pytest.mark.falsify_ffn_sub_002
@pytest.mark.parametrize("stage", BLOCK)
def test_a_fault_seeded_in_one_stage_of_layer_3_is_located_exactly_there(
    stage: str, four_layers: Bench, keep_bisection: Keep, record_property: Record
) -> None:
    found = four_layers.bisection(stage, layer=LAYER)
    keep_bisection(f"fault-in-{stage}", found)
    assert FAULT_IN[stage].stages == (stage,)
    assert places(found) == [(LAYER, (stage,))]
    assert assert_one_source(found, BLOCK, LAYER, record_property) == stage


@pytest.mark.falsify_ffn_sub_002
def test_a_correct_subject_shows_no_source_in_the_block(four_layers: Bench, keep_bisection: Keep) -> None:
    found = four_layers.bisection()
    keep_bisection("correct", found)
    assert found.kind is Kind.CONSISTENT
    assert found.complete
    assert {row.stage for row in found.rows if row.layer == LAYER} >= set(BLOCK)


@pytest.mark.falsify_ffn_sub_002(level="live")
def test_the_subject_of_the_lane_has_exactly_one_source_in_the_block(
    bisection: Bisection, record_property: Record
) -> None:
    assert_one_source(bisection, BLOCK, LAYER, record_property)
