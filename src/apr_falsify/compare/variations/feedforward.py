"""What goes wrong in activations, and in gate times up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess


def _sigmoid(x: F64) -> F64:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: F64) -> F64:
    erf = np.fromiter(map(math.erf, (x / math.sqrt(2)).ravel()), np.float64, x.size)
    return np.asarray(x * 0.5 * (1 + erf.reshape(x.shape)))


def _gelu_tanh(x: F64) -> F64:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _softplus(x: F64) -> F64:
    return np.asarray(np.logaddexp(0.0, x))


ACTIVATIONS: Mapping[str, Callable[[F64], F64]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu (exact)": _gelu,
    "gelu (tanh)": _gelu_tanh,
    "gelu (sigmoid of 1.702 x)": lambda x: x * _sigmoid(1.702 * x),
    "hard silu (x * clip(x / 6 + 1/2, 0, 1))": lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "relu": lambda x: np.maximum(x, 0.0),
    "relu squared": lambda x: np.square(np.maximum(x, 0.0)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softplus": _softplus,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "no activation": lambda x: x,
}
"""Hendrycks & Gimpel 2016 (gelu), Ramachandran et al. 2017 (silu), So et al. 2021 (relu squared)."""


def other_activation(case: Case) -> Iterator[Guess]:
    """Yield the stage with each other activation."""
    gate = case.inputs.get("ffn_gate", case.captured("ffn_gate"))  # ffn_silu's own input, gate or not
    if gate is None:
        return
    up = case.inputs.get("ffn_up", 1.0)
    for name, function in ACTIVATIONS.items():
        says = name if name.startswith("no ") else f"the activation {name}"
        instead = f"the model declares {case.geometry.activation}"
        activated = np.asarray(function(gate))
        yield case.guess(says, activated * up, _activated(case, activated), instead=instead)


def _activated(case: Case, activated: F64) -> dict[str, F64] | None:
    return {"ffn_silu": activated} if "ffn_silu" in case.known else None


def swapped_gate_up(case: Case) -> Iterator[Guess]:
    """Yield the activation of up, and what gate times up is with the roles of both exchanged."""
    gate, up = case.captured("ffn_gate"), case.captured("ffn_up")
    if gate is None or up is None:
        return
    activation = ACTIVATIONS["silu" if case.geometry.activation == "silu" else "gelu (tanh)"]
    activated = np.asarray(activation(up))
    if case.name == "ffn_silu":
        yield case.guess("the activation of up, not of gate,", activated, {"ffn_gate": up})
    else:
        inputs = {"ffn_silu": activated, "ffn_up": gate}
        yield case.guess("gate * act(up), gate and up swapped,", gate * activated, inputs)


def other_product(case: Case) -> Iterator[Guess]:
    """Yield other combinations of the activated gate and up."""
    silu, up = case.inputs["ffn_silu"], case.inputs["ffn_up"]
    yield case.guess("the activated gate alone, without up,", silu)
    yield case.guess("up alone, without the gate,", up)
    yield case.guess("activated gate + up for their product", silu + up)
    yield case.guess("activated gate * (up + 1)", silu * (up + 1))
    twice = ACTIVATIONS["silu"](silu)
    yield case.guess("the activation applied twice", twice * up, {"ffn_silu": twice})
    yield case.guess("activation after the product", ACTIVATIONS["silu"](silu * up))
    yield case.guess("both gate and up activated", silu * ACTIVATIONS["silu"](up))
