"""The exam itself: every case is run once, and what came of it is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apr_falsify.exam.cases import ExamCase, Host
from apr_falsify.exam.correct import correct_runs
from apr_falsify.exam.plan import (
    CORRECT,
    FURTHER,
    PAIRS,
    PARTS,
    SINGLE,
    SMALL,
    SMOLLM2,
    WIDE_MODEL,
    ExamPlan,
    pairs,
    repetitive_singles,
    singles,
    smollm2_singles,
    wide_singles,
)
from apr_falsify.exam.plan_in_passes import further_cases
from apr_falsify.exam.store import Store
from apr_falsify.exam.trial import COUNTS_FROM, TrialOutcome

CURVE = (1.0, 2.0, 5.0)
"""Floors at which the detection curve is taken, below those from which a fault counts."""

Hold = Callable[[Mapping[str, Sequence[ExamCase]]], Mapping[str, list[TrialOutcome]]]
"""Runs cases, given by the title of their part, and returns what came of each, in their order."""


@dataclass(slots=True, kw_only=True)
class Examination:
    """What came of every case.

    Attributes:
        single: single faults of at least ten floors.
        below: single faults below that.
        pairs: pairs of which both are of at least ten floors.
        correct: correct runs.
        curve: floors -> single faults made just so large.
        not_run: what was left out, and why.
        seconds: how long it took.
        kernels: kernel -> what its process reports that it computes with.
        parts: the parts that were to be run.

    """

    single: list[TrialOutcome] = field(default_factory=list)
    below: list[TrialOutcome] = field(default_factory=list)
    pairs: list[TrialOutcome] = field(default_factory=list)
    correct: list[TrialOutcome] = field(default_factory=list)
    curve: dict[float, list[TrialOutcome]] = field(default_factory=lambda: {level: [] for level in CURVE})
    not_run: list[str] = field(default_factory=list)
    seconds: float = 0.0
    kernels: dict[str, dict[str, str]] = field(default_factory=dict)
    parts: tuple[str, ...] = PARTS

    def count(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Take up outcomes of any kind, each by how many faults it has."""
        for outcome in outcomes:
            if not outcome.case.seeded:
                self.correct.append(outcome)
            elif len(outcome.case.seeded) == 1:
                self.count_single([outcome])
            elif outcome.level >= COUNTS_FROM:
                self.pairs.append(outcome)

    def count_single(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Take up single faults, each by how many floors it changes its stage."""
        for outcome in outcomes:
            (self.single if outcome.level >= COUNTS_FROM else self.below).append(outcome)


def sit(plan: ExamPlan, store: Store, hosts: Mapping[str, Host], hold: Hold) -> Examination:
    """Run the whole exam, or those parts of it that the plan names."""
    start = time.monotonic()
    examination = Examination(parts=plan.parts)
    held = hold({part: cases for part, cases in _planned(plan, store, hosts).items() if part in plan.parts})
    for outcomes in held.values():
        examination.count(outcomes)
    if SMALL in plan.parts:
        _take_curve(examination, hold)
    examination.seconds = time.monotonic() - start
    return examination


def _planned(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> dict[str, list[ExamCase]]:
    faults = [*singles(plan, store, hosts), *repetitive_singles(plan, store, hosts)]
    if SMOLLM2 in plan.models:
        faults += smollm2_singles(store)
    if WIDE_MODEL in plan.models:
        faults += wide_singles(store, hosts)
    return {
        SINGLE: faults,
        PAIRS: list(pairs(plan, store, hosts)),
        CORRECT: list(correct_runs(plan, store, hosts)),
        FURTHER: list(further_cases(plan, store, hosts)),
    }


def again(cases: Sequence[ExamCase], hold: Hold) -> Examination:
    """Run ``cases`` alone, each in the part that it belongs to."""
    part = {0: CORRECT, 1: SINGLE, 2: PAIRS}
    listed: dict[str, list[ExamCase]] = {}
    for case in cases:
        listed.setdefault(part[len(case.seeded)], []).append(case)
    start = time.monotonic()
    held = hold(listed)
    examination = Examination(
        correct=[*held.get(CORRECT, ())], pairs=[*held.get(PAIRS, ())], parts=tuple(listed)
    )
    examination.count_single(held.get(SINGLE, ()))
    examination.seconds = time.monotonic() - start
    return examination


def _take_curve(examination: Examination, hold: Hold) -> None:
    """Make one run of each formula fault smaller, until it changes its stage by 1, 2 and 5 floors."""
    first = {
        outcome.case.seeded[0].fault.name: outcome
        for outcome in reversed(examination.single)
        if outcome.case.host == "formula" and outcome.case.setting.name == "f32"
    }
    cases = {
        f"faults of {level:g} floors": [_made_small(outcome, level) for outcome in first.values()]
        for level in CURVE
    }
    held = hold(cases)
    for level in CURVE:
        examination.curve[level] += held[f"faults of {level:g} floors"]


def _made_small(outcome: TrialOutcome, level: float) -> ExamCase:
    (seeded,) = outcome.case.seeded
    return replace(outcome.case, seeded=(replace(seeded, amount=level / outcome.level),))
