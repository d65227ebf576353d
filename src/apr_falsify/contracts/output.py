"""The report in four forms: text for people, JSON, SARIF 2.1.0 and GitHub annotations for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any
from urllib.parse import quote

from apr_falsify import __version__
from apr_falsify.contracts.outcome import JudgedProblem, ValidationOutcome
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.rules import ERROR, NOTICE, RULES, WARNING

_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SARIF_LEVELS = {ERROR: "error", WARNING: "warning", NOTICE: "note"}
_TO_REMOVE = "remove it from the baseline: run again with --write-baseline"
_MOST_ANNOTATIONS = 10  # GitHub shows no more of each level in a step


def render(outcome: ValidationOutcome, form: str) -> str:
    """Return the report in one of ``FORMATS``, ending in a newline unless it is empty."""
    return FORMATS[form](outcome)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def text(outcome: ValidationOutcome) -> str:
    """Problems grouped by file, then totals with their denominators."""
    lines: list[str] = []
    for path, group in groupby(outcome.shown, key=lambda one: one.problem.path):
        lines.append(path)
        lines.extend(line for one in group for line in _text_lines(one))
    lines.extend(_let_be(outcome))
    lines.extend(f"fixed: {shown}\n  {_TO_REMOVE}" for shown in outcome.mended)
    return "\n".join([*lines, *_totals(outcome)]) + "\n"


def _text_lines(one: JudgedProblem) -> Iterator[str]:
    problem = one.problem
    yield f"  {problem.path}:{problem.line}:{problem.column} {one.severity} {problem.code} {problem.message}"
    where = f"at {problem.key}" if problem.key else ""
    detail = "; ".join(part for part in (where, problem.hint) if part)
    if detail:
        yield f"      {detail}"


def _let_be(outcome: ValidationOutcome) -> Iterator[str]:
    reasons = Counter((one.problem.code, one.let_be) for one in outcome.judged if one.let_be)
    for (code, reason), count in sorted(reasons.items()):
        yield f"ignored: {count} x {code}: {reason}"
    for ignore in outcome.unused_ignores:
        yield f"unused ignore of {ignore.code} ({ignore.path}): remove it"


def _totals(outcome: ValidationOutcome) -> Iterator[str]:
    counts = outcome.counts
    yield (
        f"{_plural(counts.contracts, 'contract')} in {_plural(counts.files, 'file')}, "
        f"{_plural(counts.falsifiers, 'falsifier')}"
        + (f", {_plural(counts.bindings, 'binding')}" if counts.bindings else "")
    )
    if not counts.names:
        yield "names: the contracts name no code, so there is none to look up"
    else:
        yield (
            f"names: {counts.resolved} of {counts.names} resolved, {counts.missing} missing, "
            f"{counts.unresolved} unresolved, {counts.unchecked} not checkable"
        )
    if counts.bundles:
        yield f"evidence: {counts.fresh} of {_plural(counts.bundles, 'bundle')} verified and fresh"
    if counts.evidence_unchecked:
        unchecked = _plural(counts.evidence_unchecked, "FUNCTIONAL falsifier")
        yield f"evidence-not-checked: {unchecked} (no evidence directory)"
    yield from (f"no contract in {path}" for path in outcome.without_contract)
    yield ", ".join(_plural(outcome.number(level), level) for level in (ERROR, WARNING, NOTICE))
    if outcome.inconclusive:
        yield f"nothing conclusive: {outcome.inconclusive}"


def _row(one: JudgedProblem) -> dict[str, Any]:
    problem = one.problem
    return {
        "code": problem.code,
        "severity": one.severity,
        "path": problem.path,
        "line": problem.line,
        "column": problem.column,
        "key": problem.key,
        "message": problem.message,
        "subject": problem.subject,
        "hint": problem.hint,
        "fingerprint": problem.fingerprint,
        "let_be": one.let_be or None,
    }


def as_json(outcome: ValidationOutcome) -> str:
    """One object, schema ``apr-falsify/validation/v1``."""
    counts = outcome.counts
    data = {
        "schema": "apr-falsify/validation/v1",
        "exit_code": int(outcome.exit_code),
        "problems": [_row(one) for one in outcome.judged],
        "mended": list(outcome.mended),
        "unused_ignores": [{"code": one.code, "path": one.path} for one in outcome.unused_ignores],
        "without_contract": list(outcome.without_contract),
        "inconclusive": outcome.inconclusive or None,
        "counts": {
            "files": counts.files,
            "contracts": counts.contracts,
            "falsifiers": counts.falsifiers,
            "bindings": counts.bindings,
            "names": {
                "cited": counts.names,
                "resolved": counts.resolved,
                "missing": counts.missing,
                "unresolved": counts.unresolved,
                "not_checkable": counts.unchecked,
            },
            "evidence_not_checked": counts.evidence_unchecked,
            "evidence": {"bundles": counts.bundles, "fresh": counts.fresh},
            "errors": outcome.number(ERROR),
            "warnings": outcome.number(WARNING),
            "notices": outcome.number(NOTICE),
        },
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def sarif(outcome: ValidationOutcome) -> str:
    """SARIF 2.1.0 (OASIS): one run, the whole table of rules, paths relative to the working directory."""
    codes = list(RULES)
    rules = [
        {
            "id": rule.code,
            "shortDescription": {"text": rule.reason},
            "defaultConfiguration": {"level": _SARIF_LEVELS[rule.severity]},
        }
        for rule in RULES.values()
    ]
    driver = {
        "name": "validate-contracts",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": rules,
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "the directory the validator ran in"}}},
        "results": [_sarif_result(one, codes) for one in outcome.judged],
    }
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _sarif_result(one: JudgedProblem, codes: list[str]) -> dict[str, Any]:
    problem = one.problem
    result: dict[str, Any] = {
        "ruleId": problem.code,
        "ruleIndex": codes.index(problem.code),
        "level": _SARIF_LEVELS[one.severity],
        "message": {"text": _sentence(problem)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(problem.path), "uriBaseId": "%SRCROOT%"},
                    "region": {"startLine": problem.line, "startColumn": problem.column},
                },
                "logicalLocations": [{"fullyQualifiedName": problem.key or problem.path}],
            }
        ],
        "partialFingerprints": {"validateContracts/v1": problem.fingerprint},
    }
    if one.let_be:
        result["suppressions"] = [{"kind": "external", "justification": one.let_be}]
    return result


def _sentence(problem: Problem) -> str:
    return f"{problem.message} ({problem.hint})" if problem.hint else problem.message


def github(outcome: ValidationOutcome) -> str:
    """Workflow commands; beyond ten of a level the rest are summed up in one."""
    lines: list[str] = []
    for level in (ERROR, WARNING, NOTICE):
        mine = [one.problem for one in outcome.shown if one.severity == level]
        few = len(mine) <= _MOST_ANNOTATIONS
        shown = mine if few else mine[: _MOST_ANNOTATIONS - 1]
        lines.extend(_annotation(level, problem) for problem in shown)
        if not few:
            rest = Counter(problem.code for problem in mine[len(shown) :])
            summary = ", ".join(f"{count} x {code}" for code, count in rest.most_common())
            lines.append(f"::{level} title=validate-contracts::and {rest.total()} more: {_escape(summary)}")
    if outcome.mended:
        first, count = outcome.mended[0], len(outcome.mended)
        more = f", and {count - 1} more" if count > 1 else ""
        lines.append(f"::error title=baseline::{_escape(f'fixed: {first}{more}; {_TO_REMOVE}')}")
    return "".join(f"{line}\n" for line in [*lines, *_let_be(outcome), *_totals(outcome)])


def _annotation(level: str, problem: Problem) -> str:
    place = f"file={_property(problem.path)},line={problem.line},col={problem.column}"
    return f"::{level} {place},title={_property(problem.code)}::{_escape(_sentence(problem))}"


def _escape(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _escape(value).replace(":", "%3A").replace(",", "%2C")


FORMATS = {"text": text, "json": as_json, "sarif": sarif, "github": github}
