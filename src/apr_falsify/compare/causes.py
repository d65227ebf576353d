"""Named explanations of a stage that introduces an error, and where such an error sits.

A cause is a *variation* of the replay - other geometry, weights, inputs, formula, or a change of the result -
under which the subject is within the floor, under the same arithmetic. The table of variations is closed; its
order is the order of plausibility, and the first that fits is the answer. Variations that only change
the result or a cheap formula come first; those that multiply with the weights again run only when no
other fits, and only on weights of at most ``projected.MOST_VALUES`` values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.cause import Cause
from apr_falsify.compare.excess import excess_of
from apr_falsify.compare.replay import Replayer, is_mixed
from apr_falsify.compare.site import WeightsNeeded
from apr_falsify.compare.variations import (
    attend,
    biases,
    cached,
    caps,
    common,
    experts,
    feedforward,
    fused,
    head_norms,
    multipliers,
    norms,
    places,
    projected,
    quantised,
    rescaled,
    residual,
    rotary,
    routing,
    sinks,
    solved_rotary,
    stored,
    table_rows,
    turning,
)
from apr_falsify.compare.variations.case import F64, Case, Guess, Variation, open_case
from apr_falsify.errors import ModelError
from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import Rule

_T = TypeVar("_T")

NEAREST = 0.1
"""A cause that does not fit is named as the nearest one where it leaves at most this share of the error."""

_CLEARLY = 0.5
"""A less plausible cause is nearer only where it leaves at most this share of what a likelier one leaves."""


_RESIDUALS = residual.STAGES
_QKV = ("qkv_matmul", "qkv_bias")
_MIXED = ("attn_scores", "attention")
_HEADED = (*_QKV, *turning.ROTATED, "attn_scores", "attn_softmax", "attention")
_REWEIGHED = tuple(projected.WEIGHTED)

_TURNING = (
    "rope-base",
    "rope-direction",
    "rope-not-applied",
    "rope-pairing",
    "rope-partial",
    "rope-position",
    "rope-scaling",
    "rotary-order",
)
"""Variations of a rotation, where a model has one."""

MISREAD_WEIGHTS = Variation(
    name="misread-weights", stages=_REWEIGHED, guesses=quantised.misread_weights, multiplies=True
)


def _of_router(
    name: str,
    stages: Sequence[str],
    guesses: Callable[[Case], Iterator[Guess]],
    where: Callable[[Case], bool] = routing.is_routed,
) -> Variation:
    return Variation(name=name, stages=stages, where=where, guesses=guesses, mixed=True)


def _of_experts(
    name: str,
    guesses: Callable[[Case], Iterator[Guess]],
    where: Callable[[Case], bool] = experts.is_mixture,
) -> Variation:
    return Variation(name=name, stages=experts.STAGES, where=where, guesses=guesses, mixed=True)


TABLE: tuple[Variation, ...] = (
    # What changes one thing and has no free parameter, or one that is rounded.
    Variation(name="bias", stages=tuple(biases.BIASED), guesses=biases.measured_bias),
    Variation(
        name="multiplier",
        stages=multipliers.STAGES,
        where=multipliers.is_declared,
        guesses=multipliers.named_multiplier,
    ),
    _of_router("router-weights", routing.WEIGHED, routing.other_weights),
    _of_router("expert-choice", routing.CHOSEN, routing.other_choice),
    _of_experts("shared-expert", experts.other_shared, where=experts.has_shared),
    _of_experts("expert-form", experts.other_form, where=experts.has_own_form),
    _of_router("routed-scale", routing.WEIGHED, experts.measured_scale, where=experts.has_scale),
    Variation(name="factor", guesses=common.named_factor),
    Variation(name="rope-applied", stages=turning.ROTATED, guesses=rotary.applied),
    Variation(name="rope-base", stages=turning.ROTATED, guesses=rotary.other_base),
    Variation(name="rope-pairing", stages=turning.ROTATED, guesses=rotary.other_pairing),
    Variation(name="rope-direction", stages=turning.ROTATED, guesses=rotary.other_direction),
    Variation(name="rope-position", stages=turning.ROTATED, guesses=rotary.other_positions),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rotary.other_scaling),
    Variation(name="rope-base", stages=turning.ROTATED, guesses=rotary.other_base_unscaled),
    Variation(name="rope-partial", stages=turning.ROTATED, guesses=solved_rotary.other_share),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rotary.invented_scaling),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rescaled.measured_yarn),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rescaled.measured_stretch),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_longrope),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_length),
    Variation(name="rope-position", stages=turning.ROTATED, guesses=solved_rotary.other_positions),
    Variation(name="head-norm", stages=head_norms.STAGES, guesses=head_norms.other_head_norm),
    Variation(name="qkv-order", stages=turning.ROTATED, guesses=rotary.other_part),
    Variation(name="missing-bias", stages=(*turning.ROTATED, "attention"), guesses=biases.composed_bias),
    Variation(name="other-bias", stages=("qkv_bias",), guesses=biases.other_bias),
    Variation(name="fused-attention", stages=("attention",), where=fused.is_fused, guesses=fused.inside),
    Variation(name="head-mapping", stages=_MIXED, where=attend.is_apart, guesses=attend.other_mapping),
    Variation(name="rope-not-applied", stages=("attn_scores",), guesses=attend.unrotated_scores),
    Variation(name="layout", stages=("attn_scores",), guesses=attend.masked_scores),
    Variation(name="mask", stages=("attn_softmax",), guesses=attend.of_scores(attend.other_mask)),
    Variation(name="sinks", where=sinks.has_sinks, guesses=attend.of_scores(sinks.other_sinks)),
    Variation(name="padding", stages=("attn_softmax",), guesses=attend.of_scores(attend.padding)),
    Variation(name="softmax-axis", stages=("attn_softmax",), guesses=attend.of_scores(attend.other_axis)),
    Variation(name="temperature", stages=("attn_softmax",), guesses=attend.of_scores(attend.temperature)),
    Variation(name="mixing", stages=("attention",), where=attend.is_apart, guesses=attend.other_mixing),
    Variation(name="swapped-gate-up", stages=("ffn_silu", "ffn_swigl"), guesses=feedforward.swapped_gate_up),
    Variation(name="activation", stages=("ffn_silu", "ffn_swigl"), guesses=feedforward.other_activation),
    Variation(name="gate-product", stages=("ffn_swigl",), guesses=feedforward.other_product),
    Variation(name="residual", stages=_RESIDUALS, guesses=residual.measured_residual),
    Variation(name="residual-source", stages=_RESIDUALS, guesses=residual.other_stream),
    Variation(name="epsilon", where=norms.is_norm, guesses=norms.usual_epsilon),
    Variation(name="norm-form", where=norms.is_norm, guesses=norms.wrong_form),
    Variation(name="norm-input", where=norms.is_norm, guesses=norms.wrong_input),
    Variation(name="qkv-order", stages=_QKV, guesses=projected.other_order),
    Variation(name="rotary-order", stages=(*_QKV, *turning.ROTATED), guesses=projected.rotary_order),
    Variation(name="next-step-included", where=projected.is_product, guesses=projected.other_use),
    Variation(name="soft-cap", stages=caps.STAGES, guesses=caps.soft_capped),
    Variation(name="precision", guesses=stored.fewer_bits),
    # What has a free parameter.
    Variation(
        name="multiplier",
        stages=multipliers.STAGES,
        where=multipliers.is_declared,
        guesses=multipliers.measured_multiplier,
    ),
    _of_experts("shared-expert", experts.measured_part, where=experts.has_shared),
    Variation(name="factor", guesses=common.any_factor),
    Variation(name="factor", stages=_QKV, guesses=common.part_factor),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_frequencies),
    Variation(name="epsilon", where=norms.is_norm, guesses=norms.measured_epsilon),
    Variation(name="head-norm", stages=head_norms.STAGES, guesses=head_norms.measured_epsilon),
    Variation(name="clipped", guesses=stored.clipped),
    # What stands in another place.
    Variation(name="moved-tokens", guesses=common.moved_tokens),
    Variation(name="moved-heads", stages=_HEADED, guesses=common.moved_heads),
    Variation(name="moved-channels", where=projected.is_product, guesses=common.moved_channels),
    Variation(
        name="heads-before-tokens",
        stages=(*turning.ROTATED, "attn_scores", "attn_softmax", "attention"),
        guesses=common.heads_before_tokens,
    ),
    *cached.OF_A_BATCH,
    Variation(name="stale-cache", stages=("attn_scores",), guesses=common.stale_inputs),
    Variation(name="stale-cache", stages=("attention",), where=attend.is_apart, guesses=attend.stale_values),
    *cached.OF_SOME_KEYS,
    *table_rows.OF_THE_EMBEDDING,
    # What is wrong in one place alone.
    Variation(name="one-place", guesses=places.one_place_by_a_factor),
    Variation(
        name="one-input-channel",
        where=projected.is_product_of_all_tokens,
        guesses=projected.one_input_channel,
    ),
    _of_experts("one-expert", experts.one_expert),
    # What multiplies with weights again.
    _of_experts("swapped-gate-up", experts.swapped_gate_up),
    Variation(name="norm-form", where=norms.is_norm_of_product, guesses=norms.of_product, multiplies=True),
    Variation(name="other-weights", stages=_REWEIGHED, guesses=projected.sibling_weights, multiplies=True),
    Variation(
        name="neighbour-weights", stages=_REWEIGHED, guesses=projected.neighbour_weights, multiplies=True
    ),
    Variation(
        name="transposed", where=projected.is_product, guesses=projected.transposed_weights, multiplies=True
    ),
    Variation(name="other-input", where=projected.is_product, guesses=projected.other_input, multiplies=True),
    MISREAD_WEIGHTS,
    Variation(name="weight-type", stages=_REWEIGHED, guesses=quantised.quantised_weights, multiplies=True),
    # What is wrong in one place alone, for no reason that is known.
    _of_experts("one-expert", experts.one_expert_somehow),
    Variation(name="one-place", guesses=places.one_place),
    # What fits much, and is named last.
    Variation(name="other-weight-vector", where=norms.is_norm, guesses=common.own_factor_per_channel),
    Variation(name="factor-per-token", guesses=common.own_factor_per_token),
    Variation(name="constant-offset", stages=(*biases.BIASED, *_RESIDUALS), guesses=common.constant_offset),
)
"""The closed table of causes, in the order in which they are tried."""


def explain(
    replayer: Replayer,
    key: Key,
    rule: Rule,
    subject: F64,
    limit: float,
    *,
    likely: Sequence[Cause] = (),
    search: bool = True,
    attempts: Attempts = LOUD,
) -> Cause | None:
    """Return the first cause that fits; else the one that comes near; ``None`` for neither.

    Args:
        replayer: replays the subject's trace.
        key: a captured stage of it.
        rule: the arithmetic that explains the runtime's stages of this kind.
        subject: the captured stage in canonical shape.
        limit: how many sigma (``compare.floor``) a correct value may be off.
        likely: causes of the same stage in other layers: one that fits here in the same words is the answer.
        search: whether to look through the table where none of those fits; else they may fit in other words.
        attempts: notes the causes that break down.

    A run of one token leaves several causes alike: the first is named, and which others fit as well. Values
    that are not finite are left out, and counted in the sentence.

    """
    with np.errstate(all="ignore"):
        case = open_case(replayer, key, rule, subject, limit)
        if case is None:
            return None
        found = _again(case, likely, attempts, in_same_words=search)
        if found is None and (search or not case.exceeds.any()):
            found = _explained(case, attempts)
    return None if found is None else _with_nonfinite(found, case)


def is_misread(
    replayer: Replayer, key: Key, rule: Rule, subject: F64, limit: float, attempts: Attempts = LOUD
) -> bool:
    """Whether a captured stage is what its inputs make it with its quantised weights understood otherwise."""
    with np.errstate(all="ignore"):
        case = open_case(replayer, key, rule, subject, limit)
        return case is not None and any(
            cause.fits for cause in _tried(case, (MISREAD_WEIGHTS,), attempts, _judged)
        )


def _again(case: Case, likely: Sequence[Cause], attempts: Attempts, *, in_same_words: bool) -> Cause | None:
    """Return the first of ``likely`` that fits this case too; one token leaves too much alike to say so."""
    if len(case.replayer.trace.tokens) == 1 or not case.exceeds.any():
        return None
    for known in likely:
        rows = () if known.row is None else (TABLE[known.row],)
        judge = partial(_judged_as, known.says) if in_same_words else _judged
        for cause in _tried(case, rows, attempts, judge):
            if cause is not None and cause.fits:
                return cause
    return None


def _explained(case: Case, attempts: Attempts) -> Cause | None:
    right = Guess(says="the replay", values=case.expected, sigma=case.sigma)
    if not case.exceeds.any():
        nothing = Cause(name="", sentence="everything else fits", residual=case.residual(right), fits=True)
        return _of_what_is_small(case, right, attempts) or nothing
    best: Cause | None = None
    fitting: list[Cause] = []
    for cause in _tried(case, TABLE, attempts, _judged):
        if cause.fits:
            fitting.append(cause)
            if len(case.replayer.trace.tokens) > 1:
                break
        elif not best or cause.residual < _CLEARLY * best.residual:
            best = cause
    if fitting:
        return _with_others(fitting)
    return best if best and best.residual <= NEAREST * case.residual(right) else None


def _of_what_is_small(case: Case, right: Guess, attempts: Attempts) -> Cause | None:
    """Return the first cause of an error that no value shows alone, but many together do."""
    most = _CLEARLY * case.residual(right)
    if len(case.replayer.trace.tokens) == 1 or excess_of(*case.sized(right)) <= 1:
        return None
    tried = _tried(case, TABLE, attempts, partial(_judged_together, most))
    return next((cause for cause in tried if cause is not None), None)


def _tried(
    case: Case,
    rows: Sequence[Variation],
    attempts: Attempts,
    judge: Callable[[Case, Variation, Guess], _T],
) -> Iterator[_T]:
    """Yield what ``judge`` says of each guess; a variation that breaks down is noted, and the next one tried.

    A hypothesis about something that this model or this trace does not have is no breakdown.
    """
    for variation in rows:
        if not variation.applies(case):
            continue
        with attempts.trying(f"the cause {variation.name}", case.key), suppress(WeightsNeeded, ModelError):
            if (
                not variation.applies(case)
                or not _applies(case, variation)
                or (variation.multiplies and not projected.small(case))
            ):
                continue
            for guess in variation.guesses(case):
                yield judge(case, variation, guess)


def _applies(case: Case, variation: Variation) -> bool:
    """Whether a variation's formula holds in this family: within a mixture, or where nothing is rotated."""
    if is_mixed(case.key, case.geometry):
        return variation.mixed or variation.of_all_stages
    return case.rope.kind != "none" or variation.name not in _TURNING


def _judged(case: Case, variation: Variation, guess: Guess) -> Cause:
    residual, fits = case.residual(guess), case.fits(guess)
    verb = "fits" if fits else "comes nearest, without fitting"
    after = f"; {guess.instead}" if guess.instead else ""
    sentence = f"{guess.says} {verb} (residual {residual:.0e}){after}"
    return Cause(
        name=guess.name or variation.name,
        sentence=sentence,
        residual=residual,
        fits=fits,
        says=guess.says,
        row=TABLE.index(variation),
    )


def _judged_as(says: str, case: Case, variation: Variation, guess: Guess) -> Cause | None:
    """Judge a guess in these words alone."""
    return _judged(case, variation, guess) if guess.says == says else None


def _judged_together(most: float, case: Case, variation: Variation, guess: Guess) -> Cause | None:
    """Judge a guess by all values together: ``None`` where more than ``most`` is left, or it shows."""
    cause = _judged(case, variation, guess)
    small = cause.residual < most and excess_of(*case.sized(guess)) <= 1
    return cause if small else None


def _with_others(fitting: Sequence[Cause]) -> Cause:
    first = fitting[0]
    others = [name for name in dict.fromkeys(cause.name for cause in fitting) if name != first.name]
    if not others:
        return first
    return replace(first, sentence=f"{first.sentence}; one token cannot tell it from: {', '.join(others)}")


def _with_nonfinite(found: Cause, case: Case) -> Cause | None:
    wrong = np.isfinite(case.shaped(case.expected)) & ~np.isfinite(case.subject)
    count = int(np.count_nonzero(wrong))
    if not count:
        return found if found.name else None
    if not found.name and _overflows(case, wrong):
        beyond = (
            f"{count} of {wrong.size} values are infinite: they were beyond {_LARGEST_F16:g}, the end of f16"
        )
        return replace(found, name="overflow", sentence=f"{beyond}; {found.sentence}")
    said = f"{count} of {wrong.size} values are not finite; {found.sentence}"
    return replace(found, name=found.name or "not-finite", sentence=said)


_LARGEST_F16 = 65504.0


def _overflows(case: Case, wrong: npt.NDArray[np.bool_]) -> bool:
    """Whether an f16 run has infinities where its values, or scores before their scale, are beyond f16."""
    if case.replayer.store != FORMATS["f16"].unit_roundoff or not np.isinf(case.subject[wrong]).all():
        return False
    before = case.geometry.attn_scale_at(case.layer) if case.name == "attn_scores" else 1.0
    sizes = np.abs(case.shaped(case.expected)[wrong]) / min(before, 1.0)
    return bool(np.all(sizes >= _LARGEST_F16 * (1 - case.limit * case.replayer.store)))
