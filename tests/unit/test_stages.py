"""The table of stages, and how lists of stages and layers are read."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.errors import LayerRangeError, StageError
from apr_falsify.model.families import graph_of
from apr_falsify.model.stages import (
    ALIASES,
    APR_STAGES,
    ATTENTION_CHAIN,
    ATTENTION_SUBSTAGES,
    LAYER_INPUT,
    STAGES,
    Layout,
    Scope,
    canonical_shape,
    in_forward_order,
    parse_layers,
    parse_stages,
    stage,
    stored_shape,
)
from tests.support import DATA
from tests.unit.helpers import KNOBS, small_geometry

DIMS = {
    "tokens": 5,
    "hidden": 12,
    "heads": 4,
    "q": 24,
    "kv": 12,
    "qkv": 48,
    "ffn": 20,
    "vocab": 30,
    "head_dim": 6,
}


def names_that_apr_accepts() -> list[str]:
    """The list in the error that the real apr 0.72.3 prints for an unknown stage."""
    message = (DATA / "apr-output" / "trace-unknown-stage.txt").read_text()
    found = re.search(r'valid: "([^"]+)"', message)
    assert found
    return found[1].split(",")


@pytest.mark.falsify_ffn_sub_001
@pytest.mark.falsify_attn_sub_001
def test_the_stages_are_exactly_those_of_the_real_apr_in_its_order() -> None:
    assert list(APR_STAGES) == names_that_apr_accepts()
    assert len(APR_STAGES) == 23
    assert {name for name in STAGES if STAGES[name].inner} == set(STAGES) - set(APR_STAGES)


@pytest.mark.falsify_attn_sub_002
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_every_input_is_a_stage_that_stands_before_its_reader(knobs: dict[str, object]) -> None:
    graph = graph_of(small_geometry(**knobs))
    for nodes in graph.layers:
        order = [LAYER_INPUT, *nodes]
        for name, node in nodes.items():
            assert all(order.index(source) < order.index(name) for source in node.inputs.values())


def test_only_final_norm_and_lm_head_exist_once_per_model() -> None:
    whole = [row.name for row in STAGES.values() if row.scope is Scope.MODEL]
    assert whole == ["final_norm", "lm_head_proj", "lm_head"]
    assert [row.name for row in STAGES.values() if row.scope is Scope.FIRST_LAYER] == ["embedding"]


@pytest.mark.falsify_attn_sub_001
def test_the_chain_of_the_published_rule_and_its_substages() -> None:
    assert len(ATTENTION_CHAIN) == 9
    assert set(ATTENTION_SUBSTAGES) < set(ATTENTION_CHAIN) < set(STAGES)


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_every_stage_feeds_another_but_the_last_and_the_mixture(knobs: dict[str, object]) -> None:
    for nodes in graph_of(small_geometry(**knobs)).layers:
        read = {source for node in nodes.values() for source in node.inputs.values()}
        assert set(nodes) - read <= {"post_ffn_residual", "moe_ffn_out"}


@pytest.mark.parametrize("text", ["all", "ALL", " all "])
def test_all_means_every_stage(text: str) -> None:
    assert parse_stages(text) == tuple(STAGES)


def test_case_and_blanks_do_not_matter_and_order_is_the_tables() -> None:
    assert parse_stages(" Attn_Scores , EMBEDDING,attn_norm") == ("embedding", "attn_norm", "attn_scores")


def test_the_alias_names_the_same_stage_once() -> None:
    assert parse_stages("layer_output,post_ffn_residual") == ("post_ffn_residual",)
    assert stage("Layer_Output").name == ALIASES["layer_output"]


@pytest.mark.parametrize("text", ["", " ", ",", "attn_norm,", ",attn_norm", "attn_norm, ,attn_out"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="empty stage name"):
        parse_stages(text)


@pytest.mark.parametrize(
    ("wrong", "offered"),
    [
        ("attn_softmaxx", "attn_softmax"),
        ("ffn_swiglu", "ffn_swigl"),
        ("embeddings", "embedding"),
        ("layer_outputs", "layer_output"),
        ("lmhead", "lm_head"),
    ],
)
def test_an_unknown_stage_is_refused_and_the_nearest_offered(wrong: str, offered: str) -> None:
    with pytest.raises(StageError) as refusal:
        parse_stages(f"attn_norm,{wrong}")
    assert repr(wrong) in refusal.value.what
    assert repr(offered) in refusal.value.remedy
    assert "moe_router_indices" in refusal.value.expected


def test_all_among_other_names_is_no_stage() -> None:
    with pytest.raises(StageError):
        parse_stages("all,embedding")


@pytest.mark.falsify_attn_sub_001
@given(st.lists(st.sampled_from(list(STAGES)), min_size=1))
def test_any_list_of_stages_is_read_back_in_forward_order(names: list[str]) -> None:
    assert parse_stages(",".join(names)) == in_forward_order(names)


@pytest.mark.falsify_save_tensor_004
@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_layer_range_is_end_exclusive(first: int, count: int) -> None:
    assert parse_layers(f" {first}..{first + count} ") == range(first, first + count)


@pytest.mark.falsify_save_tensor_004
@pytest.mark.parametrize(
    "text",
    ["", "3", "0..", "..3", "0.3", "0...3", "-1..3", "a..b", "0..1..2", "0 .. 1", "٣..٤", "²..³", "0x1..2"],
)
def test_a_malformed_layer_range_is_refused(text: str) -> None:
    with pytest.raises(LayerRangeError, match="not a layer range"):
        parse_layers(text)


def test_a_layer_number_of_five_thousand_digits_is_refused() -> None:
    with pytest.raises(LayerRangeError):
        parse_layers("0.." + "9" * 5000)


@pytest.mark.parametrize("text", ["3..3", "3..2"])
def test_an_empty_layer_range_is_refused(text: str) -> None:
    with pytest.raises(LayerRangeError, match="is empty"):
        parse_layers(text)


@pytest.mark.falsify_attn_sub_002
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embedding", (5, 12)),
        ("qkv_matmul", (5, 48)),
        ("q_post_rope", (5, 24)),
        ("k_post_rope", (5, 12)),
        ("attn_scores", (4, 5, 5)),
        ("ffn_swigl", (5, 20)),
        ("lm_head", (30,)),
    ],
)
def test_canonical_shapes(name: str, shape: tuple[int, ...]) -> None:
    assert canonical_shape(name, DIMS) == shape
    assert stored_shape(name, (), DIMS, math.prod(shape)) == shape


def test_a_stage_that_the_geometry_has_no_axis_for_is_refused() -> None:
    with pytest.raises(StageError, match="moe_router"):
        canonical_shape("moe_router", DIMS)


@pytest.mark.parametrize(
    ("name", "layout", "shape"),
    [
        ("q_post_rope", (Layout.HEAD_MAJOR,), (4, 5, 6)),
        ("k_post_rope", (Layout.HEAD_MAJOR, Layout.INTERLEAVED), (2, 5, 6)),
        ("k_post_rope", (Layout.HEAD_MAJOR, Layout.LAST_TOKEN), (2, 6)),
        ("attn_scores", (Layout.CAUSAL_ZEROED, Layout.UNSCALED), (4, 5, 5)),
        ("attn_scores", (Layout.PADDED_KEYS,), (4, 5, 256)),
        ("attn_scores", (Layout.LAST_TOKEN,), (4, 5, 5)),
        ("final_norm", (Layout.LAST_TOKEN,), (12,)),
        ("lm_head", (Layout.LAST_TOKEN,), (30,)),
        ("lm_head", (Layout.HEAD_MAJOR,), (30,)),
        ("ffn_out", (Layout.PADDED_KEYS,), (5, 12)),
    ],
)
def test_stored_shapes(name: str, layout: tuple[Layout, ...], shape: tuple[int, ...]) -> None:
    assert stored_shape(name, layout, DIMS, math.prod(shape)) == shape


@given(st.sampled_from(list(STAGES)), st.sets(st.sampled_from(list(Layout))), st.integers(0, 3000))
def test_a_stored_shape_holds_exactly_the_values_or_there_is_none(
    name: str, layout: set[Layout], values: int
) -> None:
    if not set(STAGES[name].axes) <= DIMS.keys():  # of a mixture
        return
    shape = stored_shape(name, layout, DIMS, values)
    assert shape is None or math.prod(shape) == values
