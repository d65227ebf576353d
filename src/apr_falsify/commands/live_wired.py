"""Subjects that are run here and wired by replay: what their program computes is recorded, then found again.

A runtime says how its program is opened and run within a recording; which array is which stage nobody says.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from apr_falsify import __version__
from apr_falsify.commands.wired import open_wired
from apr_falsify.errors import TraceError, UndecidedError, UsageError
from apr_falsify.folders import temporary_folder
from apr_falsify.formats.weights import Model
from apr_falsify.model.shape import Geometry
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import difference, model_sha256, name_of
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import Trace


class RecordedRun(Protocol):
    """Runs a program on token ids and leaves a recording (``apr_falsify.record``) in a folder."""

    def __call__(self, tokens: tuple[int, ...], folder: Path) -> str:
        """Run it, once; return where: ``cpu``, ``cuda`` or ``unknown``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWired:
    """A program that is run here on the tokens that it is given, all at once.

    Attributes:
        runtime: its name in the registry.
        version: the version of what runs it.
        reference: the model that it should be.
        path: what the user named.
        files: all that it is made from, for its identity; ``None`` where that is not known: it is run anew
            each time, and no digest stands for it.
        run: runs it.
        by_hand: how a user records the same run where its arrays can be looked at.
        made_from: what is known of that then, for a reader.
        settings: what the user set.

    """

    runtime: str
    version: str
    reference: Model
    path: Path
    files: tuple[Path, ...] | None
    run: RecordedRun
    by_hand: str
    made_from: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    model: Model | None = None
    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    layers: tuple[int, ...] | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of the model that it should be."""
        return self.reference.geometry

    @property
    def notes(self) -> tuple[str, ...]:
        """What cannot be checked of it."""
        wired = "which array is which stage, by anyone but apr-falsify: they were wired by replay"
        if self.files is not None:
            return (wired,)
        return wired, f"which code and weights {self.path.name} imports and loads: it is run anew each time"

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run it and hand on the stages that were found.

        Raises:
            UndecidedError: an array may be one stage or another.
            TraceError: nothing that it computes is a stage of the model.

        """
        folder = temporary_folder(self.runtime)
        try:
            device = self.run(request.tokens, folder / "run")
            wired = self._wired(Target(path=folder / "run", model=self.reference, tokens=request.tokens))
            return self._handed_on(wired.trace, request, sink, device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _wired(self, target: Target) -> RecordedSubject:
        """Wire a recording that is gone afterwards: an error names what the user can look at."""
        try:
            return open_wired(target)
        except (TraceError, UndecidedError) as error:
            raise type(error)(
                error.what,
                where=f"{self.runtime}:{self.path}",
                expected=error.expected if isinstance(error, TraceError) else "one array that fits it",
                remedy="look whether --oracle is the model that it should be; to name the arrays yourself, "
                f"{self.by_hand}, and write a mapping: apr-falsify capture recorded:run "
                "--print-mapping --oracle MODEL > MAPPING.yaml",
            ) from error

    def _handed_on(self, trace: Trace, request: Request, sink: Sink, device: str) -> Trace:
        absent = {}
        for key in request.keys(self.geometry):
            array = trace.stages.get(key)
            if array is None:
                absent[key.stage] = "no array was found to be it"
            else:
                sink.add(key, array.data.copy(), array.layout)
        provenance = Provenance(
            runtime=self.runtime,
            version=self.version,
            binary_sha256=self._digest(),
            model_sha256=model_sha256(self.reference.files),
            settings=self.settings,
            driver="; ".join(filter(None, (f"apr-falsify {__version__} (wired by replay)", self._of()))),
            model=name_of(self.reference.path, self.reference.files),
            dtype=trace.provenance.dtype,
            saved_as=trace.provenance.saved_as,
            device=device,
            layers=(request.layers.start, request.layers.stop),
            stages=request.stages,
            prompt=request.prompt,
            absent=absent,
            created=utc_now(),
        )
        return sink.finish(provenance=provenance, geometry=self.geometry, tokens=request.tokens)

    def _digest(self) -> str | None:
        return None if self.files is None else model_sha256(self.files)

    def _of(self) -> str:
        return f"{self.made_from}, what it imports and loads not identified" if self.made_from else ""

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": self.runtime,
            "version": self.version,
            "binary_sha256": self._digest(),
            "model_sha256": model_sha256(self.reference.files),
            "settings": dict(self.settings),
        }
        return difference(trace, request, self.geometry, wanted)


def reference_of(runtime: str, target: Target) -> Model:
    """Return the model that a program should be.

    Raises:
        UsageError: nothing says which.

    """
    if target.model is None:
        raise UsageError(
            f"nothing says which model {runtime}:{target.path} should be",
            expected="--oracle MODEL, a HuggingFace directory or a .gguf file; a trace does not do",
        )
    return target.model
