"""Options that several verbs share, so that they read and mean the same everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import click
from click.core import ParameterSource

from apr_falsify.commands import passes
from apr_falsify.errors import AprFalsifyError, LayerRangeError, StageError, TokensError, UsageError
from apr_falsify.model.stages import parse_layers, parse_stages

NOT_APR = "the subject is not run by apr"
"""Why ``--apr-binary`` changes nothing."""

_OPTION_OF: Mapping[type[AprFalsifyError], str] = {
    LayerRangeError: "--layers",
    StageError: "--stages",
    TokensError: "--tokens",
}
"""Error -> the option that a reader has to change where the error names no file."""


@contextmanager
def naming_the_option() -> Iterator[None]:
    """Let an error that names no place name the option it is about."""
    try:
        yield
    except tuple(_OPTION_OF) as error:
        raise error.at(_OPTION_OF[type(error)]) from error.__cause__


def refuse_unused(names: tuple[str, ...], because: str) -> None:
    """Refuse options that the user gave and that would change nothing.

    Raises:
        UsageError: one of ``names`` stands on the command line.

    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"it changes nothing: {because}", where=option, remedy=f"leave {option} out")


class Layers(click.ParamType[range]):
    """``A..B``, end exclusive."""

    name = "A..B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """Return the range."""
        with naming_the_option():
            return value if isinstance(value, range) else parse_layers(value)


class Stages(click.ParamType[tuple[str, ...]]):
    """Names separated by commas, or ``all``."""

    name = "a,b,c"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names in forward order."""
        with naming_the_option():
            return value if isinstance(value, tuple) else parse_stages(value)


class Tokens(click.ParamType[tuple[int, ...]]):
    """Token ids separated by commas."""

    name = "1,2,3"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the ids."""
        if isinstance(value, tuple):
            return value
        ids = passes.whole_numbers(value, digits=sys.get_int_max_str_digits())
        if ids is None:
            raise TokensError(f"not token ids: {value!r}", where="--tokens", expected="e.g. 274,272,332,13")
        return ids


class KeyValue(click.ParamType[tuple[str, str]]):
    """A name and a value around the first equals sign."""

    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, equals, text = (part.strip() for part in value.partition("="))
        if not (name and equals and text):
            where = "--subject-option" if param is None else param.opts[0]
            raise UsageError(f"not a setting: {value!r}", where=where, expected="KEY=VALUE")
        return name, text


def _each_once(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Return the settings; one that is given twice is refused."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", where=param.opts[0], remedy="give it once")
    return pairs


def some_path(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Return the path that was given; an empty one is refused, since it would mean the current folder."""
    if value == "":
        raise UsageError("an empty path", where=param.opts[0])
    return None if value is None else Path(value)


def _load_families(ctx: click.Context, param: click.Parameter, files: tuple[str, ...]) -> None:
    """Run the files: from here on their families are known as those of the table are."""
    for file in files:
        from apr_falsify.operators.family_file import load_families  # it brings NumPy, --help does without

        load_families(Path(file))


family = click.option(
    "--family",
    multiple=True,
    metavar="FILE.py",
    callback=_load_families,
    expose_value=False,
    help="A model family of your own, in Python: the file is run.  Repeatable.",
)
layers = click.option(
    "--layers",
    type=Layers(),
    help="Layers, end exclusive.  [default: those that a trace or recording holds, else 0..1]",
)
stages = click.option(
    "--stages",
    type=Stages(),
    metavar="a,b,c|all",
    default="all",
    show_default=True,
    help="Stages, named as apr names them.",
)
substages = click.option(
    "--with-attn-substages/--no-attn-substages",
    default=True,
    help="Capture q_post_rope, k_post_rope, attn_scores and attn_softmax.  [default: with]",
)
prompt = click.option("--prompt", metavar="TEXT", help="Text to run.  [default: What is 2+2?]")
tokens = click.option("--tokens", type=Tokens(), help="Token ids to run, or that a bare recording ran.")
device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the oracle runs.",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["f16", "bf16", "f32"]),
    help="The oracle's number format.  [default: f32 on cpu, f16 on cuda]",
)
arithmetic = click.option(
    "--arithmetic",
    metavar="SPEC",
    help="What the subject computes in, e.g. 'f32; q8_0 blocks of 32'; the embedded runtime runs in it.  "
    "[default: f32, or what the runtime is known for]",
)
subject_option = click.option(
    "--subject-option",
    type=KeyValue(),
    multiple=True,
    callback=_each_once,
    help="A setting handed to the subject's runtime, e.g. cache-type-k=q8_0; repeatable.",
)
oracle_option = click.option(
    "--oracle-option",
    type=KeyValue(),
    multiple=True,
    callback=_each_once,
    help="A setting of the runtime behind --oracle RUNTIME:PATH, e.g. attention=sdpa; repeatable.",
)
apr_binary = click.option(
    "--apr-binary",
    callback=some_path,
    metavar="PATH",
    help="The apr that runs the subject.  [default: the one on PATH]",
)
timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=900,
    show_default=True,
    help="How long one run of the subject's program may take.",
)
weights = click.option(
    "--weights",
    type=click.Choice(["subject", "oracle"]),
    default="subject",
    show_default=True,
    help="Whose weights the subject is replayed with, where its own can be read.",
)
output_format = click.option(
    "--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Print the traceback of an error."
)  # commands.main looks for it


out = click.option(
    "--out",
    callback=some_path,
    metavar="RUN",
    help="Keep both traces, bisection.json and report.html there; a side that is there is used again.",
)


class Sides(TypedDict):
    """How the two sides of a comparison are run, as ``sides.make_plan`` takes it.

    Attributes:
        layers: the layers to judge; ``None`` for those that a trace or recording holds, else the first.
        stages: the stages to judge.
        substages: whether those within the attention are among them.
        prompt: the text to run.
        tokens: the token ids to run.
        passes: which of them are computed together.
        arithmetic: what the subject computes in.
        options: settings for the subject's runtime.
        oracle_options: settings for a runtime that takes transformers' place.
        program: the runtime's program, where it is not the one on PATH.
        seconds: how long one run of it may take.

    """

    layers: range | None
    stages: tuple[str, ...]
    substages: bool
    prompt: str | None
    tokens: tuple[int, ...] | None
    passes: NotRequired[passes.AskedPasses]
    arithmetic: str | None
    options: NotRequired[Mapping[str, str]]
    oracle_options: NotRequired[Mapping[str, str]]
    program: NotRequired[Path | None]
    seconds: NotRequired[float]


def both_sides(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options of both sides: the subject's as ``sides``, the oracle's device and dtype."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        sides = {key: given.pop(parameter) for key, parameter in _PARAMETERS.items()}
        sides["options"] = dict(sides["options"])
        sides["passes"] = passes.asked(given)
        return command(sides=sides, **given)

    for option in reversed(_BOTH_SIDES):
        gathered = option(gathered)
    return gathered


_PARAMETERS: Mapping[str, str] = {
    "layers": "layers",
    "stages": "stages",
    "substages": "with_attn_substages",
    "prompt": "prompt",
    "tokens": "tokens",
    "arithmetic": "arithmetic",
    "options": "subject_option",
    "program": "apr_binary",
    "seconds": "timeout",
}
"""Key of :class:`Sides` -> click's name of the option."""

_BOTH_SIDES = (
    family,
    layers,
    stages,
    substages,
    prompt,
    tokens,
    *passes.OPTIONS,
    device,
    dtype,
    arithmetic,
    subject_option,
    apr_binary,
    timeout,
)
