"""Values on the edge between two steps of a block format, which a runtime may let fall to either side.

A block format divides a value by its block's scale and rounds to an integer. In f32 the quotient, the product
with 1 / scale and that with 127 / max differ in their last place, and ties go up or to even: which a program
does is known of some programs on some processors. A value within that of an edge may therefore be one step
higher or lower than here.

Such values excuse a row of a product only if what is left of it *is* what some of them make of it on the
other side: one step times one column of the weights each, found exactly. The floor is no wider for it, so
that a fault of the same size in the same row stays in error. The procedure:

1. Which rows are beyond their limit, and which of their input values lie on an edge.
2. What each of these makes of the row when it falls to the other side.
3. Which of them together leave least (least squares, each whole or not at all).
4. The row with those on the other side; it replaces the row where nearly all of it then is within its limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify import quantise
from apr_falsify.compare.excess import EXPLAINED_SHARE, LIMIT
from apr_falsify.compare.replay import Replayer, is_mixed
from apr_falsify.compare.roundoff import Known
from apr_falsify.rules import OPERATIONS, Operation, Rule
from apr_falsify.trace import Key

F64 = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]

NUDGE = 2.0**-22
"""How near to an edge a value may fall to either side, relative: four f32 roundings."""

_STEP = 2.0**-18
"""A value that moves by less than this share of its block's largest has not changed its step."""

_MOST = 256
"""Values on an edge that are tried at most: 1,024 tokens at the width of a 7B model have some 50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """A value on an edge: row of the stage, channels of its input, and the factor that moves it across.

    More than one channel only where several values of one block are the largest and set its scale.
    """

    row: int
    channels: list[int]
    factor: float


def on_the_other_side(
    replayer: Replayer, key: Key, rule: Rule, subject: Stored, expected: F64, sigma: F64
) -> tuple[F64, int]:
    """Return ``expected`` with those values across their edge that the subject has there, and how many.

    Args:
        replayer: replays the subject's trace.
        key: the stage.
        rule: the arithmetic under which ``expected`` was replayed.
        subject: the captured stage.
        expected: its replay, same shape.
        sigma: the rounding of the replay, same shape.

    """
    if rule.block == 1 or OPERATIONS.get(key[1]) is not Operation.PROJECTION:
        return expected, 0
    if is_mixed(key, replayer.trace.geometry):
        return expected, 0  # what its experts multiply last is computed within it and cannot be seen
    ((role, known),) = replayer.inputs(key).items()
    if known.sigma is not None:
        return expected, 0  # its input is not to the bit what the runtime had
    wide = (-1, expected.shape[-1])
    rows = _Rows(
        replayer=replayer,
        key=key,
        rule=rule,
        role=role,
        inputs=known.value[len(known.value) - len(expected.reshape(wide)) :],
        subject=subject.reshape(wide).astype(np.float64),
        expected=expected.reshape(wide),
        sigma=sigma.reshape(wide),
    )
    moved, count = rows.moved()
    return moved.reshape(expected.shape), count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A product's rows [S, out] beside its inputs [S, in]."""

    replayer: Replayer
    key: Key
    rule: Rule
    role: str
    inputs: F64
    subject: F64
    expected: F64
    sigma: F64

    def moved(self) -> tuple[F64, int]:
        # 1.
        beyond = np.flatnonzero((self._ratio(self.expected) > LIMIT).any(axis=1))
        found = list(self._edges(beyond))
        if not found or len(found) > _MOST:
            return self.expected, 0
        # 2.
        nudged = np.stack([self._nudged(edge.row, [edge]) for edge in found])
        shifts = self._evaluated(nudged) - self.expected[[edge.row for edge in found]]
        # 3.
        chosen = self._chosen(found, shifts)
        if not chosen:
            return self.expected, 0
        # 4.
        return self._replaced(chosen)

    def _ratio(self, values: F64) -> F64:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.abs(self.subject - values) / self.sigma, posinf=0.0)

    def _edges(self, rows: npt.NDArray[np.intp]) -> Iterator[_Edge]:
        for row in rows.tolist():
            for factor in (1 + NUDGE, 1 - NUDGE):
                for channels in crossing(self.rule, self.inputs[row], factor):
                    yield _Edge(row=row, channels=channels, factor=factor)

    def _nudged(self, row: int, edges: Sequence[_Edge]) -> F64:
        values: F64 = self.inputs[row].copy()
        for edge in edges:
            values[edge.channels] *= edge.factor
        return values

    def _evaluated(self, inputs: F64) -> F64:
        """Return the stage of inputs [n, in] that are each a row of their own: [n, out]."""
        alone = inputs[:, None] if self.key[1] == "lm_head" else inputs
        found = self.replayer.evaluate(self.key, {self.role: Known(value=alone)}, (self.rule,))
        return np.asarray(found.values[0])

    def _chosen(self, edges: Sequence[_Edge], shifts: F64) -> dict[int, list[_Edge]]:
        """Return, for each row, the values whose shifts together are what is left of it."""
        chosen: dict[int, list[_Edge]] = {}
        for row in dict.fromkeys(edge.row for edge in edges):
            left = (self.subject[row] - self.expected[row]) / self.sigma[row]
            used = np.isfinite(left)
            made = (shifts / self.sigma[row])[:, used]
            own = _different([at for at, edge in enumerate(edges) if edge.row == row], made)
            shares, *_ = np.linalg.lstsq(made[own].T, left[used], rcond=None)
            whole = [edges[at] for at, share in zip(own, shares.tolist(), strict=True) if share > 0.5]
            if whole:
                chosen[row] = whole
        return chosen

    def _replaced(self, chosen: dict[int, list[_Edge]]) -> tuple[F64, int]:
        found = self._evaluated(np.stack([self._nudged(row, edges) for row, edges in chosen.items()]))
        moved, count = self.expected.copy(), 0
        for (row, edges), values in zip(chosen.items(), found, strict=True):
            ratio = np.abs(self.subject[row] - values) / self.sigma[row]
            if np.mean(ratio <= LIMIT) >= EXPLAINED_SHARE:
                moved[row] = values
                count += len(edges)
        return moved, count


def _different(candidates: Sequence[int], shifts: F64) -> list[int]:
    """Return the candidates without those that shift a row as an earlier one does, or not at all."""
    kept: list[int] = []
    for at in candidates:
        size = np.linalg.norm(shifts[at])
        same = (np.linalg.norm(shifts[at] - shifts[other]) < _SAME * size for other in kept)
        if size > 0 and not any(same):
            kept.append(at)
    return kept


_SAME = 1e-3
"""Two shifts that differ by less than this share of their size are one."""


def crossing(rule: Rule, values: F64, factor: float) -> Iterator[list[int]]:
    """Yield the channels of ``values`` [in] that change what a block holds when multiplied with ``factor``.

    That is one channel that falls on another step; or those of the largest value of a block, which set its
    scale, where the scale is kept as f16 and lies between two f16 numbers, or its block sum does.
    """
    for part in dict.fromkeys(each for _, each in rule.parts) if rule.parts else (rule,):
        if part.block > 1:
            yield from _crossing(part, values, factor)


def _crossing(rule: Rule, values: F64, factor: float) -> Iterator[list[int]]:
    size = np.abs(quantise.blocks_of(values, rule.block))
    largest = size == size.max(axis=-1, keepdims=True)

    def changed(chosen: npt.NDArray[np.bool_]) -> tuple[F64, npt.NDArray[np.bool_]]:
        flat = chosen.reshape(-1)[: len(values)]
        nudged = np.where(flat, values * factor, values)
        moved = quantise.blocks_of(np.abs(rule.left(nudged) - rule.left(values)), rule.block)
        return nudged, chosen & (moved > _STEP * size.max(axis=-1, keepdims=True))

    _, stepped = changed(~largest)
    yield from ([channel] for channel in np.flatnonzero(stepped.reshape(-1)[: len(values)]).tolist())
    nudged, scaled = changed(largest)
    blocks = scaled.any(axis=-1)
    if rule.block_sums:
        blocks |= quantise.q8_1_block_sums(nudged) != quantise.q8_1_block_sums(values)
    for block in np.flatnonzero(blocks).tolist():
        yield (block * rule.block + np.flatnonzero(largest[block])).tolist()
