"""What every subject promises, whatever program stands behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apr_falsify.capture import Request, Sink
from apr_falsify.geometry import Geometry
from apr_falsify.trace import Trace
from apr_falsify.weights import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a runtime is pointed at.

    Attributes:
        path: what stands after the colon of ``RUNTIME:PATH``.
        model: the model of the other side, where there is one: it supplies what a recording lacks.
        reference: the other side's trace, where there is one and no model.
        tokens: the token ids that the user gave.
        arithmetic: what to compute in, in the words of ``rules.py``, where the runtime has a choice.

    """

    path: Path
    model: Model | None = None
    reference: Trace | None = None
    tokens: tuple[int, ...] | None = None
    arithmetic: str | None = None


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


class Runtime(Protocol):
    """Opens a subject; a row of the registry."""

    def __call__(self, target: Target) -> Subject:
        """Return the subject at ``target``, checked but not run."""
