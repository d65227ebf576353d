"""What a bisection does with the weights and constants of the subject, and with unknown arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Verdict
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import Model, Weights, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import TINY, small_model

TOKENS = (3, 1, 4, 1, 5)
F64 = npt.NDArray[np.float64]


def run(model: Model, tokens: tuple[int, ...] = TOKENS) -> Trace:
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    return embedded.capture(model, request, MemorySink())


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(model_type="qwen2")


@pytest.fixture(scope="module")
def sound(model: Model) -> Trace:
    return run(model)


def with_geometry(model: Model, **changes: Any) -> Model:
    geometry = replace(model.geometry, **changes)
    return replace(model, geometry=geometry, weights=replace(model.weights, geometry=geometry))


def changed(trace: Trace, key: Key, factor: float) -> Trace:
    array = replace(trace.stages[key], data=trace.stages[key].data * np.float32(factor))
    return replace(trace, stages={**trace.stages, key: array})


def found(result: Bisection, kind: FindingType) -> list[tuple[int | None, tuple[str, ...]]]:
    return [(finding.layer, finding.stages) for finding in result.findings if finding.type is kind]


# --- weights ------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_source_says_whether_the_subjects_own_weights_were_read(
    model: Model, sound: Trace, own: bool
) -> None:
    wrong = changed(sound, Key(0, "ffn_up"), 1.5)
    result = bisect(sound, wrong, weights=model.weights, subject_weights=model.weights if own else None)
    (source,) = [each for each in result.sources if each.stages == ("ffn_up",)]
    assert ("own weights were not read" in source.explanation) is not own


@pytest.mark.parametrize("own", [True, False])
def test_where_every_product_is_wrong_the_weights_are_suspected_unless_they_are_its_own(
    model: Model, sound: Trace, own: bool
) -> None:
    subject = run(small_model(seed=1, model_type="qwen2"))
    given = model.weights if own else None
    result = bisect(sound, subject, weights=model.weights, subject_weights=given)
    foreign = found(result, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
    assert bool(foreign) is not own
    assert (result.kind is Kind.UNMEASURED) is not own
    products = {"qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "lm_head"}
    accused = {stage for row in result.rows for stage in [row.stage] if row.verdict is Verdict.INTRODUCES}
    assert (products <= accused) is own


def test_a_tensor_of_the_subjects_own_file_is_a_finding_and_its_stage_is_not_accused(
    model: Model, sound: Trace
) -> None:
    other = small_model(model_type="qwen2")
    name = other.weights.names["up"].format(n=1)
    tensor = other.weights.tensors[name]
    spoilt = replace(tensor, data=tensor.data * np.float32(1.5))  # type: ignore[type-var]
    weights = replace(other.weights, tensors={**other.weights.tensors, name: spoilt}, where=Path("subject"))
    subject = run(replace(other, weights=weights))
    result = bisect(sound, subject, weights=model.weights, subject_weights=weights)
    assert found(result, FindingType.WEIGHTS) == [(1, ("ffn_up",))]
    assert found(result, FindingType.SOURCE) == []
    without = bisect(sound, subject, weights=model.weights)
    assert found(without, FindingType.SOURCE) == [(1, ("ffn_up",))]
    assert found(without, FindingType.WEIGHTS) == []


def test_the_same_file_on_both_sides_is_not_compared_with_itself(model: Model, sound: Trace) -> None:
    name = model.weights.names["up"].format(n=1)
    tensor = model.weights.tensors[name]
    nan = np.array(tensor.rows(0, tensor.shape[0]))
    nan[0, 0] = np.nan
    weights = replace(model.weights, tensors={**model.weights.tensors, name: replace(tensor, data=nan)})  # type: ignore[type-var]
    result = bisect(sound, sound, weights=weights, subject_weights=weights)
    assert found(result, FindingType.WEIGHTS) == []


# --- constants ----------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_constant_that_the_subject_ran_with_is_named_where_it_is_used(
    model: Model, sound: Trace, own: bool
) -> None:
    other = with_geometry(model, norm_eps=0.25)
    given: Weights | None = other.weights if own else None
    result = bisect(sound, run(other), weights=model.weights, subject_weights=given)
    named = found(result, FindingType.WEIGHTS)
    norms = [(layer, ("attn_norm", "ffn_norm")) for layer in range(2)]
    assert named == [*norms, (None, ("final_norm",))]
    assert found(result, FindingType.SOURCE) == []
    assert found(result, FindingType.GEOMETRY) == [(None, ("attn_norm", "ffn_norm", "final_norm"))]


def test_a_constant_that_only_the_subjects_file_states_is_named_where_its_weights_are_its_own(
    model: Model, sound: Trace
) -> None:
    """It ran with the right one: the stage is a source, and its file is wrong beside that."""
    states = replace(sound, geometry=replace(model.geometry, norm_eps=0.25))
    own = with_geometry(model, norm_eps=0.25).weights
    read = bisect(sound, states, weights=model.weights, subject_weights=own)
    assert (0, ("attn_norm", "ffn_norm")) in found(read, FindingType.WEIGHTS)
    unread = bisect(sound, states, weights=model.weights)
    assert (0, ("attn_norm",)) in found(unread, FindingType.SOURCE)
    assert all("attn_norm" not in stages for _, stages in found(unread, FindingType.WEIGHTS))


def test_models_of_another_shape_are_compared_in_words_alone(model: Model, sound: Trace) -> None:
    wide = small_model(model_type="qwen2", intermediate_size=40)
    result = bisect(sound, run(wide), weights=model.weights, subject_weights=wide.weights)
    assert found(result, FindingType.GEOMETRY) == [(None, ())]
    assert found(result, FindingType.WEIGHTS) == []
    assert all(row.accumulated is None for row in result.rows)
    assert any("different geometry" in line for line in result.not_checked)


# --- what is handed in, what is published ---------------------------------------------


def test_what_is_known_already_comes_first_and_what_was_not_checked_is_kept(
    model: Model, sound: Trace
) -> None:
    from apr_falsify.compare.bisection import Finding

    known = Finding(type=FindingType.TOKENIZER, explanation="other ids")
    result = bisect(sound, sound, weights=model.weights, findings=[known], not_checked=["the moon"])
    assert result.findings == (known,)
    assert result.not_checked[0] == "the moon"
    assert (result.kind, int(result.exit_code)) == (Kind.CONSISTENT, 1)


def test_traces_without_a_stage_in_common_are_refused(model: Model, sound: Trace) -> None:
    ours, theirs = (
        replace(sound, stages={key: array for key, array in sound.stages.items() if key[1] == name})
        for name in ("attn_norm", "ffn_norm")
    )
    with pytest.raises(TraceError, match="no stage in common"):
        bisect(ours, theirs)


def test_the_published_rule_is_applied_to_each_layer_of_which_a_cosine_was_measured(
    model: Model, sound: Trace
) -> None:
    result = bisect(sound, sound, weights=model.weights)
    assert [rule.layer for rule in result.published] == [0, 1]
    assert all(rule.complete and set(rule.cosines) == {1.0} for rule in result.published)
    without = {key: array for key, array in sound.stages.items() if key != Key(1, "attention")}
    result = bisect(sound, replace(sound, stages=without), weights=model.weights)
    assert [rule.complete for rule in result.published] == [True, False]
    layer_0 = {key: array for key, array in sound.stages.items() if key[0] != 1}
    result = bisect(sound, replace(sound, stages=layer_0), weights=model.weights)
    assert [rule.layer for rule in result.published] == [0]


# --- an arithmetic that nobody knows --------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> tuple[Model, Trace]:
    model = open_model(TINY)
    trace = run(model, (274, 272, 223, 20, 13, 20, 33))
    return model, replace(trace, provenance=replace(trace.provenance, runtime="llama-cpp"))


def in_an_unknown_arithmetic(
    tiny: tuple[Model, Trace], extra: float = 0.0, everywhere: float = 0.8
) -> Judged:
    """Judge a product that is off by some share of what f16 activations cost, as no rule of the table is.

    Weights are f16, so that llama.cpp is expected to round the activations to f16.
    """
    model, trace = tiny
    x = trace.stages[0, "ffn_norm"].data.astype(np.float64)
    tensor = model.weights.tensor("up", 0)
    weight = tensor.rows(0, tensor.shape[0]).astype(np.float64)
    expected = x.astype(np.float16).astype(np.float64) @ weight.T
    cost = np.sqrt(np.mean(np.square(expected - x @ weight.T), axis=1, keepdims=True))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], expected.shape)
    off = signs * everywhere * cost
    off[3, 17] = extra * cost[3, 0] if extra else off[3, 17]
    key = Key(0, "ffn_up")
    array = replace(trace.stages[key], data=(expected + off).astype(np.float32))
    spoilt = replace(trace, stages={**trace.stages, key: array})
    return judge(spoilt, model.weights, [key])[key]


@pytest.mark.parametrize(("extra", "wrong"), [(0.0, False), (3.8, False), (4.2, True)])
def test_four_times_what_the_expected_arithmetic_costs_is_allowed_where_none_is_known(
    tiny: tuple[Model, Trace], extra: float, wrong: bool
) -> None:
    entry = in_an_unknown_arithmetic(tiny, extra)
    assert entry.simulated
    assert entry.fit is not None
    assert entry.fit.rule.name == "f16"
    assert entry.in_error is wrong
    if extra:
        assert entry.fit.excess == pytest.approx(extra / 4, rel=0.01)


def test_an_error_in_every_value_is_found_below_that_where_no_arithmetic_is_known(
    tiny: tuple[Model, Trace],
) -> None:
    # The root mean square over 512 channels may reach 1/4 + 3/4 / sqrt(512) of the limit.
    assert not in_an_unknown_arithmetic(tiny, everywhere=1.1).in_error
    assert in_an_unknown_arithmetic(tiny, everywhere=1.3).in_error


def test_where_the_expected_arithmetic_is_plain_nothing_more_is_allowed(tiny: tuple[Model, Trace]) -> None:
    model, trace = tiny
    plain = (model, replace(trace, provenance=replace(trace.provenance, runtime="embedded")))
    entry = in_an_unknown_arithmetic(plain)
    assert not entry.simulated
    assert entry.in_error


# --- what a source's explanation says -------------------------------------------------


def rotated_from_one(trace: Trace) -> Trace:
    """Return the trace with q and k of layer 0 turned as if the first token stood at position 1."""
    stages = dict(trace.stages)
    size = trace.geometry.head_dim
    frequencies = 1e4 ** (-np.arange(size // 2) / (size // 2))
    for name in ("q_post_rope", "k_post_rope"):
        data = trace.stages[0, name].data.astype(np.float64)
        heads = data.reshape(len(data), -1, 2, size // 2)
        z = (heads[:, :, 0] + 1j * heads[:, :, 1]) * np.exp(1j * frequencies)
        turned = np.stack((z.real, z.imag), axis=2).reshape(data.shape)
        stages[0, name] = replace(stages[0, name], data=turned.astype(np.float32))
    return replace(trace, stages=stages)


def test_an_error_that_no_later_stage_shows_is_said_to_be_so(model: Model, sound: Trace) -> None:
    result = bisect(sound, rotated_from_one(sound), weights=model.weights)
    assert found(result, FindingType.SOURCE) == [(0, ("q_post_rope",)), (0, ("k_post_rope",))]
    assert all("attn_scores does not show it" in source.explanation for source in result.sources)
    shown = bisect(sound, changed(sound, Key(0, "ffn_up"), 1.5), weights=model.weights)
    (source, *_) = shown.sources
    assert "ffn_swigl does not show it" in source.explanation  # it was computed from the sound one


def test_an_error_that_a_later_stage_shows_is_not_said_to_be_hidden(model: Model, sound: Trace) -> None:
    wrong = changed(changed(sound, Key(0, "ffn_up"), 1.5), Key(0, "ffn_swigl"), 1.5)
    result = bisect(sound, wrong, weights=model.weights)
    source = next(each for each in result.sources if each.stages == ("ffn_up",))
    assert "does not show it" not in source.explanation
    little = changed(changed(sound, Key(0, "ffn_up"), 1.5), Key(0, "ffn_swigl"), 1.007)
    result = bisect(sound, little, weights=model.weights)
    source = next(each for each in result.sources if each.stages == ("ffn_up",))
    assert "does not show it" not in source.explanation  # more than a hundredth of 0.5
    slightly = changed(changed(sound, Key(0, "ffn_up"), 1.5), Key(0, "ffn_swigl"), 1.004)
    result = bisect(sound, slightly, weights=model.weights)
    source = next(each for each in result.sources if each.stages == ("ffn_up",))
    assert "ffn_swigl does not show it" in source.explanation  # less than a hundredth of it


def test_a_source_says_residual_floor_and_by_how_much_the_worst_place_exceeds_it(
    model: Model, sound: Trace
) -> None:
    key = Key(0, "ffn_up")
    data = np.array(sound.stages[key].data)
    data[2, 3] += np.float32(6e-6)
    array = replace(sound.stages[key], data=data)
    result = bisect(sound, replace(sound, stages={**sound.stages, key: array}), weights=model.weights)
    source = next(each for each in result.sources if each.stages == ("ffn_up",))
    row = next(row for row in result.rows if (row.layer, row.stage) == key)
    assert row.residual is not None
    assert row.floor is not None
    assert row.excess is not None
    assert row.residual < row.floor
    assert source.explanation.startswith(
        f"layer 0 ffn_up is not what its inputs make it: residual {row.residual:.1e}, floor {row.floor:.1e}, "
        f"{row.excess:.2g} x its floor at the worst place"
    )
    whole = bisect(sound, changed(sound, key, 1.5), weights=model.weights)
    source = next(each for each in whole.sources if each.stages == ("ffn_up",))
    assert "at the worst place" not in source.explanation
    assert source.advice == "look at the code and the weights of layer 0 ffn_up"
    assert source.cause == ("factor", "x 1.5")


def test_without_weights_or_inputs_a_stage_that_breaks_an_invariant_is_a_source(
    model: Model, sound: Trace
) -> None:
    key = Key(1, "attn_softmax")
    spoilt = changed(sound, key, 1.25)
    stages = {each: array for each, array in spoilt.stages.items() if each != Key(1, "attn_scores")}
    before = ("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope")
    left = {each: array for each, array in stages.items() if each[1] not in before}
    result = bisect(sound, replace(spoilt, stages=left))
    (source,) = [each for each in result.sources if each.stages == ("attn_softmax",)]
    assert source.explanation.startswith("layer 1 attn_softmax is wrong whatever its inputs were: ")
    assert "rows of softmax do not sum to 1" in source.explanation
    assert (source.layer, source.advice) == (1, "look at the code of layer 1 attn_softmax")
    row = next(row for row in result.rows if (row.layer, row.stage) == key)
    assert row.verdict is Verdict.INTRODUCES
    with_inputs = bisect(sound, spoilt, weights=model.weights)
    (source,) = [each for each in with_inputs.sources if each.stages == ("attn_softmax",)]
    assert "whatever its inputs were" not in source.explanation
