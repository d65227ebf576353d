"""The gated norm of linear attention: each head over its root mean square, times a weight and silu(gate)."""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.feedforward import activated, multiplied, silu
from apr_falsify.operators.norms import norm_variance, rms_norm
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.site import Site


def normed_heads(x: Array, weight: Array, eps: float) -> Array:
    """Return ``x`` [S, heads * V] normed head by head with one weight [V] for all."""
    return rms_norm(x.reshape(len(x), -1, len(weight)), weight, eps).reshape(x.shape)


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    normed = normed_heads(inputs["scan_out"], site.vector("scan_norm"), site.geometry.norm_eps)
    return np.asarray(normed * silu(inputs["scan_gate"]))


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    x, gate, weight = ins["scan_out"], ins["scan_gate"], f64(site.vector("scan_norm"))
    eps, width = site.geometry.norm_eps, len(weight)
    value = f64(normed_heads(x.value, weight, eps))
    heads = x.value.reshape(len(value), -1, width)
    slope = np.abs(weight) / np.sqrt(np.mean(squared(heads), axis=-1, keepdims=True) + eps)
    carried = squared(slope) * np.broadcast_to(x.variance, value.shape).reshape(heads.shape)
    own = norm_variance(value, width, store) + carried.reshape(value.shape) + lost(store)
    active = f64(silu(gate.value))
    normed = Known(value=value, sigma=np.sqrt(own))
    opened = Known(value=active, sigma=np.sqrt(activated(gate, active, "silu", UNIT)))
    return np.asarray(multiplied(normed, opened, y, store) + stored(y, max(store, UNIT)))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "x = scan_out.reshape(tokens, -1, len(scan_norm_weight))",
        "x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + norm_eps) * scan_norm_weight",
        f"{node.stage} = x.reshape(tokens, -1) * scan_gate / (1 + np.exp(-scan_gate))",
    )


GATED_NORM = Operator(name="gated_norm", values=_values, variance=_variance, text=_text)
