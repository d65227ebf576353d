"""A bisection for people (80 columns) and for machines (JSON), and its file in a run."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from apr_falsify.commands.output import WIDTH, tell, write_file
from apr_falsify.compare.bisection import Bisection, Finding, Kind, Row, Status, Verdict, compared
from apr_falsify.compare.findings import place
from apr_falsify.compare.metrics import Metrics
from apr_falsify.compare.published import THRESHOLD, PublishedRule
from apr_falsify.errors import ExitCode
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.traces.provenance import Provenance

BISECTION_JSON = "bisection.json"

_HEADLINES: Mapping[Kind, tuple[str, str]] = {
    Kind.CONSISTENT: ("green", "no stage introduces an error"),
    Kind.LOCALISED: ("red", "one stage introduced the error"),
    Kind.SEVERAL: ("red", "the subject departs from the oracle"),
    Kind.LAYOUT_MISMATCH: ("yellow", "equal after a transformation that the runtime does not declare"),
    Kind.REFERENCE_SUSPECT: ("yellow", "the oracle's own trace fails its replay"),
    Kind.UNMEASURED: ("yellow", "no error was found, but something needed could not be judged"),
}


def emit(result: Bisection, output: str) -> None:
    """Print ``result`` on stdout as ``text`` or ``json``."""
    if output == "json":
        tell(json.dumps(result.to_json(), indent=1))
        return
    terminal = os.isatty(1)
    text = io.StringIO()  # printed in one piece: a full disk or a reader that goes away is `tell`'s business
    width = None if terminal else WIDTH
    print_text(result, Console(file=text, force_terminal=terminal, width=width, highlight=False))
    tell(text.getvalue().rstrip("\n"))


def write_bisection(result: Bisection, run: Path) -> Path:
    """Write ``bisection.json`` into ``run``, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.

    """
    path = run / BISECTION_JSON
    write_file(path, json.dumps(result.to_json(), indent=1) + "\n")
    return path


def print_text(result: Bisection, console: Console) -> None:
    """Print ``result`` for people: the headline, the two sides, the rows, the findings."""
    _print_headline(result, console)
    if result.identical:
        console.print("every stage that was compared is the same in both runs, to the last bit")
    console.print()
    _print_sides(result, console)
    console.print()
    _print_rows(result.rows, console)
    _print_arithmetics(result.rows, console)
    _print_findings(result.findings, console)
    _print_published(result.published, console)
    for line in result.not_checked:
        console.print(f"not checked: {escape(line)}")


def _print_headline(result: Bisection, console: Console) -> None:
    colour, sentence = _HEADLINES[result.kind]
    if result.kind is Kind.LOCALISED and len(result.sources) > 1:
        sentence = f"one cause: {_one_cause(result)}"
    count = len(compared(result.rows))
    looked_at = "1 stage" if count == 1 else f"{count} stages"
    console.print(f"[bold {colour}]{result.kind.value}[/]: {escape(sentence)} ({looked_at} compared)")
    for stages, group in itertools.groupby(
        sorted(result.sources, key=lambda source: source.stages), key=lambda source: source.stages
    ):
        console.print(f"source: [bold]{escape(_places(stages, list(group)))}[/]")
    if result.kind is Kind.CONSISTENT and result.exit_code is not ExitCode.OK:
        types = ", ".join(dict.fromkeys(finding.type.value for finding in result.findings))
        console.print(f"[bold red]but[/] see below: {types} (exit code {result.exit_code:d})")


def _one_cause(result: Bisection) -> str:
    """Say the one cause of several sources, and where it shows."""
    (cause,) = result.causes
    within = [name for name in cause.stages if any(_is_in(source, name) for source in result.sources)]
    whole = [name for name in cause.stages if name not in within]
    layers = [layer for layer in cause.layers if layer is not None]
    where = f"in layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    if 1 < len(layers) == result.layers:
        where = "in every layer"
    places = [*([f"{where}: {', '.join(within)}"] if within else []), *whole]
    return f"{cause.says}, {'; '.join(places)}"


def _is_in(source: Finding, name: str) -> bool:
    return source.layer is not None and name in source.stages


def _print_sides(result: Bisection, console: Console) -> None:
    for side, provenance in (("oracle", result.oracle), ("subject", result.subject)):
        console.print(f"{side:8}{escape(_run_line(provenance))}", no_wrap=True, overflow="ellipsis")
    ids = " ".join(str(token) for token in result.tokens)
    console.print(f"{'tokens':8}{len(result.tokens)}: {ids}", no_wrap=True, overflow="ellipsis")
    passes = result.passes
    if passes is not None and not passes.plain:
        padding = f", the first {passes.padding} tokens padding" if passes.padding else ""
        padding += f", the first {passes.unseen} not recorded" if passes.unseen else ""
        sizes = " ".join(str(size) for size in passes.sizes)
        line = f"{'passes':8}{len(passes.sizes)}: {sizes}{padding}"
        console.print(line, no_wrap=True, overflow="ellipsis")


def _places(stages: tuple[str, ...], sources: list[Finding]) -> str:
    layers = [str(source.layer) for source in sources if source.layer is not None]
    where = f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}" if layers else "whole model"
    return f"{where}, {', '.join(stages)}"


def _run_line(provenance: Provenance) -> str:
    words = [provenance.runtime, provenance.version, provenance.dtype, f"on {provenance.device}"]
    known = [word for word in words if "unknown" not in word]
    return f"{' '.join(known)}: {_short(provenance.model)}" if provenance.model else " ".join(known)


def _short(path: str) -> str:
    return path if len(path) <= 48 else "..." + path[-45:]


def _print_rows(rows: Sequence[Row], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for name in ("cosine", "rel L2", "norm", "floors"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("largest difference", overflow="fold")
    shown = [row for row in rows if row.status not in (Status.NOT_REQUESTED, Status.NOT_APPLICABLE)]
    for layer, group in itertools.groupby(shown, key=lambda row: row.layer):
        table.add_row(Text(_layer_title(layer), style="bold"))
        for row in group:
            table.add_row(*_cells(row), style=_STYLES.get(_mark(row)))
    console.print(table)
    console.print("floors: what a stage itself adds, in units of what rounding explains; >1 is wrong")
    foreign = dict.fromkeys(row.stage for row in rows if row.status is Status.NOT_APPLICABLE)
    if foreign:
        console.print(f"not of this model: {', '.join(foreign)}")
    for mark in dict.fromkeys(_mark(row) for row in shown):
        if mark in _LEGEND:
            console.print(f"{mark} {_LEGEND[mark]}")


def _layer_title(layer: int | None) -> str:
    return "whole model" if layer is None else f"layer {layer}"


_MARKS: Mapping[Verdict, str] = {
    Verdict.WITHIN_FLOOR: " ",
    Verdict.INTRODUCES: "!",
    Verdict.INHERITS: "~",
    Verdict.LAYOUT: "=",
    Verdict.UNMEASURED: "?",
}
_LEGEND: Mapping[str, str] = {
    "!": "is not what its inputs make it",
    "~": "differs from the oracle, as its inputs do",
    "=": "is equal in another layout",
    "?": "could not be judged",
}
_STYLES: Mapping[str, str] = {"!": "bold red", "~": "red", "=": "yellow", "?": "yellow"}


def _mark(row: Row) -> str:
    return _MARKS[row.verdict] if row.status is Status.COMPARED else " "


def _cells(row: Row) -> tuple[str, ...]:
    name = f"{_mark(row)}{row.stage}"
    if row.accumulated is None:
        return name, "", "", "", _floors(row), _ABSENT[row.status]
    metrics = row.accumulated
    return (
        name,
        _number(metrics.cosine, ".6f"),
        _number(metrics.rel_l2, ".1e"),
        _number(metrics.norm_ratio, ".3f" if metrics.norm_ratio < 1000 else ".1e"),
        _floors(row),
        _largest(metrics),
    )


def _floors(row: Row) -> str:
    """Return what the stage introduces, in units of what rounding explains."""
    if row.excess is None:
        return "-"
    return _number(row.excess, ".2f" if row.excess < 1000 else ".0e")


_ABSENT: Mapping[Status, str] = {
    Status.MISSING_IN_SUBJECT: "missing in the subject",
    Status.MISSING_IN_ORACLE: "missing in the oracle",
    Status.NOT_REPLAYABLE: "geometry differs",
    Status.COMPARED: "the comparison broke down",
}


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else str(value)


_SHORT_WORDS = {"channel": "ch", "token": "tok", "vocabulary ": "", "kv head": "head"}


def _largest(metrics: Metrics) -> str:
    parts = []
    if metrics.nonfinite_oracle or metrics.nonfinite_subject:
        parts.append(f"not finite: oracle {metrics.nonfinite_oracle}, subject {metrics.nonfinite_subject};")
    if metrics.at is None:
        parts.append("nothing finite to compare")
    elif metrics.max_abs == 0:
        parts.append("none")
    else:
        where = metrics.where
        for word, short in _SHORT_WORDS.items():
            where = where.replace(word, short)
        parts.append(f"{metrics.max_abs:.1e} {where}")
    return " ".join(parts)


def _print_arithmetics(rows: Sequence[Row], console: Console) -> None:
    """Say which arithmetic explains the products, most frequent first, and which edges fell otherwise."""
    found = Counter(row.arithmetic for row in rows if row.arithmetic and STAGES[row.stage].product)
    if found:
        told = ", ".join(f"{name} ({count})" for name, count in found.most_common())
        console.print(f"arithmetic of the products: {told}")
    edges = [f"{place(Key(row.layer, row.stage))} ({row.edges})" for row in rows if row.edges]
    if edges:
        console.print(
            f"values on the edge between two 8-bit steps that fell to the other side: {', '.join(edges)}"
        )


def _print_findings(findings: Iterable[Finding], console: Console) -> None:
    """Print the findings; a stage that is a source in several layers is reported once, for the first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.type.value, finding.stages), []).append(finding)
    for (kind, stages), group in groups.items():
        first, others = group[0], [finding.layer for finding in group[1:] if finding.layer is not None]
        place = "" if first.layer is None else f" (layer {first.layer})"
        console.print()
        console.print(f"[bold]{kind}{place}[/]: {escape(first.explanation)}")
        if others:
            layers = ", ".join(str(layer) for layer in others)
            console.print(f"  also {', '.join(stages)} of {len(others)} more layers: {layers}")
        if first.advice:
            console.print(f"  try: {escape(first.advice)}")


def _print_published(rules: Iterable[PublishedRule], console: Console) -> None:
    """Print the published rule's answer, neighbouring layers with the same one in one line."""
    console.print()
    for crossings, group in itertools.groupby(
        (rule for rule in rules if rule.chain), key=lambda rule: rule.crossings
    ):
        layers = [rule.layer for rule in group]
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
        said = ", ".join(f"{before} -> {after}" for before, after in crossings) or "none"
        console.print(f"published rule, {where}: crossings of {THRESHOLD}: {said}")
