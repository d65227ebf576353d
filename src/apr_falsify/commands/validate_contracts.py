"""``validate-contracts``: that what contracts name exists, and that no status claims more than it shows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from apr_falsify.commands.main import guarded
from apr_falsify.commands.output import tell
from apr_falsify.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from apr_falsify.contracts.outcome import ValidationOutcome
    from apr_falsify.contracts.problem import Problem
    from apr_falsify.contracts.settings import Settings
    from apr_falsify.contracts.standing import Evidence

_RELEASE = re.compile(r"v?\d+\.\d+")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 valid, 1 invalid, 2 wrong usage, 3 internal error, 4 no name could be resolved.",
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--source", "sources", multiple=True, metavar="NAME=DIR", help="Tree that names 'NAME:path' are in."
)
@click.option("--against", metavar="GIT_REF", help="Also compare with the contracts of this commit.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Known problems: counted, not failed.")
@click.option("--write-baseline", is_flag=True, help="Write the problems found to the --baseline file.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif", "github"]),
    default="text",
    show_default=True,
)
@click.option("--strict", is_flag=True, help="Warnings, and names that could not be resolved, are errors.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache.")
@click.option("--print-schema", is_flag=True, help="Print the JSON Schema of a contract, for editors.")
@click.option("--list-rules", is_flag=True, help="Print every code with its severity and reason.")
@click.option("--debug", is_flag=True, help="Show a traceback on an internal error.")
@click.version_option(package_name="apr-falsify")
def command(
    paths: tuple[Path, ...],
    sources: tuple[str, ...],
    against: str | None,
    baseline: Path | None,
    write_baseline: bool,
    form: str,
    strict: bool,
    no_cache: bool,
    print_schema: bool,
    list_rules: bool,
    debug: bool,
) -> int:
    """Check contracts: every file, function, type and test they name exists, and no status claims too much.

    PATHS are contract files or directories of them; 'contracts' where none is given.
    """
    if print_schema:
        from apr_falsify.contracts.schema import schema_text

        tell(schema_text().removesuffix("\n"))
        return int(ExitCode.OK)
    if list_rules:
        _list_rules()
        return int(ExitCode.OK)
    from apr_falsify.contracts.output import render

    outcome = validate(
        paths,
        sources,
        against=against,
        baseline=baseline,
        write=write_baseline,
        strict=strict,
        cached=not no_cache,
    )
    printed = render(outcome, form)
    if printed:
        tell(printed.removesuffix("\n"))
    return int(outcome.exit_code)


def validate(
    paths: tuple[Path, ...],
    sources: tuple[str, ...] = (),
    *,
    against: str | None = None,
    baseline: Path | None = None,
    write: bool = False,
    strict: bool = False,
    cached: bool = True,
) -> ValidationOutcome:
    """Validate contracts as the program does, and return what it would print.

    Raises:
        AprFalsifyError: the command line, the settings or a source cannot be used.

    """
    from apr_falsify.contracts.baseline import Extent, read_baseline, write_baseline
    from apr_falsify.contracts.engine import run
    from apr_falsify.contracts.outcome import judge
    from apr_falsify.contracts.settings import read_settings

    if write and baseline is None:
        raise UsageError("--write-baseline needs --baseline FILE", remedy="--baseline FILE --write-baseline")
    settings = read_settings(Path.cwd())
    roots = _sources(sources, settings)
    asked = paths or settings.contracts or (Path("contracts"),)
    evidence = _evidence(asked, settings, cached=cached)
    report = run(asked, roots, cached=cached, evidence=evidence, tested=settings.contracts)
    problems = list(report.problems)
    if against is not None:
        from apr_falsify.contracts.history import history_problems

        problems.extend(history_problems(asked, against))
    known = None
    if baseline is not None:
        extent = Extent.of(asked, against, baseline)
        if write:
            write_baseline(baseline, problems, extent, settings.counts)
        known = read_baseline(baseline).match(problems, extent)
    problems.sort(key=lambda one: (one.path, one.line, one.column, one.code))
    released = _on_a_release(problems, settings)

    def is_raised(one: Problem) -> bool:
        kept = one.code == "functional-without-bundle" and evidence is not None and evidence.covers(one.path)
        return kept or one.code in released

    return judge(problems, report, settings, known, strict=strict, raised=is_raised)


def _evidence(paths: Sequence[Path], settings: Settings, *, cached: bool) -> Evidence | None:
    """The state of the project's evidence; where it keeps none nothing is imported to look at it."""
    if settings.evidence_dir is None:
        return None
    from apr_falsify.commands.standings import survey

    return survey(paths, settings, cached=cached)


def _on_a_release(problems: Sequence[Problem], settings: Settings) -> tuple[str, ...]:
    """Codes whose warning is an error where HEAD is a release: stale evidence is not published."""
    stale = "evidence-stale"
    if settings.root is None or all(one.code != stale for one in problems):
        return ()
    from apr_falsify.contracts.history import tags_at_head

    return (stale,) if any(_RELEASE.match(tag) for tag in tags_at_head(settings.root)) else ()


def _sources(given: tuple[str, ...], settings: Settings) -> dict[str, Path]:
    """Sources of the settings that are there, and those of the command line, which must be."""
    sources = {name: path for name, path in settings.sources.items() if path.is_dir()}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--source {entry!r} is not NAME=DIR", remedy="--source aprender=../aprender")
        if not os.path.isdir(folder):
            raise UsageError(
                "the source root is not a directory", where=folder, expected=f"the tree of {name!r}"
            )
        sources[name] = Path(folder)
    return sources


def _list_rules() -> None:
    from apr_falsify.contracts.rules import RULES

    tell("\n".join(f"{rule.code:36} {rule.severity:8} {rule.reason}" for rule in RULES.values()))


def main() -> NoReturn:
    """Run ``validate-contracts``; the entry point of the console script."""
    sys.exit(guarded(command, sys.argv[1:], "validate-contracts"))


if __name__ == "__main__":
    main()
