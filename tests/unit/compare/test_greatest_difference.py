"""Where the greatest difference lies: its index, and the place in words of the stage."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.compare.axes import axes_of
from apr_falsify.compare.metrics import compare_arrays
from tests.unit.compare.pairs import GEOMETRY, TOKEN_CHANNEL, random_pair


def test_the_greatest_difference_is_found_in_whatever_tile_it_lies() -> None:
    shape = (600, 9000)  # several segments, several tiles in each direction
    for seed in range(4):
        oracle, subject = random_pair(*shape, seed=seed)
        at = tuple(int(index) for index in np.random.default_rng(seed).integers(0, shape))
        subject[at] += 5
        found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
        assert found.at == at
        assert found.max_abs == float(subject[at]) - float(oracle[at])


def test_of_equal_differences_the_first_in_row_order_is_told() -> None:
    oracle = np.zeros((40, 9000), np.float32)
    subject = oracle.copy()
    subject[0, 8999] = subject[1, 0] = subject[39, 5] = -2
    assert compare_arrays(oracle, subject, TOKEN_CHANNEL).at == (0, 8999)


@pytest.mark.parametrize(
    ("stage", "at", "words"),
    [
        ("attn_norm", (3, 40), "token 3, channel 40"),
        ("q_post_rope", (3, 2 * 32 + 17), "token 3, head 2, channel 17"),
        ("k_post_rope", (0, 32), "token 0, kv head 1, channel 0"),
        ("qkv_bias", (1, 8 * 32 + 5), "token 1, k head 0, channel 5"),
        ("qkv_matmul", (1, 10 * 32 + 31), "token 1, v head 0, channel 31"),
        ("attn_scores", (7, 5, 3), "head 7, token 5, key 3"),
        ("lm_head", (411,), "vocabulary entry 411"),
    ],
)
def test_a_place_is_told_in_words(stage: str, at: tuple[int, ...], words: str) -> None:
    shape = tuple(GEOMETRY.dims(6)[axis] for axis in STAGE_AXES[stage])
    oracle = np.ones(shape, np.float32)
    subject = oracle.copy()
    subject[at] = 3
    found = compare_arrays(oracle, subject, axes_of(stage, GEOMETRY))
    assert (found.at, found.where) == (at, words)


STAGE_AXES = {
    "attn_norm": ("tokens", "hidden"),
    "q_post_rope": ("tokens", "q"),
    "k_post_rope": ("tokens", "kv"),
    "qkv_bias": ("tokens", "qkv"),
    "qkv_matmul": ("tokens", "qkv"),
    "attn_scores": ("heads", "tokens", "tokens"),
    "lm_head": ("vocab",),
}
