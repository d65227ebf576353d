"""What every subject promises, whatever program stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from apr_falsify.errors import UsageError, nearest
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.trace import Trace

DEFAULT_SECONDS = 900.0
"""How long one run of a foreign program may take: a 7B model on a CPU needs minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a runtime is pointed at.

    Attributes:
        path: what stands after the colon of ``RUNTIME:PATH``.
        model: the model of the other side, where there is one: it supplies what a recording lacks.
        reference: the other side's trace, where there is one and no model.
        tokens: the token ids that the user gave.
        passes: how many tokens each pass computed, as the user says; empty where that is not said.
        arithmetic: what to compute in, in the words of ``operand_rules.py``, where the runtime has a choice.
        options: settings that the user hands to the runtime; they say how it runs, not what is expected.
        program: the runtime's program, where the user named one.
        seconds: how long one run of it may take.
        log: the file for what it prints, ``None`` for one that stays only where it failed.

    """

    path: Path
    model: Model | None = None
    reference: Trace | None = None
    tokens: tuple[int, ...] | None = None
    passes: tuple[int, ...] = ()
    arithmetic: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    program: Path | None = None
    seconds: float = DEFAULT_SECONDS
    log: Path | None = None


class Subject(Protocol):
    """A run that can be captured."""

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""

    @property
    def model(self) -> Model | None:
        """Its model, where its weights can be read."""

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The token ids that it fixes, ``None`` where it runs what it is given."""

    @property
    def prompt(self) -> str | None:
        """The text that it fixes, ``None`` where it has none of its own."""

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The layers it has to offer, ``None`` where it can capture any."""

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run, or read, the requested stages into ``sink`` and return the finished trace."""

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give, ``None`` where it is."""


class Started(Subject, Protocol):
    """A subject whose program runs, and which knows the token ids that it runs."""

    def finish(self) -> None:
        """Wait for its program's end."""


@runtime_checkable
class Noted(Protocol):
    """A subject of which something cannot be checked, or was read that nobody said."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What that is."""


@runtime_checkable
class Startable(Protocol):
    """A subject that is a program of its own and fixes its token ids: it runs while the oracle does."""

    @property
    def memory(self) -> int:
        """About how many bytes it needs at its peak."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What cannot be checked of it."""

    def begin(self, request: Request) -> AbstractContextManager[Started]:
        """Start to capture ``request``, but for its tokens; leaving the context ends the program."""

    def captured(self, tokens: tuple[int, ...]) -> Subject:
        """Return it as the subject of a run of ``tokens`` that was captured before."""


@runtime_checkable
class InPasses(Protocol):
    """A subject that computes its tokens in passes."""

    @property
    def passes(self) -> Passes | None:
        """How it has computed them, ``None`` where it does so as it is told."""


@runtime_checkable
class Tokenizing(Protocol):
    """A subject that runs the ids it is given, and has a tokenizer of its own all the same."""

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return the ids that its own tokenizer gives, special tokens included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSetting:
    """One setting that a runtime takes.

    Attributes:
        read: the value of a text; raises ``ValueError`` or ``KeyError`` where it is none.
        expected: what it takes, in words.

    """

    read: Callable[[str], Any]
    expected: str


def read_options(
    options: Mapping[str, str], known: Mapping[str, RuntimeSetting], runtime: str
) -> dict[str, Any]:
    """Return the values of ``options``, by name.

    Raises:
        UsageError: a name that ``known`` does not have, or a value that it cannot take.

    """
    for name in options:
        if name not in known:
            raise UsageError(
                f"the runtime {runtime} has no setting {name!r}",
                where="--subject-option",
                expected=", ".join(known) or "none: it has no settings",
                remedy=nearest(name, known),
            )
    return {name: _value(name, text, known[name]) for name, text in options.items()}


def _value(name: str, text: str, setting: RuntimeSetting) -> Any:
    try:
        return setting.read(text)
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{text!r} is no value of {name}",
            where="--subject-option",
            expected=f"{name}={setting.expected}",
        ) from error


class Runtime(Protocol):
    """Opens a subject; a row of the registry."""

    def __call__(self, target: Target) -> Subject:
        """Return the subject at ``target``, checked but not run."""
