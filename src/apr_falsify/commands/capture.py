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
    type=click.Path(path_type=Path),
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
    arithmetic: str,
) -> None:
    """Run one side and keep its stages as a trace.

    \b
    apr-falsify capture oracle MODEL --out TRACE
    apr-falsify capture embedded:MODEL --out TRACE
    """
    from apr_falsify.commands.sides import capture_one, make_plan

    if side == "oracle" and model is None:
        raise UsageError("the oracle needs a model", remedy="apr-falsify capture oracle MODEL --out TRACE")
    if side != "oracle" and model is not None and not side.startswith("recorded:"):
        raise UsageError(f"unexpected argument {model!r}", remedy=f"apr-falsify capture {side} --out TRACE")
    plan = make_plan(
        model,
        None if side == "oracle" else side,
        layers=layers,
        stages=stages,
        substages=with_attn_substages,
        prompt=prompt,
        tokens=tokens,
        arithmetic=arithmetic,
    )
    trace = capture_one(plan, oracle=side == "oracle", dtype=dtype, device=device, out=out)
    tell(f"{len(trace.stages)} stages of {len(trace.tokens)} tokens in {out}")
