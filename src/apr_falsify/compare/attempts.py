"""What may break down within a comparison, and must not cost its verdict.

A *hypothesis* explains: a cause, a convention, another arithmetic, an invariant, a figure of the page. It
runs in :meth:`Attempts.trying`; if it breaks down it is noted, and a source stays a source.

What is *needed* decides: the replay of one stage, the comparison of one tensor. It runs in
:meth:`Attempts.needing`; if it breaks down that stage is unmeasured, which is never ``consistent``, and the
others are judged. Unusable input is no breakdown of ours: typed errors and those of files go on to the user.

Whatever runs in neither (tokens, geometry, the rows, the headline) stops the comparison: exit 3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TypeVar

from apr_falsify.errors import AprFalsifyError
from apr_falsify.model.stages import Key

_T = TypeVar("_T")
_U = TypeVar("_U")
_LOG = logging.getLogger(__name__)
"""``--debug`` shows its records, which carry the tracebacks (``commands.main``)."""

_LONGEST = 160
"""How many characters of an error's first line are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """One attempt that broke down.

    Attributes:
        what: what was tried: ``the cause rope-base``, ``the replay`` ...
        key: the stage it is about, ``None`` for several or none.
        error: type and first line of the error. The error itself would keep the arrays of its frames.
        needed: whether the verdict on the stage rests on it.
        memory: whether memory ran out, which is no defect.

    """

    what: str
    key: Key | None
    error: str
    needed: bool
    memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Collects what breaks down in one comparison.

    Attributes:
        noted: what did.
        loud: let every error through: for callers that want to see it.
        where: what the attempts are part of, the beginning of their names.
        decisive: whether anything is needed here; within a hypothesis nothing is.

    """

    noted: list[Breakdown] = field(default_factory=list)
    loud: bool = False
    where: str = ""
    decisive: bool = True

    def within(self, where: str, *, decisive: bool) -> Attempts:
        """Return a collector for what is part of ``where``; it notes in the same place."""
        return replace(self, where=f"{self.where}{where}: ", decisive=self.decisive and decisive)

    def trying(self, what: str, key: Key | None = None) -> Attempt:
        """Return where to run a hypothesis."""
        return Attempt(self, what, key, needed=False)

    def needing(self, what: str, key: Key | None = None) -> Attempt:
        """Return where to run what the verdict on ``key`` rests on."""
        return Attempt(self, what, key, needed=True)


class Attempt:
    """A context in which an error is noted and ends; ``KeyboardInterrupt`` and ``SystemExit`` go on."""

    def __init__(self, attempts: Attempts, what: str, key: Key | None, *, needed: bool) -> None:
        self._attempts, self._what, self._key, self._needed = attempts, what, key, needed

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or self._attempts.loud:
            return False
        if self._needed and isinstance(error, AprFalsifyError | OSError):
            return False
        noted = Breakdown(
            what=self._attempts.where + self._what,
            key=self._key,
            error=error_line(error),
            needed=self._needed and self._attempts.decisive,
            memory=isinstance(error, MemoryError),
        )
        self._attempts.noted.append(noted)
        _LOG.debug("%s (stage: %s) broke down", noted.what, noted.key, exc_info=error)
        return True

    def made(self, make: Callable[[], _T], otherwise: _U) -> _T | _U:
        """Return what ``make`` returns, ``otherwise`` where it breaks down."""
        with self:
            return make()
        return otherwise


LOUD = Attempts(loud=True)
"""Notes nothing: every error goes on."""


def error_line(error: Exception) -> str:
    """Return type and first line; of an error of the system without the path, which names the machine."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = next(iter(message.splitlines()), "")[:_LONGEST]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
