"""Values between two steps of a block format, by hand: which row, which channel, to which side."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.compare import crossing
from apr_falsify.numerics import quantise


def rows(count: int) -> np.ndarray:
    """Blocks of 32 in steps of 1; the value of row r at channel r + 1 lies half way between 2 and 3."""
    values = np.zeros((count, 32))
    values[:, 0] = 127
    values[np.arange(count), np.arange(count) + 1] = 2.5
    return values


@pytest.mark.parametrize("at_a_time", [1, 32, 64, 1 << 20])
def test_half_way_goes_to_the_even_step_and_may_be_the_upper_one(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        crossing, "_AT_A_TIME", at_a_time
    )  # a million values would be needed to go on otherwise
    values = rows(5)
    found = list(crossing.crossing(quantise.q8_0, values, values * crossing.NUDGE, quantise.BLOCK))
    assert found == [(row, [row + 1], 1) for row in range(5)]


@pytest.mark.parametrize(("sign", "side"), [(1, 1), (-1, -1)])
def test_the_side_is_that_of_the_shift(sign: int, side: int) -> None:
    values = rows(1) * sign
    found = list(crossing.crossing(quantise.q8_0, values, np.abs(values) * crossing.NUDGE, quantise.BLOCK))
    assert found == [(0, [1], side)]


def test_a_hundredth_of_a_step_from_the_middle_crosses_nothing() -> None:
    values = rows(2)
    values[1, 2] = 2.49
    found = list(crossing.crossing(quantise.q8_0, values, values * crossing.NUDGE, quantise.BLOCK))
    assert found == [(0, [1], 1)]


def test_no_rows_cross_nothing() -> None:
    none = np.zeros((0, 32))
    assert list(crossing.crossing(quantise.q8_0, none, none, quantise.BLOCK)) == []
