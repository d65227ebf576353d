"""The norm of rotated q or k without a weight: each head divided by its root mean square (Llama 4, 2025)."""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.norms import norm_variance
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, Ins, NoisySite, lost, squared
from apr_falsify.operators.site import Site


def l2_normed(x: Array, head_dim: int, eps: float) -> Array:
    """Return each head of ``x`` [S, heads * D] over the root of its mean square plus ``eps``."""
    heads = x.reshape(len(x), -1, head_dim)
    mean = np.mean(np.square(heads), axis=-1, keepdims=True)
    return np.asarray((heads / np.sqrt(mean + x.dtype.type(eps))).reshape(x.shape))


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    return l2_normed(only(inputs), site.geometry.head_dim, site.geometry.norm_eps)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, size = only(ins), site.geometry.head_dim
    own = norm_variance(y, size, store) + lost(store)
    heads = known.value.reshape(len(y), -1, size)
    energy = np.mean(np.square(heads), axis=-1, keepdims=True) + site.geometry.norm_eps
    carried = np.broadcast_to(known.variance, y.shape).reshape(heads.shape) / energy
    return np.asarray(own + squared(np.sqrt(carried)).reshape(y.shape))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        f"x = {argument(node)}.reshape(tokens, -1, head_dim)",
        "x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + norm_eps)",
        f"{node.stage} = x.reshape(tokens, -1)",
    )


L2_NORM = Operator(name="l2_norm", values=_values, variance=_variance, text=_text)
