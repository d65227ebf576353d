"""Which values of a block format lie so near to an edge between two steps that either side may be right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import Operand, Rule

F64 = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]

NUDGE = 2.0**-22
"""How near to an edge a captured value may fall to either side, relative: four f32 roundings."""

_STEP = 2.0**-18
"""A value that moves by less than this share of its block's largest has not changed its step."""


def nearness(values: F64, rotated_of: int | None = None) -> F64:
    """Return how near to an edge each of ``values`` [S, n] may fall to either side.

    Args:
        values: as the runtime rounds them.
        rotated_of: of how many values each was summed in f32, where a Hadamard matrix rotated them before.

    """
    if rotated_of is None:
        return np.abs(values) * NUDGE
    parts = values.reshape(len(values), -1, rotated_of)
    size = np.sqrt(np.mean(np.square(parts), axis=-1, keepdims=True)) * quantise.TURN_ERROR
    return np.asarray((size + np.spacing(np.abs(parts).astype(np.float32))).reshape(values.shape))


Crossing = tuple[int, list[int], int]
"""Row, channels, and 1 or -1: to which side they are moved."""


def crossing(
    kept: Operand, values: F64, distance: F64, block: int, *, block_sums: bool = False
) -> Iterator[Crossing]:
    """Yield the channels of ``values`` [S, n] that change what a block holds when moved by ``distance``.

    That is one channel that falls on another step; or those of the least or the largest value of a block,
    which set its scale or its minimum, where that is stored as f16 and lies between two f16 numbers.

    Args:
        kept: a function: what is left of values in such blocks.
        values: rows of an operand.
        distance: how far each value is moved, to either side [S, n].
        block: how many values share a scale.
        block_sums: whether the block's sum is stored too, as f16, and may change alone.

    """
    rows = max(1, _AT_A_TIME // max(1, values.shape[-1]))
    for first in range(0, len(values), rows):
        some = np.s_[first : first + rows]
        for row, channels, side in _crossing(kept, values[some], distance[some], block, block_sums):
            yield first + row, channels, side


_AT_A_TIME = 1 << 20
"""Values that are looked at together: enough to be quick, and few for the memory."""


def _crossing(kept: Operand, values: F64, distance: F64, block: int, block_sums: bool) -> list[Crossing]:
    steps = quantise.STEPS[kept](values)
    outward = steps.flip * steps.scale * distance
    near = steps.fraction * np.abs(steps.scale) <= np.abs(distance)
    blocks = quantise.blocks_of(values, block)
    ends = [blocks == end(blocks, axis=-1, keepdims=True) for end in (np.min, np.max)]
    near &= ~_flat(ends[0] | ends[1], values)
    held = _Blocks(kept=kept, values=values, block=block, block_sums=block_sums)
    found: list[Crossing] = []
    for side in (1, -1):
        for row, channel in np.argwhere(near & (side * outward > 0)).tolist():
            found.append((row, [channel], side))
        for chosen in ends:
            for row, at in np.argwhere(held.otherwise(chosen, side * distance)).tolist():
                found.append((row, (at * block + np.flatnonzero(chosen[row, at])).tolist(), side))
    return sorted(found, key=_by_row)


def _by_row(one: Crossing) -> tuple[int, int]:
    return one[0], -one[2]


def _flat(blocks: Chosen, values: F64) -> Chosen:
    return blocks.reshape(len(values), -1)[:, : values.shape[-1]]


class _Blocks:
    """What blocks of ``values`` [S, n] hold."""

    def __init__(self, *, kept: Operand, values: F64, block: int, block_sums: bool) -> None:
        self._kept, self._values, self._block = kept, values, block
        self._now = kept(values)
        self._sums = quantise.q8_1_block_sums(values) if block_sums else None
        size = np.abs(quantise.blocks_of(values, block)).max(axis=-1, keepdims=True)
        self._least = _STEP * size

    def otherwise(self, chosen: Chosen, shift: F64) -> Chosen:
        """Return which blocks [S, blocks] hold the chosen values otherwise when moved, or their sum."""
        nudged = np.where(_flat(chosen, self._values), self._values + shift, self._values)
        moved = quantise.blocks_of(np.abs(self._kept(nudged) - self._now), self._block)
        found = (chosen & (moved > self._least)).any(axis=-1)
        if self._sums is not None:
            found |= quantise.q8_1_block_sums(nudged) != self._sums
        return np.asarray(found)


def of_rule(rule: Rule, values: F64, distance: F64) -> Iterator[Crossing]:
    """Yield what :func:`crossing` does of a rule's first operand, for each type of weights that it names."""
    found: list[Crossing] = []
    for part in dict.fromkeys(each for _, each in rule.parts) if rule.parts else (rule,):
        if part.block > 1:
            found += crossing(part.left, values, distance, part.block, block_sums=part.block_sums)
    yield from sorted(found, key=_by_row)
