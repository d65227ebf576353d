"""Every row of the table of causes names what it is about, each wrong stage worked out anew."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from tests.unit.compare.wrong_blocks import BLOCKS
from tests.unit.compare.wrong_heads import HEADS
from tests.unit.compare.wrong_rotations import ROTATIONS, SMALL_ROTATIONS
from tests.unit.compare.wrong_small_heads import SMALL_HEADS
from tests.unit.compare.wrong_stages import Run, Wrong, changed, explained, small_run, tiny_run, wrong
from tests.unit.compare.wrong_sums import BLOCK_ENDS


@cache
def tiny() -> Run:
    return tiny_run()


def check(run: Run, fault: Wrong) -> None:
    cause = explained(run, fault.stage, fault.make(run).astype(np.float32))
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert re.search(fault.says, cause.sentence), cause.sentence
    assert cause.residual < (0.1 if fault.cause == "precision" else 1e-5)


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_wrong_rotation_gets_its_name(name: str) -> None:
    check(tiny(), ROTATIONS[name])


@pytest.mark.parametrize("name", SMALL_ROTATIONS)
def test_a_wrong_rotation_of_a_family_gets_its_name(name: str) -> None:
    knobs, fault = SMALL_ROTATIONS[name]
    check(small_run(**knobs), fault)


@pytest.mark.parametrize("name", HEADS)
def test_a_fault_of_attention_gets_its_name(name: str) -> None:
    check(tiny(), HEADS[name])


@pytest.mark.parametrize("name", SMALL_HEADS)
def test_a_fault_of_attention_in_a_family_gets_its_name(name: str) -> None:
    knobs, fault = SMALL_HEADS[name]
    check(small_run(**knobs), fault)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fault_of_a_norm_or_a_product_gets_its_name(name: str) -> None:
    check(tiny(), BLOCKS[name])


@pytest.mark.parametrize("name", BLOCK_ENDS)
def test_a_fault_of_the_feed_forward_block_gets_its_name(name: str) -> None:
    check(tiny(), BLOCK_ENDS[name])


def test_what_stands_in_one_place_and_has_a_reason_is_named_by_its_reason() -> None:
    """With one kv head, k's weights in the place of v's spoil one head alone, by no constant factor."""
    run = small_run(num_key_value_heads=1)
    columns = run["qkv_matmul"].copy()
    columns[:, -4:] = columns[:, -8:-4]
    check(run, wrong("qkv_matmul", "other-weights", "the weights of k for v", lambda r: columns))


def test_a_factor_in_one_place_is_named_before_weights_are_multiplied_again() -> None:
    run = tiny()
    doubled = wrong(
        "ffn_up", "one-channel", r"only channel 9: x 2 there", lambda r: changed(r["ffn_up"], np.s_[:, 9], 2)
    )
    check(run, doubled)


def test_two_tokens_are_enough_to_tell_another_weight_vector() -> None:
    run = tiny_run(tokens=(274, 272))
    factors = np.random.default_rng(1).uniform(0.5, 1.9, 256)
    check(
        run, wrong("attn_norm", "other-weight-vector", "another weight", lambda r: r["attn_norm"] * factors)
    )


def test_the_sum_of_squares_for_their_mean_is_named_where_epsilon_counts() -> None:
    """sqrt(sum + eps) for sqrt(mean + eps): a constant factor only where epsilon is next to nothing."""
    run = small_run(rms_norm_eps=0.5)
    x, weight = run["layer_input"], run.w("input_layernorm.weight")
    summed = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 0.5) * weight
    check(run, wrong("attn_norm", "norm-form", "the sum of squares for their mean", lambda r: summed))


def test_an_epsilon_outside_the_root_is_named_where_it_counts() -> None:
    run = small_run(rms_norm_eps=0.5)
    x, weight = run["layer_input"], run.w("input_layernorm.weight")
    outside = x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + 0.5) * weight
    check(run, wrong("attn_norm", "norm-form", "epsilon added outside the root", lambda r: outside))


HALF = ("a very hot softmax", "a cold softmax", "twice as hot", "half as hot")


@pytest.mark.parametrize("name", HALF)
def test_a_temperature_is_named_though_the_weights_are_f16(name: str) -> None:
    run, fault = tiny_run("f16"), HEADS[name]
    weights = fault.make(run).astype(np.float16).astype(np.float32)
    cause = explained(run, fault.stage, weights)
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert re.search(fault.says, cause.sentence), cause.sentence


def test_the_head_of_a_model_that_shares_it_with_the_embedding_may_be_kept_in_another_type() -> None:
    run = small_run(tie_word_embeddings=True)
    table = torch.from_numpy(run.w("model.embed_tokens.weight")).bfloat16().double().numpy()
    logits = run["final_norm"][-1] @ table.T
    check(run, wrong("lm_head", "weight-type", "weights stored as bf16 fits", lambda r: logits))
