"""Compare two traces and name the stages that introduced the error.

1. Structure: tokens, geometry, which stages there are.
2. Weights: where the subject's own can be read, each tensor against the oracle's.
3. Replay: the oracle's trace and the subject's, each from its own inputs (``compare.judge``). The subject's
   is read in the number format that its values show (``compare.stored_format``), and where a stage is not
   what its replay says, in the conventions that a runtime may store it in (``compare.convention``).
4. Rows: what is measured of each stage, and which of them introduce an error.
5. Findings: what explains those, and what could not be measured.
6. The headline sums up both.

What breaks down in 2 to 5 is noted and costs at most the stage that it is about (``compare.attempts``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

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
from apr_falsify.compare.borrowed import with_earlier_rows, without_padding
from apr_falsify.compare.convention import declared_or_solved
from apr_falsify.compare.findings import (
    arithmetic_findings,
    comparative_findings,
    differing_on_equal_inputs,
    invariant_findings,
    one_token_findings,
    reference_findings,
    source_findings,
    unmeasured_findings,
)
from apr_falsify.compare.foreign import foreign_weights, misread_everywhere, wrong_without_weights
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.last_token import named_elsewhere
from apr_falsify.compare.low_rank import merged_weights
from apr_falsify.compare.published import PublishedRule, published_rule
from apr_falsify.compare.rows import accused, cleared, identical, inheriting, rows_of
from apr_falsify.compare.stored_format import StoredRun, in_its_format
from apr_falsify.compare.structure import (
    check_tokens,
    constant_findings,
    geometry_findings,
    keys_to_judge,
    same_shapes,
)
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
    attempts = Attempts()
    # 1. Structure
    if subject.passes.padding and oracle.tokens == subject.tokens[subject.passes.padding :]:
        subject = without_padding(subject)
    check_tokens(oracle, subject)
    subject = with_earlier_rows(subject, oracle)
    sides = _Sides(
        oracle=oracle,
        subject=subject,
        keys=keys_to_judge(oracle, subject, layers, stages),
        weights=weights,
        own_weights=subject_weights,
        arithmetic=arithmetic,
    ).without_foreign_weights()
    structural = geometry_findings(oracle.geometry, subject.geometry)
    # 2. Weights
    tensors = _differing_tensors(sides, attempts)
    # 3. Replay
    reference = judge(
        oracle, sides.weights, sides.keys, attempts=attempts.within("the oracle", decisive=True)
    )
    replay = _replay_of_the_subject(sides, attempts)
    # 4. Rows
    comparison = _comparison(sides, replay, attempts)
    if not structural:
        _check_anything_compared(comparison.rows)
    # 5. Findings
    every = (
        *findings,
        *reference_findings(reference),
        *structural,
        *tensors,
        *_differing_constants(sides, replay),
        *_findings_of(sides, replay, comparison, attempts),
    )
    # 6. The headline
    published = attempts.trying("the published rule").made(partial(_published, comparison.rows), ())
    return Bisection(
        kind=kind_of(every, comparison.rows),
        rows=comparison.rows,
        findings=every,
        published=published,
        not_checked=(
            *not_checked,
            *unchecked.not_checked(comparison.rows, oracle, replay.run.trace, sides.replayed_with),
            *unchecked.broken_down(attempts.noted),
        ),
        tokens=oracle.tokens,
        oracle=oracle.provenance,
        subject=subject.provenance,
        breakdowns=tuple(attempts.noted),
        layers=oracle.geometry.layers,
        passes=subject.passes,
        identical=attempts.trying("equality to the last bit").made(
            partial(identical, comparison.rows, oracle, subject), False
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Both runs as they are declared, with what they are replayed by.

    Attributes:
        oracle: the reference run.
        subject: the run in question.
        keys: the stages to judge, in forward order.
        weights: the oracle's weights, ``None`` where there are none.
        own_weights: the subject's own, ``None`` where they cannot be read.
        arithmetic: what the user states of the subject's arithmetic.

    """

    oracle: Trace
    subject: Trace
    keys: Sequence[Key]
    weights: Weights | None
    own_weights: Weights | None
    arithmetic: str | None

    @property
    def comparable(self) -> bool:
        """Whether stages of the two models can be compared element by element."""
        return same_shapes(self.oracle.geometry, self.subject.geometry)

    @property
    def replayed_with(self) -> Weights | None:
        """The weights that the subject is replayed with."""
        return self.own_weights or self.weights

    def without_foreign_weights(self) -> Self:
        """Return the sides without weights where the two models are of different sizes."""
        return self if self.comparable else replace(self, weights=None, own_weights=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """The subject's run as it was read, and what its replay says.

    Attributes:
        run: the run, in the format and the layout in which it was judged.
        judged: what the replay says of each stage that could be replayed.
        formats: findings on number formats that are not the declared ones.
        layouts: findings on conventions that are not the declared ones.

    """

    run: StoredRun
    judged: Mapping[Key, Judged]
    formats: Sequence[Finding]
    layouts: Sequence[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """The rows, and what they accuse.

    Attributes:
        rows: a row for each stage to judge.
        guilty: the judged stages that may be accused.
        unequal: stages that differ from the oracle's on equal inputs: row, and the inputs' difference.
        broken: findings on invariants that do not hold.
        foreign: the finding that the subject was not run with the weights at hand, where that is so.

    """

    rows: tuple[Row, ...]
    guilty: Mapping[Key, Judged]
    unequal: Mapping[Key, tuple[Row, float]]
    broken: Sequence[Finding]
    foreign: Sequence[Finding]


def _replay_of_the_subject(sides: _Sides, attempts: Attempts) -> _Replay:
    """Judge the subject's run in the format and the layout that explain most of it."""
    declared = StoredRun(trace=sides.subject, weights=sides.replayed_with)
    in_format = partial(in_its_format, declared, sides.keys, sides.arithmetic)
    run, formats = attempts.trying("the format of what was recorded").made(in_format, (declared, ()))
    trace, judged, layouts = declared_or_solved(
        run.trace, run.weights, sides.keys, sides.arithmetic, attempts
    )
    return _Replay(run=replace(run, trace=trace), judged=judged, formats=formats, layouts=layouts)


def _comparison(sides: _Sides, replay: _Replay, attempts: Attempts) -> _Comparison:
    """Measure every stage, and decide which introduce an error.

    A stage does so where its replay says so, where it differs on equal inputs, and where an invariant does
    not hold. Where the subject was run with other weights than those at hand, a replay with them accuses
    nothing.
    """
    trace, judged = replay.run.trace, replay.judged
    solved = {name for found in replay.layouts if found.type is FindingType.LAYOUT for name in found.stages}
    rows = rows_of(sides.keys, sides.oracle, trace, judged, solved, attempts)
    broken = invariant_findings(trace, judged, attempts)
    unequal = differing_on_equal_inputs(rows, judged, sides.oracle.geometry)
    rows = accused(rows, {*unequal, *(Key(finding.layer, finding.stages[0]) for finding in broken)})
    own = sides.own_weights is not None
    merged = partial(merged_weights, trace, replay.run.weights, judged, sides.arithmetic)
    # A zero point that is off differs by a matrix of low rank too: it is one for each group.
    explained = own or misread_everywhere(trace, replay.run.weights, judged, sides.arithmetic, attempts)
    foreign = [] if explained else attempts.trying("a merged LoRA").made(merged, [])
    foreign = foreign or foreign_weights(judged, explained, trace.provenance.dtype)
    guilty = wrong_without_weights(judged) if foreign else judged
    rows = cleared(rows, {key: entry for key, entry in judged.items() if key not in guilty})
    again = named_elsewhere(guilty)
    rows = inheriting(rows, again)
    guilty = {key: entry for key, entry in guilty.items() if key not in again}
    return _Comparison(rows=rows, guilty=guilty, unequal=unequal, broken=broken, foreign=foreign)


def _findings_of(
    sides: _Sides, replay: _Replay, comparison: _Comparison, attempts: Attempts
) -> Iterator[Finding]:
    """Yield what explains the rows, and what could not be measured."""
    trace, rows = replay.run.trace, comparison.rows
    yield from comparison.foreign
    yield from source_findings(
        trace,
        replay.run.weights,
        comparison.guilty,
        rows,
        own_weights=sides.own_weights is not None,
        arithmetic=sides.arithmetic,
        attempts=attempts,
    )
    lost = unchecked.breakdown_findings(attempts.noted)
    yield from comparative_findings(comparison.unequal)
    yield from comparison.broken
    yield from replay.formats
    yield from replay.layouts
    yield from arithmetic_findings(replay.judged)
    yield from unmeasured_findings(_otherwise(rows, lost), replay.judged, trace.provenance.absent)
    yield from lost
    yield from one_token_findings(rows, len(trace.tokens))


def _otherwise(rows: Sequence[Row], lost: Sequence[Finding]) -> list[Row]:
    """Return the rows whose verdict, where they have none, is not lost by a breakdown."""
    named = {(finding.layer, stage) for finding in lost for stage in finding.stages}
    return [row for row in rows if (row.layer, row.stage) not in named]


def _check_anything_compared(rows: Sequence[Row]) -> None:
    if all(row.status not in (Status.COMPARED, Status.NOT_REPLAYABLE) for row in rows):
        raise TraceError(
            "the two traces have no stage in common",
            expected="at least one stage that both sides captured",
            remedy="capture both with the same --layers and --stages",
        )


def _differing_tensors(sides: _Sides, attempts: Attempts) -> list[Finding]:
    """Return which tensors the subject's own file has otherwise."""
    ours, theirs = sides.weights, sides.own_weights
    if ours is None or theirs is None or ours.where == theirs.where:
        return []
    from apr_falsify.compare.weights import weights_findings  # two files of weights are the rarer case

    layers = sorted({layer for layer, _ in sides.keys if layer is not None})
    return weights_findings(ours, theirs, layers, attempts)


def _differing_constants(sides: _Sides, replay: _Replay) -> list[Finding]:
    """Return which constants the subject's model has otherwise, at the stages that were computed with them.

    Where its own file cannot be read, those are the stages that its constants explain.
    """
    if not sides.comparable:
        return []
    used_in: Iterable[Key] = sides.keys
    if sides.own_weights is None:
        used_in = [
            key for key, entry in replay.judged.items() if entry.fit is not None and not entry.in_error
        ]
    trace = replay.run.trace
    return constant_findings(sides.oracle.geometry, trace.geometry, used_in, len(trace.tokens))


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
