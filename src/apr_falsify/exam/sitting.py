"""The exam itself: every case is held once, and what came of it is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from apr_falsify.exam.cases import Case, Host
from apr_falsify.exam.material import Store
from apr_falsify.exam.plan import SMOLLM2, Plan, correct_runs, pairs, singles, smollm2_singles
from apr_falsify.exam.trial import COUNTS_FROM, Examiner, Outcome

CURVE = (1.0, 2.0, 5.0)
"""Floors at which the detection curve is taken, below those from which a fault counts."""

Watch = Callable[[str, int, int], None]
"""Told what is held, how many cases are done, and of how many."""


@dataclass(slots=True, kw_only=True)
class Sitting:
    """What came of every case.

    Attributes:
        single: single faults of at least ten floors.
        below: single faults below that.
        pairs: pairs of which both are of at least ten floors.
        correct: correct runs.
        curve: floors -> single faults made just so large.
        not_run: what was left out, and why.
        seconds: how long it took.

    """

    single: list[Outcome] = field(default_factory=list)
    below: list[Outcome] = field(default_factory=list)
    pairs: list[Outcome] = field(default_factory=list)
    correct: list[Outcome] = field(default_factory=list)
    curve: dict[float, list[Outcome]] = field(default_factory=lambda: {level: [] for level in CURVE})
    not_run: list[str] = field(default_factory=list)
    seconds: float = 0.0


def sit(plan: Plan, store: Store, hosts: Mapping[str, Host], examiner: Examiner, watch: Watch) -> Sitting:
    """Hold the whole exam."""
    start = time.monotonic()
    sitting = Sitting()
    for outcome in _held(_singles(plan, store, hosts), examiner, "single faults", watch):
        (sitting.single if outcome.level >= COUNTS_FROM else sitting.below).append(outcome)
    _take_curve(sitting, examiner, watch)
    for outcome in _held(pairs(plan, store, hosts), examiner, "pairs of faults", watch):
        if outcome.level >= COUNTS_FROM:
            sitting.pairs.append(outcome)
    sitting.correct += _held(correct_runs(plan, store, hosts), examiner, "correct runs", watch)
    sitting.seconds = time.monotonic() - start
    return sitting


def _singles(plan: Plan, store: Store, hosts: Mapping[str, Host]) -> Iterator[Case]:
    yield from singles(plan, store, hosts)
    if SMOLLM2 in plan.models:
        yield from smollm2_singles(store)


def _held(cases: Iterable[Case], examiner: Examiner, title: str, watch: Watch) -> Iterator[Outcome]:
    listed = list(cases)
    for count, case in enumerate(listed):
        watch(title, count, len(listed))
        yield examiner.trial(case)
    watch(title, len(listed), len(listed))


def _take_curve(sitting: Sitting, examiner: Examiner, watch: Watch) -> None:
    """Make one run of each formula fault smaller, until it changes its stage by 1, 2 and 5 floors."""
    first = {
        outcome.case.seeded[0].fault.name: outcome
        for outcome in reversed(sitting.single)
        if outcome.case.host == "formula" and outcome.case.setting.name == "f32"
    }
    for level in CURVE:
        cases = [_made_small(outcome, level) for outcome in first.values()]
        sitting.curve[level] += _held(cases, examiner, f"faults of {level:g} floors", watch)


def _made_small(outcome: Outcome, level: float) -> Case:
    (seeded,) = outcome.case.seeded
    return replace(outcome.case, seeded=(replace(seeded, amount=level / outcome.level),))
