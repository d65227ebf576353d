"""What goes wrong where a block's output is added to the residual stream, and with the multiplier on it.

The sum is stream + r * branch, r the model's residual multiplier (1 in most). a * stream + b * branch is
solved for, and b is compared with r.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words
from apr_falsify.compare.variations.multipliers import forms
from apr_falsify.compare.variations.norms import layer_input

_BRANCHES = {"post_attn_residual": "attn_out", "post_ffn_residual": "ffn_out"}
STAGES = tuple(_BRANCHES)
_NOUN = "the residual multiplier"

_NEAR = 1e-4
"""How near to a coefficient that has a name a measured one must be."""

_SAID: Mapping[float, str] = {0.0: "left out", 2.0: "added twice", -1.0: "subtracted"}
"""A coefficient over what it is by right -> words."""


def _roles(case: Case) -> tuple[str, str]:
    """Return the arguments of the sum: the stream, and the branch."""
    branch = _BRANCHES[case.name]
    return next(role for role in case.known if role != branch), branch


def measured_residual(case: Case) -> Iterator[Guess]:
    """Yield a * stream + b * branch with the a and b that fit best, by their names where they have one."""
    stream, branch = _roles(case)
    found, scale = _coefficients(case, stream, branch), case.geometry.residual_scale
    named = [*(scale * value for value in _SAID), scale, *(value for value, _ in _forms(scale))]
    for digits in (2, 3, 5, 17):
        a = _rounded(found[0], digits, [*_SAID, 1.0, scale])
        b = _rounded(found[1], digits, named)
        values = a * case.inputs[stream] + b * case.inputs[branch] + _others(case)
        told = _multiplier_words(a, b, scale)
        says = told or _words(stream, a, branch, b / scale)
        yield case.guess(says, values, name="multiplier" if told else "")


def _coefficients(case: Case, stream: str, branch: str) -> tuple[float, float]:
    """Return the a and b for which a * stream + b * branch comes nearest to the subject."""
    sides = [
        case.shaped(np.broadcast_to(case.inputs[role], case.expected.shape)) for role in (stream, branch)
    ]
    sigma = case.shaped_sigma
    rest = case.subject - case.shaped(np.broadcast_to(_others(case), case.expected.shape))
    used = np.isfinite(rest) & np.isfinite(sides[0] + sides[1])
    columns = np.stack([side[used] / sigma[used] for side in sides], axis=-1)
    (a, b), *_ = np.linalg.lstsq(columns, rest[used] / sigma[used], rcond=None)
    return float(a), float(b)


def _others(case: Case) -> F64 | float:
    """Return what a parallel layer adds beside the stream and the branch, which is taken for right."""
    others = (case.inputs[role] for role in case.known if role not in _roles(case))
    return case.geometry.residual_scale * sum(others, 0.0)


def _forms(scale: float) -> list[tuple[float, str]]:
    return [] if scale == 1 else list(forms(_NOUN, scale))


def _rounded(value: float, digits: int, named: Iterable[float]) -> float:
    whole = next((n for n in named if abs(value - n) < _NEAR * max(1.0, abs(n))), None)
    return float(f"{value:.{digits}g}") if whole is None else whole


def _multiplier_words(a: float, b: float, scale: float) -> str:
    """Say what became of the residual multiplier, nothing where the coefficients do not speak of it."""
    if scale == 1 or (a, b) == (1.0, scale):
        return ""
    if a == scale and b in (1.0, scale):
        where = "on the stream, not on the branch" if b == 1 else "on the whole sum"
        return f"{_NOUN} {scale:.6g} {where}"
    if a != 1 or b <= 0 or b / scale in _SAID:
        return ""
    return dict(_forms(scale)).get(b, f"{_NOUN} {factor_words(b)} for {scale:.6g}")


def _words(stream: str, a: float, branch: str, b: float) -> str:
    """Say what became of stream and branch, by their coefficients over those that they have by right."""
    said = [f"{role} {_SAID[x]}" for role, x in ((stream, a), (branch, b)) if x in _SAID]
    other = [
        f"{role} x {factor_words(x)}" for role, x in ((stream, a), (branch, b)) if x != 1 and x not in _SAID
    ]
    return f"in the residual sum {' and '.join(said + other) or 'both'}"


def other_stream(case: Case) -> Iterator[Guess]:
    """Yield the branch added to another stage than the residual stream, or another branch to it."""
    stream, branch = _roles(case)
    scale = case.geometry.residual_scale
    streams = {"the layer's input": layer_input(case), "embedding": case.captured("embedding", 0)}
    streams |= {name: case.captured(name) for name in ("attn_norm", "post_attn_residual", "ffn_norm")}
    for name, value in streams.items():
        if value is not None and value.shape == case.expected.shape:
            yield case.guess(f"{branch} added to {name} for {stream}", value + scale * case.inputs[branch])
    for name in ("attn_out", "attention", "ffn_out", "ffn_norm", "attn_norm"):
        value = case.captured(name)
        if value is not None and value.shape == case.expected.shape and name != branch:
            yield case.guess(f"{name} added for {branch}", case.inputs[stream] + scale * value)
    attended = case.captured("attn_out")
    if case.name == "post_ffn_residual" and attended is not None:
        yield case.guess("attn_out added a second time", case.expected + scale * attended)
