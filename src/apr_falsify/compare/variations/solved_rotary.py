"""Rotations solved for: how many channels turn, where each token stands, how fast each pair turns, how long.

Su et al. 2021: pair p at position t is multiplied with m * exp(i * t * f_p). The captured pairs over those
before the rotation give t * f_p and m; one of t, f_p, m and the number of pairs is solved for, and the others
are the model's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.positions import position_words, run_on_words
from apr_falsify.compare.variations.turning import (
    angles,
    declared,
    frequencies_under,
    length,
    positions_of,
    rotated_guess,
    unrotated,
)
from apr_falsify.operators.rotation import farthest

_SAME = 1e-3
"""A measured factor as near to another as this is that one."""

_DIGITS = (2, 3, 4, 6)
"""To how many digits a measured parameter is rounded, the roundest first."""


def other_share(case: Case) -> Iterator[Guess]:
    """Yield the rotation of another share of each head: of its first r channels, or of its first pairs.

    What turns is read off: r is one more than the last channel that any head of any token has changed.
    """
    size, own = case.geometry.head_dim, declared(case)
    pairs, measured = len(own.frequencies), 2 * math.ceil(_moved_channels(case) / 2)
    whole = 2 * pairs == size
    where = "last" if case.geometry.rotary_start(case.layer) else "first"
    instead = "" if whole else f"the model rotates the {where} {2 * pairs} of {size}"
    quarters = (size // 4 * 2, size // 8 * 2, size // 8 * 6, size)
    for r in dict.fromkeys((*quarters, measured, measured + 2)):
        if not 2 <= r <= size or r == 2 * pairs:
            continue
        says = f"{'only ' if whole else ''}the {where} {r} of {size} channels of each head rotated"
        says = "each head rotated as a whole" if r == size else says
        for (how, frequencies), factor in itertools.product(_over(case, r), _factors(own.factor)):
            turn = replace(own, frequencies=frequencies, factor=factor)
            yield rotated_guess(case, f"{says}{how}", turn, instead)
    for count in dict.fromkeys((pairs // 2, pairs // 4, pairs // 4 * 3, _moved_pairs(case, pairs))):
        if 1 <= count < pairs:
            kept = np.where(np.arange(pairs) < count, own.frequencies, 0.0)
            says = f"only the first {count} of {pairs} pairs rotated"
            yield rotated_guess(case, says, replace(own, frequencies=kept), instead)


def _factors(own: float) -> Iterator[float]:
    """Yield the model's attention factor, and none: it may be left out together with what it comes with."""
    yield from dict.fromkeys((own, 1.0))


def _over(case: Case, r: int) -> Iterator[tuple[str, F64]]:
    """Yield the frequencies of r rotated channels: as if they were a head, and as those of a whole one."""
    size, theta = case.geometry.head_dim, case.rope.theta
    steps = np.arange(0, r, 2, dtype=np.float64)
    yield "", theta ** -(steps / r)
    if r < size:
        yield ", by the frequencies of a whole head,", theta ** -(steps / size)


def _changed(case: Case) -> npt.NDArray[np.bool_]:
    """Return which channels of a head are other than before the rotation: [D]."""
    before, sigma = case.shaped(unrotated(case)), case.shaped_sigma
    allowed = case.limit * sigma + np.abs(before) * case.replayer.unit_of(case.key)
    changed = np.abs(np.nan_to_num(case.subject) - before) > allowed
    return np.asarray(changed.reshape(-1, case.geometry.head_dim).any(axis=0))


def _moved_channels(case: Case) -> int:
    if case.geometry.kv_latent:  # which rotates the last ones
        return len(_changed(case)) - int(np.min(np.flatnonzero(_changed(case)), initial=len(_changed(case))))
    return int(np.max(np.flatnonzero(_changed(case)), initial=-1)) + 1


def _moved_pairs(case: Case, pairs: int) -> int:
    changed = _changed(case)
    start = case.geometry.rotary_start(case.layer)
    either = changed[start : start + pairs] | changed[start + pairs : start + 2 * pairs]
    return int(np.max(np.flatnonzero(either), initial=-1)) + 1


def other_longrope(case: Case) -> Iterator[Guess]:
    """Yield longrope (Ding et al. 2024) with the divisors of runs of the other length."""
    rope, own = case.rope, declared(case)
    if rope.kind != "longrope":
        return
    tokens = farthest(case.replayer.trace.passes.at)
    context = rope.parameters["original_max_position_embeddings"]
    long = tokens > context
    says = "the short factors for the long ones" if long else "the long factors for the short ones"
    swapped = replace(rope, divisors=rope.long_divisors, long_divisors=rope.divisors)
    frequencies, _ = frequencies_under(case, swapped)
    where = "beyond" if long else "within"
    instead = f"{tokens} tokens are {where} the original context of {context:g}"
    for factor in _factors(own.factor):
        without = "" if factor == own.factor else " and no attention factor"
        turn = replace(own, frequencies=frequencies, factor=factor)
        yield rotated_guess(case, f"{says}{without}", turn, instead)


def other_length(case: Case) -> Iterator[Guess]:
    """Yield the rotation with the attention factor that the rotated pairs have.

    Where whole heads turn that is the stage times a factor, and is called so unless it is the attention
    factor of a round longrope factor s, sqrt(1 + ln s / ln context), or yarn factor s, 1 + ln s / 10.
    """
    own, measured = declared(case), length(case)
    if measured is None or measured == 0 or abs(measured / own.factor - 1) < _SAME / 10:
        return
    told = _scaling_of(case, measured)
    if told is None and case.rope.share == 1:
        return
    means = "" if told is None else f" (that of {case.rope.kind} with factor {told[0]:g})"
    for factor in _rounded(measured) if told is None else (told[1],):
        says = f"the attention factor {factor:.5g} for {own.factor:.5g}{means}"
        yield rotated_guess(case, says, replace(own, factor=factor))


def _rounded(value: float) -> list[float]:
    return list(dict.fromkeys([*(float(f"{value:.{digits}g}") for digits in _DIGITS), value]))


def _scaling_of(case: Case, measured: float) -> tuple[float, float] | None:
    """Return the round scaling factor that gives a measured attention factor, and that one exactly."""
    context = case.rope.parameters.get("original_max_position_embeddings", 0.0)
    if case.rope.kind == "longrope" and 1 < measured < _LONGEST:
        factor = float(f"{math.exp((measured**2 - 1) * math.log(context)):.3g}")
        exact = math.sqrt(1 + math.log(factor) / math.log(context))
    elif case.rope.kind == "yarn" and 1 < measured < _LONGEST:
        factor = float(f"{math.exp((measured - 1) * 10):.3g}")
        exact = 1 + 0.1 * math.log(factor)
    else:
        return None
    return (factor, exact) if abs(exact - measured) < _SAME * _SAME else None


_LONGEST = 3.0
"""No scaling has a longer attention factor."""

_FARTHEST = 8192
_MOST_TOKENS = 1024
"""In longer runs each token's position is not looked for: every one is compared with all positions."""
_AT_ONCE = 64


def other_positions(case: Case) -> Iterator[Guess]:
    """Yield the rotation with each token at the whole position that its own angles have."""
    own, right = declared(case), positions_of(case)
    fewest = 1 if case.replayer.trace.passes.unseen else 2
    if not fewest <= len(right) <= _MOST_TOKENS or not np.any(own.frequencies):
        return
    found = _positions(case, own.frequencies)
    if np.array_equal(found, right):
        return
    positions = own.positions.copy()
    positions[-len(found) :] = found
    says = position_words(right, found)
    instead = run_on_words(right, found, case.replayer.trace.passes) or "token t stands at position t"
    yield rotated_guess(case, says, replace(own, positions=positions), instead)


def _positions(case: Case, frequencies: F64) -> F64:
    """Return the p that maximises Re sum_pairs(z * exp(-i p f)) for each token, z what rotated it."""
    phases, weights = angles(case)
    z = weights * np.exp(1j * phases)
    candidates = np.arange(-_FARTHEST, _FARTHEST)
    back = np.exp(-1j * np.outer(frequencies, candidates))
    chunks = [(z[at : at + _AT_ONCE] @ back).real for at in range(0, len(z), _AT_ONCE)]
    return np.concatenate([candidates[np.argmax(chunk, axis=1)] for chunk in chunks]).astype(np.float64)


def other_frequencies(case: Case) -> Iterator[Guess]:
    """Yield the rotation with each pair at the frequency that its angles have."""
    own, phases = declared(case), angles(case)[0]
    if len(phases) < 3 or len(phases) != len(case.expected):
        return
    frequencies = _frequencies(case)
    with np.errstate(divide="ignore"):
        divisors = [f"{divisor:.4g}" for divisor in own.frequencies / frequencies]
    measured = length(case)
    says = f"pairs at frequencies of their own, the model's divided by {_shortened(divisors)},"
    for factor in dict.fromkeys((own.factor, 1.0, measured or 1.0)):
        longer = "" if factor == own.factor else f" and the attention factor {factor:.5g}"
        yield rotated_guess(case, f"{says}{longer}", replace(own, frequencies=frequencies, factor=factor))


def _frequencies(case: Case) -> F64:
    """Return the frequency of each pair: the angle at position 1, then by least squares over all tokens."""
    phases, weights = angles(case)
    positions = positions_of(case)[:, None]
    found = phases[1].copy()
    for upto in itertools.chain(_doubled(len(phases)), (len(phases),) * 2):
        t, w = positions[:upto], weights[:upto]
        left = np.angle(np.exp(1j * (phases[:upto] - t * found)))
        energy = np.sum(w * t**2, axis=0)
        found = found + np.where(energy > 0, np.sum(w * t * left, axis=0) / np.maximum(energy, 1e-300), 0.0)
    return np.asarray(found)


def _doubled(tokens: int) -> Iterator[int]:
    """Yield 2, 4, 8 ... tokens: far ones turn by whole turns more, which near ones must tell first."""
    upto = 2
    while upto < tokens:
        yield upto
        upto *= 2


_LISTED = 4


def _shortened(words: list[str]) -> str:
    shown = words if len(words) <= 2 * _LISTED else [*words[:_LISTED], "...", words[-1]]
    return ", ".join(shown).replace(", ..., ", " ... ")
