"""What verifying a bundle has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from apr_falsify.evidence.files import BundleProblem


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the steps of :mod:`apr_falsify.evidence.verify` found; each step adds to it.

    Attributes:
        problems: what is wrong.
        recomputed: what was computed again and is as the bundle says.
        attested: what only the machine that made the bundle vouches for.
        not_checked: what was not looked at, and why.
        pinned_by: what pins the statement.
        signed_by: ids of the listed keys that signed it.
        kinds: file of a bisection -> its kind, where that follows from its rows and findings.

    """

    problems: list[BundleProblem] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    attested: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    pinned_by: list[str] = field(default_factory=list)
    signed_by: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)

    def problem(self, code: str, file: str, message: str) -> None:
        """Add a problem."""
        self.problems.append(BundleProblem(code=code, file=file, message=message))

    def check(self, name: str, holds: bool, code: str, file: str, message: str) -> None:
        """Count what was computed again, or tell that it is not so."""
        if holds:
            self.recomputed.append(name)
        else:
            self.problem(code, file, message)
