"""Blocks of few bits, worked out by hand where the scale is 1 or another number that every format holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from apr_falsify.numerics import quantise
from apr_falsify.numerics.quantise import F64, Values

Quantiser = Callable[[Values], F64]

ALL: dict[str, tuple[Quantiser, int]] = {
    "q8_256": (quantise.q8_256, 256),
    "q8_k": (quantise.q8_k, 256),
    "q8_0": (quantise.q8_0, 32),
    "q4_0": (quantise.q4_0, 32),
    "q4_1": (quantise.q4_1, 32),
    "q5_0": (quantise.q5_0, 32),
    "q5_1": (quantise.q5_1, 32),
    "iq4_nl": (quantise.iq4_nl, 32),
}


def block(size: int, *values: float) -> Values:
    """Return a block of ``size`` values that begins with ``values`` and is 0 from there on."""
    found = np.zeros(size, np.float32)
    found[: len(values)] = values
    return found


def rows(*shape: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- every format -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [256, 300])
def test_each_row_is_quantised_by_itself_in_an_array_of_any_rank(name: str, length: int) -> None:
    quantised, _ = ALL[name]
    values = rows(2, 3, length)
    found = quantised(values)
    assert (found.shape, found.dtype) == (values.shape, np.float64)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[i, j], quantised(values[i, j]))
    np.testing.assert_array_equal(found[0], quantised(values[0]))


@pytest.mark.parametrize("name", ALL)
def test_each_block_is_quantised_by_itself_and_a_short_last_one_too(name: str) -> None:
    quantised, size = ALL[name]
    values = rows(2 * size + 20)
    values[size : 2 * size] *= 1000
    found = quantised(values)
    np.testing.assert_array_equal(found[:size], quantised(values[:size]))
    np.testing.assert_array_equal(found[size : 2 * size], quantised(values[size : 2 * size]))
    np.testing.assert_array_equal(
        found[2 * size :], quantised(np.pad(values[2 * size :], (0, size - 20)))[:20]
    )


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("q4_1", "q5_1")])
def test_turning_every_sign_turns_what_is_left(name: str) -> None:
    quantised, size = ALL[name]
    values = rows(5, size, seed=3)
    np.testing.assert_array_equal(quantised(-values), -quantised(values))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("power", [-6, 5])
def test_a_power_of_two_scales_what_is_left(name: str, power: int) -> None:
    quantised, size = ALL[name]
    values = rows(5, size, seed=4)
    np.testing.assert_array_equal(quantised(values * np.float32(2.0**power)), quantised(values) * 2.0**power)


def test_blocks_are_filled_up_with_zeros() -> None:
    values = np.arange(1, 81, dtype=np.float64).reshape(2, 40)
    found = quantise.blocks_of(values, 32)
    assert (found.shape, found.dtype) == ((2, 2, 32), np.float32)
    np.testing.assert_array_equal(found[1, 0], np.arange(41, 73))
    np.testing.assert_array_equal(found[1, 1], [*range(73, 81), *[0] * 24])
    assert quantise.blocks_of(values[:, :32], 32).shape == (2, 1, 32)


# --- 8 bits -----------------------------------------------------------------------------------------


def test_blocks_of_256_round_ties_away_from_zero() -> None:
    values = block(256, 127, 2.5, -2.5, 3.5, 0.5, -0.5, 0.4999, -7.3, 100.6)
    assert quantise.q8_256(values)[:10].tolist() == [127, 3, -3, 4, 1, -1, 0, -7, 101, 0]


def test_the_scale_of_a_block_of_256_is_the_largest_magnitude_over_127() -> None:
    values = block(256, 1.0, -254.0, 3.1)  # steps of 2
    assert quantise.q8_256(values)[:4].tolist() == [2.0, -254.0, 4.0, 0.0]


def test_q8_k_counts_from_the_largest_magnitude_downwards_and_rounds_ties_to_even() -> None:
    values = block(256, 2.5, -3.5, -127, 0.5, 99.4, 127)
    assert quantise.q8_k(values)[:7].tolist() == [2, -4, -127, 0, 99, 127, 0]
    assert quantise.q8_k(-values)[:7].tolist() == [-2, 4, 127, 0, -99, -127, 0]
    assert quantise.q8_k(2 * values)[:7].tolist() == [4, -8, -254, 0, 198, 254, 0]


def test_q8_0_rounds_ties_to_even() -> None:
    values = block(32, -127, 2.5, 3.5, -0.5, 11.6)
    assert quantise.q8_0(values)[:6].tolist() == [-127, 2, 4, 0, 12, 0]


def test_the_scale_of_q8_0_is_an_f16() -> None:
    scale = 1 + 2.0**-12  # f16 has steps of 2**-10 there
    values = block(32, *np.array([127, -60, 4]) * scale)
    assert quantise.q8_0(values)[:4].tolist() == [127, -60, 4, 0]


def test_a_block_sum_is_rounded_apart_from_the_values() -> None:
    # All 32 integers are 127: their sum 4064 times the f32 scale is 4065.95, of which f16 (steps of 2) keeps
    # 4066, and the values with their scale of f16(1.00047) = 1 sum to 4064. Half the block gives 2032.97 and
    # steps of 1.
    values = np.full((1, 2, 64), 127 * (1 + 0.98 * 2.0**-11), np.float32)
    values[0, 1, :16] = 0
    assert quantise.q8_1_block_sums(values).tolist() == [[[2.0, 2.0], [1.0, 2.0]]]


def test_a_block_sum_that_f16_holds_adds_nothing() -> None:
    assert quantise.q8_1_block_sums(block(64, 127, -5, 3)).tolist() == [0.0, 0.0]


def test_q8_1_counts_its_sum_from_the_integers() -> None:
    values = rows(3, 64, seed=5)
    sums = quantise.q8_0(values).reshape(3, 2, 32).sum(axis=-1)
    # s is off by half an f16 step at most, and so is the scale that it is made with.
    assert (np.abs(quantise.q8_1_block_sums(values)) <= (np.abs(sums) + 1e-3) * 2.0**-10).all()


# --- 4 and 5 bits ---------------------------------------------------------------------------------


def test_q4_0_has_8_steps_down_from_the_largest_magnitude_and_7_up() -> None:
    values = block(32, -8, 8, 7.4, 3.4, 3.6, -3.4, -3.6, 0.4, -7.4)
    assert quantise.q4_0(values)[:10].tolist() == [-8, 7, 7, 3, 4, -3, -4, 0, -7, 0]


def test_q5_0_has_16_steps_down_from_the_largest_magnitude_and_15_up() -> None:
    values = block(32, 16, -16, -15.3, 3.4, 3.6, -3.4, -3.6, 0.4)
    assert quantise.q5_0(values)[:9].tolist() == [16, -15, -15, 3, 4, -3, -4, 0, 0]


@pytest.mark.parametrize(("quantised", "steps"), [(quantise.q4_1, 15), (quantise.q5_1, 31)])
def test_q4_1_and_q5_1_have_their_steps_between_least_and_largest(quantised: Quantiser, steps: int) -> None:
    values = np.full(32, 10.0, np.float32)
    values[:6] = [10 + steps, 12.4, 12.6, 10.4, 10.6, 10 + steps - 0.6]
    assert quantised(values)[:7].tolist() == [10 + steps, 12, 13, 10, 11, 10 + steps - 1, 10]
    assert quantised(-values)[:7].tolist() == [-10 - steps, -12, -13, -10, -11, -10 - steps + 1, -10]


def test_minima_are_one_a_block() -> None:
    values = rows(2, 3, 64, seed=6)
    lowest = values.reshape(2, 3, 2, 32).min(axis=-1).astype(np.float16)
    np.testing.assert_array_equal(quantise.minima(values), lowest)


def nearest_uneven(values: Values) -> list[float]:
    """Quantise one block of iq4_nl as its definition says, in plain Python."""
    largest = max(values, key=abs)
    steps = [min(quantise._IQ4_NL, key=lambda step: abs(step - value * -127 / largest)) for value in values]
    weights = [value * value for value in values]
    fitted = math.fsum(w * q * x for w, q, x in zip(weights, steps, values, strict=True))
    energy = math.fsum(w * q * q for w, q in zip(weights, steps, strict=True))
    return [step * fitted / energy for step in steps]


@pytest.mark.parametrize("sign", [1, -1])
def test_uneven_steps_are_the_nearest_and_their_scale_is_refitted_by_squares(sign: int) -> None:
    values = sign * rows(32, seed=7)
    expected = nearest_uneven(values.astype(np.float64))
    np.testing.assert_allclose(quantise.iq4_nl(values), expected, rtol=2.0**-11)


def test_half_way_between_two_uneven_steps_is_the_upper_one() -> None:
    values = block(32, -127, 7, -16)  # 7 lies between 1 and 13, -16 between -22 and -10
    found = quantise.iq4_nl(values)
    np.testing.assert_allclose(found[:3] / found[0] * -127, [-127, 13, -10], rtol=1e-6)


# --- turned -----------------------------------------------------------------------------------------


def test_the_hadamard_matrix_of_four_by_hand() -> None:
    expected = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    np.testing.assert_array_equal(quantise.hadamard(4) * 2, expected)
    np.testing.assert_array_equal(quantise.hadamard(1), [[1]])


def test_a_row_is_turned_by_itself_in_an_array_of_any_rank() -> None:
    turned = quantise.rotated_back(quantise.q8_0)
    off = quantise.rotated_edges(quantise.q8_0)
    values = rows(2, 3, 128, seed=8)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(turned(values)[i, j], turned(values[i, j]), atol=1e-12)
        np.testing.assert_allclose(off(values)[i, j], off(values[i, j]), atol=1e-12)


def test_an_edge_is_spread_over_the_block_of_64_that_is_turned_back() -> None:
    """Turning is orthogonal: one value that is off by a step moves each of 64 by an eighth of it."""
    held = np.full(64, 0.25)
    held[0], held[5] = 127.0, 3.5  # after turning: steps of 1, and one value between two of them
    values = (held @ quantise.hadamard(64)).astype(np.float32)
    found = quantise.rotated_edges(quantise.q8_0)(np.concatenate([values, np.ones(64, np.float32)]))
    np.testing.assert_allclose(found[:64], 1 / 8, rtol=0.01)
    assert found[64:].max() < 1e-3


def test_a_loud_block_makes_no_edges_in_a_quiet_one() -> None:
    quiet = np.full(64, 0.25, np.float32)
    quiet[0], quiet[5] = 127.0, 3.49  # steps of 1: a hundredth of one from the edge
    values = np.stack([np.concatenate([quiet, 1e4 * quiet]), np.concatenate([1e4 * quiet, quiet])])
    off = quantise.edges(quantise.q8_0, values, 64)
    assert off.shape == values.shape
    assert off[0, :64].max() < 1e-3
    assert off[1, 64:].max() < 1e-3


def test_the_steps_of_f16_are_the_distances_of_its_numbers_down_to_the_smallest() -> None:
    least = 2.0**-24
    values = np.array([[3 * least, 2.5 * least, 0.4 * least, 1.0, 1 + 2.0**-11, 65504.0]], np.float32)
    steps = quantise.STEPS[quantise.f16](values)
    assert steps.scale[0].tolist() == [least, least, least, 2.0**-10, 2.0**-10, 32]
    assert steps.quants[0].tolist() == [3, 2, 0, 1024, 1024, 2047]  # ties go to the even one
    assert steps.fraction[0].tolist() == pytest.approx([0.5, 0, 0.1, 0.5, 0, 0.5], abs=1e-7)
    assert steps.flip[0, 1:3].tolist() == [1, 1]


def test_the_steps_of_bf16_are_the_distances_of_its_numbers_down_to_the_smallest() -> None:
    least = 2.0**-133
    values = np.array([[3 * least, 2.5 * least, 0.375 * least, 1.0, 1 + 2.0**-8]], np.float32)
    steps = quantise.STEPS[quantise.bf16](values)
    assert steps.scale[0].tolist() == [least, least, least, 2.0**-7, 2.0**-7]
    assert steps.quants[0].tolist() == [3, 2, 0, 128, 128]  # ties go to the even one
    assert steps.fraction[0].tolist() == [0.5, 0, 0.125, 0.5, 0]
