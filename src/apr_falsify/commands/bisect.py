"""``apr-falsify bisect``: capture both sides, compare them, say where they part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_falsify.commands import options

if TYPE_CHECKING:
    from apr_falsify.commands.sides import Plan
    from apr_falsify.compare.bisection import Bisection
    from apr_falsify.formats.weights import Weights
    from apr_falsify.traces.trace import Trace


@click.command()
@click.option(
    "--oracle",
    metavar="MODEL|TRACE|RUNTIME:PATH",
    help="The reference: HF directory, .gguf, hub id, a trace, or a runtime.  [default: a tiny Qwen2]",
)
@click.option(
    "--subject",
    metavar="RUNTIME:PATH|TRACE",
    help="The run in question, e.g. recorded:DIR.  [default: embedded:ORACLE]",
)
@options.both_sides
@options.oracle_option
@options.weights
@options.out
@options.output_format
@options.debug
def bisect(
    oracle: str | None,
    subject: str | None,
    sides: options.Sides,
    oracle_option: tuple[tuple[str, str], ...],
    device: str,
    dtype: str | None,
    weights: str,
    out: Path | None,
    output: str,
) -> int:
    """Capture both sides, compare them stage by stage, say where they part.

    Without --oracle and --subject: the tiny Qwen2 checkpoint of this package, HuggingFace against the
    embedded NumPy runtime, offline.
    """
    from apr_falsify.commands.report import emit
    from apr_falsify.commands.sides import capture_sides, make_plan, whole_or_nothing

    earlier = None if out is None else out / "subject"
    sides["oracle_options"] = dict(oracle_option)
    with whole_or_nothing(out), make_plan(oracle, subject, earlier=earlier, logs=out, **sides) as plan:
        _refuse_unused(plan)
        traces = capture_sides(plan, dtype=dtype, device=device, run=out)
        result, replayed_with = _compared(plan, traces, sides["arithmetic"], own=weights == "subject")
        page = None
        if out is not None:
            result, page = _written(result, traces, out, replayed_with, sides["arithmetic"])
    emit(result, output)
    if page is not None:
        click.echo(page, err=True)
    return int(result.exit_code)


def _refuse_unused(plan: Plan) -> None:
    """Refuse options that change nothing for these two sides."""
    if plan.oracle.runtime is None:
        options.refuse_unused(("oracle_option",), "the oracle is no runtime")
    else:
        options.refuse_unused(("dtype", "device"), "the oracle is a runtime, not transformers")
    if plan.oracle.trace is not None:
        options.refuse_unused(("dtype", "device", "prompt"), "the oracle is a trace, taken as it is")
    if plan.runtime != "apr":
        options.refuse_unused(("apr_binary",), options.NOT_APR)
    if plan.subject.model is None:
        options.refuse_unused(("weights",), "the subject comes without weights; the oracle's replay it")


def _compared(
    plan: Plan, traces: tuple[Trace, Trace], arithmetic: str | None, *, own: bool
) -> tuple[Bisection, Weights | None]:
    """Return the comparison of oracle and subject, and the weights that the subject was replayed with."""
    from apr_falsify.commands.progress import busy
    from apr_falsify.compare.localise import bisect as compare

    reference = None if plan.oracle.model is None else plan.oracle.model.weights
    model = plan.subject.model if own else None
    subjects = None if model is None else model.weights
    with busy("comparing"):
        result = compare(
            *traces,
            weights=reference,
            subject_weights=subjects,
            layers=plan.judged,
            stages=plan.request.stages,
            findings=plan.findings,
            arithmetic=arithmetic,
            not_checked=plan.not_checked,
        )
    return result, subjects or reference


def _written(
    result: Bisection,
    traces: tuple[Trace, Trace],
    out: Path,
    weights: Weights | None,
    arithmetic: str | None,
) -> tuple[Bisection, str]:
    """Write bisection and page beside the traces; return what is known now, and the line about the page."""
    from dataclasses import replace

    from apr_falsify.commands.page import write_page
    from apr_falsify.commands.report import write_bisection
    from apr_falsify.compare.attempts import Attempts
    from apr_falsify.compare.unchecked import broken_down

    attempts = Attempts()
    page = write_page(result, traces, out, weights=weights, arithmetic=arithmetic, attempts=attempts)
    result = replace(result, not_checked=(*result.not_checked, *broken_down(attempts.noted)))
    write_bisection(result, out)
    return result, page
