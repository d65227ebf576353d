"""The limits of what quantising explains of a whole tensor, each from numbers of one's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apr_falsify.compare.systematic import GroupSums, sums_of, systematic


def part(
    off: float,
    *,
    squared: float = 5e-6,
    spread: float = 0.0,
    rows: int = 1,
    noise: float = 1.0,
    blocks: int = 256,
) -> GroupSums:
    """Return sums of rows of energy 100 that are x (1 + off), with some noise and some spread over blocks."""
    energy = 100.0
    of_row = [energy, off * energy, (squared + off * off) * energy, (spread * energy) ** 2]
    return GroupSums(of_rows=np.array([of_row] * rows).T, noise=np.full(256, noise), blocks=blocks)


def test_nothing_is_wrong_with_nothing() -> None:
    assert systematic([]) == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (part(0.01), "all of it is x 1.01"),
        (part(-0.25), "all of it is x 0.75"),
        (part(0.0011), "all of it is x 1.001"),
        (part(0.0009), ""),  # the scales of blocks have 11 bits
        (part(-0.0009), ""),
        (part(0.01, spread=0.0014), "all of it is x 1.01"),  # 6 sigmas of 0.0014, and 0.001
        (part(0.01, spread=0.0016), ""),
        (part(0.01, squared=0.0044), "all of it is x 1.01"),  # larger by twice the squared error
        (part(0.01, squared=0.0046), ""),
        (part(-0.01, squared=0.017**2), "all of it is x 0.99"),  # smaller by half the error
        (part(-0.01, squared=0.019**2), ""),
    ],
)
def test_a_factor_is_named_where_quantising_does_not_explain_it(found: GroupSums, words: str) -> None:
    assert systematic([found]) == words


def test_a_tensor_of_zeros_or_of_infinities_has_no_factor() -> None:
    assert systematic([GroupSums(of_rows=np.zeros((4, 1)), noise=np.zeros(0), blocks=8)]) == ""
    assert systematic([GroupSums(of_rows=np.full((4, 1), math.inf), noise=np.zeros(0), blocks=8)]) == ""


def test_the_parts_of_a_tensor_are_taken_together() -> None:
    # One part speaks for x 1.004, the other for x 0.997: x 1.0005 on the average, which is nothing.
    assert systematic([part(0.004), part(-0.003)]).startswith("rows 0 to 0 are x 1.004, and 1 more of 2")
    assert systematic([part(0.004), part(0.004)]) == "all of it is x 1.004"


def test_rows_are_taken_together_until_they_have_256_blocks() -> None:
    right, wrong = part(0.0, rows=4, blocks=64), part(0.05, rows=4, blocks=64)
    assert systematic([right, right, wrong, right, right]) == "all of it is x 1.01"
    mirrored = part(-0.05, rows=4, blocks=64)
    assert (
        systematic([right, wrong, mirrored, right]) == "rows 4 to 7 are x 1.05, and 1 more of 4 such groups"
    )
    few = part(0.05, rows=2, blocks=64)
    assert systematic([right, few, part(-0.05, rows=2, blocks=64), right]) == ""
    alone = [part(0.0, blocks=200), part(0.05, blocks=200), part(-0.05, blocks=200)]
    assert systematic(alone) == "rows 0 to 1 are x 1.025"
    three = [part(0.0, rows=2, blocks=200), part(0.05, rows=2, blocks=200), part(-0.05, rows=2, blocks=200)]
    assert systematic(three) == "rows 2 to 3 are x 1.05, and 1 more of 3 such groups"


def scaled_row(off: float, *, squared: float = 0.0, borne_by: float = 64.0) -> GroupSums:
    """Return the sums of one row that is x (1 + off), as if ``borne_by`` blocks bore that alike."""
    return part(off, squared=squared, spread=off / borne_by**0.5, blocks=64)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (scaled_row(0.02), "row 9 is x 1.02"),
        (scaled_row(-0.01), "row 9 is x 0.99"),
        (scaled_row(0.0011), "row 9 is x 1.001"),
        (scaled_row(0.0009), ""),  # the scales of blocks have 11 bits
        (scaled_row(0.02, squared=3.9e-6), "row 9 is x 1.02"),  # 0.002 squared
        (scaled_row(0.005, squared=4.1e-6), ""),  # quantising leaves more than a factor
        (scaled_row(0.005, borne_by=6.1), "row 9 is x 1.005"),
        (scaled_row(0.005, borne_by=5.9), ""),
    ],
)
def test_one_row_is_named_where_nothing_but_a_factor_is_left(row: GroupSums, words: str) -> None:
    assert systematic([part(0.0, rows=9, blocks=64), row, part(0.0, rows=90, blocks=64)]) == words


def test_of_several_such_rows_the_first_is_named() -> None:
    right = part(0.0, rows=9, blocks=64)
    found = systematic([right, scaled_row(0.02), right, scaled_row(-0.02), right])
    assert found == "row 9 is x 1.02, and 1 more of 29 rows by factors"


def test_a_last_group_that_is_too_small_is_passed_over() -> None:
    parts = [part(0.0, rows=4, blocks=64), part(0.0005, rows=1, blocks=64), part(-0.0005, rows=2, blocks=64)]
    assert systematic(parts) == ""


@pytest.mark.parametrize(
    ("noise", "words"), [(1.49, ""), (2.25, "its median block has 1.5 x the noise of one step")]
)
def test_more_noise_in_the_median_block_than_steps_make_is_named(noise: float, words: str) -> None:
    assert systematic([part(0.0, noise=noise)]) == words


def test_half_of_all_blocks_must_be_noisy() -> None:
    found = part(0.0)
    some = np.where(np.arange(256) < 100, 9.0, 1.0)
    most = np.where(np.arange(256) < 156, 9.0, 1.0)
    assert systematic([GroupSums(of_rows=found.of_rows, noise=some, blocks=256)]) == ""
    assert systematic([GroupSums(of_rows=found.of_rows, noise=most, blocks=256)]) == (
        "its median block has 3 x the noise of one step"
    )


def test_few_blocks_are_no_evidence_of_noise() -> None:
    found = part(0.0, noise=9.0)
    assert systematic([GroupSums(of_rows=found.of_rows, noise=np.full(255, 9.0), blocks=255)]) == ""
    assert systematic([found]) != ""


def test_the_noise_of_a_uniform_error_of_one_step_is_one() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(4, 8, 32))
    steps = np.full((4, 8), 0.1)
    steps[1, 2] = 0.0  # a block of zeros has no step
    found = sums_of(ours, ours + rng.uniform(-0.05, 0.05, ours.shape), steps)
    assert found.noise.shape == (31,)
    assert found.noise.mean() == pytest.approx(1.0, abs=0.05)
    assert found.blocks == 8


def test_the_sums_of_rows_by_hand() -> None:
    ours = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    theirs = np.array([[[1.5, 2.0], [3.0, 2.0]]])
    found = sums_of(ours, theirs, np.ones((1, 2)))
    energy, along = 30.0, 0.5 - 8.0
    np.testing.assert_allclose(found.of_rows[:, 0], [energy, along, 0.25 + 4.0, 0.25 + 64.0])
    np.testing.assert_allclose(found.noise, [0.125 * 12, 2.0 * 12])
