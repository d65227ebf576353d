"""Softmax over the visible keys and a sink: a learned logit per head that takes weight and gives no value.

Attention sinks as gpt-oss has them (OpenAI 2025, after Xiao et al. 2023): the sink stands in the denominator
alone, so that a row of weights sums to less than 1.
"""

from __future__ import annotations

import math

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.attention import masked_text, raised_by
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, NoisySite
from apr_falsify.operators.site import Site


def sink_softmax(scores: Array, sinks: Array, window: int | None, passes: Passes | None = None) -> Array:
    """Return the weights of the keys that each token may see, zero elsewhere: [H, S, S].

    Args:
        scores: [H, S, S].
        sinks: the logit of each head's sink, [H].
        window: how many keys back a token sees, ``None`` for all.
        passes: how the run computed its tokens; ``None``: at once.

    """
    seen = (passes or Passes.whole(scores.shape[-1])).visible(window)
    masked = np.where(seen[len(seen) - scores.shape[-2] :], scores, -np.inf)
    sink = sinks.astype(scores.dtype, copy=False)[:, None, None]
    top = np.maximum(np.max(masked, axis=-1, keepdims=True), sink)
    weights = np.exp(masked - top)
    return np.asarray(weights / (np.sum(weights, axis=-1, keepdims=True) + np.exp(sink - top)))


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    assert site.layer is not None
    window = site.geometry.windows[site.layer]
    return sink_softmax(inputs["attn_scores"], site.vector("sinks"), window, site.passes)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Count as a softmax, whose largest logit may be the sink's.

    transformers keeps what is left of the scores after the largest is subtracted in its own format.
    """
    known = ins["attn_scores"]
    sink = site.vector("sinks").astype(np.float64)[:, None, None]
    top = np.maximum(np.max(known.value, axis=-1, keepdims=True, where=y > 0, initial=-np.inf), sink)
    below = np.where(y > 0, np.nan_to_num(top - known.value), 0.0)
    relative = (np.clip(below, 0.0, None) + math.sqrt(y.shape[-1] + 1) + FEW) * max(store, UNIT)
    own = np.square(y) * (np.square(relative) + store * store / 3)
    return own if known.sigma is None else np.asarray(own + raised_by(known.sigma, y))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *masked_text(geometry, layer),
        "sink = sinks_weight[:, None, None]",
        "top = np.maximum(np.max(masked, axis=-1, keepdims=True), sink)",
        "weights = np.exp(masked - top)",
        "attn_softmax = weights / (np.sum(weights, axis=-1, keepdims=True) + np.exp(sink - top))",
    )


SINK_SOFTMAX = Operator(
    name="sink_softmax", values=_values, variance=_variance, text=_text, over_tokens=True, kept=()
)
