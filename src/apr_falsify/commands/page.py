"""``report.html`` of a run: written beside ``bisection.json``, whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from apr_falsify.commands.output import write_file
from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.bisection import Bisection
from apr_falsify.errors import MissingDependencyError
from apr_falsify.evidence.report import REPORT_HTML, bisection_html
from apr_falsify.formats.weights import Weights
from apr_falsify.portable import portable_path
from apr_falsify.traces.trace import Trace


def write_page(
    result: Bisection,
    traces: tuple[Trace, Trace],
    run: Path,
    *,
    weights: Weights | None,
    arithmetic: str | None,
    attempts: Attempts,
) -> str:
    """Write ``report.html`` into ``run``; return a line that says where it is, or why there is none.

    Args:
        result: what the comparison says.
        traces: what was compared, oracle first.
        run: the directory of the run.
        weights: what the subject was replayed with.
        arithmetic: what the user stated of the subject's arithmetic.
        attempts: notes the figures that break down, or the page: a bisection is worth more than its page.

    Raises:
        OutputError: it cannot be written.

    """
    command = command_line(click.get_current_context(silent=True))
    path = run / REPORT_HTML
    make = partial(
        bisection_html,
        result.to_json(),
        traces,
        weights=weights,
        arithmetic=arithmetic,
        command=command,
        attempts=attempts,
    )
    try:
        page = attempts.needing(REPORT_HTML).made(make, None)
        why = "making it broke down; --debug shows where"
    except MissingDependencyError as error:
        page, why = None, f"{error.what}; {error.remedy}"
    if page is None:
        path.unlink(missing_ok=True)  # an earlier run's is not about this one
        return f"no {REPORT_HTML}: {why}"
    write_file(path, page)
    return f"report: {path}"


def command_line(context: click.Context | None) -> str:
    """Return the command that is being run, as one types it in this folder.

    Where its output went is written as ``RUN``, and a path outside of the folder as its name behind ``.../``.
    """
    if context is None:
        return ""
    words = ["apr-falsify", context.info_name or ""]
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name in context.params:  # --debug is not
            words += _typed(param, context.params[name])
    return shlex.join(words)


def _path(value: object) -> str:
    return portable_path(str(value), Path.cwd())


def _spec(spec: str) -> str:
    """Return ``RUNTIME:PATH``, a path, or a hub id, which stays as it is."""
    runtime, colon, path = ("", "", spec) if spec.startswith(os.sep) else spec.partition(":")
    return f"{runtime}{colon}{_path(path)}" if path else spec


_TOLD: Mapping[str, Callable[[Any], str]] = {
    "out": lambda _: "RUN",
    "oracle": _spec,
    "subject": _spec,
    "apr_binary": _path,
    "layers": lambda layers: f"{layers.start}..{layers.stop}",
    "stages": ",".join,
    "tokens": lambda tokens: ",".join(map(str, tokens)),
    "subject_option": lambda pair: f"{pair[0]}={_path(pair[1])}",
}
"""Parameter -> its value as one types it, where that is not its text."""


def _typed(param: click.Parameter, value: Any) -> Iterator[str]:
    if getattr(param, "is_flag", False):
        yield param.opts[0] if value else (*param.secondary_opts, param.opts[0])[0]
        return
    for each in value if param.multiple else (value,):
        yield from (param.opts[0], _TOLD.get(param.name or "", str)(each))
