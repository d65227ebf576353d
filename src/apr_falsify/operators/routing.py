"""Mixtures of experts: which experts a token is given to, with which weights, and their sum.

A router's logits become scores, by a softmax (Shazeer et al. 2017) or by a sigmoid (DeepSeek-AI 2024,
sections 2.1.2 and 2.1.3 of the report on DeepSeek-V3). The experts of the best scores are chosen: of all, or
of the best groups, and with or without a correction that balances their load. Their weights are their scores,
without the correction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.shape import Geometry

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.integer[Any]]


def scores_of(logits: Array, geometry: Geometry) -> Array:
    """Return the score of each expert: [S, X] from logits [S, X]."""
    return sigmoid(logits) if geometry.router_scoring == "sigmoid" else softmax(logits)


def chosen_of(scores: Array, correction: Array | None, geometry: Geometry) -> Indices:
    """Return the k experts of each token, the largest score first: [S, k].

    Args:
        scores: [S, X].
        correction: what each expert's score is raised by when they are chosen [X], ``None`` for nothing.
        geometry: the model's geometry.

    """
    standing = scores if correction is None else scores + correction.astype(scores.dtype, copy=False)
    if geometry.expert_groups > 1:
        groups = best(group_standing(standing, geometry), geometry.expert_groups_chosen)
        standing = within_groups(standing, groups, geometry)
    return by_score(scores, best(standing, geometry.experts_per_token))


def best(values: Array, count: int) -> Indices:
    """Return the indices of the ``count`` largest values, the largest first; of equal ones the first."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def by_score(scores: Array, chosen: Indices) -> Indices:
    """Return the experts ``chosen`` [S, k], the largest score first."""
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, axis=-1)


def group_standing(standing: Array, geometry: Geometry) -> Array:
    """Return the sum of the best of each group: [S, groups] from [S, X]."""
    grouped = standing.reshape(*standing.shape[:-1], geometry.expert_groups, -1)
    return np.asarray(np.sum(np.sort(grouped, axis=-1)[..., -geometry.group_best :], axis=-1))


def within_groups(standing: Array, groups: Indices, geometry: Geometry) -> Array:
    """Return ``standing`` [S, X], minus infinity outside the groups [S, g] that each token is given to."""
    group_of = np.arange(geometry.experts) // (geometry.experts // geometry.expert_groups)
    inside = np.any(group_of == groups[..., None], axis=-2)
    return np.where(inside, standing, standing.dtype.type(-np.inf))


def chosen_weights(scores: Array, chosen: Indices, geometry: Geometry) -> Array:
    """Return the weights of the experts ``chosen`` [S, k], normalised and scaled where the model does."""
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if geometry.norm_topk_prob:
        total = np.sum(weights, axis=-1, keepdims=True)
        weights = weights / (total + scores.dtype.type(geometry.routed_sum_eps))
    return weights if geometry.routed_scale == 1.0 else weights * scores.dtype.type(geometry.routed_scale)


def by_expert(chosen: Indices, weights: Array, experts: int) -> Array:
    """Return ``weights`` [S, k] of the experts ``chosen`` [S, k] in one column an expert: [S, X]."""
    found = np.zeros((len(chosen), experts), dtype=weights.dtype)
    np.add.at(found, (np.arange(len(chosen))[:, None], chosen), weights)
    return found


def as_experts(values: Array, geometry: Geometry) -> Indices:
    """Return captured indices as whole numbers; what names no expert is taken for the first."""
    known = (values >= 0) & (values < geometry.experts)
    return np.where(known, values, 0).astype(np.int64)


def mixture(
    x: Array, weights: Array, expert_of: Callable[[Array, int], Array], weighted_input: bool = False
) -> Array:
    """Return the weighted sum of what each token's experts make of it: [S, E].

    Args:
        x: [S, E].
        weights: each token's weights of the experts [S, X]; an expert of weight 0 is not asked.
        expert_of: what one expert makes of some tokens.
        weighted_input: whether a weight is multiplied with what an expert is given, not what it makes.

    """
    total = np.zeros_like(x)
    for expert in np.flatnonzero(np.any(weights != 0, axis=0)):
        tokens = np.flatnonzero(weights[:, expert])
        share = weights[tokens, expert, None]
        if weighted_input:
            total[tokens] += expert_of(share * x[tokens], int(expert))
        else:
            total[tokens] += share * expert_of(x[tokens], int(expert))
    return total


def sigmoid(logits: Array) -> Array:
    """Return ``1 / (1 + exp(-logits))``."""
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1 / inf is the right limit, 0
        return np.asarray(1 / (1 + np.exp(-logits)))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(weights / np.sum(weights, axis=-1, keepdims=True))
