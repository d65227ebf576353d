"""The plots: where each mark stands. Across in percent, so that text keeps its size at every width.

A mark's place across is a share of the plot's width, its place down is in CSS pixels. Nothing is scaled, so
that 12 px of text are 12 px on a telephone and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from apr_falsify.evidence.page.view import PageRow, PageView, RowState
from apr_falsify.evidence.page.words import place

ROW = 22
"""Height of a stage's line, CSS pixels."""

TOP = 24
"""Height of the axis above the first line."""

ZERO, FIRST, LAST = 3.0, 14.0, 98.0
"""Across: where zero stands, where the logarithmic part begins and ends."""

INFINITE, LAST_BEFORE_INFINITE = 96.0, 86.0
"""Where what is not finite stands, and where the logarithmic part ends if there is any such."""

_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotMark:
    """One mark of a line: ``kind`` is what it stands for (``a``, ``i``, ``r``), ``x`` is in percent."""

    kind: str
    x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotLine:
    """One stage of a dot plot.

    Attributes:
        row: the stage.
        label: its name.
        y: the middle of its line.
        marks: what was measured.
        floor: where its floor ends, ``None`` where it has none.
        note: what stands there instead of marks.

    """

    row: PageRow
    label: str
    y: int
    marks: tuple[PlotMark, ...]
    floor: float | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DotPlot:
    """A dot plot of some stages, on a logarithmic axis with a place for zero and one for what is not finite.

    Attributes:
        ident: tells its parts from those of another plot on the page.
        gutter: width of the labels in CSS pixels.
        caption: what it shows.
        describes: the same for those who cannot see it.
        lines: its stages, top down.
        ticks: place across and decade of each tick.
        height: in CSS pixels.
        infinite: whether anything is not finite.

    """

    ident: str
    gutter: int
    caption: str
    describes: str
    lines: tuple[PlotLine, ...]
    ticks: tuple[tuple[float, int], ...]
    height: int
    infinite: bool


_NOTES = {RowState.ABSENT: "missing on one side", RowState.UNMEASURED: "could not be replayed"}


def dot_plot(ident: str, rows: Sequence[PageRow], caption: str, *, layers: bool = False) -> DotPlot:
    """Return the plot of ``rows``; ``layers`` tells each stage's layer beside its name."""
    scale = _Scale.over(rows)
    lines = tuple(
        PlotLine(
            row=row,
            label=_label(row.stage) + (f" {row.layer}" if layers and row.layer is not None else ""),
            y=TOP + ROW * index + ROW // 2,
            marks=tuple(_marks(row, scale)),
            floor=None if row.floor is None or row.floor <= 0 else scale.across(row.floor),
            note=_NOTES.get(row.state, "") if row.accumulated is None or not row.replayed else "",
        )
        for index, row in enumerate(rows)
    )
    return DotPlot(
        ident=ident,
        gutter=184 if layers else 160,
        caption=caption,
        describes=_described(rows),
        lines=lines,
        ticks=scale.ticks(),
        height=TOP + ROW * len(rows) + 6,
        infinite=scale.last == LAST_BEFORE_INFINITE,
    )


_LONGEST_LABEL = 18


def _label(name: str) -> str:
    """Return a stage's name as it fits beside a plot; the longest of the table is just that long."""
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    low: int
    high: int
    last: float

    @classmethod
    def over(cls, rows: Sequence[PageRow]) -> _Scale:
        values = [math.log10(value) for row in rows for value in _values(row) if value]
        return cls(
            low=min(-8, math.floor(min(values, default=-8))),
            high=max(0, math.ceil(max(values, default=0))),
            last=LAST_BEFORE_INFINITE if any(_unbounded(row) for row in rows) else LAST,
        )

    def across(self, value: float | None) -> float:
        if value is None:
            return INFINITE
        if value == 0:
            return ZERO
        return self._at(math.log10(value))

    def _at(self, exponent: float) -> float:
        share = (exponent - self.low) / (self.high - self.low)
        return round(FIRST + share * (self.last - FIRST), 2)

    def ticks(self) -> tuple[tuple[float, int], ...]:
        step = max(1, math.ceil((self.high - self.low) / _TICKS))
        decades = range(self.low + (-self.low) % step, self.high + 1, step)
        return tuple((self._at(decade), decade) for decade in decades)


def _unbounded(row: PageRow) -> bool:
    accumulated = row.accumulated is not None and row.accumulated.rel_l2 is None
    introduced = row.introduced is not None and None in (row.introduced.rel_l2, row.residual)
    return accumulated or introduced or row.nonfinite[2] > 0


def _values(row: PageRow) -> Iterator[float]:
    for value in (
        None if row.accumulated is None else row.accumulated.rel_l2,
        None if row.introduced is None else row.introduced.rel_l2,
        row.residual,
        row.floor,
    ):
        if value is not None:
            yield value


def _marks(row: PageRow, scale: _Scale) -> Iterator[PlotMark]:
    if row.accumulated is not None:
        yield PlotMark(kind="a", x=scale.across(row.accumulated.rel_l2))
    if row.introduced is not None:
        yield PlotMark(kind="i", x=scale.across(row.introduced.rel_l2))
        yield PlotMark(kind="r", x=scale.across(row.residual))
    if row.nonfinite[2] and row.state is RowState.SOURCE:
        yield PlotMark(kind="r", x=INFINITE)


def _described(rows: Sequence[PageRow]) -> str:
    wrong = [row for row in rows if row.state is RowState.SOURCE]
    weights = [place(row.key) for row in wrong if row.excess is not None and row.excess <= 1]
    above = [place(row.key) for row in wrong if row.excess is None or row.excess > 1]
    inherit = sum(row.state is RowState.INHERITS for row in rows)
    told = [f"above its floor: {_listed(above)}"] if above else []
    told += [f"computed rightly, from a wrong weight: {_listed(weights)}"] if weights else []
    told += [f"{inherit} inherit an error"] if inherit else []
    said = "; ".join(told) or "none is above its floor, none inherits an error"
    return f"{len(rows)} stages; {said}. The table of stages has every figure."


def _listed(places: list[str]) -> str:
    return ", ".join(places[:_MOST_LISTED]) + (", ..." if len(places) > _MOST_LISTED else "")


_MOST_LISTED = 6


GLYPHS = {
    RowState.SOURCE: "gs",
    RowState.INHERITS: "gi",
    RowState.RIGHT: "gr",
    RowState.LAYOUT: "gl",
    RowState.UNMEASURED: "gu",
    RowState.ABSENT: "gx",
}
"""State -> the glyph of the overview; their shapes differ, not only their colours."""

OVERVIEW_LAYERS = 32
"""How many layers stand side by side: more would be narrower than a glyph at 400 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Every stage of some layers: stages down, layers across.

    Attributes:
        ident: tells its parts from those of another plot on the page.
        layers: the layers.
        stages: name and place down of each line.
        cells: glyph and place of each stage.
        ticks: place across and layer of the labels.
        height: in CSS pixels.
        describes: the same for those who cannot see it.

    """

    ident: str
    layers: tuple[int, ...]
    stages: tuple[tuple[str, int], ...]
    cells: tuple[tuple[str, float, int], ...]
    ticks: tuple[tuple[float, int], ...]
    height: int
    describes: str


_STEP = 17


def overviews(view: PageView) -> list[Overview]:
    """Return the overview, in as many parts as the layers need; none for a single layer."""
    if len(view.layers) < 2:
        return []
    starts = range(0, len(view.layers), OVERVIEW_LAYERS)
    parts = [view.layers[start : start + OVERVIEW_LAYERS] for start in starts]
    return [_overview(f"o{index}", view, layers) for index, layers in enumerate(parts)]


def _overview(ident: str, view: PageView, layers: tuple[int, ...]) -> Overview:
    rows = [row for row in view.rows if row.layer in layers]
    names = list(dict.fromkeys(row.stage for row in view.rows if row.layer is not None))
    down = {name: TOP + _STEP * index + _STEP // 2 for index, name in enumerate(names)}
    across = {layer: round(100 * (index + 0.5) / len(layers), 2) for index, layer in enumerate(layers)}
    every = max(1, math.ceil(len(layers) / 8))
    return Overview(
        ident=ident,
        layers=layers,
        stages=tuple((_label(name), y) for name, y in down.items()),
        cells=tuple(
            (GLYPHS[row.state], across[row.layer], down[row.stage]) for row in rows if row.layer is not None
        ),
        ticks=tuple((across[layer], layer) for layer in layers[::every]),
        height=TOP + _STEP * len(names) + 4,
        describes=_described(rows),
    )


def nearest_to_floor(rows: Iterable[PageRow]) -> list[PageRow]:
    """Return, for each stage, the row that comes nearest to its floor over all layers, in forward order."""
    best: dict[str, PageRow] = {}
    for row in rows:
        known = best.get(row.stage)
        if known is None or _rank(row) > _rank(known):
            best[row.stage] = row
    return list(best.values())


def _rank(row: PageRow) -> tuple[bool, float]:
    return row.state is RowState.SOURCE, -1.0 if row.excess is None else row.excess
