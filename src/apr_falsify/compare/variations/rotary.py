"""What goes wrong in RoPE: base, scaling, pairs, direction, positions, and what is rotated.

Su et al. 2021: pair p of a head, a complex number, is multiplied with exp(i * t * f_p) at position t. So the
angles that a runtime used can be read off: they are the argument of subject / unrotated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.common import Indices, parts
from apr_falsify.compare.variations.positions import run_on_words
from apr_falsify.compare.variations.turning import (
    Turn,
    angles,
    declared,
    frequencies_under,
    multiplied,
    of_share,
    own_norm,
    positions_of,
    role_of,
    rotated_guess,
    split_heads,
    unrotated,
    unscaled,
)
from apr_falsify.model.rope import Rope
from apr_falsify.numerics.arithmetic import round_bf16, round_f16

_BASES = (1e4, 1e6, 5e5, 1e5, 5e4, 8e6, 1e7, 5e6, 2e6, 3e5, 1e3, 1e2, 1.5e5, 2.5e5, 7.5e6)
"""The bases of published models, and what lies near them."""


def other_base(case: Case) -> Iterator[Guess]:
    """Yield the rotation with usual bases, then with the one that the angles have."""
    own = case.rope
    yield from (_with_base(case, own, base) for base in _BASES if base != own.theta)
    yield from _with_measured_base(case, own)


def other_base_unscaled(case: Case) -> Iterator[Guess]:
    """Yield the rotation without the model's scaling and with the base that the angles then have."""
    if case.rope.kind != "default":
        yield from _with_measured_base(case, unscaled(case.rope))


def applied(case: Case) -> Iterator[Guess]:
    """Yield a rotation in a model that has none, with the base that the angles have."""
    measured = measured_base(case, _PLAIN) if case.rope.kind == "none" else None
    for base in () if measured is None else _rounded(measured):
        frequencies, _ = frequencies_under(case, replace(_PLAIN, theta=base))
        turn = replace(declared(case), frequencies=frequencies)
        yield rotated_guess(
            case, f"RoPE with base {base:.10g}", turn, "the model learns its positions instead"
        )


_PLAIN = Rope(theta=1e4)


def _rounded(measured: float) -> list[float]:
    return list(dict.fromkeys([*(float(f"{measured:.{digits}g}") for digits in (2, 3, 4, 6)), measured]))


def _with_measured_base(case: Case, rope: Rope) -> Iterator[Guess]:
    measured = measured_base(case, rope)
    if measured is not None:
        yield from (_with_base(case, rope, base) for base in _rounded(measured) if base != rope.theta)


def _with_base(case: Case, rope: Rope, base: float) -> Guess:
    frequencies, factor = frequencies_under(case, replace(rope, theta=base))
    turn = replace(declared(case), frequencies=frequencies, factor=factor)
    own = case.rope
    without = " without scaling" if rope.kind != own.kind else ""
    scaled = f" with {own.kind} scaling" if without else ""
    return rotated_guess(
        case, f"RoPE base {base:.10g}{without}", turn, f"the model declares {own.theta:.10g}{scaled}"
    )


def _mismatch(positions: F64, phases: F64, weights: F64, frequencies: F64) -> float:
    """Return how badly ``frequencies`` [pairs] explain the angles [S, pairs] at ``positions`` [S, 1]."""
    return float(np.sum(weights * (1 - np.cos(phases - positions * frequencies))))


_GRID: tuple[float, ...] = tuple(float(base) for base in 10.0 ** np.linspace(1, 9, 801))


def measured_base(case: Case, rope: Rope) -> float | None:
    """Return the base that explains the angles best, under the scaling rule of ``rope``.

    That is the best of a grid, then Gauss-Newton on the base's logarithm.
    """
    if len(case.expected) < 2:
        return None
    phases, weights = angles(case)
    weights = weights / (np.max(weights) or 1.0)
    positions = positions_of(case)[:, None]
    exponent = math.log(
        min(_GRID, key=lambda base: _mismatch(positions, phases, weights, _at_base(case, rope, base)))
    )
    for _ in range(_STEPS):
        low, middle, high = (_at_base(case, rope, math.exp(exponent + h)) for h in (-_NUDGE, 0.0, _NUDGE))
        left = np.angle(np.exp(1j * (phases - positions * middle)))
        slope = positions * (high - low) / (2 * _NUDGE)
        energy = float(np.sum(weights * slope**2))
        if energy == 0:
            return None
        exponent += float(np.sum(weights * slope * left)) / energy
        if not 0 < exponent < math.log(_HIGHEST):
            return None
    return math.exp(exponent)


_STEPS, _NUDGE, _HIGHEST = 30, 1e-5, 1e12


def _at_base(case: Case, rope: Rope, base: float) -> F64:
    return frequencies_under(case, replace(rope, theta=base))[0]


_PLAIN_SCALINGS: Mapping[str, Rope] = {
    "llama3 scaling with factor 8": Rope(
        theta=0.0,
        kind="llama3",
        parameters={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192.0,
        },
    ),
    "yarn scaling with factor 4": Rope(
        theta=0.0, kind="yarn", parameters={"factor": 4.0, "original_max_position_embeddings": 32768.0}
    ),
}


def other_scaling(case: Case) -> Iterator[Guess]:
    """Yield the rotation without the model's scaling or its attention factor."""
    rope, own = case.rope, declared(case)
    instead = f"the model declares {'no' if rope.kind == 'default' else rope.kind} scaling"
    plain, _ = frequencies_under(case, unscaled(rope))
    if rope.kind != "default":
        yield rotated_guess(
            case, "RoPE without scaling", replace(own, frequencies=plain, factor=1.0), instead
        )
        only = replace(own, frequencies=plain)
        yield rotated_guess(case, "RoPE without scaling, but with its attention factor,", only, instead)
    if own.factor != 1.0:
        says = f"RoPE without the attention factor {own.factor:.5g}"
        yield rotated_guess(case, says, replace(own, factor=1.0), instead)
        twice = replace(own, factor=own.factor**2)
        yield rotated_guess(case, "RoPE with the attention factor applied twice", twice, instead)


def invented_scaling(case: Case) -> Iterator[Guess]:
    """Yield the rotation with a scaling that the model does not have."""
    rope, own = case.rope, declared(case)
    instead = f"the model declares {'no' if rope.kind == 'default' else rope.kind} scaling"
    for says, other in _PLAIN_SCALINGS.items():
        parameters = {**other.parameters, **of_share(rope)}
        frequencies, factor = frequencies_under(case, replace(other, theta=rope.theta, parameters=parameters))
        yield rotated_guess(case, says, replace(own, frequencies=frequencies, factor=factor), instead)
        yield rotated_guess(case, says, replace(own, frequencies=frequencies), instead)
    yield from _stretched(case, own, instead)


_STRETCHES = (2.0, 4.0, 8.0, 16.0, 32.0)


def _stretched(case: Case, own: Turn, instead: str) -> Iterator[Guess]:
    for factor in _STRETCHES:
        slower = replace(own, frequencies=own.frequencies / factor)
        yield rotated_guess(case, f"positions divided by {factor:g} (linear scaling)", slower, instead)
        faster = replace(own, frequencies=own.frequencies * factor)
        says = "rotation applied twice, or positions doubled," if factor == 2 else f"positions x {factor:g}"
        yield rotated_guess(case, says, faster, instead)


def other_direction(case: Case) -> Iterator[Guess]:
    """Yield no rotation, the inverse one, and cos and sin exchanged."""
    own = declared(case)
    still = replace(own, frequencies=0 * own.frequencies)
    passes = case.replayer.trace.passes
    if passes.rows == 1 < passes.tokens:
        says = f"token {passes.unseen} at position 0, or not rotated at all,"
        yield rotated_guess(
            case, says, still, f"it stands at position {own.positions[0]:.0f}", "rope-position"
        )
    for factor in dict.fromkeys((own.factor, 1.0)):  # an attention factor may be left out with it
        yield rotated_guess(case, "no rotation", replace(still, factor=factor), name="rope-not-applied")
    yield rotated_guess(case, "rotation in the other direction", replace(own, frequencies=-own.frequencies))
    x = unrotated(case)
    swapped = 1j * np.conj(own.rotor)  # cos for sin and sin for cos: i * exp(-i a)
    yield case.guess("cos and sin exchanged", multiplied(case, x, swapped))
    yield case.guess("the cosine part alone", multiplied(case, x, np.asarray(own.rotor.real + 0j)))
    for kind, rounded in (("bf16", round_bf16), ("f16", round_f16)):
        rotor = rounded(own.rotor.real) + 1j * rounded(own.rotor.imag)
        says = f"cos and sin of the rotation stored as {kind}"
        yield case.guess(says, multiplied(case, x, rotor), name="precision")


def other_pairing(case: Case) -> Iterator[Guess]:
    """Yield the rotation of interleaved pairs for half-split ones, and the other way round."""
    own, x = declared(case), unrotated(case)
    pairs = len(own.frequencies)
    to_halves, to_pairs = (np.arange(2 * pairs).reshape(shape).T.reshape(-1) for shape in ((-1, 2), (2, -1)))
    held = "(0, 1), (2, 3) ..."
    halves = f"(0, {pairs}), (1, {pairs + 1}) ..."
    for says, there, back, instead in (
        (f"rotary pairs {held}", to_halves, to_pairs, f"the weights are made for {halves}"),
        (f"rotary pairs {halves}", to_pairs, to_halves, f"the weights are stored for {held}"),
    ):
        guess = rotated_guess(case, says, own, instead, x=_channels(case, x, there))
        assert guess.sigma is not None
        sigma = _channels(case, guess.sigma, back)
        yield replace(guess, values=_channels(case, guess.values, back), sigma=sigma)
    reverse = replace(own, frequencies=own.frequencies[::-1])
    yield rotated_guess(case, "the pairs' frequencies in reverse order", reverse)


def _channels(case: Case, x: F64, order: Indices) -> F64:
    """Return ``x`` with the rotated channels of each head in another order."""
    before, *halves, after = split_heads(case, x, len(order) // 2)
    turned = np.concatenate(halves, axis=-1)[..., order]
    return np.concatenate((before, turned, after), axis=-1).reshape(x.shape)


_FARTHEST = 8192


def other_positions(case: Case) -> Iterator[Guess]:
    """Yield the rotation with positions that start elsewhere, stand still, or run backwards."""
    own = declared(case)
    if case.replayer.trace.passes.unseen:
        return  # of a step that was recorded alone each position is solved for
    last = len(own.positions) - 1
    yield rotated_guess(case, "positions in reverse order", replace(own, positions=own.positions[::-1]))
    says = f"every token at position {last}"
    yield rotated_guess(case, says, replace(own, positions=np.full_like(own.positions, last)))
    at_zero = np.maximum(own.positions - 1, 0)
    yield rotated_guess(case, "positions 0, 0, 1, 2 ...", replace(own, positions=at_zero))
    for shift in _likely_shifts(case, own):
        says = f"positions that start at {shift} instead of 0"
        instead = run_on_words(own.positions, own.positions + shift, case.replayer.trace.passes)
        yield rotated_guess(case, says, replace(own, positions=own.positions + shift), instead)


def _likely_shifts(case: Case, own: Turn) -> Iterator[int]:
    """Yield -1, 1, and the shift by which the angles exceed the declared ones on the average."""
    yield from (1, -1)
    phases, weights = angles(case)
    declared_angles = np.outer(positions_of(case), own.frequencies)
    rest = np.sum(weights * np.exp(1j * (phases - declared_angles)), axis=0)
    shifts = np.arange(-_FARTHEST, _FARTHEST)
    score = np.exp(-1j * np.outer(shifts, own.frequencies)) @ rest
    best = int(shifts[np.argmax(score.real)])
    if best not in (-1, 0, 1):
        yield best


def other_part(case: Case) -> Iterator[Guess]:
    """Yield the rotation of another part of q|k|v: its order is taken to be another."""
    if own_norm(case) is not None:
        return
    own, width = declared(case), case.expected.shape[1]
    fused = case.inputs["qkv_bias"]
    sizes = {role: columns.stop - columns.start for role, columns in parts(case).items()}
    seen = {parts(case)[role_of(case)].start}
    for order in itertools.permutations("qkv"):
        start = sum(sizes[role] for role in order[: order.index(role_of(case))])
        if start in seen:
            continue
        seen.add(start)
        says = f"{role_of(case)} taken from where q|k|v in the order {'|'.join(order)} has it"
        taken = fused[:, start : start + width]
        yield case.guess(says, multiplied(case, taken, own.rotor))
