"""The program ``apr-falsify``: which verbs there are, and what an exception becomes."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import click

from apr_falsify import __version__
from apr_falsify.errors import AprFalsifyError, ExitCode, MissingDependencyError

VERBS: Mapping[str, tuple[str, str]] = {
    "bisect": ("apr_falsify.commands.bisect", "Capture both sides, compare them, say where they part."),
    "capture": ("apr_falsify.commands.capture", "Run one side and keep its stages as a trace."),
    "compare": ("apr_falsify.commands.compare", "Compare two traces; runs nothing, writes nothing."),
    "sweep": ("apr_falsify.commands.sweep", "Plan, run and report many bisections."),
    "faults": ("apr_falsify.commands.faults", "Examine the suite itself, with seeded faults."),
    "evidence": ("apr_falsify.commands.evidence", "Re-check, show, compare and sign evidence bundles."),
    "promote": ("apr_falsify.commands.promote", "Raise a falsifier by a rung, on a bundle that verifies."),
    "status": ("apr_falsify.commands.status", "Tally the contracts' falsifiers; the roadmap; ship %."),
    "doctor": ("apr_falsify.commands.doctor", "Say what is there, what is missing, and how to get it."),
}
"""Verb -> its module and a line of help; the module is imported when the verb is called."""


class LazyGroup(click.Group):
    """A group whose verbs are imported on use, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the verb's command."""
        if cmd_name not in VERBS:
            raise click.NoSuchCommand(cmd_name, possibilities=VERBS, ctx=ctx)
        command: click.Command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs' lines of help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="apr-falsify")
def cli() -> None:
    """Find the stage of an LLM's forward pass that introduced the error.

    Exit codes: 0 consistent, 1 a divergence, 2 wrong usage or unusable input,
    3 an internal error, 4 nothing conclusive was measured.
    """


def main() -> NoReturn:
    """Run ``apr-falsify``; the entry point of the console script."""
    # Replays are many small products: one thread does them several times faster than two that wait for
    # each other. NumPy reads this when it is imported; torch does not.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = guarded(cli, sys.argv[1:], "apr-falsify")
    gc.freeze()  # else the collector looks once more through all that torch has made, for a second
    sys.exit(code)


def guarded(command: click.Command, arguments: list[str], prog_name: str) -> int:
    """Run ``command`` and return its exit code; every exception becomes a message on stderr."""
    debug = "--debug" in arguments
    with _breakdowns_shown() if debug else nullcontext():
        return _run(command, arguments, prog_name, debug)


def _run(command: click.Command, arguments: list[str], prog_name: str, debug: bool) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter is no error of ours
            stream.reconfigure(errors="backslashreplace")
    stdout = sys.stdout
    try:
        result = command.main(args=arguments, prog_name=prog_name, standalone_mode=False)
        return int(result or 0)
    except SystemExit:
        # click's way to say that the reader of the help went away: it has put another stdout in its place;
        # nothing else may leave like that
        return int(ExitCode.OK if sys.stdout is not stdout else ExitCode.INTERNAL)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except AprFalsifyError as error:
        return _report(debug, f"error: {error}", int(error.exit_code))
    except (KeyboardInterrupt, click.Abort):
        return _report(debug, "interrupted: no unfinished trace was left behind", 130)
    except OSError as error:
        if error.filename is None:
            return _report(debug, _internal(error), int(ExitCode.INTERNAL))
        return _report(debug, f"error: {error.filename}: {error.strerror}", int(ExitCode.USAGE))
    except MemoryError:
        return _report(debug, "error: out of memory\n  try: fewer --layers or --stages", int(ExitCode.USAGE))
    except ModuleNotFoundError as error:
        missing = _missing(error)
        if missing is None:
            return _report(debug, _internal(error), int(ExitCode.INTERNAL))
        return _report(debug, f"error: {missing}", int(missing.exit_code))
    except Exception as error:  # the last resort: an internal error has an exit code of its own
        return _report(debug, _internal(error), int(ExitCode.INTERNAL))


@contextmanager
def _breakdowns_shown() -> Iterator[None]:
    """Print on stderr, with its traceback, what breaks down without ending the program."""
    import logging  # only here: --help does without

    logger, shown = logging.getLogger("apr_falsify"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(shown)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(shown)
        logger.setLevel(before)


_OF_BISECT = ("gguf", "numpy", "safetensors")
"""Packages that only the extra ``bisect`` brings: contracts are validated without them."""


def _missing(error: ModuleNotFoundError) -> AprFalsifyError | None:
    """Say which extra brings a package that is not installed; ``None`` where none does."""
    package = (error.name or "").partition(".")[0]
    if package not in _OF_BISECT:
        return None
    what = f"{package} is not installed; what compares numbers, and what verifies a bundle of them, needs it"
    return MissingDependencyError(what, remedy="pip install 'apr-falsify[bisect]'")


def _internal(error: Exception) -> str:
    return (
        f"internal error: {type(error).__name__}: {error}\n"
        "  this is a defect of apr-falsify; run again with --debug for the traceback and report it"
    )


def _report(debug: bool, message: str, code: int) -> int:
    if debug:
        import traceback  # only here: it costs a tenth of what --help takes

        traceback.print_exc()
    click.echo(message, err=True)
    return code
