"""Compare two traces stage by stage and sum up what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from apr_falsify.compare.bisection import (
    Bisection,
    Finding,
    FindingType,
    Kind,
    Row,
    Status,
    Verdict,
    compared,
)
from apr_falsify.compare.layout import aligned
from apr_falsify.compare.metrics import compare_arrays
from apr_falsify.compare.published import PublishedRule, published_rule
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.ops import inputs_of, stages_of
from apr_falsify.stages import STAGES, Scope
from apr_falsify.trace import Key, Trace

CONSISTENT_REL_L2 = 1e-3
"""The largest accumulated relative L2 that is called consistent."""


def bisect(
    oracle: Trace,
    subject: Trace,
    *,
    layers: Sequence[int] | None = None,
    stages: Iterable[str] | None = None,
    findings: Sequence[Finding] = (),
    not_checked: Sequence[str] = (),
) -> Bisection:
    """Compare ``subject`` with ``oracle``.

    Args:
        oracle: the reference run.
        subject: the run in question.
        layers: the layers to judge; ``None`` for every layer of which either side has anything.
        stages: the stages to judge; ``None`` for all.
        findings: what is known already (a tokenizer that differs, say).
        not_checked: what is known not to have been looked at.

    Raises:
        TokensError: the runs have different token ids.
        TraceError: the traces have no stage in common.

    """
    _same_tokens(oracle, subject)
    geometry = _geometry_findings(oracle.geometry, subject.geometry)
    rows = tuple(
        _row(key, oracle, subject, comparable=not geometry) for key in _keys(oracle, subject, layers, stages)
    )
    if not geometry and not compared(rows):
        raise TraceError(
            "the two traces have no stage in common",
            expected="at least one stage that both sides captured",
            remedy="capture both with the same --layers and --stages",
        )
    found = (*findings, *geometry, *_unmeasured_findings(rows), *_exceeding(rows, oracle.geometry))
    return Bisection(
        kind=_kind(found),
        rows=rows,
        findings=found,
        published=_published(rows),
        not_checked=(*not_checked, *_not_checked(rows, subject)),
        tokens=oracle.tokens,
        oracle=oracle.provenance,
        subject=subject.provenance,
    )


def _same_tokens(oracle: Trace, subject: Trace) -> None:
    if oracle.tokens != subject.tokens:
        raise TokensError(
            f"the traces ran different tokens: oracle {list(oracle.tokens)}, subject {list(subject.tokens)}",
            expected="the same token ids on both sides",
            remedy="capture the oracle with --tokens " + ",".join(map(str, subject.tokens)),
        )


def _geometry_findings(oracle: Geometry, subject: Geometry) -> list[Finding]:
    differing = [
        (field.name, getattr(oracle, field.name), getattr(subject, field.name))
        for field in fields(Geometry)
        if field.name in _SHAPING and getattr(oracle, field.name) != getattr(subject, field.name)
    ]
    return [
        Finding(
            type=FindingType.GEOMETRY,
            explanation=f"{name} is {ours} in the oracle's model and {theirs} in the subject's",
            advice="check that both sides run the same model, and how the subject's file was converted",
        )
        for name, ours, theirs in differing
    ]


_SHAPING = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")


def _keys(
    oracle: Trace, subject: Trace, layers: Sequence[int] | None, stages: Iterable[str] | None
) -> list[Key]:
    chosen = sorted({*oracle.layers, *subject.layers}) if layers is None else sorted(layers)
    wanted = set(STAGES if stages is None else stages)
    keys: list[Key] = [
        (layer, name)
        for layer in chosen
        for name, row in STAGES.items()
        if name in wanted and (row.scope is Scope.LAYER or (row.scope is Scope.FIRST_LAYER and layer == 0))
    ]
    return keys + [(None, name) for name, row in STAGES.items() if name in wanted and not row.per_layer]


def _row(key: Key, oracle: Trace, subject: Trace, *, comparable: bool) -> Row:
    layer, name = key
    ours, theirs = oracle.stages.get(key), subject.stages.get(key)
    if ours is None or theirs is None or not comparable:
        status = _status(key, oracle, subject)
        return Row(layer=layer, stage=name, status=status)
    pair = aligned(name, ours, theirs, oracle.geometry, len(oracle.tokens))
    metrics = compare_arrays(pair.oracle, pair.subject, pair.axes)
    within = metrics.rel_l2 <= CONSISTENT_REL_L2 and not metrics.nonfinite_mismatch
    return Row(
        layer=layer,
        stage=name,
        status=Status.COMPARED,
        verdict=Verdict.WITHIN_FLOOR if within else Verdict.INHERITS,
        accumulated=metrics,
        layout=pair.layout,
        shape=pair.oracle.shape,
    )


def _status(key: Key, oracle: Trace, subject: Trace) -> Status:
    if key[1] not in stages_of(oracle.geometry) and key not in subject.stages and key not in oracle.stages:
        return Status.NOT_APPLICABLE
    if key in oracle.stages and key not in subject.stages:
        return Status.MISSING_IN_SUBJECT if _asked(key, subject) else Status.NOT_REQUESTED
    if key in subject.stages and key not in oracle.stages:
        return Status.MISSING_IN_ORACLE if _asked(key, oracle) else Status.NOT_REQUESTED
    if key in subject.stages:
        return Status.NOT_REPLAYABLE
    return Status.MISSING_IN_SUBJECT if _asked(key, subject) and _asked(key, oracle) else Status.NOT_REQUESTED


def _asked(key: Key, trace: Trace) -> bool:
    """Whether the run was asked for the stage; where that is not known, it was."""
    layer, name = key
    asked = trace.provenance
    if asked.stages is not None and name not in asked.stages:
        return False
    if asked.layers is None:
        return True
    first, last = asked.layers
    return last - first == trace.geometry.layers if layer is None else first <= layer < last


def _unmeasured_findings(rows: Sequence[Row]) -> list[Finding]:
    missing: dict[tuple[Status, int | None], list[str]] = {}
    for row in rows:
        if row.status in _MISSING:
            missing.setdefault((row.status, row.layer), []).append(row.stage)
    return [
        Finding(
            type=FindingType.UNMEASURED,
            layer=layer,
            stages=tuple(names),
            explanation=f"{', '.join(names)}: {_MISSING[status][0]}",
            advice=_MISSING[status][1],
        )
        for (status, layer), names in missing.items()
    ]


_MISSING: Mapping[Status, tuple[str, str]] = {
    Status.MISSING_IN_SUBJECT: (
        "the subject has no such file",
        "capture the subject again with these stages; if it accepts the names and writes nothing, "
        "its version does not store them",
    ),
    Status.MISSING_IN_ORACLE: (
        "the oracle's trace has no such file",
        "capture the oracle again: apr-falsify capture oracle MODEL --stages all",
    ),
    Status.NOT_REPLAYABLE: (
        "the sides have different geometry",
        "run both sides on the same model",
    ),
}


def _exceeding(rows: Sequence[Row], geometry: Geometry) -> list[Finding]:
    """Return the stages that exceed the bound while none of the compared stages that feed them does."""
    exceeding = {(row.layer, row.stage) for row in compared(rows) if row.verdict is not Verdict.WITHIN_FLOOR}
    return [
        _exceeds(row)
        for row in compared(rows)
        if (row.layer, row.stage) in exceeding
        and not exceeding.intersection(inputs_of(row.stage, geometry, row.layer).values())
    ]


def _exceeds(row: Row) -> Finding:
    metrics = row.accumulated
    assert metrics is not None
    what = f"relative L2 {metrics.rel_l2:.2e} against the oracle, above {CONSISTENT_REL_L2:g}"
    if metrics.nonfinite_mismatch:
        what = f"{metrics.nonfinite_mismatch} values are not finite on one side only"
    return Finding(
        type=FindingType.SOURCE,
        layer=row.layer,
        stages=(row.stage,),
        size=metrics.rel_l2,
        explanation=f"{row.stage} differs while what feeds it agrees: {what}",
        advice="look at the operation that computes this stage and at its weights",
    )


def _kind(findings: Sequence[Finding]) -> Kind:
    types = {finding.type for finding in findings}
    if FindingType.SOURCE in types:
        return Kind.SEVERAL
    if FindingType.UNMEASURED in types:
        return Kind.UNMEASURED
    return Kind.CONSISTENT


def _published(rows: Sequence[Row]) -> tuple[PublishedRule, ...]:
    cosines: dict[int, dict[str, float]] = {}
    for row in compared(rows):
        if row.layer is not None and row.accumulated is not None:
            cosines.setdefault(row.layer, {})[row.stage] = row.accumulated.cosine
    return tuple(published_rule(layer, stages) for layer, stages in cosines.items())


def _not_checked(rows: Sequence[Row], subject: Trace) -> list[str]:
    unasked = [row for row in rows if row.status is Status.NOT_REQUESTED]
    said = []
    if unasked:
        names = ", ".join(dict.fromkeys(row.stage for row in unasked))
        said.append(f"{len(unasked)} stages that were not requested: {names}")
    if not subject.tokens_verified:
        said.append("the token ids: nothing in the subject's trace says which tokens it ran")
    if len(subject.tokens) == 1:
        said.append("RoPE, scores and softmax: on one token they are identities")
    return said
