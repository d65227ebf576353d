"""What a page tells of a bisection, section by section."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.unchecked import broken_down
from apr_falsify.evidence.page import published, words
from apr_falsify.evidence.page.heat import heat_maps
from apr_falsify.evidence.page.plots import DotPlot, dot_plot, nearest_to_floor, overviews
from apr_falsify.evidence.page.view import Found, PageRow, PageView, RowState
from apr_falsify.formats.weights import Weights
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.trace import Trace


def sections(
    view: PageView,
    traces: tuple[Trace, Trace] | None,
    weights: Weights | None,
    arithmetic: str | None,
    attempts: Attempts,
) -> dict[str, Any]:
    """Return the values that ``sections.html.j2`` shows, without the figures that break down."""
    focus = _focus(view)
    figures = {
        "overviews": attempts.trying("the overview").made(partial(overviews, view), []),
        "plots": attempts.trying("the dot plots").made(partial(_plots, view, focus), []),
        "heat_maps": [] if traces is None else heat_maps(view, *traces, weights, arithmetic, attempts),
    }
    left_out = [*words.unchecked(view), *broken_down(attempts.noted)]
    return {
        **figures,
        "view": view,
        "compared": sum(row.accumulated is not None for row in view.rows),
        "unchecked": left_out,
        "unchecked_sentence": words.unchecked_sentence(left_out),
        "sides": [("reference", view.oracle), ("subject", view.subject)],
        "side": words.side,
        "groups": _findings(view),
        "answers": published.answers(view),
        "outside": published.outside(view),
        "chains": _chains(view, focus),
        "tables": _grouped(_tables(view, focus)),
        "provenance": _provenance(view),
    }


def _focus(view: PageView) -> int | None:
    """Return the layer of the first source, else the only layer, else ``None``."""
    layers = [source.layer for source in view.sources if source.layer is not None]
    if layers:
        return layers[0]
    return view.layers[0] if len(view.layers) == 1 else None


def _findings(view: PageView) -> list[dict[str, Any]]:
    """Return the findings, a stage that is a source in several layers once."""
    groups: dict[tuple[str, tuple[str, ...]], list[Found]] = {}
    for found in view.findings:
        groups.setdefault((found.type.value, found.stages), []).append(found)
    return [
        {
            "type": kind,
            "first": group[0],
            "also": words.ranges(each.layer for each in group[1:] if each.layer is not None),
            "count": len(group) - 1,
        }
        for (kind, _), group in groups.items()
    ]


PLOTTED_LAYERS = 4
"""Up to how many layers each has a plot of its own."""


def _plots(view: PageView, focus: int | None) -> list[tuple[DotPlot, bool]]:
    """Return the plots, each with whether it is shown at once."""
    if not view.rows:
        return []
    if len(view.layers) < 2:
        return [(dot_plot("p0", view.rows, "Every stage"), True)]
    worst = nearest_to_floor(view.rows)
    every = "Each stage, in the layer where it comes nearest to its floor"
    plots = [(dot_plot("p0", worst, every, layers=True), focus is None)]
    if focus is not None:
        plots.insert(0, (dot_plot("p1", view.of_layer(focus), f"Layer {focus}"), True))
    if len(view.layers) <= PLOTTED_LAYERS:
        others: list[int | None] = [layer for layer in (*view.layers, None) if layer != focus]
        named = [(layer, view.of_layer(layer)) for layer in others]
        plots += [
            (dot_plot(f"q{index}", rows, "Whole model" if layer is None else f"Layer {layer}"), False)
            for index, (layer, rows) in enumerate(named)
            if rows
        ]
    return plots


def _chains(view: PageView, focus: int | None) -> list[tuple[int, list[published.Link]]]:
    """Return the nine cosines of one layer: the first source's, else the first."""
    rules = [rule for rule in view.rules if rule.chain]
    chosen = [rule for rule in rules if rule.layer == focus] or rules[:1]
    return [(rule.layer, published.links(view, rule)) for rule in chosen]


def _tables(view: PageView, focus: int | None) -> list[dict[str, Any]]:
    few = len(view.layers) <= PLOTTED_LAYERS
    layers: list[int | None] = [*view.layers, None]
    return [
        {
            "title": "Whole model" if layer is None else f"Layer {layer}",
            "layer": layer,
            "rows": rows,
            "right": layer is not None and all(row.state is RowState.RIGHT for row in rows),
            "summary": _summary(rows),
            "open": layer == focus or len(view.layers) < 2,
            "print": layer == focus or few,
        }
        for layer in layers
        if (rows := view.of_layer(layer))
    ]


FOLDED = 4
"""From how many neighbouring layers on, all right, they are summed up in one line."""


def _grouped(tables: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return title, summary and tables of each group; a table that stands for itself has no title."""
    grouped: list[tuple[str, str, list[dict[str, Any]]]] = []
    for right, run in itertools.groupby(tables, key=lambda table: table["right"] and not table["open"]):
        group = list(run)
        if right and len(group) >= FOLDED:
            rows = [row for table in group for row in table["rows"]]
            title = f"Layers {words.ranges(table['layer'] for table in group)}"
            grouped.append((title, _summary(rows), group))
        else:
            grouped.append(("", "", group))
    return grouped


def _summary(rows: Sequence[PageRow]) -> str:
    counts = {state: sum(row.state is state for row in rows) for state in RowState}
    if counts[RowState.RIGHT] == len(rows):
        worst = max((row.excess for row in rows if row.excess is not None), default=None)
        told = "" if worst is None else f", at most {worst:.2g} of the floor"
        return f"{len(rows)} stages, all right{told}"
    told = ", ".join(f"{count} {_counted(state, count)}" for state, count in counts.items() if count)
    return f"{len(rows)} stages: {told}"


def _counted(state: RowState, count: int) -> str:
    return "inherit" if state is RowState.INHERITS and count > 1 else words.STATES[state][1]


_TOLD: Mapping[str, str] = {
    "runtime": "runtime",
    "version": "version",
    "device": "device",
    "dtype": "number format",
    "arithmetic": "arithmetic",
    "model": "model",
    "model_sha256": "model sha256",
    "binary_sha256": "binary sha256",
    "driver": "captured by",
    "settings": "settings",
    "libraries": "libraries",
    "layers": "layers requested",
    "argmax": "next token",
    "created": "time (UTC)",
    "commit": "commit",
}
"""Attribute of a provenance -> what it is called."""


def _provenance(view: PageView) -> list[tuple[str, str, str]]:
    rows = [
        (told, _attribute(view.oracle, name), _attribute(view.subject, name)) for name, told in _TOLD.items()
    ]
    return [row for row in rows if row[1] or row[2]]


def _attribute(provenance: Provenance, name: str) -> str:
    value = getattr(provenance, name)
    if name == "layers" and value is not None:
        return f"{value[0]}..{value[1]}"
    if name == "argmax" and value is not None:
        told = value.get("text")
        return f"{value.get('id')}" if told is None else f"{value.get('id')} ({told!r})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return "" if value is None else str(value)
