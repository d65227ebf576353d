"""The rows of the embedding table, scaled and with learned positions where a model has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, Ins, NoisySite, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    scale, rows = site.geometry.embed_scale, site.embed()
    if scale != 1.0:
        rows = rows * rows.dtype.type(scale)
    return rows + site.positions() if "positions" in node.roles else rows


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return stored(y, store, 2)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    scale = " * embed_scale" if geometry.embed_scale != 1.0 else ""
    positions = " + position_rows" if "positions" in node.roles else ""
    return (f"embedding = embed_rows{scale}{positions}",)


EMBED = Operator(name="embed", values=_values, variance=_variance, text=_text)
