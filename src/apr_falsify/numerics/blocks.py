"""Values rounded to the levels of a format, block by block, and how near each is to another level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Where values [..., n] lie between the integers that a format rounds them to.

    Attributes:
        quants: the integers, f64 [..., n]; ``quants * scale`` are the values (and the block's minimum more,
            in a format that has one).
        scale: the size of one step, f64 [..., n].
        fraction: the distance of each value to the nearest edge between two integers, f64 [..., n], in steps;
            a value that is exactly an integer has 0.5.
        flip: what ``quants`` would change by, were the value beyond that edge, f64 [..., n].

    """

    quants: F64
    scale: F64
    fraction: F64
    flip: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blocks of values [..., blocks, size] and what became of them.

    Attributes:
        values: the values.
        quants: their integers.
        scale: what one integer is worth once stored [..., blocks, 1].
        width: the signed distance in ``values`` that one integer covers, before it was stored.
        levels: the integers there are, ascending.
        origin: the value that integer 0 stands for [..., blocks, 1], as it was computed with.
        minimum: the same as it was stored.

    """

    values: F32
    quants: F32
    scale: F64
    width: F64
    levels: Sequence[int]
    origin: F64 | float = 0.0
    minimum: F64 | float = 0.0


Form = Callable[[Values], Blocks]
"""A format: values [..., n] -> their blocks."""


def _unblocked(blocks: F64, length: int) -> F64:
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def decoded(form: Form, values: Values) -> F64:
    """Return what the blocks of ``values`` [..., n] stand for."""
    with np.errstate(invalid="ignore", over="ignore"):  # a scale beyond f16 is infinite, as it is there
        blocks = form(values)
        return _unblocked(blocks.quants.astype(np.float64) * blocks.scale + blocks.minimum, values.shape[-1])


def steps_of(form: Form, values: Values) -> Steps:
    """Return where ``values`` [..., n] lie between the levels of a format in blocks."""
    with np.errstate(invalid="ignore", over="ignore"):
        blocks = form(values)
        quants = blocks.quants.astype(np.float64)
        exact = np.zeros(quants.shape)  # a block of width 0 holds equal values alone
        np.divide(blocks.values - blocks.origin, blocks.width, out=exact, where=blocks.width != 0)
        edge, gap = _nearest_edge(exact, blocks.levels)
        parts = {
            "quants": quants,
            "scale": np.broadcast_to(blocks.scale, quants.shape),
            "fraction": np.abs(exact - edge) / gap,
            "flip": np.where(quants > edge, -gap, gap),
        }
    return Steps(**{name: _unblocked(part, values.shape[-1]) for name, part in parts.items()})


def _nearest_edge(exact: F64, levels: Sequence[int]) -> tuple[F64, F64 | float]:
    """Return the edge between two levels that each value is nearest to, and the distance of the two."""
    if isinstance(levels, range):
        return np.clip(np.floor(exact), levels[0], levels[-2]) + 0.5, 1.0
    table = np.array(levels, np.float64)
    middles, gaps = (table[1:] + table[:-1]) / 2, np.diff(table)
    above = np.clip(np.searchsorted(middles, exact), 1, len(middles) - 1)
    at = np.where(exact - middles[above - 1] < middles[above] - exact, above - 1, above)
    return middles[at], gaps[at]


def rounding_steps(rounded: Callable[[Values], F32], values: Values, digits: int, least: int) -> Steps:
    """Return the steps of a number format, of which one is the distance between the numbers around a value.

    Args:
        rounded: rounds to the format, to nearest.
        values: the values.
        digits: the binary digits of its significand.
        least: the exponent of its smallest number; what is beyond its range has no step.

    """
    kept, exact = rounded(values).astype(np.float64), values.astype(np.float64)
    inside = np.isfinite(kept)
    exact = np.where(inside, exact, 0)
    exponent = np.where(exact == 0, least, np.frexp(exact)[1] - digits)
    gap = np.ldexp(1.0, np.maximum(exponent, least))
    edge = np.floor(exact / gap) * gap + gap / 2
    return Steps(
        quants=np.where(inside, kept / gap, kept),
        scale=np.where(inside, gap, 1.0),
        fraction=np.where(inside, np.abs(exact - edge) / gap, 0.5),
        flip=np.where(inside, np.where(kept > edge, -1.0, 1.0), 0.0),
    )
