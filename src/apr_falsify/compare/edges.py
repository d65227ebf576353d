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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attention_edges import EdgeStage, mix_on_the_other_side, scores_on_the_other_side
from apr_falsify.compare.crossing import NUDGE, of_rule
from apr_falsify.compare.excess import EXPLAINED_SHARE
from apr_falsify.compare.grain_edges import grained_operands, grains_on_the_other_side
from apr_falsify.compare.replay import Replayer, is_mixed
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.roundoff import LIMIT, Known
from apr_falsify.operators.table import products_in

F64 = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]

_MOST = 256
"""Values on an edge that are tried at most: 1,024 tokens at the width of a 7B model have some 50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """A value on an edge: row of the stage, channels of its input, and the share by which it is moved across.

    More than one channel only where several values of one block are the largest and set its scale.
    """

    row: int
    channels: list[int]
    share: float


def on_the_other_side(
    replayer: Replayer,
    key: Key,
    rule: Rule,
    subject: Stored,
    expected: F64,
    sigma: F64,
    shaped: Callable[[F64], F64],
) -> tuple[F64, int]:
    """Return ``expected`` with those values across their edge that the subject has there, and how many.

    Args:
        replayer: replays the subject's trace.
        key: the stage.
        rule: the arithmetic under which ``expected`` was replayed.
        subject: the captured stage.
        expected: its replay, same shape.
        sigma: the rounding of the replay, same shape.
        shaped: brings what belongs to the whole stage to that shape.

    """
    grained = bool(grained_operands(rule, replayer.operation(key)))
    find = grains_on_the_other_side if grained else _FINDERS.get(replayer.operation(key))
    if (rule.block == 1 and not grained) or find is None or is_mixed(key, replayer.trace.geometry):
        return expected, 0  # what the experts of a mixture multiply last is computed within it, unseen
    inputs = replayer.inputs(key)
    if any(known.sigma is not None for known in inputs.values()):
        return expected, 0  # its input is not to the bit what the runtime had
    if products_in(replayer.span(key)) > 1:
        return expected, 0  # several products in a row: what the later ones multiply is computed, unseen
    stage = EdgeStage(subject=subject.astype(np.float64), expected=expected, sigma=sigma, shaped=shaped)
    return find(stage, replayer, key, inputs, rule)


def _rows(
    stage: EdgeStage, replayer: Replayer, key: Key, inputs: Mapping[str, Known], rule: Rule
) -> tuple[F64, int]:
    ((role, known),) = inputs.items()
    expected = stage.expected
    wide = (-1, expected.shape[-1])
    rows = _Rows(
        replayer=replayer,
        key=key,
        rule=rule,
        role=role,
        inputs=known.value[len(known.value) - len(expected.reshape(wide)) :],
        subject=stage.subject.reshape(wide),
        expected=expected.reshape(wide),
        sigma=stage.sigma.reshape(wide),
    )
    moved, count = rows.moved()
    return moved.reshape(expected.shape), count


def _scores(
    stage: EdgeStage, replayer: Replayer, key: Key, inputs: Mapping[str, Known], rule: Rule
) -> tuple[F64, int]:
    values = {role: known.value for role, known in inputs.items()}
    operands = replayer.operands(key.layer)
    if key.stage == "attn_scores_uncapped":
        operands = replace(operands, geometry=replace(operands.geometry, attn_softcap=None))
    return scores_on_the_other_side(stage, operands, values, rule)


def _mix(
    stage: EdgeStage, replayer: Replayer, key: Key, inputs: Mapping[str, Known], rule: Rule
) -> tuple[F64, int]:
    values = {role: known.value for role, known in inputs.items()}
    return mix_on_the_other_side(stage, replayer.operands(key.layer), values, rule)


_FINDERS = {Operation.PROJECTION: _rows, Operation.SCORES: _scores, Operation.MIX: _mix}


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
        values = self.inputs[rows]
        for at, channels, side in of_rule(self.rule, values, values * NUDGE):
            yield _Edge(row=int(rows[at]), channels=channels, share=side * NUDGE)

    def _nudged(self, row: int, edges: Sequence[_Edge]) -> F64:
        values: F64 = self.inputs[row].copy()
        for edge in edges:
            values[edge.channels] *= 1 + edge.share
        return values

    def _evaluated(self, inputs: F64) -> F64:
        """Return the stage of inputs [n, in] that are each a row of their own: [n, out]."""
        alone = inputs[:, None] if "tokens" not in STAGES[self.key.stage].axes else inputs
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
