"""Turning the resolution of a citation into a problem: its code, and how much it weighs."""

from __future__ import annotations

from collections.abc import Iterator

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.resolve import Resolution, State


def name_problems(path: str, citation: Citation, resolution: Resolution) -> Iterator[Problem]:
    """What is wrong with one cited name.

    A name that belongs to a falsifier which itself says that something is missing is reported as
    ``absent-as-stated``: that is consistent, and worth knowing, and no error.
    """
    for shown, line, why in resolution.broken:
        message = f"{shown} does not parse: {why} (line {line})"
        yield _problem(path, citation, "source-does-not-parse", message, shown, f"mend {shown}:{line}")
    if not resolution.code:
        return
    code = resolution.code
    if citation.expected_absent and resolution.state is State.MISSING and code in _ABSENCES:
        code = "absent-as-stated"
    yield _problem(path, citation, code, resolution.message, citation.name or citation.text, resolution.hint)


_ABSENCES = frozenset(("file-not-found", "symbol-not-found", "symbol-not-in-file", "test-not-found"))


def _problem(path: str, citation: Citation, code: str, message: str, subject: str, hint: str) -> Problem:
    place = citation.place
    return Problem(
        code=code,
        path=path,
        line=place.line,
        column=place.column,
        key=place.key,
        message=message,
        subject=subject,
        hint=hint,
    )
