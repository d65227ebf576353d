"""Judge every stage of one trace by its replay: which arithmetic explains it, and what is left.

The procedure, over the whole trace, since one runtime has one arithmetic per kind of operation:

1. Replay each stage plainly and under the arithmetic that the runtime is expected to use.
2. Where neither explains it, replay it under every other arithmetic of the closed table.
3. Per kind (operation and weight type) settle on the expected arithmetic where it explains any
   stage of that kind, else on the one that explains most.
4. Judge each stage under its kind's arithmetic: within its floor, explained by another arithmetic, or
   in error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.axes import axes_of
from apr_falsify.compare.doubt import doubt
from apr_falsify.compare.fit import Fit, fit_of
from apr_falsify.compare.layout import factor_of, of_data, only_data
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.compare.recorded_formats import saved_unit
from apr_falsify.compare.replay import Missing, Replay, Replayer
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import (
    PLAIN,
    ROUNDED_STEPS,
    RULES,
    Operation,
    Rule,
    beside,
    stated_rules,
)
from apr_falsify.operators.attention import OPERANDS
from apr_falsify.operators.roundoff import LIMIT, UNIT, smallest_rounding
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]
"""A captured stage in canonical shape, in the format it is stored in."""

SIMULATED = 4.0
"""Where no arithmetic explains a kind: how many times the expected one's own error is allowed."""

BROKEN_DOWN = Missing(what="a replay that does not break down", remedy="report this defect of apr-falsify")
"""Why a stage has no verdict although nothing is missing; ``compare.attempts`` has noted the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One stage, judged by its replay.

    Attributes:
        key: the stage.
        missing: why it could not be replayed, ``None`` where it was.
        fits: one per arithmetic tried.
        fit: the one it is judged by.
        expected: the arithmetic that the runtime is expected to use.
        introduced: the stage against its plain replay.
        composed: stages that were not captured and were computed.
        weight_type: number format of the weights, ``""`` where there are none.
        simulated: whether the floor is the expected arithmetic's own error, for want of a better.

    """

    key: Key
    operation: Operation
    missing: Missing | None = None
    fits: tuple[Fit, ...] = ()
    fit: Fit | None = None
    expected: Rule = PLAIN
    introduced: Metrics | None = None
    composed: tuple[str, ...] = ()
    weight_type: str = ""
    simulated: bool = False

    @property
    def in_error(self) -> bool:
        """Whether the stage introduces an error."""
        return self.fit is not None and self.fit.excess > 1

    @property
    def kind(self) -> tuple[Operation, str]:
        """What shares one arithmetic."""
        return self.operation, self.weight_type


def store_of(trace: Trace) -> float:
    """Return the unit roundoff of the format in which a run keeps its stages.

    Where that is not known: the coarsest in which one was saved, else f32.
    """
    known = FORMATS.get(trace.provenance.dtype)
    return saved_unit(trace) if known is None else max(known.unit_roundoff, UNIT)


def as_run(weights: Weights | None, trace: Trace) -> Weights | None:
    """Return ``weights`` as the run used them: transformers casts them to the format that it runs in."""
    held = FORMATS.get(trace.provenance.dtype)
    if weights is None or held is None or trace.provenance.runtime != "hf":
        return weights
    return replace(weights, cast_to=held)


def replayer_of(trace: Trace, weights: Weights | None, arithmetic: str | None = None) -> Replayer:
    """Return what replays ``trace``: with its weights as it used them, in its format, under what it states.

    Raises:
        UsageError: an arithmetic that the table does not have.

    """
    stated = stated_rules(arithmetic or trace.provenance.arithmetic)
    return Replayer(trace, as_run(weights, trace), store_of(trace), stated)


def judge(
    trace: Trace,
    weights: Weights | None,
    keys: Iterable[Key],
    arithmetic: str | None = None,
    attempts: Attempts = LOUD,
) -> dict[Key, Judged]:
    """Judge the captured ones of ``keys``.

    Args:
        trace: the run.
        weights: what to replay it with, ``None`` where there are none.
        keys: the stages to judge.
        arithmetic: what the user states of it, in the words of ``operand_rules.py``; ``None`` for what the
            trace itself says.
        attempts: notes the stages whose replay breaks down; those are :data:`BROKEN_DOWN`.

    Raises:
        UsageError: an arithmetic that the table does not have.

    """
    replayer = replayer_of(trace, weights, arithmetic)

    def each(key: Key, step: Callable[[], Judged]) -> Judged:
        unknown = Judged(key=key, operation=replayer.operation(key), missing=BROKEN_DOWN)
        return attempts.needing("the replay", key).made(step, unknown)

    captured = [key for key in keys if key in trace.stages]
    judged = {key: each(key, partial(_first_look, replayer, key, attempts)) for key in captured}
    settled = _rule_of_each_kind(judged.values())
    decided = {
        key: each(key, partial(_decided, replayer, judged[key], settled, attempts)) for key in captured
    }
    return {key: _without_doubtful_accusation(replayer, entry) for key, entry in decided.items()}


def _without_doubtful_accusation(replayer: Replayer, entry: Judged) -> Judged:
    if not entry.in_error or entry.fit is None:
        return entry
    missing = doubt(replayer, entry.key, entry.expected, entry.fit.rule, entry.composed, entry.fit.residual)
    return entry if missing is None else replace(entry, fit=None, missing=missing)


def _first_look(replayer: Replayer, key: Key, attempts: Attempts) -> Judged:
    expected = replayer.expected(key)
    rules = (PLAIN,) if expected is PLAIN else (PLAIN, expected)
    if replayer.operation(key) is Operation.ATTENTION and replayer.store > UNIT:
        rules = (*rules, ROUNDED_STEPS)
    found = replayer.replay(key, rules)
    if isinstance(found, Missing):
        return Judged(key=key, operation=replayer.operation(key), missing=found, expected=expected)
    subject = replayer.stored(key)
    assert subject is not None
    fits = fits_of(replayer, key, subject, found, rules, attempts)
    if not any(fit.explains for fit in fits):
        fits += _other_fits(replayer, key, subject, rules, attempts)
    by_rule = {fit.rule: fit.excess for fit in fits}
    if expected is PLAIN and by_rule[PLAIN] > 1 >= by_rule.get(ROUNDED_STEPS, math.inf):
        expected = ROUNDED_STEPS  # as usual in 16 bits as a kernel that keeps its steps in f32
    plain, _ = comparable(replayer.trace, key, subject, found.values[0], found.sigma)
    axes = axes_of(key.stage, replayer.trace.geometry, replayer.trace.passes.unseen)
    introduced = partial(compare_arrays, plain, subject, axes)
    metrics = attempts.trying("the figures against the plain replay", key).made(introduced, None)
    return Judged(
        key=key,
        fits=fits,
        expected=expected,
        # Profiles are as long as the stage is wide; of the whole trace nobody reads them.
        introduced=None if metrics is None else replace(metrics, per={}),
        composed=found.composed,
        weight_type=found.weight_type,
        operation=replayer.operation(key),
    )


def _other_fits(
    replayer: Replayer, key: Key, subject: Stored, tried: tuple[Rule, ...], attempts: Attempts
) -> tuple[Fit, ...]:
    operation = replayer.operation(key)
    dims = math.gcd(replayer.trace.geometry.head_dim, replayer.trace.geometry.value_dim)
    near = beside(replayer.expected(key)) if operation is Operation.ATTENTION else ()
    others = tuple(
        rule
        for rule in dict.fromkeys((*near, *RULES[operation]))
        if rule not in tried
        and (operation is Operation.PROJECTION or dims % rule.block == 0)
        and not rule.rounds_steps
    )
    if not others:
        return ()

    def fits(*rules: Rule) -> tuple[Fit, ...]:
        found = replayer.replay(key, rules)
        assert isinstance(found, Replay)
        return fits_of(replayer, key, subject, found, rules, attempts)

    if operation is Operation.ATTENTION:  # whose parts make many rules, and no weights are decoded
        return _until_explained(key, others, fits, attempts)
    # All at once, since they share the decoding of weights; else one by one, without those that break down.
    found = Attempts().trying("all other arithmetics", key).made(partial(fits, *others), ())
    for rule in () if found else others:
        found += attempts.trying(f"the arithmetic {rule.name}", key).made(partial(fits, rule), ())
    return found


def _until_explained(
    key: Key, others: Sequence[Rule], fits: Callable[[Rule], tuple[Fit, ...]], attempts: Attempts
) -> tuple[Fit, ...]:
    found: tuple[Fit, ...] = ()
    for rule in others:
        found += attempts.trying(f"the arithmetic {rule.name}", key).made(partial(fits, rule), ())
        if found and found[-1].explains:
            break
    return found


def fits_of(
    replayer: Replayer, key: Key, subject: Stored, found: Replay, rules: Sequence[Rule], attempts: Attempts
) -> tuple[Fit, ...]:
    """Return how well each of ``rules`` explains ``subject``, a captured stage."""
    fits = []
    for index, (rule, values) in enumerate(zip(rules, found.values, strict=True)):
        noise = _noise(replayer, key, rule, found.sigma_under(index))
        expected, sigma = comparable(replayer.trace, key, subject, values, noise)
        if found.skipped is not None:
            # A loop over the visible keys alone never meets what a matrix product turns into NaN.
            expected = np.where(np.isfinite(subject) & ~np.isfinite(expected), found.skipped, expected)
        expected = _saved_beyond(replayer, key, subject, expected, sigma)
        fit = fit_of(rule, subject, expected, sigma, replayer.unit_of(key))
        if fit.excess > 1:
            across = partial(_with_edges, replayer, key, fit, subject, expected, sigma)
            fit = attempts.trying("values on an edge", key).made(across, fit)
        fits.append(fit)
    return tuple(fits)


def _noise(replayer: Replayer, key: Key, rule: Rule, sigma: F64) -> F64:
    """Return ``sigma`` of a replay with what borrowed keys and values may be, as the rule holds them."""
    parts = _CACHED_OPERANDS.get(replayer.operation(key), ())
    if not replayer.trace.borrowed or rule is PLAIN or not parts:
        return sigma
    operands, inputs, rule = replayer.operands(key.layer), replayer.inputs(key), replayer.by_pass(rule)
    for part in parts:
        role = OPERANDS[part][1]
        if role not in inputs:
            continue
        of_part = rule if len(parts) == 1 else rule.of(part)
        inputs[role] = operands.with_uncertain_steps(part, inputs[role], of_part)
    return replayer.evaluate(key, inputs, (rule,)).sigma


_CACHED_OPERANDS: Mapping[Operation, tuple[Operation, ...]] = {
    Operation.SCORES: (Operation.SCORES,),
    Operation.MIX: (Operation.MIX,),
    Operation.ATTENTION: (Operation.SCORES, Operation.MIX),
}
"""Operation -> its parts of which the second operand comes from a cache."""


def _with_edges(replayer: Replayer, key: Key, fit: Fit, subject: Stored, expected: F64, sigma: F64) -> Fit:
    """Return ``fit`` with the values on an edge where the subject has them, where that explains a row."""

    def shaped(values: F64) -> F64:
        return comparable(replayer.trace, key, subject, values, sigma)[0]

    from apr_falsify.compare.edges import on_the_other_side  # needed for a stage beyond its floor

    moved, count = on_the_other_side(replayer, key, fit.rule, subject, expected, sigma, shaped)
    unit = replayer.unit_of(key)
    return replace(fit_of(fit.rule, subject, moved, sigma, unit), edges=count) if count else fit


def _saved_beyond(replayer: Replayer, key: Key, subject: Stored, expected: F64, sigma: F64) -> F64:
    """Return ``expected``, infinite where saving it may have made it so and the subject has it so."""
    saved = replayer.saved_format(key)
    if saved is None or np.isfinite(subject).all():
        return expected
    farthest = saved.round(expected + np.copysign(LIMIT * sigma, expected))
    return np.where(np.isinf(subject) & (farthest == subject), subject, expected)


def comparable(trace: Trace, key: Key, subject: Stored, values: F64, sigma: F64) -> tuple[F64, F64]:
    """Return a replay and its sigma in the form in which the runtime keeps the stage."""
    layout = trace.stages[key].layout
    values = only_data(values, key, layout, trace.geometry, trace.passes)
    sigma = of_data(sigma, key.stage, trace.passes)
    if (factor := factor_of(key, layout, trace.geometry)) < 1:  # the smallest steps were divided by it too
        sigma = np.hypot(sigma, smallest_rounding(store_of(trace)) / factor)
    if values.shape != subject.shape:  # a last-token stage: the last rows alone
        values, sigma = values[-len(subject) :], sigma[-len(subject) :]
    return values, sigma


def _rule_of_each_kind(judged: Collection[Judged]) -> dict[tuple[Operation, str], Rule]:
    """Return, per kind, the arithmetic that explains it; a kind that none explains has no entry.

    The expected arithmetic needs to explain one stage only, since faults may spoil all the others. Of
    the rest the one that explains most stages is taken, and of equal ones that which leaves least.
    """
    votes: dict[tuple[Operation, str], dict[Rule, list[float]]] = {}
    expected: dict[tuple[Operation, str], Rule] = {}
    for entry in judged:
        for fit in entry.fits:
            if fit.explains:
                votes.setdefault(entry.kind, {}).setdefault(fit.rule, []).append(fit.residual)
                if fit.rule is entry.expected:
                    expected[entry.kind] = fit.rule
    most = {
        kind: max(found, key=lambda rule: (len(found[rule]), -sum(found[rule])))
        for kind, found in votes.items()
    }
    # Declared, and seen in this operation with weights of another type: a lone stage may be all wrong.
    confirmed = {(kind[0], rule) for kind, rule in expected.items()}
    declared = {
        entry.kind: entry.expected
        for entry in judged
        if entry.kind not in most and (entry.kind[0], entry.expected) in confirmed
    }
    return {**most, **expected, **declared}


def _decided(
    replayer: Replayer, entry: Judged, settled: Mapping[tuple[Operation, str], Rule], attempts: Attempts
) -> Judged:
    if entry.missing is not None:
        return entry
    rule = settled.get(entry.kind)
    if rule is None:
        return _simulated(replayer, entry)
    fits = {fit.rule.name: fit for fit in entry.fits}
    if rule.name not in fits:  # the kind's arithmetic was found elsewhere and not yet tried here
        subject = replayer.stored(entry.key)
        found = replayer.replay(entry.key, (rule,))
        assert subject is not None
        assert isinstance(found, Replay)
        (fits[rule.name],) = fits_of(replayer, entry.key, subject, found, (rule,), attempts)
    own = fits[rule.name]
    best = min(fits.values(), key=lambda fit: fit.excess)
    return replace(entry, fits=tuple(fits.values()), fit=best if own.excess > 1 >= best.excess else own)


def _simulated(replayer: Replayer, entry: Judged) -> Judged:
    """Judge by the expected arithmetic's own error where no arithmetic explains the kind."""
    own = next(fit for fit in entry.fits if fit.rule.name == entry.expected.name)
    if entry.expected is PLAIN:
        return replace(entry, fit=own)
    subject = replayer.stored(entry.key)
    found = replayer.replay(entry.key, (PLAIN, entry.expected))
    assert subject is not None
    assert isinstance(found, Replay)
    cost = np.sqrt(np.mean(np.square(found.values[1] - found.values[0]), axis=-1, keepdims=True))
    sigma = found.sigma + np.broadcast_to(cost, found.sigma.shape) * (SIMULATED / LIMIT)
    expected, sigma = comparable(replayer.trace, entry.key, subject, found.values[1], sigma)
    return replace(
        entry,
        fit=fit_of(entry.expected, subject, expected, sigma, replayer.unit_of(entry.key)),
        simulated=True,
    )
