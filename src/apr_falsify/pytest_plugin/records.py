"""In the process that sums up: every test of every falsifier, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from apr_falsify.contracts.claim import Claim
from apr_falsify.evidence.outcome import Ended, Level, Outcome, Role, SeenRun, TestRecord
from apr_falsify.portable import portable_text
from apr_falsify.pytest_plugin.observe import note_of

_WORST = (
    Ended.ERROR,
    Ended.FAILED,
    Ended.XPASSED,
    Ended.XFAILED,
    Ended.SKIPPED,
    Ended.PASSED,
)
"""What outweighs what among the phases of one test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One test that carries a falsifier's marker, as it was collected.

    Attributes:
        name: its node id.
        falsifier: the falsifier's id.
        role: what it decides.
        level: where it measures.
        selected: whether it was to run.
        waits: whether it was left out because it measures a lane's subject and no lane was given.

    """

    name: str
    falsifier: str
    role: Role
    level: Level
    selected: bool
    waits: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Collected:
        """Read what :meth:`to_json` wrote."""
        return cls(**{**data, "role": Role(data["role"]), "level": Level(data["level"])})

    @property
    def function(self) -> str:
        """The node id without parameters, and without the group that pytest-xdist appends to it."""
        path, *names = self.name.split("::")
        return "::".join([path, *"::".join(names).partition("[")[0].partition("@")[0].split("::")])


@dataclass(slots=True, kw_only=True)
class Ran:
    """The reports of one test so far.

    Attributes:
        phases: phase -> how it ended.
        reason: why it did not pass.
        seconds: how long its phases took together.
        reran: whether it failed and was run again.
        again: why it was.
        started: whether it was started.
        measured: what it had measured.
        kept: bisections that it handed over, name and file.
        properties: what it recorded.
        text: what pytest prints of its failure.

    """

    phases: dict[str, Ended] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    reran: bool = False
    again: str = ""
    started: bool = False
    measured: set[SeenRun] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)
    properties: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""

    def add(self, report: pytest.TestReport) -> None:
        """Take in one report."""
        note = note_of(report)
        self.started = True
        self.seconds += report.duration
        if getattr(report, "outcome", "") == "rerun":
            self.reran, self.phases = True, {}
            self.again = "" if note is None else note["reason"]
            return
        if note is None or report.when is None:
            self.reason = self.reason or _first_line(report)  # a worker died: no phase ended
            return
        ended = Ended(note["ended"])
        before = self.phases.get(report.when, Ended.PASSED)  # subtests report their phase once each
        self.phases[report.when] = min(before, ended, key=_WORST.index)
        self.reason = self.reason or note["reason"]
        self.measured.update(map(SeenRun, note["measured"]))
        self.kept.update((name, path) for name, path in note["kept"])
        self.properties = [(str(name), str(value)) for name, value in report.user_properties]
        if report.failed:
            self.text = report.longreprtext

    @property
    def ended(self) -> Ended:
        """How the test ended: the worst of its phases; unfinished where one is lacking."""
        worst = self._worst
        if worst is Ended.PASSED and not {"setup", "call", "teardown"} <= self.phases.keys():
            return Ended.UNFINISHED
        if worst is Ended.PASSED and self.reran:
            return Ended.ERROR
        return worst

    @property
    def _worst(self) -> Ended:
        return min(self.phases.values(), key=_WORST.index, default=Ended.UNFINISHED)

    @property
    def why(self) -> str:
        """Why it did not pass, in a line."""
        if self.reran and self._worst is Ended.PASSED:
            return f"failed, and passed when it was run again: it decides nothing: {self.again}"
        return "" if self.ended is Ended.PASSED else self.reason


def _first_line(report: pytest.TestReport) -> str:
    return next((line.strip() for line in str(report.longrepr).splitlines() if line.strip()), "")


class Ledger:
    """Everything that was collected, and everything that ran."""

    def __init__(self) -> None:
        self.collected: dict[tuple[str, str], Collected] = {}
        self.ran: dict[str, Ran] = {}

    def add_collected(self, tests: Iterable[Collected]) -> None:
        """Take in what one process collected."""
        self.collected.update({(one.falsifier, one.name): one for one in tests})

    def add_report(self, report: pytest.TestReport) -> None:
        """Take in one report."""
        self.ran.setdefault(report.nodeid, Ran()).add(report)

    def of(self, falsifier: str) -> tuple[Collected, ...]:
        """Return the tests of one falsifier, in the order of their names."""
        found = (one for (name, _), one in self.collected.items() if name == falsifier)
        return tuple(sorted(found, key=lambda one: one.name))

    @property
    def falsifiers(self) -> tuple[str, ...]:
        """Every falsifier that a collected test decides."""
        return tuple(dict.fromkeys(name for name, _ in self.collected))

    def record(self, one: Collected, *, as_control: bool) -> TestRecord:
        """Return one test's record.

        Args:
            one: the test.
            as_control: whether a prediction is no more than a control here.

        """
        ran = self.ran.get(one.name, Ran())
        return TestRecord(
            name=one.name,
            ended=ran.ended if one.selected else Ended.DESELECTED,
            role=Role.CONTROL if as_control else one.role,
            level=one.level,
            reason=portable_text(ran.why),
            seconds=round(ran.seconds, 3),
            measured=tuple(sorted(ran.measured)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestVerdict:
    """One falsifier of a session.

    Attributes:
        claim: its claim.
        marker: its marker.
        tests: its tests as they ended.
        ran: the reports of those that ran, by node id.
        outcome: what they say together.
        is_selected: whether all of it was selected, or ``-m`` names it.
        is_whole: whether no test of it was left out.
        waiting: how many tests measure a lane's subject, and no lane was given.

    """

    claim: Claim
    marker: str
    tests: tuple[TestRecord, ...]
    ran: Mapping[str, Ran]
    outcome: Outcome
    is_selected: bool
    is_whole: bool
    waiting: int

    @property
    def has_started(self) -> bool:
        """Whether any test of it was started."""
        return any(one.started for one in self.ran.values())
