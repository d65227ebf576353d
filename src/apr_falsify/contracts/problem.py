"""One problem of one contract, with everything a reader needs to act on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from apr_falsify.symbols.states import quickly_pickled


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value stands: line and column from 1, and the key path."""

    line: int
    column: int
    key: str


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``path:line:column code message``; line and column count from 1.

    ``key`` is the key path inside the file, ``subject`` the name it is about, ``hint`` what was expected
    or the nearest match. Severity is not here: the table of rules, and the project's settings, give it.
    """

    code: str
    path: str
    line: int
    column: int
    message: str
    key: str = ""
    subject: str = ""
    hint: str = ""

    @property
    def fingerprint(self) -> str:
        """Identity across runs: unchanged when lines move, changed when what is wrong changes."""
        parts = "\x00".join((self.code, self.path, self.key, self.subject or self.message))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]


def problem_at(
    path: str, code: str, place: Place, message: str, *, subject: str = "", hint: str = ""
) -> Problem:
    """Return the problem ``code`` of the contract at ``path``, at ``place`` in it."""
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
