"""What an exam says in numbers: tallies, goals, and the object of schema ``apr-falsify/faults/v1``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apr_falsify.exam.examination import Examination
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.faults import CATALOGUE
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.kernels import OWN
from apr_falsify.exam.material import BLUEPRINTS
from apr_falsify.exam.plan import CORRECT, FURTHER, PAIRS, SINGLE, SMOLLM2
from apr_falsify.exam.recipes import key_of, recipe_of
from apr_falsify.exam.trial import TrialOutcome

SCHEMA = "apr-falsify/faults/v1"

EXPLAINED_SHARE = 0.8
PAIRS_SHARE = 0.95

_Grading = Callable[[TrialOutcome], Grade]


def bound_of(count: int, accused: int = 0) -> float:
    """Return the highest rate that ``accused`` of ``count`` leaves possible, with 95 % confidence.

    It is the rate at which as few or fewer would be seen once in twenty times (Clopper & Pearson 1934); of
    none accused that is 1 - 0.05 ** (1 / count).
    """
    if accused >= count:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(accused, count, rate) > 0.05 else (low, rate)
    return high


def _at_most(accused: int, count: int, rate: float) -> float:
    """Return how probable ``accused`` or fewer of ``count`` are: a binomial sum, in logarithms."""
    yes, no = math.log(rate), math.log1p(-rate)
    return math.fsum(
        math.exp(
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * yes
            + (count - k) * no
        )
        for k in range(accused + 1)
    )


def _ours(outcome: TrialOutcome) -> Grade:
    return outcome.grade


def _published(outcome: TrialOutcome) -> Grade:
    return outcome.published


def tallies(examination: Examination, grading: _Grading = _ours) -> dict[str, Any]:
    """Return how single faults, pairs and correct runs were marked."""
    counted = {grade.value: _count(examination.single, grading, grade) for grade in Grade}
    explained = sum(outcome.explained for outcome in examination.single) if grading is _ours else 0
    return {
        "single": {
            "faults": len({outcome.case.seeded[0].fault.name for outcome in examination.single}),
            "total": len(examination.single),
            **counted,
            "explained": explained,
        },
        "pairs": {
            "total": len(examination.pairs),
            "located": _count(examination.pairs, grading, Grade.LOCATED),
        },
        "correct_runs": {
            "total": len(examination.correct),
            "distinct": distinct(examination),
            "accused": len(examination.correct) - _count(examination.correct, grading, Grade.LOCATED),
        },
    }


def distinct(examination: Examination) -> int:
    """Return how many correct runs are no repetition of another one, number for number.

    Two kernels whose libraries make the same digits of fixed operands are one: on a processor that lacks
    the wider one, say.
    """
    seen = set()
    for outcome in examination.correct:
        facts = examination.kernels.get(outcome.case.kernel, {})
        digits = tuple(facts[key] for key in _DIGITS if key in facts) or outcome.case.kernel
        seen.add(key_of(replace(outcome.case, kernel=OWN, text="")) + str(digits))
    return len(seen)


_DIGITS = ("numpy_digest", "torch_digest", "torch_threads")
"""What tells the kernels of one process from those of another."""


def _count(outcomes: Sequence[TrialOutcome], grading: _Grading, grade: Grade) -> int:
    return sum(grading(outcome) is grade for outcome in outcomes)


def goals(examination: Examination) -> dict[str, bool]:
    """Return the goals of the parts that were run, and which are met; where nothing ran none is."""
    found = tallies(examination)
    single, both, correct = found["single"], found["pairs"], found["correct_runs"]
    every = {
        SINGLE: {
            "every single fault located": 0 < single["total"] == single["located"],
            "80 % explained": 0 < single["total"] * EXPLAINED_SHARE <= single["explained"],
        },
        PAIRS: {"95 % of pairs located": 0 < both["total"] * PAIRS_SHARE <= both["located"]},
        CORRECT: {"no correct run accused": correct["total"] > 0 == correct["accused"]},
    }
    # The part of passes and quantised weights has cases of all three kinds.
    asked = every.keys() if FURTHER in examination.parts else examination.parts
    return {goal: met for part, goals in every.items() if part in asked for goal, met in goals.items()}


def to_json(examination: Examination) -> dict[str, Any]:
    """Return the exam's result as plain JSON values."""
    counted = tallies(examination)
    return {
        "schema": SCHEMA,
        **counted,
        "published_rule": tallies(examination, _published),
        "goals": goals(examination),
        "false_alarms_below": bound_of(distinct(examination), counted["correct_runs"]["accused"]),
        "below_ten_floors": len(examination.below),
        "curve": {
            f"{level:g}": {"total": len(held), "located": _count(held, _ours, Grade.LOCATED)}
            for level, held in examination.curve.items()
        },
        "by_host": _split(examination.single, lambda outcome: outcome.case.host),
        "by_model": _split(examination.single, lambda outcome: outcome.case.material.name),
        "by_setting": _split(examination.single, lambda outcome: outcome.case.setting.name),
        "by_text": _split(examination.single, lambda outcome: outcome.case.text),
        "by_phase": _split(examination.single, lambda outcome: outcome.case.phase),
        "by_width": _split(examination.single, lambda outcome: width_of(outcome.case.material.name)),
        **{f"correct_by_{what}": _split(examination.correct, by) for what, by in _CORRECT_BY.items()},
        "kernels": examination.kernels,
        "nearest_to_the_floor": _finite(
            max((value for outcome in examination.correct for value in outcome.right), default=0.0)
        ),
        "rows": [row_of(fault, examination) for fault in CATALOGUE],
        "failures": [
            _failure(outcome)
            for outcome in (*examination.single, *examination.pairs, *examination.correct)
            if outcome.grade is not Grade.LOCATED
        ],
        "not_run": examination.not_run,
        "seconds": round(examination.seconds, 1),
    }


_CORRECT_BY: Mapping[str, Callable[[TrialOutcome], str]] = {
    "setting": lambda outcome: outcome.case.setting.name,
    "kernel": lambda outcome: outcome.case.kernel,
    "phase": lambda outcome: outcome.case.phase,
    "text": lambda outcome: outcome.case.text,
    "width": lambda outcome: width_of(outcome.case.material.name),
    "host": lambda outcome: outcome.case.host,
    "length": lambda outcome: _length_of(len(outcome.case.tokens)),
}
"""What correct runs are split by -> the group of one."""


def width_of(model: str) -> str:
    """Return the hidden size of a model's residual stream, as tables have it."""
    known = {"tiny-qwen2": 256, SMOLLM2: 576}
    return str(known.get(model) or BLUEPRINTS[model].config["hidden_size"])


def _length_of(tokens: int) -> str:
    """Return between which powers of two a number of tokens lies."""
    low = 1 << (tokens.bit_length() - 1)
    return f"{low} to {2 * low - 1} tokens"


def _split(outcomes: Sequence[TrialOutcome], by: Callable[[TrialOutcome], str]) -> dict[str, dict[str, int]]:
    groups: dict[str, list[TrialOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault(by(outcome), []).append(outcome)
    return {
        name: {"total": len(group), "located": _count(group, _ours, Grade.LOCATED)}
        for name, group in groups.items()
    }


def row_of(fault: Fault, examination: Examination) -> dict[str, Any]:
    """Return what came of one fault."""
    held = [outcome for outcome in examination.single if outcome.case.seeded[0].fault is fault]
    small = [outcome for outcome in examination.below if outcome.case.seeded[0].fault is fault]
    return {
        "fault": fault.name,
        "title": fault.title,
        "stages": list(fault.stages),
        "total": len(held),
        **{grade.value: _count(held, _ours, grade) for grade in Grade},
        "explained": sum(outcome.explained for outcome in held),
        "below_ten_floors": len(small),
        "published": {grade.value: _count(held, _published, grade) for grade in Grade},
        "hosts": sorted({outcome.case.host for outcome in held}),
        "smallest": min((outcome.level for outcome in held), default=None),
    }


def _finite(value: float) -> float | None:
    """Return ``value``, ``None`` where it is infinite, for which JSON has no word."""
    return value if math.isfinite(value) else None


def _failure(outcome: TrialOutcome) -> Mapping[str, Any]:
    return {
        "case": outcome.case.name,
        "recipe": recipe_of(outcome.case),
        "tokens": list(outcome.case.tokens),
        "seeds": [seeded.seed for seeded in outcome.case.seeded],
        "mark": outcome.grade.value,
        "floors": _finite(outcome.level),
        "required": [list(key) for key in outcome.required],
        "found": [list(key) for key in outcome.found],
        "nearest": _finite(max(outcome.right, default=0.0)),
        "said": list(outcome.said),
    }
