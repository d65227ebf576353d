"""The output head: the last token's logits, scaled and capped where a model does so."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.linear import projected
from apr_falsify.operators.operator import Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, UNIT, Ins, NoisySite, squared, stored
from apr_falsify.operators.site import Site
from apr_falsify.operators.softcap import capped_text, capped_variance, softcap

Array = npt.NDArray[np.floating[Any]]


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    logits = site.project(only(inputs)[..., -1, :], "lm_head")
    scale = site.geometry.logit_scale
    if scale != 1.0:
        logits = logits * logits.dtype.type(scale)
    return softcap(logits, site.geometry.final_softcap)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    scale = site.geometry.logit_scale

    def uncapped(x: F64) -> F64:
        if scale == 1.0:
            return projected(np.concatenate(site.noise, axis=-1), x, store)
        own = projected(np.concatenate(site.noise, axis=-1), x / scale, store)
        return np.asarray(own * squared(scale) + stored(x, max(store, UNIT)))

    return capped_variance(y, site.geometry.final_softcap, store, uncapped)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    cap = "" if geometry.final_softcap is None else "final_softcap"
    scale = "" if geometry.logit_scale == 1.0 else " * logit_scale"
    return capped_text("lm_head", f"{argument(node)}[-1] @ lm_head_weight.T{scale}", cap)


HEAD = Operator(name="head", values=_values, variance=_variance, text=_text, operation=Operation.PROJECTION)
