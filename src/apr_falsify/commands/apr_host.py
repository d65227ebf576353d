"""The real ``apr`` as a host of the exam: faults are written into checkpoints, imported and traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr_falsify.errors import MissingDependencyError
from apr_falsify.exam.cases import ExamCase, ExamRun
from apr_falsify.exam.correct import APR_SETTINGS
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.material import Material, Setting
from apr_falsify.exam.plan import APR_MODELS
from apr_falsify.exam.store import Store, remove
from apr_falsify.model.shape import Geometry
from apr_falsify.subjects.apr import AprSubject
from apr_falsify.subjects.apr_import import import_model
from apr_falsify.subjects.apr_program import EXITS, REMEDY
from apr_falsify.subjects.logs import keeping_log
from apr_falsify.subjects.process import Program, find_program
from apr_falsify.traces.capture import Request, Sink

_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AprHost:
    """The program ``apr``.

    Attributes:
        program: the program.
        directory: where it may write; what it writes is removed after each run.
        models: the models on which it was seen to be right.
        fixed_tokens: the ids of its fixed prompt.
        make_room: called before it runs, with the model: it needs as much memory as the oracle.

    """

    program: Program
    directory: Path
    models: tuple[str, ...]
    fixed_tokens: tuple[int, ...] | None
    make_room: Callable[[Material], object] = lambda material: None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether the fault can be written into a checkpoint; its token ids must stay recognisable."""
        seedable = fault.edit is not None or fault.config is not None
        return seedable and fault.fits(geometry) and "embedding" not in fault.stages

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs HuggingFace's checkpoints and GGUF files, each in the arithmetic that it has for it."""
        return material.name in self.models and setting.name == APR_SETTINGS.get(material.kind)

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``."""
        sound = store.model(case.material)
        config: dict[str, Any] = store.config(case.material) if case.seeded else {}
        tensors: dict[Any, Any] = {}
        for each in case.seeded:
            tensors.update(each.tensors(sound.weights))
            # Where both can be written, the tensors are the fault, and the config stays.
            if each.fault.edit is None and each.fault.config is not None:
                config = each.fault.config(config)
        self.make_room(case.material)
        path = store.spoiled(case.material, config, tensors) if case.seeded else sound.path
        try:
            with self.imported(path, sound.geometry) as subject:
                return ExamRun(trace=subject.capture(request, sink))
        finally:
            if path != sound.path:
                remove(path)

    @contextmanager
    def imported(self, source: Path, geometry: Geometry) -> Iterator[AprSubject]:
        """Give the checkpoint at ``source`` as a subject; what is imported is removed afterwards."""
        place = self.directory / "spoiled.apr"
        try:
            with keeping_log(None, "apr-import") as log:
                import_model(self.program, source, place, log)
            yield AprSubject(
                program=self.program,
                source=source,
                apr=place,
                model=None,
                geometry=geometry,
                interleaved=False,
            )
        finally:
            place.unlink(missing_ok=True)


def find_apr(directory: Path, make_room: Callable[[Material], object]) -> AprHost | None:
    """Return the ``apr`` on PATH as a host, ``None`` where there is none.

    Args:
        directory: where it may write.
        make_room: called before it runs a model.

    """
    try:
        program = Program(name="apr", binary=find_program("apr", None, REMEDY), seconds=_SECONDS, exits=EXITS)
    except MissingDependencyError:
        return None
    return AprHost(
        program=program, directory=directory, models=APR_MODELS, fixed_tokens=None, make_room=make_room
    )


def with_tokens(host: AprHost, store: Store) -> AprHost:
    """Return ``host`` with the token ids of its own prompt, for which it is run once."""
    model = store.model(Material(name=host.models[0], seed=0))
    request = Request(tokens=(), layers=range(1), stages=("attn_norm",))
    with host.imported(model.path, model.geometry) as subject, subject.begin(request) as run:
        return replace(host, fixed_tokens=run.tokens)
