"""What must hold without a reference: on correct runs of every kind, and not on broken ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from apr_falsify.compare.invariants import InvariantCheck, InvariantOutcome, checks, invariants
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import StageArray, Trace
from tests.real_model import smollm2_or_skip
from tests.support import DATA
from tests.unit.compare.wrong_stages import (
    F64,
    MODULO,
    OWN,
    ROUND,
    Run,
    back,
    k_of,
    mixed,
    rotated_pairs,
    small_run,
    softmax,
    tiny_run,
    v_of,
)
from tests.unit.helpers import KNOBS, TINY

SMOLLM2_TOKENS = (1780, 314, 216, 34, 27, 34, 47)


@cache
def run_in(dtype: str) -> Run:
    return tiny_run(dtype)


def with_stage(trace: Trace, key: Key, values: F64, *layout: Layout) -> Trace:
    array = StageArray(data=values.astype(np.float32), layout=layout or trace.stages[key].layout)
    return replace(trace, stages={**trace.stages, key: array})


def without(trace: Trace, *names: str) -> Trace:
    return replace(trace, stages={key: array for key, array in trace.stages.items() if key[1] not in names})


def outcomes(trace: Trace, layer: int = 1) -> dict[tuple[str, str], InvariantCheck]:
    return {(check.invariant, check.stage): check for check in checks(trace) if check.layer == layer}


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_all_hold_in_a_correct_run(dtype: str) -> None:
    found = checks(run_in(dtype).trace)
    assert len(found) == 15
    assert {check.outcome for check in found} == {InvariantOutcome.HOLDS}
    assert invariants(run_in(dtype).trace) == ()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_none_is_violated_in_a_correct_run_of_any_family(family: str) -> None:
    assert invariants(small_run(**KNOBS[family]).trace) == ()


@pytest.mark.parametrize("recording", ["base", "base-q4k", "k-bias-zero", "norm-scaled"])
def test_all_hold_in_what_a_real_apr_wrote_even_with_faults_elsewhere(recording: str) -> None:
    target = Target(
        path=DATA / "apr-tiny-qwen2" / recording,
        model=open_model(TINY),
        tokens=(274, 272, 332, 13, 20, 33),
    )
    found = checks(open_recorded(target).trace)
    assert {check.outcome for check in found} == {InvariantOutcome.HOLDS}


def test_a_real_apr_turns_other_pairs_than_a_huggingface_llama_has() -> None:
    folder = DATA / "apr-tiny-llama-hf"
    target = Target(
        path=folder / "trace", model=open_model(folder / "model"), tokens=(274, 272, 332, 13, 20, 33)
    )
    violations = invariants(open_recorded(target).trace)
    assert [violation.stage for violation in violations] == ["q_post_rope", "k_post_rope"]
    assert all("(0, 1), (2, 3) ... keep theirs" in violation.sentence for violation in violations)


@pytest.mark.real_model
@pytest.mark.parametrize("recording", ["what-is-2-plus-2", "k-cache-q8_0", "rope-base-50000"])
def test_all_hold_in_what_a_real_llama_cpp_computed_with_its_f16_cache(recording: str) -> None:
    path = DATA / "llama-cpp-smollm2-135m" / f"{recording}.npz"
    found = checks(
        open_llama_cpp(Target(path=path, model=open_model(smollm2_or_skip()), tokens=SMOLLM2_TOKENS)).trace
    )
    assert {check.outcome for check in found} == {InvariantOutcome.HOLDS}
    assert "f16 weights and v" in next(c.sentence for c in found if c.invariant == "first-value")


def future_key(run: Run) -> F64:
    weights = run["attn_softmax"]
    weights[3, 2, 2] -= 1e-6
    weights[3, 2, 5] = 1e-6
    return weights


BROKEN: dict[str, tuple[str, str, str, Callable[[Run], F64]]] = {
    "unnormalised": (
        "softmax-rows",
        "attn_softmax",
        r"56 of 56 rows.*sums to 1\.0(1|09)",
        lambda r: 1.01 * r["attn_softmax"],
    ),
    "a padded row": (
        "softmax-rows",
        "attn_softmax",
        "1 of 56 rows.*head 2, token 4 sums to 0.99",
        lambda r: r["attn_softmax"] * np.where(np.indices((8, 7, 7))[:2].T.dot([7, 1]).T == 18, 0.99, 1),
    ),
    "the future": ("mask", "attn_softmax", "head 3: token 2 gives 1e-06 .* token 5, a later", future_key),
    "no mask": ("mask", "attn_softmax", "a later token", lambda r: softmax(r["attn_scores"], back(7) >= -9)),
    "a stretched q": (
        "rope-length",
        "q_post_rope",
        "length of q's pairs, by 0.0001 ",
        lambda r: 1.0001 * r["q_post_rope"],
    ),
    "other pairs": (
        "rope-length",
        "k_post_rope",
        r"\(0, 1\), \(2, 3\)",
        lambda r: rotated_pairs(k_of(r), 1e6),
    ),
    "values h % K": (
        "first-value",
        "attention",
        "read the kv heads 0, 1, 0, 1, 0, 1, 0, 1",
        lambda r: mixed(r["attn_softmax"], v_of(r), MODULO),
    ),
    "k for v": ("first-value", "attention", "is not its V", lambda r: mixed(r["attn_softmax"], k_of(r), OWN)),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dtype", ROUND)
def test_what_is_broken_is_named_and_nothing_else(name: str, dtype: str) -> None:
    invariant, stage, says, make = BROKEN[name]
    if dtype == "f16" and name in ("a stretched q", "the future"):
        return  # below what f16 can hold
    run = run_in(dtype)
    trace = with_stage(run.trace, Key(1, stage), ROUND[dtype](make(run)))
    (violation,) = [v for v in invariants(trace) if v.stage == stage]
    assert invariants(trace) == (violation,)
    assert outcomes(trace)[invariant, stage].outcome is InvariantOutcome.VIOLATED
    assert (violation.layer, violation.stage) == Key(1, stage)
    assert re.search(says, violation.sentence), violation.sentence
    assert violation.size > 0


def test_a_weight_beyond_the_window_is_a_violation() -> None:
    run = small_run(**KNOBS["mistral"])
    wrong = softmax(run["attn_scores"], back(5) >= 0)
    (violation,) = invariants(with_stage(run.trace, Key(1, "attn_softmax"), wrong))
    assert "outside its window of 3" in violation.sentence


def test_what_a_family_does_not_promise_is_not_applicable() -> None:
    normed = outcomes(small_run(**KNOBS["qwen3"]).trace)["rope-length", "q_post_rope"]
    assert normed.outcome is InvariantOutcome.NOT_APPLICABLE
    assert "norm" in normed.sentence
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    scaled = outcomes(small_run(rope_scaling=yarn).trace)["rope-length", "k_post_rope"]
    assert scaled.outcome is InvariantOutcome.NOT_APPLICABLE
    assert "attention factor of 1.1386" in scaled.sentence


def test_what_was_not_captured_is_not_checked_and_says_what_is_missing() -> None:
    found = outcomes(without(run_in("f32").trace, "qkv_bias", "attn_softmax"))
    assert {check.outcome for check in found.values()} == {InvariantOutcome.NOT_CHECKED}
    assert found["mask", "attn_softmax"].sentence == "attn_softmax was not captured"
    assert found["rope-length", "q_post_rope"].sentence == "qkv_bias was not captured"
    assert invariants(without(run_in("f32").trace, "qkv_bias", "attn_softmax")) == ()


def test_one_token_alone_cannot_show_a_mask() -> None:
    found = outcomes(tiny_run(tokens=(274,)).trace)
    assert found["mask", "attn_softmax"].outcome is InvariantOutcome.NOT_CHECKED
    assert found["first-value", "attention"].outcome is InvariantOutcome.HOLDS


def test_the_last_token_alone_cannot_show_the_first_ones_value() -> None:
    run = run_in("f32")
    trace = with_stage(run.trace, Key(1, "attention"), run["attention"][-1], Layout.LAST_TOKEN)
    check = outcomes(trace)["first-value", "attention"]
    assert check.outcome is InvariantOutcome.NOT_CHECKED
    assert "last token" in check.sentence


def test_a_stage_of_another_shape_is_not_checked() -> None:
    run = run_in("f32")
    trace = with_stage(run.trace, Key(1, "attn_softmax"), run["attn_softmax"][:, :3])
    assert outcomes(trace)["mask", "attn_softmax"].outcome is InvariantOutcome.NOT_CHECKED


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_hide_nothing_else(value: float) -> None:
    run = run_in("f32")
    weights = 1.001 * run["attn_softmax"]
    weights[0, 0, 0] = value
    found = outcomes(with_stage(run.trace, Key(1, "attn_softmax"), weights))
    assert found["softmax-rows", "attn_softmax"].outcome is InvariantOutcome.VIOLATED
    nothing: Any = np.full(run["attn_softmax"].shape, value)
    found = outcomes(with_stage(run.trace, Key(1, "attn_softmax"), nothing))
    assert found["softmax-rows", "attn_softmax"].outcome is InvariantOutcome.NOT_CHECKED


def test_layouts_are_undone_before_anything_is_judged() -> None:
    run = run_in("f32")
    q = torch.from_numpy(run["q_post_rope"]).view(7, 8, 32).transpose(0, 1).contiguous().numpy()
    padded = np.pad(run["attn_softmax"], ((0, 0), (0, 0), (0, 25)), constant_values=9.0)
    trace = with_stage(run.trace, Key(1, "q_post_rope"), q, Layout.HEAD_MAJOR)
    trace = with_stage(trace, Key(1, "attn_softmax"), padded, Layout.PADDED_KEYS)
    assert invariants(trace) == ()
