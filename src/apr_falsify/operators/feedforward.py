"""The elementwise steps of a layer: the activation, the gate's product, and the residual sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.operator import Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]


def silu(x: Array) -> Array:
    """Return ``x * sigmoid(x)``."""
    # exp overflows to inf for very negative x, and x / inf is the right limit, 0.
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))


def gelu_tanh(x: Array) -> Array:
    """Return ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`` (Hendrycks & Gimpel 2016)."""
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return np.asarray(x / 2 * (1 + np.tanh(inner)))


_ERF = np.frompyfunc(math.erf, 1, 1)


def gelu(x: Array) -> Array:
    """Return ``x / 2 * (1 + erf(x / sqrt(2)))`` (Hendrycks & Gimpel 2016)."""
    share = np.asarray(_ERF(x / math.sqrt(2)), dtype=x.dtype)
    return np.asarray(x / 2 * (1 + share))


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``."""
    return np.asarray(np.maximum(x, 0))


def relu_squared(x: Array) -> Array:
    """Return ``max(x, 0) ** 2`` (So et al. 2021)."""
    return np.asarray(np.square(np.maximum(x, 0)))


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu": gelu,
    "relu": relu,
    "relu2": relu_squared,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}
"""The feed-forward activations, by the name that config.json uses."""


def _silu_error(x: F64, y: F64, store: float) -> F64:
    """Count exp(-x): its relative error grows with x, and matters where the sigmoid is far from 1."""
    return np.asarray(y * UNIT * (np.abs(x) + FEW))


def _gelu_error(x: F64, y: F64, store: float) -> F64:
    """Count 1 + tanh (or 1 + erf), of which little is left for negative x: an error of x, not of y."""
    return np.asarray(x * max(store, UNIT))


def _relu_error(x: F64, y: F64, store: float) -> F64:
    """Count nothing, or the rounding of a square: that of what is stored is counted apart."""
    return np.asarray(y * UNIT)


_ERRORS: Mapping[str, Callable[[F64, F64, float], F64]] = {
    "silu": _silu_error,
    "gelu": _gelu_error,
    "relu": _relu_error,
    "relu2": _relu_error,
    "gelu_new": _gelu_error,
    "gelu_pytorch_tanh": _gelu_error,
}

_GELU_TEXT = "{x} / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * ({x} + 0.044715 * {x}**3)))"
_TEXTS: Mapping[str, str] = {
    "silu": "{x} / (1 + np.exp(-{x}))",
    "gelu": "{x} / 2 * (1 + np.vectorize(erf)({x} / np.sqrt(2)))",
    "relu": "np.maximum({x}, 0)",
    "relu2": "np.maximum({x}, 0)**2",
    "gelu_new": _GELU_TEXT,
    "gelu_pytorch_tanh": _GELU_TEXT,
}


def activation_text(x: str, geometry: Geometry) -> str:
    """Return the model's activation of ``x`` as an expression."""
    return text_of_activation(geometry.activation, x)


def text_of_activation(name: str, x: str) -> str:
    """Return the activation ``name`` of ``x`` as an expression."""
    return _TEXTS[name].format(x=x)


def activation_imports(geometry: Geometry) -> Lines:
    """Return the lines that bring what :func:`activation_text` names and NumPy does not have."""
    return ("from math import erf",) if "erf" in _TEXTS[geometry.activation] else ()


def _activation(node: Node, inputs: Inputs, site: Site) -> Array:
    return FUNCTIONS[site.geometry.activation](only(inputs))


def _activation_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return activated(only(ins), y, site.geometry.activation, store)


def activated(known: Known, y: F64, activation: str, store: float) -> F64:
    """Return the variance of an activation of ``known``."""
    own = squared(_ERRORS[activation](known.value, y, store)) + stored(y, store)
    own += lost(store, known.value)  # of the sigmoid, or of 1 + tanh
    if activation == "relu2":  # its slope grows with x: (x + s)^2 = x^2 + 2 x s + s^2
        return np.asarray(own + (4 * squared(known.value) + 3 * known.variance) * known.variance)
    return np.asarray(own + 1.21 * known.variance)  # 1.1 bounds the slope of silu, gelu and relu


def _activation_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *activation_imports(geometry),
        f"{node.stage} = {activation_text(argument(node), geometry)}",
    )


def _gate(node: Node, inputs: Inputs, site: Site) -> Array:
    return inputs["ffn_silu"] * inputs["ffn_up"]


def _gate_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return multiplied(ins["ffn_silu"], ins["ffn_up"], y, store)


def multiplied(left: Known, right: Known, y: F64, store: float) -> F64:
    """Return the variance of a product, element by element."""
    carried = squared(right.value) * left.variance + squared(left.value) * right.variance
    return np.asarray(carried + stored(y, max(store, UNIT)) + lost(store))


def _gate_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (f"{node.stage} = ffn_silu * ffn_up",)


def _add(node: Node, inputs: Inputs, site: Site) -> Array:
    stream, *branches = inputs.values()
    scale = site.geometry.residual_scale
    for branch in branches:
        stream = stream + (branch if scale == 1.0 else branch * branch.dtype.type(scale))
    return stream


def _add_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    stream, *branches = ins.values()
    scale, unit = site.geometry.residual_scale, max(store, UNIT)
    variance = stream.variance + stored(y, unit, len(branches))
    for branch in branches:
        variance = variance + squared(scale) * branch.variance
        if scale != 1.0:
            variance = variance + stored(branch.value * scale, unit)
    if len(branches) > 1:  # what stands between two sums, in whatever order, is rounded too
        last = np.max(np.abs([stream.value, *(branch.value * scale for branch in branches)]), axis=0)
        variance = variance + stored(np.abs(y) + last, unit)
    return np.asarray(variance)


def _add_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    scale = "" if geometry.residual_scale == 1.0 else " * residual_scale"
    stream, *branches = node.inputs
    return (f"{node.stage} = {stream}" + "".join(f" + {branch}{scale}" for branch in branches),)


ACTIVATION = Operator(
    name="activation", values=_activation, variance=_activation_variance, text=_activation_text
)
GATE = Operator(name="gate", values=_gate, variance=_gate_variance, text=_gate_text)
ADD = Operator(name="add", values=_add, variance=_add_variance, text=_add_text)
