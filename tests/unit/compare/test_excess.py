"""Group statistics count independent tokens and channels: what is rounded alike proves no more than one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apr_falsify.compare.excess import excess_of
from apr_falsify.operators.attention import sum_variance
from apr_falsify.operators.repeated import alike, one_sign, repeats
from apr_falsify.operators.roundoff import LIMIT

ROWS, WIDTH = 64, 256


def rows(seed: int, count: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def one_row_in_all(seed: int) -> np.ndarray:
    return np.repeat(rows(seed, 1), ROWS, axis=0)


def test_equal_rows_may_be_off_together_as_far_as_one_row_may() -> None:
    ratio = np.zeros((ROWS, WIDTH))
    ratio[:, 3] = 0.6 * LIMIT  # far beyond what 64 independent roundings leave in their mean
    assert excess_of(ratio, rows(0)) > 1
    assert excess_of(ratio, one_row_in_all(0)) == pytest.approx(0.6)
    assert excess_of(ratio) > 1


def test_rows_that_differ_in_their_last_digits_are_rounded_alike() -> None:
    ratio = np.zeros((ROWS, WIDTH))
    ratio[:, 3] = 0.6 * LIMIT
    nearly = one_row_in_all(0) * (1 + 1e-6 * rows(1))
    assert excess_of(ratio, nearly) == pytest.approx(0.6)
    assert excess_of(ratio, one_row_in_all(0) * (1 + 1e-2 * rows(1))) > 1


def test_columns_of_equal_weights_count_as_one() -> None:
    ratio = np.zeros((ROWS, WIDTH))
    ratio[5] = 0.6 * LIMIT
    assert excess_of(ratio, rows(0)) > 1
    assert excess_of(ratio, one_row_in_all(0).T.reshape(WIDTH, ROWS)[:ROWS].repeat(4, axis=1)) <= 1


def test_each_group_of_repeats_counts_once() -> None:
    """Eight words, each eight times: an error of all tokens needs the size that eight of them can show."""
    words = np.repeat(rows(0, 8), 8, axis=0)
    allowed = LIMIT * (0.25 + 0.75 / np.sqrt(8))
    for size, beyond in ((0.99, False), (1.01, True)):
        ratio = np.zeros((ROWS, WIDTH))
        ratio[:, 3] = size * allowed
        assert (excess_of(ratio, words) > 1) is beyond


def test_a_single_value_beyond_its_limit_is_seen_among_equal_rows() -> None:
    ratio = np.zeros((ROWS, WIDTH))
    ratio[17, 3] = 1.5 * LIMIT
    assert excess_of(ratio, one_row_in_all(0)) == pytest.approx(1.5)


def test_a_massive_channel_that_all_tokens_share_does_not_make_them_alike() -> None:
    massive = rows(0)
    massive[:, 7] = 1e6
    assert len(set(alike(massive))) == ROWS


def test_what_is_kept_in_few_bits_is_alike_where_it_rounds_to_the_same() -> None:
    nearly = one_row_in_all(0) * (1 + 1e-3 * rows(1))
    assert len(set(alike(nearly))) == ROWS
    assert len(set(alike(nearly, unit=2.0**-8))) == 1


def test_two_words_in_turn_are_two() -> None:
    labels = alike(np.tile(rows(0, 2), (32, 1)))
    assert labels[0] != labels[1]
    assert np.array_equal(labels, np.tile(labels[:2], 32))


@pytest.mark.parametrize("seed", range(8))
def test_one_token_repeated_through_a_real_product_is_within_its_floor(seed: int) -> None:
    """In torch's f32, whichever kernel it chooses, against f64: 128 equal rows."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(640, WIDTH)).astype(np.float32)
    token = generator.normal(size=(1, WIDTH)).astype(np.float32).repeat(128, axis=0)
    made = (torch.from_numpy(token) @ torch.from_numpy(weight).T).numpy()
    exact = token.astype(np.float64) @ weight.astype(np.float64).T
    squares = np.square(token.astype(np.float64)) @ np.square(weight.astype(np.float64)).T
    sigma = np.sqrt(sum_variance(squares, exact, WIDTH))
    assert excess_of(np.abs(made - exact) / sigma, exact) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_a_sequential_sum_of_one_term_may_be_off_by_as_many_roundings(seed: int) -> None:
    """1,000 times one f32 number, added one after the other: each time it is rounded the same way."""
    term = np.float32(np.random.default_rng(seed).uniform(0.6, 1) / 1000)
    total = np.float32(0)
    for _ in range(1000):
        total = np.float32(total + term)
    exact = np.array(1000 * float(term))
    assert one_sign(exact, exact) == 1
    assert abs(float(total) - exact) <= 1000 * 2.0**-24 * float(exact)


def test_terms_that_cancel_have_the_rounding_of_independent_ones() -> None:
    values = rows(0, 1, 1000)[0]
    y, sizes = np.abs(values.sum()), np.abs(values).sum()
    assert one_sign(y, sizes) < 1e-4
    assert one_sign(np.array(0.0), np.array(0.0)) == 0


def causal(count: int) -> np.ndarray:
    return np.tril(np.ones((2, count, count)))


def test_sums_of_terms_that_differ_have_the_rounding_of_independent_ones() -> None:
    assert repeats(rows(0), causal(ROWS)) is None


def test_a_term_that_is_added_again_is_rounded_the_same_way() -> None:
    """Of one key n times the errors add up n times, not sqrt(n) times: the variance is n times larger."""
    found = repeats(one_row_in_all(0), causal(ROWS))
    assert found is not None
    np.testing.assert_allclose(found, np.arange(1, ROWS + 1))


def test_of_two_words_each_adds_up_with_itself() -> None:
    found = repeats(np.tile(rows(0, 2), (32, 1)), causal(ROWS))
    assert found is not None
    assert found[[0, 1, 3, 63]].tolist() == [1, 1, 2, 32]
