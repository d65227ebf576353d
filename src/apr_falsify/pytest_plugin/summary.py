"""The section at the end: each falsifier, what its run says, where it stands, what it still needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.commands.output import wrapped
from apr_falsify.evidence.outcome import Outcome

INDENT = " " * 6
"""What the further lines of a need begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One falsifier in the summary.

    Attributes:
        falsifier: its id.
        outcome: what its run says.
        now: the rung that its contract claims.
        earned: the rung that the run would carry, empty for none.
        needs: why not a higher one.
        bundle: where its bundle was left, ``None`` where none was.
        statement_sha256: what pins that bundle.

    """

    falsifier: str
    outcome: Outcome
    now: str
    earned: str
    needs: tuple[str, ...]
    bundle: Path | None = None
    statement_sha256: str = ""


def lines_of(judged: Sequence[JudgedClaim], partly: Sequence[str], problems: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the summary; none where no falsifier ran. A need of several is reported once."""
    width = max((len(one.falsifier) for one in judged), default=0)
    lacking: dict[str, list[str]] = {}
    for one in judged:
        for need in one.needs:
            lacking.setdefault(need, []).append(one.falsifier)
    for one in judged:
        yield f"{one.falsifier:{width}}  {one.outcome.result.value:9}  {one.outcome.reason}"
        yield f"    status {one.now or 'none'}, this run earns {one.earned or 'none'}"
        for need in one.needs:
            if len(lacking[need]) == 1:
                yield from wrapped(need, "    needs ", INDENT)
        if one.bundle is not None:
            yield f"    bundle {_shown(one.bundle)}"
            yield f"    statement sha256 {one.statement_sha256}"
    for need, names in lacking.items():
        if len(names) > 1:
            yield from wrapped(f"{need} ({_listed(names)})", "needs ", INDENT)
    if partly:
        yield from wrapped(", ".join(partly), "selected in part, so not judged: ", INDENT)
    yield from problems


def _shown(path: Path) -> Path:
    """Return ``path`` as a command typed here would name it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
