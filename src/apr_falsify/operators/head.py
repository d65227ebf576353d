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
from apr_falsify.operators.softcap import capped_variance, softcap

Array = npt.NDArray[np.floating[Any]]


def _values(node: Node, inputs: Inputs, site: Site) -> Array:
    return site.project(only(inputs)[..., -1, :], "lm_head", "lm_head_bias" in node.roles)


def _variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return projected(np.concatenate(site.noise, axis=-1), y, store)


def _text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    bias = " + lm_head_bias" if "lm_head_bias" in node.roles else ""
    return (f"{node.stage} = {argument(node)}[-1] @ lm_head_weight.T{bias}",)


def _logits(node: Node, inputs: Inputs, site: Site) -> Array:
    x, scale = only(inputs), site.geometry.logit_scale
    return softcap(x if scale == 1.0 else x * x.dtype.type(scale), site.geometry.final_softcap)


def _logits_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, scale = only(ins), site.geometry.logit_scale
    carried = known.variance
    if scale != 1.0:
        carried = carried * squared(scale) + stored(known.value * scale, max(store, UNIT))
    return capped_variance(y, site.geometry.final_softcap, store, carried)


def _logits_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    scale = "" if geometry.logit_scale == 1.0 else " * logit_scale"
    first = f"{node.stage} = {argument(node)}{scale}"
    if geometry.final_softcap is None:
        return (first,)
    return first, f"{node.stage} = np.tanh({node.stage} / final_softcap) * final_softcap"


HEAD = Operator(name="head", values=_values, variance=_variance, text=_text, operation=Operation.PROJECTION)
LOGITS = Operator(name="logits", values=_logits, variance=_logits_variance, text=_logits_text)
