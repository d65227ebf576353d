"""The exam as a picture: what was located by how many floors a fault changes its stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apr_falsify.errors import MissingDependencyError, OutputError
from apr_falsify.exam.examination import Examination
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.trial import COUNTS_FROM


def drawing() -> Any:
    """Return an empty figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"a plot needs matplotlib ({error})", remedy="pip install 'apr-falsify[report]'"
        ) from error
    return Figure(figsize=(8, 6), layout="constrained")


def draw(figure: Any, examination: Examination, path: Path) -> None:
    """Draw the exam into ``figure``, of :func:`drawing`, and save it; the suffix of ``path`` is the format.

    Raises:
        OutputError: it could not be written.

    """
    sizes, curve = figure.subplots(2, 1)
    _draw_sizes(sizes, examination)
    _draw_curve(curve, examination)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"the plot cannot be written: {error}", where=path) from error


_COLOURS = {Grade.LOCATED: "tab:green", Grade.WRONG: "tab:red", Grade.MISSED: "tab:orange"}


def _draw_sizes(axes: Any, examination: Examination) -> None:
    held = [*examination.single, *examination.below]
    bins = np.logspace(-2, 12, 57)
    for grade, colour in _COLOURS.items():
        levels = np.array([outcome.level for outcome in held if outcome.grade is grade], dtype=float)
        label = f"{grade.value} ({len(levels)})"
        axes.hist(np.clip(levels, bins[0], bins[-1]), bins=bins, color=colour, label=label)
    axes.axvline(COUNTS_FROM, color="black", linestyle=":")
    axes.set(xscale="log", xlabel="floors by which the fault changes its stage", ylabel="runs")
    axes.set_title("Single faults")
    axes.legend()


def _draw_curve(axes: Any, examination: Examination) -> None:
    taken = {level: held for level, held in examination.curve.items() if held}
    shares = [sum(o.grade is Grade.LOCATED for o in held) / len(held) for held in taken.values()]
    axes.plot(list(taken), shares, "o-", color=_COLOURS[Grade.LOCATED])
    axes.set(ylim=(0, 1.05), xlabel="floors", ylabel="share located")
    axes.set_title("Faults made smaller")
