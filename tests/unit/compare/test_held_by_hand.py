"""Small promises of the replay, each shown on values made by hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare import judge as judging
from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.fit import Fit
from apr_falsify.compare.fused import rounded_weights
from apr_falsify.compare.grain_edges import Grained, _fixed, grained_operands
from apr_falsify.compare.kernel_case import kernel_case
from apr_falsify.compare.read_again import read_again
from apr_falsify.compare.stored_format import _sample
from apr_falsify.compare.variations.common import stale_inputs
from apr_falsify.compare.variations.head_norms import measured_epsilon
from apr_falsify.compare.variations.residual import measured_residual
from apr_falsify.compare.variations.stored import fewer_bits
from apr_falsify.errors import StageError
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import Key
from apr_falsify.numerics.grains import ACTIVATIONS, caches
from apr_falsify.numerics.operand_rules import PLAIN, Operation
from apr_falsify.operators.roundoff import LIMIT, Known
from apr_falsify.traces.trace import StageArray
from tests.unit.compare.cases import case_of, close, replayed
from tests.unit.compare.judged_by_hand import fit
from tests.unit.compare.wrong_stages import F64, Run, small_run

F16 = 2.0**-11


@pytest.fixture(scope="module")
def run() -> Run:
    """Five tokens; 4 heads and 2 kv heads of 4 channels, hidden 16."""
    return small_run()


# --- roundings ----------------------------------------------------------------------------------------


def test_what_an_input_carries_goes_through_the_product(run: Run) -> None:
    """A rounding s of each of the inputs is one of s * sqrt(sum w^2) of an output."""
    case = case_of(run, "attn_out")
    ((name, known),) = case.known.items()
    carried = Known(value=known.value, sigma=np.full(known.value.shape, 1e-2))
    found = case.replayer.evaluate(case.key, {name: carried}, (PLAIN,)).sigma
    weight = run.w("self_attn.o_proj.weight", run.layer)
    expected = 1e-2 * np.sqrt(np.sum(np.square(weight), axis=1))
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-6)


def test_weights_of_a_row_are_rounded_by_the_largest_of_that_row_alone() -> None:
    """Weights below the smallest normal f16 lose one of its smallest steps, times the row's largest."""
    flat, steep = [0.5, 0.5, 0.0], [0.001, 0.001, 0.0]
    both = Known(value=np.array([[flat, steep]]), sigma=np.zeros((1, 2, 3)))
    found = rounded_weights(both, F16).sigma
    assert found is not None
    for row, values in enumerate((flat, steep)):
        alone = rounded_weights(Known(value=np.array([[values]]), sigma=np.zeros((1, 1, 3))), F16).sigma
        assert alone is not None
        np.testing.assert_allclose(found[0, row], alone[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found[0, :, 2], found[0, 0, 2] * np.array([1.0, 0.002]), rtol=1e-9)


def test_an_f32_run_rounds_no_weight_again() -> None:
    weights = Known(value=np.array([[0.25, 0.75]]), sigma=np.zeros((1, 2)))
    assert rounded_weights(weights, 2.0**-24) is weights


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_value_of_few_bits_may_be_half_a_unit_of_its_precision_off(bits: int, run: Run) -> None:
    """Of 2^-b relative to the rounded value, which may itself be larger by as much."""
    mantissa, exponent = np.frexp(replayed(run, "ffn_out"))
    coarse = np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits)
    case = case_of(run, "ffn_out", coarse)
    (guess,) = fewer_bits(case)
    assert guess.sigma is not None
    half = np.abs(case.expected) * (2.0**-bits + 2.0 ** (-2 * bits))
    close(LIMIT * (guess.sigma - case.sigma), half)
    assert case.fits(guess)


def test_a_hypothesis_on_formats_is_judged_in_the_first_three_layers() -> None:
    keys = [Key(layer, name) for layer in range(5) for name in ("attn_out", "ffn_out")]
    keys += [Key(None, "final_norm"), Key(None, "lm_head")]
    stages = dict.fromkeys(keys, StageArray(data=np.zeros(1, np.float32)))
    trace = replace(small_run((1, 2)).trace, stages=stages)
    assert _sample(trace, [*keys, Key(0, "ffn_norm")]) == keys[:6]
    assert _sample(trace, keys[2:]) == keys[2:8]
    assert _sample(trace, keys[-2:]) == keys[-2:]


# --- arithmetics ---------------------------------------------------------------------------------------


def test_arithmetics_are_tried_until_one_explains_the_stage() -> None:
    tried: list[str] = []
    rules = [replace(PLAIN, name=name) for name in ("first", "second", "third")]

    def fits(rule: judging.Rule) -> tuple[Fit, ...]:
        tried.append(rule.name)
        return (fit(rule=rule, share=1.0 if rule.name == "second" else 0.1),)

    found = judging._until_explained(Key(0, "attention"), rules, fits, Attempts())
    assert tried == ["first", "second"]
    assert [each.rule.name for each in found] == tried


def test_a_judged_stage_keeps_no_profile(run: Run) -> None:
    key = Key(1, "ffn_out")
    assert run.model is not None
    introduced = judging.judge(run.trace, run.model.weights, [key])[key].introduced
    assert introduced is not None
    assert introduced.per == {}


def test_an_operand_in_8_bits_is_the_one_that_the_rule_holds_so() -> None:
    left = next(iter(ACTIVATIONS.values()))
    cache = next(iter(caches().values()))
    of_left, of_right = replace(PLAIN, name="l", left=left), replace(PLAIN, name="r", right=cache)
    assert grained_operands(of_left, Operation.PROJECTION) == (Grained(grain=left, role=""),)
    (keys,) = grained_operands(of_right, Operation.SCORES)
    (values,) = grained_operands(of_right, Operation.MIX)
    assert (keys.grain, values.grain) == (cache, cache)
    assert keys.role != values.role
    assert grained_operands(PLAIN, Operation.SCORES) == ()


def test_a_fixed_operand_gives_all_rows_or_the_last_one() -> None:
    held = np.arange(6.0).reshape(3, 2)
    kept = _fixed(held)
    assert kept(np.zeros((3, 2))).tolist() == held.tolist()
    assert kept(np.zeros(2)).tolist() == [4.0, 5.0]


# --- guesses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "name"),
    [
        (-1 + 0.9e-4, "subtracted"),
        (-1 - 1.1e-4, None),
        (2 + 1.9e-4, "added twice"),
        (2 + 2.1e-4, None),
        (0.9e-4, "left out"),
        (1.1e-4, None),
    ],
)
def test_a_coefficient_has_a_name_within_a_ten_thousandth(b: float, name: str | None, run: Run) -> None:
    """Of itself, and of 1 where it is less; a measured one is told in more and more digits."""
    subject = run["post_attn_residual"] + b * run["ffn_out"]
    *_, last = measured_residual(case_of(run, "post_ffn_residual", subject))
    said = f"ffn_out {name}" if name else f"ffn_out x {b:.5g}"
    assert last.says == f"in the residual sum {said}"


def test_scores_before_their_cap_have_no_cache(run: Run) -> None:
    capped = replace(run, trace=replace(run.trace, geometry=replace(run.trace.geometry, attn_softcap=5.0)))
    case = case_of(capped, "attn_scores")
    before = replayed(run, "attn_scores")
    moved: F64 = 5 * np.tanh(before[[0, 0, 1, 2]] / 5)
    known = {"attn_scores_uncapped": Known(value=before)}
    assert list(stale_inputs(replace(case, known=known, subject=moved))) == []


@pytest.mark.parametrize("stage", ["q_norm", "k_norm", "q_post_rope"])
def test_an_epsilon_before_rope_is_measured_in_the_norm_and_behind_it(stage: str) -> None:
    run = small_run(model_type="qwen3", head_dim=8)
    role = stage[0]
    g = run.trace.geometry
    start, heads = (0, g.heads) if role == "q" else (g.heads * 8, g.kv_heads)
    x = run["qkv_matmul"][:, start : start + heads * 8].reshape(5, heads, 8)
    wrong = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 0.25)
    wrong = (wrong * run.w(f"self_attn.{role}_norm.weight", run.layer)).reshape(5, -1)
    if stage == "q_post_rope":
        pairs = wrong.reshape(5, heads, 8)[..., :4] + 1j * wrong.reshape(5, heads, 8)[..., 4:]
        pairs = (
            pairs * np.exp(1j * np.outer(np.arange(5), g.rope_at(1).theta ** (-np.arange(4) / 4)))[:, None]
        )
        wrong = np.concatenate((pairs.real, pairs.imag), axis=-1).reshape(5, -1)
    guess = next(measured_epsilon(case_of(run, stage, wrong)))
    assert guess.says == "epsilon 0.25 in the norm before RoPE"
    np.testing.assert_allclose(guess.values, wrong, rtol=1e-5, atol=1e-7)


# --- what is told and taken ---------------------------------------------------------------------------


def test_what_breaks_down_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts()
    with caplog.at_level(logging.DEBUG, logger="apr_falsify"):
        assert attempts.trying("a look", Key(1, "ffn_out")).made(lambda: math.sqrt(-1), 7.0) == 7.0
    (record,) = caplog.records
    assert "a look" in record.getMessage()
    assert "broke down" in record.getMessage()
    assert record.exc_info is not None


def findings() -> Iterator[Finding]:
    """A format as its finding says it, and one that is about something else."""
    yield Finding(
        type=FindingType.RECORDING, stages=(), explanation="the stages are stored in f16: seen: often"
    )
    yield Finding(type=FindingType.LAYOUT, stages=("ffn_out",), explanation="no such layout: at all")


def test_a_run_is_read_again_in_the_format_that_a_finding_names(run: Run) -> None:
    assert run.model is not None
    again = read_again(run.trace, run.model.weights, findings())
    assert again.trace.provenance.dtype == "f16"
    assert run.trace.provenance.dtype != "f16"
    assert again.weights is run.model.weights


def test_a_run_of_several_passes_is_no_kernel_case(run: Run) -> None:
    assert run.model is not None
    decoded = replace(run.trace, in_passes=Passes(sizes=(4, 1)))
    with pytest.raises(StageError, match="in 2 passes"):
        kernel_case(decoded, run.model.weights, Key(1, "ffn_out"))
