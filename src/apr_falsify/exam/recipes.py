"""A case and its outcome as plain JSON values: handed between processes, stored, and run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from apr_falsify.errors import UsageError, nearest
from apr_falsify.exam.cases import ExamCase, Seeded
from apr_falsify.exam.faults import CATALOGUE
from apr_falsify.exam.grades import Grade
from apr_falsify.exam.kernels import KERNELS
from apr_falsify.exam.material import EVERY_SETTING, Material
from apr_falsify.exam.phases import AT_ONCE, PHASES
from apr_falsify.exam.texts import TEXTS
from apr_falsify.exam.trial import TrialOutcome
from apr_falsify.model.stages import Key

Recipe = dict[str, Any]


def recipe_of(case: ExamCase) -> Recipe:
    """Return everything that ``case`` is made of."""
    return {
        "host": case.host,
        "model": case.material.name,
        "seed": case.material.seed,
        "kind": case.material.kind,
        "rows": case.material.rows,
        "setting": case.setting.name,
        "kernel": case.kernel,
        "text": case.text,
        **({"phase": case.phase} if case.phase != AT_ONCE else {}),
        "tokens": list(case.tokens),
        "faults": [
            {"fault": each.fault.name, "layer": each.layer, "seed": each.seed, "amount": each.amount}
            for each in case.seeded
        ],
    }


def key_of(case: ExamCase) -> str:
    """Return what tells a case from every other."""
    return json.dumps(recipe_of(case), sort_keys=True)


def case_of(recipe: Mapping[str, Any], where: object = None) -> ExamCase:
    """Return the case that a recipe describes.

    Raises:
        UsageError: a key is missing, or a name is in no table.

    """
    try:
        return ExamCase(
            host=recipe["host"],
            material=Material(
                name=recipe["model"], seed=recipe["seed"], kind=recipe["kind"], rows=recipe["rows"]
            ),
            setting=_known(EVERY_SETTING, recipe, "setting", where),
            kernel=_known(KERNELS, recipe, "kernel", where).name,
            text=_known(TEXTS, recipe, "text", where).name,
            phase=_known(PHASES, {"phase": AT_ONCE, **recipe}, "phase", where).name,
            tokens=tuple(recipe["tokens"]),
            seeded=tuple(_seeded(each, where) for each in recipe["faults"]),
        )
    except (KeyError, TypeError) as error:
        lacking = f": it lacks {error}" if isinstance(error, KeyError) else ""
        raise UsageError(
            f"not a case of the exam{lacking}",
            where=where,
            expected="an object with host, model, seed, kind, rows, setting, kernel, text, tokens, faults",
        ) from error


def _seeded(recipe: Mapping[str, Any], where: object) -> Seeded:
    faults = {fault.name: fault for fault in CATALOGUE}
    return Seeded(
        fault=_known(faults, recipe, "fault", where),
        layer=recipe["layer"],
        seed=recipe["seed"],
        amount=recipe["amount"],
    )


def _known(table: Mapping[str, Any], recipe: Mapping[str, Any], key: str, where: object) -> Any:
    name = recipe[key]
    if name not in table:
        raise UsageError(
            f"no {key} {name!r}", where=where, expected=", ".join(table), remedy=nearest(str(name), table)
        )
    return table[name]


def outcome_to_json(outcome: TrialOutcome) -> dict[str, Any]:
    """Return what came of a case, without the case."""
    return {
        "mark": outcome.grade.value,
        "published": outcome.published.value,
        "explained": outcome.explained,
        "level": outcome.level,
        "required": [list(key) for key in outcome.required],
        "found": [list(key) for key in outcome.found],
        "said": list(outcome.said),
        "right": list(outcome.right),
        "guilty": list(outcome.guilty),
    }


def outcome_of(case: ExamCase, record: Mapping[str, Any]) -> TrialOutcome:
    """Return what :func:`outcome_to_json` gave, with its case."""
    return TrialOutcome(
        case=case,
        grade=Grade(record["mark"]),
        published=Grade(record["published"]),
        explained=record["explained"],
        level=record["level"],
        required=_keys(record["required"]),
        found=_keys(record["found"]),
        said=tuple(record["said"]),
        right=tuple(record["right"]),
        guilty=tuple(record["guilty"]),
    )


def _keys(listed: list[list[Any]]) -> tuple[Key, ...]:
    return tuple(Key(layer, name) for layer, name in listed)
