"""Structure before values: sizes and constants that differ, and which stages there are to judge."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import FindingType, Status
from apr_falsify.compare.structure import (
    _USED_BY,
    SHAPING,
    constant_findings,
    consumers,
    descendants,
    geometry_findings,
    keys_to_judge,
    same_shapes,
    status_of,
)
from apr_falsify.model.mixers import ShortConv
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.helpers import small_geometry

MODEL = replace(small_geometry(), windows=(None, 4), attn_scales=(0.5, 0.5))
"""Two layers, the second with a window of 4 tokens."""

KEYS: list[Key] = [
    *(
        Key(layer, name)
        for layer in range(2)
        for name in ("attn_norm", "q_post_rope", "attn_scores", "attn_softmax")
    ),
    Key(None, "final_norm"),
]


def explanations(oracle: Geometry, subject: Geometry) -> list[str]:
    return [finding.explanation for finding in geometry_findings(oracle, subject)]


def where_used(
    oracle: Geometry, subject: Geometry, tokens: int = 9
) -> list[tuple[int | None, tuple[str, ...]]]:
    found = constant_findings(oracle, subject, KEYS, tokens)
    assert {finding.type for finding in found} <= {FindingType.WEIGHTS}
    return [(finding.layer, finding.stages) for finding in found]


# --- geometry ------------------------


SIZES = {
    "layers": 3,
    "hidden": 20,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 6,
    "intermediate": 25,
    "vocab": 33,
    "experts_per_token": 1,
}
DEEPER: dict[str, Any] = {"windows": (None, 4, None), "attn_scales": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("size", SIZES)
def test_another_size_makes_stages_incomparable_and_is_a_finding(size: str) -> None:
    other = replace(MODEL, **{size: SIZES[size]}, **(DEEPER if size == "layers" else {}))
    assert same_shapes(MODEL, MODEL)
    assert not same_shapes(MODEL, other)
    (finding,) = geometry_findings(MODEL, other)
    assert finding.type is FindingType.GEOMETRY
    ours, theirs = getattr(MODEL, size), getattr(other, size)
    assert finding.explanation == f"{size} is {ours} in the oracle's model, {theirs} in the subject's"


NOT_COMPARED = {
    "family", "tied", "positions", "parallel", "sinks", "head_bias", "qk_normed", "experts",
    "moe_intermediate", "expert_bias", "expert_limit", "expert_alpha", "expert_shift",
}  # fmt: skip
"""Fields that the family, the tensors or the shapes tell."""


def test_every_constant_of_a_model_is_compared_or_listed_here() -> None:
    assert {field.name for field in fields(Geometry)} - {*SHAPING, *_USED_BY} == NOT_COMPARED


def test_models_with_other_mixers_or_other_layers_of_attention_are_not_of_one_shape() -> None:
    mixed = replace(MODEL, mixer=ShortConv(kernel=3, bias=False), attends=(False, True))
    assert same_shapes(mixed, replace(mixed))
    assert same_shapes(replace(MODEL, attends=(True, True)), MODEL)  # as it is where nothing is said
    for other in ({"mixer": ShortConv(kernel=4, bias=False)}, {"attends": (True, False)}):
        assert not same_shapes(mixed, replace(mixed, **other))
        assert [finding.type for finding in geometry_findings(mixed, replace(mixed, **other))] == [
            FindingType.GEOMETRY
        ]


def test_equal_models_have_no_finding() -> None:
    assert geometry_findings(MODEL, replace(MODEL)) == []
    assert where_used(MODEL, replace(MODEL)) == []


def test_a_size_names_the_stages_that_take_it() -> None:
    (finding,) = geometry_findings(MODEL, replace(MODEL, kv_heads=4))
    assert finding.stages == ("attn_scores", "attention")
    (finding,) = geometry_findings(MODEL, replace(MODEL, hidden=99))
    assert finding.stages == ()


CONSTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "epsilon": ({"norm_eps": 1e-6}, "norm_eps is 1e-05 in the oracle's model, 1e-06 in the subject's"),
    "rotary base": (
        {"rope": Rope(theta=500000.0)},
        "rope is default with base 10000 in the oracle's model, default with base 500000 in the subject's",
    ),
    "scale": (
        {"attn_scales": (0.25, 0.25)},
        "attn_scales is 0.5 in every layer in the oracle's model, 0.25 in every layer in the subject's",
    ),
    "scales by layer": (
        {"attn_scales": (0.5, 0.25)},
        "attn_scales is 0.5 in every layer in the oracle's model, (0.5, 0.25) in the subject's",
    ),
    "cap": ({"final_softcap": 30.0}, "final_softcap is None in the oracle's model, 30 in the subject's"),
    "bias": ({"qkv_bias": True}, "qkv_bias is False in the oracle's model, True in the subject's"),
    "windows": (
        {"windows": (4, 4)},
        "windows is (None, 4) in the oracle's model, 4 in every layer in the subject's",
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_another_constant_is_a_finding_with_both_values(name: str) -> None:
    changes, explanation = CONSTANTS[name]
    assert explanations(MODEL, replace(MODEL, **changes)) == [explanation]


# --- constants that are the same in other words ---------------------------------------------------------


@pytest.mark.parametrize(("factor", "same"), [(1 + 9e-7, True), (1 + 1.1e-6, False), (1 - 9e-7, True)])
def test_constants_that_agree_to_f32_are_the_same(factor: float, same: bool) -> None:
    assert (explanations(MODEL, replace(MODEL, norm_eps=1e-5 * factor)) == []) is same
    assert (explanations(MODEL, replace(MODEL, rope=Rope(theta=1e4 * factor))) == []) is same


STATED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64.0,
}
LLAMA3 = Rope(theta=1e4, kind="llama3", parameters=STATED)
YARN = Rope(theta=1e4, kind="yarn", parameters={"factor": 4.0, "original_max_position_embeddings": 64.0})


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (
            LLAMA3,
            Rope(theta=1e4, kind="divided", divisors=(1.0, 2.0)),
            True,
        ),  # as GGUF stores llama3's scaling
        (Rope(theta=1e4, kind="divided", divisors=(1.0, 2.0)), LLAMA3, True),
        (LLAMA3, Rope(theta=2e4, kind="divided", divisors=(1.0, 2.0)), False),
        (LLAMA3, YARN, False),
        (YARN, Rope(theta=1e4, kind="linear", parameters={"factor": 4.0}), False),
        (YARN, replace(YARN, parameters={**YARN.parameters, "beta_fast": 32.0}), True),  # both state the rest
        (LLAMA3, replace(LLAMA3, parameters={**STATED, "factor": 4.0}), False),
        (LLAMA3, replace(LLAMA3, parameters={**STATED, "low_freq_factor": 2.0}), False),
        (LLAMA3, replace(LLAMA3, parameters={**STATED, "factor": 8.0 * (1 + 1e-7)}), True),
        (
            Rope(theta=1e4, kind="divided", divisors=(1.0, 2.0)),
            Rope(theta=1e4, kind="divided", divisors=(1.0, 3.0)),
            False,
        ),
        (
            Rope(theta=1e4, kind="divided", divisors=(1.0, 2.0)),
            Rope(theta=1e4, kind="divided", divisors=(1.0, 2.0 + 1e-6)),
            True,
        ),
    ],
)
def test_rotary_scalings_are_compared_by_what_both_state(ours: Rope, theirs: Rope, same: bool) -> None:
    assert (explanations(replace(MODEL, rope=ours), replace(MODEL, rope=theirs)) == []) is same


def test_models_of_another_depth_differ_in_depth_alone() -> None:
    deeper = replace(MODEL, layers=3, **DEEPER)
    assert explanations(MODEL, deeper) == ["layers is 2 in the oracle's model, 3 in the subject's"]


# --- where a constant is used ------------------------


def test_a_constant_is_named_where_it_is_used_in_every_layer() -> None:
    found = where_used(MODEL, replace(MODEL, rope=Rope(theta=5e5)))
    assert found == [(0, ("q_post_rope",)), (1, ("q_post_rope",))]
    found = where_used(MODEL, replace(MODEL, norm_eps=1e-6))
    assert found == [(0, ("attn_norm",)), (1, ("attn_norm",)), (None, ("final_norm",))]


def test_a_constant_that_differs_in_one_layer_is_named_in_that_one_alone() -> None:
    assert where_used(MODEL, replace(MODEL, attn_scales=(0.5, 0.25))) == [(1, ("attn_scores",))]
    assert where_used(MODEL, replace(MODEL, windows=(None, 6))) == [(1, ("attn_softmax",))]


def test_layers_that_only_one_model_has_are_not_compared() -> None:
    deeper = replace(MODEL, layers=3, windows=(None, 6, 4), attn_scales=(0.5, 0.5, 0.25))
    keys: list[Key] = [*KEYS, Key(2, "attn_scores"), Key(2, "attn_softmax")]
    for ours, theirs in ((MODEL, deeper), (deeper, MODEL)):
        found = constant_findings(ours, theirs, keys, 9)
        assert [(finding.layer, finding.stages) for finding in found] == [(1, ("attn_softmax",))]


def test_the_usual_scale_of_scores_is_compared_with_one_that_a_model_states() -> None:
    usual = replace(MODEL, attn_scales=())  # 1 / sqrt(4)
    assert where_used(usual, MODEL) == []
    assert where_used(usual, replace(MODEL, attn_scales=(0.5, 0.25))) == [(1, ("attn_scores",))]
    assert explanations(usual, replace(MODEL, attn_scales=(0.25, 0.25))) == [
        "attn_scales is 0.5 in every layer in the oracle's model, 0.25 in every layer in the subject's"
    ]


def test_a_window_as_wide_as_the_run_is_none() -> None:
    without = replace(MODEL, windows=(None, None))
    assert where_used(MODEL, without, tokens=5) == [(1, ("attn_softmax",))]
    assert where_used(MODEL, without, tokens=4) == []
    assert where_used(without, MODEL, tokens=5) == [(1, ("attn_softmax",))]
    assert where_used(without, MODEL, tokens=4) == []


def test_a_tensor_that_one_model_lacks_is_left_to_the_comparison_of_weights() -> None:
    keys: list[Key] = [
        Key(0, "qkv_bias"),
        Key(0, "attn_out"),
        Key(0, "ffn_gate"),
        Key(0, "ffn_up"),
        Key(0, "ffn_out"),
    ]
    for name in ("qkv_bias", "output_bias", "mlp_bias"):
        assert constant_findings(MODEL, replace(MODEL, **{name: True}), keys, 9) == []


def test_both_values_are_in_the_explanation_as_the_models_state_them() -> None:
    (finding,) = constant_findings(MODEL, replace(MODEL, windows=(None, 6)), KEYS, 9)
    assert finding.explanation == (
        "windows is (None, 4) in the oracle's model, (None, 6) in the model that the subject runs"
    )


# --- which stages there are ------------------------


def trace(keys: list[Key], runtime: str = "hf", **provenance: Any) -> Trace:
    array = StageArray(data=np.ones(1))
    return Trace(
        provenance=Provenance(runtime=runtime, **provenance),
        geometry=MODEL,
        tokens=(1, 2, 3),
        stages=dict.fromkeys(keys, array),
    )


def test_the_layers_of_either_side_are_judged_and_whole_model_stages_last() -> None:
    ours, theirs = trace([Key(1, "attn_norm")]), trace([Key(0, "attn_norm"), Key(None, "lm_head")])
    keys = keys_to_judge(ours, theirs, None, None)
    assert [key for key in keys if key[1] == "attn_norm"] == [Key(0, "attn_norm"), Key(1, "attn_norm")]
    assert keys[0] == Key(0, "embedding")
    assert Key(1, "embedding") not in keys
    assert [layer for layer, _ in keys] == sorted((layer for layer, _ in keys), key=lambda x: (x is None, x))
    assert keys[-2:] == [Key(None, "final_norm"), Key(None, "lm_head")]


def test_chosen_layers_and_stages_are_judged_in_forward_order() -> None:
    one = trace([Key(0, "attn_norm"), Key(1, "attn_norm")])
    keys = keys_to_judge(one, one, [1, 0], ["ffn_out", "attn_norm", "embedding", "lm_head"])
    assert keys == [
        Key(0, "embedding"),
        Key(0, "attn_norm"),
        Key(0, "ffn_out"),
        Key(1, "attn_norm"),
        Key(1, "ffn_out"),
        Key(None, "lm_head"),
    ]
    assert keys_to_judge(one, one, [1], ["embedding"]) == []


NORM: Key = Key(0, "attn_norm")


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        (trace([NORM]), trace([NORM]), Status.COMPARED),
        (trace([NORM]), trace([]), Status.MISSING_IN_SUBJECT),
        (trace([]), trace([NORM]), Status.MISSING_IN_ORACLE),
        (trace([]), trace([]), Status.MISSING_IN_SUBJECT),
        (trace([NORM]), trace([], stages=("ffn_norm",)), Status.NOT_REQUESTED),
        (trace([], stages=("ffn_norm",)), trace([NORM]), Status.NOT_REQUESTED),
        (trace([], stages=("ffn_norm",)), trace([]), Status.NOT_REQUESTED),
        (trace([]), trace([], stages=("ffn_norm",)), Status.NOT_REQUESTED),
        (trace([NORM]), trace([], stages=("attn_norm",)), Status.MISSING_IN_SUBJECT),
        (trace([NORM]), trace([], layers=(0, 1)), Status.MISSING_IN_SUBJECT),
        (trace([NORM]), trace([], layers=(1, 2)), Status.NOT_REQUESTED),
        (trace([NORM]), trace([], layers=(0, 0)), Status.NOT_REQUESTED),
    ],
)
def test_what_is_missing_is_told_from_what_nobody_wanted(ours: Trace, theirs: Trace, status: Status) -> None:
    assert status_of(NORM, ours, theirs) is status


def test_a_stage_that_the_model_does_not_have_is_not_applicable_unless_a_side_shows_it() -> None:
    key: Key = Key(0, "qkv_bias")  # a llama without biases
    assert status_of(key, trace([]), trace([])) is Status.NOT_APPLICABLE
    assert status_of(key, trace([]), trace([key])) is Status.MISSING_IN_ORACLE
    assert status_of(key, trace([key]), trace([key])) is Status.COMPARED


@pytest.mark.parametrize(
    ("layers", "status"),
    [((0, 2), Status.MISSING_IN_SUBJECT), ((0, 1), Status.NOT_REQUESTED), ((1, 2), Status.NOT_REQUESTED)],
)
def test_a_whole_model_stage_is_wanted_of_whole_models_alone(layers: tuple[int, int], status: Status) -> None:
    key: Key = Key(None, "lm_head")
    assert status_of(key, trace([key]), trace([], layers=layers)) is status


# --- who feeds whom ------------------------


def test_a_stage_is_consumed_by_what_is_computed_from_it() -> None:
    keys = keys_to_judge(trace([Key(0, "attn_norm")]), trace([Key(1, "attn_norm")]), None, None)
    fed = consumers(keys, MODEL)
    assert fed[0, "qkv_matmul"] == [Key(0, "q_post_rope"), Key(0, "k_post_rope"), Key(0, "attention")]
    assert fed[0, "post_ffn_residual"] == [Key(1, "attn_norm"), Key(1, "post_attn_residual")]
    assert fed[1, "post_ffn_residual"] == [Key(None, "final_norm")]
    assert Key(None, "lm_head") not in fed


def test_descendants_are_reached_in_several_steps_each_once() -> None:
    fed: dict[Key, list[Key]] = {
        (0, "a"): [(0, "b"), (0, "c")],
        (0, "b"): [(0, "d")],
        (0, "c"): [(0, "d")],
        (0, "e"): [(0, "f")],
    }
    assert descendants([(0, "a")], fed) == {(0, "b"), (0, "c"), (0, "d")}
    assert descendants([(0, "a"), (0, "e")], fed) == {(0, "b"), (0, "c"), (0, "d"), (0, "f")}
    assert descendants([(0, "d")], fed) == set()
