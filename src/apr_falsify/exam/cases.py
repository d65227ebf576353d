"""One run of the exam: what is run where, with which faults; and what a host must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.exam.fault import Fault, Spread
from apr_falsify.exam.kernels import OWN
from apr_falsify.exam.material import Material, Setting
from apr_falsify.exam.phases import AT_ONCE, PHASES
from apr_falsify.exam.seeding.tensors import Bench, Place
from apr_falsify.exam.store import Store
from apr_falsify.formats.weights import Weights
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.trace import Trace

F32 = npt.NDArray[np.float32]

FILES = "quantised files"
"""The host whose weights come from a file of their own, quantised, and are compared with the oracle's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """A fault in its place.

    Attributes:
        fault: the fault.
        layer: the layer, where it sits in one.
        seed: chooses channels, heads, tokens and rows.
        amount: how much of its effect it has; less than 1 for the detection curve.

    """

    fault: Fault
    layer: int
    seed: int
    amount: float = 1.0

    def truth(self, geometry: Geometry) -> tuple[Key, ...]:
        """Return the stages that it makes wrong."""
        return self.fault.truth(geometry, self.layer)

    def tensors(self, weights: Weights) -> dict[Place, F32]:
        """Return the tensors that replace sound ones."""
        edit = self.fault.edit
        if edit is None:
            return {}
        layers: Mapping[Spread, Sequence[int | None]] = {
            Spread.ONE: (self.layer,),
            Spread.EVERY: range(weights.geometry.layers),
            Spread.ONCE: (None,),
        }
        changed: dict[Place, F32] = {}
        for layer in layers[self.fault.spread]:
            changed.update(edit(Bench(weights=weights, layer=layer, seed=self.seed)))
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamCase:
    """One run of a host.

    Attributes:
        host: the host's name.
        material: the model.
        setting: the arithmetic.
        tokens: the token ids; those of its prompt for a host that fixes it.
        seeded: the faults; none for a correct run.
        kernel: the kernels that its process computes with.
        text: what kind of text the ids are.
        phase: which of the tokens are computed together.

    """

    host: str
    material: Material
    setting: Setting
    tokens: tuple[int, ...]
    seeded: tuple[Seeded, ...] = ()
    kernel: str = OWN
    text: str = "random"
    phase: str = AT_ONCE

    @property
    def in_passes(self) -> Passes | None:
        """How its tokens are computed, ``None`` for a plain run."""
        return PHASES[self.phase].passes(len(self.tokens))

    @property
    def judges_arithmetic(self) -> bool:
        """Whether it is an answer that another arithmetic than the stated one was used."""
        return any(each.fault.arithmetic for each in self.seeded)

    @property
    def reference(self) -> Material:
        """The model that the oracle runs: the plain one where a file of quantised weights is in question."""
        return self.material.plain if self.host == FILES else self.material

    @property
    def name(self) -> str:
        """What a reader needs to run it again."""
        faults = " + ".join(f"{s.fault.name}@{s.layer}" for s in self.seeded) or "correct"
        where = " ".join((self.material.name, self.material.kind, f"seed {self.material.seed}")).replace(
            "  ", " "
        )
        amount = "".join(f" x{s.amount:.3g}" for s in self.seeded if s.amount != 1)
        phase = f", {self.phase}" if self.phase != AT_ONCE else ""
        text = f"{len(self.tokens)} tokens, {self.text}{phase}"
        return f"{faults}{amount} on {self.host}, {where}, {self.setting.name}, {text}, {self.kernel} kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamRun:
    """What a host ran.

    Attributes:
        trace: the finished trace.
        own_weights: the weights that it ran with, where the exam lets the comparison read them.
        changes: per wrong stage: |what it made - what it should have made from the same inputs|,
            where the host knows that itself.
        batch: of another row of the batch, what attention reads of a row.

    """

    trace: Trace
    own_weights: Weights | None = None
    changes: Mapping[Key, npt.NDArray[np.float64]] | None = None
    batch: Mapping[Key, npt.NDArray[Any]] = field(default_factory=dict)


class Host(Protocol):
    """A runtime that faults can be put into."""

    @property
    def fixed_tokens(self) -> tuple[int, ...] | None:
        """The token ids that it always runs, ``None`` where it runs any."""

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether it can have ``fault`` in a model of ``geometry``."""

    def runs(self, material: Material, setting: Setting) -> bool:
        """Whether it can run ``material`` in ``setting``."""

    def run(self, store: Store, case: ExamCase, request: Request, sink: Sink) -> ExamRun:
        """Run ``case`` and hand its stages to ``sink``."""
