"""Products with gates: attention's output with the sigmoid of its gate, a convolution's input and output."""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.decay import sigmoid_variance
from apr_falsify.operators.feedforward import multiplied
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, Ins, Known, NoisySite
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.site import Site


def _gated(node: Node, inputs: Inputs, site: Site) -> Array:
    return np.asarray(inputs["attention"] * sigmoid(inputs["attn_gate"]))


def _gated_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    gate = ins["attn_gate"]
    share = f64(sigmoid(gate.value))
    opened = Known(value=share, sigma=np.sqrt(sigmoid_variance(gate.value, gate.variance, share, store)))
    return multiplied(ins["attention"], opened, y, store)


def _gated_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (f"{node.stage} = attention / (1 + np.exp(-attn_gate))",)


def _factors(ins: Ins) -> tuple[Known, Known]:
    """Return the two factors: a part of the projection, and the convolution's output or the last part."""
    parts = ins["conv_proj"]
    width = parts.value.shape[-1] // 3

    def part(at: int) -> Known:
        columns = np.s_[..., at * width : (at + 1) * width]
        sigma = None if parts.sigma is None else parts.sigma[columns]
        return Known(value=parts.value[columns], sigma=sigma)

    return (part(1), ins["conv_out"]) if "conv_out" in ins else (part(0), part(2))


def _product(node: Node, inputs: Inputs, site: Site) -> Array:
    before, after, x = np.split(inputs["conv_proj"], 3, axis=-1)
    return np.asarray(after * inputs["conv_out"] if "conv_out" in inputs else before * x)


def _product_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    left, right = _factors(ins)
    return multiplied(left, right, y, store)


def _product_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    product = "after * conv_out" if "conv_out" in node.inputs else "before * x"
    return ("before, after, x = np.split(conv_proj, 3, axis=-1)", f"{node.stage} = {product}")


SIGMOID_GATE = Operator(name="sigmoid_gate", values=_gated, variance=_gated_variance, text=_gated_text)
CONV_GATE = Operator(name="conv_gate", values=_product, variance=_product_variance, text=_product_text)
