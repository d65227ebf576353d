"""Rules on bundles. What state a falsifier's evidence is in is told by the command, never found out here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from apr_falsify.contracts.facts import Facts
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.statuses import FUNCTIONAL

# state of a falsifier's evidence -> (code, message)
_STATES = {
    "absent": ("functional-without-bundle", "is FUNCTIONAL and has no bundle"),
    "broken": ("evidence-does-not-verify", "has a bundle that does not verify"),
    "stale": ("evidence-stale", "has a bundle older than what it binds"),
}


def evidence_problems(suite: Sequence[Facts], states: Mapping[str, str]) -> Iterator[Problem]:
    """Each FUNCTIONAL falsifier's evidence verifies and is fresh; ``states`` maps its id to the state."""
    for facts in suite:
        for one in facts.falsifiers:
            if one.rung != FUNCTIONAL:
                continue
            code, message = _STATES.get(states.get(one.id, "absent"), ("", ""))
            if code:
                place = one.place
                yield Problem(
                    code=code,
                    path=facts.path,
                    line=place.line,
                    column=place.column,
                    key=place.key,
                    message=f"{one.id} {message}",
                    subject=one.id,
                    hint=f"apr-falsify promote {facts.path} {one.id} --evidence BUNDLE",
                )
