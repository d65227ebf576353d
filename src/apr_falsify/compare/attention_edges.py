"""Values on an edge between two steps in what scores and mix multiply: q, and the cached k and v.

As in ``compare.edges``, nothing is excused but what such values make exactly. A value of q belongs to one row
of the scores, one of k to one column, and one of v to one key of the mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.crossing import crossing, nearness
from apr_falsify.compare.excess import EXPLAINED_SHARE
from apr_falsify.compare.operands import Operands
from apr_falsify.numerics import quantise
from apr_falsify.numerics.operand_rules import Rule
from apr_falsify.operators.heads import values_of
from apr_falsify.operators.roundoff import LIMIT

F64 = npt.NDArray[np.float64]
Beyond = npt.NDArray[np.bool_]
Index = tuple[Any, ...]
Answer = tuple[F64, int]

_MOST = 1024
"""Values on an edge that are tried at most."""

_SWEEPS = 3
"""How often each is tried: where two lie in one row, the second may change the verdict on the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStage:
    """A captured stage and its replay, both in the shape of the stage's last step.

    Attributes:
        subject: as captured.
        expected: as replayed.
        sigma: the rounding of the replay.
        shaped: brings what belongs to the whole stage to the form in which it was captured.

    """

    subject: F64
    expected: F64
    sigma: F64
    shaped: Callable[[F64], F64]

    def beyond(self, values: F64) -> Beyond:
        """Return where the subject is not ``values``, both finite."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(self.subject - values) > LIMIT * self.sigma)

    def nearer(self, moved: F64, count: int) -> Answer:
        """Return ``moved`` where it explains nearly all that the replay does not, else the replay."""
        before, after = self.beyond(self.expected), self.beyond(moved)
        kept = np.count_nonzero(before & after) + np.count_nonzero(~before & after)
        explains = kept <= (1 - EXPLAINED_SHARE) * np.count_nonzero(before)
        return (moved, count) if count and explains else (self.expected, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """A value on an edge.

    Attributes:
        second: whether it is of the second operand, k or v.
        row: its token.
        channels: its channel; more where several values set the scale of their block together.
        shift: how far it is moved, per channel of the operand.

    """

    second: bool
    row: int
    channels: list[int]
    shift: F64

    def moved(self, values: F64) -> F64:
        """Return its row of ``values`` [S, n] with it across the edge: [n]."""
        row: F64 = values[self.row].copy()
        row[self.channels] += self.shift[self.channels]
        return row


def scores_on_the_other_side(
    stage: EdgeStage, operands: Operands, inputs: Mapping[str, F64], rule: Rule
) -> Answer:
    """Return the replayed scores [H, S, S] with those values across their edge that the subject has there."""
    q, k = operands.rotated(inputs, rule)
    beyond = stage.beyond(stage.expected)
    size = quantise.rotation_size(operands.geometry.head_dim) if rule.rotated else None
    edges = [
        *_edges(rule, q, nearness(q, size), np.flatnonzero(beyond.any(axis=(0, 2))), second=False),
        *_edges(rule, k, nearness(k, size), np.flatnonzero(beyond.any(axis=(0, 1))), second=True),
    ]
    if not edges or len(edges) > _MOST:
        return stage.expected, 0
    base = operands.scores(q, k, rule)
    seen = stage.shaped(np.ones_like(base))
    shifts: list[tuple[Index, F64]] = []
    for edge in edges:
        row = edge.moved(k if edge.second else q)[None]
        made = operands.scores(q, row, rule) if edge.second else operands.scores(row, k, rule)
        at: Index = np.s_[:, :, edge.row : edge.row + 1] if edge.second else np.s_[:, edge.row : edge.row + 1]
        shifts.append((at, (made - base[at]) * seen[at]))
    chosen = chosen_shifts(stage, shifts)
    q, k = _across(q, edges, chosen, second=False), _across(k, edges, chosen, second=True)
    moved = np.asarray(stage.expected + stage.shaped(operands.scores(q, k, rule) - base))
    return stage.nearer(moved, len(chosen))


def mix_on_the_other_side(
    stage: EdgeStage, operands: Operands, inputs: Mapping[str, F64], rule: Rule
) -> Answer:
    """Return the replayed mix [S, H * D] with those values of v across their edge that the subject has so."""
    geometry, size = operands.geometry, quantise.ROTATED_BLOCK if rule.rotated else None
    own = values_of(inputs["qkv_bias"], geometry)
    held = own if size is None else quantise.hadamard_rotated(own, size)
    keys = np.arange(len(held)) if stage.beyond(stage.expected).any() else np.arange(0)
    edges = list(_edges(rule, held, nearness(held, size), keys, second=True))
    if not edges or len(edges) > _MOST:
        return stage.expected, 0
    weights, kept = rule.left(inputs["attn_softmax"]), rule.kept or rule.right
    shifts: list[tuple[Index, F64]] = []
    for edge in edges:
        change = kept(edge.moved(held)[None]) - kept(held[edge.row : edge.row + 1])
        shifts.append((np.s_[:, :], _mixed(weights[:, :, edge.row], operands, change, size)))
    chosen = chosen_shifts(stage, shifts)
    moved = stage.expected + sum((shifts[at][1] for at in chosen), np.zeros_like(stage.expected))
    return stage.nearer(moved, len(chosen))


def _mixed(weights: F64, operands: Operands, change: F64, rotated_of: int | None) -> F64:
    """Return what a change of one row of v [1, K * D] makes of the mix, given that key's weights [H, S]."""
    geometry = operands.geometry
    if rotated_of is not None:
        change = (change.reshape(-1, rotated_of) @ quantise.hadamard(rotated_of)).reshape(change.shape)
    heads = np.repeat(change.reshape(geometry.kv_heads, -1), geometry.heads // geometry.kv_heads, axis=0)
    return np.asarray((weights.T[:, :, None] * heads[None]).reshape(weights.shape[1], -1))


def _edges(
    rule: Rule, values: F64, near: F64, rows: npt.NDArray[np.intp], *, second: bool
) -> Iterator[_Edge]:
    kept = (rule.kept or rule.right) if second else rule.left
    sums = rule.block_sums and not second
    for at, channels, side in crossing(kept, values[rows], near[rows], quantise.BLOCK, block_sums=sums):
        row = int(rows[at])
        yield _Edge(second=second, row=row, channels=channels, shift=side * near[row])


def chosen_shifts(stage: EdgeStage, shifts: Sequence[tuple[Index, F64]]) -> list[int]:
    """Return which shifts are in what the replay leaves: each whole or not at all."""
    with np.errstate(invalid="ignore"):
        left = np.nan_to_num((stage.subject - stage.expected) / stage.sigma, posinf=0.0, neginf=0.0)
    chosen: set[int] = set()
    for _ in range(_SWEEPS):
        for at, (index, shift) in enumerate(shifts):
            part = shift / stage.sigma[index]
            energy = float(np.sum(np.square(part)))
            share = float(np.sum(part * left[index])) / energy if energy else 0.0
            if at not in chosen and share > 0.5:
                chosen.add(at)
                left[index] -= part
            elif at in chosen and share < -0.5:
                chosen.discard(at)
                left[index] += part
    return sorted(chosen)


def _across(values: F64, edges: Sequence[_Edge], chosen: Sequence[int], *, second: bool) -> F64:
    moved: F64 = values.copy()
    for edge in (edges[at] for at in chosen if edges[at].second is second):
        moved[edge.row, edge.channels] += edge.shift[edge.channels]
    return moved
