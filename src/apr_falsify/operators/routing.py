"""Mixtures of experts: which experts a token is given to, with which weights, and their sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.shape import Geometry

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.integer[Any]]


def routing(logits: Array, geometry: Geometry) -> tuple[Indices, Array]:
    """Return the k experts of each token, best first, and their weights: [S, k] from logits [S, X]."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[..., : geometry.experts_per_token]
    return order, chosen_weights(probabilities, order, geometry)


def chosen_weights(probabilities: Array, chosen: Indices, geometry: Geometry) -> Array:
    """Return the weights of the experts ``chosen`` [S, k], normalised where the model does."""
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    return weights / np.sum(weights, axis=-1, keepdims=True) if geometry.norm_topk_prob else weights


def as_experts(values: Array, geometry: Geometry) -> Indices:
    """Return captured indices as whole numbers; what names no expert is taken for the first."""
    known = (values >= 0) & (values < geometry.experts)
    return np.where(known, values, 0).astype(np.int64)


def mixture(x: Array, chosen: Indices, weights: Array, expert_of: Callable[[Array, int], Array]) -> Array:
    """Return the weighted sum of what each token's experts make of it: [S, E].

    Args:
        x: [S, E].
        chosen: the experts of each token, [S, k].
        weights: their weights, [S, k].
        expert_of: what one expert makes of some tokens.

    """
    total = np.zeros_like(x)
    for expert in np.unique(chosen):
        tokens, slots = np.nonzero(chosen == expert)
        total[tokens] += weights[tokens, slots, None] * expert_of(x[tokens], int(expert))
    return total


def sigmoid(logits: Array) -> Array:
    """Return ``1 / (1 + exp(-logits))``."""
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1 / inf is the right limit, 0
        return np.asarray(1 / (1 + np.exp(-logits)))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(weights / np.sum(weights, axis=-1, keepdims=True))
