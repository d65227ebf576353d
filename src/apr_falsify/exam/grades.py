"""How an answer is graded: what the comparison named, and what the published rule did, against the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from apr_falsify.compare.bisection import Bisection, Finding, FindingType
from apr_falsify.exam.cases import ExamCase
from apr_falsify.model.stages import Key


class Grade(StrEnum):
    """How an answer compares with the truth."""

    LOCATED = "located"
    WRONG = "wrong"
    MISSED = "missed"


ACCUSING = (
    FindingType.SOURCE,
    FindingType.WEIGHTS,
    FindingType.REFERENCE,
    FindingType.LAYOUT,
    FindingType.NOT_THE_SUBJECTS_WEIGHTS,
)
"""The findings that say that something is wrong with a stage; of a correct run there may be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a comparison accuses.

    Attributes:
        findings: its accusing findings.
        found: the stages they name.

    """

    findings: tuple[Finding, ...]
    found: tuple[Key, ...]

    @classmethod
    def of(cls, result: Bisection, truth: set[Key], *, arithmetic: bool = False) -> Self:
        """Read the answer from ``result``; a span that holds a wrong stage names that one.

        Args:
            result: the comparison.
            truth: the stages that are wrong.
            arithmetic: whether an arithmetic that is not the stated one is an answer.

        """
        types = (*ACCUSING, FindingType.ARITHMETIC) if arithmetic else ACCUSING
        findings = tuple(finding for finding in result.findings if finding.type in types)
        found = dict.fromkeys(key for finding in findings for key in named(finding, truth))
        return cls(findings=findings, found=tuple(found))

    @property
    def said(self) -> tuple[str, ...]:
        """Its explanations."""
        return tuple(finding.explanation for finding in self.findings)


def named(finding: Finding, truth: set[Key]) -> list[Key]:
    """Return the stages that ``finding`` names."""
    places: list[Key] = [Key(finding.layer, name) for name in finding.stages]
    if finding.type is FindingType.ARITHMETIC and finding.layer is None:  # of several layers, which it lists
        places = [key for key in truth if key.stage in finding.stages] or places
    within = [key for key in places if key in truth]
    return within if within and finding.type is not FindingType.NOT_THE_SUBJECTS_WEIGHTS else places


def grade_of(required: set[Key], truth: set[Key], found: set[Key]) -> Grade:
    """Grade an answer: it names every stage that had to be named, and none that is right."""
    if found - truth:
        return Grade.WRONG
    return Grade.MISSED if required - found or (truth and not found) else Grade.LOCATED


def explained(case: ExamCase, answer: Answer, truth: set[Key]) -> bool:
    """Whether one of the right findings says what is wrong; a finding on a tensor does by naming it."""
    patterns = [seeded.fault.says for seeded in case.seeded]
    return any(
        finding.type is FindingType.WEIGHTS or _says(patterns, finding.explanation)
        for finding in answer.findings
        if truth.intersection(named(finding, truth))
    )


def _says(patterns: Iterable[str], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def published_grade(result: Bisection, truths: Sequence[set[Key]]) -> Grade:
    """Grade the published rule, generously.

    Its first layer with a crossing counts; there it must cross once, into a stage that is wrong. Of several
    faults it must cross into each, in any layer, and nowhere else.

    Args:
        result: the comparison.
        truths: per fault, the stages that are wrong.

    """
    crossing = [rule for rule in result.published if rule.crossings]
    if not crossing:
        return Grade.MISSED if truths else Grade.LOCATED
    if len(truths) > 1:
        into: set[Key] = {Key(rule.layer, after) for rule in crossing for _, after in rule.crossings}
        right = all(into & truth for truth in truths) and into <= {key for truth in truths for key in truth}
        return Grade.LOCATED if right else Grade.WRONG
    first = min(crossing, key=lambda rule: rule.layer)
    place: Key = Key(first.layer, first.crossings[0][1])
    right = len(first.crossings) == 1 and any(place in truth for truth in truths)
    return Grade.LOCATED if right else Grade.WRONG
