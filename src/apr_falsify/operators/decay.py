"""What a gated delta rule does with its states at each token: how far it learns, and how much it keeps.

``beta = sigmoid(b)`` and ``g = -exp(A) softplus(a + d)``, the logarithm of what is kept (Yang et al. 2024,
after Dao & Gu 2024): A and d are learned numbers of each head.
"""

from __future__ import annotations

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import f64
from apr_falsify.operators.operator import Array, Inputs, Lines, Operator, argument, only
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Ins, NoisySite, lost, squared, stored
from apr_falsify.operators.routing import sigmoid
from apr_falsify.operators.site import Site


def softplus(x: Array) -> Array:
    """Return ``log(1 + exp(x))``."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def decay(logits: Array, log: Array, shift: Array) -> Array:
    """Return the logarithm of what each head keeps: [S, H] from [S, H], A [H] and d [H]."""
    return np.asarray(-np.exp(log.astype(logits.dtype)) * softplus(logits + shift.astype(logits.dtype)))


def _beta(node: Node, inputs: Inputs, site: Site) -> Array:
    return sigmoid(only(inputs))


def sigmoid_variance(logits: F64, carried: F64 | float, y: F64, store: float) -> F64:
    """Return the variance of ``y``, the sigmoid of ``logits``."""
    own = squared(y * UNIT * (np.abs(logits) + FEW)) + stored(y, max(store, UNIT)) + lost(store)
    return np.asarray(own + squared(y * (1 - y)) * carried)


def _beta_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    return sigmoid_variance(only(ins).value, only(ins).variance, y, store)


def _beta_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (f"{node.stage} = 1 / (1 + np.exp(-{argument(node)}))",)


def _decay(node: Node, inputs: Inputs, site: Site) -> Array:
    return decay(only(inputs), site.vector("decay_log"), site.vector("decay_shift"))


def _decay_variance(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    known, log, shift = only(ins), f64(site.vector("decay_log")), f64(site.vector("decay_shift"))
    moved = known.value + shift
    slope = np.exp(log) * f64(sigmoid(moved))
    # exp of a rounded number, softplus of a rounded sum, and the product.
    own = squared(y * UNIT * (np.abs(log) + np.abs(moved) + 2 * FEW)) + stored(y, max(store, UNIT))
    return np.asarray(own + squared(slope) * (known.variance + stored(np.abs(moved), UNIT)) + lost(store))


def _decay_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    moved = f"{argument(node)} + decay_shift_weight"
    return (f"{node.stage} = -np.exp(decay_log_weight) * np.logaddexp(0, {moved})",)


BETA = Operator(name="beta", values=_beta, variance=_beta_variance, text=_beta_text)
DECAY = Operator(name="decay", values=_decay, variance=_decay_variance, text=_decay_text)
