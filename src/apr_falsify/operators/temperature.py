"""Attention temperature: queries grow with the logarithm of their position (Nakanishi 2025; Llama 4, 2025).

Token t's query is multiplied with ``1 + c log(1 + floor((t + 1) / f))``, so that the scores of layers without
RoPE stay sharp over long runs.
"""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, NoisySite, squared, stored
from apr_falsify.operators.site import Site


def temperatures(scale: float, floor: float, passes: Passes, rows: int) -> F64:
    """Return what the last ``rows`` queries are multiplied with, padding counted: [rows, 1]."""
    counted = np.arange(passes.tokens - rows, passes.tokens) + 1.0
    return np.asarray(1 + scale * np.log1p(np.floor(counted / floor)))[:, None]


def own_temperatures(geometry: Geometry, passes: Passes, rows: int) -> F64:
    """Return those of a model."""
    return temperatures(geometry.temperature_scale, geometry.temperature_floor, passes, rows)


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    x = only(inputs)
    return np.asarray(x * own_temperatures(site.geometry, site.passes, len(x)).astype(x.dtype))


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    carried = squared(own_temperatures(site.geometry, site.passes, len(y))) * only(ins).variance
    return np.asarray(carried + stored(y, max(store, UNIT)) + squared(y * UNIT * FEW))


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "counted = np.arange(tokens)[:, None] + 1.0",
        "temperature = 1 + temperature_scale * np.log1p(np.floor(counted / temperature_floor))",
        f"{node.stage} = {argument(node)} * temperature",
    )


TEMPERATURE = Operator(
    name="temperature", values=_values, variance=_variance, text=_text, over_tokens=True, kept=()
)
