"""What guesses are, how they are rounded and what fits, worked out by hand; and which are not made at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.variations.case import Guess
from apr_falsify.compare.variations.common import named_factor
from apr_falsify.compare.variations.norms import wrong_form
from apr_falsify.compare.variations.places import one_place, one_place_by_a_factor, places
from apr_falsify.compare.variations.projected import neighbour_weights, other_order
from apr_falsify.compare.variations.quantised import quantised_weights
from apr_falsify.compare.variations.stored import clipped
from apr_falsify.operators.roundoff import LIMIT
from tests.unit.compare.cases import case_of, close, put, replayed, saying
from tests.unit.compare.wrong_stages import F64, Run, explained, small_run, tiny_run
from tests.unit.helpers import plain

U, F16 = 2.0**-24, 2.0**-11


@pytest.fixture(scope="module")
def run() -> Run:
    """Five tokens; 4 heads and 2 kv heads of 4 channels, hidden 16."""
    return small_run()


# --- how far a guess may be off ----------------------------------------------------------------------


def test_a_guess_may_be_rounded_twice_more_than_its_own_sigma_says(run: Run) -> None:
    """Two roundings of relative size u have the variance 2 u^2 / 3, of the larger of guess and replay."""
    case = case_of(run, "ffn_out")
    case = replace(case, expected=np.full((5, 16), 3.0), subject=np.full((5, 16), 2.0 + 1e-6))
    guess = Guess(says="", values=np.full((5, 16), 2.0), sigma=np.zeros((5, 16)))
    twice = 3 * U * math.sqrt(2 / 3)
    np.testing.assert_allclose(case.ratio(guess), 1e-6 / twice, rtol=1e-6)
    own = replace(guess, sigma=np.full((5, 16), 4e-7))
    np.testing.assert_allclose(case.ratio(own), 1e-6 / math.hypot(4e-7, twice), rtol=1e-6)
    np.testing.assert_allclose(case.ratio(own, more_roundings=0.0), 1e-6 / 4e-7, rtol=1e-6)


def test_what_is_not_finite_on_either_side_is_not_compared(run: Run) -> None:
    values = replayed(run, "ffn_out")
    subject, guess = values + 1.0, values.copy()
    subject[0, 0], guess[1, 1] = np.nan, np.inf
    ratio = case_of(run, "ffn_out", subject).ratio(Guess(says="", values=guess))
    assert (ratio[0, 0], ratio[1, 1]) == (0.0, 0.0)
    assert np.count_nonzero(ratio) == ratio.size - 2


def test_a_value_exceeds_its_floor_by_the_roundings_of_the_replay_alone(run: Run) -> None:
    case = case_of(run, "post_attn_residual")
    subject = case.expected.copy()
    subject[2, 5] += 1.05 * LIMIT * case.sigma[2, 5]
    subject[3, 7] -= 0.95 * LIMIT * case.sigma[3, 7]
    exceeds = replace(case, subject=subject).exceeds
    assert np.argwhere(exceeds).tolist() == [[2, 5]]


def test_other_inputs_are_as_the_captured_ones_rounded_when_they_were_saved(run: Run) -> None:
    """A value of 3 is off by 3 u of f16 and by one of its smallest steps, of which a zero has the latter."""
    inputs = {"layer_input": np.zeros((5, 16)), "attn_out": np.full((5, 16), 3.0)}
    values = np.full((5, 16), 3.0)
    in_full = case_of(run, "post_attn_residual").guess("", values, inputs).sigma
    assert in_full is not None
    np.testing.assert_allclose(in_full, 3 * U / math.sqrt(3), rtol=1e-9)
    saved = put(run, said={"saved_as": {"attn_out": "f16"}})
    rounded = case_of(saved, "post_attn_residual").guess("", values, inputs).sigma
    assert rounded is not None
    step = 2.0**-24
    expected = 2 * step**2 / 12 + 9 * F16**2 / 3 + 9 * U**2 / 3
    np.testing.assert_allclose(np.square(rounded), expected, rtol=1e-9)
    of_zeros = case_of(saved, "post_attn_residual").guess("", 0 * values, {**inputs, "attn_out": 0 * values})
    assert of_zeros.sigma is not None
    np.testing.assert_allclose(of_zeros.sigma, math.sqrt(2 / 12) * step, rtol=1e-9)


# --- factors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (2.0015, ["x 2", "x sqrt(D) = 2"]),  # within a thousandth, and D is 4
        (2.0025, []),
        (0.3, []),
        (0.0, ["all zeros"]),
        (0.5e-6, ["all zeros"]),
        (2e-6, []),
        (-1.0005, ["x -1"]),
        (-1.002, []),
        (1.0, []),
    ],
)
def test_a_factor_is_named_where_it_is_within_a_thousandth(factor: float, says: list[str], run: Run) -> None:
    case = case_of(run, "ffn_out", factor * replayed(run, "ffn_out"))
    guesses = list(named_factor(case))
    assert [guess.says for guess in guesses] == says
    for guess in guesses:
        named = round(factor)
        close(guess.values, named * case.expected)
        assert guess.sigma is not None
        close(guess.sigma / U, abs(named) * case.sigma / U)


# --- values at an end --------------------------------------------------------------------------------


def at_an_end(run: Run, side: int, count: int) -> F64:
    """Return ffn_out with its ``count`` outermost values put on the one that comes next."""
    values = replayed(run, "ffn_out")
    order = np.argsort(side * values, axis=None)
    flat = values.reshape(-1).copy()
    flat[order[:count]] = flat[order[count]]
    return flat.reshape(values.shape)


@pytest.mark.parametrize("side", [1, -1])
def test_clipped_values_are_two_at_least_that_were_beyond_the_end(side: int, run: Run) -> None:
    """One value on the next one is none: the next one itself stands where it should."""
    assert list(clipped(case_of(run, "ffn_out", at_an_end(run, side, 1)))) == []
    subject = at_an_end(run, side, 2)
    (guess,) = clipped(case_of(run, "ffn_out", subject))
    assert guess.says == f"values clipped to {subject.min():.6g} ... {subject.max():.6g}"
    close(guess.values, subject)


# --- norms -------------------------------------------------------------------------------------------


def test_a_mean_that_is_taken_off_is_rounded_itself(run: Run) -> None:
    """By one unit roundoff times the weight, beside the roundings that a norm of its values has."""
    case = case_of(run, "attn_norm")
    weight = np.abs(run.w("input_layernorm.weight"))
    for guess in wrong_form(case):
        plain = case.guess("", guess.values).sigma
        assert guess.sigma is not None
        assert plain is not None
        taken_off = "mean taken off" in guess.says
        assert not np.allclose(np.hypot(plain, U * weight), plain, rtol=1e-3)
        close(guess.sigma / U, (np.hypot(plain, U * weight) if taken_off else plain) / U)
    x = run["layer_input"]
    centred = x - x.mean(axis=-1, keepdims=True)
    layer_norm = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    guess = saying(wrong_form(case), "LayerNorm for RMSNorm (the mean taken off)")
    close(guess.values, layer_norm * run.w("input_layernorm.weight"))


# --- weights and their order -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "digits"),
    [("f16", 11), ("bf16", 8)],
)
def test_weights_of_any_width_may_be_kept_in_16_bits(kind: str, digits: int) -> None:
    run = small_run(intermediate_size=25)
    mantissa, exponent = np.frexp(run.w("mlp.down_proj.weight"))
    kept = np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits)
    made = run["ffn_swigl"] @ kept.T
    guess = saying(quantised_weights(case_of(run, "ffn_out", made)), f"weights stored as {kind}")
    close(guess.values, made)
    assert guess.instead == "the model's weights are f32"


def test_blocks_of_32_are_no_type_of_rows_of_another_width(run: Run) -> None:
    tried = {guess.says for guess in quantised_weights(case_of(run, "ffn_out", np.zeros((5, 16))))}
    assert tried <= {"weights stored as f16", "weights stored as bf16"}


def test_weights_that_are_alike_in_their_first_rows_are_tried_in_full() -> None:
    """Of 40 rows the 32 that are looked at first are those of the layer before: no nearer and no farther."""
    run = small_run(intermediate_size=40)
    assert run.model is not None
    own, before = run.w("mlp.up_proj.weight"), run.w("mlp.up_proj.weight", layer=0).copy()
    before[:32] = own[:32]
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {**run.model.weights.tensors, name: plain(before.astype(np.float32))}
    model = replace(run.model, weights=replace(run.model.weights, tensors=tensors))
    case = case_of(replace(run, model=model), "ffn_up", run["ffn_norm"] @ before.T)
    guess = saying(neighbour_weights(case), "the weights of layer 0")
    close(guess.values, case.subject)


def test_q_k_and_v_may_lie_in_five_other_orders_or_side_by_side(run: Run) -> None:
    case = case_of(run, "qkv_matmul")
    q, k, v = np.split(case.expected, [16, 24], axis=1)
    part = {"q": q, "k": k, "v": v}
    guesses = list(other_order(case))
    for order in ("qvk", "kqv", "kvq", "vqk", "vkq"):
        guess = saying(guesses, f"the order {'|'.join(order)} for q|k|v")
        close(guess.values, np.concatenate([part[role] for role in order], axis=1))
    by_group = [q[:, :8], k[:, :4], v[:, :4], q[:, 8:], k[:, 4:], v[:, 4:]]
    guess = saying(guesses, "q, k and v side by side per kv head, not end to end,")
    close(guess.values, np.concatenate(by_group, axis=1))
    sigma = np.split(case.sigma, [16, 24], axis=1)
    assert guess.sigma is not None
    by_group = [
        sigma[0][:, :8], sigma[1][:, :4], sigma[2][:, :4], sigma[0][:, 8:], sigma[1][:, 4:], sigma[2][:, 4:]
    ]  # fmt: skip
    close(guess.sigma / U, np.concatenate(by_group, axis=1) / U)
    assert len(guesses) == 6


# --- one place ---------------------------------------------------------------------------------------

HEADS = Axes(names=("token", "channel"), head_dim=4, heads=("head 0", "head 1", "head 2"))


def test_the_places_of_an_error_are_told_by_token_channel_head_and_channel_of_a_head() -> None:
    exceeds = np.zeros((5, 12), dtype=np.bool_)
    exceeds[1, [5, 7]] = exceeds[4, 5] = True
    found = {name: (at.tolist(), count) for name, (at, count) in places(exceeds, HEADS).items()}
    assert found == {
        "token": ([1, 4], 5),
        "channel": ([5, 7], 12),
        "head": ([1], 3),
        "channel of every head": ([1, 3], 4),
    }
    plain = places(exceeds, Axes(names=("token", "channel")))
    assert set(plain) == {"token", "channel"}


PLACES: dict[str, tuple[str, tuple[Any, ...], str, str]] = {
    "a head of q": ("q_post_rope", (slice(None), slice(8, 12)), "head 2", "one-head"),
    "a channel of every head": (
        "q_post_rope",
        (slice(None), slice(1, None, 4)),
        "channel 1 of every head",
        "one-channel-of-every-head",
    ),
    "a channel": ("ffn_out", (slice(None), 7), "channel 7", "one-channel"),
    "a token": ("ffn_out", (3,), "token 3", "one-token"),
    "a value": ("ffn_out", (3, 7), "token 3, channel 7", "one-value"),
    "a head of the scores": ("attn_scores", (1,), "head 1", "one-head"),
    "a query of the scores": ("attn_scores", (slice(None), 2), "token 2", "one-token"),
    "a key of the scores": ("attn_scores", (slice(None), slice(None), 3), "key 3", "one-key"),
    "a query of one head": ("attn_scores", (1, 2), "head 1, token 2", "one-head"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_factor_in_one_place_is_one_there_and_nowhere_else(name: str, run: Run) -> None:
    stage, at, said, cause = PLACES[name]
    right = replayed(run, stage)
    wrong = right * (1 + 1e-9)  # the subject's own values, within their floor, are no guess
    wrong[at] = 1.5 * right[at]
    case = case_of(run, stage, wrong)
    (guess,) = one_place_by_a_factor(case)
    assert (guess.says, guess.name) == (f"only {said}: x 1.5 there", cause)
    expected = right.copy()
    expected[at] = wrong[at]
    assert np.array_equal(guess.values, expected)
    assert list(one_place(case)) == []


def test_zeros_in_one_place_are_said_to_be_there(run: Run) -> None:
    wrong = replayed(run, "ffn_out")
    wrong[:, 7] = 0.0
    (guess,) = one_place_by_a_factor(case_of(run, "ffn_out", wrong))
    assert guess.says == "only channel 7: all zeros there"


@pytest.mark.parametrize(("tokens", "said"), [((3,), "channel 7"), ((3, 1), "token 0, channel 7")])
def test_the_only_token_of_a_run_is_no_place(tokens: tuple[int, ...], said: str) -> None:
    run = small_run(tokens)
    wrong = replayed(run, "ffn_out")
    wrong[0, 7] *= 2
    (guess,) = one_place_by_a_factor(case_of(run, "ffn_out", wrong))
    assert guess.says == f"only {said}: x 2 there"


def test_what_is_wrong_in_one_place_by_no_factor_is_told_as_such(run: Run) -> None:
    right = replayed(run, "q_post_rope")
    wrong = right.copy()
    wrong[:, 8:12] += np.arange(1.0, 21.0).reshape(5, 4)
    case = case_of(run, "q_post_rope", wrong)
    (guess,) = one_place(case)
    assert guess.says == "only head 2: by no constant factor; everything else"
    assert np.array_equal(guess.values, wrong)
    assert list(one_place_by_a_factor(case)) == []


def test_what_is_wrong_in_several_places_is_in_no_single_one(run: Run) -> None:
    wrong = replayed(run, "ffn_out")
    wrong[[0, 3], [5, 9]] *= 2
    case = case_of(run, "ffn_out", wrong)
    assert [*one_place(case), *one_place_by_a_factor(case)] == []


# --- a measured divisor ------------------------------------------------------------------------------


def test_a_measured_divisor_is_told_in_four_digits_where_two_do_not_fit() -> None:
    """By complex numbers, on a run that keeps f16, which does not tell it more finely."""
    run = tiny_run("f16")
    fused = run["qkv_bias"][:, :256].reshape(7, 8, 32)
    angles = np.outer(np.arange(7) / 3.142, 1e6 ** (-np.arange(0, 32, 2) / 32))
    z = (fused[..., :16] + 1j * fused[..., 16:]) * np.exp(1j * angles)[:, None]
    turned = np.concatenate((z.real, z.imag), -1).reshape(7, -1).astype(np.float16).astype(np.float32)
    cause = explained(run, "q_post_rope", turned)
    assert cause is not None
    assert (cause.name, cause.fits) == ("rope-scaling", True)
    assert "positions divided by 3.142 (linear scaling)" in cause.sentence
