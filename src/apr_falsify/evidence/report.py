"""``report.html``: one file that says what was found, for people who did not run it.

It needs no network and no script, and is the same for the same input: no clock, no path of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.unchecked import broken_down
from apr_falsify.errors import EvidenceError
from apr_falsify.evidence.facts import Facts
from apr_falsify.evidence.page import words
from apr_falsify.evidence.page.bundle import OUTCOMES, claim_rows, next_rung, undone
from apr_falsify.evidence.page.bundle import commands as bundle_commands
from apr_falsify.evidence.page.render import render
from apr_falsify.evidence.page.sections import sections
from apr_falsify.evidence.page.view import PageView, read_view
from apr_falsify.formats.weights import Weights
from apr_falsify.traces.trace import Trace

REPORT_HTML = "report.html"

Traces = tuple[Trace, Trace]
"""The oracle's trace and the subject's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReport:
    """What is known of a bundle beyond what it says of itself.

    Attributes:
        recomputed: figures that were computed again from the bundle's own files.
        attested: figures that rest on the word of the machine that made it.
        rung: the status that it earns, empty where it was not to be found out.
        needs: what it would take for the next one.

    """

    recomputed: tuple[str, ...] = ()
    attested: tuple[str, ...] = ()
    rung: str = ""
    needs: tuple[str, ...] = ()


def bisection_html(
    bisection: Mapping[str, Any],
    traces: Traces | None = None,
    *,
    weights: Weights | None = None,
    arithmetic: str | None = None,
    command: str = "",
    attempts: Attempts = LOUD,
) -> str:
    """Return the page of one bisection.

    Args:
        bisection: an object of schema ``apr-falsify/bisection/v1``.
        traces: what was compared; without them the page has no heat map.
        weights: what the subject was replayed with; without them a heat map of a stage that has weights shows
            its difference from the reference.
        arithmetic: what the user stated of the subject's arithmetic.
        command: the command that made it.
        attempts: notes the figures that break down; the page says so.

    Raises:
        EvidenceError: ``bisection`` is not of that schema.
        MissingDependencyError: jinja2 is not installed.

    """
    view = _read(bisection, traces)
    badge, word = words.BADGES[view.kind]
    return render(
        "bisection.html.j2",
        {
            "badge": badge,
            "word": word,
            "headline": words.headline(view),
            "commands": _commands(view, traces, command),
            **sections(view, traces, weights, arithmetic, attempts),
        },
    )


def bundle_html(
    facts: Facts,
    bisection: Mapping[str, Any] | None = None,
    traces: Traces | None = None,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    weights: Weights | None = None,
    checked: CheckedReport | None = None,
    attempts: Attempts = LOUD,
) -> str:
    """Return the page of one evidence bundle.

    Args:
        facts: what the bundle says of itself.
        bisection: its bisection, where one was made.
        traces: what was compared; ``None`` where the bundle holds digests only.
        controls: the bisections that its controls handed over, by name.
        weights: what the subject was replayed with.
        checked: what a verification found.
        attempts: notes the figures that break down; the page says so.

    Raises:
        EvidenceError: a bisection of another schema.
        MissingDependencyError: jinja2 is not installed.

    """
    view = None if bisection is None else _read(bisection, traces)
    badge, sentence = OUTCOMES[facts.outcome.result]
    shown = {} if view is None else sections(view, traces, weights, None, attempts)
    left_out = [*undone(facts, view), *broken_down(attempts.noted)]
    return render(
        "bundle.html.j2",
        {
            "badge": badge,
            "word": facts.outcome.result.value,
            "headline": sentence.format(id=facts.falsifier, reason=facts.outcome.reason.rstrip(".")),
            "facts": facts,
            "claim": claim_rows(facts.claim),
            "measured": "" if view is None else words.headline(view),
            "controls": [_control(name, data) for name, data in (controls or {}).items()],
            "checked": checked or CheckedReport(),
            "undone": left_out,
            "undone_sentence": words.unchecked_sentence(left_out),
            "stored": traces is not None,
            "next_rung": (checked.needs if checked else ()) or next_rung(facts),
            "commands": bundle_commands(facts),
            "view": None,
            **shown,
        },
    )


def _read(bisection: Mapping[str, Any], traces: Traces | None) -> PageView:
    try:
        return read_view(bisection, None if traces is None else traces[0].geometry)
    except ValueError as error:
        raise EvidenceError(
            f"holds an unusable value: {error}",
            where="bisection.json",
            remedy="use the version of apr-falsify that wrote it, or bisect again",
        ) from error


def _commands(view: PageView, traces: Traces | None, command: str) -> list[tuple[str, str]]:
    """Return what makes it again, each with what it does."""
    yours = ", with your own paths for ..." if ".../" in command else ""
    said = [(f"Run it again, from the same folder{yours}", command)] if command else []
    paths = [] if traces is None else [trace.path for trace in traces]
    if paths and all(path is not None and path.parent == Path(paths[0] or "").parent for path in paths):
        model = view.oracle.model and " --weights MODEL"  # where it lies is for the reader to say
        said.append(
            (
                "Compare the captured files again, in this folder; runs no model",
                f"apr-falsify compare oracle subject{model}",
            )
        )
    return said


def _control(name: str, data: Mapping[str, Any]) -> tuple[str, str, str]:
    view = _read(data, None)
    return name, words.BADGES[view.kind][1], words.headline(view)
