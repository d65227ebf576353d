"""``report.html`` of a sweep: one file, without network and without script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from apr_falsify.errors import ExitCode
from apr_falsify.evidence.page.render import render
from apr_falsify.sweeps.summary import JobOutcome, MatrixCell, Summary

_BADGES: Mapping[ExitCode, str] = {
    ExitCode.OK: "good",
    ExitCode.DIVERGENCE: "bad",
    ExitCode.INTERNAL: "bad",
    ExitCode.USAGE: "warn",
    ExitCode.INCONCLUSIVE: "warn",
}
_WORDS: Mapping[ExitCode, str] = {
    ExitCode.OK: "consistent",
    ExitCode.DIVERGENCE: "divergent",
    ExitCode.INTERNAL: "broken",
    ExitCode.USAGE: "refused",
    ExitCode.INCONCLUSIVE: "inconclusive",
}


def sweep_html(summary: Summary) -> str:
    """Return the page of a sweep.

    Raises:
        MissingDependencyError: jinja2 is not installed.

    """
    cells = {(cell.model, cell.subject): cell for cell in summary.cells}
    models, subjects = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    code = summary.exit_code
    return render(
        "sweep.html.j2",
        {
            "name": summary.name,
            "badge": _BADGES[code],
            "word": _WORDS[code],
            "headline": headline(summary),
            "subjects": subjects,
            "rows": [(model, [_shown(cells.get((model, each))) for each in subjects]) for model in models],
            "bad": [_row(one) for one in summary.outcomes if one.exit_code is not ExitCode.OK],
            "good": [_row(one) for one in summary.outcomes if one.exit_code is ExitCode.OK],
            "new": _of_cells(summary, "new") if summary.earlier is not None else None,
            "flaky": _of_cells(summary, "flaky"),
            "versions": ", ".join(summary.versions) or "none",
        },
    )


def headline(summary: Summary) -> str:
    """Return one sentence: how many jobs came out how."""
    counts = Counter(one.word for one in summary.outcomes)
    many = len(summary.outcomes)
    return f"{many} job{'' if many == 1 else 's'}: " + ", ".join(
        f"{count} {word}" for word, count in counts.most_common()
    )


def _of_cells(summary: Summary, which: str) -> list[dict[str, Any]]:
    wanted = {name for cell in summary.cells for name in getattr(cell, which)}
    return [_row(one) for one in summary.outcomes if one.job.id in wanted]


def _shown(cell: MatrixCell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    right = sum(one.exit_code is ExitCode.OK for one in cell.outcomes)
    return {
        "badge": _BADGES[cell.exit_code],
        "word": cell.worst.word,
        "count": f"{right} of {len(cell.outcomes)}",
        "stage": _first(cell.worst.sources),
        "flaky": bool(cell.flaky),
        "new": bool(cell.new),
    }


def _first(sources: Sequence[str]) -> str:
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{sources[0]}{more}" if sources else ""


def _row(one: JobOutcome) -> dict[str, Any]:
    ran = one.result
    return {
        "id": one.job.id,
        "badge": _BADGES[one.exit_code],
        "word": one.word,
        "stage": _first(one.sources),
        "says": one.says,
        "seconds": "" if ran is None else f"{ran.seconds:.1f}",
        "memory": "" if ran is None or not ran.peak else f"{ran.peak / (1 << 30):.2f}",
        "command": one.job.command,
    }
