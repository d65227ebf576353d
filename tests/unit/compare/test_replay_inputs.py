"""What a replay takes for a stage's inputs: captured, computed, or rounded on the way; and what it lacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.judge import as_run, store_of
from apr_falsify.compare.recorded_formats import saved_unit, saved_words
from apr_falsify.compare.replay import Missing, Replay, Replayer, is_mixed, roles_of
from apr_falsify.model.stages import Key, Layout
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.table import span_of
from apr_falsify.traces.trace import Trace
from tests.unit.compare.wrong_stages import small_run
from tests.unit.helpers import small_geometry

U, F16, BF16 = 2.0**-24, 2.0**-11, 2.0**-8


@pytest.fixture(scope="module")
def trace() -> Trace:
    return small_run().trace


def replayer(trace: Trace, weights: bool = True) -> Replayer:
    model = small_run().model
    assert model is not None
    return Replayer(trace, model.weights if weights else None, store_of(trace))


def without(trace: Trace, *names: str) -> Trace:
    return replace(trace, stages={key: array for key, array in trace.stages.items() if key[1] not in names})


def saved(trace: Trace, **formats: str) -> Trace:
    return replace(trace, provenance=replace(trace.provenance, saved_as=formats))


def test_what_was_captured_carries_no_rounding(trace: Trace) -> None:
    known = replayer(trace).inputs(Key(1, "attn_softmax"))["attn_scores"]
    assert known.sigma is None
    np.testing.assert_array_equal(known.value, trace.stages[1, "attn_scores"].data)


def test_scores_that_were_stored_unscaled_are_rounded_once_more_when_they_are_scaled(trace: Trace) -> None:
    key = Key(1, "attn_scores")
    array = replace(trace.stages[key], data=trace.stages[key].data * 2, layout=(Layout.UNSCALED,))
    known = replayer(replace(trace, stages={**trace.stages, key: array})).inputs(Key(1, "attn_softmax"))[
        "attn_scores"
    ]
    np.testing.assert_allclose(known.value, trace.stages[key].data, rtol=1e-6)
    assert known.sigma is not None
    np.testing.assert_allclose(known.sigma, np.abs(known.value) * U / np.sqrt(3), rtol=1e-9)


@pytest.mark.parametrize(("kind", "unit"), [("f16", F16), ("bf16", BF16)])
def test_what_was_saved_in_fewer_bits_carries_that_rounding(trace: Trace, kind: str, unit: float) -> None:
    found = saved(trace, attn_scores=kind)
    known = replayer(found).inputs(Key(1, "attn_softmax"))["attn_scores"]
    assert known.sigma is not None
    np.testing.assert_allclose(known.sigma, np.abs(known.value) * unit / np.sqrt(3), rtol=1e-4)
    assert replayer(found).inputs_saved(Key(1, "attn_softmax"))
    assert not replayer(found).inputs_saved(Key(1, "attention"))
    assert (saved_unit(found), saved_words(found)) == (unit, kind)


def test_the_coarsest_format_of_what_was_saved_counts_and_each_is_named_once(trace: Trace) -> None:
    found = saved(trace, attn_norm="f16", ffn_out="bf16", ffn_up="f16")
    assert (saved_unit(found), saved_words(found)) == (BF16, "f16 and bf16")
    assert (saved_unit(trace), saved_words(trace)) == (U, "")


def test_a_stage_that_was_not_captured_is_computed_with_the_rounding_of_doing_so(trace: Trace) -> None:
    found = replayer(without(trace, "attn_scores")).replay(Key(1, "attn_softmax"), (PLAIN,))
    assert isinstance(found, Replay)
    assert found.composed == ("attn_scores",)
    usual = replayer(trace).replay(Key(1, "attn_softmax"), (PLAIN,))
    assert isinstance(usual, Replay)
    assert usual.composed == ()
    assert (found.sigma >= usual.sigma).all()
    assert found.sigma.max() > usual.sigma.max()


def test_several_stages_that_were_not_captured_are_computed_in_turn(trace: Trace) -> None:
    found = replayer(without(trace, "attn_scores", "q_post_rope")).replay(Key(1, "attn_softmax"), (PLAIN,))
    assert isinstance(found, Replay)
    assert found.composed == ("q_post_rope", "attn_scores")


@pytest.mark.parametrize(
    ("lacking", "key", "what"),
    [
        (("post_attn_residual",), Key(1, "ffn_norm"), "post_attn_residual of layer 1"),
        (("post_ffn_residual",), Key(None, "final_norm"), "post_ffn_residual of layer 1"),
    ],
)
def test_a_residual_stream_is_never_computed_and_named_as_missing(
    trace: Trace, lacking: tuple[str, ...], key: Key, what: str
) -> None:
    found = replayer(without(trace, *lacking)).replay(key, (PLAIN,))
    assert found == Missing(what=what, remedy=f"capture {what} too")


def test_without_weights_what_needs_them_says_so(trace: Trace) -> None:
    found = replayer(trace, weights=False).replay(Key(1, "ffn_up"), (PLAIN,))
    assert isinstance(found, Missing)
    assert found.what == "the weights"
    assert isinstance(replayer(trace, weights=False).replay(Key(1, "ffn_swigl"), (PLAIN,)), Replay)


def test_a_row_of_the_last_token_alone_is_missing_for_every_token(trace: Trace) -> None:
    key = Key(1, "qkv_matmul")
    array = replace(trace.stages[key], data=trace.stages[key].data[-1], layout=(Layout.LAST_TOKEN,))
    found = replayer(replace(trace, stages={**trace.stages, key: array})).replay(
        Key(1, "k_post_rope"), (PLAIN,)
    )
    what = "qkv_matmul of layer 1 for every token"
    assert found == Missing(what=what, remedy=f"capture {what} too")


def test_weight_types_of_a_stage_are_named_once_each(trace: Trace) -> None:
    model = small_run().model
    assert model is not None
    names = model.weights.names
    tensors = dict(model.weights.tensors)
    name = names["v"].format(n=1)
    tensors[name] = replace(tensors[name], type="q6_k")  # type: ignore[type-var]
    own = Replayer(trace, replace(model.weights, tensors=tensors), U)
    assert own.weight_type(Key(1, "qkv_matmul")) == "f32 and q6_k"
    assert own.weight_type(Key(0, "qkv_matmul")) == "f32"
    assert replayer(trace, weights=False).weight_type(Key(1, "qkv_matmul")) == ""


def test_roles_of_a_mixture_are_those_of_one_expert() -> None:
    moe = small_geometry(
        model_type="qwen3_moe",
        head_dim=4,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        mlp_only_layers=[1],
    )
    assert (is_mixed(Key(0, "ffn_out"), moe), is_mixed(Key(1, "ffn_out"), moe)) == (True, False)
    assert not is_mixed(Key(0, "attn_out"), moe)
    assert roles_of(span_of("ffn_out", moe, 0)) == ("expert_gate.0", "expert_up.0", "expert_down.0")
    assert roles_of(span_of("ffn_out", moe, 1)) == ("down",)
    assert roles_of(span_of("moe_router", moe, 0)) == ("router",)


@pytest.mark.parametrize(
    ("dtype", "unit"), [("f32", U), ("f16", F16), ("bf16", BF16), ("f64", U), ("unknown", U), ("q4", U)]
)
def test_the_format_of_a_run_is_that_which_it_states_but_never_finer_than_f32(
    trace: Trace, dtype: str, unit: float
) -> None:
    stated = replace(trace, provenance=replace(trace.provenance, dtype=dtype))
    assert store_of(stated) == unit


def test_the_format_of_a_run_that_states_none_is_the_coarsest_that_was_saved(trace: Trace) -> None:
    stated = replace(
        trace, provenance=replace(trace.provenance, dtype="unknown", saved_as={"ffn_up": "bf16"})
    )
    assert store_of(stated) == BF16


@pytest.mark.parametrize(
    ("runtime", "dtype", "held"), [("hf", "f16", "f16"), ("hf", "unknown", None), ("embedded", "f16", None)]
)
def test_only_transformers_casts_its_weights_to_the_format_that_it_runs_in(
    trace: Trace, runtime: str, dtype: str, held: str | None
) -> None:
    stated = replace(trace, provenance=replace(trace.provenance, runtime=runtime, dtype=dtype))
    model = small_run().model
    assert model is not None
    found = as_run(model.weights, stated)
    assert found is not None
    assert (None if found.cast_to is None else found.cast_to.name) == held
    assert as_run(None, stated) is None


def test_a_hypothesis_about_some_rows_changes_nothing_for_the_stages_after(trace: Trace) -> None:
    """Of transformers' runs the product is not the very tensor that is used next: its rounding is kept."""
    of_hf = replace(trace, provenance=replace(trace.provenance, runtime="hf"))
    product = Key(1, "qkv_matmul")
    one = replayer(of_hf)
    first = one.replay(product, (PLAIN,))
    one.evaluate(
        product, {role: replace(x, value=x.value[:2] * 9) for role, x in one.inputs(product).items()}
    )
    (known,) = one.inputs(Key(1, "q_post_rope")).values()
    assert isinstance(first, Replay)
    assert known.sigma is not None
    np.testing.assert_array_equal(known.sigma, first.sigma)
