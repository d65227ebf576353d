"""What rotations that are solved for are made of, by hand: which angles count, and how much."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.compare.variations.solved_rotary import other_frequencies, other_share
from tests.unit.compare.cases import case_of, close
from tests.unit.compare.wrong_stages import F64, Run, small_run

HEADS, D, TOKENS = 2, 8, 7
THETA = 1e4


@pytest.fixture(scope="module")
def run() -> Run:
    """Seven tokens; 4 heads and 2 kv heads of 8 channels, RoPE of base 1e4."""
    return small_run((3, 1, 4, 1, 5, 9, 2), head_dim=D)


def keys(run: Run) -> F64:
    """Return what is rotated, as complex pairs [S, heads, pairs]."""
    g = run.trace.geometry
    first = g.heads * D
    heads = run["qkv_matmul"][:, first : first + HEADS * D].reshape(TOKENS, HEADS, D)
    return np.asarray(heads[..., : D // 2] + 1j * heads[..., D // 2 :])


def flat(pairs: F64) -> F64:
    return np.concatenate((pairs.real, pairs.imag), axis=-1).reshape(TOKENS, HEADS * D)


def test_a_frequency_is_the_slope_of_its_angles_each_token_by_how_far_its_pairs_reach(run: Run) -> None:
    """By least squares through 0: sum(w t phi) / sum(w t^2), w the energy of the pair in all heads."""
    at = np.arange(TOKENS)[:, None]
    off = 0.05 * np.random.default_rng(0).standard_normal((TOKENS, D // 2))
    own = THETA ** (-np.arange(0, D, 2) / D)
    phases = at * own * [0.9, 1.2, 2.0, 0.5] + off
    before = keys(run)
    w = np.sum(np.square(np.abs(before)), axis=1)
    slopes = np.sum(w * at * phases, axis=0) / np.sum(w * np.square(at), axis=0)
    case = case_of(run, "k_post_rope", flat(before * np.exp(1j * phases)[:, None]))
    guess = next(other_frequencies(case))
    divided = ", ".join(f"{divisor:.4g}" for divisor in own / slopes)
    assert guess.says == f"pairs at frequencies of their own, the model's divided by {divided},"
    close(guess.values, flat(before * np.exp(1j * at * slopes)[:, None]))


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_how_many_channels_turn_is_read_off_the_last_one_that_did(channels: int, run: Run) -> None:
    before = keys(run)
    heads = np.concatenate((before.real, before.imag), axis=-1)
    half = channels // 2
    turn = np.exp(1j * np.outer(np.arange(TOKENS), THETA ** (-np.arange(half) / half)))[:, None]
    turned = (heads[..., :half] + 1j * heads[..., half:channels]) * turn
    made = np.concatenate((turned.real, turned.imag, heads[..., channels:]), axis=-1)
    case = case_of(run, "k_post_rope", made.reshape(TOKENS, HEADS * D))
    says = f"only the first {channels} of {D} channels of each head rotated"
    close(next(guess.values for guess in other_share(case) if guess.says == says), case.subject)
    assert not any("rotated as a whole" in guess.says for guess in other_share(case))
