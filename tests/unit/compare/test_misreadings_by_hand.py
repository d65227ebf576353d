"""How far a quantised tensor may be off, and how else its grid may be read, with grids made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.misreadings import misreadings
from apr_falsify.compare.quantised_tensors import Excess, excess
from apr_falsify.formats.quantised.grid import Grid, GridTensor, PackedOrder, even_groups
from apr_falsify.formats.tensors import PlainTensor

F32 = npt.NDArray[np.float32]
ORDERS = {
    "codes taken from the lowest bits up": (0, 1, 2, 3, 4, 5, 6, 7),
    "the two codes of each byte exchanged": (1, 0, 3, 2, 5, 4, 7, 6),
    "codes taken from the highest bits down": (7, 6, 5, 4, 3, 2, 1, 0),
    "codes taken in the order of AWQ": (0, 4, 1, 5, 2, 6, 3, 7),
    "codes taken in the order of AWQ the wrong way round": (0, 2, 4, 6, 1, 3, 5, 7),
}


def made(
    codes: F32,
    kind: str = "int4",
    zeros: F32 | None = None,
    scale: float = 1.0,
    packing: PackedOrder | None = None,
) -> GridTensor:
    """Return a quantised tensor of groups of four columns."""
    groups = even_groups(codes.shape[1], 4)
    scales = np.full((len(codes), int(groups[-1]) + 1), scale, np.float32)

    def read(start: int, stop: int) -> Grid:
        own = None if zeros is None else zeros[start:stop]
        return Grid(codes=codes[start:stop], scales=scales[start:stop], groups=groups, zeros=own)

    return GridTensor(name="w", type=kind, shape=codes.shape, read=read, packing=packing)


def compared(right: F32, theirs: GridTensor) -> Excess:
    ours = PlainTensor(name="w", type="f32", data=right)
    return excess(ours, theirs, np.ones(len(right)), np.ones(right.shape[1]))


def some_codes(rows: int, columns: int = 40) -> F32:
    return np.random.default_rng(0).integers(0, 16, (rows, columns)).astype(np.float32)


# --- what quantising costs --------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "wrong"), [(2.9, 0), (3.1, 1)])
def test_a_row_is_wrong_beyond_three_times_the_noise_of_rounding(times: float, wrong: int) -> None:
    """With a largest value of 7.5 in each group a step of the 15 is 1, whose noise is 1 / sqrt(12)."""
    right = np.where(np.arange(40) % 4 == 0, np.float32(7.5), np.float32(3.0))[None].repeat(3, axis=0)
    off = np.zeros((3, 1), np.float32)
    off[1] = times / np.sqrt(12)
    found = compared(right, made(right + off))
    assert (found.rows, found.total) == (wrong, 3)
    assert found.rel_l2 == pytest.approx(float(np.linalg.norm(off * np.ones(40)) / np.linalg.norm(right)))


def test_a_row_of_zeros_is_no_wrong_one() -> None:
    codes = some_codes(4)
    codes[2] = 0.0
    assert compared(codes, made(codes)) == Excess(rows=0, total=4, rel_l2=0.0)


def test_a_scale_that_is_no_number_is_wrong_in_every_row() -> None:
    found = compared(some_codes(2), made(some_codes(2) + 1, scale=np.inf))
    assert (found.rows, found.rel_l2) == (2, np.inf)
    right = some_codes(2)
    right[0, 0] = np.inf  # on both sides, and under every other reading: no difference can be told
    assert compared(right, made(some_codes(2) + 1, scale=np.inf)).rows == 2


@pytest.mark.parametrize(("groups", "named"), [(10, True), (9, True), (7, False), (6, False)])
def test_a_mistake_is_named_where_it_leaves_less_than_half(groups: int, named: bool) -> None:
    """Of ten zero points so many are one too small: one more for each leaves sqrt((10 - n) / n)."""
    codes = some_codes(64)
    zeros = np.random.default_rng(1).integers(4, 12, (64, 10)).astype(np.float32)
    right = codes - np.repeat(zeros, 4, axis=1)
    stored = zeros - (np.arange(10) < groups).astype(np.float32)
    found = compared(10 * right, made(codes, zeros=stored, scale=10.0))
    assert found.rel_l2 == pytest.approx((64 * 4 * groups / np.sum(np.square(right))) ** 0.5)
    if named:
        assert found.misread is not None
        assert found.misread.says == "zero points that are one larger"
        assert found.left == pytest.approx(found.rel_l2 * ((10 - groups) / groups) ** 0.5)
    else:
        assert (found.misread, found.left) == (None, found.rel_l2)


# --- how else it may be read ------------------------------------------------------------------------


def test_nothing_is_named_for_a_scale_without_end() -> None:
    """The difference is infinite as read, and the reciprocal, 0, is no nearer to the right values."""
    right = some_codes(3) - 8
    found = compared(right, made(right, scale=np.inf))
    assert (found.rows, found.misread) == (3, None)


def test_only_a_format_of_integers_has_zero_points_to_mistake() -> None:
    codes = some_codes(4)
    said = {
        kind: [one.says for one in misreadings(made(codes, kind=kind))]
        for kind in ("int4", "nf4", "fp8_e4m3")
    }
    assert any("zero points that are" in says for says in said["int4"])
    for kind in ("nf4", "fp8_e4m3"):
        assert not any(says.startswith("zero points that are") for says in said[kind])


@pytest.mark.parametrize("right", ORDERS)
def test_codes_of_a_word_are_taken_in_every_other_order(right: str) -> None:
    """A word holds the code of neighbour i at place order[i], four bits each."""
    codes, order = some_codes(2, 16), ORDERS[right]
    found = {
        one.says: one.tensor.rows(0, 2)
        for one in misreadings(made(codes, packing=PackedOrder(axis="in", order=order)))
        if one.name == "nibble-order"
    }
    assert set(found) == set(ORDERS) - {right}
    for says, values in found.items():
        for row in range(2):
            for first in (0, 8):
                word = sum(int(codes[row, first + i]) << 4 * order[i] for i in range(8))
                taken = [(word >> 4 * at) & 15 for at in ORDERS[says]]
                assert values[row, first : first + 8].tolist() == taken


def test_codes_that_lie_a_part_away_are_taken_otherwise() -> None:
    """quanto: byte row r of four has row r of eight in its lower half, and row r + 4 in the upper one."""
    codes = some_codes(4, 8)  # eight rows of groups, of four columns
    groups = codes.reshape(8, 4)
    found = {
        one.says: one.tensor.rows(0, 4).reshape(8, 4)
        for one in misreadings(made(codes, packing=PackedOrder(axis="parts", order=(0, 1))))
        if one.name == "nibble-order"
    }
    low, high = groups[:4], groups[4:]
    np.testing.assert_array_equal(
        found.pop("codes of a byte taken from the highest bits down"), np.concatenate((high, low))
    )
    pairs = [value for at in range(16) for value in (low.reshape(-1)[at], high.reshape(-1)[at])]
    neighbours = found.pop("codes of a byte taken for neighbours")
    np.testing.assert_array_equal(neighbours.reshape(-1), pairs)
    assert not found


def test_what_is_added_to_products_is_mistaken_as_zero_points_are() -> None:
    codes = some_codes(3) - 8
    added = np.arange(30, dtype=np.float32).reshape(3, 10)
    grid = Grid(
        codes=codes, scales=np.full((3, 10), 2.0, np.float32), shifts=added, groups=even_groups(40, 4)
    )
    np.testing.assert_array_equal(grid.values, 2 * codes + np.repeat(added, 4, axis=1))
    tensor = GridTensor(name="w", type="int4", shape=(3, 40), read=lambda start, stop: grid)
    found = {one.says: one.tensor.rows(0, 3) for one in misreadings(tensor)}
    np.testing.assert_array_equal(found["no zero points"], 2 * codes)
    rolled = np.repeat(np.roll(added, 1, axis=1), 4, axis=1)
    np.testing.assert_array_equal(found["zero points of the group before"], 2 * codes + rolled)
    unsigned = np.where(codes < 0, codes + 16, codes)
    np.testing.assert_array_equal(
        found["codes read without their sign"] - np.repeat(added, 4, axis=1), 2 * unsigned
    )
    fits = "zero points that are one larger"
    np.testing.assert_array_equal(found[fits], grid.values - 2)


def test_codes_are_signed_where_any_row_has_one_below_zero() -> None:
    """The first row alone, and all of the first 64, could be unsigned."""
    codes = np.abs(some_codes(70))
    codes[66, 3] = -2.0
    found = {one.says: one.tensor.rows(0, 70) for one in misreadings(made(codes))}
    assert found["codes read without their sign"][66, 3] == 14.0
    assert "codes read without their sign" not in {one.says for one in misreadings(made(codes[:66]))}


def test_only_of_gptq_is_it_said_how_its_files_store_zero_points() -> None:
    tensor = made(some_codes(3))
    for less_one in (False, True):
        moved = [
            one
            for one in misreadings(replace(tensor, zeros_less_one=less_one))
            if one.says.startswith("zero points that are")
        ]
        assert len(moved) == 2
        assert all(("GPTQ" in one.instead) is less_one for one in moved)
