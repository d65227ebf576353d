"""Rows of values on which another order of operations, or another rounding of ties, would show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Rows = Callable[[np.random.Generator, int], F32]

SIZE = 256
"""Values of a row: a block of 256, or eight of 32."""

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The uneven steps of iq4_nl."""

EITHER_SIDE = 127 * 2.0**-22
"""How near to an edge, in steps, a value may be rounded to either side by another order of f32 operations.

A scale, its reciprocal and the product with it are rounded by up to 2**-24 of 127 steps each. Ties, which
are at the edge itself, go to the even integer or away from zero. On x86-64 llama.cpp is built with AVX nearly
always, and then does what ``numerics.quantise`` says; without it (and in blocks of four and five bits with
fused multiply-adds, as GCC makes of them on ARM) values within this of an edge differ.
"""


def _powers(rng: np.random.Generator, rows: int, least: int, most: int) -> F32:
    """Return factors [rows, 1] of about 2**least to 2**most."""
    return np.exp2(rng.uniform(least, most, (rows, 1))).astype(np.float32)


def _normal(rng: np.random.Generator, rows: int) -> F32:
    values = rng.normal(size=(rows, SIZE)).astype(np.float32)
    values[:, ::37] *= np.float32(20)
    return values * _powers(rng, rows, -12, 12)


def _by_ulps(rng: np.random.Generator, values: npt.NDArray[np.float64], most: int) -> F32:
    """Move each value by up to ``most`` numbers of f32, towards or from zero."""
    bits = values.astype(np.float32).view(np.int32)
    return (bits + rng.integers(-most, most + 1, values.shape, np.int32)).view(np.float32)


def _of_largest(edges: npt.NDArray[np.float64]) -> Rows:
    """Return rows whose blocks of 32 hold one largest value, of either sign, and others at ``edges``."""

    def made(rng: np.random.Generator, rows: int) -> F32:
        largest = rng.uniform(1, 2, (rows, 1)).astype(np.float32) * rng.choice([-1, 1], (rows, 1))
        values = _by_ulps(rng, rng.choice(edges, (rows, SIZE)) * largest, 3)
        places = np.arange(0, SIZE, 32) + rng.integers(0, 32, SIZE // 32)
        values[:, places] = largest
        return values * np.exp2(rng.integers(-8, 9, (rows, 1))).astype(np.float32)

    return made


def _from_minimum(levels: int) -> Rows:
    """Return rows at the edges of ``levels`` + 1 even levels between a block's least and largest value."""

    def made(rng: np.random.Generator, rows: int) -> F32:
        low = rng.uniform(-2, 2, (rows, 1)).astype(np.float32)
        high = low + rng.uniform(0.5, 2, (rows, 1)).astype(np.float32)
        part = (rng.integers(0, levels, (rows, SIZE)) + 0.5) / levels
        values = _by_ulps(rng, low + part * (high.astype(np.float64) - low), 3)
        places = np.arange(0, SIZE, 32)
        values[:, places], values[:, places + 31] = low, high
        return values

    return made


def _subnormal(rng: np.random.Generator, rows: int) -> F32:
    return (rng.normal(size=(rows, SIZE)) * np.exp2(rng.uniform(-149, -120, (rows, 1)))).astype(np.float32)


def _zeros(rng: np.random.Generator, rows: int) -> F32:
    return np.copysign(np.float32(0), rng.normal(size=(rows, SIZE)).astype(np.float32))


def _one_value(rng: np.random.Generator, rows: int) -> F32:
    values = _zeros(rng, rows)
    values[np.arange(rows), rng.integers(0, SIZE, rows)] = _normal(rng, rows)[:, 0]
    return values


def _largest_last(rng: np.random.Generator, rows: int) -> F32:
    values = _normal(rng, rows)
    values[:, 31::32] = np.float32(30) * np.abs(values).max(axis=-1, keepdims=True) * rng.choice([-1, 1])
    return values


def _either_sign(rng: np.random.Generator, rows: int) -> F32:
    """Return rows in which several values of either sign are equally large."""
    values = _normal(rng, rows)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    return np.where(
        rng.random(values.shape) < 0.2, largest * rng.choice([-1, 1], values.shape), values
    ).astype(np.float32)


def _equal(rng: np.random.Generator, rows: int) -> F32:
    return np.repeat(_normal(rng, rows)[:, :1], SIZE, axis=-1)


def _scaled_to(least: float, most: float) -> Rows:
    """Return rows whose largest value is between two powers of two."""

    def made(rng: np.random.Generator, rows: int) -> F32:
        values = rng.uniform(-1, 1, (rows, SIZE))
        return (values * np.exp2(rng.uniform(least, most, (rows, 1)))).astype(np.float32)

    return made


def _scale_between_f16(levels: int) -> Rows:
    """Return rows whose scale, (largest value) / levels, lies half way between two numbers of f16."""

    def made(rng: np.random.Generator, rows: int) -> F32:
        scale = rng.uniform(2.0**-24, 2.0**-12, (rows, 1)).astype(np.float16)
        half_way = (scale.astype(np.float64) + np.nextafter(scale, np.float16(np.inf))) / 2
        largest = _by_ulps(rng, half_way * levels, 2)
        values = (rng.uniform(-1, 1, (rows, SIZE)) * largest).astype(np.float32)
        values[:, ::32] = largest
        return values

    return made


def _whole(rng: np.random.Generator, rows: int) -> F32:
    return (rng.integers(-254, 255, (rows, SIZE)) / np.exp2(rng.integers(0, 3, (rows, 1)))).astype(np.float32)


_HALVES = np.arange(-126.5, 127)

KINDS: Mapping[str, Rows] = {
    "normal": _normal,
    "edges of 255 levels": _of_largest(_HALVES / 127),
    "edges of 16 levels": _of_largest(np.arange(-7.5, 8) / -8),
    "edges of 32 levels": _of_largest(np.arange(-15.5, 16) / -16),
    "edges of uneven levels": _of_largest((np.array(TABLE[1:]) + TABLE[:-1]) / 2 / -127),
    "edges of 16 levels above the least": _from_minimum(15),
    "edges of 32 levels above the least": _from_minimum(31),
    "whole numbers": _whole,
    "zeros of either sign": _zeros,
    "one value": _one_value,
    "the largest last": _largest_last,
    "equally large of either sign": _either_sign,
    "equal values": _equal,
    "subnormal in f32": _subnormal,
    "reciprocals that overflow": _scaled_to(-126, -110),
    "nearly empty for apr": _scaled_to(-33.3, -33.1),
    "nearly empty for iq4_nl": _scaled_to(-49.9, -49.7),
    "scales subnormal in f16": _scaled_to(-24, -6),
    "scales half way between f16 numbers, 127 levels": _scale_between_f16(127),
    "scales half way between f16 numbers, 8 levels": _scale_between_f16(8),
    "scales that overflow f16": _scaled_to(18, 25),
    "huge": _scaled_to(90, 126),
}
"""What a row is made of."""


def rows_of(kind: str, rows: int, seed: int = 0) -> F32:
    """Return ``rows`` rows of :data:`SIZE` values of one kind."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    return np.ascontiguousarray(KINDS[kind](rng, rows), np.float32)
