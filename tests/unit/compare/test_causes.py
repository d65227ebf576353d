"""Each wrong stage gets its right name: in f32 and f16, on a trained checkpoint and on real recordings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.compare.cause import Cause
from apr_falsify.compare.causes import explain
from apr_falsify.compare.judge import store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.variations.places import error_sits
from apr_falsify.compare.variations.table import TABLE
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.model.wiring import stages_of
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation, Rule
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import StageArray, Trace
from tests.real_model import smollm2_or_skip
from tests.support import DATA
from tests.unit.compare.wrong_stages import (
    F64,
    ROUND,
    THETA,
    D,
    H,
    K,
    Run,
    assert_says,
    changed,
    explained,
    q_of,
    rms,
    rotated,
    small_run,
    tiny_run,
    with_biases,
)
from tests.unit.compare.wrong_table import FAULTS, SMALL_FAULTS
from tests.unit.helpers import KNOBS, TINY


@cache
def run_in(dtype: str) -> Run:
    return tiny_run(dtype)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", ROUND)
def test_a_fault_gets_its_name(name: str, dtype: str) -> None:
    fault = FAULTS[name]
    if dtype == "f16" and not fault.f16:
        return
    run = run_in(dtype)
    cause = explained(run, fault.stage, ROUND[dtype](fault.make(run)))
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert_says(cause.sentence, fault.says, dtype)


@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("stage", list(stages_of(run_in("f32").trace.geometry)))
def test_a_correct_stage_has_no_cause(stage: str, dtype: str) -> None:
    run = run_in(dtype)
    assert explained(run, stage, run[stage]) is None


@pytest.mark.parametrize("stage", list(stages_of(run_in("f32").trace.geometry)))
def test_noise_has_no_cause(stage: str) -> None:
    run = run_in("f32")
    noise = np.random.default_rng(1).normal(1, 0.01, run[stage].shape)
    cause = explained(run, stage, (run[stage] * noise).astype(np.float32))
    assert cause is None or not cause.fits, cause


@pytest.mark.parametrize("name", SMALL_FAULTS)
def test_faults_that_only_some_families_can_have(name: str) -> None:
    knobs, fault = SMALL_FAULTS[name]
    run = small_run(**knobs)
    cause = explained(run, fault.stage, fault.make(run).astype(np.float32))
    assert cause is not None
    assert (cause.name, cause.fits) == (fault.cause, True), cause
    assert_says(cause.sentence, fault.says, "f32")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_correct_stages_of_other_families_have_no_cause(family: str) -> None:
    run = small_run(**KNOBS[family])
    for stage in stages_of(run.trace.geometry):
        assert explained(run, stage, run[stage]) is None, stage


def test_a_missing_bias_shows_where_q_k_v_with_bias_was_not_captured() -> None:
    run = run_in("f32")
    bare = rotated(run["qkv_matmul"][:, H * D : (H + K) * D], THETA).astype(np.float32)
    cause = explained(run, "k_post_rope", bare, without=("qkv_bias",))
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)


def test_one_token_names_what_it_cannot_tell_apart() -> None:
    run = tiny_run(tokens=(274,))
    x, w = run["layer_input"], run.w("input_layernorm.weight")
    cause = explained(run, "attn_norm", rms(x, w, 0.5).astype(np.float32))
    assert cause is not None
    assert cause.fits
    assert cause.name == "factor"
    assert "one token cannot tell it from: epsilon" in cause.sentence


def test_values_that_are_not_finite_are_counted_and_the_rest_is_explained() -> None:
    run = run_in("f32")
    values = with_biases(run, k=0).astype(np.float32)
    values[2, 5], values[3, 7] = np.nan, np.inf
    cause = explained(run, "qkv_bias", values)
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)
    assert cause.sentence.startswith("2 of 2688 values are not finite; ")


def test_values_that_are_not_finite_in_a_stage_that_fits_otherwise_are_the_cause() -> None:
    run = run_in("f32")
    values = run["ffn_out"].astype(np.float32)
    values[0, 0] = np.nan
    cause = explained(run, "ffn_out", values)
    assert cause is not None
    assert cause.name == "not-finite"


def test_without_weights_causes_that_need_none_are_still_found() -> None:
    run = run_in("f32")
    wrong_base = rotated(q_of(run), 1e4).astype(np.float32)
    cause = explained(replace(run, model=None), "q_post_rope", wrong_base)
    assert cause is not None
    assert cause.name == "rope-base"


def test_two_causes_in_one_stage_fit_none_but_the_nearest_is_named() -> None:
    run = run_in("f32")
    twice = changed(2 * run["ffn_out"], np.s_[3, 5], 1.001)
    cause = explained(run, "ffn_out", twice.astype(np.float32))
    assert cause is not None
    assert (cause.name, cause.fits) == ("factor", False)
    assert "without fitting" in cause.sentence


def test_what_multiplies_again_stands_behind_what_does_not() -> None:
    multiplying = [index for index, row in enumerate(TABLE) if row.multiplies]
    cheap = [
        index for index, row in enumerate(TABLE) if not row.multiplies and row.name in ("factor", "mask")
    ]
    assert max(cheap) < min(multiplying)
    assert all(set(row.stages) <= set(STAGES) for row in TABLE)


# real recordings


def recorded(
    folder: str, model: Path, tokens: tuple[int, ...] = (274, 272, 332, 13, 20, 33)
) -> tuple[Trace, Model]:
    opened = open_model(model)
    target = Target(path=DATA / folder, model=opened, tokens=tokens)
    return open_recorded(target).trace, opened


def cause_in(trace: Trace, model: Model, key: Key, rule: Rule = PLAIN) -> Cause | None:
    replayer = Replayer(trace, model.weights, store_of(trace))
    subject = replayer.captured(key)
    assert subject is not None
    return explain(replayer, key, rule, subject, LIMIT)


def test_a_norm_weight_scaled_and_kept_as_f16_in_a_real_apr_is_a_factor() -> None:
    cause = cause_in(*recorded("apr-tiny-qwen2/norm-scaled", TINY), Key(0, "attn_norm"))
    assert cause is not None
    assert (cause.name, cause.fits) == ("factor", True)
    assert_says(cause.sentence, "x <1.01>,", "f16")


def test_the_zeroed_k_bias_of_a_real_apr_is_missing() -> None:
    cause = cause_in(*recorded("apr-tiny-qwen2/k-bias-zero", TINY), Key(0, "qkv_bias"))
    assert cause is not None
    assert (cause.name, cause.fits) == ("missing-bias", True)
    assert "bias of k missing" in cause.sentence


def test_the_pairs_that_a_real_apr_rotates_on_a_huggingface_llama_are_named() -> None:
    folder = "apr-tiny-llama-hf"
    trace, model = recorded(f"{folder}/trace", DATA / folder / "model")
    for stage in ("q_post_rope", "k_post_rope"):
        cause = cause_in(trace, model, Key(0, stage))
        assert cause is not None
        assert (cause.name, cause.fits) == ("rope-pairing", True)
    assert cause_in(trace, model, Key(0, "attn_scores")) is None


@pytest.mark.real_model
@pytest.mark.parametrize("stage", ["q_post_rope", "k_post_rope"])
def test_the_rotary_base_of_a_real_llama_cpp_is_named(stage: str) -> None:
    model = open_model(smollm2_or_skip())
    path = DATA / "llama-cpp-smollm2-135m" / "rope-base-50000.npz"
    trace = open_llama_cpp(Target(path=path, model=model)).trace
    cause = cause_in(trace, model, Key(29, stage))
    assert cause is not None
    assert (cause.name, cause.fits) == ("rope-base", True)
    assert "50000" in cause.sentence


Q4K = next(rule for rule in RULES[Operation.PROJECTION] if rule.name == "q8 blocks of 256")
Q4K_FAULTS: dict[str, tuple[str, Rule, str, str, Callable[[F64], F64]]] = {
    "halved": ("attn_out", Q4K, "factor", "1/2", lambda y: y / 2),
    "a row": (
        "ffn_gate",
        Q4K,
        "one-channel",
        "channel 17: x <1.02>",
        lambda y: changed(y, np.s_[:, 17], 1.02),
    ),
    "a head of q": ("qkv_matmul", Q4K, "one-head", "q head 2", lambda y: changed(y, np.s_[:, 64:96], 1.05)),
    "k scaled": ("qkv_matmul", Q4K, "factor", "k x ", lambda y: changed(y, np.s_[:, 256:320], 3)),
    "order": ("qkv_matmul", Q4K, "qkv-order", r"q\|v\|k", lambda y: y[:, np.r_[:256, 320:384, 256:320]]),
    "a token": ("ffn_out", Q4K, "one-token", "token 3", lambda y: np.vstack((y[:3], y[1:2], y[4:]))),
    "logits": ("lm_head", PLAIN, "factor", "x <0.7>", lambda y: 0.7 * y),
    "channel of the stream": (
        "post_ffn_residual",
        PLAIN,
        "one-channel",
        "x <1.01>",
        lambda y: changed(y, np.s_[:, 9], 1.01),
    ),
}


@pytest.mark.parametrize("name", Q4K_FAULTS)
def test_a_fault_in_a_real_4_bit_run_gets_its_name(name: str) -> None:
    stage, rule, expected, says, change = Q4K_FAULTS[name]
    trace, model = recorded("apr-tiny-qwen2/base-q4k", DATA / "apr-tiny-qwen2" / "base-q4k.gguf")
    key = Key(None if stage == "lm_head" else 0, stage)
    array = trace.stages[key]
    wrong_values = change(array.data.astype(np.float64)).astype(np.float32)
    stages = {**trace.stages, key: StageArray(data=wrong_values, layout=array.layout)}
    cause = cause_in(replace(trace, stages=stages), model, key, rule)
    assert cause is not None
    assert (cause.name, cause.fits) == (expected, True), cause
    assert_says(cause.sentence, says, "f32")


# where an error sits

TOKEN_CHANNEL = Axes(names=("token", "channel"))
HEADED = axes_of("q_post_rope", run_in("f32").trace.geometry)


@pytest.mark.parametrize("factor", [1.00002, 1.01, -1.00002])
def test_a_factor_near_one_is_not_told_as_one(factor: float) -> None:
    run = run_in("f32")
    cause = explained(run, "ffn_up", (run["ffn_up"] * factor).astype(np.float32))
    assert cause is not None
    assert cause.fits
    digits = 5 if factor == 1.01 else 8  # where five would make it 1
    assert_says(cause.sentence, f"^x <{factor}> fits", "f32", digits)


def test_what_no_value_shows_alone_is_explained_by_all_of_them_together() -> None:
    run = run_in("f32")
    off = explained(run, "attn_norm", (run["attn_norm"] * (1 + 3e-6)).astype(np.float32))
    assert off is not None
    assert (off.name, off.fits) == ("factor", True)
    assert explained(run, "attn_norm", run["attn_norm"]) is None


SITES: dict[str, tuple[Axes, tuple[int, ...], object, str]] = {
    "one channel": (
        TOKEN_CHANNEL,
        (7, 256),
        np.s_[:, 17],
        "channel 17 of 256, every token (7 of 1792 values)",
    ),
    "tokens": (TOKEN_CHANNEL, (7, 256), np.s_[4:], "tokens 4 to 6, every channel (768 of 1792 values)"),
    "one head": (
        HEADED,
        (7, 256),
        np.s_[:, 96:128],
        "head 3, every token, every channel (224 of 1792 values)",
    ),
    "one channel of a head": (
        HEADED,
        (7, 256),
        np.s_[:, 101],
        "head 3, channel 5 of 32 of the head, every token (7 of 1792 values)",
    ),
    "everything": (TOKEN_CHANNEL, (7, 256), np.s_[:], "every token, every channel (1792 of 1792 values)"),
    "keys": (
        Axes(names=("head", "token", "key")),
        (8, 7, 7),
        np.s_[2, :, [1, 3, 6]],
        "head 2 only, keys 1, 3, 6, every token (21 of 392 values)",
    ),
    "vocabulary entries": (
        Axes(names=("vocabulary entry",)),
        (512,),
        np.s_[[11, 13]],
        "vocabulary entries 11, 13 (2 of 512 values)",
    ),
    "nothing": (
        TOKEN_CHANNEL,
        (7, 256),
        np.s_[:0],
        "no single place stands out: it is small, and everywhere",
    ),
}


@pytest.mark.parametrize("name", SITES)
def test_an_error_is_said_to_sit_where_it_does(name: str) -> None:
    axes, shape, at, said = SITES[name]
    expected = np.random.default_rng(0).normal(size=shape)
    subject = expected.copy()
    subject[at] += 1
    assert error_sits(subject, expected, np.full(shape, 1e-7), LIMIT, axes) == said


def test_values_that_are_not_finite_sit_somewhere_too() -> None:
    expected = np.zeros((3, 4))
    subject = expected.copy()
    subject[1, 2] = np.nan
    said = error_sits(subject, expected, np.full((3, 4), 1e-7), LIMIT, TOKEN_CHANNEL)
    assert said == "token 1 only, channel 2 of 4 (1 of 12 values)"


def test_what_is_no_number_on_both_sides_is_no_error() -> None:
    expected = np.random.default_rng(0).normal(size=(7, 256))
    expected[2, 5], expected[3, 6], expected[4, 7] = np.nan, np.inf, -np.inf
    subject = expected.copy()
    sigma = np.full((7, 256), 1e-7)
    assert error_sits(subject, expected, sigma, LIMIT, TOKEN_CHANNEL).startswith("no single place")
    subject[1, 9] = np.nan
    said = "token 1 only, channel 9 of 256 (1 of 1792 values)"
    assert error_sits(subject, expected, sigma, LIMIT, TOKEN_CHANNEL) == said
