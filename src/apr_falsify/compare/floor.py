"""How large the rounding of a stage's own sums is: the unit in which a residual is judged.

For each element: the root mean square of the error that a *plain sequential f32 sum* brings, the
least exact order a correct runtime uses. With t the n terms of a sum, s_k its partial sums and u the unit
roundoff, rounding errors are independent and uniform (Higham, Accuracy and Stability, ch. 4; Higham & Mary
2019), so their variance is u^2 / 3 * sum(s_k^2). For terms of random sign sum(s_k^2) = n / 2 * sum(t^2);
for terms of one sign it is n / 3 * y^2. Both are taken. Few-term operations count each rounding once.

A stage whose inputs were themselves computed (because they were not captured) inherits their sigma,
to first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.families import Norm
from apr_falsify.geometry import Geometry
from apr_falsify.ops import rope_frequencies

F64 = npt.NDArray[np.float64]
Array = npt.NDArray[np.floating[Any]]

UNIT = 2.0**-24
"""The unit roundoff of f32, in which sums are done."""

TINY = 2.0**-126
"""The smallest normal f32: below it a runtime may flush to zero."""

_SATURATED = 1 - 2.0**-48
"""The share of a soft-cap from which tanh cannot be undone; the slope is 0 there."""

FEW = 4.0
"""Roundings of a library function (exp, sqrt, division) and of the operations around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An input of a stage.

    Attributes:
        value: its values, canonical shape.
        sigma: the rounding they carry because they were computed here, ``None`` if captured.

    """

    value: F64
    sigma: F64 | None = None


class NoisySite(Protocol):
    """What the table asks of the place of a replay."""

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""

    @property
    def layer(self) -> int | None:
        """The layer."""

    @property
    def noise(self) -> list[F64]:
        """Per projection of the stage: the variance of its sums, in squared unit roundoffs."""

    @property
    def outputs(self) -> list[F64]:
        """Per projection of a stage that goes on from there: what it gave."""

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""


Ins = Mapping[str, Known]


def rounding(name: str, inputs: Ins, value: F64, site: NoisySite, store: float) -> F64:
    """Return the sigma of stage ``name``: canonical shape, in the stage's own unit.

    Args:
        name: the stage.
        inputs: its inputs.
        value: the replayed stage.
        site: the place of the replay, after the replay.
        store: unit roundoff of the format in which the runtime keeps what it computes.

    """
    variance = np.array(SIGMAS[name](inputs, value, site, store), copy=None)
    variance += smallest_rounding(store) ** 2
    sigma: F64 = np.sqrt(variance, out=variance)
    sigma += TINY
    return sigma


_SMALLEST_STEPS: Mapping[float, float] = {2.0**-11: 2.0**-24}
"""Unit roundoff of a format -> the step between its smallest numbers, where that matters: f16 has 5 bits
of exponent, and below 2**-14 its steps no longer shrink; f32 and bf16 reach down to 2**-126."""


def smallest_rounding(store: float) -> float:
    """Return the sigma of one rounding to the smallest numbers of a format: step / sqrt(12)."""
    return _SMALLEST_STEPS.get(store, 0.0) / math.sqrt(12)


def _sq(x: Any) -> F64:
    squared: F64 = np.square(np.abs(x))
    return squared


def _stored(magnitude: F64, store: float, times: float = 1.0) -> F64:
    """Return the variance of ``times`` roundings of ``magnitude`` to a format of unit roundoff ``store``."""
    return _sq(magnitude) * (times * store * store / 3)


def _var(known: Known) -> F64 | float:
    return 0.0 if known.sigma is None else _sq(known.sigma)


def _embedding(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return _stored(y, store, 2)


def norm_variance(y: F64, width: int, store: float) -> F64:
    """Return the variance of a norm over ``width`` values: its sum of squares, and its own roundings."""
    # sqrt(width) / 6 is the root mean square of a sequential sum's error. All elements of a token share
    # it, so that their mean is no smaller than each: three times it is allowed for.
    relative = UNIT * (math.sqrt(width) / 2 + FEW)
    return _sq(y * relative) + _stored(y, store, 2)


def _norm_of(role: str) -> Callable[[Ins, F64, NoisySite, float], F64]:
    """Return the variance of the norm whose weight is in ``role``."""

    def variance(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
        (known,) = ins.values()
        kinds: Mapping[Norm, Callable[[], F64]] = {
            Norm.RMS: lambda: _rms_normed(known.value, y, known.sigma, store),
            Norm.LAYER: lambda: _layer_normed(known, y, site.vector(role), site.geometry.norm_eps, store),
        }
        return kinds[site.geometry.row.norm]()

    return variance


def _rms_normed(x: F64, y: F64, sigma: F64 | None, store: float) -> F64:
    own = norm_variance(y, y.shape[-1], store)
    if sigma is None:
        return own
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(x != 0, np.abs(y / x), 0.0)
    return np.asarray(own + _sq(slope * sigma))


def _layer_normed(known: Known, y: F64, weight: Array, eps: float, store: float) -> F64:
    """Count what the subtraction of the mean leaves of the roundings of mean and values."""
    x, width = known.value, y.shape[-1]
    centred = x - np.mean(x, axis=-1, keepdims=True)
    slope = np.abs(weight) / np.sqrt(np.mean(_sq(centred), axis=-1, keepdims=True) + eps)
    mean = np.sqrt(np.mean(_sq(x), axis=-1, keepdims=True)) * (math.sqrt(width) / 6 + 1)
    subtracted = (_sq(mean) + _sq(x)) * UNIT**2 + _var(known)
    return np.asarray(
        norm_variance(y, width, store) + norm_variance(slope * centred, width, 0) + _sq(slope) * subtracted
    )


def _projection(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    noise = np.concatenate(site.noise, axis=-1)
    return projected(noise, y, store)


def projected(noise: F64, y: F64, store: float) -> F64:
    """Return the variance of a projection's result ``y``, given that of its sums in squared roundoffs."""
    return np.asarray(noise * UNIT**2 + _stored(y, max(store, UNIT), 2))


def _then_norm(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count a projection, and the norm that it passes where the family has one there."""
    if not site.geometry.row.post_norms:
        return _projection(ins, y, site, store)
    (x,) = site.outputs
    return _rms_normed(x, y, np.sqrt(_projection(ins, x, site, store)), store)


def _lm_head(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return _capped(y, site.geometry.final_softcap, store, lambda x: _projection(ins, x, site, store))


def _capped(y: F64, cap: float | None, store: float, variance_of: Callable[[F64], F64]) -> F64:
    """Count what ``cap * tanh(x / cap)`` leaves of the rounding of x, and its own three roundings."""
    if cap is None:
        return variance_of(y)
    share = np.clip(y / cap, -_SATURATED, _SATURATED)
    slope = 1 - _sq(share)
    own = _stored(y, max(store, UNIT), 2 + FEW)
    return np.asarray(_sq(slope) * variance_of(cap * np.arctanh(share)) + own)


def started_at(bias: Array, terms: int, geometry: Geometry) -> F64:
    """Return what sums of ``terms`` terms cost, in squared roundoffs, that start at the bias.

    The weights of such families lie [in, out], and transformers multiplies them with ``addmm``: every partial
    sum holds the bias.
    """
    return _sq(bias) * (terms / 3 if geometry.row.transposed else 0.0)


def _qkv_bias(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known = ins["qkv_matmul"]
    started = started_at(y - known.value, site.geometry.hidden, site.geometry) * UNIT**2
    return np.asarray(started + _var(known) + _stored(y, max(store, UNIT), 2) + _stored(known.value, store))


def _rope(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count the rounding of cos, sin and products, and that of the angle, which grows with position."""
    geometry = site.geometry
    rope = geometry.rope_at(site.layer)
    frequencies, _ = rope_frequencies(rope, geometry.head_dim, len(y))
    positions = np.arange(len(y), dtype=np.float64)[:, None]
    exponents = np.linspace(0, 1, len(frequencies), endpoint=False)
    angle_error = positions * frequencies * (2 + math.log(max(rope.theta, 2.0)) * exponents)
    heads, width = y.reshape(len(y), -1, geometry.head_dim), 2 * len(frequencies)
    pairs = heads[..., :width].reshape(len(y), -1, 2, len(frequencies))
    radius = np.sqrt(np.sum(_sq(pairs), axis=2, keepdims=True))
    relative = _sq(UNIT * (angle_error[:, None, None, :] + 2)) + 2 * max(store, UNIT) ** 2
    variance = np.zeros_like(heads)
    variance[..., :width] = np.broadcast_to(_sq(radius) * relative, pairs.shape).reshape(
        *heads.shape[:2], width
    )
    known = ins["qkv_bias"]
    if known.sigma is not None:
        variance = variance + np.max(_sq(known.sigma), axis=-1)[:, None, None]
    return variance.reshape(y.shape)


def _rope_after_norm(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    own = _rope(ins, y, site, store)
    if not site.geometry.row.qk_norm:
        return own
    heads = y.reshape(len(y), -1, site.geometry.head_dim)
    radius = np.sqrt(np.mean(_sq(heads), axis=-1, keepdims=True)) + np.abs(heads)
    return np.asarray(own + norm_variance(radius, site.geometry.head_dim, store).reshape(y.shape))


def _scores(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry, scale = site.geometry, site.geometry.attn_scale_at(site.layer)
    q, k = (_heads(ins[name].value, geometry.head_dim) for name in ("q_post_rope", "k_post_rope"))
    groups = geometry.heads // geometry.kv_heads
    k = np.repeat(k, groups, axis=0)
    carried: tuple[tuple[F64 | None, Callable[[F64], F64]], ...] = (
        (ins["q_post_rope"].sigma, lambda s: s @ _sq(k).swapaxes(-1, -2)),
        (ins["k_post_rope"].sigma, lambda s: _sq(q) @ np.repeat(s, groups, axis=0).swapaxes(-1, -2)),
    )
    per_term = geometry.head_dim * UNIT**2

    def uncapped(x: F64) -> F64:
        own = _sq(q) @ (_sq(k) * scale**2).swapaxes(-1, -2)
        own *= per_term / 6  # as sum_variance, in place: each copy is the largest stage
        own += np.square(x) * (per_term / 9 + 2 * max(store, UNIT) ** 2 / 3)
        for sigma, through in carried:
            if sigma is not None:
                own += through(_sq(_heads(sigma, geometry.head_dim))) * scale**2
        return own

    return _capped(y, geometry.attn_softcap, store, uncapped)


def sum_variance(squares: F64, y: F64, terms: int) -> F64:
    """Return the variance of a plain f32 sum of ``terms`` terms, given the sum of their squares."""
    return (squares * (terms / 6) + _sq(y) * (terms / 9)) * UNIT**2


def _heads(x: F64, head_dim: int) -> F64:
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _softmax(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count exp of a rounded difference (its error grows with the difference) and the sum over the keys."""
    known = ins["attn_scores"]
    top = np.max(known.value, axis=-1, keepdims=True, where=y > 0, initial=-np.inf)
    own: F64 = np.nan_to_num(top - known.value)  # how far below the row's largest score, then step by step:
    np.clip(own, 0.0, None, out=own)
    own += math.sqrt(y.shape[-1]) + FEW  # three times the row's common error, as in norm_variance
    own *= UNIT
    np.square(own, out=own)
    own += store * store / 3
    own *= np.square(y)
    if known.sigma is None:
        return own
    spread = np.sum(_sq(y * known.sigma), axis=-1, keepdims=True)
    return np.asarray(own + _sq(y) * (_sq(known.sigma) + spread))


def _attention(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry = site.geometry
    weights = ins["attn_softmax"]
    v = ins["qkv_bias"].value[:, -geometry.kv_heads * geometry.head_dim :]
    values = np.repeat(_heads(v, geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0)
    squares = _flat(_sq(weights.value) @ _sq(values))
    variance = sum_variance(squares, y, weights.value.shape[-1]) + _stored(y, max(store, UNIT))
    if weights.sigma is not None:
        variance = variance + _flat(_sq(weights.sigma) @ _sq(values))
    if (sigma := ins["qkv_bias"].sigma) is not None:
        own = np.repeat(
            _heads(sigma[:, -v.shape[1] :], geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0
        )
        variance = variance + _flat(_sq(weights.value) @ _sq(own))
    return np.asarray(variance)


def _flat(heads: F64) -> F64:
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


def _residual(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    carried = sum(_var(known) for known in ins.values())
    return np.asarray(carried + _stored(y, max(store, UNIT)))


def _activation(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    (known,) = ins.values()
    return activated(known, y, site.geometry.activation, store)


def activated(known: Known, y: F64, activation: str, store: float) -> F64:
    """Return the variance of an activation of ``known``."""
    own = _sq(_ACTIVATION_ERRORS[activation](known.value, y, store)) + _stored(y, store)
    return np.asarray(own + 1.21 * _var(known))  # 1.1 bounds the slope of silu and gelu


def _silu_error(x: F64, y: F64, store: float) -> F64:
    """Count exp(-x): its relative error grows with x, and matters where the sigmoid is far from 1."""
    return np.asarray(y * UNIT * (np.abs(x) + FEW))


def _gelu_error(x: F64, y: F64, store: float) -> F64:
    """Count 1 + tanh, of which little is left for negative x: an error of x, not of the result."""
    return np.asarray(x * max(store, UNIT))


_ACTIVATION_ERRORS: Mapping[str, Callable[[F64, F64, float], F64]] = {
    "silu": _silu_error,
    "gelu_new": _gelu_error,
    "gelu_pytorch_tanh": _gelu_error,
}


def _product(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return multiplied(ins["ffn_silu"], ins["ffn_up"], y, store)


def multiplied(left: Known, right: Known, y: F64, store: float) -> F64:
    """Return the variance of a product, element by element."""
    carried = _sq(right.value) * _var(left) + _sq(left.value) * _var(right)
    return np.asarray(carried + _stored(y, max(store, UNIT)))


SIGMAS: Mapping[str, Callable[[Ins, F64, NoisySite, float], F64]] = {
    "embedding": _embedding,
    "attn_norm": _norm_of("attn_norm"),
    "qkv_matmul": _projection,
    "qkv_bias": _qkv_bias,
    "q_post_rope": _rope_after_norm,
    "k_post_rope": _rope_after_norm,
    "attn_scores": _scores,
    "attn_softmax": _softmax,
    "attention": _attention,
    "attn_out": _then_norm,
    "post_attn_residual": _residual,
    "ffn_norm": _norm_of("ffn_norm"),
    "ffn_gate": _projection,
    "ffn_up": _projection,
    "ffn_silu": _activation,
    "ffn_swigl": _product,
    "ffn_out": _then_norm,
    "post_ffn_residual": _residual,
    "final_norm": _norm_of("final_norm"),
    "lm_head": _lm_head,
}
"""Stage -> the variance of its rounding; mixtures of experts are in ``compare.experts``."""
