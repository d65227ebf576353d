"""cap * tanh(x / cap), which keeps scores or logits within a cap (Bello et al. 2016; Gemma 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, NoisySite, lost, squared, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]

_SATURATED = 1 - 2.0**-48
"""The share of a soft-cap from which tanh cannot be undone; the slope is 0 there."""


def softcap(x: Array, cap: float | None) -> Array:
    """Return ``cap * tanh(x / cap)``, ``x`` itself without a cap (Bello et al. 2016; Gemma 2)."""
    if cap is None:
        return x
    limit = x.dtype.type(cap)
    return np.asarray(np.tanh(x / limit) * limit)


def capped_variance(y: F64, cap: float | None, store: float, carried: F64 | float) -> F64:
    """Count what ``cap * tanh(x / cap)`` leaves of the variance of x, and its own three roundings."""
    if cap is None:
        return np.array(np.broadcast_to(np.asarray(carried, dtype=np.float64), y.shape))
    share = np.clip(y / cap, -_SATURATED, _SATURATED)
    slope = 1 - squared(share)
    own = stored(y, max(store, UNIT), 2 + FEW) + 2 * lost(store, cap)  # of x / cap, and of its tanh
    return np.asarray(squared(slope) * carried + own)


def _cap(node: Node, geometry: Geometry) -> float | None:
    cap: float | None = getattr(geometry, node["cap"])
    return cap


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    return softcap(only(inputs), _cap(node, site.geometry))


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return capped_variance(y, _cap(node, site.geometry), store, only(ins).variance)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    cap = node["cap"]
    return (f"{node.stage} = np.tanh({argument(node)} / {cap}) * {cap}",)


SOFTCAP = Operator(name="softcap", values=_values, variance=_variance, text=_text)
