"""Attention in three steps (Vaswani et al. 2017): scaled scores, softmax over visible keys, the mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.heads import by_head, flat, for_queries, values_of
from apr_falsify.operators.operator import Inputs, Lines, Operator
from apr_falsify.operators.repeated import added_up
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, NoisySite, lost, squared, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


OPERANDS: Mapping[Operation, tuple[str, str]] = {
    Operation.SCORES: ("q_post_rope", "k_post_rope"),
    Operation.MIX: ("attn_softmax", "qkv_bias"),
}
"""Product of two activations -> its arguments, as runtimes hold them: left, right."""


CACHED: Mapping[Operation, tuple[str, ...]] = {
    **{operation: (right,) for operation, (_, right) in OPERANDS.items()},
    Operation.ATTENTION: ("k_post_rope", "qkv_bias"),
}
"""Product of two activations -> the arguments that a cache keeps, of which earlier passes are read too."""


def attention_scores(q: Array, k: Array, geometry: Geometry, layer: int | None) -> Array:
    """Return scaled q.k before the mask and any cap: [H, S, S] from [S, H*D] and [S, K*D]."""
    scale = q.dtype.type(geometry.attn_scale_at(layer))
    queries, keys = by_head(q, geometry.head_dim), by_head(k, geometry.head_dim)
    scores = np.asarray(queries @ for_queries(keys, geometry).swapaxes(-1, -2))
    scores *= scale
    return scores


def attention_softmax(
    scores: Array, window: int | None, passes: Passes | None = None, chunk: int | None = None
) -> Array:
    """Return softmax over the keys that each token may see: [H, S, S], zero elsewhere.

    Token i sees j <= i, with a sliding window only the last ``window`` of those, with chunks only those of
    its own; padding is not seen. Of fewer rows these are the last tokens'.
    """
    seen = (passes or Passes.whole(scores.shape[-1])).visible(window, chunk)
    visible = seen[len(seen) - scores.shape[-2] :]
    weights = np.where(visible, scores, -np.inf)  # the one copy: at 512 tokens each is the largest stage
    weights -= np.max(weights, axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= np.sum(weights, axis=-1, keepdims=True)
    return weights


def visible_keys(tokens: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Return which key (column) each token (row) of a plain run may see: [S, S]."""
    return Passes.whole(tokens).visible(window)


def attention(weights: Array, qkv: Array, geometry: Geometry) -> Array:
    """Return softmax.V before the output projection: [S, H*Dv] from [H, S, S] and q|k|v."""
    values = by_head(values_of(qkv, geometry), geometry.value_dim)
    return flat(weights @ for_queries(values, geometry))


def _scores(node: Node, inputs: Inputs, site: Site) -> Array:
    return attention_scores(inputs["q_post_rope"], inputs["k_post_rope"], site.geometry, site.layer)


def _softmax(node: Node, inputs: Inputs, site: Site) -> Array:
    assert site.layer is not None
    window, chunk = site.geometry.windows[site.layer], site.geometry.chunk_at(site.layer)
    return attention_softmax(inputs["attn_scores"], window, site.passes, chunk)


def _mix(node: Node, inputs: Inputs, site: Site) -> Array:
    return attention(inputs["attn_softmax"], inputs["qkv_bias"], site.geometry)


def _scores_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry, scale = site.geometry, site.geometry.attn_scale_at(site.layer)
    q, k = (by_head(ins[name].value, geometry.head_dim) for name in ("q_post_rope", "k_post_rope"))
    k = for_queries(k, geometry)
    carried: tuple[tuple[F64 | None, Callable[[F64], F64]], ...] = (
        (ins["q_post_rope"].sigma, lambda s: s @ squared(k).swapaxes(-1, -2)),
        (ins["k_post_rope"].sigma, lambda s: squared(q) @ for_queries(s, geometry).swapaxes(-1, -2)),
    )
    per_term = geometry.head_dim * UNIT**2
    own = squared(q) @ (squared(k) * scale**2).swapaxes(-1, -2)
    own *= per_term / 6  # as sum_variance, in place: each copy is the largest stage
    own += np.square(y) * (per_term / 9 + 2 * max(store, UNIT) ** 2 / 3)
    own += lost(store) + lost(0.0, geometry.head_dim * scale)
    for sigma, through in carried:
        if sigma is not None:
            own += through(squared(by_head(sigma, geometry.head_dim))) * scale**2
    return np.asarray(own)


def sum_variance(squares: F64, y: F64, terms: int) -> F64:
    """Return the variance of a plain f32 sum of ``terms`` terms, given the sum of their squares."""
    return (squares * (terms / 6) + squared(y) * (terms / 9)) * UNIT**2 + lost(0.0, terms)


_UNKNOWN = 40.0
"""A score that is off by this much may turn a weight of 0 into one of 1, or the other way round."""


def _softmax_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
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
    return np.asarray(own + raised_by(known.sigma, y))


def raised_by(sigma: F64, y: F64) -> F64:
    """Return the variance that scores of rounding ``sigma`` [H, S, S] bring into weights ``y``."""
    # Uniform errors reach sqrt(3) sigma, and exp makes more of one than its first order says.
    raised = np.expm1(np.minimum(sigma * math.sqrt(3), _UNKNOWN)) / math.sqrt(3)
    spread = np.sum(squared(y * raised), axis=-1, keepdims=True)
    return np.asarray(squared(y) * (squared(raised) + spread))


def _mix_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    geometry = site.geometry
    weights = ins["attn_softmax"]
    v = values_of(ins["qkv_bias"].value, geometry)
    values = for_queries(by_head(v, geometry.value_dim), geometry)
    squares = flat(squared(weights.value) @ squared(values))
    variance = sum_variance(squares, y, weights.value.shape[-1])
    sizes = flat(np.abs(weights.value) @ np.abs(values))
    variance = np.maximum(variance, added_up(weights.value, v, y, sizes, variance))
    variance = variance + stored(y, max(store, UNIT))
    if weights.sigma is not None:
        variance = variance + flat(squared(weights.sigma) @ squared(values))
    if (sigma := ins["qkv_bias"].sigma) is not None:
        own = for_queries(by_head(sigma[:, -v.shape[1] :], geometry.value_dim), geometry)
        variance = variance + flat(squared(weights.value) @ squared(own))
    return np.asarray(variance)


def _scores_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "q = q_post_rope.reshape(tokens, heads, head_dim).swapaxes(0, 1)",
        "k = k_post_rope.reshape(tokens, kv_heads, head_dim).swapaxes(0, 1)",
        "k = np.repeat(k, heads // kv_heads, axis=0)",
        f"{node.stage} = q @ k.swapaxes(1, 2) * scale",
    )


def masked_text(geometry: Geometry, layer: int | None) -> Lines:
    """Return the lines that take away the scores of keys that a query may not see."""
    assert layer is not None
    windowed = "" if geometry.windows[layer] is None else " & (back < window)"
    if geometry.chunk_at(layer) is not None:
        windowed += " & (np.arange(tokens)[:, None] // chunk == np.arange(tokens) // chunk)"
    return (
        "back = np.arange(tokens)[:, None] - np.arange(tokens)",
        f"visible = (back >= 0){windowed}",
        "masked = np.where(visible, attn_scores, -np.inf)",
    )


def _softmax_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *masked_text(geometry, layer),
        "weights = np.exp(masked - np.max(masked, axis=-1, keepdims=True))",
        "attn_softmax = weights / np.sum(weights, axis=-1, keepdims=True)",
    )


def _mix_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    width = "v_head_dim" if geometry.v_head_dim else "head_dim"
    return (
        f"v = qkv_bias[:, -kv_heads * {width} :].reshape(tokens, kv_heads, {width}).swapaxes(0, 1)",
        "v = np.repeat(v, heads // kv_heads, axis=0)",
        "attention = (attn_softmax @ v).swapaxes(0, 1).reshape(tokens, -1)",
    )


SCORES = Operator(
    name="scores",
    values=_scores,
    variance=_scores_variance,
    text=_scores_text,
    operation=Operation.SCORES,
    over_tokens=True,
    kept=(),
)
SOFTMAX = Operator(
    name="softmax", values=_softmax, variance=_softmax_variance, text=_softmax_text, over_tokens=True, kept=()
)
MIX = Operator(
    name="mix",
    values=_mix,
    variance=_mix_variance,
    text=_mix_text,
    operation=Operation.MIX,
    over_tokens=True,
    kept=(),
)
