"""How large the rounding of a stage's own sums is: the unit in which a residual is judged.

For each element: the root mean square of the error that a *plain sequential f32 sum* brings, the
least exact order a correct runtime uses. With t the n terms of a sum, s_k its partial sums and u the unit
roundoff, rounding errors are independent and uniform (Higham, Accuracy and Stability, ch. 4; Higham & Mary
2019), so their variance is u^2 / 3 * sum(s_k^2). For terms of random sign sum(s_k^2) = n / 2 * sum(t^2);
for terms of one sign it is n / 3 * y^2. Both are taken. Few-term operations count each rounding once.

A stage whose inputs were themselves computed (because they were not captured) inherits their sigma,
to first order. What is lost at a format's smallest numbers (``compare.roundoff``) is counted where it arises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from apr_falsify.compare.repeated import added_up
from apr_falsify.compare.roundoff import (
    F64,
    FEW,
    TINY,
    UNIT,
    Array,
    Ins,
    Known,
    NoisySite,
    lost,
    squared,
    stored,
)
from apr_falsify.model.families import Norm
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.ops import rms_norm
from apr_falsify.operators.rotation import rope_frequencies

_SATURATED = 1 - 2.0**-48
"""The share of a soft-cap from which tanh cannot be undone; the slope is 0 there."""


def rounding(name: str, inputs: Ins, value: F64, site: NoisySite, store: float) -> F64:
    """Return the sigma of stage ``name``: canonical shape, in the stage's own unit.

    Args:
        name: the stage.
        inputs: its inputs.
        value: the replayed stage.
        site: the place of the replay, after the replay.
        store: unit roundoff of the format in which the runtime keeps what it computes.

    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is judged apart
        variance = np.array(SIGMAS[name](inputs, value, site, store), copy=None)
    variance += lost(store)
    sigma: F64 = np.sqrt(variance, out=variance)
    sigma += TINY
    return sigma


def _embedding(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return stored(y, store, 2)


def norm_variance(y: F64, width: int, store: float) -> F64:
    """Return the variance of a norm over ``width`` values: its sum of squares, and its own roundings."""
    # sqrt(width) / 6 is the root mean square of a sequential sum's error. It is common to a token's channels,
    # so averaging over them does not reduce it: three times its root mean square is allowed.
    relative = UNIT * (math.sqrt(width) / 2 + FEW)
    return squared(y * relative) + stored(y, store, 2)


def _norm_of(role: str) -> Callable[[Ins, F64, NoisySite, float], F64]:
    """Return the variance of the norm whose weight is in ``role``."""

    def variance(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
        (known,) = ins.values()
        return _normed(known, y, role, site, store)

    return variance


def _normed(known: Known, y: F64, role: str, site: NoisySite, store: float) -> F64:
    """Count the norm of ``known``, whose normalised values may be kept before the weight multiplies them."""
    weight, eps = site.vector(role), site.geometry.norm_eps
    kinds: Mapping[Norm, Callable[[Known, F64, Array, float, float], F64]] = {
        Norm.RMS: _rms_normed,
        Norm.LAYER: _layer_normed,
    }
    found = kinds[site.geometry.row.norm](known, y, weight, eps, store) + lost(store, weight)
    # An f32 sum of squares that overflows is infinite, and what is divided by its root is 0.
    overflows = np.sum(np.square(known.value), axis=-1, keepdims=True) > np.finfo(np.float32).max
    return np.asarray(found + np.where(overflows, np.square(y), 0.0))


def _rms_normed(known: Known, y: F64, weight: Array, eps: float, store: float) -> F64:
    own = norm_variance(y, y.shape[-1], store)
    if known.sigma is None:
        return own
    slope = np.abs(weight) / np.sqrt(np.mean(squared(known.value), axis=-1, keepdims=True) + eps)
    return np.asarray(own + squared(slope * known.sigma))


def _layer_normed(known: Known, y: F64, weight: Array, eps: float, store: float) -> F64:
    """Count what the subtraction of the mean leaves of the roundings of mean and values."""
    x, width = known.value, y.shape[-1]
    centred = x - np.mean(x, axis=-1, keepdims=True)
    slope = np.abs(weight) / np.sqrt(np.mean(squared(centred), axis=-1, keepdims=True) + eps)
    mean = np.sqrt(np.mean(squared(x), axis=-1, keepdims=True)) * (math.sqrt(width) / 6 + 1)
    subtracted = (squared(mean) + squared(x)) * UNIT**2 + known.variance
    return np.asarray(
        norm_variance(y, width, store)
        + norm_variance(slope * centred, width, 0)
        + squared(slope) * subtracted
    )


def _projection(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    noise = np.concatenate(site.noise, axis=-1)
    return projected(noise, y, store)


def projected(noise: F64, y: F64, store: float) -> F64:
    """Return the variance of a projection's result ``y``, given that of its sums in squared roundoffs."""
    return np.asarray(noise * UNIT**2 + stored(y, max(store, UNIT), 2))


def _then_norm(role: str) -> Callable[[Ins, F64, NoisySite, float], F64]:
    """Count a projection, and the norm in ``role`` that it passes where the family has one there."""

    def variance(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
        if not site.geometry.row.post_norms:
            return _projection(ins, y, site, store)
        (x,) = site.outputs
        sigma = np.sqrt(_projection(ins, x, site, store) + lost(store))
        return _normed(Known(value=x, sigma=sigma), y, role, site, store)

    return variance


def _lm_head(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return _capped(y, site.geometry.final_softcap, store, lambda x: _projection(ins, x, site, store))


def _capped(y: F64, cap: float | None, store: float, variance_of: Callable[[F64], F64]) -> F64:
    """Count what ``cap * tanh(x / cap)`` leaves of the rounding of x, and its own three roundings."""
    if cap is None:
        return variance_of(y)
    share = np.clip(y / cap, -_SATURATED, _SATURATED)
    slope = 1 - squared(share)
    own = stored(y, max(store, UNIT), 2 + FEW) + 2 * lost(store, cap)  # of x / cap, and of its tanh
    return np.asarray(squared(slope) * variance_of(cap * np.arctanh(share)) + own)


def started_at(bias: Array, terms: int) -> F64:
    """Return what sums of ``terms`` terms cost, in squared roundoffs, that start at the bias.

    That is how ``addmm`` and every kernel work that fill the result with the bias first: each partial sum
    holds the bias. How many are rounded differs from kernel to kernel, one in a block of terms or each.
    """
    return squared(bias) * (terms / 3)


def _qkv_bias(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known = ins["qkv_matmul"]
    added = stored(y, max(store, UNIT), 2) + stored(known.value, store)
    if known.sigma is None:  # the product was kept before the bias was added
        return np.asarray(added)
    return np.asarray(added + known.variance + started_at(y - known.value, site.geometry.hidden) * UNIT**2)


def _rope(known: Known, y: F64, site: NoisySite, store: float) -> F64:
    """Count the rounding of cos, sin and products, and that of the angle, which grows with position."""
    geometry, errors = site.geometry, site.angle_errors
    if errors is None:
        errors = declared_angle_errors(geometry, site.layer, len(y))
    pairs, shape = errors.shape[1], (len(y), -1, geometry.head_dim)
    relative = squared(UNIT * (errors[:, None, None, :] + 2)) + 2 * max(store, UNIT) ** 2
    variance = np.zeros_like(y.reshape(shape))
    variance[..., : 2 * pairs] = _over_pairs(squared(y).reshape(shape), pairs, relative)
    if known.sigma is not None:
        carried = squared(known.sigma).reshape(shape)
        variance[..., 2 * pairs :] += carried[..., 2 * pairs :]
        variance[..., : 2 * pairs] += _over_pairs(carried, pairs)
    return np.asarray(variance.reshape(y.shape) + 2 * lost(store))


def declared_angle_errors(geometry: Geometry, layer: int | None, tokens: int) -> F64:
    """Return the rounding of the angles of the model's own rotation, [S, pairs], in unit roundoffs."""
    rope = geometry.rope_at(layer)
    frequencies, _ = rope_frequencies(rope, geometry.head_dim, tokens)
    exponents = np.linspace(0, 1, len(frequencies), endpoint=False)
    return angle_errors(
        np.arange(tokens, dtype=np.float64), frequencies, math.log(max(rope.theta, 2.0)) * exponents
    )


def angle_errors(positions: F64, frequencies: F64, logarithms: F64) -> F64:
    """Return the rounding of ``positions`` x ``frequencies``, [S, pairs], in unit roundoffs.

    A frequency is the exponential of its logarithm, which is rounded before.
    """
    return np.asarray(np.abs(np.outer(positions, frequencies)) * (2 + np.abs(logarithms)))


def _over_pairs(squares: F64, pairs: int, times: F64 | float = 1.0) -> F64:
    """Return for both members of each rotary pair the sum over the two: [S, heads, 2 * pairs]."""
    tokens, heads, _ = squares.shape
    split = squares[..., : 2 * pairs].reshape(tokens, heads, 2, pairs)
    summed = np.sum(split, axis=2, keepdims=True) * times
    return np.broadcast_to(summed, split.shape).reshape(tokens, heads, 2 * pairs)


def _rope_after_norm(role: str) -> Callable[[Ins, F64, NoisySite, float], F64]:
    """Count RoPE of the columns of ``role``, and the norm of each head before it where a family has one."""

    def variance(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
        known = _columns(ins["qkv_bias"], role, site.geometry)
        if not site.geometry.row.qk_norm:
            return _rope(known, y, site, store)
        heads = _by_head(known, site.geometry.head_dim)
        weight, eps = site.vector(f"{role}_norm"), site.geometry.norm_eps
        norm = np.asarray(rms_norm(heads.value, weight, eps), dtype=np.float64)
        sigma = np.sqrt(_normed(heads, norm, f"{role}_norm", site, store)).reshape(y.shape)
        return _rope(Known(value=norm.reshape(y.shape), sigma=sigma), y, site, store)

    return variance


def _by_head(known: Known, head_dim: int) -> Known:
    shape = (len(known.value), -1, head_dim)
    sigma = None if known.sigma is None else known.sigma.reshape(shape)
    return Known(value=known.value.reshape(shape), sigma=sigma)


def _columns(fused: Known, role: str, geometry: Geometry) -> Known:
    """Return the columns of q, k or v in q|k|v."""
    q, kv = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    columns = {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[role]
    return Known(
        value=fused.value[:, columns], sigma=None if fused.sigma is None else fused.sigma[:, columns]
    )


def _scores(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry, scale = site.geometry, site.geometry.attn_scale_at(site.layer)
    q, k = (_heads(ins[name].value, geometry.head_dim) for name in ("q_post_rope", "k_post_rope"))
    groups = geometry.heads // geometry.kv_heads
    k = np.repeat(k, groups, axis=0)
    carried: tuple[tuple[F64 | None, Callable[[F64], F64]], ...] = (
        (ins["q_post_rope"].sigma, lambda s: s @ squared(k).swapaxes(-1, -2)),
        (ins["k_post_rope"].sigma, lambda s: squared(q) @ np.repeat(s, groups, axis=0).swapaxes(-1, -2)),
    )
    per_term = geometry.head_dim * UNIT**2

    def uncapped(x: F64) -> F64:
        own = squared(q) @ (squared(k) * scale**2).swapaxes(-1, -2)
        own *= per_term / 6  # as sum_variance, in place: each copy is the largest stage
        own += np.square(x) * (per_term / 9 + 2 * max(store, UNIT) ** 2 / 3)
        own += lost(store) + lost(0.0, geometry.head_dim * scale)
        for sigma, through in carried:
            if sigma is not None:
                own += through(squared(_heads(sigma, geometry.head_dim))) * scale**2
        return own

    return _capped(y, geometry.attn_softcap, store, uncapped)


def sum_variance(squares: F64, y: F64, terms: int) -> F64:
    """Return the variance of a plain f32 sum of ``terms`` terms, given the sum of their squares."""
    return (squares * (terms / 6) + squared(y) * (terms / 9)) * UNIT**2 + lost(0.0, terms)


def _heads(x: F64, head_dim: int) -> F64:
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _softmax(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count exp of a rounded difference (its error grows with the difference) and the sum over the keys."""
    known = ins["attn_scores"]
    top = np.max(known.value, axis=-1, keepdims=True, where=y > 0, initial=-np.inf)
    # How far below the row's largest score, then step by step; -inf where a mask was added is no distance.
    own: F64 = np.where(y > 0, np.nan_to_num(top - known.value), 0.0)
    np.clip(own, 0.0, None, out=own)
    own += math.sqrt(y.shape[-1]) + FEW  # three times the row's common error, as in norm_variance
    own *= UNIT
    np.square(own, out=own)
    own += store * store / 3
    own *= np.square(y)
    if known.sigma is None:
        return own
    # Uniform errors reach sqrt(3) sigma, and exp makes more of one than its first order says.
    raised = np.expm1(np.minimum(known.sigma * math.sqrt(3), _UNKNOWN)) / math.sqrt(3)
    spread = np.sum(squared(y * raised), axis=-1, keepdims=True)
    return np.asarray(own + squared(y) * (squared(raised) + spread))


_UNKNOWN = 40.0
"""A score that is off by this much may turn a weight of 0 into one of 1, or the other way round."""


def _attention(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry = site.geometry
    weights = ins["attn_softmax"]
    v = ins["qkv_bias"].value[:, -geometry.kv_heads * geometry.head_dim :]
    values = np.repeat(_heads(v, geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0)
    squares = _flat(squared(weights.value) @ squared(values))
    variance = sum_variance(squares, y, weights.value.shape[-1])
    sizes = _flat(np.abs(weights.value) @ np.abs(values))
    variance = np.maximum(variance, added_up(weights.value, v, y, sizes, variance))
    variance = variance + stored(y, max(store, UNIT))
    if weights.sigma is not None:
        variance = variance + _flat(squared(weights.sigma) @ squared(values))
    if (sigma := ins["qkv_bias"].sigma) is not None:
        own = np.repeat(
            _heads(sigma[:, -v.shape[1] :], geometry.head_dim), geometry.heads // geometry.kv_heads, axis=0
        )
        variance = variance + _flat(squared(weights.value) @ squared(own))
    return np.asarray(variance)


def _flat(heads: F64) -> F64:
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


def _residual(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    carried = sum(known.variance for known in ins.values())
    return np.asarray(carried + stored(y, max(store, UNIT)))


def _activation(ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    (known,) = ins.values()
    return activated(known, y, site.geometry.activation, store)


def activated(known: Known, y: F64, activation: str, store: float) -> F64:
    """Return the variance of an activation of ``known``."""
    own = squared(_ACTIVATION_ERRORS[activation](known.value, y, store)) + stored(y, store)
    own += lost(store, known.value)  # of the sigmoid, or of 1 + tanh
    return np.asarray(own + 1.21 * known.variance)  # 1.1 bounds the slope of silu and gelu


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
    carried = squared(right.value) * left.variance + squared(left.value) * right.variance
    return np.asarray(carried + stored(y, max(store, UNIT)) + lost(store))


SIGMAS: Mapping[str, Callable[[Ins, F64, NoisySite, float], F64]] = {
    "embedding": _embedding,
    "attn_norm": _norm_of("attn_norm"),
    "qkv_matmul": _projection,
    "qkv_bias": _qkv_bias,
    "q_post_rope": _rope_after_norm("q"),
    "k_post_rope": _rope_after_norm("k"),
    "attn_scores": _scores,
    "attn_softmax": _softmax,
    "attention": _attention,
    "attn_out": _then_norm("attn_post_norm"),
    "post_attn_residual": _residual,
    "ffn_norm": _norm_of("ffn_norm"),
    "ffn_gate": _projection,
    "ffn_up": _projection,
    "ffn_silu": _activation,
    "ffn_swigl": _product,
    "ffn_out": _then_norm("ffn_post_norm"),
    "post_ffn_residual": _residual,
    "final_norm": _norm_of("final_norm"),
    "lm_head": _lm_head,
}
"""Stage -> the variance of its rounding; mixtures of experts are in ``compare.experts``."""
