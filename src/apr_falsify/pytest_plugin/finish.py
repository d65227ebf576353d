"""When all tests have ended: what each falsifier's tests say together, the bundles, and the summary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apr_falsify.contracts.claim import Claim
from apr_falsify.errors import AprFalsifyError
from apr_falsify.evidence.outcome import Ended, Level, Outcome, Result, TestRecord, outcome_of
from apr_falsify.pytest_plugin.records import Collected, Ledger, TestVerdict
from apr_falsify.pytest_plugin.scope import names_marker
from apr_falsify.pytest_plugin.standing import standing
from apr_falsify.pytest_plugin.state import Work
from apr_falsify.pytest_plugin.summary import JudgedClaim, lines_of

_LEFT_OUT = (Ended.DESELECTED, Ended.UNCOLLECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a session's falsifiers come to.

    Attributes:
        exit_code: 1 where the session may not pass, else 0.
        lines: the summary.

    """

    exit_code: int
    lines: list[str]


def finish(work: Work, ledger: Ledger, config: pytest.Config) -> Done:
    """Judge every falsifier that was selected, leave its bundle, and say so."""
    from apr_falsify.pytest_plugin.drafting import forget

    forget()
    verdicts = [one for one in _verdicts(work, ledger, config) if one.is_selected or one.has_started]
    selected = [one for one in verdicts if one.is_selected]
    problems: list[str] = []
    judged = [one for each in selected if (one := _judged(each, work, problems)) is not None]
    partly = [one.claim.falsifier for one in verdicts if not one.is_selected]
    return Done(
        exit_code=int(bool(problems and work.options.evidence_dir) or _may_not_pass(selected)),
        lines=list(lines_of(judged, partly, problems)),
    )


def _may_not_pass(selected: list[TestVerdict]) -> bool:
    """Whether none was run, or one was refuted or broke although pytest counts no failure."""
    results = [one.outcome.result for one in selected]
    none_ran = bool(results) and all(one is Result.NOT_RUN for one in results)
    return none_ran or any(one in (Result.FALSIFIED, Result.ERROR) for one in results)


def _verdicts(work: Work, ledger: Ledger, config: pytest.Config) -> Iterator[TestVerdict]:
    expression = str(config.getoption("markexpr", "") or "")
    known = set(ledger.falsifiers)
    tree = LaneSources(work.options.root, config.rootpath)
    for marker, claim in work.claims.items():
        if claim.falsifier in known:
            yield _verdict(claim, marker, ledger, tree, expression, live=work.options.lane.is_live)


def _verdict(
    claim: Claim, marker: str, ledger: Ledger, sources: LaneSources, expression: str, *, live: bool
) -> TestVerdict:
    collected = ledger.of(claim.falsifier)
    waiting = 0 if live else sum(one.level is Level.LIVE for one in collected)
    counted = [one for one in collected if live or one.level is not Level.LIVE]
    # On a live lane what holds on the embedded default no longer is the prediction but shows that the
    # instrument which measures it works.
    measured_live = live and any(one.level is Level.LIVE for one in collected)
    tests = [ledger.record(one, as_control=measured_live and one.level is Level.ALGORITHM) for one in counted]
    has_run = any(one.name in ledger.ran for one in counted)
    named = names_marker(expression, marker)
    if has_run or named:
        tests += sources.uncollected(marker, collected)
    left_out = any(one.ended in _LEFT_OUT for one in tests)
    chosen = any(one.selected for one in counted)
    return TestVerdict(
        claim=claim,
        marker=marker,
        tests=tuple(tests),
        ran={one.name: ledger.ran[one.name] for one in counted if one.name in ledger.ran},
        outcome=_outcome(tests, waiting),
        is_selected=named or (chosen and not left_out),
        is_whole=chosen and not left_out,
        waiting=waiting,
    )


def _outcome(tests: list[TestRecord], waiting: int) -> Outcome:
    if not tests and waiting:
        return Outcome(
            result=Result.NOT_RUN,
            reason="its tests measure the subject of a lane, and none was given: --gpu or --lane=NAME",
        )
    return outcome_of(tests)


class LaneSources:
    """The project's test files, read for tests that carry a marker and were not collected.

    Args:
        root: the project's folder.
        rootpath: the folder that pytest's node ids are relative to.

    """

    def __init__(self, root: Path, rootpath: Path) -> None:
        from apr_falsify.symbols.tree import SourceTree

        self._root, self._rootpath = root, rootpath
        self._tree = SourceTree(root)

    def uncollected(self, marker: str, collected: tuple[Collected, ...]) -> list[TestRecord]:
        """Return a record for each test that carries ``marker`` and is not among ``collected``."""
        from apr_falsify.symbols.markers import marked_tests

        known = {self._absolute(one.function, self._rootpath) for one in collected}
        return [
            TestRecord(name=one.node, ended=Ended.UNCOLLECTED, reason="its file, or it, was not collected")
            for one in marked_tests(self._tree, marker)
            if not one.why_not and self._absolute(one.node, self._root) not in known
        ]

    @staticmethod
    def _absolute(node: str, folder: Path) -> str:
        path, *names = node.split("::")
        return "::".join([str((folder / path).resolve()), *names])


def _judged(verdict: TestVerdict, work: Work, problems: list[str]) -> JudgedClaim | None:
    from apr_falsify.pytest_plugin.drafting import facts_of, leave_bundle

    try:
        facts = facts_of(verdict, work)
        bundle, digest = leave_bundle(verdict, facts, work)
    except AprFalsifyError as error:
        problems.append(f"{verdict.claim.falsifier}: {verdict.outcome.result}, and no bundle: {error}")
        return None
    return standing(verdict, facts, work, bundle, digest)
