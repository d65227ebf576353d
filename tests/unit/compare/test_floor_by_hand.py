"""The unit in which residuals are judged: worked out by hand from the model that ``compare.floor`` states.

Rounding errors are uniform, so that one of relative size u has the variance u^2 / 3. A plain sum of n terms
t has n / 6 * sum(t^2) + n / 9 * y^2 of u^2. What a library function rounds is counted four times.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.floor import rounding
from apr_falsify.formats.weights import Model
from apr_falsify.operators import roundoff
from apr_falsify.operators.attention import sum_variance
from apr_falsify.operators.linear import started_at
from apr_falsify.operators.norms import norm_variance
from apr_falsify.operators.roundoff import lost, smallest_rounding, stored
from tests.unit.compare.floor_values import (
    BF16,
    F16,
    GEMMA,
    LLAMA,
    SMALL,
    TINY,
    U,
    close,
    known,
    site,
    variance,
)
from tests.unit.helpers import small_geometry, small_model

# --- one rounding ------------------------


def test_roundings_of_a_value_add_up_and_grow_with_its_size() -> None:
    close(stored(np.array([3.0, -6.0]), BF16), [3 * BF16**2, 12 * BF16**2])
    close(stored(np.array([3.0]), F16, 4), [12 * F16**2])


def test_below_its_smallest_normal_number_f16_has_steps_that_no_longer_shrink() -> None:
    step = float(np.nextafter(np.float16(0), np.float16(1)))
    assert smallest_rounding(F16) == pytest.approx(step / math.sqrt(12), rel=1e-12)
    assert smallest_rounding(BF16) == smallest_rounding(U) == 0.0
    close(lost(F16, np.array([1.0, -5.0])), [step**2 / 12, 25 * step**2 / 12])


def test_what_f32_flushes_to_zero_is_its_smallest_normal_number() -> None:
    assert float(np.finfo(np.float32).tiny) == TINY
    close(lost(U, 3.0), 9 * TINY**2)


def test_a_known_value_carries_the_square_of_its_sigma_or_nothing() -> None:
    close(known([1, 2], [3, -4]).variance, [9, 16])
    assert known([1, 2]).variance == 0.0


def test_every_stage_may_be_off_by_the_smallest_normal_number_of_f32() -> None:
    sigma = rounding("embedding", {}, np.zeros((1, 2)), site(LLAMA), U)
    assert (sigma >= TINY).all()
    assert (sigma < 3 * TINY).all()


# --- sums ------------------------


def test_a_sum_is_rounded_by_its_terms_and_by_its_result() -> None:
    close(sum_variance(np.array([4.0]), np.array([3.0]), 18), [(4 * 3 + 9 * 2) * U**2])
    close(sum_variance(np.array([0.0]), np.array([0.0]), 18), [(18 * TINY) ** 2])


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["one sign", "random signs"])
def test_a_plain_f32_sum_has_about_that_error(spread: float) -> None:
    """Errors reach u only just above a power of two: on the average they are three quarters of it."""
    rng = np.random.default_rng(0)
    terms = rng.normal(0 if spread else 1, spread or 0.01, (2000, 256)).astype(np.float32)
    exact = terms.astype(np.float64).sum(axis=1)
    error = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1] - exact
    sigma = np.sqrt(sum_variance(np.square(terms, dtype=np.float64).sum(axis=1), exact, 256))
    assert 0.5 < np.sqrt(np.mean(np.square(error / sigma))) < 1.0


GATE_INPUT = {"ffn_norm": known([[0.0]])}
QWEN2 = small_geometry(model_type="qwen2")


@pytest.mark.parametrize("store", [U, F16, BF16])
def test_a_projection_is_rounded_by_its_sums_and_twice_as_a_value(store: float) -> None:
    place = site(LLAMA, noise=[np.array([[5.0]]), np.array([[7.0, 9.0]])])
    y = [[3.0, 6.0, 0.0]]
    twice = 2 * (store / U) ** 2 / 3
    close(
        variance("ffn_gate", GATE_INPUT, y, place, store),
        np.array([[5 + 9 * twice, 7 + 36 * twice, 9]]) + SMALL[store],
    )


def test_a_projection_in_a_finer_format_is_still_summed_in_f32() -> None:
    place = site(LLAMA, noise=[np.array([[5.0]])])
    close(variance("ffn_gate", GATE_INPUT, [[3.0]], place, 2.0**-53), [[5 + 9 * 2 / 3]])


# --- embedding, residual sums, products ------------------------


def test_an_embedding_is_rounded_twice() -> None:
    close(
        variance("embedding", {}, [[3.0, -6.0]], site(LLAMA), F16),
        np.array([[6.0, 24.0]]) * 2**26 + SMALL[F16],
    )


def test_a_residual_sum_is_rounded_once_and_carries_what_both_sides_do() -> None:
    inputs = {"layer_input": known([[9.0]], [[2 * U]]), "attn_out": known([[-3.0]], [[5 * U]])}
    close(variance("post_attn_residual", inputs, [[6.0]], site(LLAMA)), [[4 + 25 + 12]])
    inputs = {"layer_input": known([[9.0]]), "attn_out": known([[-3.0]])}
    close(variance("post_attn_residual", inputs, [[6.0]], site(LLAMA)), [[12]])


def test_a_product_carries_each_sides_error_times_the_other() -> None:
    inputs = {"ffn_silu": known([[2.0]], [[3 * U]]), "ffn_up": known([[7.0]], [[5 * U]])}
    close(variance("ffn_swigl", inputs, [[14.0]], site(LLAMA)), [[(7 * 3) ** 2 + (2 * 5) ** 2 + 196 / 3]])


def test_a_bias_is_added_with_two_roundings_where_the_product_was_kept() -> None:
    inputs = {"qkv_matmul": known([[3.0]])}
    close(
        variance("qkv_bias", inputs, [[6.0]], site(QWEN2), F16),
        [[(36 * 2 / 3 + 9 / 3) * 2**26 + SMALL[F16]]],
    )


def test_where_the_product_was_not_kept_its_sum_may_start_at_the_bias() -> None:
    """Then each partial sum holds the bias: a kernel may do so in any family."""
    close(started_at(np.array([3.0]), 10), [9 * 10 / 3])
    inputs = {"qkv_matmul": known([[1.0]], [[2 * U]])}
    terms = QWEN2.hidden
    close(variance("qkv_bias", inputs, [[6.0]], site(QWEN2)), [[4 + 25 * terms / 3 + 36 * 2 / 3 + 1 / 3]])


def test_a_sum_that_starts_at_a_large_bias_is_within_its_floor() -> None:
    """In f32, term by term, as a plain loop over a row that was filled with the bias does it."""
    rng = np.random.default_rng(0)
    terms = rng.normal(0, 1, (2000, 256)).astype(np.float32)
    bias = rng.normal(0, 300, 2000).astype(np.float32)
    exact = terms.astype(np.float64).sum(axis=1) + bias
    found = np.cumsum(np.column_stack([bias, terms]), axis=1, dtype=np.float32)[:, -1]
    squares = np.square(terms, dtype=np.float64).sum(axis=1)
    sigma = np.sqrt(
        sum_variance(squares, exact - bias, 256)
        + started_at(bias.astype(np.float64), 256) * U**2
        + stored(exact, U, 2)
    )
    error = (found - exact) / sigma
    assert 0.5 < np.sqrt(np.mean(np.square(error))) < 1.0
    assert np.abs(error).max() < 5


# --- activations ------------------------


def test_silu_is_rounded_as_its_exponential_is() -> None:
    inputs = {"ffn_gate": known([[-6.0, 1.0]])}
    close(
        variance("ffn_silu", inputs, [[-3.0, 2.0]], site(LLAMA)), [[(3 * 10) ** 2 + 3, (2 * 5) ** 2 + 4 / 3]]
    )


def test_an_activation_carries_the_error_of_its_input_at_a_slope_of_1_1() -> None:
    inputs = {"ffn_gate": known([[0.0]], [[10 * U]])}
    close(variance("ffn_silu", inputs, [[0.0]], site(LLAMA)), [[121.0]])


def test_gelu_is_rounded_as_what_it_multiplies_is() -> None:
    gemma = small_geometry(
        **GEMMA,
    )
    inputs = {"ffn_gate": known([[-6.0]])}
    close(variance("ffn_silu", inputs, [[-3.0]], site(gemma)), [[36 + 3]])
    close(
        variance("ffn_silu", inputs, [[0.0]], site(gemma), F16),
        [[36 * 2**26 + 36 * lost(F16) / U**2 + SMALL[F16]]],
    )


def test_a_sigmoid_that_is_lost_is_lost_times_what_it_multiplies() -> None:
    inputs = {"ffn_gate": known([[-100.0]])}
    sigma = rounding("ffn_silu", inputs, np.zeros((1, 1)), site(LLAMA), U)
    assert sigma == pytest.approx(TINY * (1 + math.hypot(100, 1)), rel=1e-9)


# --- norms ------------------------


@pytest.fixture(scope="module")
def llama() -> Model:
    return small_model()


def test_a_norm_has_three_times_the_error_of_its_sum_and_two_roundings() -> None:
    close(norm_variance(np.array([2.0]), 64, 0.0), [(2 * (8 / 2 + 4) * U) ** 2])
    close(norm_variance(np.array([3.0]), 64, F16) - (3 * 8 * U) ** 2, [9 * 2 * F16**2 / 3])


def test_an_rms_norm_carries_the_error_of_its_input_by_weight_and_scale(llama: Model) -> None:
    weight = llama.weights.vector("attn_norm", 0).astype(np.float64)
    x = np.full((1, 16), 2.0)  # a root mean square of 2
    place = site(LLAMA, weights=llama.weights)
    y = np.linspace(1, 4, 16)[None]
    own = (y * (math.sqrt(16) / 2 + 4)) ** 2 + y * y * 2 / 3
    close(variance("attn_norm", {"layer_input": known(x)}, y, place), own)
    scale = 1 / math.sqrt(4 + LLAMA.norm_eps)
    carried = variance("attn_norm", {"layer_input": known(x, np.full((1, 16), 10 * U))}, y, place)
    close(carried, own + (10 * weight * scale) ** 2)


def test_each_row_of_a_norm_carries_its_input_by_its_own_scale(llama: Model) -> None:
    weight = llama.weights.vector("attn_norm", 0).astype(np.float64)
    x = np.full((2, 16), 2.0)
    x[1] = 6.0
    inputs = {"layer_input": known(x, np.full((2, 16), 10 * U))}
    found = variance("attn_norm", inputs, np.zeros((2, 16)), site(LLAMA, weights=llama.weights))
    for row, size in zip(found, (2.0, 6.0), strict=True):
        close(row, (10 * weight) ** 2 / (size**2 + LLAMA.norm_eps))


def test_normed_values_that_are_lost_are_multiplied_by_the_weight(llama: Model) -> None:
    weight = llama.weights.vector("attn_norm", 0).astype(np.float64)
    inputs = {"layer_input": known(np.ones((1, 16)))}
    sigma = rounding("attn_norm", inputs, np.zeros((1, 16)), site(LLAMA, weights=llama.weights), U)
    np.testing.assert_allclose(sigma[0], TINY * (1 + np.hypot(weight, 1)), rtol=1e-9)


def test_a_sum_of_squares_beyond_f32_may_make_a_norm_zero(llama: Model) -> None:
    large = np.ones((2, 16))
    large[1] *= 1e19  # 16e38 is beyond f32, 1e38 would not be
    sigma = rounding(
        "attn_norm",
        {"layer_input": known(large)},
        np.full((2, 16), 3.0),
        site(LLAMA, weights=llama.weights),
        U,
    )
    assert sigma[0].max() < 1e-5
    np.testing.assert_allclose(sigma[1], 3.0, rtol=1e-6)


def gpt2() -> Model:
    return small_model(
        model_type="gpt2", n_embd=16, n_head=4, n_layer=2, n_positions=32, layer_norm_epsilon=1e-5
    )


def test_a_layer_norm_counts_the_mean_that_it_subtracts() -> None:
    model = gpt2()
    weight = np.abs(model.weights.vector("attn_norm", 0).astype(np.float64))
    x = np.where(np.arange(16) % 2, 12.0, 8.0)[None]  # mean 10, centred +-2, root mean square sqrt(104)
    y = np.full((1, 16), 3.0)
    found = variance("attn_norm", {"layer_input": known(x)}, y, site(model.geometry, weights=model.weights))
    slope = weight / math.sqrt(4 + model.geometry.norm_eps)
    mean = math.sqrt(104) * (math.sqrt(16) / 6 + 1)
    own = (3 * 6) ** 2 + 9 * 2 / 3
    close(found, own + (slope * 2 * 6) ** 2 + slope**2 * (mean**2 + x**2))


# --- rotary ------------------------


def test_a_rotation_is_rounded_by_its_angle_which_grows_with_position() -> None:
    """Two pairs of a head: 1 and 0.01 radians a position; cos, sin and products are two roundings."""
    fused = np.zeros((3, 32))
    y = np.tile([3.0, 1.0, 4.0, 2.0], (3, 4))  # half-split pairs (3, 4) and (1, 2): lengths 5 and sqrt(5)
    found = variance("q_post_rope", {"qkv_bias": known(fused)}, y, site(LLAMA)).reshape(3, 4, 4)
    for position in range(3):
        angles = position * 1.0 * 2, position * 0.01 * (2 + math.log(100))
        first, second = (25 * ((angles[0] + 2) ** 2 + 2), 5 * ((angles[1] + 2) ** 2 + 2))
        close(found[position], np.tile([first, second, first, second], (4, 1)))


def test_a_rotation_mixes_the_errors_of_both_members_of_a_pair() -> None:
    sigma = np.zeros((1, 32))
    sigma[0, :4] = [3 * U, 1 * U, 4 * U, 2 * U]
    found = variance(
        "q_post_rope", {"qkv_bias": known(np.zeros((1, 32)), sigma)}, np.zeros((1, 16)), site(LLAMA)
    )
    close(found[0, :4], [25, 5, 25, 5])
    assert found[0, 4:].max() < 1e-9


def test_k_is_what_stands_behind_q() -> None:
    sigma = np.zeros((1, 32))
    sigma[0, 16:24], sigma[0, 24:] = 3 * U, 100 * U
    found = variance(
        "k_post_rope", {"qkv_bias": known(np.zeros((1, 32)), sigma)}, np.zeros((1, 8)), site(LLAMA)
    )
    close(found, np.full((1, 8), 18.0))


def test_what_is_not_turned_carries_its_own_error_alone() -> None:
    geometry = small_geometry(model_type="phi3", head_dim=4, partial_rotary_factor=0.5, pad_token_id=0)
    sigma = np.zeros((1, 32))
    sigma[0, :4] = [3 * U, 4 * U, 7 * U, 9 * U]
    y = np.full((1, 16), 1.0)
    first = replace(site(geometry), tokens=(1,))  # of three tokens one row would be the last, at position 2
    found = variance("q_post_rope", {"qkv_bias": known(np.zeros((1, 32)), sigma)}, y, first)
    close(found[0, :4], [25 + 2 * 6, 25 + 2 * 6, 49, 81])


def test_constants_are_those_of_ieee_754() -> None:
    assert float(np.finfo(np.float32).eps) / 2 == roundoff.UNIT
    assert float(np.finfo(np.float32).tiny) == roundoff.TINY
