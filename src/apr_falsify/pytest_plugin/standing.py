"""Where a falsifier stands after a run: the rung that the run carries, and what the next one needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apr_falsify.contracts.statuses import FUNCTIONAL, LADDER
from apr_falsify.evidence.outcome import Result
from apr_falsify.pytest_plugin.state import Work
from apr_falsify.pytest_plugin.summary import JudgedClaim

if TYPE_CHECKING:
    from apr_falsify.evidence.earn import Earned
    from apr_falsify.evidence.facts import Facts
    from apr_falsify.pytest_plugin.records import TestVerdict


def standing(
    verdict: TestVerdict, facts: Facts, work: Work, bundle: Path | None, statement_sha256: str
) -> JudgedClaim:
    """Return what the summary says of a falsifier."""
    claim = verdict.claim
    answer = _earned(verdict, facts, work)
    return JudgedClaim(
        falsifier=claim.falsifier,
        outcome=verdict.outcome,
        now=claim.rung,
        earned=answer.rung,
        needs=tuple(_needs(verdict, answer)),
        bundle=bundle,
        statement_sha256=statement_sha256,
    )


def _earned(verdict: TestVerdict, facts: Facts, work: Work) -> Earned:
    """Return what a bundle of this run carries while nothing pins it."""
    from apr_falsify.evidence.earn import earned
    from apr_falsify.evidence.verify import Verification
    from apr_falsify.pytest_plugin.drafting import kinds_of

    unpinned = Verification(
        path=Path(),
        facts=facts,
        statement_sha256="",
        state="unpinned",
        pinned_by=(),
        signed_by=(),
        recomputed=(),
        attested=(),
        not_checked=(),
        problems=(),
        kinds=kinds_of(verdict, work),
    )
    return earned(unpinned, verdict.claim, bound_now=facts.bound, project=work.options.project)


def _needs(verdict: TestVerdict, answer: Earned) -> Iterator[str]:
    """Yield what stands between the run and the rung above the one it carries."""
    if answer.rung == FUNCTIONAL or verdict.outcome.result is not Result.SURVIVED:
        return  # the outcome itself says why
    above = LADDER[LADDER.index(answer.rung) + 1]
    for refusal in answer.bars(above):
        if refusal.code == "no-live-test" and verdict.waiting:
            yield f"for {above}: {verdict.waiting} live test(s), on a lane: --gpu or --lane=NAME"
        else:
            yield f"for {above}: {refusal}"
