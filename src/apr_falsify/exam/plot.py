"""The exam as a picture: what was located by how many floors a fault changes its stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apr_falsify.errors import MissingDependencyError, OutputError
from apr_falsify.exam.marks import Mark
from apr_falsify.exam.sitting import Sitting
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


def draw(figure: Any, sitting: Sitting, path: Path) -> None:
    """Draw the exam into ``figure``, of :func:`drawing`, and save it; the suffix of ``path`` is the format.

    Raises:
        OutputError: it could not be written.

    """
    sizes, curve = figure.subplots(2, 1)
    _draw_sizes(sizes, sitting)
    _draw_curve(curve, sitting)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"the plot cannot be written: {error}", where=path) from error


_COLOURS = {Mark.LOCATED: "tab:green", Mark.WRONG: "tab:red", Mark.MISSED: "tab:orange"}


def _draw_sizes(axes: Any, sitting: Sitting) -> None:
    held = [*sitting.single, *sitting.below]
    bins = np.logspace(-2, 12, 57)
    for mark, colour in _COLOURS.items():
        levels = np.array([outcome.level for outcome in held if outcome.mark is mark], dtype=float)
        label = f"{mark.value} ({len(levels)})"
        axes.hist(np.clip(levels, bins[0], bins[-1]), bins=bins, color=colour, label=label)
    axes.axvline(COUNTS_FROM, color="black", linestyle=":")
    axes.set(xscale="log", xlabel="floors by which the fault changes its stage", ylabel="runs")
    axes.set_title("Single faults")
    axes.legend()


def _draw_curve(axes: Any, sitting: Sitting) -> None:
    taken = {level: held for level, held in sitting.curve.items() if held}
    shares = [sum(o.mark is Mark.LOCATED for o in held) / len(held) for held in taken.values()]
    axes.plot(list(taken), shares, "o-", color=_COLOURS[Mark.LOCATED])
    axes.set(ylim=(0, 1.05), xlabel="floors", ylabel="share located")
    axes.set_title("Faults made smaller")
