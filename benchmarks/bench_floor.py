"""Claim: the floor's one constant, 8, stands in a wide gap between correct stages and faulty ones.

Holds the exam (``apr-falsify faults``) and plots, over every stage of every run, how far the stage is from
its replay, in units of the rounding that a plain f32 sum brings (``compare.floor``): stages that are right,
in all arithmetics, on all texts, under all kernels, of narrow models and of one of 7B width; and stages with
a fault of at least ten floors. Writes ``docs/figures/floor.svg`` and prints the numbers.

    python benchmarks/bench_floor.py [RESULTS.jsonl [JOBS]]
    python benchmarks/bench_floor.py --held RESULTS.jsonl ...

RESULTS.jsonl is the file of ``apr-falsify faults --results``: what it holds is not run again. With ``--held``
nothing is run: what such files hold is plotted, of a part of the exam say.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from apr_falsify.commands.examine import Wanted, examine
from apr_falsify.exam.examination import Examination
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.plan import CORRECT, SINGLE
from apr_falsify.exam.recipes import case_of, outcome_of
from apr_falsify.exam.trial import TrialOutcome
from apr_falsify.operators.roundoff import LIMIT

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "floor.svg"

F64 = npt.NDArray[np.float64]


def main() -> None:
    examination = held_in(map(Path, sys.argv[2:])) if sys.argv[1:2] == ["--held"] else examined(sys.argv[1:])
    held = [*examination.correct, *examination.single]
    groups = {
        "right, narrow models": right_of([outcome for outcome in held if not outcome.case.material.wide]),
        "right, 7B width": right_of([outcome for outcome in held if outcome.case.material.wide]),
        "faulty": guilty_of(examination),
    }
    for label, values in groups.items():
        print_distances(label, values)
    for title, by in BY.items():
        print_farthest(title, by, examination.correct)
    print(f"limit: {LIMIT:g} sigma")
    accused = sum(outcome.grade is not Grade.LOCATED for outcome in examination.correct)
    print(f"accused: {accused} of {len(examination.correct)} correct runs")
    missed = sum(outcome.grade is not Grade.LOCATED for outcome in examination.single)
    print(f"not located: {missed} of {len(examination.single)} faults of ten floors or more")
    draw(groups)
    print(f"drawn: {FIGURE.name}")


def examined(arguments: list[str]) -> Examination:
    """Hold those parts of the exam that the plot shows."""
    results = Path(arguments[0]) if arguments else None
    jobs = int(arguments[1]) if len(arguments) > 1 else 1
    return examine(Wanted(results=results, jobs=jobs, parts=(SINGLE, CORRECT)))


def held_in(files: Iterable[Path]) -> Examination:
    """Return the correct runs and the single faults that results files hold."""
    examination = Examination()
    for file in files:
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if "case" not in row:
                continue
            outcome = outcome_of(case_of(row["case"], file), row["outcome"])
            if not outcome.case.seeded:
                examination.correct.append(outcome)
            elif len(outcome.case.seeded) == 1 and outcome.case.seeded[0].amount == 1:
                examination.count_single([outcome])
    return examination


BY: dict[str, Callable[[TrialOutcome], str]] = {
    "model": lambda outcome: outcome.case.material.name,
    "kernel": lambda outcome: outcome.case.kernel,
    "text": lambda outcome: outcome.case.text,
    "arithmetic": lambda outcome: outcome.case.setting.name,
}


def right_of(outcomes: list[TrialOutcome]) -> F64:
    """Return how far stages that are right are from their replay, in sigmas."""
    return np.array([value for outcome in outcomes for value in outcome.right]) * LIMIT


def guilty_of(examination: Examination) -> F64:
    """Return how far faulty stages are from their replay, in sigmas."""
    # Of a conversion fault only the tensor is wrong; what was computed with it is right.
    computed = [outcome for outcome in examination.single if outcome.case.host != "conversion"]
    return np.array([value for outcome in computed for value in outcome.guilty]) * LIMIT


def print_distances(label: str, values: F64) -> None:
    if not len(values):
        print(f"{label}: none")
        return
    shares = (0, 0.1, 1, 50) if label == "faulty" else (50, 99, 99.9, 100)
    found = ", ".join(f"{share:g} % below {np.percentile(values, share):.3g}" for share in shares)
    print(f"{label}: {len(values)} stages, in sigmas: {found}")


def print_farthest(title: str, by: Callable[[TrialOutcome], str], outcomes: list[TrialOutcome]) -> None:
    farthest: dict[str, float] = {}
    runs = Counter(map(by, outcomes))
    for outcome in outcomes:
        farthest[by(outcome)] = max(farthest.get(by(outcome), 0.0), *outcome.right, 0.0)
    for name, value in sorted(farthest.items(), key=lambda item: -item[1]):
        print(f"  farthest right stage, {title} {name}: {value * LIMIT:.2f}, of {runs[name]} runs")


def draw(groups: dict[str, F64]) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.logspace(-2, 10, 97)
    for (label, values), colour in zip(groups.items(), ("tab:green", "tab:blue", "tab:red"), strict=True):
        shown = np.clip(values, bins[0], bins[-1])
        axes.hist(shown, bins=list(bins), color=colour, alpha=0.6, label=f"{label} ({len(values)} stages)")
    axes.axvline(LIMIT, color="black", linestyle="--", label=f"limit: {LIMIT:g}")
    axes.set(xscale="log", yscale="log", ylabel="stages")
    axes.set_xlabel("largest distance from the replay, in units of a plain f32 sum's rounding")
    axes.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
