"""``apr-falsify sweep``: many bisections from one file, each in a directory that is whole or not there."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_falsify.commands import options
from apr_falsify.errors import ExitCode, SweepError, UsageError

if TYPE_CHECKING:
    from apr_falsify.sweeps.job import Job
    from apr_falsify.sweeps.local import Done, Limits, LocalEngine
    from apr_falsify.sweeps.on_ray import RayEngine
    from apr_falsify.sweeps.plan import SweepPlan
    from apr_falsify.sweeps.runs import JobResult, Runs
    from apr_falsify.sweeps.summary import Summary

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def sweep() -> None:
    """Plan, run and report many bisections: models x subjects x prompts.

    A sweep file is TOML with the tables models, subjects, prompts, layers, lanes and limits.
    """


@sweep.command()
@click.argument("file", type=FILE)
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "json", "matrix", "slurm")),
    default="text",
    show_default=True,
    help="matrix: for GitHub Actions; slurm: an array script.",
)
@options.debug
def plan(file: Path, form: str) -> int:
    """Print the jobs of a sweep file; runs nothing."""
    from apr_falsify.commands.output import tell
    from apr_falsify.sweeps import formats
    from apr_falsify.sweeps.plan import read_plan

    planned = read_plan(file)
    if form == "matrix":
        tell(formats.matrix(planned))
    elif form == "slurm":
        tell(formats.slurm(planned, str(file)).rstrip("\n"))
    elif form == "json":
        tell(formats.plan_json(planned, planned.jobs))
    else:
        for job in planned.jobs:
            tell(f"{job.id}\n  {job.command}")
        tell(f"{len(planned.jobs)} jobs")
    return int(ExitCode.OK)


@sweep.command()
@click.argument("file", type=FILE)
@click.option("--out", type=FOLDER, help="Where runs are kept.  [default: FILE without .toml, with .sweep]")
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True)
@click.option("--address", help="Of a Ray cluster.  [default: one on this machine]")
@click.option("--workers", type=click.IntRange(min=1), help="How many run at a time.  [default: one a core]")
@click.option("--job", "names", multiple=True, metavar="ID", help="Only this job; repeatable.")
@click.option("--index", type=click.IntRange(min=0), help="Only the job of this number, from 0.")
@click.option("--retry-failed", is_flag=True, help="Run those again that were not judged.")
@click.option("--keep", type=click.Choice(("nothing", "traces")), default="nothing", show_default=True)
@options.debug
def run(
    file: Path,
    out: Path | None,
    engine: str,
    address: str | None,
    workers: int | None,
    names: tuple[str, ...],
    index: int | None,
    retry_failed: bool,
    keep: str,
) -> int:
    """Run the jobs of a sweep file that have not run yet.

    Started again, it goes on where it was. On a terminal it shows a bar, else a line of JSON for each job.
    """
    from apr_falsify.sweeps.plan import read_plan
    from apr_falsify.sweeps.runs import Runs

    if address is not None and engine != "ray":
        raise UsageError("it changes nothing: the engine is local", where="--address", remedy="--engine ray")
    if keep == "traces" and engine == "ray":
        raise UsageError("traces stay where a Ray job ran", where="--keep", remedy="--engine local")
    planned = read_plan(file)
    chosen = _chosen(planned, names, index)
    runs = Runs(out or file.with_name(f"{planned.name}.sweep"))
    with runs.locked(shared=bool(names) or index is not None):
        runs.write_plan(planned.name, planned.jobs)
        waiting = [job for job in chosen if _is_waiting(runs, job, retry_failed)]
        if waiting:
            _run(
                planned, runs, waiting, engine=engine, address=address, workers=workers, keep=keep == "traces"
            )
    results = [runs.get(job) for job in chosen]
    return int(_summarise(runs, chosen, results))


def _chosen(planned: SweepPlan, names: Sequence[str], index: int | None) -> list[Job]:
    if names and index is not None:
        raise UsageError("--job and --index name a job twice", where="--index", remedy="give one of them")
    if index is not None:
        if index >= len(planned.jobs):
            raise SweepError(f"no job {index}", where="--index", expected=f"0 to {len(planned.jobs) - 1}")
        return [planned.jobs[index]]
    return [planned.job(name) for name in dict.fromkeys(names)] or list(planned.jobs)


def _is_waiting(runs: Runs, job: Job, retry_failed: bool) -> bool:
    found = runs.get(job)
    return found is None or (retry_failed and found.bisection is None)


def _run(
    planned: SweepPlan,
    runs: Runs,
    jobs: Sequence[Job],
    *,
    engine: str,
    address: str | None,
    workers: int | None,
    keep: bool,
) -> None:
    from apr_falsify.folders import temporary_folder
    from apr_falsify.sweeps.local import Limits

    limits = Limits(folder=planned.folder, seconds=planned.seconds, memory=planned.memory, keep=keep)
    logs = temporary_folder("sweep")
    chosen = _engine(engine, limits, logs, address, workers)
    try:
        with _watched(runs, len(jobs)) as done:
            chosen.run(jobs, runs.room, done)
    finally:
        chosen.end()
        shutil.rmtree(logs, ignore_errors=True)


def _engine(
    engine: str, limits: Limits, logs: Path, address: str | None, workers: int | None
) -> LocalEngine | RayEngine:
    if engine == "local":
        from apr_falsify.sweeps.local import LocalEngine

        return LocalEngine(limits, logs, workers)
    from apr_falsify.sweeps.on_ray import RayEngine

    return RayEngine(limits, address=address, workers=workers)


@contextmanager
def _watched(runs: Runs, total: int) -> Iterator[Done]:
    """Store each result and show it: a bar on a terminal, else a line of JSON."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apr_falsify.commands.output import tell
    from apr_falsify.sweeps.summary import JobOutcome

    lock, shown = threading.Lock(), sys.stdout is not None and sys.stdout.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("jobs", total=total)

        def done(job: Job, result: JobResult, place: Path) -> None:
            with lock:
                runs.put(job, result, place)
                progress.advance(task)
                if not shown:
                    tell(json.dumps(JobOutcome(job=job, result=result).to_json()))

        yield done


def _summarise(runs: Runs, jobs: Sequence[Job], results: Sequence[JobResult | None]) -> ExitCode:
    """Say on stderr how the jobs came out; return the worst."""
    from apr_falsify.sweeps.page import headline
    from apr_falsify.sweeps.summary import JobOutcome, Summary

    outcomes = tuple(JobOutcome(job=job, result=result) for job, result in zip(jobs, results, strict=True))
    summary = Summary(name="", outcomes=outcomes)
    click.echo(headline(summary), err=True)
    click.echo(f"report: apr-falsify sweep report {runs.folder}", err=True)
    return summary.exit_code


@sweep.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True, metavar="DIR...")
@click.option("--since", type=FILE, metavar="REPORT.json", help="The last report: says what is new.")
@click.option(
    "--out", type=FOLDER, help="Write report.html, report.json and report.xml there.  [default: DIR]"
)
@click.option("--mixed-versions", is_flag=True, help="Allow runs of several versions of apr-falsify.")
@options.output_format
@options.debug
def report(
    folders: tuple[Path, ...], since: Path | None, out: Path | None, mixed_versions: bool, output: str
) -> int:
    """Say what a sweep found: one page, JSON and JUnit.

    Several directories of one sweep file are merged. The exit code is that of bisect; of several the worst.
    """
    from apr_falsify.commands.output import tell, write_file
    from apr_falsify.reading import read_json
    from apr_falsify.sweeps.formats import junit
    from apr_falsify.sweeps.page import sweep_html
    from apr_falsify.sweeps.runs import Runs
    from apr_falsify.sweeps.summary import summary_of

    earlier = None
    if since is not None:
        try:
            earlier = read_json(since)
        except ValueError as error:
            raise SweepError(f"is no report of a sweep: {error}", where=since) from error
        if not isinstance(earlier, dict):
            raise SweepError("is no report of a sweep", where=since)
    summary = summary_of([Runs(folder) for folder in folders], earlier=earlier, mixed=mixed_versions)
    place = out or folders[0]
    data = json.dumps(summary.to_json(), indent=1)
    write_file(place / "report.html", sweep_html(summary))
    write_file(place / "report.json", data + "\n")
    write_file(place / "report.xml", junit(summary))
    tell(data if output == "json" else _text(summary))
    click.echo(f"report: {place / 'report.html'}", err=True)
    return int(summary.exit_code)


def _text(summary: Summary) -> str:
    """Return the matrix for people, in 80 columns."""
    from apr_falsify.commands.output import wrapped
    from apr_falsify.sweeps.page import headline

    lines = [f"sweep {summary.name}: {headline(summary)}", ""]
    for cell in summary.cells:
        counts = ", ".join(f"{count} {word}" for word, count in cell.counts.items())
        marks = [name for name, found in (("new", cell.new), ("flaky", cell.flaky)) if found]
        stage = f": {', '.join(cell.worst.sources[:3])}" if cell.worst.sources else ""
        text = f"{counts}{stage}{' (' + ', '.join(marks) + ')' if marks else ''}"
        lines += wrapped(text, f"{cell.model} x {cell.subject}: ", "    ")
    return "\n".join(lines)
