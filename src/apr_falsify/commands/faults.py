"""``apr-falsify faults``: the suite's own exam."""

from __future__ import annotations

from pathlib import Path

import click

from apr_falsify.commands import options


@click.command()
@click.option("--models", metavar="a,b", help="Models to seed faults in.  [default: all that are at hand]")
@click.option(
    "--seeds", type=click.IntRange(1, 99), default=3, show_default=True, help="Seeds of each model."
)
@click.option("--quick", is_flag=True, help="A small part of everything, in less than a minute.")
@click.option("--parts", metavar="a,b", help="Parts of the exam, e.g. 'correct runs'.  [default: all]")
@click.option("--kernels", metavar="a,b", help="Kernels of the correct runs, e.g. sse.  [default: all]")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes at a time."
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Keep every outcome there; those that are there are not run again.",
)
@click.option(
    "--case",
    "recipes",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE.json",
    help="Run these cases alone: a case as --format json quotes it, or all failures of such a result.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the result into a file."
)
@options.output_format
@options.debug
def faults(
    models: str | None,
    seeds: int,
    quick: bool,
    parts: str | None,
    kernels: str | None,
    jobs: int,
    results: Path | None,
    recipes: Path | None,
    plot: Path | None,
    output: str,
) -> int:
    """Examine the suite itself: seed faults, see which are located, missed or imagined.

    Exits with 0 where its goals are met: every single fault of ten floors or more is located, 80 % of them
    explained, 95 % of random pairs located, and no correct run accused. Correct runs take place on random and
    repetitive texts, under several kernels of the libraries, and at the width of a 7B model.
    """
    import json

    from apr_falsify.commands.examine import Wanted, cases_in, chosen, chosen_models, examine
    from apr_falsify.commands.faults_table import table
    from apr_falsify.commands.output import tell
    from apr_falsify.exam.kernels import KERNELS
    from apr_falsify.exam.plan import PARTS
    from apr_falsify.exam.plot import draw, drawing
    from apr_falsify.exam.tally import goals, to_json

    wanted = Wanted(
        models=chosen_models(models),
        seeds=seeds,
        quick=quick,
        parts=chosen(parts, PARTS, "--parts") or PARTS,
        kernels=chosen(kernels, KERNELS, "--kernels"),
        jobs=jobs,
        results=results,
        cases=() if recipes is None else cases_in(recipes),
    )
    figure = None if plot is None else drawing()  # before the exam: it may be refused
    examination = examine(wanted)
    if figure is not None and plot is not None:
        draw(figure, examination, plot)
    tell(json.dumps(to_json(examination), indent=1) if output == "json" else table(examination))
    met = goals(examination).values()
    return 0 if met and all(met) else 1
