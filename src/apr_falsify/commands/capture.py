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
    metavar="DIR",
    help="The directory to write; a capture of the same is used again.",
)
@click.option(
    "--oracle",
    metavar="MODEL|TRACE",
    help="The model that was recorded, or a trace of it; the same as MODEL.",
)
@click.option(
    "--export-replay",
    metavar="STAGE[@LAYER]",
    help="Instead of a trace, write one stage's inputs, weights and expected output.",
)
@click.option(
    "--print-mapping",
    is_flag=True,
    help="Instead of a trace, print a starter of MAPPING.yaml for a recording.",
)
@options.both_sides
@options.debug
def capture(
    side: str,
    model: str | None,
    out: Path | None,
    oracle: str | None,
    export_replay: str | None,
    print_mapping: bool,
    sides: options.Sides,
    device: str,
    dtype: str | None,
) -> None:
    """Run one side and keep its stages as a trace.

    \b
    apr-falsify capture oracle MODEL --out TRACE
    apr-falsify capture embedded:MODEL --out TRACE
    apr-falsify capture llama-cpp:MODEL.gguf --out TRACE
    apr-falsify capture recorded:DIR MODEL --tokens 1,2,3 --out TRACE
    apr-falsify capture torch:FILE.py:BUILD MODEL --out TRACE
    apr-falsify capture recorded:DUMP --print-mapping --oracle MODEL > FILE
    apr-falsify capture recorded:TRACE MODEL --export-replay STAGE@LAYER --out DIR
    """
    if model is not None and oracle is not None:
        raise UsageError("the model is named twice", where="--oracle", remedy="leave one of them out")
    model = model or oracle
    if print_mapping:
        _print_mapping(side, model, sides["tokens"], dtype, device)
        return
    if out is None:
        raise click.MissingParameter(param_hint="'--out'", param_type="option")
    _check_sides(side, model, exported=export_replay is not None)
    subject = None if side == "oracle" else side
    if export_replay is not None:
        from apr_falsify.commands.export_kernel import Run, export_kernel

        unused = ("layers", "stages", "with_attn_substages")
        options.refuse_unused(unused, "--export-replay captures what it needs")
        run = Run(subject=subject, oracle=model, sides=sides, dtype=dtype, device=device)
        tell(export_kernel(export_replay, run, out))
        return
    from apr_falsify.commands.sides import capture_one, make_plan

    with make_plan(model, subject, earlier=out, **sides) as plan:
        trace = capture_one(plan, oracle=side == "oracle", dtype=dtype, device=device, out=out)
    tell(f"{len(trace.stages)} stages of {len(trace.tokens)} tokens in {out}")


def _print_mapping(
    side: str, model: str | None, tokens: tuple[int, ...] | None, dtype: str | None, device: str
) -> None:
    from apr_falsify.commands.print_mapping import mapping_starter

    runtime, _, path = side.partition(":")
    if runtime != "recorded" or not path:
        raise UsageError(
            f"a mapping file is for a recording, not for {side!r}",
            where="--print-mapping",
            remedy="apr-falsify capture recorded:DUMP --print-mapping",
        )
    unused = ("out", "export_replay", "layers", "stages", "with_attn_substages", "prompt", "arithmetic")
    options.refuse_unused(
        (*unused, "subject_option", "apr_binary", "timeout"), "--print-mapping runs no subject"
    )
    tell(mapping_starter(Path(path), model, tokens=tokens, dtype=dtype, device=device))


def _check_sides(side: str, model: str | None, *, exported: bool) -> None:
    """Refuse arguments and options that do not go with the side that is to be captured."""
    if side == "oracle":
        _check_oracle(model)
    else:
        _check_subject(side, model, exported=exported)


def _check_oracle(model: str | None) -> None:
    from apr_falsify.traces.trace import is_trace

    if model is None:
        raise UsageError("the oracle needs a model", remedy="apr-falsify capture oracle MODEL --out TRACE")
    if is_trace(Path(model)):
        raise UsageError("it is a trace already", where=model, remedy=f"apr-falsify compare {model} TRACE")
    options.refuse_unused(("arithmetic",), "it is the embedded runtime's; the oracle has --dtype")
    options.refuse_unused(
        ("subject_option", "apr_binary", "timeout"), "it is a subject's; the oracle is captured here"
    )


def _check_subject(side: str, model: str | None, *, exported: bool) -> None:
    from apr_falsify.commands.specs import RUNTIMES, is_recording, split_subject

    runtime, path = split_subject(side)
    options.refuse_unused(("dtype", "device"), "it is the oracle's; the embedded runtime has --arithmetic")
    if runtime != "apr":
        options.refuse_unused(("apr_binary",), options.NOT_APR)
    else:
        options.refuse_unused(("arithmetic",), "apr computes as it does; bisect takes what you state of it")
    if is_recording(runtime, path):
        options.refuse_unused(("layers", "stages", "arithmetic"), "a recording is taken as it is")
        if model is None:
            raise UsageError(
                "nothing says which model was recorded",
                where=side,
                remedy=f"apr-falsify capture {side} MODEL --out TRACE",
            )
    elif model is not None and not exported and RUNTIMES[runtime].holds_model:
        raise UsageError(f"unexpected argument {model!r}", remedy=f"apr-falsify capture {side} --out TRACE")
