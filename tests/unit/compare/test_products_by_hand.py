"""Products and their rounding, worked out by hand or by plain loops over heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare import products
from apr_falsify.compare.products import block_sum_scores, product, turning_noise
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation, Rule
from tests.unit.compare.test_products import tensor_of
from tests.unit.gguf_models import random_blocks
from tests.unit.helpers import plain, small_geometry

F64 = npt.NDArray[np.float64]
U = 2.0**-24


def rule(operation: Operation, name: str) -> Rule:
    (found,) = [each for each in RULES[operation] if each.name == name]
    return found


# --- a product and the rounding of its sums ------------------------


def test_a_product_has_one_result_for_each_rule() -> None:
    x = np.array([[1.0 + 2.0**-12, 2.0]])  # the first is 1 in f16
    weight = plain(np.array([[4.0, 8.0], [1.0, 0.0]], np.float32))
    values, _ = product(x, (PLAIN, rule(Operation.PROJECTION, "f16")), None, weight)
    np.testing.assert_array_equal(values, [[[20 + 2.0**-10, 1 + 2.0**-12]], [[20.0, 1.0]]])


def test_a_plain_sum_has_n_sixths_of_its_squares_and_n_ninths_of_its_own() -> None:
    x = np.array([[3.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    weight = plain(np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]], np.float32))
    _, noise = product(x, (PLAIN,), None, weight)
    np.testing.assert_allclose(
        noise, [[10 * 3 / 6 + 4 * 3 / 9, 0.0], [0.0, 100 * 3 / 6 + 100 * 3 / 9]], rtol=1e-6, atol=1e-50
    )


def test_what_the_operand_carries_is_added_weight_by_weight() -> None:
    x = np.zeros((1, 2))
    weight = plain(np.array([[3.0, 4.0]], np.float32))
    _, noise = product(x, (PLAIN,), np.array([[10.0, 100.0]]), weight)
    np.testing.assert_allclose(noise, [[900.0 + 160000.0]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e25])
@pytest.mark.parametrize("by", [1e-15, 1.0, 1e15, 1e30])
def test_the_rounding_grows_with_operand_and_weight_however_large_they_are(size: float, by: float) -> None:
    x = np.array([[3.0, 1.0], [0.5, 0.5]])
    rows = np.array([[1.0, -1.0], [0.25, 2.0]])
    _, usual = product(x, (PLAIN,), np.full((2, 2), 2.0), plain(rows.astype(np.float32)))
    carried = np.full((2, 2), 2.0 * size)
    with np.errstate(over="ignore"):  # as every replay runs
        _, noise = product(x * size, (PLAIN,), carried, plain((rows * by).astype(np.float32)))
    np.testing.assert_allclose(noise / size / by / size / by, usual, rtol=1e-5)


def test_rows_of_zeros_have_only_what_f32_may_flush_to_zero() -> None:
    _, noise = product(np.zeros((1, 2)), (PLAIN,), None, plain(np.zeros((3, 2), np.float32)))
    np.testing.assert_allclose(noise, np.full((1, 3), (2 * 2.0**-126 / U) ** 2))


def test_values_that_are_not_finite_leave_the_rounding_of_other_rows_alone() -> None:
    x = np.array([[np.inf, 1.0], [3.0, 1.0], [np.nan, 2.0]])
    weight = plain(np.array([[1.0, 1.0]], np.float32))
    with np.errstate(all="ignore"):
        _, noise = product(x, (PLAIN,), None, weight)
    assert noise[1, 0] == pytest.approx(10 * 2 / 6 + 16 * 2 / 9, rel=1e-6)


def test_a_weight_is_decoded_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 5, 32)), plain(rng.normal(size=(50, 32)).astype(np.float32))
    whole = product(x, (PLAIN, rule(Operation.PROJECTION, "bf16")), None, weight)
    assert whole[0].shape == (2, 3, 5, 50)
    assert whole[1].shape == (3, 5, 50)
    monkeypatch.setattr(products, "_BLOCK_VALUES", 100)
    for one, other in zip(
        whole, product(x, (PLAIN, rule(Operation.PROJECTION, "bf16")), None, weight), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-6)
    expected = np.einsum("abi,oi->abo", x, weight.data.astype(np.float64))
    np.testing.assert_allclose(whole[0][0], expected, rtol=1e-12)


def test_a_rule_is_that_of_the_weights_type_where_a_stage_has_several() -> None:
    x = np.array([[1.0 + 2.0**-12, 2.0]])
    parts = (("f32", PLAIN), ("q8_0", rule(Operation.PROJECTION, "f16")))
    both = replace(PLAIN, name="both", parts=parts)
    weight = plain(np.array([[4.0, 8.0]], np.float32))
    values, _ = product(x, (both,), None, weight)
    assert values[0, 0, 0] == 20 + 2.0**-10


def test_block_sums_meet_the_minima_of_a_weight() -> None:
    """q8_1: what f16 adds to a block's sum is multiplied with the block's minimum."""
    tensor = tensor_of("q4_1")
    x = np.random.default_rng(3).normal(size=(2, 512)).astype(np.float32)
    own = rule(Operation.PROJECTION, "q8_1 blocks of 32")
    with_sums, _ = product(x, (own,), None, tensor)
    without, _ = product(x, (replace(own, block_sums=False),), None, tensor)
    blocks = tensor.data.reshape(256, -1, 20)
    minima = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.float16)[..., 0].astype(np.float64)
    expected = np.einsum("tb,ob->to", quantise.q8_1_block_sums(x), minima)
    np.testing.assert_allclose((with_sums - without)[0], expected, rtol=1e-6, atol=1e-12)
    plain_weight = plain(tensor.rows(0, 256).astype(np.float32))
    same = [product(x, (each,), None, plain_weight)[0] for each in (own, replace(own, block_sums=False))]
    np.testing.assert_array_equal(*same)


def test_offsets_summed_apart_add_their_own_rounding() -> None:
    """Two sums over the 16 blocks of a row: 2 * (16 / 6 + 1) of the squares of each block's product."""
    tensor = tensor_of("q4_1")
    x = np.zeros((1, 512), np.float32)
    x[0, 32:64] = 3.0  # the sum of block 1 is 96
    _, noise = product(x, (PLAIN, rule(Operation.PROJECTION, "q8_0 blocks of 32")), None, tensor)
    _, without = product(x, (PLAIN,), None, tensor)
    minima = np.ascontiguousarray(tensor.data.reshape(256, -1, 20)[:, 1, 2:4]).view(np.float16)[:, 0]
    expected = 2 * (16 / 6 + 1) * (96.0 * minima.astype(np.float64)) ** 2
    np.testing.assert_allclose((noise - without)[0], expected, rtol=1e-3, atol=1e-9 * expected.max())


def test_weights_without_offsets_add_none() -> None:
    tensor = tensor_of("q8_0")
    x = np.random.default_rng(4).normal(size=(1, 512)).astype(np.float32)
    _, noise = product(x, (PLAIN, rule(Operation.PROJECTION, "q8_0 blocks of 32")), None, tensor)
    np.testing.assert_allclose(noise, product(x, (PLAIN,), None, tensor)[1], rtol=1e-12)


# --- turning ------------------------


def test_turning_back_is_rounded_by_what_lies_in_a_block_and_by_the_value_itself() -> None:
    values = np.zeros((2, 128))
    values[0, 5] = 8.0  # a mean square of 1 in the first block of 64
    found = turning_noise(values)
    assert found[0, 5] == pytest.approx(U * np.sqrt(64 / 6 * (1 + 64)), rel=1e-12)
    np.testing.assert_allclose(found[0, 6:64], U * np.sqrt(64 / 6), rtol=1e-12)
    assert not found[0, 64:].any()
    assert not found[1].any()


def test_turning_back_in_f32_has_about_that_rounding() -> None:
    values = np.random.default_rng(5).normal(size=(200, 64))
    matrix = quantise.hadamard(64)
    held = (values @ matrix).astype(np.float32)
    terms = held[:, :, None] * matrix.astype(np.float32)
    error = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1] - held.astype(np.float64) @ matrix
    share = np.sqrt(np.mean(np.square(error / turning_noise(values))))
    assert 0.3 < share < 1.0


# --- scores and mixes in blocks ------------------------

GROUPED = small_geometry(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64)


def heads(x: F64, count: int) -> list[F64]:
    return np.split(x, count, axis=1)


def spoilt(quantiser: Any) -> tuple[F64, F64]:
    """Return random q and k of which some values lie half way between two steps."""
    rng = np.random.default_rng(6)
    q, k = rng.normal(size=(3, 256)), rng.normal(size=(3, 128))
    for x in (q, k):
        x[:, ::32] = 127.0
        x[1, 5::64] = 3.5
    return q, k


def test_block_sums_of_q_meet_the_minima_of_k() -> None:
    q, k = spoilt(quantise.q4_1)
    own = rule(Operation.SCORES, "q4_1 k cache")
    extra, sigma = block_sum_scores(q, k, own, GROUPED, 0)
    sums, minima = quantise.q8_1_block_sums(q), quantise.minima(k)
    for head in range(4):
        mine, theirs = heads(sums, 4)[head], heads(minima, 2)[head // 2]
        np.testing.assert_allclose(extra[head], mine @ theirs.T / 8, rtol=1e-9, atol=1e-12)
        total = (
            q[:, 64 * head : 64 * head + 64]
            .astype(np.float32)
            .reshape(3, 2, 32)
            .sum(axis=2, dtype=np.float64)
        )
        noise = 2 * (2 / 6 + 1) * U**2 * total**2
        np.testing.assert_allclose(sigma[head], np.sqrt(noise @ (theirs**2).T) / 8, rtol=1e-6)


def test_random_blocks_are_of_the_size_that_these_tests_take_them_for() -> None:
    assert random_blocks((256, 512), "Q4_1").shape == (256, 16 * 20)
