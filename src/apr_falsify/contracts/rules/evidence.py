"""Rules on bundles. What state a falsifier's evidence is in is told by the command, never found out here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from apr_falsify.contracts.facts import ContractFacts, FalsifierFacts
from apr_falsify.contracts.markers import marker_of
from apr_falsify.contracts.problem import Problem, problem_at
from apr_falsify.contracts.standing import ABSENT, BROKEN, STALE, Evidence, Standing
from apr_falsify.contracts.statuses import FUNCTIONAL, root_of

_STATES = {
    ABSENT: ("functional-without-bundle", "is FUNCTIONAL and has no bundle"),
    BROKEN: ("evidence-does-not-verify", "names a bundle that does not carry its status"),
    STALE: ("evidence-stale", "names a bundle older than what it binds"),
}
"""State of a falsifier's evidence -> code, and what is said of it."""

_LIVE = frozenset((FUNCTIONAL,))
"""Words that claim a live run in so many letters; DISCHARGED may be by what can be seen in the tree."""
_NONE = Standing(state=ABSENT)
_MOST_REASONS = 3


def evidence_problems(suite: Sequence[ContractFacts], evidence: Evidence) -> Iterator[Problem]:
    """Each bundle that a falsifier of the project names carries its status; FUNCTIONAL names one."""
    for facts in suite:
        for one in facts.falsifiers if evidence.covers(facts.path) else ():
            standing = evidence.standings.get(one.id, _NONE)
            if standing.state in _STATES and (standing.state != ABSENT or one.rung == FUNCTIONAL):
                yield _problem(facts, one, standing)
    yield from _not_named(evidence.not_named)


def unkept_evidence(suite: Sequence[ContractFacts], evidence: Evidence | None) -> Iterator[Problem]:
    """Where a project keeps no evidence, FUNCTIONAL names a bundle that is there, or a live run's record."""
    for facts in suite:
        for one in () if evidence is not None and evidence.covers(facts.path) else facts.falsifiers:
            claims_live = root_of(one.status) in _LIVE or "LIVE" in root_of(one.status).split("_")
            if not claims_live or one.is_live or (one.bundle and _is_there(facts.path, one.bundle)):
                continue
            lacks = (
                f"the bundle {one.bundle!r} that it names is not there"
                if one.bundle
                else "it names no bundle"
            )
            message = f"{one.id} is {one.status}, and {lacks}"
            hint = (
                "name the bundle (evidence: {bundle: DIR}) or the record of a live run (functional_evidence)"
            )
            yield problem_at(
                facts.path, "functional-without-bundle", one.place, message, subject=one.id, hint=hint
            )


def _is_there(contract: str, bundle: str) -> bool:
    """Whether a path exists, as seen from a folder around the contract."""
    folders = Path(contract).absolute().parents
    return any((folder / bundle).exists() for folder in folders)


def _problem(facts: ContractFacts, one: FalsifierFacts, standing: Standing) -> Problem:
    code, message = _STATES[standing.state]
    told, renewal = f"{one.id} {message}{_reasons(standing)}", _renewal(facts, one, standing)
    return problem_at(facts.path, code, one.place, told, subject=one.id, hint=renewal)


def _reasons(standing: Standing) -> str:
    if not standing.why:
        return ""
    more = len(standing.why) - _MOST_REASONS
    return ": " + "; ".join(standing.why[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _renewal(facts: ContractFacts, one: FalsifierFacts, standing: Standing) -> str:
    """The commands that run the falsifier again and name its new bundle."""
    bundle = standing.bundle or f"evidence/{one.id}"
    folder = os.path.dirname(bundle) or "."
    lane, expect = (f" --lane={standing.lane}", " --expect SHA256") if standing.lane else ("", "")
    run = f"pytest -m {marker_of(one.id)}{lane} --evidence-dir={folder}"
    return f"{run} && apr-falsify promote {facts.path} {one.id} --evidence {bundle} --renew{expect}"


def _not_named(bundles: Sequence[str]) -> Iterator[Problem]:
    """Bundles of the project's evidence directory that no contract names, by their path."""
    for bundle in bundles:
        yield Problem(
            code="bundle-not-named",
            path=bundle,
            line=1,
            column=1,
            message="no contract names this bundle",
            subject=os.path.basename(bundle),
            hint="apr-falsify promote CONTRACT FALSIFIER --evidence " + bundle,
        )
