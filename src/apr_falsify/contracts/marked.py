"""Tests cited by their marker, and falsifiers that no test carries the marker of.

Both rest on every test file there is, so that all are searched for the markers' words in each run; only those
that hold one and have changed are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.contracts.markers import marker_of
from apr_falsify.contracts.problem import Problem, problem_at
from apr_falsify.contracts.report import Counts
from apr_falsify.symbols.states import quickly_pickled

if TYPE_CHECKING:
    from apr_falsify.contracts.facts import FalsifierFacts
    from apr_falsify.contracts.resolution import Resolution
    from apr_falsify.contracts.roots import Roots, SearchScope
    from apr_falsify.symbols.markers import Kept, MarkedTest
    from apr_falsify.symbols.tree import SourceTree


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerCitation:
    """``pytest -m MARKER`` in a contract: the marker, and where it is cited."""

    marker: str
    line: int
    column: int
    key: str
    expected_absent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """What one contract cites by marker.

    Attributes:
        path: its file.
        shown: the path that problems show.
        citations: what it cites.
        falsifiers: those that a test must carry the marker of; empty where the project does not run them.

    """

    path: Path
    shown: str
    citations: tuple[MarkerCitation, ...]
    falsifiers: tuple[FalsifierFacts, ...]


class _Tests:
    """Tests by marker, each tree searched once for all markers of a run."""

    def __init__(self, markers: Iterable[str], kept: Kept) -> None:
        self._markers = tuple(dict.fromkeys(markers))
        self._kept = kept
        self._found: dict[SourceTree, dict[str, tuple[MarkedTest, ...]]] = {}

    def of(self, scope: SearchScope, marker: str) -> tuple[MarkedTest, ...]:
        from apr_falsify.symbols.markers import by_marker

        for tree in scope.trees:
            if tree not in self._found:
                self._found[tree] = by_marker(tree, self._markers, self._kept)
        return tuple(test for tree in scope.trees for test in self._found[tree][marker])


def marked_problems(asked: Sequence[Marked], roots: Roots, kept: Kept) -> tuple[list[Problem], Counts]:
    """Return the problems of all that is cited by marker, and how many of those names were resolved.

    ``kept`` spares parsing test files that are as they were, and takes what is found in the others.
    """
    from apr_falsify.contracts.roots import SearchScope

    wanted = [one.marker for each in asked for one in each.citations]
    wanted += [marker_of(one.id) for each in asked for one in each.falsifiers]
    tests = _Tests(wanted, kept)
    problems: list[Problem] = []
    counts = Counts()
    for each in asked:
        scope = SearchScope(each.path.absolute(), roots)
        found = {one: _resolve(one.marker, tests.of(scope, one.marker), scope) for one in each.citations}
        counts = sum((_count(answer) for answer in found.values()), counts)
        problems.extend(_problem(each.shown, one, answer) for one, answer in found.items() if answer.code)
        problems.extend(_untested(each, found, tests, scope))
    return problems, counts


def _resolve(marker: str, tests: Sequence[MarkedTest], scope: SearchScope) -> Resolution:
    from apr_falsify.contracts.resolution import RESOLVED, UNCHECKED, missing, unresolved

    running = [one for one in tests if not one.why_not]
    if any(not one.skipped for one in running):
        return RESOLVED
    if running:
        return missing("test-ignored", f"every test of the marker {marker!r} is skipped always")
    if tests:
        why = f"{tests[0].node} carries the marker {marker!r} and is not collected: {tests[0].why_not}"
        return missing("test-not-collected", why)
    if not scope.owns():
        return unresolved(f"the marker {marker!r} is in no tree that was given")
    if _may_be_given_at_run_time(marker, scope):
        return UNCHECKED
    return missing("test-not-found", f"no test carries the marker {marker!r}", f"@pytest.mark.{marker}")


def _may_be_given_at_run_time(marker: str, scope: SearchScope) -> bool:
    """Whether a conftest.py names the marker: it may put it on tests while they are collected."""
    word = re.compile(rb"\b" + re.escape(marker.encode()) + rb"\b")
    files = [(tree, file) for tree in scope.local for file in tree.find_file("conftest.py")]
    return any(word.search(tree.read_bytes(file) or b"") for tree, file in files)


def _count(answer: Resolution) -> Counts:
    from apr_falsify.contracts.resolution import ResolutionState

    names: Mapping[ResolutionState, str] = {
        ResolutionState.RESOLVED: "resolved",
        ResolutionState.MISSING: "missing",
        ResolutionState.UNRESOLVED: "unresolved",
        ResolutionState.UNCHECKED: "unchecked",
    }
    return Counts(**{names[answer.state]: 1})


def _problem(shown: str, one: MarkerCitation, answer: Resolution) -> Problem:
    absent = one.expected_absent and answer.code == "test-not-found"
    return Problem(
        code="absent-as-stated" if absent else answer.code,
        path=shown,
        line=one.line,
        column=one.column,
        key=one.key,
        message=answer.message,
        subject=one.marker,
        hint=answer.hint,
    )


def _untested(
    each: Marked, found: Mapping[MarkerCitation, Resolution], tests: _Tests, scope: SearchScope
) -> Iterator[Problem]:
    """Falsifiers whose own marker no collected test carries, unless a citation says so already."""
    told = {one.marker for one, answer in found.items() if answer.code and not one.expected_absent}
    for one in each.falsifiers:
        marker = marker_of(one.id)
        if marker not in told and all(test.why_not for test in tests.of(scope, marker)):
            message = f"no test carries the marker {marker!r}, so that nothing decides {one.id}"
            hint = f"@pytest.mark.{marker}"
            yield problem_at(
                each.shown, "falsifier-without-test", one.place, message, subject=one.id, hint=hint
            )
