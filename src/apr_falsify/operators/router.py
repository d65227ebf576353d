"""The router of a mixture: every token's weights of its experts, and the last one's as ``apr`` has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import Geometry
from apr_falsify.operators.choices import Choice, choice_of, exchangeable, sigma_of
from apr_falsify.operators.operator import Inputs, Lines
from apr_falsify.operators.replayed import (
    LAST,
    ExpertSite,
    MixtureOperator,
    as_the_run_chose,
    correction_of,
    logits_of,
    routed,
    weights_of,
)
from apr_falsify.operators.roundoff import F64, TINY, UNIT, Array, Known
from apr_falsify.operators.routing import (
    as_experts,
    best,
    by_expert,
    chosen_of,
    chosen_weights,
    scores_of,
)
from apr_falsify.operators.site import Site


def _weights(node: Node, inputs: Inputs, site: Site) -> Array:
    scores = scores_of(inputs["router_logits"], site.geometry)
    chosen = chosen_of(scores, correction_of(site), site.geometry)
    return by_expert(chosen, chosen_weights(scores, chosen, site.geometry), site.geometry.experts)


def _replayed_weights(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    found = routed(inputs, site, store)
    return as_the_run_chose(found.weights, found.others, site.captured)


def _last_experts(node: Node, inputs: Inputs, site: Site) -> Array:
    logits = inputs["router_logits"][LAST]
    chosen = chosen_of(scores_of(logits, site.geometry), correction_of(site), site.geometry)
    return np.asarray(chosen[0], dtype=logits.dtype)


def _replayed_experts(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = logits_of(inputs, LAST, site, store)
    choice = choice_of(logits, correction_of(site), site.geometry, store)
    either = _unknown_ranks(logits, choice, site.geometry, store)
    sigma = np.where(either, float(site.geometry.experts), UNIT)
    return Known(value=_as_listed(choice.chosen[0].astype(np.float64), site), sigma=sigma)


def _as_listed(chosen: F64, site: ExpertSite) -> F64:
    """Return the experts in the order in which the run lists them, where its weights are in that order."""
    listed, weights = site.captured, site.last_weights
    if listed is None or weights is None or not np.array_equal(np.sort(listed), np.sort(chosen)):
        return chosen
    return listed if np.array_equal(listed[best(weights, len(chosen))], chosen) else chosen


def _unknown_ranks(logits: Known, choice: Choice, geometry: Geometry, store: float) -> npt.NDArray[np.bool_]:
    """Return of which ranks of the last token, whose logits these are, rounding leaves the expert open."""
    count = geometry.experts_per_token
    if geometry.router_corrected or geometry.expert_groups > 1:  # not the largest scores of all are chosen
        of_chosen = [
            np.take_along_axis(each, choice.chosen, axis=-1) for each in (logits.value, sigma_of(logits))
        ]
        after = exchangeable(Known(value=of_chosen[0], sigma=of_chosen[1]), count - 1, geometry, store)[0]
        either = np.full(count, 0 in choice.others)
    else:
        after = (exchangeable(logits, count, geometry, store) | _vanished(logits, count))[0]
        either = np.zeros(count, dtype=np.bool_)
    either[: len(after)] |= after[:count]
    either[1:] |= after[: count - 1]
    return either


def _vanished(logits: Known, count: int) -> npt.NDArray[np.bool_]:
    """Return which of the ranks 0 to ``count`` have a probability that f32 may have lost; the last has no
    next one.

    One expert of none is like another.
    """
    ranked = np.take_along_axis(logits.value, best(logits.value, count + 1), axis=-1)
    total = np.sum(np.exp(logits.value - ranked[..., :1]), axis=-1, keepdims=True)
    return np.asarray(np.exp(ranked[..., :-1] - ranked[..., :1]) / total < 2 * TINY)


def _last_weights(node: Node, inputs: Inputs, site: Site) -> Array:
    scores = scores_of(inputs["router_logits"][LAST], site.geometry)
    chosen = as_experts(inputs["moe_router_indices"], site.geometry)
    return np.asarray(chosen_weights(scores, chosen[None], site.geometry)[0])


def _replayed_last(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = logits_of(inputs, LAST, site, store)
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)
    found = weights_of(logits, chosen[None], site, store)
    return Known(value=found.value[0], sigma=sigma_of(found)[0])


def _scores_text(logits: str, geometry: Geometry) -> Lines:
    if geometry.router_scoring == "sigmoid":
        return (f"scores = 1 / (1 + np.exp(-{logits}))",)
    return (
        f"scores = np.exp({logits} - np.max({logits}, axis=-1, keepdims=True))",
        "scores = scores / np.sum(scores, axis=-1, keepdims=True)",
    )


def _choice_text(geometry: Geometry) -> Lines:
    standing = "scores + router_correction_weight" if geometry.router_corrected else "scores"
    chosen = "chosen = np.argsort(-standing, axis=-1, kind='stable')[:, :experts_per_token]"
    return (
        f"standing = {standing}",
        *(_groups_text(geometry) if geometry.expert_groups > 1 else ()),
        chosen,
        "order = np.argsort(-np.take_along_axis(scores, chosen, axis=-1), axis=-1, kind='stable')",
        "chosen = np.take_along_axis(chosen, order, axis=-1)",
    )


def _groups_text(geometry: Geometry) -> Lines:
    groups, size = geometry.expert_groups, geometry.experts // geometry.expert_groups
    return (
        f"grouped = np.sort(standing.reshape(len(standing), {groups}, {size}), axis=-1)",
        f"group_score = np.sum(grouped[..., -{geometry.group_best}:], axis=-1)",
        f"taken = np.argsort(-group_score, axis=-1, kind='stable')[:, :{geometry.expert_groups_chosen}]",
        f"inside = np.any(np.arange({geometry.experts}) // {size} == taken[..., None], axis=-2)",
        "standing = np.where(inside, standing, -np.inf)",
    )


def _shares_text(stage: str, geometry: Geometry) -> Lines:
    lines = [f"{stage} = np.take_along_axis(scores, chosen, axis=-1)"]
    if geometry.norm_topk_prob:
        total, more = f"np.sum({stage}, axis=-1, keepdims=True)", geometry.routed_sum_eps
        lines.append(f"{stage} = {stage} / ({total} + {more})" if more else f"{stage} = {stage} / {total}")
    if geometry.routed_scale != 1.0:
        lines.append(f"{stage} = {stage} * {geometry.routed_scale!r}")
    return tuple(lines)


def _weights_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *_scores_text("router_logits", geometry),
        *_choice_text(geometry),
        *_shares_text("shares", geometry),
        f"{node.stage} = np.zeros_like(scores)",
        f"np.put_along_axis({node.stage}, chosen, shares, axis=-1)",
    )


def _last_experts_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *_scores_text("router_logits[-1:]", geometry),
        *_choice_text(geometry),
        f"{node.stage} = chosen[0]",
    )


def _last_weights_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *_scores_text("router_logits[-1:]", geometry),
        "chosen = moe_router_indices[None].astype(int)",
        *_shares_text("shares", geometry),
        f"{node.stage} = shares[0]",
    )


ROUTING = MixtureOperator(name="routing", values=_weights, text=_weights_text, replayed=_replayed_weights)
CHOSEN_EXPERTS = MixtureOperator(
    name="chosen_experts",
    values=_last_experts,
    text=_last_experts_text,
    replayed=_replayed_experts,
)
EXPERT_WEIGHTS = MixtureOperator(
    name="expert_weights",
    values=_last_weights,
    text=_last_weights_text,
    replayed=_replayed_last,
)
