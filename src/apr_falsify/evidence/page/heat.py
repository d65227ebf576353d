"""Where within a stage the error sits: per head (or group of channels) and token.

A cell's figure is |d| / |r| over its values: r is what the stage should have been, replayed from the
subject's own inputs where it can be, else the reference's; d is the subject's difference from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.axes import axes_of
from apr_falsify.compare.bisection import FindingType
from apr_falsify.compare.findings import NO_DIVERGENCE
from apr_falsify.compare.judge import comparable, replayer_of
from apr_falsify.compare.layout import aligned
from apr_falsify.compare.read_again import read_again
from apr_falsify.compare.replay import Missing
from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.page.view import Found, PageView
from apr_falsify.evidence.page.words import figure, joined, ranges
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]

LEVELS: tuple[tuple[float, str], ...] = (
    (1e-4, "below 0.01 %"),
    (1e-3, "below 0.1 %"),
    (1e-2, "below 1 %"),
    (1e-1, "below 10 %"),
    (1.0, "below 100 %"),
    (math.inf, "100 % and more"),
)
"""Upper bound of each level's error, and its name; level 0 is rounding, the last but one above these NaN."""

WITHIN, NOT_FINITE = 0, len(LEVELS) + 1
MOST_LINES = MOST_COLUMNS = 64
CHANNEL_GROUPS = 16
MOST_MAPS = 3
CELL, NARROW_CELL = 24, 13
"""Height of a line with and without figures in its cells, CSS pixels."""

MOST_TOLD = 8
"""Columns up to which each cell has room for its figure at 400 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell, or several alike side by side: place and width in percent."""

    x: float
    width: float
    level: int
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """The error of one stage over its heads and tokens.

    Attributes:
        ident: tells its parts from those of another plot on the page.
        key: the stage.
        also: further layers in which the same stage is a source, in words; empty for none.
        against: what it is compared with, in words.
        remark: what that leaves open, empty for nothing.
        lines: label, place down, and cells of each line.
        columns: place across and label of each token or group of tokens.
        across: what the columns are.
        cell: height of a line in CSS pixels.
        height: of the whole, in CSS pixels.
        gutter: width of the labels, one of 80, 120 and 160 CSS pixels.
        worst: where the error is greatest, in words.
        levels: the levels that occur.

    """

    ident: str
    key: Key
    also: str
    against: str
    remark: str
    lines: tuple[tuple[str, int, tuple[Cell, ...]], ...]
    columns: tuple[tuple[float, str], ...]
    across: str
    cell: int
    height: int
    gutter: int
    worst: str
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """A stage and what it should have been, canonical shapes; ``over``: what no rounding explains."""

    expected: F64
    subject: F64
    over: npt.NDArray[np.bool_]
    against: str
    remark: str = ""


def heat_maps(
    view: PageView,
    oracle: Trace,
    subject: Trace,
    weights: Weights | None,
    arithmetic: str | None = None,
    attempts: Attempts = LOUD,
) -> list[HeatMap]:
    """Return a map for each stage that is a source, the first layer of each; at most :data:`MOST_MAPS`.

    Args:
        view: the bisection.
        oracle: the reference's trace.
        subject: the subject's.
        weights: what the subject was replayed with, ``None`` where they are not at hand.
        arithmetic: what the user states of the subject's arithmetic.
        attempts: notes the maps that break down.

    """
    groups: dict[tuple[str, ...], list[Found]] = {}
    for source in view.sources:
        if source.stages:
            groups.setdefault(source.stages, []).append(source)
    # In a layout that nobody declares, the inputs of a replay would be read in the wrong order.
    declared = not any(found.type is FindingType.LAYOUT for found in view.findings)
    held = read_again(subject, weights, view.findings)
    subject, weights = held.trace, held.weights
    maps: list[HeatMap] = []
    for first, *more in list(groups.values())[:MOST_MAPS]:
        key = Key(first.layer, first.stages[-1])
        with attempts.trying("the heat map", key):
            found = None
            if declared and first.type is FindingType.SOURCE:
                replayed = partial(_introduced, key, subject, weights, arithmetic)
                found = attempts.trying("the replay for the heat map", key).made(replayed, None)
            found = found or _accumulated(key, oracle, subject)
            if found is not None:
                also = ranges(each.layer for each in more if each.layer is not None) if more else ""
                maps.append(_map(f"h{len(maps)}", key, also, found, subject))
    return maps


def _introduced(key: Key, trace: Trace, weights: Weights | None, arithmetic: str | None) -> _Compared | None:
    """Compare a stage with its replay, ``None`` where it cannot be replayed with what is at hand."""
    if key not in trace.stages:
        return None
    with np.errstate(all="ignore"):
        try:
            replayer = replayer_of(trace, weights, arithmetic)
            found = replayer.replay(key, (replayer.expected(key),))
        except AprFalsifyError:
            return None
        subject = replayer.judged(key)
        if isinstance(found, Missing) or subject is None:
            return None
        expected, sigma = comparable(trace, key, subject, found.values[0], found.sigma)
        over = np.abs(subject - expected) > LIMIT * sigma
    return _Compared(
        expected=expected,
        subject=subject,
        over=over,
        against="what it should have been, recomputed from the subject's own inputs",
    )


def _accumulated(key: Key, oracle: Trace, subject: Trace) -> _Compared | None:
    """Compare a stage with the reference's; ``None`` where a side lacks it or the shapes differ."""
    if key not in oracle.stages or key not in subject.stages:
        return None
    try:
        sides = oracle.stages[key], subject.stages[key]
        pair = aligned(key, *sides, oracle.geometry, oracle.passes, subject.passes)
    except AprFalsifyError:
        return None
    expected, found = pair.oracle.astype(np.float64), pair.subject.astype(np.float64)
    if expected.shape != found.shape:
        return None
    if len(pair.axes.names) < len(STAGES[key.stage].axes):  # the last token alone
        expected, found = expected[..., None, :], found[..., None, :]
    with np.errstate(all="ignore"):
        over = np.abs(found - expected) > NO_DIVERGENCE * np.abs(expected)
    return _Compared(
        expected=expected,
        subject=found,
        over=over,
        against="the reference's",
        remark="An error that it inherits is in it too.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Sums per line and token: energies of difference and reference, counts of what stands out."""

    lines: tuple[str, ...]
    difference: F64
    reference: F64
    over: F64
    broken: F64


def _grid(name: str, found: _Compared, trace: Trace) -> _Grid:
    with np.errstate(all="ignore"):
        finite = np.isfinite(found.expected) & np.isfinite(found.subject)
        alike = (
            finite | (np.isnan(found.expected) & np.isnan(found.subject)) | (found.expected == found.subject)
        )
        difference = np.square(np.where(finite, found.subject - found.expected, 0.0))
        reference = np.square(np.where(finite, found.expected, 0.0))
    planes = np.stack([difference, reference, found.over & finite, ~alike]).astype(np.float64)
    lines, table = _folded(name, planes, trace)
    return _Grid(lines=lines, difference=table[0], reference=table[1], over=table[2], broken=table[3])


def _folded(name: str, planes: F64, trace: Trace) -> tuple[tuple[str, ...], F64]:
    """Sum planes [4, *canonical] over what a cell holds: [4, lines, tokens]."""
    axes = axes_of(name, trace.geometry)
    if planes.ndim == 4:  # [4, heads, tokens, keys]
        return tuple(f"head {head}" for head in range(planes.shape[1])), planes.sum(axis=-1)
    flat = planes.reshape(4, -1, planes.shape[-1])  # [4, tokens, channels]; without a token axis, one
    width = flat.shape[-1]
    if axes.head_dim is not None and width == axes.head_dim * len(axes.heads):
        return axes.heads, flat.reshape(4, flat.shape[1], -1, axes.head_dim).sum(axis=-1).swapaxes(1, 2)
    starts = np.unique(np.linspace(0, width, min(CHANNEL_GROUPS, width), endpoint=False).astype(int))
    ends = [*starts[1:], width]
    names = tuple(f"{axes.names[-1][:2]} {a} to {b - 1}" for a, b in zip(starts, ends, strict=True))
    return names, np.add.reduceat(flat, starts, axis=-1).swapaxes(1, 2)


def _map(ident: str, key: Key, also: str, found: _Compared, trace: Trace) -> HeatMap:
    grid = _narrowed(_grid(key.stage, found, trace))
    with np.errstate(all="ignore"):
        errors = np.where(grid.difference == 0, 0.0, np.sqrt(grid.difference / grid.reference))
    levels = _levels(grid, errors)
    count = errors.shape[1]
    cell = CELL if count <= MOST_TOLD else NARROW_CELL
    lines = tuple(
        (label, TOP + cell * index, _cells(errors[index], levels[index], told=count <= MOST_TOLD))
        for index, label in enumerate(grid.lines)
    )
    tokens = 1 if count == 1 and len(trace.tokens) > 1 else len(trace.tokens)
    return HeatMap(
        ident=ident,
        key=key,
        also=also,
        against=found.against,
        remark=found.remark,
        lines=lines,
        columns=_columns(count, len(trace.tokens)),
        across="the last token" if tokens != len(trace.tokens) else "tokens, in order",
        cell=cell,
        height=TOP + cell * len(lines) + 4,
        gutter=next(width for width in (80, 120, 160) if width == 160 or _width(grid.lines) < width),
        worst=_worst(grid.lines, errors, levels, len(trace.tokens)),
        levels=tuple(sorted({int(level) for level in levels.flat})),
    )


TOP = 22
_LETTER = 7.4


def _width(labels: Sequence[str]) -> float:
    return _LETTER * max(map(len, labels)) + 8


def _narrowed(grid: _Grid) -> _Grid:
    """Sum neighbours until lines and tokens fit on a page."""
    lines, tokens = grid.difference.shape
    down, across = math.ceil(lines / MOST_LINES), math.ceil(tokens / MOST_COLUMNS)
    if down == across == 1:
        return grid
    rows, columns = np.arange(0, lines, down), np.arange(0, tokens, across)

    def folded(table: F64) -> F64:
        return np.asarray(np.add.reduceat(np.add.reduceat(table, rows, axis=0), columns, axis=1))

    labels = grid.lines[::down]
    return _Grid(
        lines=tuple(f"{label} …" for label in labels) if down > 1 else labels,
        difference=folded(grid.difference),
        reference=folded(grid.reference),
        over=folded(grid.over),
        broken=folded(grid.broken),
    )


def _levels(grid: _Grid, errors: F64) -> npt.NDArray[np.int64]:
    bounds = [bound for bound, _ in LEVELS[:-1]]
    levels = 1 + np.searchsorted(bounds, np.where(np.isfinite(errors), errors, math.inf), side="right")
    levels = np.where(grid.over > 0, levels, WITHIN)
    return np.where(grid.broken > 0, NOT_FINITE, levels)


def _cells(errors: F64, levels: npt.NDArray[np.int64], *, told: bool) -> tuple[Cell, ...]:
    """Return the cells of one line; without figures, neighbours of one level become one."""
    width = 100 / len(levels)
    cells: list[Cell] = []
    for index, (error, level) in enumerate(zip(errors, levels, strict=True)):
        last = cells[-1] if cells else None
        if last is not None and not told and last.level == level:
            cells[-1] = Cell(x=last.x, width=round(last.width + width, 3), level=last.level, told="")
        else:
            words = _cell_text(float(error), int(level)) if told else ""
            cells.append(Cell(x=round(index * width, 3), width=round(width, 3), level=int(level), told=words))
    return tuple(cells)


def _cell_text(error: float, level: int) -> str:
    if level == NOT_FINITE:
        return "NaN"
    if level == WITHIN:
        return "·"
    if not math.isfinite(error):
        return "∞"
    if 0.005 <= error < 9.995:
        return f"{error:.0%}"
    return figure(error, ".0e")


def _columns(count: int, tokens: int) -> tuple[tuple[float, str], ...]:
    if count == 1:
        return ((50.0, str(tokens - 1)),)
    every = max(1, math.ceil(count / 8))
    step = math.ceil(tokens / count)
    return tuple(
        (round(100 * (index + 0.5) / count, 2), str(index * step)) for index in range(0, count, every)
    )


def _worst(lines: Sequence[str], errors: F64, levels: npt.NDArray[np.int64], tokens: int) -> str:
    """Say in words what the colours say."""
    broken = int(np.count_nonzero(levels == NOT_FINITE))
    out = int(np.count_nonzero(levels))
    said = f"{out} of {levels.size} cells hold an error that rounding does not explain"
    if broken:
        said += f", {broken} of them values that are not finite"
    ranked = np.where((levels > WITHIN) & (levels < NOT_FINITE), errors, -1.0)
    line, column = divmod(int(np.argmax(ranked)), ranked.shape[1])
    if ranked[line, column] >= 0:
        step = math.ceil(tokens / levels.shape[1]) if levels.shape[1] > 1 else 1
        token = column * step if levels.shape[1] > 1 else tokens - 1
        said += (
            f"; the greatest is in {lines[line]}, token {token}: {_cell_text(float(ranked[line, column]), 1)}"
        )
    quiet = [label for label, line in zip(lines, levels, strict=True) if not line.any()]
    if quiet and len(quiet) < len(lines):
        shown = (
            joined(quiet[:_MOST_QUIET])
            if len(quiet) <= _MOST_QUIET
            else f"{len(quiet)} of {len(lines)} lines"
        )
        said += f"; nothing is wrong in {shown}"
    return f"{said}."


_MOST_QUIET = 4
