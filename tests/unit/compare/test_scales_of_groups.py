"""Scales of a quantised tensor that are a little off, beside what honest quantisers leave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.quantised_tensors import excess
from apr_falsify.formats.quantised.grid import Grid, GridTensor, even_groups
from apr_falsify.formats.tensors import PlainTensor

F64 = npt.NDArray[np.float64]
OUT, WIDTH, BLOCK = 128, 128, 64


def plain(values: F64) -> PlainTensor:
    return PlainTensor(name="w", type="f32", data=values.astype(np.float32))


def eighths(values: F64) -> F64:
    """Round to three binary digits after the first, as FP8 does within its range."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(mantissa * 16) / 16, exponent))


def in_blocks(values: F64, scales: F64, read: F64) -> GridTensor:
    """Return eight-bit floats that were chosen by ``scales`` of blocks, and have those in ``read``."""
    wide, own = (np.kron(each, np.ones((BLOCK, BLOCK))) for each in (scales, read))
    codes = eighths(values / wide).astype(np.float32)

    def rows(start: int, stop: int) -> Grid:
        by_row = own[start:stop, ::BLOCK].astype(np.float32)
        return Grid(codes=codes[start:stop], scales=by_row, groups=even_groups(WIDTH, BLOCK))

    return GridTensor(name="w", type="fp8_e4m3", shape=(OUT, WIDTH), read=rows, block_rows=BLOCK)


def test_scales_of_blocks_that_are_read_transposed_are_named_though_they_differ_little() -> None:
    values = np.random.default_rng(0).normal(size=(OUT, WIDTH))
    scales = np.array([[1.0, 1.25], [1.05, 0.97]])
    ones = np.ones(OUT), np.ones(WIDTH)
    right = excess(plain(values), in_blocks(values, scales, scales), *ones)
    assert (right.rows, right.misread) == (0, None)
    wrong = excess(plain(values), in_blocks(values, scales, scales.T), *ones)
    assert wrong.rows == OUT  # each row has one of the two blocks that were exchanged
    assert wrong.misread is not None
    assert wrong.misread.says == "scales of blocks stored [in, out] and read as [out, in]"
    assert wrong.left < 0.3 * wrong.rel_l2


def clipped(values: F64, size: int) -> GridTensor:
    """Return 4-bit integers, each group clipped where that leaves the least error, as AWQ does."""
    blocks = values.reshape(OUT, -1, size)
    best, codes, scales, zeros = np.full(blocks.shape[:2], np.inf), *np.zeros((3, *blocks.shape))
    for share in np.linspace(0.5, 1, 11):
        low, high = (np.minimum(blocks.min(2), 0) * share, np.maximum(blocks.max(2), 0) * share)
        step = ((high - low) / 15)[..., None]
        zero = np.rint(-low[..., None] / step)
        made = np.clip(np.rint(blocks / step) + zero, 0, 15)
        error = np.square((made - zero) * step - blocks).sum(2)
        better = (error < best)[..., None]
        best = np.minimum(best, error)
        codes, scales, zeros = (
            np.where(better, new, old) for new, old in ((made, codes), (step, scales), (zero, zeros))
        )

    def rows(start: int, stop: int) -> Grid:
        return Grid(
            codes=codes[start:stop].reshape(-1, WIDTH).astype(np.float32),
            scales=scales[start:stop, :, 0].astype(np.float32),
            zeros=zeros[start:stop, :, 0].astype(np.float32),
            groups=even_groups(WIDTH, size),
        )

    return GridTensor(name="w", type="int4", shape=(OUT, WIDTH), read=rows)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("tail", [3, 30])
def test_groups_that_were_clipped_for_the_least_error_are_right(size: int, tail: int) -> None:
    values = np.random.default_rng(size).standard_t(tail, size=(OUT, WIDTH))
    found = excess(plain(values), clipped(values, size), np.ones(OUT), np.ones(WIDTH))
    assert (found.rows, found.misread) == (0, None)


def test_one_row_whose_scales_are_a_fifth_too_large_is_found() -> None:
    values = np.random.default_rng(1).normal(size=(OUT, WIDTH))
    right = clipped(values, 32)

    def spoiled(start: int, stop: int) -> Grid:
        grid = right.read(start, stop)
        grid.scales[11 - start : 12 - start] *= np.float32(1.2)
        return grid

    wrong = GridTensor(name="w", type="int4", shape=(OUT, WIDTH), read=spoiled)
    found = excess(plain(values), wrong, np.ones(OUT), np.ones(WIDTH))
    assert (found.rows, found.misread) == (1, None)
