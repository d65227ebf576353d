"""RoPE with a scaling that the model does not have, read off the angles and lengths of the rotated pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from apr_falsify.compare.variations.case import Case, Guess
from apr_falsify.compare.variations.rotary import measured_base
from apr_falsify.compare.variations.turning import (
    Turn,
    angles,
    declared,
    frequencies_under,
    length,
    of_share,
    positions_of,
    rotated_guess,
)
from apr_falsify.model.rope import Rope

_DIGITS = (2, 4, 6)
"""To how many digits a measured parameter is rounded, the roundest first."""


def measured_stretch(case: Case) -> Iterator[Guess]:
    """Yield linear scaling by the measured divisor, with the model's base and with the measured one.

    The first pair turns by one radian a position under any base, so that its angle is 1 / divisor.
    """
    own, rope = declared(case), case.rope
    pace = _first_pace(case)
    if rope.kind != "default" or pace is None or abs(pace - 1) < _SAME:
        return
    instead = f"the model declares base {rope.theta:.10g} and no scaling"
    for divisor in _rounded(1 / pace):
        slower = replace(own, frequencies=own.frequencies / divisor)
        yield rotated_guess(case, f"positions divided by {divisor:.6g} (linear scaling)", slower, instead)
        linear = replace(rope, kind="linear", parameters={"factor": divisor, **of_share(rope)})
        measured = measured_base(case, linear)
        for base in () if measured is None else _rounded(measured):
            turn = replace(own, frequencies=frequencies_under(case, replace(linear, theta=base))[0])
            says = f"RoPE base {base:.10g} and positions divided by {divisor:.6g} (linear scaling)"
            yield rotated_guess(case, says, turn, instead)


_SAME = 1e-3
"""A pace or a factor as near to 1 as this is 1."""


def _rounded(value: float) -> list[float]:
    return list(dict.fromkeys([*(float(f"{value:.{digits}g}") for digits in _DIGITS), value]))


def _first_pace(case: Case) -> float | None:
    """Return by how many radians a position the first pair was rotated; ``None`` for a single token."""
    phases, weights = angles(case)
    if len(phases) < 2:
        return None
    positions, first = positions_of(case), phases[:, 0]
    pace = float(first[1])
    for _ in range(_STEPS):
        left = np.angle(np.exp(1j * (first - positions * pace)))
        energy = float(np.sum(weights[:, 0] * positions**2))
        pace += float(np.sum(weights[:, 0] * positions * left)) / energy if energy else 0.0
    return pace if pace > 0 and math.isfinite(pace) else None


_STEPS = 4

_CONTEXTS = tuple(2.0**power for power in range(8, 18))
"""The lengths that models are trained at."""

_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0)


def measured_yarn(case: Case) -> Iterator[Guess]:
    """Yield yarn scaling with the factor that its attention factor tells, then with usual ones.

    Peng et al. 2023: the attention factor is 1 + 0.1 ln(factor), unless it is stated. Of original contexts
    that one is taken which leaves least, since a short run does not tell them all apart.
    """
    rope, own = case.rope, declared(case)
    if rope.kind != "default" or rope.theta <= 1:
        return
    longer = length(case)
    if longer is None:
        return
    told = math.exp((longer - 1) * 10) if 1 + _SAME < longer < 2 else None
    for factor in dict.fromkeys([*(() if told is None else _rounded(told)), *_FACTORS]):
        usual = 1 + 0.1 * math.log(factor)
        stated = abs(longer - usual) > _SAME
        yield min(
            (_yarn(case, own, factor, context, longer if stated else usual) for context in _CONTEXTS),
            key=case.residual,
        )


def _yarn(case: Case, own: Turn, factor: float, context: float, longer: float) -> Guess:
    parameters = {"factor": factor, "original_max_position_embeddings": context, **of_share(case.rope)}
    frequencies, _ = frequencies_under(case, Rope(theta=case.rope.theta, kind="yarn", parameters=parameters))
    says = f"yarn scaling with factor {factor:.6g}, context {context:g} and attention factor {longer:.5g}"
    turn = replace(own, frequencies=frequencies, factor=longer)
    return rotated_guess(case, says, turn, "the model declares no scaling")
