"""The exam's result for people: a row per fault, and a few sentences."""

from __future__ import annotations

import io
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from apr_falsify.exam.examination import Examination
from apr_falsify.exam.tally import to_json

_WIDTH = 118
_SHOWN_FAILURES = 10


def table(examination: Examination) -> str:
    """Return the result as text."""
    result = to_json(examination)
    buffer = io.StringIO()
    console = Console(file=buffer, width=_WIDTH, color_system=None)
    console.print(_rows(result))
    for line in (*_summary(result), *_failures(result)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return buffer.getvalue().rstrip()


def _rows(result: dict[str, Any]) -> Table:
    rows = Table(box=None, pad_edge=False)
    rows.add_column("fault")
    rows.add_column("stage that is wrong")
    for name in ("runs", "located", "wrong", "missed", "explained", "published rule"):
        rows.add_column(name, justify="right")
    for row in result["rows"]:
        if row["total"]:
            counts = [str(row[key]) for key in ("total", "located", "wrong", "missed", "explained")]
            rows.add_row(row["fault"], ", ".join(row["stages"]), *counts, str(row["published"]["located"]))
    return rows


def _summary(result: dict[str, Any]) -> list[str]:
    single, pairs, correct = result["single"], result["pairs"], result["correct_runs"]
    theirs = result["published_rule"]
    nearest = math.inf if result["nearest_to_the_floor"] is None else result["nearest_to_the_floor"]
    below = f"{correct['distinct']} distinct: below {result['false_alarms_below']:.2%} at 95 %"
    curve = [f"{held['located']} of {held['total']} at {at}x" for at, held in result["curve"].items()]
    return [
        "",
        f"single faults   {single['located']} of {single['total']} located ({single['faults']} faults), "
        f"{single['wrong']} wrong, {single['missed']} missed; {single['explained']} explained; "
        f"published rule {theirs['single']['located']}",
        f"pairs           {pairs['located']} of {pairs['total']} located; published rule "
        f"{theirs['pairs']['located']}",
        f"correct runs    {correct['accused']} of {correct['total']} accused ({below}), "
        f"the nearest at {nearest:.2f} of its floor; published rule {theirs['correct_runs']['accused']}",
        f"below 10 floors {result['below_ten_floors']} runs not counted; made small: {', '.join(curve)}",
        *(_split(title, result[key]) for title, key in _SPLITS),
        *(_split(title, result[key], "acquitted") for title, key in _CORRECT_SPLITS),
        *(f"kernel          {name}: {_facts(facts)}" for name, facts in result["kernels"].items()),
        *(f"not run         {what}" for what in result["not_run"]),
        *(f"goal {'met' if met else 'MISSED':12s}{goal}" for goal, met in result["goals"].items()),
        f"{result['seconds']:.0f} seconds",
    ]


_SPLITS = (
    ("by host", "by_host"),
    ("by model", "by_model"),
    ("by arithmetic", "by_setting"),
    ("by text", "by_text"),
    ("by phase", "by_phase"),
    ("by width", "by_width"),
)
_CORRECT_SPLITS = tuple(
    (f"  by {what}", f"correct_by_{what}") for what in ("kernel", "phase", "text", "width", "host", "length")
)


def _split(title: str, groups: dict[str, dict[str, int]], word: str = "") -> str:
    told = ", ".join(f"{name} {held['located']} of {held['total']}" for name, held in groups.items())
    return f"{title:15s} {told}{f' {word}' if word else ''}"


def _facts(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _failures(result: dict[str, Any]) -> list[str]:
    failures = result["failures"]
    lines = [
        f"{failure['mark']}: {failure['case']}; required {failure['required']}, found {failure['found']}"
        for failure in failures[:_SHOWN_FAILURES]
    ]
    more = len(failures) - len(lines)
    return lines + ([f"and {more} more; all of them with --format json"] if more > 0 else [])
