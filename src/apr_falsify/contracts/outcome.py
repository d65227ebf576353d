"""The outcome of a run: each problem with its severity in this project, and what the exit code is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from apr_falsify.contracts.baseline import BaselineMatch
from apr_falsify.contracts.problem import Problem
from apr_falsify.contracts.report import Counts, Report
from apr_falsify.contracts.rules import ERROR, WARNING
from apr_falsify.contracts.settings import Ignore, Settings
from apr_falsify.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedProblem:
    """A problem, its severity here, and why it does not count where it does not."""

    problem: Problem
    severity: str
    let_be: str = ""  # the reason of an ignore, or "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOutcome:
    """Everything that is printed, in any format."""

    judged: tuple[JudgedProblem, ...]
    counts: Counts
    mended: tuple[str, ...] = ()
    unused_ignores: tuple[Ignore, ...] = ()
    without_contract: tuple[str, ...] = ()  # paths that were asked for

    @property
    def shown(self) -> tuple[JudgedProblem, ...]:
        """Problems that count."""
        return tuple(one for one in self.judged if not one.let_be)

    def number(self, severity: str) -> int:
        """How many problems of a severity count."""
        return sum(one.severity == severity for one in self.shown)

    @property
    def exit_code(self) -> ExitCode:
        """0 valid, 1 invalid, 4 nothing conclusive."""
        if self.number(ERROR) or self.mended:
            return ExitCode.DIVERGENCE
        return ExitCode.INCONCLUSIVE if self.inconclusive else ExitCode.OK

    @property
    def inconclusive(self) -> str:
        """Why nothing could be found out; empty where something was, or nothing was to be."""
        if not self.counts.contracts and not self.counts.bindings:
            return "no contract: no file has metadata, falsification tests or bindings"
        unresolved = any(one.problem.code in ("unresolved-name", "unresolved-sibling") for one in self.shown)
        if unresolved and not self.counts.resolved:
            return "not one name could be resolved; give their trees with --source NAME=DIR"
        return ""


def judge(
    problems: Iterable[Problem],
    report: Report,
    settings: Settings,
    baseline: BaselineMatch | None,
    *,
    strict: bool,
    raised: Callable[[Problem], bool] = lambda _: False,
) -> ValidationOutcome:
    """Give each problem its severity; with ``strict``, and where it is ``raised``, a warning is an error."""
    problems = list(problems)
    judged = []
    used: set[Ignore] = set()
    for problem in problems:
        severity = settings.severity(problem.code)
        if (strict or raised(problem)) and severity == WARNING:
            severity = ERROR
        ignore = next((one for one in settings.ignores if one.covers(problem)), None)
        if ignore:
            used.add(ignore)
        known = baseline is not None and problem in baseline.known
        let_be = ignore.reason if ignore else ("baseline" if known else "")
        judged.append(JudgedProblem(problem=problem, severity=severity, let_be=let_be))
    return ValidationOutcome(
        judged=tuple(judged),
        counts=report.counts,
        without_contract=report.without_contract,
        mended=baseline.mended if baseline else (),
        unused_ignores=tuple(one for one in settings.ignores if one not in used),
    )
