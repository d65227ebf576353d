"""What no block of a quantised tensor shows: all of it a little too large, too small, or too noisy.

A value of a 4-bit format may be off by more than a step, and a fault of a few percent in every value is less
than that. Over many blocks the cost of quantising averages out, and a factor does not: it is found by least
squares, with a standard error from the blocks themselves. What remains around it is the noise.

The limits come from ``benchmarks/bench_systematic.py``: llama.cpp's own quantisers, with importance matrices
and without, on eight kinds of values. None made one larger by more than twice its squared relative error,
and with such a matrix none smaller by more than 0.3 of its relative error. In the median block none had more
noise than a uniform error of one step.

Values that lie on a grid already are another matter: they come to lie between the steps of another grid in
the same way everywhere, so that quantising them once more makes all of a tensor larger, smaller or noisier.

One row is too few blocks for such an average, unless nothing but the factor remains in it: quantising anew
leaves an error of its own, and a scale that was read wrongly leaves none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

_GROUP = 256
"""As many blocks are taken together at least, so that one of them is no evidence."""

_SIGMAS = 6.0
_SCALES = 1e-3
"""A factor that is never reported: the scales of blocks are rounded too, to 11 bits."""

_REMAINDER = 2e-3
"""How much may remain of a row that is times a factor, relative to it: the finest format leaves 4e-3.

Both numbers of a block, scale and least value, are rounded to 11 bits and cancel in part.
"""

_ALIKE = 6.0
"""How many blocks must bear such a factor alike."""

_LARGER = 2.0
"""How much larger a quantiser may make a tensor, in units of its squared relative error."""

_SMALLER = 0.5
"""How much smaller, in units of its relative error: one that weighs errors pulls towards zero."""

_NOISE = 1.5
"""How much noise the median block may have, in units of a uniform error of one step."""

_AGAIN = 1.0
"""How much larger or smaller a second format may make what lies on the grid of a first, in units of its
relative error: the gguf package's quantisers do so by 0.7 at most."""

_NOISE_AGAIN = 3.0
"""How much noise the median block may have then; of those quantisers 1.5 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSums:
    """Sums over some rows of two tensors.

    Attributes:
        of_rows: [4, rows], sums over the blocks of each row.
        noise: per block that is not all zeros, its mean squared error; 1 is a uniform error of one step.
        blocks: blocks of a row.

    """

    of_rows: F64
    noise: F64
    blocks: int


def sums_of(ours: F64, theirs: F64, steps: F64) -> GroupSums:
    """Return the sums over some rows.

    Args:
        ours: the right values, [rows, blocks, values].
        theirs: those in question, same shape.
        steps: the step of each block's grid, [rows, blocks].

    """
    off = theirs - ours
    used = steps > 0
    noise = np.mean(np.square(off), axis=-1)[used] * 12 / np.square(steps[used])
    return GroupSums(of_rows=_row_sums(ours, off), noise=noise, blocks=ours.shape[1])


def systematic(parts: Sequence[GroupSums], *, again: bool = False) -> str:
    """Return what is wrong with a tensor whose rows are those of ``parts``, in words; ``""`` for nothing.

    Args:
        parts: the sums over its rows.
        again: whether the right values lie on the grid of another format, and no much finer one.

    """
    if not parts:
        return ""
    of_rows = np.concatenate([part.of_rows for part in parts], axis=1)
    return _factor_words(of_rows, parts[0].blocks, again) or _noise_words(
        np.concatenate([part.noise for part in parts]), _NOISE_AGAIN if again else _NOISE
    )


def _row_sums(ours: F64, off: F64) -> F64:
    energy, along = np.sum(np.square(ours), axis=-1), np.sum(ours * off, axis=-1)
    noise = np.sum(np.square(off), axis=-1)
    each = (energy, along, noise, along * along)
    return np.stack([np.sum(values, axis=-1) for values in each])


def _factor_words(sums: F64, blocks: int, again: bool) -> str:
    if factor := _factor(np.sum(sums, axis=1), again):
        return f"all of it is x {factor:.4g}"
    return _row_words(sums) or _group_words(sums, blocks, again)


def _group_words(sums: F64, blocks: int, again: bool) -> str:
    rows = sums.shape[1]
    height = max(1, -(-_GROUP // blocks))
    starts = range(0, rows - height + 1, height)
    factors = {first: _factor(np.sum(sums[:, first : first + height], axis=1), again) for first in starts}
    wrong = {first: factor for first, factor in factors.items() if factor is not None}
    if not wrong:
        return ""
    first, factor = next(iter(wrong.items()))
    others = f", and {len(wrong) - 1} more of {len(factors)} such groups" if len(wrong) > 1 else ""
    return f"rows {first} to {first + height - 1} are x {factor:.4g}{others}"


def _row_words(sums: F64) -> str:
    """Return which rows are the right ones times a factor, and nothing else."""
    energy, along, noise, along2 = sums
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        off = along / energy
        scaled = (np.abs(off) > _SCALES) & (noise - along * off <= _REMAINDER**2 * energy)
        wrong = np.flatnonzero(scaled & (np.square(along) >= _ALIKE * along2))
    if not wrong.size:
        return ""
    others = f", and {wrong.size - 1} more of {len(off)} rows by factors" if wrong.size > 1 else ""
    return f"row {wrong[0]} is x {1 + off[wrong[0]]:.4g}{others}"


def _factor(sums: F64, again: bool) -> float | None:
    """Return the factor that quantising does not explain, ``None`` where it explains it."""
    energy, along, noise, along2 = map(float, sums)
    if not 0 < energy < math.inf:
        return None
    off = along / energy
    # From what each block says of it: where one block says all, that is no evidence.
    spread = math.sqrt(along2) / energy
    squared = max(noise / energy - off * off, 0.0)
    allowed = _LARGER * squared if off > 0 else _SMALLER * math.sqrt(squared)
    if again:
        allowed = _AGAIN * math.sqrt(squared)
    return 1 + off if abs(off) > allowed + _SIGMAS * spread + _SCALES else None


def _noise_words(ratios: F64, most: float) -> str:
    median = float(np.median(ratios)) if ratios.size >= _GROUP else 0.0
    return f"its median block has {math.sqrt(median):.2g} x the noise of one step" if median > most else ""
