"""How far a tensor may be off before it is another: the steps of each format, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare import weights as module
from apr_falsify.compare.weights import difference
from apr_falsify.formats.tensors import PlainTensor
from tests.unit.helpers import plain

F32 = npt.NDArray[np.float32]

STEPS = {
    "q4_0": 8,  # -8 to 7 of largest / 8: as wide as the largest value over 8
    "q4_1": 15,
    "q5_0": 16,
    "q5_1": 31,
    "q8_0": 127,
    "q4_k": 15,
    "q5_k": 31,
    "q6_k": 32,
    "q3_k": 4,
    "q2_k": 3,
}


def made_of(kind: str, values: F32) -> PlainTensor:
    """Return a tensor that says it is of ``kind``; its values are those that such a file would stand for."""
    return PlainTensor(name="w", type=kind, data=values)


def off_by(amount: float, at: Any = np.s_[0, 3], base: F32 | None = None) -> tuple[F32, F32]:
    """Return a tensor of two rows of 256 values between -2 and 6, and the same with some values off."""
    right = np.zeros((2, 256), np.float32) if base is None else base
    if base is None:
        right[:, ::32], right[:, 1::32] = 6.0, -2.0
    wrong = right.copy()
    wrong[at] += amount
    return right, wrong


def blocks(kind: str, amount: float, ours: str = "q8_0", **given: Any) -> int:
    right, wrong = off_by(amount, **given)
    return difference(made_of(ours, right), plain(wrong), kind).blocks


PLAIN_STEPS = [kind for kind in STEPS if not kind.endswith("_k")]


@pytest.mark.parametrize("kind", PLAIN_STEPS)
def test_a_value_may_be_off_by_one_and_a_half_steps_of_its_blocks_range(kind: str) -> None:
    allowed = 8.0 / STEPS[kind] * 1.5  # from -2 to 6
    assert blocks(kind, 0.999 * allowed) == 0
    assert blocks(kind, 1.001 * allowed) == 1
    assert blocks(kind, -1.001 * allowed) == 1


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind.endswith("_k")])
def test_in_a_super_block_the_scale_of_a_quiet_block_is_rounded_too(kind: str) -> None:
    allowed = 8.0 / STEPS[kind] * 1.5 + 6.0 / 32
    assert blocks(kind, 0.999 * allowed) == 0
    assert blocks(kind, 1.001 * allowed) == 1


def test_the_loudest_block_is_that_of_the_same_256_values() -> None:
    base = np.zeros((1, 512), np.float32)
    base[0, ::32] = 6.0
    base[0, 300] = 640.0
    allowed = 6.0 / 15 * 1.5
    assert blocks("q4_k", allowed + 0.99 * 6.0 / 32, base=base.copy()) == 0
    assert blocks("q4_k", allowed + 1.01 * 6.0 / 32, base=base.copy()) == 1
    assert blocks("q4_k", allowed + 0.99 * 640.0 / 32, at=np.s_[0, 270], base=base.copy()) == 0


def test_a_block_whose_values_have_one_sign_has_its_steps_from_zero_on() -> None:
    base = np.full((1, 32), 10.0, np.float32)
    base[0, 0] = 25.0
    assert blocks("q4_1", 0.999 * 25 / 15 * 1.5, base=base.copy()) == 0
    assert blocks("q4_1", 1.001 * 25 / 15 * 1.5, base=base.copy()) == 1
    assert blocks("q4_1", -0.999 * 25 / 15 * 1.5, base=-base) == 0
    assert blocks("q4_1", -1.001 * 25 / 15 * 1.5, base=-base) == 1


@pytest.mark.parametrize("ours", ["f32", "f16", "bf16"])
def test_what_the_oracles_own_plain_format_rounds_is_allowed_too(ours: str) -> None:
    rounding = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}[ours] * 6.0
    allowed = 8.0 / 127 * 1.5 + rounding
    right, wrong = off_by(0.0)
    tensor = (
        plain(np.right_shift(right.view(np.uint32), 16).astype(np.uint16), "bf16")
        if ours == "bf16"
        else (plain(right.astype(np.float16 if ours == "f16" else np.float32), ours))
    )
    wrong[0, 3] = allowed - 1e-3 * rounding - 1e-6
    assert difference(tensor, plain(wrong), "q8_0").blocks == 0
    wrong[0, 3] = allowed + 1e-3 * rounding + 1e-6
    assert difference(tensor, plain(wrong), "q8_0").blocks == 1


def test_f32_against_f32_may_differ_by_the_rounding_of_both() -> None:
    right, wrong = off_by(1.9 * 6.0 * 2.0**-24)
    assert difference(plain(right), plain(wrong)).blocks == 0
    right, wrong = off_by(2.1 * 6.0 * 2.0**-24)
    assert difference(plain(right), plain(wrong)).blocks == 1


def test_a_format_whose_steps_are_not_known_allows_everything() -> None:
    assert blocks("iq2_xxs", 1e6) == 0


@pytest.mark.parametrize(("kind", "steps"), [("apr_q8", 127), ("apr_q4", 7)])
def test_one_grid_for_a_whole_tensor_is_that_of_its_largest_value(kind: str, steps: int) -> None:
    base = np.zeros((2, 64), np.float32)
    base[1, 40] = -50.0
    assert blocks(kind, 0.999 * 50 / steps * 1.5, base=base.copy()) == 0
    assert blocks(kind, 1.001 * 50 / steps * 1.5, base=base.copy()) == 1


def test_blocks_rows_and_the_size_of_the_difference_are_counted() -> None:
    right, wrong = off_by(3.0, at=(np.array([0, 0, 1]), np.array([3, 40, 41])))
    found = difference(made_of("q8_0", right), plain(wrong), "q4_0")
    assert (found.blocks, found.total, found.rows) == (3, 16, 2)
    energy = 2 * 8 * (36 + 4)
    assert found.rel_l2 == pytest.approx((3 * 9 / energy) ** 0.5, rel=1e-12)
    assert found.systematic == ""


def test_equal_tensors_have_no_difference_and_all_their_blocks() -> None:
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    found = difference(plain(values), plain(values.copy()))
    assert (found.blocks, found.total, found.rows, found.rel_l2) == (0, 6, 0, 0.0)


def test_a_short_last_block_counts_as_one() -> None:
    right = np.ones((3, 40), np.float32)
    wrong = right.copy()
    wrong[2, 39] += 1
    found = difference(made_of("q8_0", right), plain(wrong), "q8_0")
    assert (found.blocks, found.total, found.rows) == (1, 6, 1)


def test_a_vector_is_one_row() -> None:
    right = np.ones(70, np.float32)
    wrong = right.copy()
    wrong[[0, 69]] += 1
    found = difference(made_of("q8_0", right), plain(wrong), "q8_0")
    assert (found.blocks, found.total, found.rows) == (2, 3, 1)


def test_nan_is_no_agreement_even_with_nan() -> None:
    values = np.ones((1, 64), np.float32)
    values[0, 40] = np.nan
    assert difference(plain(values), plain(values.copy())).blocks == 1


def test_a_tensor_of_zeros_differs_infinitely_from_one_of_numbers_and_not_from_itself() -> None:
    zeros, ones = np.zeros((2, 32), np.float32), np.ones((2, 32), np.float32)
    assert difference(plain(zeros), plain(ones)).rel_l2 == np.inf
    assert difference(plain(zeros), plain(-zeros)).rel_l2 == 0.0
    assert difference(plain(ones), plain(zeros)).rel_l2 == 1.0


@pytest.mark.parametrize("shape", [(7, 96), (7, 40), (500,)])
def test_a_tensor_is_compared_by_rows_and_gives_what_it_does_at_once(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    right = rng.normal(size=shape).astype(np.float32)
    wrong = right + (rng.random(shape) < 0.02) * np.float32(0.7)
    for kind in ("q4_0", "apr_q8", "f32"):
        whole = difference(plain(right), plain(wrong), kind)
        assert whole.blocks > 0
        with monkeypatch.context() as patch:
            patch.setattr(module, "_ROWS", 200)  # two rows at a time, or five
            parts = difference(plain(right), plain(wrong), kind)
        assert (parts.blocks, parts.total, parts.rows) == (whole.blocks, whole.total, whole.rows)
        assert parts.rel_l2 == pytest.approx(whole.rel_l2, rel=1e-12)


def test_what_is_wrong_with_every_value_is_looked_for_only_where_no_block_shows_it() -> None:
    right = np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32)
    scaled = difference(plain(right), plain(right * np.float32(1.02)), "q4_0")
    assert (scaled.blocks, scaled.systematic) == (0, "all of it is x 1.02")
    spoilt = right * np.float32(1.02)
    spoilt[3, 5] += 9
    assert difference(plain(right), plain(spoilt), "q4_0").systematic == ""
    assert difference(plain(right), plain(right * np.float32(1 + 1e-7)), "f32").systematic == ""
