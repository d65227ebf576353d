"""Soft-caps: c * tanh(x / c) on scores and logits (Bello et al. 2016; Gemma 2), solved for c, and for x.

Where a model has a cap, its replay is undone to x first: x = c * atanh(y / c), in f64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, scalar
from apr_falsify.compare.variations.projected import small
from apr_falsify.operators.roundoff import FEW, UNIT, Known, stored

STAGES = ("attn_scores", "lm_head")

_USUAL = (30.0, 50.0, 15.0, 20.0, 100.0)
"""The caps of Gemma 2 and others."""

_NEAR = 0.1
"""How near a measured cap must be to a usual one for that to be tried: coarse values tell it coarsely."""

_OPEN = 0.99
"""Up to this share of its cap a value tells what was capped."""

_STEPS = 30


def cap_of(case: Case) -> float | None:
    """Return the model's cap on a stage, ``None`` where it has none."""
    caps = {"attn_scores": case.geometry.attn_softcap, "lm_head": case.geometry.final_softcap}
    return caps.get(case.name)


def soft_capped(case: Case) -> Iterator[Guess]:
    """Yield the stage under the cap that it has, and without the model's."""
    own = cap_of(case)
    instead = "" if own is None else f"the model declares {own:g}"
    if own is not None:
        yield _capped(case, None, f"no soft-cap of {own:g}", "")
    measured = _measured(case)
    if measured is None:
        return
    usual = [cap for cap in _USUAL if abs(measured - cap) <= _NEAR * cap]
    for cap in dict.fromkeys([*usual, *(float(f"{measured:.{d}g}") for d in (2, 3, 5)), measured]):
        if cap != own:
            yield _capped(case, cap, f"values soft-capped at {cap:.6g}", instead)


def _capped(case: Case, cap: float | None, says: str, instead: str) -> Guess:
    if case.name == "attn_scores" and _captured_before(case) is None:
        return _with_cap(case, cap, says, instead)
    return _under(case, *uncapped(case), cap, says, instead)


def _captured_before(case: Case) -> Known | None:
    """Return what the cap was put on, where that is a stage that was captured, ``None`` where not."""
    return case.known.get({"attn_scores": "attn_scores_uncapped"}.get(case.name, "lm_head_proj"))


def _with_cap(case: Case, cap: float | None, says: str = "", instead: str = "") -> Guess:
    """Return the stage computed again under another cap."""
    of_scores = case.name == "attn_scores"
    geometry = (
        replace(case.geometry, attn_softcap=cap) if of_scores else replace(case.geometry, final_softcap=cap)
    )
    return case.evaluated(says, geometry=geometry, instead=instead)


def uncapped(case: Case) -> tuple[F64, F64]:
    """Return the replay before its cap, and its rounding.

    Near the cap nothing tells the rounding of x: it grows with x at most, from where values tell it. Logits
    of which the cap leaves too little are multiplied once again, where that is no great work.
    """
    cap, before = cap_of(case), _captured_before(case)
    if cap is None:
        return case.expected, case.sigma
    if before is not None:
        scale = case.geometry.logit_scale if case.name == "lm_head" else 1.0
        rounding = np.abs(before.value) * UNIT if before.sigma is None else before.sigma
        return before.value * scale, rounding * scale
    share = case.expected / cap
    x, open_ones = cap * np.arctanh(share), np.abs(share) < _OPEN
    if np.max(np.abs(share), initial=0.0) > _TOO_NEAR and small(case):
        again = _with_cap(case, None)
        return again.values, case.sigma if again.sigma is None else again.sigma
    sigma = case.sigma / np.where(open_ones, 1 - np.square(share), 1.0)
    largest = np.max(sigma, where=open_ones, initial=0.0)
    reached = np.max(np.abs(x), where=open_ones, initial=0.0)
    beyond = largest * np.abs(x) / reached if reached else np.zeros_like(x)
    return x, np.where(open_ones, sigma, beyond)


_TOO_NEAR = 1 - 2.0**-30
"""Nearer to its cap an f64 does not tell in f32 what was capped."""


def _under(case: Case, x: F64, sigma: F64, cap: float | None, says: str, instead: str = "") -> Guess:
    """Return c * tanh(x / c), with what the cap leaves of the rounding of x and its own."""
    if cap is None:
        return Guess(says=says, values=x, sigma=sigma, instead=instead)
    values = cap * np.tanh(x / cap)
    slope = 1 - np.square(values / cap)
    unit = max(case.replayer.store, UNIT)
    own = np.sqrt(np.square(slope * sigma) + stored(values, unit, 2 + FEW))
    return Guess(says=says, values=values, sigma=own, instead=instead)


def _before(case: Case) -> F64:
    """Return what is capped, in the form in which the runtime keeps the stage."""
    if case.name == "attn_scores" and cap_of(case) is not None and _captured_before(case) is None:
        return case.shaped(_with_cap(case, None).values)
    return case.shaped(uncapped(case)[0])


def _measured(case: Case) -> float | None:
    """Return the c for which c * tanh(x / c) comes nearest to the subject, ``None`` where nothing is capped.

    tanh(z) / z falls with z: the largest x gives a first z = x / c by bisection, then the largest values by
    Gauss-Newton on ln c.
    """
    x, s, sigma = _largest(case)
    left = float(s[-1] / x[-1]) if len(x) else 1.0
    if not 0 < left < 1 - _LEAST:
        return None
    cap = abs(float(x[-1])) / _solved(left)
    for _ in range(_STEPS):
        z = x / cap
        slope = cap * (np.tanh(z) - z / np.square(np.cosh(np.clip(z, -_FAR, _FAR)))) / sigma
        energy = float(slope @ slope)
        step = float(slope @ ((s - cap * np.tanh(z)) / sigma)) / energy if energy else math.nan
        if not abs(step) < 1:
            return None
        cap *= math.exp(step)
        if abs(step) < _SETTLED:
            break
    before, after = (float(np.max(np.abs(s - y) / sigma)) for y in (x, cap * np.tanh(x / cap)))
    return cap if after < _NEARER * before else None


def _largest(case: Case) -> tuple[F64, F64, F64]:
    """Return what is capped, the subject and the rounding where the first is largest, in ascending order."""
    x, s, sigma = _before(case), case.subject, case.shaped_sigma
    used = np.isfinite(s) & np.isfinite(x) & (x != 0)
    x, s, sigma = x[used], s[used], sigma[used]
    if len(x) > _MOST:
        most = np.argpartition(np.abs(x), -_MOST)[-_MOST:]
        x, s, sigma = x[most], s[most], sigma[most]
    order = np.argsort(np.abs(x))
    return x[order], s[order], sigma[order]


_MOST = 1 << 16
"""As many values tell a cap."""

_SETTLED = 1e-13

_NEARER = 0.75
"""A cap leaves at most this share of the largest difference; else nothing is capped."""

_LEAST = 1e-6
"""A largest value that is off by less than this share is not capped."""

_FAR = 300.0


def _solved(left: float) -> float:
    """Return the z with tanh(z) / z = left, for 0 < left < 1."""
    low, high = 0.0, 1 / left
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.tanh(middle) / middle > left else (low, middle)
    return high


def factor(case: Case) -> float:
    """Return what the stage is multiplied with beyond what it is by right, before its cap."""
    cap = cap_of(case)
    if cap is None:
        return case.scalar(case.expected)
    x, share = _before(case), case.subject / cap
    used = np.isfinite(share) & np.isfinite(x) & (x != 0) & (np.abs(share) < _OPEN)
    if not used.any():
        return math.nan
    open_share = share[used]
    sigma = case.shaped_sigma[used] / (1 - np.square(open_share))
    return scalar(x[used], cap * np.arctanh(open_share), sigma)


def scaled(case: Case, by: float, says: str) -> Guess:
    """Return the stage with its multiplier times ``by``, under its cap."""
    if case.name.startswith("attn_scores") and _captured_before(case) is None:
        scales = (case.geometry.attn_scale_at(case.layer) * by,) * case.geometry.layers
        return case.evaluated(says, geometry=replace(case.geometry, attn_scales=scales))
    x, sigma = uncapped(case)
    return _under(case, x * by, sigma * abs(by), cap_of(case), says)
