"""What cached keys that are turned for other positions make of scores, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.compare.variations.cached import other_keys
from tests.unit.compare.cases import case_of, close, replayed
from tests.unit.compare.wrong_stages import F64, Run, small_run

H, K, D = 4, 2, 4


@pytest.fixture(scope="module")
def run() -> Run:
    """Five tokens; 4 heads and 2 kv heads of 4 channels."""
    return small_run()


def turned_on(run: Run, key: int, by: int) -> F64:
    """Return a rotated key [K, D] rotated by so many positions more, in complex numbers."""
    theta = run.trace.geometry.rope_at(run.layer).theta
    heads = run["k_post_rope"][key].reshape(K, D)
    turn = np.exp(1j * by * theta ** (-np.arange(0, D, 2) / D))
    pairs = (heads[:, : D // 2] + 1j * heads[:, D // 2 :]) * turn
    return np.concatenate((pairs.real, pairs.imag), axis=1)


@pytest.mark.parametrize(
    ("places", "listed"),
    [({1: 3}, "1 at 3"), ({2: 0}, "2 at 0"), ({0: 4, 2: 7}, "0 at 4, 2 at 7")],
)
def test_keys_that_are_turned_for_other_positions_are_told_with_these(
    places: dict[int, int], listed: str, run: Run
) -> None:
    subject = replayed(run, "attn_scores").copy()
    q = run["q_post_rope"].reshape(5, H, D)
    first = 3  # the token from which on a cache hands them out
    for key, place in places.items():
        shared = np.repeat(turned_on(run, key, place - key), H // K, axis=0)
        subject[:, first:, key] = np.einsum("thd,hd->ht", q[first:], shared) / np.sqrt(D)
    *_, guess = other_keys(case_of(run, "attn_scores", subject))
    assert guess.says == f"from token 3 on cached keys turned for other positions: that of {listed}"
    close(guess.values, subject)
    assert guess.instead == "a cached key keeps the position it was written at"


def test_scores_of_right_keys_are_no_question_of_the_cache(run: Run) -> None:
    assert list(other_keys(case_of(run, "attn_scores", replayed(run, "attn_scores")))) == []
