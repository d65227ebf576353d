"""Compare two traces and name the stages that introduced the error.

1. Structure: tokens, geometry, which stages there are.
2. Weights: where the subject's own can be read, each tensor against the oracle's.
3. Layout: where a stage is not what its replay says, try the conventions that a runtime may store it in.
4. Replay: the oracle's trace and the subject's, each from its own inputs (``compare.judge``).
5. Rows and findings; the kind sums them up.

What breaks down in 2 to 5 is noted and costs at most the stage that it is about (``compare.attempts``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from apr_falsify.compare import unchecked
from apr_falsify.compare.attempts import Attempts
from apr_falsify.compare.bisection import (
    Bisection,
    Finding,
    FindingType,
    Kind,
    Row,
    Status,
    Verdict,
    is_one_cause,
)
from apr_falsify.compare.convention import declared_or_solved
from apr_falsify.compare.findings import (
    arithmetic_findings,
    comparative_findings,
    differing_on_equal_inputs,
    foreign_weights,
    invariant_findings,
    one_token_findings,
    reference_findings,
    source_findings,
    unmeasured_findings,
    wrong_without_weights,
)
from apr_falsify.compare.held_format import Held, in_its_format
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.low_rank import merged_weights
from apr_falsify.compare.published import PublishedRule, published_rule
from apr_falsify.compare.rows import accused, cleared, rows_of
from apr_falsify.compare.structure import (
    check_tokens,
    constant_findings,
    geometry_findings,
    keys_to_judge,
    same_shapes,
)
from apr_falsify.compare.weights import weights_findings
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import Key
from apr_falsify.traces.trace import Trace


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
        arithmetic: what the user states of the subject's arithmetic, in the words of ``operand_rules.py``.
        findings: what is known already (a tokenizer that differs, say).
        not_checked: what is known not to have been looked at.

    Raises:
        TokensError: the runs have different token ids.
        TraceError: there is nothing that could be judged.

    """
    # 1.
    check_tokens(oracle, subject)
    structural = geometry_findings(oracle.geometry, subject.geometry)
    keys = keys_to_judge(oracle, subject, layers, stages)
    comparable = same_shapes(oracle.geometry, subject.geometry)
    if not comparable:
        weights = subject_weights = None
    # 2.
    attempts = Attempts()
    converted = _other_tensors(weights, subject_weights, keys, attempts)
    # 3. and 4.
    used = subject_weights or weights
    reference = judge(oracle, weights, keys, attempts=attempts.within("the oracle", decisive=True))
    said = Held(trace=subject, weights=used)
    in_format = partial(in_its_format, said, keys, arithmetic)
    held, formats = attempts.trying("the format of what was recorded").made(in_format, (said, ()))
    subject, judged, layouts = declared_or_solved(held.trace, held.weights, keys, arithmetic, attempts)
    # 5.
    if comparable:
        used_in = keys if subject_weights is not None else _as_replayed(judged)
        converted += constant_findings(oracle.geometry, subject.geometry, used_in, len(subject.tokens))
    mismatched = [found for found in layouts if found.type is FindingType.LAYOUT]
    solved = {name for found in mismatched for name in found.stages}
    rows = rows_of(keys, oracle, subject, judged, solved, attempts)
    broken = invariant_findings(subject, judged, attempts)
    unequal = differing_on_equal_inputs(rows, judged, oracle.geometry)
    rows = accused(rows, {*unequal, *(Key(finding.layer, finding.stages[0]) for finding in broken)})
    if not structural:
        _check_anything_compared(rows)
    own = subject_weights is not None
    merged = partial(merged_weights, subject, held.weights, judged, arithmetic)
    foreign = [] if own else attempts.trying("a merged LoRA").made(merged, [])
    foreign = foreign or foreign_weights(judged, own, subject.provenance.dtype)
    guilty = wrong_without_weights(judged) if foreign else judged
    rows = cleared(rows, {key: entry for key, entry in judged.items() if key not in guilty})
    sources = source_findings(
        subject, held.weights, guilty, rows, own_weights=own, arithmetic=arithmetic, attempts=attempts
    )
    published = attempts.trying("the published rule").made(partial(_published, rows), ())
    lost = unchecked.breakdown_findings(attempts.noted)
    every = (
        *findings,
        *reference_findings(reference),
        *structural,
        *converted,
        *foreign,
        *sources,
        *comparative_findings(unequal),
        *broken,
        *formats,
        *layouts,
        *arithmetic_findings(judged),
        *unmeasured_findings(_otherwise(rows, lost), judged, subject.provenance.absent),
        *lost,
        *one_token_findings(rows, len(subject.tokens)),
    )
    return Bisection(
        kind=kind_of(every, rows),
        rows=rows,
        findings=every,
        published=published,
        not_checked=(
            *not_checked,
            *unchecked.not_checked(rows, oracle, subject, used),
            *unchecked.broken_down(attempts.noted),
        ),
        tokens=oracle.tokens,
        oracle=oracle.provenance,
        subject=said.trace.provenance,
        breakdowns=tuple(attempts.noted),
        layers=oracle.geometry.layers,
    )


def _otherwise(rows: Sequence[Row], lost: Sequence[Finding]) -> list[Row]:
    """Return the rows whose verdict, where they have none, is not lost by a breakdown."""
    told = {(finding.layer, stage) for finding in lost for stage in finding.stages}
    return [row for row in rows if (row.layer, row.stage) not in told]


def _check_anything_compared(rows: Sequence[Row]) -> None:
    if all(row.status not in (Status.COMPARED, Status.NOT_REPLAYABLE) for row in rows):
        raise TraceError(
            "the two traces have no stage in common",
            expected="at least one stage that both sides captured",
            remedy="capture both with the same --layers and --stages",
        )


def _other_tensors(
    ours: Weights | None, theirs: Weights | None, keys: Sequence[Key], attempts: Attempts
) -> list[Finding]:
    """Return which tensors the subject's own file has otherwise."""
    if ours is None or theirs is None or ours.where == theirs.where:
        return []
    layers = sorted({layer for layer, _ in keys if layer is not None})
    return weights_findings(ours, theirs, layers, attempts)


def _as_replayed(judged: Mapping[Key, Judged]) -> list[Key]:
    """Return the stages that are what the subject's constants make of their inputs: it ran with these."""
    return [key for key, entry in judged.items() if entry.fit is not None and not entry.in_error]


def kind_of(findings: Sequence[Finding], rows: Sequence[Row]) -> Kind:
    """Return the headline: what sums up the findings and the verdicts of the rows."""
    types = [finding.type for finding in findings]
    if FindingType.REFERENCE in types:
        return Kind.REFERENCE_SUSPECT
    if FindingType.SOURCE in types or FindingType.WEIGHTS in types:
        return Kind.LOCALISED if is_one_cause(findings) else Kind.SEVERAL
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
