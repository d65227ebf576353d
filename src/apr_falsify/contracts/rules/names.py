"""Turning the resolution of a citation into a problem: its code, and how much it weighs."""

from __future__ import annotations

from collections.abc import Iterator

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.resolution import Resolution, State


def name_problems(path: str, citation: Citation, resolution: Resolution) -> Iterator[Problem]:
    """What is wrong with one cited name.

    A name that belongs to a falsifier which itself says that something is missing is reported as
    ``absent-as-stated``: that is consistent, and worth knowing, and no error.
    """
    for shown, line, why in resolution.broken:
        message = f"{shown} does not parse: {why} (line {line})"
        yield problem_at(
            path, "source-does-not-parse", citation.place, message, subject=shown, hint=f"mend {shown}:{line}"
        )
    if not resolution.code:
        return
    code = resolution.code
    if citation.expected_absent and resolution.state is State.MISSING and code in _ABSENCES:
        code = "absent-as-stated"
    named, place = citation.name or citation.text, citation.place
    if citation.kind == "binding" and resolution.state is State.UNRESOLVED:  # once for all of its crate
        named, place = citation.text, Place(line=1, column=1, key="bindings")
    yield problem_at(path, code, place, resolution.message, subject=named, hint=resolution.hint)


_ABSENCES = frozenset(
    ("file-not-found", "symbol-not-found", "symbol-not-in-file", "test-not-found", "name-in-prose")
)
