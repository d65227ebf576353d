"""Turning the resolution of a citation into a problem: its code, and how much it weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr_falsify.contracts.facts import ContractFacts
from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.resolution import Resolution, ResolutionState
from apr_falsify.contracts.statuses import is_unwritten


def name_problems(path: str, citation: Citation, resolution: Resolution) -> Iterator[Problem]:
    """What is wrong with one cited name.

    A name that belongs to a falsifier which itself says that something is missing is reported as
    ``absent-as-stated``: that is consistent, and worth knowing, and no error.
    """
    for shown, line, why in resolution.broken:
        message = f"{shown} does not parse: {why} (line {line})"
        yield problem_at(
            path, "source-does-not-parse", citation.place, message, subject=shown, hint=f"fix {shown}:{line}"
        )
    if not resolution.code:
        return
    code = resolution.code
    if citation.expected_absent and resolution.state is ResolutionState.MISSING and code in _ABSENCES:
        code = "absent-as-stated"
    named, place = citation.name or citation.text, citation.place
    if (
        citation.kind == "binding" and resolution.state is ResolutionState.UNRESOLVED
    ):  # once for all of its crate
        named, place = citation.text, Place(line=1, column=1, key="bindings")
    yield problem_at(path, code, place, resolution.message, subject=named, hint=resolution.hint)


_TESTS = frozenset(("pytest", "unittest", "cargo", "test", "harness"))
_CODE = frozenset(("file", "symbol"))


def under_claimed(
    facts: ContractFacts, outcomes: Sequence[tuple[Citation, ResolutionState]]
) -> Iterator[Problem]:
    """A falsifier that is still to be written, whose test and code are there, claims too little."""
    for one in facts.falsifiers:
        if not is_unwritten(one.status):
            continue
        mine = [each for each in outcomes if f"{each[0].place.key}.".startswith(f"{one.place.key}.")]
        sure = [each for each, state in mine if state is ResolutionState.RESOLVED and _names_one(each)]
        there = {each.kind for each in sure if each.kind in _TESTS or each.role != "test"}
        whole = all(state in (ResolutionState.RESOLVED, ResolutionState.UNCHECKED) for _, state in mine)
        if whole and there & _TESTS and there & _CODE:
            message = f"{one.id} says {one.status}, and its test and its code are there"
            hint = "raise the status, or say what is missing"
            yield problem_at(facts.path, "under-claimed", one.place, message, subject=one.id, hint=hint)


def _names_one(citation: Citation) -> bool:
    """Whether a citation is of one thing: a ``cargo test`` without a filter is of all."""
    return citation.cargo is None or bool(citation.cargo.filters or citation.cargo.targets)


_ABSENCES = frozenset(
    ("file-not-found", "symbol-not-found", "symbol-not-in-file", "test-not-found", "name-in-prose")
)
