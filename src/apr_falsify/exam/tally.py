"""What an exam says in numbers: tallies, goals, and the object of schema ``apr-falsify/faults/v1``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apr_falsify.exam.marks import Mark
from apr_falsify.exam.sitting import Sitting
from apr_falsify.exam.trial import COUNTS_FROM, Outcome
from apr_falsify.faults import CATALOGUE, Fault

SCHEMA = "apr-falsify/faults/v1"

EXPLAINED_SHARE = 0.8
PAIRS_SHARE = 0.95

_Marked = Callable[[Outcome], Mark]


def bound_of(count: int) -> float:
    """Return the highest rate that 0 of ``count`` leaves possible, with 95 % confidence."""
    return 1.0 if count == 0 else 1 - 0.05 ** (1 / count)


def _ours(outcome: Outcome) -> Mark:
    return outcome.mark


def _published(outcome: Outcome) -> Mark:
    return outcome.published


def tallies(sitting: Sitting, marked: _Marked = _ours) -> dict[str, Any]:
    """Return how single faults, pairs and correct runs were marked."""
    counted = {mark.value: _count(sitting.single, marked, mark) for mark in Mark}
    explained = sum(outcome.explained for outcome in sitting.single) if marked is _ours else 0
    return {
        "single": {
            "faults": len({outcome.case.seeded[0].fault.name for outcome in sitting.single}),
            "total": len(sitting.single),
            **counted,
            "explained": explained,
        },
        "pairs": {"total": len(sitting.pairs), "located": _count(sitting.pairs, marked, Mark.LOCATED)},
        "correct_runs": {
            "total": len(sitting.correct),
            "accused": len(sitting.correct) - _count(sitting.correct, marked, Mark.LOCATED),
        },
    }


def _count(outcomes: Sequence[Outcome], marked: _Marked, mark: Mark) -> int:
    return sum(marked(outcome) is mark for outcome in outcomes)


def goals(sitting: Sitting) -> dict[str, bool]:
    """Return the goals of design section 8, and which are met; nothing held is no goal met."""
    found = tallies(sitting)
    single, both, correct = found["single"], found["pairs"], found["correct_runs"]
    return {
        "every single fault located": 0 < single["total"] == single["located"],
        "80 % explained": 0 < single["total"] * EXPLAINED_SHARE <= single["explained"],
        "95 % of pairs located": 0 < both["total"] * PAIRS_SHARE <= both["located"],
        "no correct run accused": correct["total"] > 0 == correct["accused"],
    }


def to_json(sitting: Sitting) -> dict[str, Any]:
    """Return the exam's result as plain JSON values."""
    return {
        "schema": SCHEMA,
        **tallies(sitting),
        "published_rule": tallies(sitting, _published),
        "goals": goals(sitting),
        "false_alarms_below": bound_of(len(sitting.correct)),
        "below_ten_floors": len(sitting.below),
        "curve": {
            f"{level:g}": {"total": len(held), "located": _count(held, _ours, Mark.LOCATED)}
            for level, held in sitting.curve.items()
        },
        "by_host": _split(sitting.single, lambda outcome: outcome.case.host),
        "by_model": _split(sitting.single, lambda outcome: outcome.case.material.name),
        "by_setting": _split(sitting.single, lambda outcome: outcome.case.setting.name),
        "correct_by_setting": _split(sitting.correct, lambda outcome: outcome.case.setting.name),
        "nearest_to_the_floor": max(
            (value for outcome in sitting.correct for value in outcome.right), default=0.0
        ),
        "rows": [row_of(fault, sitting) for fault in CATALOGUE],
        "failures": [
            _failure(outcome)
            for outcome in (*sitting.single, *sitting.pairs, *sitting.correct)
            if outcome.mark is not Mark.LOCATED
        ],
        "not_run": sitting.not_run,
        "seconds": round(sitting.seconds, 1),
    }


def _split(outcomes: Sequence[Outcome], by: Callable[[Outcome], str]) -> dict[str, dict[str, int]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(by(outcome), []).append(outcome)
    return {
        name: {"total": len(group), "located": _count(group, _ours, Mark.LOCATED)}
        for name, group in groups.items()
    }


def row_of(fault: Fault, sitting: Sitting) -> dict[str, Any]:
    """Return what came of one fault."""
    held = [outcome for outcome in sitting.single if outcome.case.seeded[0].fault is fault]
    small = [outcome for outcome in sitting.below if outcome.case.seeded[0].fault is fault]
    return {
        "fault": fault.name,
        "title": fault.title,
        "stages": list(fault.stages),
        "total": len(held),
        **{mark.value: _count(held, _ours, mark) for mark in Mark},
        "explained": sum(outcome.explained for outcome in held),
        "below_ten_floors": len(small),
        "published": {mark.value: _count(held, _published, mark) for mark in Mark},
        "hosts": sorted({outcome.case.host for outcome in held}),
        "smallest": min((outcome.level for outcome in held), default=None),
    }


def _failure(outcome: Outcome) -> Mapping[str, Any]:
    return {
        "case": outcome.case.name,
        "tokens": list(outcome.case.tokens),
        "seeds": [seeded.seed for seeded in outcome.case.seeded],
        "mark": outcome.mark.value,
        "floors": outcome.level if outcome.level < float("inf") else None,
        "required": [list(key) for key in outcome.required],
        "found": [list(key) for key in outcome.found],
        "said": list(outcome.said),
    }


__all__ = ["COUNTS_FROM", "SCHEMA", "bound_of", "goals", "row_of", "tallies", "to_json"]
