"""Which cause explains each source of a trace: looked for in full in some, and tried again in all others.

A fault of a formula is in every layer: 30 layers of wrong rotary pairs are 60 sources of one cause. What
explained a stage in one layer is tried first in the next, which takes a few evaluations of that stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.axes import axes_of
from apr_falsify.compare.cause import Cause
from apr_falsify.compare.causes import explain, is_misread
from apr_falsify.compare.judge import Judged, comparable
from apr_falsify.compare.replay import Replay, Replayer
from apr_falsify.compare.variations.places import error_sits
from apr_falsify.compare.variations.table import MISREAD_WEIGHTS, TABLE
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN, ROUNDED_STEPS, Operation, Rule
from apr_falsify.operators.roundoff import LIMIT, UNIT

SEARCHED_AT_MOST = 24
"""Sources for which the whole table of causes is gone through: that may take several passes over weights."""


class Search:
    """Looks for the causes of one trace's sources, and keeps those found.

    Args:
        replayer: replays the trace.
        attempts: notes what breaks down.

    """

    def __init__(self, replayer: Replayer, attempts: Attempts) -> None:
        self.replayer = replayer
        self._attempts = attempts
        self.left = SEARCHED_AT_MOST
        self._found: dict[str, list[Cause]] = {}
        self._of_readers: list[Cause] = []  # one reader decodes the weights of all stages

    def explained(self, entry: Judged) -> tuple[list[str], tuple[str, str] | None]:
        """Return the sentence on the cause of ``entry``, and its identifier and words where one fits."""
        with self._attempts.trying("the search for a cause", entry.key):
            return self._explained(entry)
        self.left -= 1
        return ["its cause could not be looked for"], None

    def _explained(self, entry: Judged) -> tuple[list[str], tuple[str, str] | None]:
        assert entry.fit is not None
        subject = self.replayer.judged(entry.key)
        assert subject is not None
        known = self._found.setdefault(entry.key.stage, [])
        likely = [*known, *(cause for cause in self._of_readers if cause not in known)]
        search = self.left > 0
        cause: Cause | None = None
        for rule in self._rules(entry.fit.rule, entry.key):
            cause = explain(
                self.replayer,
                entry.key,
                rule,
                subject,
                LIMIT,
                likely=likely,
                search=search,
                attempts=self._attempts,
            )
            if cause is not None and cause.fits:
                break
        if cause is not None and cause.fits:
            self._keep(cause, known)
            return [cause.sentence], ((cause.name, cause.says) if cause.says else None)
        self.left -= 1
        if not search:
            return ["no cause of another layer fits, and no other was looked for", *self._where(entry)], None
        return ["no named cause fits", *self._where(entry)], None

    def all_misread(self, entries: Sequence[Judged]) -> bool:
        """Whether the first source of each of several stages is one of misread quantised weights."""
        first = {entry.key.stage: entry for entry in reversed(entries)}
        return bool(first) and all(self._is_misread(entry) for entry in first.values())

    def _is_misread(self, entry: Judged) -> bool:
        subject = self.replayer.captured(entry.key)
        assert entry.fit is not None
        assert subject is not None
        with self._attempts.trying("the search for misread weights", entry.key):
            return is_misread(self.replayer, entry.key, entry.fit.rule, subject, LIMIT, self._attempts)
        return False

    def _rules(self, judged_by: Rule, key: Key) -> tuple[Rule, ...]:
        """Return the arithmetics under which a cause may fit: of 16 bits, with every step rounded too."""
        of_16_bits = self.replayer.operation(key) is Operation.ATTENTION and self.replayer.store > UNIT
        return (judged_by, ROUNDED_STEPS) if judged_by is PLAIN and of_16_bits else (judged_by,)

    def _keep(self, cause: Cause, known: list[Cause]) -> None:
        if cause.row is not None and not any(
            (cause.row, cause.says) == (other.row, other.says) for other in known
        ):
            known.append(cause)
            if TABLE[cause.row] is MISREAD_WEIGHTS:
                self._of_readers.append(cause)
            self.left -= 1  # it was not among those that are tried again

    def _where(self, entry: Judged) -> list[str]:
        with self._attempts.trying("the search for where the error sits", entry.key):
            return [self._sits(entry)]
        return []

    def _sits(self, entry: Judged) -> str:
        assert entry.fit is not None
        subject = self.replayer.judged(entry.key)
        found = self.replayer.replay(entry.key, (entry.fit.rule,))
        assert subject is not None
        assert isinstance(found, Replay)
        expected, sigma = comparable(self.replayer.trace, entry.key, subject, found.values[0], found.sigma)
        trace = self.replayer.trace
        axes = axes_of(entry.key.stage, trace.geometry, trace.passes.unseen)
        return error_sits(subject, expected, sigma, LIMIT, axes)
