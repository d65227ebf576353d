"""``apr-falsify bisect``: capture both sides, compare them, say where they part."""

from __future__ import annotations

from pathlib import Path

import click

from apr_falsify.commands import options


@click.command()
@click.option(
    "--oracle",
    metavar="MODEL|TRACE",
    help="The reference: HF directory, .gguf, hub id, or a trace.  [default: a tiny Qwen2]",
)
@click.option(
    "--subject",
    metavar="RUNTIME:PATH|TRACE",
    help="The run in question, e.g. recorded:DIR.  [default: embedded:ORACLE]",
)
@options.layers
@options.stages
@options.substages
@options.prompt
@options.tokens
@options.device
@options.dtype
@options.arithmetic
@options.subject_option
@options.apr_binary
@options.timeout
@options.weights
@options.out
@options.output_format
@options.debug
def bisect(
    oracle: str | None,
    subject: str | None,
    layers: range | None,
    stages: tuple[str, ...],
    with_attn_substages: bool,
    prompt: str | None,
    tokens: tuple[int, ...] | None,
    device: str,
    dtype: str | None,
    arithmetic: str | None,
    subject_option: tuple[tuple[str, str], ...],
    apr_binary: Path | None,
    timeout: float,
    weights: str,
    out: Path | None,
    output: str,
) -> int:
    """Capture both sides, compare them stage by stage, say where they part.

    Without --oracle and --subject: the tiny Qwen2 checkpoint of this package, HuggingFace against the
    embedded NumPy runtime, offline.
    """
    from apr_falsify.commands.progress import busy
    from apr_falsify.commands.report import emit, write_bisection
    from apr_falsify.commands.sides import capture_sides, make_plan, whole_or_nothing
    from apr_falsify.compare.localise import bisect as compare

    with (
        whole_or_nothing(out),
        make_plan(
            oracle,
            subject,
            layers=layers,
            stages=stages,
            substages=with_attn_substages,
            prompt=prompt,
            tokens=tokens,
            arithmetic=arithmetic,
            options=options.settings_of(subject_option),
            program=apr_binary,
            seconds=timeout,
            kept=None if out is None else out / "subject",
            logs=out,
        ) as plan,
    ):
        if plan.oracle.trace is not None:
            options.refuse_idle(("dtype", "device", "prompt"), "the oracle is a trace, taken as it is")
        if plan.runtime != "apr":
            options.refuse_idle(("apr_binary",), options.NOT_APR)
        own = plan.subject.model
        if own is None:
            options.refuse_idle(("weights",), "the subject's own weights cannot be read here")
        ours, theirs = capture_sides(plan, dtype=dtype, device=device, run=out)
        reference = None if plan.oracle.model is None else plan.oracle.model.weights
        subjects = own.weights if own is not None and weights == "subject" else None
        with busy("comparing"):
            result = compare(
                ours,
                theirs,
                weights=reference,
                subject_weights=subjects,
                layers=plan.judged,
                stages=plan.request.stages,
                findings=plan.findings,
                arithmetic=arithmetic,
                not_checked=plan.not_checked,
            )
        if out is not None:
            from apr_falsify.commands.page import write_page

            page = write_page(
                result, (ours, theirs), out, weights=subjects or reference, arithmetic=arithmetic
            )
            write_bisection(result, out)
    emit(result, output)
    if out is not None:
        click.echo(page, err=True)
    return int(result.exit_code)
