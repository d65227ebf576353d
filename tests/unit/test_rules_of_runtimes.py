"""Which arithmetic a runtime is expected to have: by its defaults, or as it is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr_falsify.errors import UsageError
from apr_falsify.numerics.operand_rules import (
    CACHES,
    PLAIN,
    RULES,
    Operation,
    Rule,
    exact,
    expected_rule,
    stated_rules,
)

LLAMA_CPP = {
    "q8_0 blocks of 32": ["q4_0", "q5_0", "q8_0", "iq4_nl", "mxfp4"],
    "q8_1 blocks of 32": ["q4_1", "q5_1"],
    "q8_k blocks of 256": ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq1_m", "tq2_0"],
    "f16": ["f16"],
    "bf16": ["bf16"],
    "f32": ["f32"],
}
"""``vec_dot_type`` of ggml-cpu.c: what activations become -> types of weights that they meet."""


def named(operation: Operation, name: str) -> Rule:
    (rule,) = [rule for rule in RULES[operation] if rule.name == name]
    return rule


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in LLAMA_CPP.items() for kind in kinds]
)
def test_llama_cpp_keeps_activations_as_its_table_of_types_says(name: str, kind: str) -> None:
    assert expected_rule("llama-cpp", Operation.PROJECTION, kind) is named(Operation.PROJECTION, name)


def test_llama_cpp_keeps_q_k_weights_and_v_in_f16() -> None:
    assert expected_rule("llama-cpp", Operation.SCORES, "").name == "f16 q and k"
    assert expected_rule("llama-cpp", Operation.MIX, "").name == "f16 weights and v"


def test_apr_keeps_activations_in_8_bits_before_weights_of_4_bits_alone() -> None:
    assert expected_rule("apr", Operation.PROJECTION, "q4_k").name == "q8 blocks of 256"
    assert expected_rule("apr", Operation.PROJECTION, "q6_k") is PLAIN
    assert expected_rule("apr", Operation.SCORES, "") is PLAIN


def test_a_runtime_or_an_operation_without_a_row_is_plain() -> None:
    assert expected_rule("embedded", Operation.PROJECTION, "q4_k") is PLAIN
    assert expected_rule("llama-cpp", Operation.ELEMENTWISE, "") is PLAIN


def test_what_is_stated_of_an_operation_outranks_the_defaults_of_that_one_alone() -> None:
    stated = stated_rules("q8_0 blocks of 32")
    assert expected_rule("apr", Operation.PROJECTION, "q4_k", stated).name == "q8_0 blocks of 32"
    assert expected_rule("llama-cpp", Operation.SCORES, "", stated).name == "f16 q and k"


def test_a_stage_of_two_weight_types_has_a_rule_for_each() -> None:
    rule = expected_rule("apr", Operation.PROJECTION, "q4_k and q6_k")
    assert rule.name == "q8 blocks of 256 and f32"
    assert rule.of("q4_k") is named(Operation.PROJECTION, "q8 blocks of 256")
    assert rule.of("q6_k") is PLAIN
    assert rule.of("q8_0") is rule
    assert rule.block == 256
    assert expected_rule("apr", Operation.PROJECTION, "q4_k and q6_k") is rule


def test_two_weight_types_that_are_met_alike_need_no_joined_rule() -> None:
    rule = expected_rule("llama-cpp", Operation.PROJECTION, "q4_k and q6_k")
    assert rule is named(Operation.PROJECTION, "q8_k blocks of 256")


def test_a_rule_of_one_type_is_that_of_every_type() -> None:
    rule = named(Operation.PROJECTION, "bf16")
    assert rule.of("q4_k") is rule


# --- stated -----------------------------------------------------------------------------------------


def test_parts_between_semicolons_state_a_rule_for_their_operation() -> None:
    found = stated_rules("f32; q8_1 blocks of 32 ;f16 k; q4_0 v cache, Hadamard-rotated")
    assert {operation: rule.name for operation, rule in found.items()} == {
        Operation.PROJECTION: "q8_1 blocks of 32",
        Operation.SCORES: "f16 k",
        Operation.MIX: "q4_0 v cache, Hadamard-rotated",
    }


@pytest.mark.parametrize("text", ["f64", "f32", "f16", "bf16", "unknown", "f16; unknown"])
def test_a_format_alone_states_no_rule(text: str) -> None:
    assert stated_rules(text) == {}


def test_an_arithmetic_that_nobody_knows_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(UsageError) as caught:
        stated_rules("f32; q8_2 blocks of 32")
    assert "q8_2 blocks of 32" in caught.value.what
    assert "blocks of 32" in str(caught.value.remedy)
    # Attention as one is stated by its two parts.
    parts = [rules for operation, rules in RULES.items() if operation is not Operation.ATTENTION]
    assert all(rule.name in str(caught.value.expected) for rules in parts for rule in rules)


# --- what the rows do ---------------------------------------------------------------------------------


def halves(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).double().numpy()


SIDES = {
    (Operation.PROJECTION, "f16"): (torch.float16, None),
    (Operation.PROJECTION, "bf16"): (torch.bfloat16, None),
    (Operation.SCORES, "f16 q and k"): (torch.float16, torch.float16),
    (Operation.SCORES, "f16 k"): (None, torch.float16),
    (Operation.SCORES, "bf16 q and k"): (torch.bfloat16, torch.bfloat16),
    (Operation.MIX, "f16 weights and v"): (torch.float16, torch.float16),
    (Operation.MIX, "f16 v"): (None, torch.float16),
    (Operation.MIX, "bf16 weights and v"): (torch.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize(("operation", "name"), SIDES)
def test_sixteen_bits_are_those_of_torch_on_the_sides_that_the_name_says(
    operation: Operation, name: str
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    rule = named(operation, name)
    for side, dtype in zip((rule.left, rule.right), SIDES[operation, name], strict=True):
        expected = values.astype(np.float64) if dtype is None else halves(values, dtype)
        found = side(values)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


def test_the_plain_rule_is_tried_first_and_changes_nothing() -> None:
    values = np.random.default_rng(1).normal(size=40)
    assert all(rules[0] is PLAIN for rules in RULES.values())
    np.testing.assert_array_equal(PLAIN.left(values), values)
    assert exact(values.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize("kind", CACHES)
def test_a_k_cache_meets_q_in_8_bits_and_block_sums_where_it_has_minima(kind: str) -> None:
    for name, rotated in ((f"{kind} k cache", False), (f"{kind} k cache, Hadamard-rotated", True)):
        rule = named(Operation.SCORES, name)
        assert (rule.rotated, rule.block, rule.right) == (rotated, 32, CACHES[kind])
        assert rule.block_sums is (kind in ("q4_1", "q5_1"))
        assert rule.left is named(Operation.PROJECTION, "q8_0 blocks of 32").left


@pytest.mark.parametrize("kind", CACHES)
def test_a_v_cache_meets_weights_as_they_are_and_is_turned_in_blocks_of_64(kind: str) -> None:
    plain, turned = (named(Operation.MIX, f"{kind} v cache{how}") for how in ("", ", Hadamard-rotated"))
    assert (plain.block, plain.rotated, plain.right, plain.edges) == (32, False, CACHES[kind], None)
    assert (turned.block, turned.rotated) == (64, True)
    values = np.random.default_rng(2).normal(size=(2, 128)).astype(np.float32)
    assert turned.edges is not None
    assert turned.edges(values).shape == values.shape
    off = np.linalg.norm(turned.right(values) - values) / np.linalg.norm(values)
    assert 1e-4 < off < 0.12
    assert plain.left is turned.left is exact


def test_of_activations_in_8_bits_only_q8_1_rounds_block_sums_apart() -> None:
    names = [rule.name for rule in RULES[Operation.PROJECTION] if rule.block_sums]
    assert names == ["q8_1 blocks of 32"]


@pytest.mark.parametrize(("name", "block"), [("q8", 256), ("q8_k", 256), ("q8_0", 32), ("q8_1", 32)])
def test_activations_in_8_bits_share_a_scale_within_the_block_that_the_name_says(
    name: str, block: int
) -> None:
    rule = named(Operation.PROJECTION, f"{name} blocks of {block}")
    assert rule.block == block
    values = np.full(512, 0.5, np.float32)
    values[0] = 127 * 8.0  # steps of 8 in its block, which lose every 0.5
    held = rule.left(values)
    assert not held[1:block].any()
    np.testing.assert_allclose(held[block:], 0.5, rtol=1e-3)


def test_a_rule_that_says_no_more_works_on_each_value_by_itself() -> None:
    rule = Rule(name="made up", left=exact)
    assert (rule.block, rule.rotated, rule.block_sums, rule.edges) == (1, False, False, None)
    assert rule.right is exact
