"""What must hold in any correct run, without a reference and without weights.

Rows of softmax sum to 1; no token sees the future, or beyond its window; RoPE turns pairs and leaves their
length; the first token, which sees only itself, gets its own V. Each is judged against the rounding
of its own few operations, derived as in ``compare.floor``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.judge import store_of
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.products import turning_noise
from apr_falsify.compare.recorded_formats import saved_unit
from apr_falsify.errors import TraceError
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SQUARES, STAGES, Key, Layout
from apr_falsify.model.wiring import has_stage
from apr_falsify.numerics.operand_rules import RULES, Operation, Rule
from apr_falsify.operators.heads import values_of
from apr_falsify.operators.rotation import rope_frequencies
from apr_falsify.operators.roundoff import FEW, LIMIT, TINY, UNIT, smallest_rounding
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]


class InvariantOutcome(StrEnum):
    """What became of one check."""

    HOLDS = "holds"
    VIOLATED = "violated"
    NOT_APPLICABLE = "not-applicable"
    NOT_CHECKED = "not-checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class InvariantCheck:
    """One invariant of one stage.

    Attributes:
        invariant: its name.
        layer: the layer.
        stage: the stage.
        outcome: what became of it.
        sentence: what was found, or why nothing could be.
        size: the largest deviation in the invariant's own unit, NaN where nothing was measured.

    """

    invariant: str
    layer: int
    stage: str
    outcome: InvariantOutcome
    sentence: str
    size: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that does not hold.

    Attributes:
        layer: the layer.
        stage: the stage.
        sentence: what was found.
        size: the largest deviation in the invariant's own unit.

    """

    layer: int
    stage: str
    sentence: str
    size: float


def invariants(trace: Trace, attempts: Attempts = LOUD) -> tuple[Violation, ...]:
    """Return the invariants that do not hold in ``trace``; ``attempts`` notes those that break down."""
    return tuple(
        Violation(layer=check.layer, stage=check.stage, sentence=check.sentence, size=check.size)
        for check in checks(trace, attempts)
        if check.outcome is InvariantOutcome.VIOLATED
    )


def checks(trace: Trace, attempts: Attempts = LOUD) -> tuple[InvariantCheck, ...]:
    """Return every invariant of every captured layer, with what became of it."""
    return tuple(_checked(trace, layer, row, attempts) for layer in trace.layers for row in TABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one check measured.

    Attributes:
        ratio: the largest deviation, in what is allowed; above 1 is a violation.
        size: the largest deviation in the invariant's own unit.
        sentence: what was found.

    """

    ratio: float
    size: float
    sentence: str


class _Unmeasured(Exception):
    """A check cannot be made; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invariant:
    """One row of the table.

    Attributes:
        name: its name.
        stage: the stage that violates it.
        applies: ``""``, or why a model of this geometry does not have it.
        measure: measures it.

    """

    name: str
    stage: str
    applies: Callable[[Geometry], str]
    measure: Callable[[Trace, int], _Found]


def _checked(trace: Trace, layer: int, row: _Invariant, attempts: Attempts) -> InvariantCheck:
    def check(outcome: InvariantOutcome, sentence: str, size: float = math.nan) -> InvariantCheck:
        return InvariantCheck(
            invariant=row.name, layer=layer, stage=row.stage, outcome=outcome, sentence=sentence, size=size
        )

    if why := row.applies(trace.geometry):
        return check(InvariantOutcome.NOT_APPLICABLE, why)
    with attempts.trying(f"the invariant {row.name}", Key(layer, row.stage)), np.errstate(all="ignore"):
        try:
            found = row.measure(trace, layer)
        except _Unmeasured as reason:
            return check(InvariantOutcome.NOT_CHECKED, str(reason))
        outcome = InvariantOutcome.VIOLATED if found.ratio > 1 else InvariantOutcome.HOLDS
        return check(outcome, found.sentence, found.size)
    return check(InvariantOutcome.NOT_CHECKED, "the check broke down")


def _values(trace: Trace, layer: int, name: str) -> F64:
    """Return a stage with all its tokens, in canonical shape."""
    array = trace.stages.get(Key(layer, name))
    if array is None:
        raise _Unmeasured(f"{name} was not captured")
    if Layout.LAST_TOKEN in array.layout and STAGES[name].axes[0] == "tokens" and len(trace.tokens) > 1:
        raise _Unmeasured(f"only the last token of {name} was captured")
    try:
        values = canonical(array, Key(layer, name), trace.geometry, trace.passes).astype(np.float64)
    except TraceError as error:
        raise _Unmeasured(error.what) from error
    if not np.isfinite(values).any():
        raise _Unmeasured(f"no value of {name} is finite")
    first = _first_row(trace.passes)
    if STAGES[name].axes[0] == "tokens":
        return values.reshape(trace.passes.rows, -1)[first:]
    return values[:, first:] if name in SQUARES else values


def _first_row(passes: Passes) -> int:
    """Return the first recorded row that is no padding, which may hold anything."""
    return max(passes.padding - passes.unseen, 0)


def _before_rope(trace: Trace, layer: int) -> F64:
    return _values(trace, layer, "qkv_bias" if trace.geometry.qkv_bias else "qkv_matmul")


def _coarsest_unit(trace: Trace) -> float:
    """Return the unit roundoff of the coarsest format that a value went through."""
    return max(store_of(trace), saved_unit(trace))


def _worst(deviation: F64, allowed: F64) -> tuple[float, tuple[int, ...]]:
    """Return the largest |deviation| / allowed over finite values, and where it is."""
    ratio = np.abs(deviation) / allowed
    ratio = np.where(np.isfinite(deviation), ratio, -1.0)
    if not np.any(ratio >= 0):
        raise _Unmeasured("no value is finite")
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return float(ratio[at]), tuple(int(index) for index in at)


def _rows(trace: Trace, layer: int) -> _Found:
    """Measure the sums: each weight is rounded once to its store, exp and sum as ``floor`` counts them."""
    weights = _values(trace, layer, "attn_softmax")
    total = np.sum(weights, axis=-1)
    stored = np.sqrt(np.sum(np.square(weights), axis=-1)) * _coarsest_unit(trace) / math.sqrt(3)
    stored = stored + math.sqrt(weights.shape[-1]) * smallest_rounding(_coarsest_unit(trace))
    computed = np.abs(total) * UNIT * (math.sqrt(weights.shape[-1]) / 3 + FEW)
    ratio, at = _worst(total - 1, LIMIT * np.hypot(stored, computed) + TINY)
    size = abs(float(total[at]) - 1)
    wrong = np.count_nonzero(np.abs(total - 1) > LIMIT * np.hypot(stored, computed))
    sentence = (
        f"{wrong} of {total.size} rows of softmax do not sum to 1; head {at[0]}, "
        f"token {at[1] + trace.passes.unseen + _first_row(trace.passes)} "
        f"sums to {total[at]:.8g}"
        if ratio > 1
        else f"rows of softmax sum to 1 within {size:.1e}"
    )
    return _Found(ratio=ratio, size=size, sentence=sentence)


def _mask(trace: Trace, layer: int) -> _Found:
    """Measure weights on keys that a token may not see; a correct mask leaves exact zeros there."""
    weights = _values(trace, layer, "attn_softmax")
    tokens, window = weights.shape[-1], trace.geometry.windows[layer]
    if tokens == 1:
        raise _Unmeasured("one token sees all there is")
    first = trace.passes.unseen + _first_row(trace.passes)
    hidden = ~trace.passes.visible(window)[first:]
    seen = np.where(hidden, np.nan_to_num(weights, nan=0.0, posinf=np.inf), 0.0)
    ratio, (head, row, key) = _worst(seen, np.full(seen.shape, TINY))
    size, token = float(np.max(np.abs(seen))), first + row
    place = "a later token" if key > token else f"a token outside its window of {window}"
    place = "which is padding" if key < trace.passes.padding else place
    sentence = (
        f"head {head}: token {token} gives {seen[head, row, key]:.3g} of its weight to token {key}, {place}"
        if ratio > 1
        else "no weight on what a token may not see"
    )
    return _Found(ratio=ratio, size=size, sentence=sentence)


def _pair_lengths(role: str) -> Callable[[Trace, int], _Found]:
    """Measure the lengths of rotary pairs: cos, sin, two products and a sum are rounded, and the store."""

    def measure(trace: Trace, layer: int) -> _Found:
        geometry = trace.geometry
        after = _values(trace, layer, f"{role}_post_rope")
        start = 0 if role == "q" else geometry.heads * geometry.head_dim
        before = _before_rope(trace, layer)[:, start : start + after.shape[1]]
        width, first = geometry.rope_at(layer).width(geometry.head_dim), geometry.rotary_start(layer)
        before, after = (_rotated_part(x, geometry.head_dim, first, width) for x in (before, after))
        ratio, size, at = _lengths(before, after, width, _coarsest_unit(trace))
        if ratio <= 1:
            sentence = f"RoPE leaves the length of {role}'s pairs within {size:.1e}"
            return _Found(ratio=ratio, size=size, sentence=sentence)
        sentence = (
            f"RoPE changes the length of {role}'s pairs, by {size:.2g} of it at token {at[0]}, head {at[1]}"
        )
        pairs = [_interleaved(x, width) for x in (before, after)]
        held, *_ = _lengths(pairs[0], pairs[1], width, _coarsest_unit(trace))
        if held <= 1:
            sentence += "; the pairs (0, 1), (2, 3) ... keep theirs: those are rotated"
        return _Found(ratio=ratio, size=size, sentence=sentence)

    return measure


def _rotated_part(x: F64, head_dim: int, start: int, width: int) -> F64:
    """Return the channels of each head that are rotated, ``width`` of them from ``start`` on."""
    if width == head_dim:
        return x
    return x.reshape(len(x), -1, head_dim)[..., start : start + width].reshape(len(x), -1)


def _lengths(before: F64, after: F64, head_dim: int, store: float) -> tuple[float, float, tuple[int, ...]]:
    """Return the worst ratio, that change of length relative to it, and its place."""
    old, new = (
        np.hypot(*np.moveaxis(x.reshape(len(x), -1, 2, head_dim // 2), 2, 0)) for x in (before, after)
    )
    allowed = LIMIT * old * math.hypot(2 * UNIT, math.sqrt(2 / 3) * max(store, UNIT))
    allowed += LIMIT * 2 * smallest_rounding(store) + TINY
    ratio, at = _worst(new - old, allowed)
    return ratio, abs(float(new[at] - old[at])) / max(float(old[at]), TINY), at


def _interleaved(x: F64, head_dim: int) -> F64:
    """Bring neighbouring pairs to where half-split ones lie."""
    return x.reshape(len(x), -1, head_dim // 2, 2).swapaxes(-1, -2).reshape(x.shape)


def _first_value(trace: Trace, layer: int) -> _Found:
    """Measure the first token's output against its V, which a cache may have rounded (``rules``)."""
    geometry = trace.geometry
    if trace.passes.unseen > trace.passes.padding:
        raise _Unmeasured("the first token was not recorded")
    mixed = _values(trace, layer, "attention")[0].reshape(geometry.heads, -1)
    own = values_of(_before_rope(trace, layer), geometry)
    found = [_mixed_as(trace, rule, mixed, own) for rule in RULES[Operation.MIX]]
    best = min(found, key=lambda entry: entry.ratio)
    return best if best.ratio <= 1 else found[0]


def _mixed_as(trace: Trace, rule: Rule, mixed: F64, own: F64) -> _Found:
    """Measure the first token's output against what ``rule`` leaves of ``own``, all tokens' V [S, K * Dv]."""
    geometry = trace.geometry
    own = own if rule.by_head else own[:1]  # a scale may be shared by all tokens
    if geometry.value_dim % rule.block:
        return _Found(ratio=math.inf, size=math.inf, sentence="")
    held = rule.held_right(own, geometry.kv_heads, geometry.value_dim)
    values = held[0].reshape(geometry.kv_heads, -1)
    expected = np.repeat(values, geometry.heads // geometry.kv_heads, axis=0)
    allowed = LIMIT * np.abs(expected) * (UNIT * FEW + max(_coarsest_unit(trace), UNIT)) + TINY
    if rule.rotated:
        allowed += LIMIT * turning_noise(expected)
    if rule.edges is not None:
        off = rule.edges(own)[0].reshape(geometry.kv_heads, -1)
        allowed += LIMIT * np.repeat(off, geometry.heads // geometry.kv_heads, axis=0)
    ratio, at = _worst(mixed - expected, allowed)
    finite = np.isfinite(mixed)
    left = float(np.linalg.norm((mixed - expected)[finite]))
    size = left / max(float(np.linalg.norm(expected[finite])), TINY)
    sentence = f"the first token's attention is its V ({rule.name}) within {size:.1e}"
    if ratio > 1:
        sentence = f"the first token's attention is not its V: head {at[0]} differs, relative L2 {size:.2g}"
        sentence += _other_heads(mixed, values, allowed)
    return _Found(ratio=ratio, size=size, sentence=sentence)


def _other_heads(mixed: F64, values: F64, allowed: F64) -> str:
    """Say which kv heads the query heads read instead, where each reads one whole."""
    close = np.abs(mixed[:, None] - values[None]) <= np.max(allowed)
    fits = np.all(close, axis=-1)
    if not fits.any(axis=1).all():
        return ""
    return f"; query heads read the kv heads {', '.join(map(str, np.argmax(fits, axis=1)))}"


def _always(geometry: Geometry) -> str:
    return ""


def _plain_rope(geometry: Geometry) -> str:
    if has_stage("q_norm", geometry, 0):
        return "q and k pass a norm between projection and RoPE"
    _, factor = rope_frequencies(geometry.rope, geometry.head_dim)
    return "" if factor == 1.0 else f"RoPE multiplies with an attention factor of {factor:.5g}"


def _no_sinks(geometry: Geometry) -> str:
    return "a sink takes a part of every row of softmax" if geometry.sinks else ""


def _table() -> Iterator[_Invariant]:
    yield _Invariant(name="softmax-rows", stage="attn_softmax", applies=_no_sinks, measure=_rows)
    yield _Invariant(name="mask", stage="attn_softmax", applies=_always, measure=_mask)
    for role in "qk":
        yield _Invariant(
            name="rope-length", stage=f"{role}_post_rope", applies=_plain_rope, measure=_pair_lengths(role)
        )
    yield _Invariant(name="first-value", stage="attention", applies=_no_sinks, measure=_first_value)


TABLE: tuple[_Invariant, ...] = tuple(_table())
"""The invariants, in forward order but for the mask."""
