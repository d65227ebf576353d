"""What the run of a falsifier says: survived, falsified, not run, or an error; nothing by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NoReturn

from apr_falsify.reading import items, mapping, text


class Result(StrEnum):
    """The four answers of a falsifier; only the first two are conclusive."""

    SURVIVED = "SURVIVED"
    FALSIFIED = "FALSIFIED"
    NOT_RUN = "NOT_RUN"
    ERROR = "ERROR"


class Ended(StrEnum):
    """How one test ended, in pytest's words.

    The last three never came to an answer: left out by ``-k`` or ``-m``, in a file that was not collected,
    or selected and not finished.
    """

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"
    DESELECTED = "deselected"
    UNCOLLECTED = "uncollected"
    UNFINISHED = "unfinished"


class Role(StrEnum):
    """What a test decides: the prediction, or whether the instrument that measures it works."""

    PREDICTION = "prediction"
    CONTROL = "control"


class Level(StrEnum):
    """Where a test measures: on the embedded default, or on the subject of a lane."""

    ALGORITHM = "algorithm"
    LIVE = "live"


class SeenRun(StrEnum):
    """What a test has measured: a side of the session's lane, or the embedded default."""

    ORACLE = "oracle"
    SUBJECT = "subject"
    EMBEDDED = "embedded"


HOLLOW = "passed, but measured nothing of the lane's subject"
"""The words for a live test of the prediction that passed without having the lane measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRecord:
    """One test of a falsifier, as it ended.

    Attributes:
        name: pytest's node id.
        ended: how it ended.
        role: what it decides.
        level: where it measures.
        reason: why it did not pass, in a line; empty where it passed.
        seconds: how long it took.
        measured: what it had measured; ``None`` where a bundle of an earlier version does not say.

    """

    __test__ = False  # its name begins as pytest's test classes do

    name: str
    ended: Ended
    role: Role = Role.PREDICTION
    level: Level = Level.ALGORITHM
    reason: str = ""
    seconds: float = 0.0
    measured: tuple[SeenRun, ...] | None = None

    @property
    def shows_the_subject(self) -> bool:
        """Whether it is a test of the prediction that had the lane's subject measured, and passed."""
        return self._passed_live and self.measured is not None and SeenRun.SUBJECT in self.measured

    @property
    def is_hollow(self) -> bool:
        """Whether it is a live test of the prediction that passed and looked at no subject."""
        return self._passed_live and self.measured is not None and SeenRun.SUBJECT not in self.measured

    @property
    def _passed_live(self) -> bool:
        is_live = self.role is Role.PREDICTION and self.level is Level.LIVE
        return is_live and self.ended is Ended.PASSED

    @property
    def remark(self) -> str:
        """What a reader must know of how it ended: why it did not pass, or that it passed on nothing."""
        return HOLLOW if self.is_hollow else self.reason

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; what it measured only where that is known."""
        return {key: value for key, value in asdict(self).items() if key != "measured" or value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TestRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: a value of the wrong type, or a word that is not in its table.

        """
        seconds = data.get("seconds", 0.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise ValueError("seconds is no number")
        return cls(
            name=text(data.get("name"), "name"),
            ended=Ended(text(data.get("ended"), "ended")),
            role=Role(text(data.get("role"), "role")),
            level=Level(text(data.get("level"), "level")),
            reason=text(data.get("reason", ""), "reason"),
            seconds=float(seconds),
            measured=_measured(data["measured"]) if "measured" in data else None,
        )


def _measured(value: object) -> tuple[SeenRun, ...]:
    return tuple(SeenRun(text(one, "measured")) for one in items(value, "measured"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a falsifier's run says.

    It has no truth value: ``if outcome`` would let one of four answers stand for the others.

    Attributes:
        result: the answer.
        reason: why; for SURVIVED what was counted.

    """

    result: Result
    reason: str

    def __bool__(self) -> NoReturn:
        raise TypeError("an outcome is one of four answers, not a truth value: compare outcome.result")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"result": self.result.value, "reason": self.reason}

    @classmethod
    def from_json(cls, data: object) -> Outcome:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: a value of the wrong type, or a word that is not in its table.

        """
        found = mapping(data, "outcome")
        return cls(
            result=Result(text(found.get("result"), "outcome.result")),
            reason=text(found.get("reason"), "outcome.reason"),
        )


_NOT_RUN: Mapping[Ended, str] = {
    Ended.SKIPPED: "skipped",
    Ended.XFAILED: "expected to fail, so it decides nothing",
    Ended.XPASSED: "passed although expected to fail",
    Ended.DESELECTED: "deselected",
    Ended.UNCOLLECTED: "not collected",
    Ended.UNFINISHED: "did not finish",
}
"""How a test ended without deciding -> the words for it."""


def outcome_of(tests: Iterable[TestRecord]) -> Outcome:
    """Return what the tests of one falsifier say together; the first of these that applies.

    1. No test: NOT_RUN.
    2. A test that ended in an error, or a control that failed: ERROR, since the instrument is broken.
    3. A prediction that failed: FALSIFIED.
    4. A test that decided nothing: NOT_RUN.
    5. No test of the prediction, or none but live ones that had no subject measured: NOT_RUN.
    6. All passed: SURVIVED.
    """
    records = tuple(tests)
    broken = [one for one in records if one.ended is Ended.ERROR or _failed(one, Role.CONTROL)]
    failed = [one for one in records if _failed(one, Role.PREDICTION)]
    unjudged = [one for one in records if one.ended in _NOT_RUN]
    if not records:
        return Outcome(result=Result.NOT_RUN, reason="no test carries its marker")
    if broken:
        word = "control failed" if broken[0].ended is Ended.FAILED else "error"
        return Outcome(result=Result.ERROR, reason=_first_of(broken, word))
    if failed:
        return Outcome(result=Result.FALSIFIED, reason=_first_of(failed, "failed"))
    if unjudged:
        return Outcome(result=Result.NOT_RUN, reason=_first_of(unjudged, _NOT_RUN[unjudged[0].ended]))
    return _of_passed(records)


def _of_passed(records: tuple[TestRecord, ...]) -> Outcome:
    hollow = [one for one in records if one.is_hollow]
    controls = sum(one.role is Role.CONTROL for one in records)
    predictions = len(records) - controls - len(hollow)
    if not predictions:
        why = _first_of(hollow, HOLLOW) if hollow else "only controls ran: nothing measured the prediction"
        return Outcome(result=Result.NOT_RUN, reason=why)
    passed = [_counted(predictions, "prediction"), *([_counted(controls, "control")] if controls else [])]
    apart = f"; {_first_of(hollow, HOLLOW)}" if hollow else ""
    return Outcome(result=Result.SURVIVED, reason=f"{' and '.join(passed)} passed{apart}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _failed(one: TestRecord, role: Role) -> bool:
    return one.ended is Ended.FAILED and one.role is role


def _first_of(records: list[TestRecord], word: str) -> str:
    first = records[0]
    more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
    return f"{first.name}: {word}{more}" + (f": {first.reason}" if first.reason else "")
