"""What a comparison of two traces says: rows, findings, sources, and the kind that sums them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from apr_falsify.compare.attempts import Breakdown
from apr_falsify.compare.metrics import Metrics
from apr_falsify.compare.published import PublishedRule
from apr_falsify.errors import ExitCode
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import Layout
from apr_falsify.traces.provenance import Provenance

SCHEMA = "apr-falsify/bisection/v1"


class Kind(StrEnum):
    """The headline of a bisection."""

    REFERENCE_SUSPECT = "reference-suspect"
    LOCALISED = "localised"
    SEVERAL = "several"
    LAYOUT_MISMATCH = "layout-mismatch"
    UNMEASURED = "unmeasured"
    CONSISTENT = "consistent"


class FindingType(StrEnum):
    """What a finding is about."""

    SOURCE = "source"
    WEIGHTS = "weights"
    GEOMETRY = "geometry"
    TOKENIZER = "tokenizer"
    LAYOUT = "layout"
    ARITHMETIC = "arithmetic"
    REFERENCE = "reference"
    UNMEASURED = "unmeasured"
    NOT_THE_SUBJECTS_WEIGHTS = "not-the-subjects-weights"
    RECORDING = "recording"
    """A run stores its values in another way than it declares, as its own later stages prove: no fault."""


class Status(StrEnum):
    """What could be done with a stage."""

    COMPARED = "compared"
    MISSING_IN_SUBJECT = "missing-in-subject"
    MISSING_IN_ORACLE = "missing-in-oracle"
    NOT_APPLICABLE = "not-applicable"
    NOT_REQUESTED = "not-requested"
    NOT_REPLAYABLE = "not-replayable"


class Verdict(StrEnum):
    """The verdict on a stage."""

    WITHIN_FLOOR = "within-floor"
    INTRODUCES = "introduces"
    INHERITS = "inherits"
    LAYOUT = "layout"
    UNMEASURED = "unmeasured"


_EXIT: dict[Kind, ExitCode] = {
    Kind.REFERENCE_SUSPECT: ExitCode.INCONCLUSIVE,
    Kind.LOCALISED: ExitCode.DIVERGENCE,
    Kind.SEVERAL: ExitCode.DIVERGENCE,
    Kind.LAYOUT_MISMATCH: ExitCode.DIVERGENCE,
    Kind.UNMEASURED: ExitCode.INCONCLUSIVE,
    Kind.CONSISTENT: ExitCode.OK,
}
_SOURCES = (FindingType.SOURCE, FindingType.WEIGHTS)
_DIVERGENT_ALONE = (FindingType.TOKENIZER, FindingType.GEOMETRY, FindingType.ARITHMETIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found, in words a person can act on.

    Attributes:
        type: what it is about.
        explanation: what was seen.
        advice: what to do next (``try`` in JSON).
        layer: the layer, ``None`` for the whole model.
        stages: the stages concerned; more than one only for a span.
        size: how large it is, in the unit that the explanation names.
        cause: of a source whose error a named cause explains to the floor: that cause's identifier and the
            cause in words, which can be the subject of a sentence.

    """

    type: FindingType
    explanation: str
    advice: str = ""
    layer: int | None = None
    stages: tuple[str, ...] = ()
    size: float | None = None
    cause: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "type": self.type.value,
            "layer": self.layer,
            "stages": list(self.stages),
            "size": finite(self.size),
            "explanation": self.explanation,
            "try": self.advice,
            "cause": None if self.cause is None else {"name": self.cause[0], "says": self.cause[1]},
        }


_OF_THE_WHOLE_MODEL = (
    "act-order",
    "activation",
    "code-sign",
    "constant",
    "epsilon",
    "expert-choice",
    "expert-count",
    "expert-form",
    "expert-groups",
    "group-order",
    "head-norm",
    "multiplier",
    "nibble-order",
    "norm-form",
    "reciprocal-scale",
    "rope-base",
    "rope-direction",
    "rope-pairing",
    "rope-partial",
    "rope-position",
    "rope-scaling",
    "routed-scale",
    "router-correction",
    "router-scoring",
    "top-k-normalisation",
    "zero-point",
)
"""Causes that lie in what several stages read: one RoPE table turns q and k, one epsilon is in every norm,
one reader decodes all quantised weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCause:
    """One named cause, and every source that it explains.

    Attributes:
        name: the cause's identifier.
        says: the cause in words.
        layers: the layers of its sources, ascending; ``None`` for the whole model comes first.
        stages: the stages of its sources, in forward order.

    """

    name: str
    says: str
    layers: tuple[int | None, ...]
    stages: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        layers, stages = list(self.layers), list(self.stages)
        return {"name": self.name, "says": self.says, "layers": layers, "stages": stages}


def root_causes(findings: Sequence[Finding]) -> tuple[RootCause, ...]:
    """Group the sources that one named cause explains in the same words.

    Sources of one stage in several layers are one, and so are those of several stages where all of them read
    what the cause is about. A source without a cause is in no group.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], list[Finding]] = {}
    for finding in findings:
        if finding.type in _SOURCES and finding.cause is not None:
            apart = () if finding.cause[0] in _OF_THE_WHOLE_MODEL else finding.stages
            groups.setdefault((*finding.cause, apart), []).append(finding)
    return tuple(
        RootCause(
            name=name,
            says=says,
            layers=tuple(
                sorted({one.layer for one in group}, key=lambda layer: -1 if layer is None else layer)
            ),
            stages=tuple(dict.fromkeys(stage for one in group for stage in one.stages)),
        )
        for (name, says, _), group in groups.items()
    )


def is_one_cause(findings: Sequence[Finding]) -> bool:
    """Whether all sources, of which there is one at least, have one cause; a single one needs no name."""
    sources = [finding for finding in findings if finding.type in _SOURCES]
    return len(sources) == 1 or (
        len(root_causes(sources)) == 1 and all(source.cause is not None for source in sources)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stage of the comparison.

    Attributes:
        layer: its layer, ``None`` for a whole-model stage.
        stage: its name.
        status: what could be done with it.
        verdict: what its replay and the oracle say of it.
        accumulated: subject against oracle, where both have it.
        introduced: subject against its plain replay, where it could be replayed.
        arithmetic: what explains the stage: weight type and rule; ``None`` where nothing does.
        residual: relative L2 of what is left once the arithmetic is explained.
        floor: relative L2 of the largest residual that is no accusation.
        excess: largest ratio of residual to floor over elements, channels and tokens.
        simulated: whether the floor is the expected arithmetic's own error, for want of a better.
        edges: how many input values on the edge between two steps of a block format fell to the other side
            than here (``compare.edges``).
        layout: the layout words that were undone on either side.
        shape: the compared shape.

    """

    layer: int | None
    stage: str
    status: Status
    verdict: Verdict = Verdict.UNMEASURED
    accumulated: Metrics | None = None
    introduced: Metrics | None = None
    arithmetic: str | None = None
    residual: float | None = None
    floor: float | None = None
    excess: float | None = None
    simulated: bool = False
    edges: int = 0
    layout: tuple[Layout, ...] = ()
    shape: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; what could not be measured is null."""
        metrics = self.accumulated
        return {
            "layer": self.layer,
            "stage": self.stage,
            "status": self.status.value,
            "shape": list(self.shape),
            "layout": [word.value for word in self.layout],
            "nonfinite": None if metrics is None else metrics.nonfinite_json(),
            "accumulated": None if metrics is None else metrics.to_json(),
            "introduced": None if self.introduced is None else self.introduced.to_json(),
            "arithmetic": self.arithmetic,
            "residual": finite(self.residual),
            "floor": finite(self.floor),
            "excess": finite(self.excess),
            "floor_is_simulated": self.simulated,
            "edges": self.edges,
            "verdict": self.verdict.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """The comparison of two traces.

    Attributes:
        kind: the headline.
        rows: one per stage, in forward order.
        findings: everything found.
        published: the published rule's answer, one per layer.
        not_checked: what was not looked at, and why.
        tokens: the token ids of both runs.
        oracle: where the oracle's trace comes from.
        subject: where the subject's trace comes from.
        breakdowns: what broke down within the comparison; ``not_checked`` and the findings tell it in words.
        layers: how many layers the oracle's model has; 0 where that is not known.
        passes: how the subject computed its tokens; ``None`` where that is not known.
        identical: whether every stage that was compared is the same in both runs to the last bit.

    """

    kind: Kind
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    published: tuple[PublishedRule, ...]
    not_checked: tuple[str, ...]
    tokens: tuple[int, ...]
    oracle: Provenance
    subject: Provenance
    breakdowns: tuple[Breakdown, ...] = ()
    layers: int = 0
    passes: Passes | None = None
    identical: bool = False

    @property
    def sources(self) -> tuple[Finding, ...]:
        """The findings that name a source."""
        return tuple(f for f in self.findings if f.type in _SOURCES)

    @property
    def causes(self) -> tuple[RootCause, ...]:
        """The named causes of the sources, each with all the stages and layers that it explains."""
        return root_causes(self.findings)

    @property
    def complete(self) -> bool:
        """Whether everything needed was measured."""
        lacking = (FindingType.UNMEASURED, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
        return not any(finding.type in lacking for finding in self.findings)

    @property
    def exit_code(self) -> ExitCode:
        """What the process says of it: a tokenizer, geometry or arithmetic finding alone is a divergence.

        Where nothing was found, and what was needed broke down by a defect of ours, it is an internal error.
        """
        code = _EXIT[self.kind]
        if self.kind is not Kind.REFERENCE_SUSPECT and any(f.type in _DIVERGENT_ALONE for f in self.findings):
            return ExitCode.DIVERGENCE
        if self.kind is Kind.UNMEASURED and any(one.needed and not one.memory for one in self.breakdowns):
            return ExitCode.INTERNAL
        return code

    def to_json(self) -> dict[str, Any]:
        """Return the object of schema ``apr-falsify/bisection/v1``."""
        layers = [rule.to_json() for rule in self.published]
        first = layers[0] if layers else {"chain": [], "cosines": [], "crossings": []}
        return {
            "schema": SCHEMA,
            "kind": self.kind.value,
            "complete": self.complete,
            "findings": [finding.to_json() for finding in self.findings],
            "sources": [finding.to_json() for finding in self.sources],
            "causes": [cause.to_json() for cause in self.causes],
            "stages": [row.to_json() for row in self.rows],
            "published_rule": {**first, "layers": layers},
            "not_checked": list(self.not_checked),
            "tokens": list(self.tokens),
            **({} if self.passes is None else self.passes.to_json()),
            **({"identical": True} if self.identical else {}),
            "oracle": self.oracle.to_json(),
            "subject": self.subject.to_json(),
        }


def finite(value: float | None) -> float | None:
    """Return ``value`` where JSON can hold it, ``None`` for NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in which something was compared."""
    return [row for row in rows if row.status is Status.COMPARED]
