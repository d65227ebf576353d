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
from apr_falsify.errors import UsageError
from apr_falsify.folders import temporary_folder
from apr_falsify.formats.weights import Model
from apr_falsify.model.shape import Geometry
from apr_falsify.subjects.interface import Target
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import difference, model_sha256, name_of
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import Trace


class RecordedRun(Protocol):
    """Runs a program on token ids and leaves a recording (``apr_falsify.record``) in a folder."""

    def __call__(self, tokens: tuple[int, ...], folder: Path) -> None:
        """Run it, once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWired:
    """A program that is run here on the tokens that it is given, all at once.

    Attributes:
        runtime: its name in the registry.
        version: the version of what runs it.
        reference: the model that it should be.
        files: what it is made from, for its identity.
        run: runs it.
        settings: what the user set.

    """

    runtime: str
    version: str
    reference: Model
    files: tuple[Path, ...]
    run: RecordedRun
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
        return ("which array is which stage, by anyone but apr-falsify: they were wired by replay",)

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run it and hand on the stages that were found.

        Raises:
            UndecidedError: an array may be one stage or another.
            TraceError: nothing that it computes is a stage of the model.

        """
        folder = temporary_folder(self.runtime)
        try:
            self.run(request.tokens, folder / "run")
            wired = open_wired(Target(path=folder / "run", model=self.reference, tokens=request.tokens))
            return self._handed_on(wired.trace, request, sink)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _handed_on(self, trace: Trace, request: Request, sink: Sink) -> Trace:
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
            binary_sha256=model_sha256(self.files),
            model_sha256=model_sha256(self.reference.files),
            settings=self.settings,
            driver=f"apr-falsify {__version__} (wired by replay)",
            model=name_of(self.reference.path, self.reference.files),
            dtype=trace.provenance.dtype,
            saved_as=trace.provenance.saved_as,
            device="cpu",
            layers=(request.layers.start, request.layers.stop),
            stages=request.stages,
            prompt=request.prompt,
            absent=absent,
            created=utc_now(),
        )
        return sink.finish(provenance=provenance, geometry=self.geometry, tokens=request.tokens)

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": self.runtime,
            "version": self.version,
            "binary_sha256": model_sha256(self.files),
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
