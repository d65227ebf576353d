"""Claim: the floor's one constant, 8, stands in a wide gap between correct stages and faulty ones.

Holds the exam (``apr-falsify faults``) with few seeds and plots, over every stage of every run, how far the
stage is from its replay, in units of the rounding that a plain f32 sum brings (``compare.floor``): stages
that are right, in all arithmetics, and stages with a fault of at least ten floors. Writes
``docs/figures/floor.svg`` and prints the numbers.

    python benchmarks/bench_floor.py [SEEDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from apr_falsify.commands.examine import Wanted, examine
from apr_falsify.compare.excess import LIMIT
from apr_falsify.exam.sitting import Sitting

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "floor.svg"
MODELS = ("tiny-qwen2", "qwen2-like", "llama-like", "qwen3-like", "mistral-like")

F64 = npt.NDArray[np.float64]


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    sitting = examine(Wanted(models=MODELS, seeds=seeds))
    right, guilty = distances(sitting)
    print(
        f"{len(right)} right stages of {len(sitting.correct)} correct and {len(sitting.single)} faulted runs"
    )
    for share in (50, 99, 99.9, 100):
        print(f"  {share:5g} % within {np.percentile(right, share):.2f} sigma")
    print(f"limit: {LIMIT:g} sigma")
    print(f"{len(guilty)} stages with a fault of ten floors or more")
    for share in (0, 0.1, 1, 50):
        print(f"  {share:5g} % below {np.percentile(guilty, share):.3g} sigma")
    draw(right, guilty)
    print(f"drawn: {FIGURE}")


def distances(sitting: Sitting) -> tuple[F64, F64]:
    """Return how far right and faulty stages are from their replay, in sigmas."""
    held = [*sitting.correct, *sitting.single]
    right = np.array([value for outcome in held for value in outcome.right])
    # Of a conversion fault only the tensor is wrong; what was computed with it is right.
    computed = [outcome for outcome in held if outcome.case.host != "conversion"]
    guilty = np.array([value for outcome in computed for value in outcome.guilty])
    return right * LIMIT, guilty * LIMIT


def draw(right: F64, guilty: F64) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.logspace(-2, 10, 97)
    for values, label, colour in (
        (right, f"right ({len(right)} stages)", "tab:green"),
        (guilty, f"faulty ({len(guilty)} stages)", "tab:red"),
    ):
        axes.hist(np.clip(values, bins[0], bins[-1]), bins=list(bins), color=colour, alpha=0.7, label=label)
    axes.axvline(LIMIT, color="black", linestyle="--", label=f"limit: {LIMIT:g}")
    axes.set(xscale="log", yscale="log", ylabel="stages")
    axes.set_xlabel("largest distance from the replay, in units of a plain f32 sum's rounding")
    axes.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
