"""Which rung a bundle earns for a falsifier, and what stands between it and the next.

Every reason is a row of one table: the rung that it bars, its code, and the function that finds it. A bundle
earns the highest rung that no row bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from apr_falsify.contracts.claim import Claim
from apr_falsify.contracts.standing import ABSENT, BROKEN, FRESH, STALE, Standing
from apr_falsify.contracts.statuses import BLOCKER, FUNCTIONAL, LADDER, PARTIAL
from apr_falsify.evidence.discharge import unmet
from apr_falsify.evidence.facts import EMBEDDED_LANE, TOOL, Bound, Facts
from apr_falsify.evidence.files import REPLAY_DIFFERS
from apr_falsify.evidence.outcome import HOLLOW, Ended, Level, Result, Role, TestRecord
from apr_falsify.evidence.verify import Verification

_MOST_NAMED = 5

STALENESS = frozenset(("claim-changed", "code-changed"))
"""Reasons that a new run of the same falsifier would remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason why a bundle earns no more.

    Attributes:
        code: what it is, stable, in kebab-case.
        rung: the lowest rung that it bars.
        message: what was found, and what was expected.

    """

    code: str
    rung: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """What a bundle earns.

    Attributes:
        rung: the highest rung that it carries; the lowest of the ladder where it carries nothing.
        refusals: why not higher, those of the lower rung first.

    """

    rung: str
    refusals: tuple[Refusal, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Return why not higher, a line each."""
        return tuple(map(str, self.refusals))

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return the codes of :attr:`refusals`, each once."""
        return tuple(dict.fromkeys(one.code for one in self.refusals))

    def bars(self, rung: str) -> tuple[Refusal, ...]:
        """Return what stands between the bundle and ``rung``."""
        return tuple(one for one in self.refusals if LADDER.index(one.rung) <= LADDER.index(rung))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A bundle, the claim as it is now, and the code as it is now."""

    verification: Verification
    facts: Facts
    claim: Claim
    bound_now: Bound
    project: str | None
    not_sources: tuple[str, ...]


def earned(
    verification: Verification,
    claim: Claim,
    *,
    bound_now: Bound,
    project: str | None = None,
    not_sources: tuple[str, ...] = (),
) -> Earned:
    """Return what a bundle earns for ``claim``.

    Args:
        verification: what verifying the bundle showed.
        claim: the falsifier's claim as the contract makes it now.
        bound_now: the code that the claim rests on, as it is now.
        project: the project's name, where the bundle must be of it.
        not_sources: files, and folders with a slash at the end, whose changes no falsifier measures: the
            evidence itself. The contract's own file is one without being named.

    """
    facts = verification.facts
    if facts is None or not verification.holds:
        messages = [f"{one.file or 'the bundle'} {one.message}" for one in verification.problems]
        return _judged([("does-not-verify", PARTIAL, one) for one in messages or ["it cannot be read"]])
    case = _Case(
        verification=verification,
        facts=facts,
        claim=claim,
        bound_now=bound_now,
        project=project,
        not_sources=(facts.contract_path, *not_sources),
    )
    return _judged([(code, rung, one) for rung, code, find in _CHECKS for one in find(case)])


def _judged(found: list[tuple[str, str, str]]) -> Earned:
    refusals = tuple(Refusal(code=code, rung=rung, message=message) for code, rung, message in found)
    barred = min((LADDER.index(one.rung) for one in refusals), default=len(LADDER))
    return Earned(rung=LADDER[barred - 1], refusals=refusals)


def state_of(
    verification: Verification | None,
    claim: Claim,
    *,
    bound_now: Bound,
    project: str | None = None,
    not_sources: tuple[str, ...] = (),
) -> Standing:
    """Return the state of the evidence that a contract names for the rung it claims.

    ``verification`` is of the named bundle under the contract's digest; ``None`` where there is no bundle.
    """
    if claim.pin is None:
        return Standing(state=ABSENT)
    if verification is None:
        return standing_of(claim, BROKEN, ("there is no bundle",))
    if not claim.pin.statement_sha256:
        return standing_of(claim, BROKEN, ("the contract gives no statement_sha256",))
    outdated = _outdated(verification, claim, bound_now)
    if outdated:
        return standing_of(claim, STALE, (outdated,))
    answer = earned(verification, claim, bound_now=bound_now, project=project, not_sources=not_sources)
    bars = answer.bars(claim.rung if claim.rung in (PARTIAL, FUNCTIONAL) else PARTIAL)
    state = FRESH if not bars else STALE if {one.code for one in bars} <= STALENESS else BROKEN
    return standing_of(claim, state, tuple(map(str, bars)))


def _outdated(verification: Verification, claim: Claim, bound_now: Bound) -> str:
    """Say why figures of a replay differ where the replay itself has changed since; empty where they do not.

    The files are those that were written: a floor that was computed otherwise then is no forgery.
    """
    facts = verification.facts
    if facts is None or facts.falsifier != claim.falsifier:
        return ""
    if {one.code for one in verification.problems} != {REPLAY_DIFFERS}:
        return ""
    if facts.bound.functions != bound_now.functions:
        return "the code that replays it has changed since"
    return "" if facts.tool == TOOL else f"{facts.tool} replayed it otherwise than {TOOL}"


def standing_of(claim: Claim, state: str, why: tuple[str, ...] = ()) -> Standing:
    """Return a state of a claim's evidence, with what its renewal needs to know."""
    lane = (claim.discharge or {}).get("lane", "") if claim.rung == FUNCTIONAL else ""
    return Standing(state=state, why=why, bundle=claim.pin.bundle if claim.pin else "", lane=str(lane))


# what bars PARTIAL


def _other_falsifier(case: _Case) -> Iterator[str]:
    if case.facts.falsifier != case.claim.falsifier:
        yield f"it is of {case.facts.falsifier}, not of {case.claim.falsifier}"


def _other_contract(case: _Case) -> Iterator[str]:
    if case.facts.contract != case.claim.contract:
        yield f"it is of the contract {case.facts.contract}, not of {case.claim.contract}"


def _other_project(case: _Case) -> Iterator[str]:
    if case.project is not None and case.facts.sources.project != case.project:
        yield f"it was made in the project {case.facts.sources.project!r}, this is {case.project!r}"


def _control_failed(case: _Case) -> Iterator[str]:
    for one in case.facts.tests:
        if one.role is Role.CONTROL and one.ended is not Ended.PASSED:
            yield f"{one.name} {one.ended}: the instrument is not shown to work"


def _no_control(case: _Case) -> Iterator[str]:
    """Refuse evidence of a bisection that has given one answer only: it may be unable to give the other.

    Bisections of both kinds in the bundle show that it can give either; so does a test marked as a control.
    What measures without one needs no control beside it: a test of a format fails where the format is wrong.
    Whether a test asserts anything no reader can tell: what can fail it may lie in a fixture, in what it
    calls, or in a program that it runs. Its body is bound, for the reviewer to read.
    """
    kinds = set(case.verification.kinds.values())
    if not kinds or any(one.role is Role.CONTROL for one in case.facts.tests):
        return
    if not kinds & _ACCUSING:
        yield f"no bisection of it accuses anything, so that a fault might go unseen: {_REMEDY}"
    if _ACQUITTING not in kinds:
        yield f"no bisection of it is consistent, so that it might accuse whatever it sees: {_REMEDY}"


_ACCUSING = frozenset(("localised", "several", "layout-mismatch"))
_ACQUITTING = "consistent"
_REMEDY = "a test with role='control' that shows it, or its bisection by keep_bisection"


def _not_survived(case: _Case) -> Iterator[str]:
    outcome = case.facts.outcome
    if outcome.result is not Result.SURVIVED:
        yield f"the outcome is {outcome.result}: {outcome.reason}"


def _no_prediction(case: _Case) -> Iterator[str]:
    if not _passed(case):
        yield "no test of the prediction passed"


def _passed(case: _Case) -> list[TestRecord]:
    """Return the tests of the prediction that passed on something."""
    return [
        one
        for one in case.facts.tests
        if one.role is Role.PREDICTION and one.ended is Ended.PASSED and not one.is_hollow
    ]


def _claim_changed(case: _Case) -> Iterator[str]:
    if case.facts.claim_sha256 != case.claim.sha256:
        then, now = case.facts.claim, case.claim.fields
        names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        yield f"the claim has changed since it was measured: {', '.join(names)}"


def _code_changed(case: _Case) -> Iterator[str]:
    then, now = case.facts.bound, case.bound_now
    words = [*_differences(then.functions, now.functions), *_newly_unbound(then, now)]
    if words:
        more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
        yield f"the code it rests on has changed since: {', '.join(words[:_MOST_NAMED])}{more}"


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            word = "is gone" if name not in now else "is new" if name not in then else "differs"
            yield f"{name} {word}"


def _newly_unbound(then: Bound, now: Bound) -> Iterator[str]:
    for name in sorted({*then.unbound} ^ {*now.unbound}):
        yield f"{name} {'is bound no more' if name in now.unbound else 'is named no more, or bound now'}"


def _binds_nothing(case: _Case) -> Iterator[str]:
    if not case.facts.bound.functions:
        yield "it binds no function and no test of this project, so that no change would make it stale"


def _uncommitted(case: _Case) -> Iterator[str]:
    files = [one for one in case.facts.sources.uncommitted if not _is_no_source(one, case.not_sources)]
    if files:
        more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
        yield f"it was made with uncommitted sources: {', '.join(files[:_MOST_NAMED])}{more}"


def _is_no_source(file: str, not_sources: tuple[str, ...]) -> bool:
    return any(file == one or (one.endswith("/") and f"{file}/".startswith(one)) for one in not_sources)


# what bars FUNCTIONAL


def _unpinned(case: _Case) -> Iterator[str]:
    if case.verification.state != "verified":
        listed = ", ".join(case.claim.keys) or "none"
        yield (
            f"nothing pins it: no --expect SHA256, no signature by a key that the contract lists ({listed})"
        )


def _embedded(case: _Case) -> Iterator[str]:
    lane = case.facts.lane
    if lane.subject is None:
        yield "no subject was run"
    elif EMBEDDED_LANE in (lane.name, lane.subject.runtime):
        yield "it comes from the embedded runtime, which shows the method, not the subject"


def _recorded(case: _Case) -> Iterator[str]:
    for name, side in (("oracle", case.facts.lane.oracle), ("subject", case.facts.lane.subject)):
        if side is not None and side.recorded:
            yield f"the {name} was read from a recording, which alone says what made it: run it here"


def _no_live_test(case: _Case) -> Iterator[str]:
    if any(one.shows_the_subject for one in case.facts.tests):
        return
    hollow = [one.name for one in case.facts.tests if one.is_hollow]
    unsaid = [one.name for one in _passed(case) if one.level is Level.LIVE]
    if hollow:
        yield f"{hollow[0]} {HOLLOW}: let it ask for bisection or subject_trace"
    elif unsaid:
        yield f"it was made before bundles recorded whether {unsaid[0]} measured the lane: run it again"
    else:
        yield "no live test of the prediction passed: none measured the subject of a lane"


def _no_commit(case: _Case) -> Iterator[str]:
    if case.facts.sources.commit is None:
        yield "it was made outside a git checkout, so that nobody can look at its sources"


def _lane(case: _Case) -> Iterator[str]:
    if not case.claim.discharge:
        yield "the contract has no discharge block that names a lane"
    else:
        yield from unmet(case.claim.discharge, case.facts.lane)


_CHECKS: tuple[tuple[str, str, Callable[[_Case], Iterator[str]]], ...] = (
    (PARTIAL, "other-falsifier", _other_falsifier),
    (PARTIAL, "other-contract", _other_contract),
    (PARTIAL, "other-project", _other_project),
    (PARTIAL, "control-failed", _control_failed),
    (PARTIAL, "no-control", _no_control),
    (PARTIAL, "not-survived", _not_survived),
    (PARTIAL, "no-prediction", _no_prediction),
    (PARTIAL, "claim-changed", _claim_changed),
    (PARTIAL, "code-changed", _code_changed),
    (PARTIAL, "binds-nothing", _binds_nothing),
    (PARTIAL, "uncommitted-sources", _uncommitted),
    (FUNCTIONAL, "unpinned", _unpinned),
    (FUNCTIONAL, "embedded-runtime", _embedded),
    (FUNCTIONAL, "recorded", _recorded),
    (FUNCTIONAL, "no-live-test", _no_live_test),
    (FUNCTIONAL, "no-commit", _no_commit),
    (FUNCTIONAL, "lane", _lane),
)

assert LADDER[0] == BLOCKER  # what earns nothing stands on the lowest rung
