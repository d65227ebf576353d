"""What goes wrong in a router: how logits become scores, which experts are chosen, and with which weights.

A softmax over the logits of the chosen experts alone is that over all, made to sum to 1 over the chosen:
whether a port takes the softmax after the choice or divides by the sum afterwards, its numbers are the same,
and so is the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from apr_falsify.compare.replay import is_mixed
from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.operators.choices import f64
from apr_falsify.operators.routing import (
    Indices,
    as_experts,
    best,
    by_expert,
    by_score,
    chosen_of,
    chosen_weights,
    scores_of,
)

WEIGHED = ("router_weights", "moe_router", "ffn_out")
"""Stages that the weights of the chosen experts are in, or are computed through."""

CHOSEN = ("router_weights", "moe_router_indices", "ffn_out")
"""Stages that the choice of experts is in, or is computed through."""

_Changed = tuple[str, str, str, Mapping[str, Any]]
"""A cause, what it says, what the model has instead, and how its geometry differs."""


def is_routed(case: Case) -> bool:
    """Whether a stage is of a mixture, and its routing is part of what is replayed."""
    return is_mixed(case.key, case.geometry) and "router_weights" not in case.known


def other_weights(case: Case) -> Iterator[Guess]:
    """Yield the stage with the weights of the chosen experts made otherwise."""
    for name, says, instead, changes in _weighings(case.geometry):
        geometry = replace(case.geometry, **changes)
        yield replace(case.evaluated(says, geometry=geometry, instead=instead), name=name)
    logits, correction = _logits(case), _correction(case)
    if logits is not None and correction is not None:
        scores = f64(scores_of(logits, case.geometry))
        says = "weights that keep the correction by which experts are chosen"
        yield from _with_weights(case, says, "router-correction", scores + correction, _chosen(case, scores))


def _weighings(geometry: Geometry) -> Iterator[_Changed]:
    normalised, scale = geometry.norm_topk_prob, geometry.routed_scale
    softmax = geometry.router_scoring == "softmax"
    other = {"norm_topk_prob": not normalised}
    alone = "the softmax over the logits of the chosen experts alone, or" if softmax else ""
    to_one = f"{alone} weights of the chosen experts made to sum to 1".strip()
    not_to_one = "weights of the chosen experts not made to sum to 1"
    said = "the model makes them sum to 1" if normalised else "the model leaves them as they are"
    sums = not_to_one if normalised else f"{to_one},"
    yield "top-k-normalisation", sums, said, other
    if scale != 1.0:
        left_out = f"the scale {scale:.6g} of the routed experts left out"
        yield "routed-scale", left_out, "", {"routed_scale": 1.0}
        yield "routed-scale", left_out.replace("left out", "applied twice"), "", {"routed_scale": scale**2}
        yield "routed-scale", f"{left_out}, and {sums}", said, {**other, "routed_scale": 1.0}
    scoring = {"router_scoring": "sigmoid" if softmax else "softmax"}
    own, instead = ("softmax", "sigmoid") if softmax else ("sigmoid", "softmax")
    for also, words in (({}, ""), (other, f", and {sums.rstrip(',')},")):
        says = f"a {instead} of the router's logits{words}"
        yield "router-scoring", says, f"the model takes a {own}", {**scoring, **also}


def _with_weights(
    case: Case, says: str, name: str, scores: F64, chosen: Indices, instead: str = ""
) -> Iterator[Guess]:
    """Yield the stage where the experts ``chosen`` have the weights that ``scores`` [S, X] make."""
    weights = f64(chosen_weights(scores, chosen, case.geometry))
    if case.name == "moe_router":
        yield Guess(says=says, values=weights[0], instead=instead, name=name)
        return
    routing = f64(by_expert(chosen, weights, case.geometry.experts))
    if case.name == "router_weights":
        yield Guess(says=says, values=routing, instead=instead, name=name)
    elif case.name == "ffn_out":
        found = case.evaluated(says, {"router_weights": routing}, instead=instead)
        yield replace(found, name=name)


def _logits(case: Case) -> F64 | None:
    """Return the router's logits of the tokens that the stage has; ``None`` where nothing makes them."""
    known = case.known.get("router_logits")
    if known is None:
        if "ffn_norm" not in case.known:
            return None
        of_norm = {"ffn_norm": case.known["ffn_norm"]}
        found = case.replayer.evaluate(Key(case.layer, "router_logits"), of_norm, (case.rule,))
        values = f64(found.values[0])
    else:
        values = known.value
    return values[-1:] if case.name.startswith("moe_router") else values


def _chosen(case: Case, scores: F64) -> Indices:
    """Return the experts of each token: those that were captured, else those that the model chooses."""
    if "moe_router_indices" in case.known:
        return as_experts(case.known["moe_router_indices"].value, case.geometry)[None]
    return chosen_of(scores, _correction(case), case.geometry)


def _correction(case: Case) -> F64 | None:
    """Return what the experts' scores are raised by when they are chosen, ``None`` for nothing."""
    return case.vector("router_correction").reshape(-1) if case.geometry.router_corrected else None


def other_choice(case: Case) -> Iterator[Guess]:
    """Yield the stage with other experts chosen."""
    for name, says, instead, changes in _choices(case.geometry):
        geometry = replace(case.geometry, **changes)
        if case.name != "moe_router_indices" or "experts_per_token" not in changes:
            yield replace(case.evaluated(says, geometry=geometry, instead=instead), name=name)
    logits = _logits(case)
    if logits is not None:
        scores = f64(scores_of(logits, case.geometry))
        for says, chosen in _misranked(scores, _chosen_plainly(case, scores), case.geometry):
            yield from _with_experts(case, says, scores, chosen)


def _chosen_plainly(case: Case, scores: F64) -> F64:
    """Return what experts are chosen by, without groups."""
    correction = _correction(case)
    return scores if correction is None else scores + correction


def _choices(geometry: Geometry) -> Iterator[_Changed]:
    count, groups = geometry.experts_per_token, geometry.expert_groups
    everywhere = {"expert_groups": 1, "expert_groups_chosen": 1, "group_best": 1}
    size = geometry.experts // groups
    for other, words in ((count - 1, "too few"), (count + 1, "too many")):
        if 1 <= other <= geometry.expert_groups_chosen * size:
            says = f"{other} experts a token, one {words},"
            yield "expert-count", says, f"the model has {count}", {"experts_per_token": other}
    if geometry.router_corrected:
        says = "experts chosen without the correction of their scores"
        yield "router-correction", says, "", {"router_corrected": False}
    if groups > 1:
        yield "expert-groups", "experts chosen from all groups", "", everywhere
        for best_of in {1, 2} - {geometry.group_best}:
            if best_of <= size:
                says = f"groups ranked by their best {best_of}"
                instead = f"the model ranks them by their best {geometry.group_best}"
                yield "expert-groups", says, instead, {"group_best": best_of}
        if geometry.router_corrected:
            says = "experts chosen from all groups, without the correction of their scores"
            yield "expert-groups", says, "", {**everywhere, "router_corrected": False}


def _misranked(scores: F64, standing: F64, geometry: Geometry) -> Iterator[tuple[str, Indices]]:
    count = geometry.experts_per_token
    if count < geometry.experts:
        yield f"the experts of ranks 2 to {count + 1}, without the best,", best(standing, count + 1)[:, 1:]
    yield "the experts of the lowest scores", best(-standing, count)


def _with_experts(case: Case, says: str, scores: F64, chosen: Indices) -> Iterator[Guess]:
    chosen = by_score(scores, chosen)
    if case.name == "moe_router_indices":
        yield Guess(says=says, values=chosen[0].astype(np.float64), name="expert-choice")
    else:
        yield from _with_weights(case, says, "expert-choice", scores, chosen)
