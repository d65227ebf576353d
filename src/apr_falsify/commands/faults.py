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
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the result into a file."
)
@options.output_format
@options.debug
def faults(models: str | None, seeds: int, quick: bool, plot: Path | None, output: str) -> int:
    """Examine the suite itself: seed faults, see which are located, missed or imagined.

    Exits with 0 where its goals are met: every single fault of ten floors or more is located, 80 % of them
    explained, 95 % of random pairs located, and no correct run accused.
    """
    import json

    from apr_falsify.commands.examine import chosen_models, examine
    from apr_falsify.commands.faults_table import table
    from apr_falsify.commands.output import tell
    from apr_falsify.exam.plot import draw, drawing
    from apr_falsify.exam.tally import goals, to_json

    names = chosen_models(models)
    figure = None if plot is None else drawing()  # before the exam: it may be refused
    sitting = examine(names, seeds=seeds, quick=quick)
    if figure is not None and plot is not None:
        draw(figure, sitting, plot)
    tell(json.dumps(to_json(sitting), indent=1) if output == "json" else table(sitting))
    return 0 if all(goals(sitting).values()) else 1
