"""Hosts of the exam for runs in passes and for quantised files: the embedded runtime with a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from apr_falsify.commands.hosts import (
    FormulaHost,
    TensorHost,
    TorchHost,
    TorchModels,
    arithmetic_of,
    touches_tied_embedding,
    with_tensors,
)
from apr_falsify.compare.borrowed import CACHED
from apr_falsify.exam.cases import FILES, ExamCase, ExamRun, Host, Seeded
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.material import Material, Setting
from apr_falsify.exam.plan_in_passes import PASSES_HOST
from apr_falsify.exam.seeding.scene import Scene
from apr_falsify.exam.seeding.tensors import F32, Place
from apr_falsify.exam.store import Store, remove
from apr_falsify.formats.weights import Model, Weights, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request, Sink, laid_end_to_end

F64 = npt.NDArray[np.float64]

OTHER_ROW = 7919
"""How far the token ids of the other row of a batch are from this one's."""


def hosts_of(models: TorchModels) -> dict[str, Host]:
    """Return every host but the real ``apr``, which needs a program."""
    return {
        "formula": FormulaHost(),
        "tensors": TensorHost(readable=False),
        "conversion": TensorHost(readable=True),
        "torch": TorchHost(models),
        PASSES_HOST: PassesHost(),
        FILES: FilesHost(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PassesHost:
    """The embedded runtime with its cache: wrong formulas and wrong tensors together."""

    fixed_tokens: tuple[int, ...] | None = None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether it can be seeded by pass: what knows passes as a formula, all else as tensors."""
        seedable = fault.formula is not None if fault.phases else fault.edit is not None
        return seedable and fault.fits(geometry) and not touches_tied_embedding(fault, geometry)

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs everything."""
        return True

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``."""
        sound = store.model(case.material)
        tensors: dict[Place, F32] = {}
        for each in case.seeded:
            tensors.update({} if each.fault.phases else each.tensors(sound.weights))
        weights = with_tensors(sound.weights, tensors) if tensors else sound.weights
        other = _other_row(sound, case, request) if any(each.fault.batch for each in case.seeded) else {}
        steps = _Steps(case=case, sound=sound.weights, geometry=sound.geometry, batch=other)
        model = replace(sound, weights=weights)
        trace = capture(model, request, sink, arithmetic=arithmetic_of(case.setting), step=steps.step)
        return ExamRun(trace=trace, changes=steps.changes(), batch=other)


def _other_row(model: Model, case: ExamCase, request: Request) -> dict[Key, Array]:
    """Return what attention reads of another row of the batch, which runs in the same passes."""
    vocab = model.geometry.vocab
    tokens = tuple((token * 3 + OTHER_ROW) % vocab for token in request.tokens)
    asked = replace(request, tokens=tokens, stages=CACHED)
    trace = capture(model, asked, MemorySink(), arithmetic=arithmetic_of(case.setting))
    return {key: array.data for key, array in trace.stages.items()}


class _Steps:
    """Computes stages, those of a fault wrongly, and notes by how much in every pass."""

    def __init__(
        self, *, case: ExamCase, sound: Weights, geometry: Geometry, batch: Mapping[Key, Array]
    ) -> None:
        self._sound, self._batch = sound, batch
        truths = [(each, each.truth(geometry)) for each in case.seeded]
        self._at: dict[Key, Seeded] = {key: each for each, truth in truths for key in truth}
        self._noted: dict[Key, list[F64]] = {}

    def step(self, key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        """Compute one stage of one pass."""
        each = self._at.get(key)
        if each is None:
            return as_defined(key, inputs, site)
        if each.fault.phases and each.fault.formula is not None:
            scene = Scene(name=key.stage, inputs=inputs, site=site, seed=each.seed, batch=self._batch)
            right = scene.right()
            wrong = np.asarray(each.fault.formula(scene), dtype=right.dtype)
            made = np.asarray(site.arithmetic.store.round(wrong))
        else:
            made = as_defined(key, inputs, site)
            rightly = replace(site, model=replace(site.model, weights=self._sound))
            right = as_defined(key, inputs, rightly)
        self._noted.setdefault(key, []).append(np.abs(made.astype(np.float64) - right))
        return made

    def changes(self) -> dict[Key, F64]:
        """Return by how much each wrong stage was changed, all passes laid end to end."""
        return {key: np.asarray(laid_end_to_end(key, parts)) for key, parts in self._noted.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesHost:
    """The embedded runtime on a quantised checkpoint, whose file is compared with the plain model."""

    fixed_tokens: tuple[int, ...] | None = None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether a file can be spoiled so, or be read so."""
        return (fault.parts is not None or fault.edit is not None) and fault.fits(geometry)

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs quantised checkpoints alone."""
        return material.scheme

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``: a file that was written wrongly is the subject's own, one read wrongly is sound."""
        sound = store.model(case.material)
        written = [each for each in case.seeded if each.fault.parts is not None]
        steps = _Steps(case=case, sound=sound.weights, geometry=sound.geometry, batch={})
        if not written:
            tensors = {at: held for each in case.seeded for at, held in each.tensors(sound.weights).items()}
            model = replace(sound, weights=with_tensors(sound.weights, tensors)) if tensors else sound
            trace = capture(model, request, sink, arithmetic=arithmetic_of(case.setting), step=steps.step)
            return ExamRun(trace=trace, own_weights=sound.weights, changes=steps.changes())
        remove(store.spoiled_path)

        def edit(held: dict[str, npt.NDArray[np.generic]]) -> None:
            for each in written:
                assert each.fault.parts is not None
                each.fault.parts(held, each.layer)

        spoiled = open_model(store.write_scheme(store.spoiled_path, case.material, edit))
        trace = capture(spoiled, request, sink, arithmetic=arithmetic_of(case.setting), step=steps.step)
        return ExamRun(trace=trace, own_weights=spoiled.weights, changes=steps.changes())
