"""Weights first: is each of the subject's tensors the oracle's, up to what its number format costs?

Two tensors are compared block by block (32 values, as the formats have them). A block of a plain format may
differ by that format's rounding; a quantised one by one step of its own grid, computed from the range of the
oracle's block. A fault in one row or one head then shows, wherever the rest of the tensor is right.

A runtime may import a file into a format of its own, and hold in f32 what came in Q8_0. Where that file is
known, the oracle's tensor is compared with the file's, by the file's number format, and the file's with what
the runtime made of it, by the runtime's: what quantising costs is allowed once, where it was paid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.format_costs import (
    ALLOWED_STEPS,
    HALF,
    PLAIN_ROUNDING,
    STEPS,
    allowed_cost,
    blocked,
    cast_cost,
)
from apr_falsify.compare.quantised_tensors import excess, is_quantised
from apr_falsify.compare.rescaled_channels import FED_BY, factors, is_undone
from apr_falsify.compare.systematic import GroupSums, sums_of, systematic
from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.names import ROLES
from apr_falsify.model.shape import EXPERT_ROLES
from apr_falsify.model.stages import Key

F64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]

BLOCK = 32
_ROWS = 1 << 20


ONE_GRID: Mapping[str, int] = {"apr_q8": 127, "apr_q4": 7}
"""Format -> steps of its grid from 0 to the largest value of the whole tensor: ``apr_q8`` has one scale, and
blocks of ``apr_q4`` may run over the ends of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a tensor differs beyond what its format costs.

    Attributes:
        blocks: blocks that differ by more than is allowed.
        total: all blocks.
        rows: rows with such a block.
        rel_l2: relative L2 of the whole tensor's difference.
        systematic: what is wrong with all of a quantised tensor where no block shows it, in words.

    """

    blocks: int
    total: int
    rows: int
    rel_l2: float
    systematic: str = ""


def weights_findings(
    oracle: Weights, subject: Weights, layers: Sequence[int], attempts: Attempts = LOUD
) -> list[Finding]:
    """Return a finding for each of the subject's tensors that is not the oracle's.

    Args:
        oracle: the oracle's weights.
        subject: the subject's own.
        layers: the layers to compare; whole-model tensors are compared too.
        attempts: notes the tensors whose comparison breaks down.

    """
    places: list[tuple[str, int | None]] = [
        (each, layer)
        for layer in layers
        for role, row in ROLES.items()
        if row.is_of_a_layer
        for each in _tensors_in(role, oracle)
    ]
    places += [(role, None) for role, row in ROLES.items() if not row.is_of_a_layer]
    return [
        finding
        for role, layer in places
        for finding in attempts.needing(f"the comparison of the tensor {role}", _key(role, layer)).made(
            partial(_findings, oracle, subject, role, layer), []
        )
    ]


def _findings(oracle: Weights, subject: Weights, role: str, layer: int | None) -> list[Finding]:
    pairs = _pairs(oracle, subject, role, layer)
    return [finding for pair in pairs if (finding := _finding(pair, role, layer)) is not None]


def _key(role: str, layer: int | None) -> Key:
    """Return the (first) stage that uses a tensor."""
    stage = ROLES[role.partition(".")[0]].stage
    return Key(0 if stage == "embedding" else layer, stage)


_CONVERTED = "look at how the subject's file was converted"
_UNKNOWN_SOURCE = f"{_CONVERTED}; if it was imported from a quantised file, name that one as the subject"
_IMPORTED = "look at how the runtime imports the subject's file"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two files of which the second should hold what the first does.

    Attributes:
        ours: the weights that are right.
        theirs: those in question.
        first: what to call the first.
        second: what to call the second.
        kind: the number format whose cost is allowed, ``None`` for that of the second's tensor.
        known: what else is known of a tensor that differs.
        advice: where to look then.

    """

    ours: Weights
    theirs: Weights
    first: str = "the oracle"
    second: str = "the subject"
    kind: str | None = None
    known: str = ""
    advice: str = _CONVERTED


def _pairs(oracle: Weights, subject: Weights, role: str, layer: int | None) -> tuple[_Pair, ...]:
    """Return which files to compare in a tensor: one step, or two where it was imported with changes."""
    direct = _Pair(ours=oracle, theirs=subject)
    source = subject.imported_from
    before = None if source is None else source.find(role, layer)
    if source is None or before is None:
        return (direct,)
    after, name = subject.find(role, layer), source.where.name
    known_oracle = oracle.where == source.where
    if after is not None and _copied(before, after):  # plain values are soon read: the subject's, then
        kept = replace(direct, second=name, kind=before.type, known="; its import left it as it was")
        return () if known_oracle else (kept,)
    changed = replace(direct, known=f"; the import of {name} changed it", advice=_IMPORTED)
    if after is not None and after.type == before.type:  # its format's cost is allowed once
        return (changed,)
    imported = replace(changed, ours=source, first=name)
    return (imported,) if known_oracle else (replace(direct, theirs=source, second=name), imported)


def _tensors_in(role: str, weights: Weights) -> list[str]:
    """Return the roles of single tensors: one per expert, where the role is an expert's."""
    return [f"{role}.{e}" for e in range(weights.geometry.experts)] if role in EXPERT_ROLES else [role]


def _finding(pair: _Pair, role: str, layer: int | None) -> Finding | None:
    if any(role.partition(".")[0] not in weights.names for weights in (pair.ours, pair.theirs)):
        return None
    ours, theirs = pair.ours.find(role, layer), pair.theirs.find(role, layer)
    if ours is None and theirs is None:
        return None
    place = f"{role} of layer {layer}" if layer is not None else role
    if ours is None or theirs is None:
        side = pair.first if ours is None else pair.second
        return _weights_finding(pair, role, layer, f"{side} has no tensor {place}", math.inf)
    if ours.shape != theirs.shape:
        shapes = f"{list(theirs.shape)}, {pair.first}'s {list(ours.shape)}"
        return _weights_finding(
            pair, role, layer, f"{pair.second}'s {place} has the shape {shapes}", math.inf
        )
    kind = pair.kind or theirs.type
    if kind == theirs.type and is_quantised(theirs) and len(theirs.shape) == 2:
        return _quantised_finding(pair, role, layer, place)
    found = difference(ours, theirs, kind)
    if not (found.blocks or found.systematic):
        return None
    if role in FED_BY.values() and is_undone(pair.ours, pair.theirs, role, layer):
        return None
    told = found.systematic or (
        f"{found.blocks} of {found.total} blocks in {found.rows} of {_count(ours)} rows differ by more than "
        f"{kind} costs"
    )
    told = (
        f"{pair.second}'s {place} ({kind}) is not {pair.first}'s ({ours.type}): {told}, "
        f"relative L2 {found.rel_l2:.1e}"
    )
    if kind in PLAIN_ROUNDING and found.blocks == found.total and pair.theirs.imported_from is None:
        pair = replace(pair, advice=_UNKNOWN_SOURCE)
    return _weights_finding(pair, role, layer, told, found.rel_l2)


def _quantised_finding(pair: _Pair, role: str, layer: int | None, place: str) -> Finding | None:
    """Return what is wrong with a tensor of a quantised checkpoint, and the mistake that explains it."""
    ours, theirs = pair.ours.tensor(role, layer), pair.theirs.tensor(role, layer)
    found = excess(ours, theirs, *factors(pair.ours, pair.theirs, role, layer))
    if not found.rows and found.misread is None:
        return None
    told = (
        f"{pair.second}'s {place} ({theirs.type}) is not {pair.first}'s ({ours.type}): {found.rows} of "
        f"{found.total} rows differ by more than {theirs.type} costs, relative L2 {found.rel_l2:.1e}"
    )
    one = found.misread
    if one is None:
        return _weights_finding(pair, role, layer, told, found.rel_l2)
    after = f"; {one.instead}" if one.instead else ""
    told += f"; the file holds it otherwise: {one.says} fits (relative L2 {found.left:.1e}){after}"
    return _weights_finding(pair, role, layer, told, found.rel_l2, cause=(one.name, one.says))


def _weights_finding(
    pair: _Pair,
    role: str,
    layer: int | None,
    told: str,
    size: float,
    cause: tuple[str, str] | None = None,
) -> Finding:
    place, stage = _key(role, layer)
    return Finding(
        type=FindingType.WEIGHTS,
        layer=place,
        stages=(stage,),
        size=size,
        explanation=told + pair.known,
        advice=pair.advice,
        cause=cause,
    )


def difference(oracle: Tensor, subject: Tensor, kind: str | None = None) -> Difference:
    """Compare two tensors of one shape, block by block.

    Args:
        oracle: what is right.
        subject: the one in question.
        kind: the number format whose cost is allowed, where it is not the one of ``subject``.

    """
    kind = kind or subject.type
    width = oracle.shape[-1]
    count, step = _count(oracle), _step(oracle)
    if all(_agree(ours, theirs) for ours, theirs in _chunks(oracle, subject)):
        return Difference(blocks=0, total=count * -(-width // BLOCK), rows=0, rel_l2=0.0)
    blocks = total = rows = 0
    squares = energy = 0.0
    grid = _common_grid(oracle, kind, range(0, count, step))
    parts: list[GroupSums] = []
    for chunks in _chunks(oracle, subject):
        ours, theirs = (values.astype(np.float64) for values in chunks)
        wrong = _wrong_blocks(ours, theirs, oracle.type, kind, grid)
        blocks, total, rows = (
            blocks + int(wrong.sum()),
            total + wrong.size,
            rows + int(wrong.any(axis=-1).sum()),
        )
        squares += float(np.sum(np.square(theirs - ours)))
        energy += float(np.sum(np.square(ours)))
        if kind in STEPS and not blocks:
            parts.append(_sums(ours, theirs, kind))
    rel_l2 = math.sqrt(squares / energy) if energy else (0.0 if squares == 0 else math.inf)
    told = "" if blocks else systematic(parts, again=_quantised_again(oracle.type, kind))
    return Difference(blocks=blocks, total=total, rows=rows, rel_l2=rel_l2, systematic=told)


def _quantised_again(first: str, second: str) -> bool:
    """Whether a block format's values were put on the grid of another, which is not much coarser."""
    return first in STEPS and first != second and STEPS[first] <= 4 * STEPS.get(second, 0)


def _sums(ours: F64, theirs: F64, kind: str) -> GroupSums:
    blocks = blocked(ours, BLOCK)
    return sums_of(blocks, blocked(theirs, BLOCK), allowed_cost(ours, blocks, kind) / ALLOWED_STEPS)


def _count(tensor: Tensor) -> int:
    return tensor.shape[0] if len(tensor.shape) > 1 else 1


def _step(tensor: Tensor) -> int:
    return max(1, _ROWS // tensor.shape[-1])


def _chunks(ours: Tensor, theirs: Tensor) -> Iterator[tuple[Rows, Rows]]:
    """Yield both tensors of one shape by the same rows."""
    step = _step(ours)
    for start in range(0, _count(ours), step):
        stop = min(_count(ours), start + step)
        yield _rows_of(ours, start, stop), _rows_of(theirs, start, stop)


def _agree(ours: Rows, theirs: Rows) -> bool:
    """Whether both hold the same finite values: most do, and this is soon seen."""
    return bool(np.array_equal(ours, theirs) and np.isfinite(ours).all())


def _copied(before: Tensor, after: Tensor) -> bool:
    """Whether the values of one tensor are those of the other, NaN included."""
    return before.shape == after.shape and all(
        np.array_equal(ours, theirs, equal_nan=True) for ours, theirs in _chunks(before, after)
    )


def _common_grid(oracle: Tensor, kind: str, starts: range) -> float:
    """Return the step of the one grid on which a tensor lies whole, 0 for formats of blocks."""
    if kind not in ONE_GRID:
        return 0.0
    largest = (np.max(np.abs(_rows_of(oracle, start, start + starts.step))) for start in starts)
    return max(map(float, largest)) / ONE_GRID[kind]


def _rows_of(tensor: Tensor, start: int, stop: int) -> Rows:
    if len(tensor.shape) > 1:
        return tensor.rows(start, stop)
    return tensor.rows(0, tensor.shape[0])[None]


def _wrong_blocks(
    ours: F64, theirs: F64, our_type: str, their_type: str, grid: float
) -> npt.NDArray[np.bool_]:
    """Return which blocks [rows, blocks] differ by more than both formats cost."""
    a, b = blocked(ours, BLOCK), blocked(theirs, BLOCK)
    if their_type in HALF and our_type in PLAIN_ROUNDING:
        allowed = cast_cost(a, their_type)
    else:
        # What the oracle's own format cost is no allowance: its dequantised values are what it runs.
        allowed = np.asarray(grid * ALLOWED_STEPS or allowed_cost(ours, a, their_type)[..., None])
        if our_type in PLAIN_ROUNDING:
            allowed = allowed + allowed_cost(ours, a, our_type)[..., None]
    with np.errstate(invalid="ignore"):
        right = np.abs(b - a) <= allowed  # a NaN is no agreement
    return np.asarray(~right.all(axis=-1))
