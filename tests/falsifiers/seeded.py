"""A fault in one stage of the embedded runtime, and what the bisection says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from apr_falsify.commands.hosts import FormulaHost
from apr_falsify.compare.bisection import Bisection
from apr_falsify.compare.localise import bisect
from apr_falsify.exam.cases import ExamCase, Seeded
from apr_falsify.exam.fault import Fault
from apr_falsify.exam.faults import fault_named
from apr_falsify.exam.material import SETTINGS, Material
from apr_falsify.exam.seeding.places import one_channel
from apr_falsify.exam.store import Store
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import capture as capture_oracle
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace

TOKENS = (274, 272, 332, 13, 20, 33)
"""What the real ``apr`` runs for its fixed prompt on the tiny checkpoint."""

_CATALOGUED: Mapping[str, str] = {
    "attn_norm": "attn-norm-scaled",
    "qkv_matmul": "q-head-scaled",
    "qkv_bias": "k-bias-missing",
    "q_post_rope": "rope-q-skipped",
    "k_post_rope": "rope-k-from-one",
    "attn_scores": "heads-modulo",
    "attn_softmax": "mask-one-ahead",
    "attention": "attention-one-head",
    "attn_out": "o-one-channel",
    "ffn_norm": "ffn-norm-skipped",
    "ffn_gate": "gate-row-off",
    "ffn_silu": "hard-silu",
    "ffn_swigl": "gate-and-up-summed",
    "ffn_out": "down-one-channel",
}

FAULT_IN: Mapping[str, Fault] = {
    **{stage: fault_named(name) for stage, name in _CATALOGUED.items()},
    "ffn_up": Fault(
        name="up-row-off",
        title="one row of up is 2 % off",
        stages=("ffn_up",),
        says="only channel",
        formula=one_channel(1.02),
    ),
}
"""Stage -> a fault that is wrong in this stage alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model, its oracle's capture, and the embedded runtime to put faults into.

    Attributes:
        model: the model.
        request: what both sides run.
        oracle: the oracle's trace.

    """

    model: Model
    request: Request
    oracle: Trace

    @classmethod
    def of(cls, path: Path, *, layers: int) -> Self:
        """Capture the oracle of the first ``layers`` layers of the checkpoint at ``path``."""
        model = open_model(path)
        tokens = tuple(token % model.geometry.vocab for token in TOKENS)
        request = Request(tokens=tokens, layers=range(layers), stages=tuple(STAGES))
        oracle = capture_oracle(model, request, MemorySink(), dtype="f32", device="cpu")
        return cls(model=model, request=request, oracle=oracle)

    def bisection(self, *stages: str, layer: int = 0) -> Bisection:
        """Return the bisection of a run with a fault in each of ``stages`` of ``layer``, or in none."""
        material = Material(name="model", seed=0)
        seeded = tuple(Seeded(fault=FAULT_IN[name], layer=layer, seed=1) for name in stages)
        case = ExamCase(
            host="formula",
            material=material,
            setting=SETTINGS["f32"],
            tokens=self.request.tokens,
            seeded=seeded,
        )
        store = Store(self.model.path, self.model.path, {"model": self.model.path})
        ran = FormulaHost().run(store, case, self.request, MemorySink())
        return bisect(self.oracle, ran.trace, weights=self.model.weights)


def places(bisection: Bisection) -> list[tuple[int | None, tuple[str, ...]]]:
    """Return layer and stages of every source."""
    return [(source.layer, source.stages) for source in bisection.sources]
