"""The rows of a bisection: what is measured of each stage, and the verdict on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.bisection import Row, Status, Verdict
from apr_falsify.compare.findings import NO_DIVERGENCE
from apr_falsify.compare.judge import BROKEN_DOWN, Judged
from apr_falsify.compare.layout import aligned
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.compare.structure import consumers, descendants, same_shapes, status_of
from apr_falsify.model.stages import Key, Layout
from apr_falsify.traces.trace import Trace


def rows_of(
    keys: Sequence[Key],
    oracle: Trace,
    subject: Trace,
    judged: Mapping[Key, Judged],
    solved: Collection[str],
    attempts: Attempts = LOUD,
) -> tuple[Row, ...]:
    """Return a row for each of ``keys``.

    Args:
        keys: the stages to judge, in forward order.
        oracle: the reference run.
        subject: the run in question.
        judged: what its replay says of each stage that could be replayed.
        solved: the stages that agree once a layout that was not declared is undone.
        attempts: notes the stages whose comparison with the oracle's breaks down.

    """
    tainted = descendants(
        [key for key, entry in judged.items() if entry.in_error], consumers(keys, subject.geometry)
    )
    return tuple(
        _row(
            key,
            oracle,
            subject,
            judged.get(key),
            attempts,
            tainted=key in tainted,
            solved=key.stage in solved,
        )
        for key in keys
    )


def identical(rows: Sequence[Row], oracle: Trace, subject: Trace) -> bool:
    """Whether every stage that was compared is the same on both sides to the last bit, where it is data."""
    compared = [row for row in rows if row.accumulated is not None]
    if not compared or any(row.accumulated is not None and row.accumulated.rel_l2 for row in compared):
        return False
    return all(_same_bits(Key(row.layer, row.stage), oracle, subject) for row in compared)


def _same_bits(key: Key, oracle: Trace, subject: Trace) -> bool:
    pair = aligned(
        key, oracle.stages[key], subject.stages[key], oracle.geometry, oracle.passes, subject.passes
    )
    return pair.oracle.dtype == pair.subject.dtype and pair.oracle.tobytes() == pair.subject.tobytes()


def accused(rows: Sequence[Row], keys: Collection[Key]) -> tuple[Row, ...]:
    """Return the rows, those of ``keys`` as introducing an error."""
    return tuple(
        replace(row, verdict=Verdict.INTRODUCES) if (row.layer, row.stage) in keys else row for row in rows
    )


def cleared(rows: Sequence[Row], judged: Mapping[Key, Judged]) -> tuple[Row, ...]:
    """Return the rows, those that their replay alone accuses as unmeasured: nothing is shown by it."""
    in_error = {key for key, entry in judged.items() if entry.in_error}
    return tuple(
        replace(row, verdict=Verdict.UNMEASURED)
        if row.verdict is Verdict.INTRODUCES and (row.layer, row.stage) in in_error
        else row
        for row in rows
    )


def inheriting(rows: Sequence[Row], keys: Collection[Key]) -> tuple[Row, ...]:
    """Return the rows, those of ``keys`` as having the error of another stage."""
    return tuple(
        replace(row, verdict=Verdict.INHERITS) if (row.layer, row.stage) in keys else row for row in rows
    )


def _row(
    key: Key,
    oracle: Trace,
    subject: Trace,
    entry: Judged | None,
    attempts: Attempts,
    *,
    tainted: bool,
    solved: bool,
) -> Row:
    status = status_of(key, oracle, subject)
    nothing: _Compared = None, (), ()
    metrics, shape, layout = nothing
    comparable = status is Status.COMPARED and same_shapes(oracle.geometry, subject.geometry)
    if comparable:
        compare = attempts.needing("the comparison with the oracle", key)
        metrics, shape, layout = compare.made(partial(_accumulated, key, oracle, subject), nothing)
    verdict = _verdict(entry, metrics, tainted=tainted, solved=solved)
    if status is Status.COMPARED and (not comparable or verdict is Verdict.UNMEASURED):
        status = Status.NOT_REPLAYABLE
    fit = None if entry is None else entry.fit
    return Row(
        layer=key.layer,
        stage=key.stage,
        status=status,
        verdict=verdict,
        accumulated=metrics,
        introduced=None if entry is None else entry.introduced,
        arithmetic=_arithmetic(entry),
        residual=None if fit is None else fit.residual,
        floor=None if fit is None else fit.floor,
        excess=None if fit is None else fit.excess,
        simulated=entry is not None and entry.simulated,
        edges=0 if fit is None else fit.edges,
        layout=layout,
        shape=shape,
    )


_Compared = tuple[Metrics | None, tuple[int, ...], tuple[Layout, ...]]


def _accumulated(key: Key, oracle: Trace, subject: Trace) -> _Compared:
    """Return subject against oracle, the shape compared and the layout words that were undone."""
    sides = oracle.stages[key], subject.stages[key]
    pair = aligned(key, *sides, oracle.geometry, oracle.passes, subject.passes)
    return compare_arrays(pair.oracle, pair.subject, pair.axes), pair.oracle.shape, pair.layout


def _verdict(entry: Judged | None, metrics: Metrics | None, *, tainted: bool, solved: bool) -> Verdict:
    agrees = metrics is not None and metrics.rel_l2 <= NO_DIVERGENCE and not metrics.nonfinite_mismatch
    if entry is None or entry.fit is None:
        broken_down = entry is not None and entry.missing is BROKEN_DOWN
        return Verdict.WITHIN_FLOOR if agrees and not broken_down else Verdict.UNMEASURED
    if entry.in_error:
        return Verdict.INTRODUCES
    if solved:
        return Verdict.LAYOUT
    return Verdict.INHERITS if tainted and not agrees else Verdict.WITHIN_FLOOR


def _arithmetic(entry: Judged | None) -> str | None:
    """Return weight type and rule that explain the stage, ``None`` where nothing does."""
    if entry is None or entry.fit is None or entry.simulated or not entry.fit.explains:
        return None
    rule = entry.fit.rule.name
    return f"{entry.weight_type} x {rule}" if entry.weight_type else rule
