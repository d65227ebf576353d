"""Hosts of the exam: the embedded runtime, and torch models, of which the oracle is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.cases import ExamCase, ExamRun, Seeded
from apr_falsify.exam.checkpoints import as_converted
from apr_falsify.exam.faults import Fault
from apr_falsify.exam.material import Material, Setting
from apr_falsify.exam.seeding.scene import Scene
from apr_falsify.exam.seeding.tensors import ConfigEdit, as_stored
from apr_falsify.exam.store import Store, remove
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Model, Weights, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key, Layout
from apr_falsify.numerics.arithmetic import format_named
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.oracle.patch_names import PATCHED
from apr_falsify.subjects.embedded import Step, as_defined, capture
from apr_falsify.subjects.kernel import Arithmetic, RuntimeSite
from apr_falsify.traces.capture import Request, RunFacts, Sink, TraceWriter
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]


def arithmetic_of(setting: Setting) -> Arithmetic:
    """Return the embedded runtime's arithmetic for ``setting``."""
    return Arithmetic(
        store=format_named(setting.store), rules=setting.operand_rules(), sequential=setting.sequential
    )


def with_tensors(weights: Weights, tensors: Mapping[tuple[str, int | None], F32]) -> Weights:
    """Return ``weights`` with some tensors replaced, as a file of another name."""
    held = as_stored(weights, tensors) if weights.of_checkpoint else _of_gguf(weights, tensors)
    replaced: dict[str, Any] = dict(weights.tensors)
    for name, values in held.items():
        replaced[name] = PlainTensor(name=name, type="f32", data=values)
    return replace(weights, tensors=replaced, where=Path(f"{weights.where}-spoiled"))


def _of_gguf(weights: Weights, tensors: Mapping[tuple[str, int | None], F32]) -> dict[str, F32]:
    return {
        weights.names[role].format(n=layer): (
            as_converted(role, values, weights.geometry) if weights.interleaved else values
        )
        for (role, layer), values in tensors.items()
    }


def touches_tied_embedding(fault: Fault, geometry: Geometry) -> bool:
    """Whether a fault in the embedding's tensor would spoil the output head too."""
    return geometry.tied and fault.edit is not None and "embedding" in fault.stages


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulaHost:
    """The embedded runtime with stages that are computed wrongly."""

    fixed_tokens: tuple[int, ...] | None = None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether the fault is a wrong formula."""
        return fault.formula is not None and fault.fits(geometry)

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs everything."""
        return True

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``."""
        model = store.model(case.material)
        changes: dict[Key, F64] = {}
        step = _wrong_step(case.seeded, model.geometry, changes)
        trace = capture(model, request, sink, arithmetic=arithmetic_of(case.setting), step=step)
        return ExamRun(trace=trace, changes=changes)


def _wrong_step(seeded: tuple[Seeded, ...], geometry: Geometry, changes: dict[Key, F64]) -> Step:
    at = {key: each for each in seeded for key in each.truth(geometry)}

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        right = as_defined(key, inputs, site)
        each = at.get(key)
        if each is None or each.fault.formula is None:
            return right
        scene = Scene(name=key.stage, inputs=inputs, site=site, seed=each.seed)
        wrong = each.fault.formula(scene)
        made = right + (wrong - right) * right.dtype.type(each.amount) if each.amount != 1 else wrong
        made = np.asarray(site.arithmetic.store.round(np.asarray(made, dtype=right.dtype)))
        changes[key] = np.abs(made.astype(np.float64) - right)
        return made

    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHost:
    """The embedded runtime on a checkpoint with wrong tensors.

    Attributes:
        readable: whether the comparison may read the tensors that were run: then a fault is a conversion
            fault, else it shows only in what was computed.

    """

    readable: bool
    fixed_tokens: tuple[int, ...] | None = None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether the fault is one of tensors."""
        return fault.edits(geometry) and fault.fits(geometry) and not touches_tied_embedding(fault, geometry)

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs everything."""
        return True

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``."""
        sound = store.model(case.material)
        tensors: dict[tuple[str, int | None], F32] = {}
        for each in case.seeded:
            tensors.update(each.tensors(sound.weights))
        weights = with_tensors(sound.weights, tensors)
        changes: dict[Key, F64] = {}
        wrong = {key for each in case.seeded for key in each.truth(sound.geometry)}

        def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
            made = as_defined(key, inputs, site)
            if key in wrong:
                right = as_defined(
                    key, inputs, replace(site, model=replace(site.model, weights=sound.weights))
                )
                changes[key] = np.abs(made.astype(np.float64) - right)
            return made

        model = replace(sound, weights=weights)
        trace = capture(model, request, sink, arithmetic=arithmetic_of(case.setting), step=step)
        return ExamRun(trace=trace, own_weights=weights if self.readable else None, changes=changes)


class TorchHost:
    """A model in transformers with patched modules, tensors or config, captured as a subject."""

    fixed_tokens: tuple[int, ...] | None = None

    def __init__(self, models: TorchModels) -> None:
        self._models = models

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether the fault can be seeded in torch."""
        seedable = fault.name in PATCHED or fault.edits(geometry) or fault.config is not None
        return seedable and fault.fits(geometry) and not touches_tied_embedding(fault, geometry)

    def runs(self, material: Material, setting: Setting) -> bool:
        """It has torch's own arithmetics: whole formats and no blocks."""
        return not (setting.rules or setting.sequential) and setting.store in ("f32", "f16", "bf16")

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case``."""
        from apr_falsify.oracle.faulted import PATCHES, faulted

        sound = store.model(case.material)
        patches = tuple((s.fault.name, s.layer, s.seed) for s in case.seeded if s.fault.name in PATCHES)
        rest = [s for s in case.seeded if s.fault.name not in PATCHES]
        changed = {place: held for each in rest for place, held in each.tensors(sound.weights).items()}
        tensors = as_stored(sound.weights, changed)
        edits = [each.fault.config for each in rest if each.fault.config is not None]
        with (
            self._oracle(store, case, edits) as oracle,
            faulted(oracle.module, tensors=tensors, patches=patches),
        ):
            trace = oracle.capture(request, _As(sink, sound.geometry))
        return ExamRun(trace=trace)

    @contextmanager
    def _oracle(self, store: Store, case: ExamCase, edits: Sequence[ConfigEdit]) -> Iterator[Any]:
        """Give the model of ``case`` in torch: a cached one, or one of a wrong config, which is removed."""
        if not edits:
            yield self._models.get(case.material, case.setting.store)
            return
        config = store.config(case.material)
        for edit in edits:
            config = edit(config)
        path = store.spoiled(case.material, config, {})
        try:
            yield _load(open_model(path), case.setting.store)
        finally:
            remove(path)


def _load(model: Model, dtype: str) -> Any:
    from apr_falsify.oracle.capture import load

    return load(model, dtype=dtype)


class TorchModels:
    """Models loaded in torch, each once, for the oracle and for the host in torch; one wide one at a time.

    Args:
        store: where the models are.

    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: dict[tuple[Material, str], Any] = {}

    def get(self, material: Material, dtype: str = "f32") -> Any:
        """Return the model of ``material`` with weights and activations in ``dtype``."""
        key = (material, dtype)
        self.drop_wide(key)
        if key not in self._loaded:
            self._loaded[key] = _first_layers(self._store.model(material), dtype)
        return self._loaded[key]

    def drop_wide(self, kept: tuple[Material, str] | None = None) -> None:
        """Release every wide model but ``kept``."""
        for key in [each for each in self._loaded if each[0].wide and each != kept]:
            del self._loaded[key]

    def capture(self, material: Material, request: Request, directory: Path) -> Trace:
        """Capture the oracle's stages into ``directory``."""
        with TraceWriter(directory) as writer:
            trace: Trace = self.get(material).capture(request, writer)
        return trace


LAYERS = 3
"""The first layers of a model, which the exam looks at; most have no more."""


def _first_layers(model: Model, dtype: str) -> Any:
    from apr_falsify.oracle.capture import load

    layers = min(model.geometry.layers, LAYERS)
    return load(model, layers=layers, head=layers == model.geometry.layers, dtype=dtype)


class _As:
    """Passes stages on; the trace shall say the geometry that the runtime was meant to have."""

    def __init__(self, sink: Sink, geometry: Geometry) -> None:
        self._sink, self._geometry = sink, geometry

    def add(self, key: Key, data: npt.NDArray[Any], layout: tuple[Layout, ...] = ()) -> None:
        """Pass one stage on."""
        self._sink.add(key, data, layout)

    def finish(self, **facts: Unpack[RunFacts]) -> Trace:
        """Finish the trace."""
        facts["geometry"] = self._geometry
        return self._sink.finish(**facts)
