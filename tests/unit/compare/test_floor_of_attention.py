"""The unit in which residuals of attention are judged, worked out by hand as in ``test_floor_by_hand``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.unit.compare.floor_values import F16, F64, GEMMA, LLAMA, SMALL, U, close, known, site, variance
from tests.unit.helpers import small_geometry

# --- scores, softmax, attention ------------------------


def scores(q_sigma: float | None = None, k_sigma: float | None = None, **knobs: Any) -> F64:
    """One token whose q is 3 and whose k is 2 in each of 4 channels: each term 6, their sum 24, scaled 12."""
    geometry = small_geometry(**knobs)
    inputs = {
        "q_post_rope": known(np.full((1, 16), 3.0), None if q_sigma is None else np.full((1, 16), q_sigma)),
        "k_post_rope": known(np.full((1, 8), 2.0), None if k_sigma is None else np.full((1, 8), k_sigma)),
    }
    return variance("attn_scores", inputs, np.full((4, 1, 1), 12.0), site(geometry))[:, 0, 0]


def test_scores_are_rounded_as_a_scaled_sum_is() -> None:
    own = (4 * 36 * 4 / 6) / 4 + 144 * (4 / 9 + 2 / 3)
    close(scores(), [own] * 4)
    close(scores(q_sigma=5 * U), [own + 4 * 25 * 4 / 4] * 4)
    close(scores(k_sigma=5 * U), [own + 4 * 25 * 9 / 4] * 4)


def test_scores_in_a_coarse_format_are_rounded_twice_more() -> None:
    inputs = {"q_post_rope": known(np.zeros((1, 16))), "k_post_rope": known(np.zeros((1, 8)))}
    found = variance("attn_scores", inputs, np.full((4, 1, 1), 12.0), site(LLAMA), F16)[:, 0, 0]
    close(found, [144 * (4 / 9 + 2 * 2**26 / 3) + SMALL[F16]] * 4)


def test_query_heads_carry_the_error_of_the_kv_head_that_they_read() -> None:
    sigma = np.zeros((1, 8))
    sigma[0, 4:] = 5 * U  # the second kv head: of query heads 2 and 3
    inputs = {"q_post_rope": known(np.full((1, 16), 3.0)), "k_post_rope": known(np.full((1, 8), 2.0), sigma)}
    found = variance("attn_scores", inputs, np.full((4, 1, 1), 12.0), site(LLAMA))[:, 0, 0]
    close(found - scores(), [0, 0, 225, 225])


HEAD_INPUT = {"final_norm": known([[0.0]])}


def test_a_soft_cap_flattens_the_error_and_adds_its_own_roundings() -> None:
    """At half the cap the slope is 3/4, and x is 12 * atanh(1/2)."""
    gemma = small_geometry(
        **GEMMA,
        attn_logit_softcapping=None,
        final_logit_softcapping=12.0,
    )
    x = 12 * math.atanh(0.5)
    product = {"lm_head_proj": known([x], [math.sqrt(50 + x * x * 2 / 3) * U])}
    found = variance("lm_head", product, [6.0], site(gemma, None))
    close(found, [(3 / 4) ** 2 * (50 + x * x * 2 / 3) + 36 * 6 / 3])
    uncapped = site(LLAMA, None, noise=[np.array([50.0])])
    close(variance("lm_head", HEAD_INPUT, [6.0], uncapped), [50 + 36 * 2 / 3])


def test_a_value_at_its_cap_has_no_slope_left() -> None:
    gemma = small_geometry(
        **GEMMA,
        final_logit_softcapping=12.0,
    )
    product = {"lm_head_proj": known([900.0, -900.0], [7 * U, 7 * U])}
    found = variance("lm_head", product, [12.0, -12.0], site(gemma, None))
    close(found, [144 * 6 / 3] * 2)


def softmax(scores_: Any, weights: Any, sigma: Any = None, store: float = U) -> F64:
    inputs = {"attn_scores": known(scores_, sigma)}
    return variance("attn_softmax", inputs, weights, site(LLAMA), store)


def test_a_weight_is_rounded_by_how_far_its_score_lies_below_the_largest_visible_one() -> None:
    found = softmax([[[7.0, 1.0, 5.0, 99.0]]], [[[0.5, 0.25, 0.25, 0.0]]])
    common = math.sqrt(4) + 4  # three times the error of the sum over four keys, and four roundings
    expected = [
        0.25 * (common**2 + 1 / 3),
        ((6 + common) ** 2 + 1 / 3) / 16,
        ((2 + common) ** 2 + 1 / 3) / 16,
        0,
    ]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-9, atol=1e-60)


def test_a_weight_carries_the_error_of_its_score_and_of_all_the_others() -> None:
    own = softmax([[[1.0, 1.0]]], [[[0.5, 0.5]]])
    found = softmax([[[1.0, 1.0]]], [[[0.5, 0.5]]], [[[6 * U, 8 * U]]])
    spread = 0.25 * 36 + 0.25 * 64
    np.testing.assert_allclose((found - own)[0, 0], [0.25 * (36 + spread), 0.25 * (64 + spread)], rtol=1e-6)


def test_an_error_of_a_score_as_large_as_one_is_raised() -> None:
    own = softmax([[[0.0]]], [[[1.0]]])
    found = softmax([[[0.0]]], [[[1.0]]], [[[1.0]]])
    raised = math.expm1(math.sqrt(3)) / math.sqrt(3)
    np.testing.assert_allclose((found - own)[0, 0] * U**2, [2 * raised**2], rtol=1e-9)


def test_a_score_that_is_not_known_at_all_leaves_finite_errors() -> None:
    found = softmax([[[0.0]]], [[[1.0]]], [[[1e9]]])
    assert np.isfinite(found).all()
    assert found.min() * U**2 > 1e30


def test_the_mix_is_rounded_as_a_sum_and_carries_weights_and_values() -> None:
    weights = np.tile(np.array([[1.0, 0.0], [0.25, 0.75]]), (4, 1, 1))
    fused = np.zeros((2, 32))
    fused[0, 24:], fused[1, 24:] = 4.0, 8.0
    y = np.full((2, 16), 6.0)
    inputs = {"attn_softmax": known(weights), "qkv_bias": known(fused)}
    own = variance("attention", inputs, y, site(LLAMA))
    squares = np.array([[16.0], [1 + 36.0]])
    close(own, np.broadcast_to(squares * 2 / 6 + 36 * 2 / 9 + 36 / 3, (2, 16)))

    inputs["attn_softmax"] = known(weights, np.full(weights.shape, 3 * U))
    close(variance("attention", inputs, y, site(LLAMA)) - own, np.full((2, 16), 9 * (16.0 + 64.0)))

    sigma = np.zeros((2, 32))
    sigma[:, 28:] = 5 * U  # the second kv head: of query heads 2 and 3
    sigma[:, :24] = 1e3 * U  # q and k, which are not mixed
    inputs = {"attn_softmax": known(weights), "qkv_bias": known(fused, sigma)}
    carried = variance("attention", inputs, y, site(LLAMA)) - own
    np.testing.assert_allclose(carried[:, :8], 0, atol=1e-9)
    close(carried[:, 8:], np.broadcast_to([[25.0], [25 * (1 / 16 + 9 / 16)]], (2, 8)))
