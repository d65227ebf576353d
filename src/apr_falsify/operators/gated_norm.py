"""Gated norms: of linear attention, each head normed, then times silu(gate); of a state space, the other way.

There the product with silu(gate) is normed, over the channels of each group of heads (Dao & Gu 2024).
"""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.mixers import StateSpace
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


def normed_groups(x: Array, weight: Array, eps: float, groups: int) -> Array:
    """Return ``x`` [S, C] normed over each of ``groups`` equal parts of its channels, times a weight [C]."""
    parts = x.reshape(len(x), groups, -1)
    scale = 1 / np.sqrt(np.mean(np.square(parts), axis=-1, keepdims=True) + x.dtype.type(eps))
    return np.asarray((parts * scale).reshape(x.shape) * weight.astype(x.dtype, copy=False))


def groups_of(geometry: Geometry) -> int:
    """Return into how many groups the channels of a state space are normed."""
    assert isinstance(geometry.mixer, StateSpace)
    return geometry.mixer.groups


def _gate_first(node: Node, inputs: Inputs, site: Site) -> Array:
    opened = inputs["scan_out"] * silu(inputs["scan_gate"])
    return normed_groups(opened, site.vector("scan_norm"), site.geometry.norm_eps, groups_of(site.geometry))


def _gate_first_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    x, gate, weight = ins["scan_out"], ins["scan_gate"], f64(site.vector("scan_norm"))
    active = f64(silu(gate.value))
    gated = Known(value=active, sigma=np.sqrt(activated(gate, active, "silu", UNIT)))
    opened = f64(x.value) * active
    carried = multiplied(x, gated, opened, store)
    parts = opened.reshape(len(opened), groups_of(site.geometry), -1)
    energy = np.mean(squared(parts), axis=-1, keepdims=True) + site.geometry.norm_eps
    slope = squared(weight) * (carried.reshape(parts.shape) / energy).reshape(y.shape)
    return np.asarray(norm_variance(y, parts.shape[-1], store) + slope + lost(store, weight))


def _gate_first_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "x = scan_out * scan_gate / (1 + np.exp(-scan_gate))",
        f"x = x.reshape(tokens, {groups_of(geometry)}, -1)",
        "x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + norm_eps)",
        f"{node.stage} = x.reshape(tokens, -1) * scan_norm_weight",
    )


GATE_THEN_NORM = Operator(
    name="gate_then_norm", values=_gate_first, variance=_gate_first_variance, text=_gate_first_text
)
GATED_NORM = Operator(name="gated_norm", values=_values, variance=_variance, text=_text)
