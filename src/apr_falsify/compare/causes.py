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
from apr_falsify.compare.variations import projected
from apr_falsify.compare.variations.case import F64, Case, Guess, Variation, open_case
from apr_falsify.compare.variations.table import MISREAD_WEIGHTS, TABLE, TURNING
from apr_falsify.errors import ModelError
from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import Rule

_T = TypeVar("_T")

NEAREST = 0.1
"""A cause that does not fit is named as the nearest one where it leaves at most this share of the error."""

_CLEARLY = 0.5
"""A less plausible cause is nearer only where it leaves at most this share of what a likelier one leaves."""


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
    return case.rope.kind != "none" or variation.name not in TURNING


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
