"""The real ``apr``: a model through ``apr trace``, imported into apr's own format where it is in another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.errors import (
    AprFalsifyError,
    AprtError,
    ProcessError,
    StageError,
    TokensError,
    TraceError,
)
from apr_falsify.formats.weights import Model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.adoption import verify_tokens
from apr_falsify.subjects.apr_import import imported, source_files
from apr_falsify.subjects.apr_program import EXITS, REMEDY, TOKENS, known_stages, version_of, why_no_tokens
from apr_falsify.subjects.apr_stated import stated
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.layouts import declaration
from apr_falsify.subjects.logs import Log, keeping_log, scratch
from apr_falsify.subjects.process import Program, Running, find_program
from apr_falsify.subjects.recorded import APR_PROMPT
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import difference, model_sha256, name_of, start_hashing
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.stage_files import scan
from apr_falsify.traces.trace import Trace, read_stage, relative_path, shaped

_DEVICE = re.compile(r"^\s*(?:Device|Backend):\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)

_PEAK = 3
"""Its peak memory in sizes of the .apr file: 2.0 was measured on f32 weights; f16 is widened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AprSubject:
    """A model that ``apr`` is to trace.

    Attributes:
        program: the binary.
        source: the model as the user named it.
        apr: the .apr file that is run.
        model: that file, opened, where it can be read.
        geometry: the geometry of its model.
        interleaved: whether its weights hold interleaved rotary pairs.
        torn: whether its weights are not of its geometry, so that stages may fit no shape of it.
        log: the file for what it prints, ``None`` for one that stays only where it failed.
        notes: what cannot be checked of it.
        tokens: the token ids that it ran, where it was captured before.
        prompt: the text that it always runs.
        layers: ``None``: it can capture any.

    """

    program: Program
    source: Path
    apr: Path
    model: Model | None
    geometry: Geometry
    interleaved: bool
    torn: bool = False
    log: Path | None = None
    notes: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None
    prompt: str = APR_PROMPT
    layers: tuple[int, ...] | None = None

    @property
    def memory(self) -> int:
        """About how many bytes it needs at its peak."""
        return _PEAK * self.apr.stat().st_size

    @contextmanager
    def begin(self, request: Request) -> Iterator[AprRun]:
        """Start ``apr trace`` and give the run as soon as it has printed which token ids it runs.

        Raises:
            ProcessError: it failed before it printed them, or ended without.
            StageError: this version knows none of the stages.

        """
        start_hashing((self.program.binary, *source_files(self.source)))
        names, span = _as_arguments(request, self.geometry)
        with (
            keeping_log(self.log, "apr") as log,
            scratch("apr") as folder,
        ):
            version = version_of(self.program, log)
            stages = folder / "stages"
            with self._trace(names, span, stages, log) as running:
                known = None if running.wait_for(TOKENS) else known_stages(running.printed)
                if known is None:
                    yield self._run(running, version, stages, {})
                    return
            absent = {name: f"apr {version} does not know it" for name in names if name not in known}
            names = tuple(name for name in names if name in known)
            if not names:
                raise StageError(f"apr {version} knows none of the stages", expected=", ".join(known))
            with self._trace(names, span, stages, log) as running:
                running.wait_for(TOKENS)
                yield self._run(running, version, stages, absent)

    def _trace(
        self, names: tuple[str, ...], span: str, stages: Path, log: Log
    ) -> AbstractContextManager[Running]:
        save = ("--save-tensor", ",".join(names), "--save-tensor-dir", str(stages))
        layers = ("--save-tensor-layers", span)
        return self.program.start("trace", "--payload", str(self.apr), *save, *layers, log=log)

    def _run(self, running: Running, version: str, stages: Path, absent: Mapping[str, str]) -> AprRun:
        return AprRun(
            subject=replace(self, tokens=self._tokens(running)),
            running=running,
            version=version,
            stages=stages,
            absent=absent,
        )

    def _tokens(self, running: Running) -> tuple[int, ...]:
        """Return the token ids that a run printed, which are ids of its model, and always the same."""
        found = TOKENS.findall(running.printed)
        if not found or not found[0][0].strip():
            running.finish()
            what = "exited with 0 and printed no token ids"
            raise self.program.failed(f"`{running.verb}` {what}", running.log, "a line `Token ids: [...]`")
        if wrong := why_no_tokens(found, self.geometry.vocab):
            raise self.program.failed(f"`{running.verb}` printed unusable token ids: {wrong}", running.log)
        return tuple(int(token) for token in found[0][0].split(","))

    def captured(self, tokens: tuple[int, ...]) -> AprSubject:
        """Return it as the subject of a run of ``tokens`` that was captured before."""
        return replace(self, tokens=tokens)

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run it on ``request``, whose tokens must be those of its prompt."""
        with self.begin(request) as run:
            return run.capture(request, sink)

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give; nothing is run to find out."""
        wanted = {
            "runtime": "apr",
            "binary_sha256": model_sha256((self.program.binary,)),  # and with it the version
            "model_sha256": model_sha256(source_files(self.source)),
            "arithmetic": declaration("apr", trace.provenance.version).arithmetic,
        }
        return difference(trace, request, self.geometry, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class AprRun:
    """An ``apr trace`` that runs.

    Attributes:
        subject: what is run, with the token ids that it printed.
        running: the process.
        version: what the binary calls itself.
        stages: the directory that it writes to.
        absent: stage -> why it was not requested.

    """

    subject: AprSubject
    running: Running
    version: str
    stages: Path
    absent: Mapping[str, str]

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.subject.geometry

    @property
    def model(self) -> Model | None:
        """Its model, where it can be read."""
        return self.subject.model

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids that it runs."""
        assert self.subject.tokens is not None
        return self.subject.tokens

    @property
    def prompt(self) -> str:
        """The text that it always runs."""
        return self.subject.prompt

    @property
    def layers(self) -> None:
        """``None``: it can capture any."""

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            ProcessError: it failed or ran past its time.

        """
        self.running.finish()

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Wait for the end of the process and hand the stages that it wrote to ``sink``.

        Raises:
            ProcessError: it failed, or a file is not what it should be, or there is none.

        """
        self.finish()
        self.subject._tokens(self.running)
        files = self._files()
        unwritten: list[Key] = []
        unfit: list[Key] = []
        keys = [key for key in request.keys(self.geometry) if key.stage not in self.absent]
        layouts = declaration("apr", self.version).layout(self.subject.interleaved)
        argmax = None
        for key in keys:
            layout = layouts.get(key.stage, ())
            if key not in files:
                unwritten.append(key)
                continue
            values = self._read(key, layout)
            if values is None:
                unfit.append(key)
                continue
            if key == (0, "embedding"):
                self._check_tokens(values)
            sink.add(key, values, layout)
            if key == (None, "lm_head"):
                argmax = {"id": int(np.argmax(values))}
        if len(unwritten) + len(unfit) == len(keys):
            raise self._failed("exited with 0 and wrote none of the stages requested")
        return sink.finish(
            provenance=replace(self._provenance(request, unwritten, unfit), argmax=argmax),
            geometry=self.geometry,
            tokens=self.tokens,
        )

    def _files(self) -> Mapping[Key, Path]:
        """Return what it wrote: stages of its model, in its own directory, and at least one."""
        if self.stages.is_symlink():
            raise self._failed("put a link where its directory of stage files should be")
        if not self.stages.is_dir() or not any(self.stages.rglob("*.bin")):
            raise self._failed("exited with 0 and wrote no stage file")
        try:
            files = scan(self.stages)
        except TraceError as error:
            raise self._unusable(os.path.relpath(error.where or "", self.stages), error) from error
        if strange := [key for key in files if key.layer is not None and key.layer >= self.geometry.layers]:
            expected = f"layers 0 to {self.geometry.layers - 1}"
            raise self._failed(f"wrote {relative_path(strange[0])}, of a layer that is none", expected)
        return files

    def _check_tokens(self, rows: npt.NDArray[np.float32]) -> None:
        """Check the ids that it printed against the rows that it embedded, by its own table."""
        target = Target(path=self.subject.apr, model=self.model)
        try:
            verify_tokens(target, rows, self.tokens)
        except TokensError as error:
            raise self._failed(f"did not run the token ids that it printed: {error.what}") from error

    def _read(self, key: Key, layout: tuple[Layout, ...]) -> npt.NDArray[np.float32] | None:
        """Return what it wrote of a stage; ``None`` where its geometry is torn and does not fit that."""
        path = self.stages / relative_path(key)
        try:
            values = read_stage(path, key)
        except (AprtError, TraceError) as error:
            raise self._unusable(relative_path(key), error) from error
        try:
            return shaped(values, key, layout, self.geometry, len(self.tokens), path)
        except TraceError as error:
            if self.subject.torn:
                return None
            raise self._unusable(relative_path(key), error) from error

    def _unusable(self, name: str, error: AprFalsifyError) -> ProcessError:
        return self._failed(f"wrote an unusable {name}: {error.what}", error.expected)

    def _failed(self, what: str, expected: str = "") -> ProcessError:
        return self.subject.program.failed(f"`{self.running.verb}` {what}", self.running.log, expected)

    def _provenance(self, request: Request, unwritten: list[Key], unfit: list[Key]) -> Provenance:
        device = _DEVICE.search(self.running.printed)
        return Provenance(
            runtime="apr",
            version=self.version,
            binary_sha256=model_sha256((self.subject.program.binary,)),
            driver=f"apr-falsify {__version__}",
            model=name_of(self.subject.source, source_files(self.subject.source)),
            model_sha256=model_sha256(source_files(self.subject.source)),
            prompt=self.prompt,
            device="unknown" if device is None else device[1].lower(),
            arithmetic=declaration("apr", self.version).arithmetic,
            layers=(request.layers.start, request.layers.stop),
            stages=request.stages,
            absent={
                **self.absent,
                **_reasons(unwritten, f"apr {self.version} accepted it and wrote no file"),
                **_reasons(
                    unfit, f"what apr {self.version} wrote fits no shape of the heads that its file states"
                ),
            },
            exit_status=0,
            created=utc_now(),
        )

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        return self.subject.differs(trace, request)


def _reasons(keys: list[Key], why: str) -> dict[str, str]:
    layers: dict[str, list[str]] = {}
    for layer, name in keys:
        layers.setdefault(name, []).append("" if layer is None else str(layer))
    return {
        name: why + (f" for layer {', '.join(found)}" if found[0] else "") for name, found in layers.items()
    }


def _as_arguments(request: Request, geometry: Geometry) -> tuple[tuple[str, ...], str]:
    """Return stages and layers as ``apr trace`` takes them; one range holds for all stages."""
    keys = request.keys(geometry)
    first = min((layer for layer, _ in keys if layer is not None), default=request.layers.start)
    return tuple(dict.fromkeys(name for _, name in keys)), f"{first}..{request.layers.stop}"


def open_apr(target: Target) -> AprSubject:
    """Return the model at ``target`` as a subject, imported where it is no .apr file.

    Raises:
        MissingDependencyError: no such binary.
        ModelError: no such model, or one that ``apr`` cannot import.
        ProcessError: the import failed.

    """
    binary = find_program("apr", target.program, REMEDY, "--apr-binary")
    program = Program(name="apr", binary=binary, seconds=target.seconds, exits=EXITS)
    apr = imported(program, target.path)
    known = stated(apr, target)
    return AprSubject(
        program=program,
        source=target.path,
        apr=apr,
        model=known.model,
        geometry=known.geometry,
        interleaved=known.interleaved,
        torn=known.torn,
        log=target.log,
        notes=known.notes,
    )
