"""Blocks of few bits, against the gguf package's own quantisers, and a rotation that undoes itself."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest

from apr_falsify.numerics import quantise
from apr_falsify.numerics.quantise import F64, Values
from tests import edge_values
from tests.ggml_library import DECODERS, differing
from tests.support import DATA

OVERFLOWING = {"subnormal in f32", "reciprocals that overflow"}
"""Kinds of rows of which the package's reciprocals overflow, so that it casts NaN to integers."""

KINDS: dict[str, Callable[[Values], F64]] = {
    "q4_0": quantise.q4_0,
    "q4_1": quantise.q4_1,
    "q5_0": quantise.q5_0,
    "q5_1": quantise.q5_1,
    "q8_0": quantise.q8_0,
}
"""The formats that the gguf package quantises to as well."""


def keys(seed: int) -> np.ndarray:
    """Rows as a K cache has them: a few channels are far larger than the others."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(50, 128)).astype(np.float32)
    values[:, ::37] *= 20
    return values


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("values", sorted(set(edge_values.KINDS) - OVERFLOWING))
def test_blocks_are_those_of_the_gguf_package_but_for_values_at_an_edge(kind: str, values: str) -> None:
    """The package rounds ties away from zero in q8_0, and multiplies and adds in f64 in q4_0 and q5_0."""
    rows = edge_values.rows_of(values, 20)
    found = DECODERS[kind.upper()](packed(rows, kind))
    where = differing(kind.upper(), found, rows)
    near = quantise.STEPS[KINDS[kind]](rows).fraction <= edge_values.EITHER_SIDE
    assert not (where.pop("integer") & ~near.reshape(found.quants.shape)).any()
    assert not any(part.any() for part in where.values())


def packed(rows: np.ndarray, kind: str) -> np.ndarray:
    """Return the blocks [rows, blocks, bytes] that the gguf package makes."""
    with np.errstate(all="ignore"):
        found = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    return found.reshape(len(rows), rows.shape[1] // quantise.BLOCK, -1)


def test_few_values_are_at_an_edge() -> None:
    rows = edge_values.rows_of("normal", 500)
    for kept in quantise.STEPS:
        assert np.mean(quantise.STEPS[kept](rows).fraction <= edge_values.EITHER_SIDE) < 2e-3


def test_minima_are_those_of_the_blocks() -> None:
    values = keys(0)
    lowest = values.reshape(50, 4, 32).min(axis=-1).astype(np.float16)
    np.testing.assert_array_equal(quantise.minima(values), lowest.astype(np.float64))


@pytest.mark.parametrize("kept", [*KINDS.values(), quantise.iq4_nl, quantise.q8_0])
def test_a_block_of_zeros_stays_zero_and_one_of_nans_is_no_error(kept: Callable[[Values], F64]) -> None:
    values = np.zeros((2, 64), np.float32)
    assert not kept(values).any()
    values[1] = np.nan
    with np.errstate(all="ignore"):
        assert not kept(values)[0].any()


def test_uneven_steps_hold_what_lies_on_them() -> None:
    steps = np.array(quantise._IQ4_NL * 2, np.float32)[None] / 8
    np.testing.assert_allclose(quantise.iq4_nl(steps), steps, rtol=1e-3)
    tables = gguf.quants.IQ4_NL.kvalues
    assert tuple(int(value) for value in tables) == quantise._IQ4_NL


@pytest.mark.parametrize(
    ("largest", "value", "whole"),
    [
        (1.935072422027588, 0.5409060120582581, 36),
        (1.6884467601776123, 1.1898895502090454, 90),
        (1.058568000793457, 0.9293727278709412, 111),
        (1.199515461921692, 0.911442756652832, 97),
    ],
)
def test_apr_multiplies_by_the_reciprocal_of_the_scale(largest: float, value: float, whole: int) -> None:
    """The integers are those of the real apr 0.72.3; x / scale and x * (127 / max) give others."""
    values = np.zeros((1, 256), np.float32)
    values[0, :3] = largest, value, -value
    most = values.max()
    for other in values / (most / np.float32(127)), values * (np.float32(127) / most):
        assert np.trunc(other[0, 1] + 0.5) != whole
    assert quantise.STEPS[quantise.q8_256](values).quants[0, :3].tolist() == [127, whole, -whole]


def test_blocks_are_those_that_the_real_apr_wrote() -> None:
    """Recorded: edges between two integers, subnormal and empty blocks, blocks of one value, huge ones."""
    with np.load(DATA / "apr-edges" / "blocks.npz") as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    steps = quantise.STEPS[quantise.q8_256](inputs)
    np.testing.assert_array_equal(steps.quants.astype(np.float32) * steps.scale.astype(np.float32), outputs)
    usual = np.abs(inputs).max(axis=-1) > 1e-10
    quotient = np.abs(inputs[usual] / steps.scale[usual].astype(np.float32))
    assert np.count_nonzero(np.floor(quotient + 0.5) != np.abs(steps.quants[usual])) > 100


def test_a_block_that_apr_takes_for_empty_is_zero() -> None:
    least = np.float32(1e-10)
    values = np.stack([np.full(256, value, np.float32) for value in (least, np.nextafter(least, 1))])
    kept = quantise.q8_256(values)
    assert not kept[0].any()
    np.testing.assert_allclose(kept[1], values[1], rtol=1e-6)


def test_apr_takes_a_value_that_is_no_number_for_zero() -> None:
    values = np.ones((1, 256), np.float32)
    values[0, 5] = np.nan
    kept = quantise.q8_256(values)
    assert kept[0, 5] == 0
    np.testing.assert_allclose(np.delete(kept, 5), 1, rtol=1e-6)


MINIMA = {quantise.q4_1: quantise.minima, quantise.q5_1: quantise.minima}
"""The formats of which a block's minimum is kept too."""


@pytest.mark.parametrize("kept", list(quantise.STEPS))
def test_steps_make_up_what_is_kept(kept: Callable[[Values], F64]) -> None:
    values = keys(0)
    steps = quantise.STEPS[kept](values)
    found = steps.quants * steps.scale
    if kept in MINIMA:
        found = found + np.repeat(MINIMA[kept](values), quantise.BLOCK, axis=-1)
    np.testing.assert_array_equal(found, kept(values))


@pytest.mark.parametrize("kept", list(quantise.STEPS))
@pytest.mark.parametrize("beyond", [True, False])
def test_a_value_that_is_moved_beyond_its_edge_flips_and_one_that_is_not_does_not(
    kept: Callable[[Values], F64], beyond: bool
) -> None:
    values = keys(0)[:2]
    steps = quantise.STEPS[kept](values)
    shift = steps.flip * steps.scale * (steps.fraction + (0.01 if beyond else -0.01))
    tried = 0
    for at in map(tuple, np.argwhere(shift)):
        moved = values.copy()
        moved[at] += shift[at]
        if not np.array_equal(ends(moved), ends(values)):
            continue  # the block's own scale changed
        expected = steps.quants.copy()
        expected[at] += steps.flip[at] if beyond else 0
        np.testing.assert_array_equal(quantise.STEPS[kept](moved).quants, expected)
        tried += 1
    assert tried > 100


def ends(values: np.ndarray) -> np.ndarray:
    """Return the least and the largest value of each block of 32."""
    blocks = values.reshape(-1, 32)
    return np.stack([blocks.min(axis=-1), blocks.max(axis=-1)])


def test_what_is_beyond_f16_is_near_no_edge() -> None:
    steps = quantise.STEPS[quantise.f16](np.array([7e4, -np.inf, 1.0], np.float32))
    assert steps.flip.tolist() == [0, 0, 1]
    assert steps.quants[:2].tolist() == [np.inf, -np.inf]


def test_turning_there_and_back_changes_nothing_but_rounding() -> None:
    values = keys(1)
    turned = quantise.rotated_back(lambda held: held.astype(np.float64))(values)
    np.testing.assert_allclose(turned, values, atol=2e-5)


@pytest.mark.parametrize("size", [2, 32, 64, 128])
def test_turning_multiplies_by_the_hadamard_matrix(size: int) -> None:
    values = keys(2)
    parts = values.reshape(50, -1, size)
    scale = np.sqrt(np.sum(np.square(parts), axis=-1, keepdims=True))
    found = quantise.hadamard_rotated(values, size).reshape(parts.shape)
    assert np.all(np.abs(found - parts @ quantise.hadamard(size)) <= 8 * 2.0**-24 * scale)


def test_heads_of_192_are_turned_in_three_parts() -> None:
    assert [quantise.rotation_size(size) for size in (64, 128, 192, 96)] == [64, 128, 64, 32]


def test_an_outlier_is_spread_over_the_block_that_it_is_turned_in() -> None:
    values = np.zeros((1, 128), np.float32)
    values[0, 3] = 10.0
    held: list[Values] = []
    quantise.rotated_back(lambda part: (held.append(part), part.astype(np.float64))[1])(values)
    np.testing.assert_allclose(np.abs(held[0][0, :64]), 10 / 8, rtol=1e-6)
    assert not held[0][0, 64:].any()


def test_a_value_between_two_steps_may_fall_to_either_side_and_others_may_not() -> None:
    values = np.full((1, 64), 0.25, np.float32)
    values[0, 0], values[0, 5] = 127.0, 3.5  # steps of 1: 3.5 lies between 3 and 4
    off = quantise.edges(quantise.q8_0, values, 64)
    assert off[0, 5] == pytest.approx(1.0, rel=1e-3)
    off[0, 5] = 0
    assert off.max() < 1e-2


def test_a_large_value_next_to_a_tie_may_fall_to_either_side() -> None:
    """118.49999 is the f32 before 118.5, which is a tie that is rounded down again."""
    values = np.full((1, 64), 0.25, np.float32)
    values[0, 0], values[0, 5] = 127.0, np.nextafter(np.float32(118.5), np.float32(0))
    off = quantise.edges(quantise.q8_0, values, 64)
    assert off[0, 5] == pytest.approx(1.0, rel=1e-3)


def test_a_value_beside_the_largest_of_its_block_may_fall_to_either_side_too() -> None:
    values = np.full((1, 64), 0.25, np.float32)
    values[0, 0], values[0, 5] = 127.0, 126.5
    off = quantise.edges(quantise.q8_0, values, 64)
    assert off[0, 5] == pytest.approx(1.0, rel=1e-3)


def test_a_scale_between_two_f16_numbers_moves_its_block() -> None:
    step = np.float32(np.float16(0.5)) * (1 + 2**-11)  # half way to the next f16
    values = np.linspace(-1, 1, 32, dtype=np.float32)[None] * 100 * step
    values[0, 0] = 127 * step
    off = quantise.edges(quantise.q8_0, np.concatenate([values, np.ones_like(values)], axis=1), 64)
    assert (off[0, 1:15] > 1e-3).all()
    assert off[0, 32:].max() < 1e-3
