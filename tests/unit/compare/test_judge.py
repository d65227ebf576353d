"""Inputs at the edge: broken numbers, empty numbers, one token, a suspect reference, finer claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Verdict
from apr_falsify.compare.excess import excess_of
from apr_falsify.compare.judge import judge
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import TokensError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key, Layout
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.subjects import embedded
from apr_falsify.subjects.kernel import arithmetic_named
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.support import DATA

TOKENS = (274, 272, 223, 20, 13, 20, 33)
Change = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def run(model: Model, tokens: tuple[int, ...] = TOKENS, arithmetic: str = "f32") -> Trace:
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    return embedded.capture(model, request, MemorySink(), arithmetic=arithmetic_named(arithmetic))


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def sound(model: Model) -> Trace:
    return run(model)


def changed(trace: Trace, key: Key, change: Change) -> Trace:
    """The trace with one stage's file overwritten: what follows was computed from the sound one."""
    data = change(np.array(trace.stages[key].data))
    return replace(trace, stages={**trace.stages, key: replace(trace.stages[key], data=data)})


def against(model: Model, oracle: Trace, subject: Trace, **options: str) -> Bisection:
    return bisect(oracle, subject, weights=model.weights, **options)


def introduced(result: Bisection) -> list[tuple[int | None, str]]:
    return [(row.layer, row.stage) for row in result.rows if row.verdict is Verdict.INTRODUCES]


def sources(result: Bisection) -> list[tuple[int | None, tuple[str, ...]]]:
    return [(finding.layer, finding.stages) for finding in result.sources]


def with_one(value: float) -> Change:
    def change(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        data[2, 5] = value
        return data

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_counted_and_the_rest_is_judged(
    model: Model, sound: Trace, value: float
) -> None:
    result = against(model, sound, changed(sound, Key(1, "ffn_norm"), with_one(value)))
    row = next(row for row in result.rows if (row.layer, row.stage) == Key(1, "ffn_norm"))
    assert row.verdict is Verdict.INTRODUCES
    assert row.accumulated is not None
    assert row.accumulated.nonfinite_json() == {"oracle": 0, "subject": 1, "mismatch": 1}
    assert row.residual is not None
    assert row.residual < 1e-6
    # What was computed from the sound stage is told apart from what this one would have made of it.
    assert introduced(result) == [Key(1, "ffn_norm"), Key(1, "ffn_gate"), Key(1, "ffn_up")]


@pytest.mark.parametrize("change", [np.zeros_like, np.ones_like], ids=["zeros", "constant"])
def test_a_stage_of_zeros_or_of_one_number_is_in_error(model: Model, sound: Trace, change: Change) -> None:
    result = against(model, sound, changed(sound, Key(0, "attn_out"), change))
    assert introduced(result) == [Key(0, "attn_out"), Key(0, "post_attn_residual")]


def test_a_stage_of_another_layer_is_in_error(model: Model, sound: Trace) -> None:
    stages = {**sound.stages, Key(1, "ffn_up"): sound.stages[2, "ffn_up"]}
    result = against(model, sound, replace(sound, stages=stages))
    assert introduced(result) == [Key(1, "ffn_up"), Key(1, "ffn_swigl")]


def test_two_equal_traces_are_consistent(model: Model, sound: Trace) -> None:
    result = against(model, sound, sound)
    assert (result.kind, int(result.exit_code)) == (Kind.CONSISTENT, 0)
    assert all(row.accumulated.rel_l2 == 0 for row in result.rows if row.accumulated)


def test_one_token_leaves_attention_unmeasured(model: Model) -> None:
    single = run(model, TOKENS[:1])
    result = against(model, single, single)
    assert (result.kind, int(result.exit_code), result.sources) == (Kind.UNMEASURED, 4, ())
    (finding,) = result.findings
    assert finding.stages == ("q_post_rope", "k_post_rope", "attn_scores", "attn_softmax")


def test_a_broken_oracle_makes_the_reference_suspect(model: Model, sound: Trace) -> None:
    broken = changed(sound, Key(1, "ffn_out"), lambda data: data * np.float32(1.001))
    result = against(model, broken, sound)
    assert (result.kind, int(result.exit_code)) == (Kind.REFERENCE_SUSPECT, 4)
    (finding,) = [found for found in result.findings if found.type is FindingType.REFERENCE]
    assert (finding.layer, finding.stages) == (1, ("ffn_out",))


def test_a_percent_in_an_ordinary_channel_behind_a_massive_one_is_found(model: Model, sound: Trace) -> None:
    def massive(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        data[:, 7] = 24_877.0
        return data

    def off(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        data = massive(data)
        data[:, 100] *= np.float32(1.01)
        return data

    key = Key(1, "ffn_up")
    outlier = changed(sound, key, massive)
    fault = changed(sound, key, off)
    error = fault.stages[key].data - outlier.stages[key].data
    assert np.linalg.norm(error) / np.linalg.norm(outlier.stages[key].data) < 1e-6
    # The product that follows is judged against inputs that hold the massive channel.
    entry = judge(fault, model.weights, [key])[key]
    assert entry.in_error


def test_an_arithmetic_that_is_finer_than_the_real_one_is_told(model: Model) -> None:
    four_bit = open_model(DATA / "apr-tiny-qwen2" / "base-q4k.gguf")
    real = run(four_bit, arithmetic="f32; q8 blocks of 256")
    sound = run(four_bit)
    result = against(four_bit, sound, real, arithmetic="f32")
    assert result.sources == ()
    told = [found.explanation for found in result.findings if found.type is FindingType.ARITHMETIC]
    assert told
    assert all("q8 blocks of 256 fits" in line and "expected is f32" in line for line in told)
    assert int(result.exit_code) == 1


def test_other_tokens_are_refused(model: Model, sound: Trace) -> None:
    with pytest.raises(TokensError, match="different tokens"):
        against(model, sound, run(model, TOKENS[::-1]))


def unscaled(model: Model, *, softmax_scales: bool) -> Trace:
    """A run whose scores lack 1/sqrt(D): applied within the softmax, as llama.cpp does, or nowhere."""
    factor = np.float32(np.sqrt(model.geometry.head_dim))

    def step(key: Key, inputs: embedded.Inputs, site: embedded.RuntimeSite) -> embedded.Array:
        if key[1] == "attn_softmax" and softmax_scales:
            inputs = {"attn_scores": inputs["attn_scores"] / factor}
        value = embedded.as_defined(key, inputs, site)
        return value * factor if key[1] == "attn_scores" else value

    request = Request(tokens=TOKENS, layers=range(3), stages=tuple(STAGES))
    return embedded.capture(model, request, MemorySink(), step=step)


def test_scores_stored_before_their_scale_are_a_layout_and_not_an_error(model: Model, sound: Trace) -> None:
    result = against(model, sound, unscaled(model, softmax_scales=True))
    assert (result.kind, int(result.exit_code)) == (Kind.LAYOUT_MISMATCH, 1)
    (finding,) = [found for found in result.findings if found.type is FindingType.LAYOUT]
    assert finding.stages == ("attn_scores",)
    assert "before 1/sqrt(D)" in finding.explanation


def test_scores_computed_without_their_scale_are_an_error_and_not_a_layout(
    model: Model, sound: Trace
) -> None:
    result = against(model, sound, unscaled(model, softmax_scales=False))
    assert introduced(result) == [Key(layer, "attn_scores") for layer in range(3)]
    (cause,) = result.causes  # the same in every layer: one cause
    assert (cause.stages, cause.layers, result.kind) == (("attn_scores",), (0, 1, 2), Kind.LOCALISED)


def test_interleaved_rotary_pairs_that_nobody_declared_are_a_layout(model: Model, sound: Trace) -> None:
    geometry = model.geometry
    rotary = (geometry.heads + geometry.kv_heads) * geometry.head_dim

    def interleave(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        columns = min(rotary, data.shape[1])
        halves = data[:, :columns].reshape(len(data), -1, 2, geometry.head_dim // 2)
        data[:, :columns] = halves.swapaxes(-1, -2).reshape(len(data), columns)
        return data

    stored = sound
    for layer in range(geometry.layers):
        for name in ("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope"):
            stored = changed(stored, Key(layer, name), interleave)
    result = against(model, sound, stored)
    assert result.kind is Kind.LAYOUT_MISMATCH
    assert result.sources == ()


def test_a_missing_stage_is_a_span_where_what_follows_is_wrong(model: Model, sound: Trace) -> None:
    fault = changed(sound, Key(0, "ffn_swigl"), lambda data: data * np.float32(1.5))
    stages = {key: array for key, array in fault.stages.items() if key[1] != "ffn_silu"}
    result = against(model, sound, replace(fault, stages=stages))
    first = result.sources[0]
    assert (first.layer, first.stages) == (0, ("ffn_silu", "ffn_swigl"))
    assert "cannot be narrowed" in first.explanation


def test_a_missing_stage_that_is_judged_through_is_not_held_against_the_run(
    model: Model, sound: Trace
) -> None:
    stages = {key: array for key, array in sound.stages.items() if key[1] != "ffn_silu"}
    result = against(model, sound, replace(sound, stages=stages))
    assert result.kind is Kind.CONSISTENT


def test_without_weights_what_cannot_be_judged_is_told_with_the_option_that_mends_it(
    model: Model, sound: Trace
) -> None:
    wrong = changed(sound, Key(0, "ffn_up"), lambda data: data * np.float32(1.5))
    result = bisect(sound, wrong)
    # ffn_swigl needs no weights and is not what its overwritten input makes it.
    assert sources(result) == [(0, ("ffn_swigl",))]
    told = [found for found in result.findings if found.type is FindingType.UNMEASURED]
    assert any("ffn_up" in found.stages and "--weights" in found.advice for found in told)


def test_the_excess_sees_elements_and_small_errors_everywhere() -> None:
    quiet = np.full((7, 256), 0.5)
    assert excess_of(quiet) < 0.3
    loud = quiet.copy()
    loud[3, 17] = 2 * LIMIT
    assert excess_of(loud) == pytest.approx(2.0)
    assert excess_of(np.full((7, 256), LIMIT / 2)) > 1


def test_the_layout_of_a_stage_that_was_declared_is_kept(model: Model, sound: Trace) -> None:
    key = Key(0, "attn_scores")
    zeroed = StageArray(data=np.tril(sound.stages[key].data), layout=(Layout.CAUSAL_ZEROED,))
    result = against(model, sound, replace(sound, stages={**sound.stages, key: zeroed}))
    assert result.kind is Kind.CONSISTENT
    row = next(row for row in result.rows if (row.layer, row.stage) == key)
    assert row.layout == (Layout.CAUSAL_ZEROED,)


def test_an_arithmetic_that_no_file_shows_is_not_held_against_a_run(model: Model) -> None:
    real = run(model, arithmetic="f32; q8_0 k cache")
    hidden = {
        key: array for key, array in real.stages.items() if key[1] not in ("attn_scores", "attn_softmax")
    }
    result = against(model, run(model), replace(real, stages=hidden), arithmetic="f32")
    assert (result.kind, result.sources) == (Kind.CONSISTENT, ())
    (told,) = [found for found in result.findings if "attention" in found.stages]
    assert told.type is FindingType.ARITHMETIC
    assert "q8_0 k cache fits" in told.explanation
