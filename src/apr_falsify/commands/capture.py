"""``apr-falsify capture``: run one side and keep its stages as a trace."""

from __future__ import annotations

from pathlib import Path

import click

from apr_falsify.commands import options
from apr_falsify.commands.output import tell
from apr_falsify.errors import UsageError


@click.command()
@click.argument("side", metavar="oracle|RUNTIME:PATH")
@click.argument("model", required=False)
@click.option(
    "--out",
    callback=options.some_path,
    metavar="TRACE",
    required=True,
    help="The directory to write; a capture of the same is used again.",
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
@options.debug
def capture(
    side: str,
    model: str | None,
    out: Path,
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
) -> None:
    """Run one side and keep its stages as a trace.

    \b
    apr-falsify capture oracle MODEL --out TRACE
    apr-falsify capture embedded:MODEL --out TRACE
    apr-falsify capture llama-cpp:MODEL.gguf --out TRACE
    apr-falsify capture recorded:DIR MODEL --tokens 1,2,3 --out TRACE
    """
    from apr_falsify.commands.sides import capture_one, make_plan

    _check_sides(side, model)
    with make_plan(
        model,
        None if side == "oracle" else side,
        layers=layers,
        stages=stages,
        substages=with_attn_substages,
        prompt=prompt,
        tokens=tokens,
        arithmetic=arithmetic,
        options=options.settings_of(subject_option),
        program=apr_binary,
        seconds=timeout,
        kept=out,
    ) as plan:
        trace = capture_one(plan, oracle=side == "oracle", dtype=dtype, device=device, out=out)
    tell(f"{len(trace.stages)} stages of {len(trace.tokens)} tokens in {out}")


def _check_sides(side: str, model: str | None) -> None:
    """Refuse arguments and options that do not go with the side that is to be captured."""
    from apr_falsify.commands.specs import is_recording, split_subject
    from apr_falsify.trace import TRACE_JSON

    if side == "oracle":
        if model is None:
            raise UsageError(
                "the oracle needs a model", remedy="apr-falsify capture oracle MODEL --out TRACE"
            )
        if (Path(model) / TRACE_JSON).exists():
            raise UsageError(
                "it is a trace already", where=model, remedy=f"apr-falsify compare {model} TRACE"
            )
        options.refuse_idle(("arithmetic",), "it is the embedded runtime's; the oracle has --dtype")
        options.refuse_idle(("subject_option",), "it is a subject's; the oracle is captured here")
        return
    runtime, path = split_subject(side)
    options.refuse_idle(("dtype", "device"), "it is the oracle's; the embedded runtime has --arithmetic")
    if is_recording(runtime, path):
        options.refuse_idle(("layers", "stages", "arithmetic"), "a recording is taken as it is")
        if model is None:
            raise UsageError(
                "nothing says which model was recorded",
                where=side,
                remedy=f"apr-falsify capture {side} MODEL --out TRACE",
            )
    elif model is not None:
        raise UsageError(f"unexpected argument {model!r}", remedy=f"apr-falsify capture {side} --out TRACE")
