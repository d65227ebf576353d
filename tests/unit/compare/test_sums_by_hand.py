"""The one pass over two arrays, cut into segments and tiles of any size, and its figures by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from apr_falsify.compare import sums as module
from apr_falsify.compare.axes import Axes
from apr_falsify.compare.metrics import Profile, compare_arrays
from apr_falsify.compare.sums import DIFFERENCE, EXCLUDED, ORACLE, SUBJECT, sums

TOKEN_CHANNEL = Axes(names=("token", "channel"))
VECTOR = Axes(names=("channel",))


@pytest.fixture(params=[(8, 4, 16), (12, 3, 30), (1 << 17, 1 << 12, 1 << 21)], ids=["small", "odd", "usual"])
def _cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut the arrays of these tests into tiles of a few values, segments of a few rows."""
    tile, width, segment = request.param
    monkeypatch.setattr(module, "_TILE", tile)
    monkeypatch.setattr(module, "_TILE_WIDTH", width)
    monkeypatch.setattr(module, "_SEGMENT", segment)
    return None


@pytest.mark.usefixtures("_cut")
def test_sums_are_those_of_all_values_however_they_are_cut() -> None:
    rng = np.random.default_rng(0)
    oracle, subject = rng.normal(size=(2, 17, 11)).astype(np.float32)
    subject[3, 4], oracle[16, 10], subject[16, 10] = np.nan, np.inf, np.inf
    found = sums(oracle, subject)
    used = np.isfinite(oracle) & np.isfinite(subject)
    o, s = (np.where(used, x, 0).astype(np.float64) for x in (oracle, subject))
    for row, values in ((ORACLE, o**2), (SUBJECT, s**2), (DIFFERENCE, (s - o) ** 2), (EXCLUDED, ~used)):
        np.testing.assert_allclose(found.rows[row], values.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.columns[row], values.sum(axis=0), rtol=1e-12)
    assert found.best == pytest.approx(((s - o) ** 2).max(), rel=1e-12)
    assert found.best_at == tuple(np.unravel_index(((s - o) ** 2).argmax(), o.shape))
    assert (found.oracle_nonfinite, found.subject_nonfinite, found.mismatched) == (1, 2, 1)


@pytest.mark.usefixtures("_cut")
def test_of_equal_differences_the_first_in_row_order_is_found_however_they_are_cut() -> None:
    oracle = np.zeros((17, 11))
    for places in ([(0, 10), (1, 0), (16, 5)], [(9, 3), (10, 0)], [(2, 7), (2, 8)], [(16, 10)]):
        subject = oracle.copy()
        for place in places:
            subject[place] = -2.0
        assert sums(oracle, subject).best_at == places[0]


@pytest.mark.usefixtures("_cut")
def test_equal_arrays_differ_nowhere_and_the_first_place_is_named() -> None:
    values = np.ones((5, 11))
    found = sums(values, values.copy())
    assert (found.best, found.best_at) == (0.0, (0, 0))
    found = sums(np.full((5, 11), np.nan), values)
    assert (found.best, found.best_at) == (-1.0, (-1, -1))


def test_a_subject_may_be_stretched_by_a_power_of_two() -> None:
    oracle, subject = np.array([[1.0, 2.0]]), np.array([[4.0, 16.0]])
    found = sums(oracle, subject, stretch=0.25)
    assert found.rows[:3, 0].tolist() == [5.0, 17.0, 4.0]


# --- extreme values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1022, -600, -257, -256, 0, 256, 257, 600, 1020])
def test_any_f64_values_give_the_figures_of_their_ratio(exponent: int) -> None:
    size = math.ldexp(1.0, exponent)
    found = compare_arrays(np.array([3 * size, 4 * size]), np.array([4 * size, 3 * size]), VECTOR)
    assert found.cosine == pytest.approx(24 / 25, rel=1e-12)
    assert found.rel_l2 == pytest.approx(math.sqrt(2) / 5, rel=1e-12)
    assert found.norm_ratio == pytest.approx(1.0, rel=1e-12)
    assert found.max_abs == size
    if exponent < 1020:
        assert found.oracle_norm == pytest.approx(5 * size, rel=1e-12)


@pytest.mark.parametrize("exponent", [255, 256, 257, 300])
def test_values_are_scaled_only_where_their_squares_could_leave_f64(exponent: int) -> None:
    values = np.array([[math.ldexp(0.75, exponent)]])
    assert sums(values, values).scale == (1.0 if exponent <= 256 else 2.0**-exponent)
    small = np.array([[math.ldexp(0.75, -exponent)]])
    assert sums(small, small).scale == (1.0 if exponent <= 256 else 2.0**exponent)
    as_f32 = np.array([[3e38]], np.float32)
    assert sums(as_f32, as_f32).scale == 1.0


def test_infinite_values_do_not_hide_how_large_the_others_are() -> None:
    size = 1e200
    found = compare_arrays(
        np.array([3 * size, 4 * size, np.inf]), np.array([4 * size, 3 * size, 1.0]), VECTOR
    )
    assert found.cosine == pytest.approx(24 / 25, rel=1e-12)
    assert found.compared == 2


def test_the_largest_value_is_looked_for_in_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", 6)
    values = np.ones((7, 3))
    values[6, 2] = -1e200
    assert sums(np.ones((7, 3)), values).scale == 2.0 ** -math.frexp(1e200)[1]


# --- figures ----------------------------------------------------------------------------------------


def pair(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    oracle = rng.normal(size=200)
    return oracle, (oracle + rng.normal(size=200) * 0.3) * ratio


@pytest.mark.parametrize("ratio", [1e-30, 1 / 65, 1 / 63, 1.0, 63.0, 65.0, 1e6, 1e30])
def test_a_cosine_keeps_its_digits_whatever_the_ratio_of_the_norms(ratio: float) -> None:
    oracle, subject = pair(ratio)
    expected = math.fsum(oracle * (subject / ratio)) / math.sqrt(
        math.fsum(oracle**2) * math.fsum((subject / ratio) ** 2)
    )
    assert compare_arrays(oracle, subject, VECTOR).cosine == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("ratio", "passes"), [(63.0, 1), (65.0, 2), (1 / 63, 1), (1 / 65, 2), (0.0, 1)])
def test_a_second_pass_is_made_only_where_the_norms_are_far_apart(
    ratio: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr_falsify.compare import metrics

    calls: list[float] = []

    def counted(oracle: np.ndarray, subject: np.ndarray, stretch: float = 1.0) -> module.Sums:
        calls.append(stretch)
        return sums(oracle, subject, stretch)

    monkeypatch.setattr(metrics, "sums", counted)
    compare_arrays(np.ones(4), np.ones(4) * ratio, VECTOR)
    assert len(calls) == passes
    if passes == 2:
        assert ratio * calls[1] == pytest.approx(1, rel=0.5)


def test_cosines_are_taken_without_one_two_and_eight_channels_where_more_are_there() -> None:
    oracle, subject = np.random.default_rng(2).normal(size=(2, 3, 9))
    assert list(compare_arrays(oracle, subject, TOKEN_CHANNEL).cosine_without) == [1, 2, 8]
    assert list(compare_arrays(oracle[:, :8], subject[:, :8], TOKEN_CHANNEL).cosine_without) == [1, 2]
    assert list(compare_arrays(oracle[:, :2], subject[:, :2], TOKEN_CHANNEL).cosine_without) == [1]
    assert list(compare_arrays(oracle[:, :1], subject[:, :1], TOKEN_CHANNEL).cosine_without) == []


def test_channels_in_which_nothing_is_finite_leave_no_cosine() -> None:
    oracle = np.array([[1.0, 2.0, np.nan], [3.0, 1.0, np.nan]])
    found = compare_arrays(oracle, oracle.copy(), TOKEN_CHANNEL)
    assert list(found.cosine_without) == [1]  # without two channels only that of NaN is left


def test_the_worst_position_is_the_one_of_the_greatest_relative_distance() -> None:
    found = Profile(rel_l2=np.array([0.1, math.nan, 0.7, 0.3]), norm_ratio=np.ones(4))
    assert found.worst == 2
    assert Profile(rel_l2=np.array([math.nan]), norm_ratio=np.ones(1)).worst is None


def test_a_position_is_without_a_figure_only_where_all_of_it_was_left_out() -> None:
    oracle = np.ones((2, 3))
    oracle[0, 1:] = np.nan
    oracle[1, 2] = np.nan
    found = compare_arrays(oracle, oracle * 2, TOKEN_CHANNEL).per
    assert np.isnan(found["token"].rel_l2).tolist() == [False, False]
    assert np.isnan(found["channel"].rel_l2).tolist() == [False, False, True]
    assert found["channel"].norm_ratio[:2].tolist() == [2.0, 2.0]


def test_opposite_vectors_have_a_cosine_of_minus_one_to_the_last_digit() -> None:
    oracle = np.random.default_rng(3).normal(size=500)
    assert compare_arrays(oracle, -oracle, VECTOR).cosine == pytest.approx(-1.0, abs=1e-15)
    assert compare_arrays(oracle, -1e9 * oracle, VECTOR).cosine == pytest.approx(-1.0, abs=1e-15)
