"""Compare two traces and name the stages that introduced the error.

1. Structure: tokens, geometry, which stages there are.
2. Weights: where the subject's own can be read, each tensor against the oracle's.
3. Layout: where a stage is not what its replay says, try the conventions that a runtime may store it in.
4. Replay: the oracle's trace and the subject's, each from its own inputs (``compare.judge``).
5. Rows and findings; the kind sums them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from apr_falsify.compare.bisection import (
    Bisection,
    Finding,
    FindingType,
    Kind,
    Row,
    Status,
    Verdict,
)
from apr_falsify.compare.convention import declared_or_solved
from apr_falsify.compare.findings import (
    NO_DIVERGENCE,
    arithmetic_findings,
    comparative_findings,
    differing_on_equal_inputs,
    foreign_weights,
    invariant_findings,
    one_token_findings,
    reference_findings,
    source_findings,
    unmeasured_findings,
)
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.layout import aligned
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.compare.published import PublishedRule, published_rule
from apr_falsify.compare.structure import (
    check_tokens,
    constant_findings,
    consumers,
    descendants,
    geometry_findings,
    keys_to_judge,
    same_shapes,
    status_of,
)
from apr_falsify.compare.weights import weights_findings
from apr_falsify.errors import TraceError
from apr_falsify.stages import Layout
from apr_falsify.trace import Key, Trace
from apr_falsify.weights import Weights

UNUSED_SHOWN = 12
"""How many names of a foreign recording's unused arrays are told; the provenance holds all."""


def bisect(
    oracle: Trace,
    subject: Trace,
    *,
    weights: Weights | None = None,
    subject_weights: Weights | None = None,
    layers: Sequence[int] | None = None,
    stages: Iterable[str] | None = None,
    arithmetic: str | None = None,
    findings: Sequence[Finding] = (),
    not_checked: Sequence[str] = (),
) -> Bisection:
    """Compare ``subject`` with ``oracle`` and name the stages that introduced the error.

    Args:
        oracle: the reference run.
        subject: the run in question.
        weights: the oracle's weights; without them only the stages that need none are replayed.
        subject_weights: the subject's own, where they can be read; else the oracle's are used, and a
            source may be a wrong weight as well as a wrong computation.
        layers: the layers to judge; ``None`` for every layer of which either side has anything.
        stages: the stages to judge; ``None`` for all.
        arithmetic: what the user states of the subject's arithmetic, in the words of ``rules.py``.
        findings: what is known already (a tokenizer that differs, say).
        not_checked: what is known not to have been looked at.

    Raises:
        TokensError: the runs have different token ids.
        TraceError: there is nothing that could be judged.

    """
    check_tokens(oracle, subject)
    structural = geometry_findings(oracle.geometry, subject.geometry)
    keys = keys_to_judge(oracle, subject, layers, stages)
    if not same_shapes(oracle.geometry, subject.geometry):
        weights = subject_weights = None
    own = subject_weights is not None
    known = _conversion_findings(oracle, subject, weights, subject_weights, keys)
    reference = judge(oracle, weights, keys)
    subject, judged, layouts = declared_or_solved(subject, subject_weights or weights, keys, arithmetic)
    rows = _rows(keys, oracle, subject, judged, {finding.stages for finding in layouts})
    broken = invariant_findings(subject, judged)
    compared_only = differing_on_equal_inputs(rows, judged, oracle.geometry)
    told = {*compared_only, *((found.layer, found.stages[0]) for found in broken)}
    rows = tuple(
        replace(row, verdict=Verdict.INTRODUCES) if (row.layer, row.stage) in told else row for row in rows
    )
    if not structural and all(row.accumulated is None for row in rows):
        raise TraceError(
            "the two traces have no stage in common",
            expected="at least one stage that both sides captured",
            remedy="capture both with the same --layers and --stages",
        )
    foreign = foreign_weights(judged, own, subject.provenance.dtype)
    if foreign:
        rows = tuple(_unaccused(row, judged) for row in rows)
    sources = foreign or source_findings(
        subject, subject_weights or weights, judged, rows, own_weights=own, arithmetic=arithmetic
    )
    found = (
        *findings,
        *reference_findings(reference),
        *structural,
        *known,
        *sources,
        *comparative_findings(compared_only),
        *broken,
        *layouts,
        *arithmetic_findings(judged),
        *unmeasured_findings(rows, judged, subject.provenance.absent),
        *one_token_findings(rows, len(subject.tokens)),
    )
    return Bisection(
        kind=kind_of(found, rows),
        rows=rows,
        findings=found,
        published=_published(rows),
        not_checked=(*not_checked, *_not_checked(rows, oracle, subject, subject_weights or weights)),
        tokens=oracle.tokens,
        oracle=oracle.provenance,
        subject=subject.provenance,
    )


def _unaccused(row: Row, judged: Mapping[Key, Judged]) -> Row:
    """Return a row as unmeasured that was judged by a replay with which nothing can be shown."""
    entry = judged.get((row.layer, row.stage))
    accused = row.verdict is Verdict.INTRODUCES and entry is not None and entry.in_error
    return replace(row, verdict=Verdict.UNMEASURED) if accused else row


def _conversion_findings(
    oracle: Trace, subject: Trace, ours: Weights | None, theirs: Weights | None, keys: Sequence[Key]
) -> list[Finding]:
    """Return what the subject's own file has otherwise: tensors, and constants of the geometry."""
    if ours is None or theirs is None or ours.where == theirs.where:
        return []
    layers = sorted({layer for layer, _ in keys if layer is not None})
    return [
        *weights_findings(ours, theirs, layers),
        *constant_findings(oracle.geometry, subject.geometry, keys),
    ]


def _rows(
    keys: Sequence[Key],
    oracle: Trace,
    subject: Trace,
    judged: Mapping[Key, Judged],
    solved: set[tuple[str, ...]],
) -> tuple[Row, ...]:
    fed = consumers(keys, subject.geometry)
    tainted = descendants([key for key, entry in judged.items() if entry.in_error], fed)
    solved_stages = {name for names in solved for name in names}
    return tuple(
        _row(key, oracle, subject, judged.get(key), key in tainted, key[1] in solved_stages) for key in keys
    )


def _row(key: Key, oracle: Trace, subject: Trace, entry: Judged | None, tainted: bool, solved: bool) -> Row:
    layer, name = key
    status = status_of(key, oracle, subject)
    metrics: Metrics | None = None
    shape: tuple[int, ...] = ()
    layout: tuple[Layout, ...] = ()
    if status is Status.COMPARED:
        if same_shapes(oracle.geometry, subject.geometry):
            metrics, shape, layout = _accumulated(key, oracle, subject)
        else:
            status = Status.NOT_REPLAYABLE
    fit = None if entry is None else entry.fit
    verdict = _verdict(entry, metrics, tainted, solved)
    if verdict is Verdict.UNMEASURED and status is Status.COMPARED:
        status = Status.NOT_REPLAYABLE
    return Row(
        layer=layer,
        stage=name,
        status=status,
        verdict=verdict,
        accumulated=metrics,
        introduced=None if entry is None else entry.introduced,
        arithmetic=_arithmetic(entry),
        residual=None if fit is None else fit.residual,
        floor=None if fit is None else fit.floor,
        excess=None if fit is None else fit.excess,
        simulated=entry is not None and entry.simulated,
        layout=layout,
        shape=shape,
    )


def _accumulated(
    key: Key, oracle: Trace, subject: Trace
) -> tuple[Metrics, tuple[int, ...], tuple[Layout, ...]]:
    pair = aligned(key[1], oracle.stages[key], subject.stages[key], oracle.geometry, len(oracle.tokens))
    return compare_arrays(pair.oracle, pair.subject, pair.axes), pair.oracle.shape, pair.layout


def _verdict(entry: Judged | None, metrics: Metrics | None, tainted: bool, solved: bool) -> Verdict:
    agrees = metrics is not None and metrics.rel_l2 <= NO_DIVERGENCE and not metrics.nonfinite_mismatch
    if entry is None or entry.fit is None:
        return Verdict.WITHIN_FLOOR if agrees else Verdict.UNMEASURED
    if entry.in_error:
        return Verdict.INTRODUCES
    if solved:
        return Verdict.LAYOUT
    return Verdict.INHERITS if tainted and not agrees else Verdict.WITHIN_FLOOR


def _arithmetic(entry: Judged | None) -> str | None:
    if entry is None or entry.fit is None or entry.simulated or not entry.fit.explains:
        return None
    rule = entry.fit.rule.name
    return f"{entry.weight_type} x {rule}" if entry.weight_type else rule


def kind_of(findings: Sequence[Finding], rows: Sequence[Row]) -> Kind:
    """Return the headline: what sums up the findings and the verdicts of the rows."""
    types = [finding.type for finding in findings]
    sources = types.count(FindingType.SOURCE) + types.count(FindingType.WEIGHTS)
    if FindingType.REFERENCE in types:
        return Kind.REFERENCE_SUSPECT
    if sources:
        return Kind.LOCALISED if sources == 1 else Kind.SEVERAL
    if FindingType.LAYOUT in types:
        return Kind.LAYOUT_MISMATCH
    if FindingType.UNMEASURED in types or FindingType.NOT_THE_SUBJECTS_WEIGHTS in types:
        return Kind.UNMEASURED
    # Nothing judged is never a pass.
    judged = any(row.verdict in (Verdict.WITHIN_FLOOR, Verdict.INHERITS) for row in rows)
    return Kind.CONSISTENT if judged else Kind.UNMEASURED


def _published(rows: Sequence[Row]) -> tuple[PublishedRule, ...]:
    cosines: dict[int, dict[str, float | None]] = {}
    for row in rows:
        if row.layer is not None and row.status is not Status.NOT_APPLICABLE:
            measured = None if row.accumulated is None else row.accumulated.cosine
            cosines.setdefault(row.layer, {})[row.stage] = measured
    return tuple(
        published_rule(layer, stages)
        for layer, stages in cosines.items()
        if any(cosine is not None for cosine in stages.values())
    )


def _not_checked(rows: Sequence[Row], oracle: Trace, subject: Trace, weights: Weights | None) -> list[str]:
    said = []
    unasked: dict[str, list[str]] = {}
    for row in rows:
        if row.status is Status.NOT_REQUESTED:
            unasked.setdefault("" if row.layer is None else f" of layer {row.layer}", []).append(row.stage)
    if unasked:
        told = "; ".join(f"{', '.join(names)}{place}" for place, names in unasked.items())
        said.append(f"what was not requested: {told}")
    judged = {row.layer for row in rows if row.layer is not None and row.verdict is not Verdict.UNMEASURED}
    if len(judged) < subject.geometry.layers:
        said.append(
            f"{subject.geometry.layers - len(judged)} of the model's {subject.geometry.layers} layers"
        )
    lonely = sorted(set(oracle.layers) ^ set(subject.layers))
    if lonely:
        said.append(f"layers that only one side holds: {', '.join(str(layer) for layer in lonely)}")
    if oracle.provenance.runtime != "hf":
        said.append(f"the reference itself: it is a run of {oracle.provenance.runtime}, not of HuggingFace")
    if weights is None:
        said.append(
            "what needs weights to be replayed: name the model, --oracle MODEL (bisect) or "
            "--weights MODEL (compare)"
        )
    said += [f"{name}: {why}" for name, why in subject.provenance.absent.items()]
    unused = subject.provenance.unused
    if unused:
        shown = ", ".join(unused[:UNUSED_SHOWN])
        rest = f" and {len(unused) - UNUSED_SHOWN} more" if len(unused) > UNUSED_SHOWN else ""
        said.append(f"arrays of the recording that no stage was read from: {shown}{rest}")
    if not subject.tokens_verified:
        said.append("the token ids: nothing in the subject's trace says which tokens it ran")
    return said
