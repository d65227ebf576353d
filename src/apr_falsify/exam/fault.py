"""A row of the catalogue of seeded faults, and what one can ask of a model, a run and its number formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from apr_falsify.exam.needs import NEEDS
from apr_falsify.exam.seeding import tensors as t
from apr_falsify.exam.seeding.parts import PartsEdit
from apr_falsify.exam.seeding.scene import Formula
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Scope
from apr_falsify.model.wiring import stages_of


class Spread(StrEnum):
    """In how many layers a fault sits."""

    ONE = "one layer"
    EVERY = "every layer"
    ONCE = "the whole model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the catalogue.

    Attributes:
        name: its name.
        title: what a port gets wrong.
        stages: the stages that are wrong.
        says: what a good explanation says, a regular expression.
        spread: in how many layers.
        formula: how the embedded runtime computes the stages instead.
        edit: which tensors replace sound ones.
        config: which config replaces the sound one.
        needs: what a model must have, see ``exam.needs``.
        phases: in which phases of ``exam.phases`` it can be seeded; empty for a run at once.
        settings: in which settings it can be seeded, by name; empty for those of its part of the exam.
        parts: how a quantised checkpoint is spoiled, on disk.
        arithmetic: whether it is another arithmetic than the one that is stated, and no wrong stage.
        batch: whether the runtime computes another row beside this one, which is known.

    """

    name: str
    title: str
    stages: tuple[str, ...]
    says: str
    spread: Spread = Spread.ONE
    formula: Formula | None = None
    edit: t.Edit | None = None
    config: t.ConfigEdit | None = None
    needs: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    parts: PartsEdit | None = None
    arithmetic: bool = False
    batch: bool = False

    def fits(self, geometry: Geometry) -> bool:
        """Whether a model of ``geometry`` can have it."""
        present = set(stages_of(geometry))
        return present.issuperset(self.stages) and all(NEEDS[need](geometry) for need in self.needs)

    def edits(self, geometry: Geometry) -> bool:
        """Whether wrong tensors of such a model have it; latent attention has others than q, k and v."""
        return self.edit is not None and not (geometry.kv_latent and "qkv_matmul" in self.stages)

    def truth(self, geometry: Geometry, layer: int) -> tuple[Key, ...]:
        """Return the stages that are wrong where the fault is put into ``layer``, in forward order."""
        layers: Mapping[Spread, tuple[int | None, ...]] = {
            Spread.ONE: (layer,),
            Spread.EVERY: tuple(range(geometry.layers)),
            Spread.ONCE: (None,),
        }
        places = [(n, name) for n in layers[self.spread] for name in self.stages if _in(name, n)]
        if self.spread is not Spread.ONE:
            places += [(None, name) for name in self.stages if STAGES[name].scope is Scope.MODEL]
        return tuple(dict.fromkeys(Key(0 if name == "embedding" else n, name) for n, name in places))


def _in(name: str, layer: int | None) -> bool:
    """Whether a fault of ``layer`` may touch the stage."""
    scope = STAGES[name].scope
    return scope is Scope.FIRST_LAYER or (scope is Scope.MODEL) == (layer is None)


def fault(name: str, stages: str, title: str, says: str, **how: Any) -> Fault:
    """Return a row of the catalogue, its stages in one string."""
    return Fault(name=name, title=title, stages=tuple(stages.split()), says=says, **how)


EVERY: Any = {"spread": Spread.EVERY}
ONCE: Any = {"spread": Spread.ONCE}
