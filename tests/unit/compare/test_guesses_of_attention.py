"""What the guesses about scores and softmax are, by hand: values, rounding, and which are not made at all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.variations.attend import other_mask, padding, temperature
from apr_falsify.compare.variations.common import heads_before_tokens, own_factor_per_token, stale_inputs
from apr_falsify.model.stages import Layout
from apr_falsify.traces.trace import StageArray
from tests.unit.compare.cases import case_of, close, put, replayed, saying
from tests.unit.compare.wrong_stages import F64, Run, small_run

H, K, D = 4, 2, 4
U = 2.0**-24


@pytest.fixture(scope="module")
def run() -> Run:
    """Five tokens, 4 heads and 2 kv heads of 4 channels."""
    return small_run()


def exponentials(scores: F64) -> F64:
    return np.asarray(np.exp(scores) * np.tri(scores.shape[-1]))


def shares(raised: F64, more: float = 0.0) -> F64:
    return np.asarray(raised / (raised.sum(axis=-1, keepdims=True) + more))


# --- a softmax over more keys, or of scores times a factor ------------------------------------------


@pytest.mark.parametrize(
    ("count", "said"), [(1, "a sink: one more key"), (3, "3 padded keys"), (7, "7 padded keys")]
)
def test_keys_of_score_0_are_counted_by_what_is_missing_in_the_rows(count: int, said: str, run: Run) -> None:
    padded = shares(exponentials(run["attn_scores"]), count)
    guess = saying(padding(case_of(run, "attn_softmax", padded)), f"{said} of score 0 in the sum")
    close(guess.values, padded)


def test_a_row_that_is_not_finite_hides_no_padded_keys(run: Run) -> None:
    padded = shares(exponentials(run["attn_scores"]), 7)
    padded[1, 2] = np.nan
    says = [guess.says for guess in padding(case_of(run, "attn_softmax", padded))]
    assert "7 padded keys of score 0 in the sum" in says


def test_rows_that_sum_to_more_than_one_are_padded_by_no_measured_count(run: Run) -> None:
    for subject in (1.5 * replayed(run, "attn_softmax"), np.full((H, 5, 5), np.nan)):
        counted = [guess.says.split()[0] for guess in padding(case_of(run, "attn_softmax", subject))]
        assert counted[0] == "a"
        assert all(int(each) > 0 for each in counted[1:])
        assert len(set(counted)) == len(counted)


@pytest.mark.parametrize(
    ("factor", "named"),
    [
        # within 0.001 of the constant itself: 0.002 of 2, 0.0005 of 1/2
        (2.0015, ["sqrt(D)", "2"]),
        (2.0025, []),
        (0.4996, ["1/sqrt(D)", "1/2"]),
        (0.501, []),
        (math.log(2), ["ln 2 (2^x for e^x)"]),
    ],
)
def test_a_temperature_is_named_where_it_is_within_a_thousandth_and_told_as_measured(
    factor: float, named: list[str], run: Run
) -> None:
    raised = exponentials(factor * run["attn_scores"])
    guesses = list(temperature(case_of(run, "attn_softmax", shares(raised))))
    said = [*named, f"{factor:.5g}"]
    assert [guess.says for guess in guesses] == [f"scores x {each} before the softmax" for each in said]
    close(guesses[-1].values, shares(raised))
    if factor == math.log(2):
        close(guesses[0].values, shares(2.0 ** run["attn_scores"] * np.tri(5)))


def test_a_temperature_is_measured_within_rows_whatever_their_sums_are(run: Run) -> None:
    """A row that sums to less, one of zeros, and a weight on a key that is hidden say nothing of it."""
    subject = shares(exponentials(3 * run["attn_scores"])) * np.array([[1.0], [0.5], [4.0], [0.0], [1.0]])
    subject[0, 2, 4] = 0.25
    (guess,) = temperature(case_of(run, "attn_softmax", subject))
    assert guess.says == "scores x 3 before the softmax"


def test_hotter_scores_are_rounded_more(run: Run) -> None:
    hot = put(run, attn_scores=StageArray(data=8 * run.trace.stages[1, "attn_scores"].data))
    case = case_of(run, "attn_softmax", shares(exponentials(8 * run["attn_scores"])))
    sigma = saying(temperature(case), "scores x 8 before the softmax").sigma
    assert sigma is not None
    np.testing.assert_allclose(sigma, case_of(hot, "attn_softmax").sigma, rtol=1e-9)


def test_equal_scores_have_no_temperature(run: Run) -> None:
    """Of a row of equal scores any factor makes the same softmax."""
    level = put(run, attn_scores=StageArray(data=np.zeros((H, 5, 5), np.float32)))
    assert list(temperature(case_of(level, "attn_softmax", shares(np.tile(np.tri(5), (H, 1, 1)))))) == []


# --- scores that are no data above the diagonal ------------------------------------------------------


def full_scores(run: Run) -> F64:
    """q.k / sqrt(D) of every query and key."""
    q = run["q_post_rope"].reshape(5, H, D)
    k = np.repeat(run["k_post_rope"].reshape(5, K, D), H // K, axis=1)
    return np.asarray(np.einsum("thd,shd->hts", q, k) / 2)


@pytest.mark.parametrize("word", [Layout.CAUSAL_ZEROED, Layout.VISIBLE_ONLY])
def test_scores_that_were_not_stored_are_computed_for_a_softmax_without_its_mask(
    word: Layout, run: Run
) -> None:
    stored = np.tril(run["attn_scores"]).astype(np.float32)
    unmasked = "no mask at all"
    half = put(run, attn_scores=StageArray(data=stored, layout=(word,)))
    found = saying(other_mask(case_of(half, "attn_softmax")), unmasked)
    kept = np.where(np.tri(5) > 0, stored, full_scores(run))
    close(found.values, shares(np.exp(kept)))
    # What is declared as whole is taken as it is.
    whole = put(run, attn_scores=StageArray(data=stored))
    close(
        saying(other_mask(case_of(whole, "attn_softmax")), unmasked).values,
        shares(np.exp(stored.astype(np.float64))),
    )


def test_scores_that_were_not_stored_and_cannot_be_computed_are_taken_as_they_are(run: Run) -> None:
    stored = np.tril(run["attn_scores"]).astype(np.float32)
    half = put(run, attn_scores=StageArray(data=stored, layout=(Layout.CAUSAL_ZEROED,)))
    before = ("q_post_rope", "k_post_rope", "qkv_matmul", "attn_norm", "embedding", "post_ffn_residual")
    kept = {key: array for key, array in half.trace.stages.items() if key[1] not in before}
    alone = replace(half, trace=replace(half.trace, stages=kept))
    found = saying(other_mask(case_of(alone, "attn_softmax")), "no mask at all")
    close(found.values, shares(np.exp(stored.astype(np.float64))))


# --- what lies in another order ----------------------------------------------------------------------


def test_heads_before_tokens_are_the_same_numbers_read_in_another_shape(run: Run) -> None:
    case = case_of(run, "q_post_rope")
    (guess,) = heads_before_tokens(case)
    by_head = np.concatenate([case.expected[:, head * D : (head + 1) * D].reshape(-1) for head in range(H)])
    close(guess.values, by_head.reshape(5, H * D))
    assert guess.sigma is not None
    by_head = np.concatenate([case.sigma[:, head * D : (head + 1) * D].reshape(-1) for head in range(H)])
    close(guess.sigma / U, by_head.reshape(5, H * D) / U)


def test_exchanged_queries_and_keys_exchange_their_roundings(run: Run) -> None:
    case = case_of(run, "attn_scores")
    assert not np.allclose(case.sigma, case.sigma.transpose(0, 2, 1), rtol=1e-3)
    (guess,) = heads_before_tokens(case)
    close(guess.values, case.expected.transpose(0, 2, 1))
    assert guess.sigma is not None
    close(guess.sigma / U, case.sigma.transpose(0, 2, 1) / U)


def test_a_factor_of_a_token_is_one_of_its_rounding_too(run: Run) -> None:
    factors = np.array([1.5, -2.0, 0.25, 3.0, 1.0])[:, None]
    case = case_of(run, "ffn_out", factors * replayed(run, "ffn_out"))
    (guess,) = own_factor_per_token(case)
    assert guess.says == "each token by a factor of its own, -2 to 3,"
    close(guess.values, factors * case.expected)
    assert guess.sigma is not None
    close(guess.sigma / U, np.abs(factors) * case.sigma / U)


@pytest.mark.parametrize(
    ("tokens", "stage", "guesses"),
    [((3, 1), "attn_scores", 0), ((3, 1, 4), "attn_scores", 1), ((3, 1), "ffn_out", 1)],
)
def test_a_row_of_two_values_has_no_factor_of_its_own(
    tokens: tuple[int, ...], stage: str, guesses: int
) -> None:
    """Two values and their one factor: too little is left to tell it from anything."""
    assert len(list(own_factor_per_token(case_of(small_run(tokens), stage)))) == guesses


# --- inputs of other tokens --------------------------------------------------------------------------


def test_inputs_of_other_tokens_are_looked_at_in_full_only_where_the_first_scores_come_nearer(
    run: Run,
) -> None:
    case = case_of(run, "attn_scores")
    assert list(stale_inputs(replace(case, subject=case.expected))) == []
    q, k = run["q_post_rope"].reshape(5, H, D), run["k_post_rope"].reshape(5, K, D)
    before = k[[0, 0, 1, 2, 3]]
    stale = np.einsum("thd,shd->hts", q, np.repeat(before, H // K, axis=1)) / 2
    guesses = list(stale_inputs(replace(case, subject=stale)))
    says = "k_post_rope of other tokens: every token with the values of the token before"
    close(saying(guesses, says).values, stale)
    moves_of_two_inputs = 16
    assert len(guesses) < moves_of_two_inputs
