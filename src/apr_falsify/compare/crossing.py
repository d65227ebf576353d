"""Which values of a block format lie so near to an edge between two steps that either side may be right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from apr_falsify import quantise
from apr_falsify.rules import Operand, Rule

F64 = npt.NDArray[np.float64]

NUDGE = 2.0**-22
"""How near to an edge a captured value may fall to either side, relative: four f32 roundings."""

_STEP = 2.0**-18
"""A value that moves by less than this share of its block's largest has not changed its step."""


def nearness(values: F64, turned_of: int | None = None) -> F64:
    """Return how near to an edge each of ``values`` [S, n] may fall to either side.

    Args:
        values: as the runtime rounds them.
        turned_of: of how many values each was summed in f32, where a Hadamard matrix turned them before.

    """
    if turned_of is None:
        return np.abs(values) * NUDGE
    parts = values.reshape(len(values), -1, turned_of)
    size = np.sqrt(np.mean(np.square(parts), axis=-1, keepdims=True)) * quantise.TURN_ERROR
    return np.asarray((size + np.spacing(np.abs(parts).astype(np.float32))).reshape(values.shape))


def crossing(
    kept: Operand, values: F64, shift: F64, block: int, *, block_sums: bool = False
) -> Iterator[list[int]]:
    """Yield the channels of ``values`` [n] that change what a block holds when moved by ``shift`` [n].

    That is one channel that falls on another step; or those of the least or the largest value of a block,
    which set its scale or its minimum, where that is kept as f16 and lies between two f16 numbers.

    Args:
        kept: what is left of values in such blocks.
        values: a row of an operand.
        shift: how far each value is moved.
        block: how many values share a scale.
        block_sums: whether the block's sum is kept too, as f16, and may change alone.

    """
    steps = quantise.STEPS[kept](values)
    outward = steps.flip * steps.scale * shift > 0
    near = outward & (steps.fraction * np.abs(steps.scale) <= np.abs(shift))
    blocks = quantise.blocks_of(values, block)
    ends = [blocks == end(blocks, axis=-1, keepdims=True) for end in (np.min, np.max)]
    between = ~(ends[0] | ends[1]).reshape(-1)[: len(values)]
    yield from ([channel] for channel in np.flatnonzero(near & between).tolist())
    for chosen in ends:
        for at in np.flatnonzero(_rescaled(kept, values, shift, chosen, block_sums=block_sums)).tolist():
            yield (at * block + np.flatnonzero(chosen[at])).tolist()


def _rescaled(
    kept: Operand, values: F64, shift: F64, chosen: npt.NDArray[np.bool_], *, block_sums: bool
) -> npt.NDArray[np.bool_]:
    """Return in which blocks the chosen values are held otherwise when moved, or the block's sum is."""
    nudged = np.where(chosen.reshape(-1)[: len(values)], values + shift, values)
    block = chosen.shape[-1]
    moved = quantise.blocks_of(np.abs(kept(nudged) - kept(values)), block)
    size = np.abs(quantise.blocks_of(values, block)).max(axis=-1, keepdims=True)
    found = (chosen & (moved > _STEP * size)).any(axis=-1)
    if block_sums:
        found |= quantise.q8_1_block_sums(nudged) != quantise.q8_1_block_sums(values)
    return np.asarray(found)


def of_rule(rule: Rule, values: F64, shift: F64) -> Iterator[list[int]]:
    """Yield what :func:`crossing` does of a rule's first operand, for each type of weights that it names."""
    for part in dict.fromkeys(each for _, each in rule.parts) if rule.parts else (rule,):
        if part.block > 1:
            yield from crossing(part.left, values, shift, part.block, block_sums=part.block_sums)
