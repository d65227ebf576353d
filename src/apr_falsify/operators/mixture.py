"""The experts of a mixture: the weighted sum of what each token's experts make of it, and the shared expert.

What happens inside an expert is no stage: the rounding of gate, up, activation, down and the weighted sum is
carried through to its end, each as its own operator counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import EXPERT_ROLES, SHARED_ROLES, Geometry
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.choices import f64, sigma_of
from apr_falsify.operators.expert import hidden_of, hidden_text, known_hidden_of, projected_by
from apr_falsify.operators.feedforward import multiplied
from apr_falsify.operators.operator import Inputs, Lines
from apr_falsify.operators.replayed import (
    LAST,
    ExpertSite,
    MixtureOperator,
    Routed,
    as_the_run_chose,
    routed,
    rows,
    spread,
    through,
)
from apr_falsify.operators.roundoff import FEW, UNIT, Array, Known, lost, squared, stored
from apr_falsify.operators.routing import as_experts, by_expert, mixture, sigmoid
from apr_falsify.operators.site import Site


def _mixed(x: Known, weights: Known, site: ExpertSite, store: float) -> Known:
    """Return what the experts make of each token, by its weights of them [S, X]."""
    total = np.zeros_like(x.value)
    variance = np.zeros_like(x.value)
    for expert in np.flatnonzero(np.any(weights.value != 0, axis=0)):
        tokens = np.flatnonzero(weights.value[:, expert])
        roles, given = [f"{role}.{expert}" for role in EXPERT_ROLES], rows(x, tokens)
        share, doubt = (each[tokens, expert, None] for each in (weights.value, sigma_of(weights)))
        weight = Known(value=share, sigma=doubt)
        if site.geometry.weighted_input:
            made = _expert(_weighted(given, weight, store), roles, site, store)
        else:
            made = _weighted(_expert(given, roles, site, store), weight, store)
        total[tokens] += made.value
        variance[tokens] += squared(sigma_of(made))
        variance[tokens] += np.square(total[tokens] * max(store, UNIT)) / 3 + lost(store)
    found = Known(value=total, sigma=np.sqrt(variance))
    return _with_shared(found, x, site, store) if site.geometry.shared_intermediate else found


def _weighted(x: Known, weight: Known, store: float) -> Known:
    """Return ``x`` [S, n] times each token's weight [S, 1]."""
    value = weight.value * x.value
    return Known(value=value, sigma=np.sqrt(multiplied(x, weight, value, store)))


def _with_shared(found: Known, x: Known, site: ExpertSite, store: float) -> Known:
    """Return ``found`` with what the shared expert makes of every token."""
    made = _expert(x, SHARED_ROLES, site, store)
    variance, unit = squared(sigma_of(made)), max(store, UNIT)
    if site.geometry.shared_gated:
        logits = through(x, "shared_router", site, store)
        share = f64(sigmoid(logits.value))
        slope = share * (1 - share)
        own = squared(share * UNIT * (np.abs(logits.value) + FEW)) + stored(share, unit) + lost(store)
        doubt = np.sqrt(squared(slope * sigma_of(logits)) + own)
        weighted = share * made.value
        variance = multiplied(made, Known(value=share, sigma=doubt), weighted, store)
        made = Known(value=weighted, sigma=None)
    total = found.value + made.value
    return Known(value=total, sigma=np.sqrt(squared(sigma_of(found)) + variance + stored(total, unit)))


def _expert(x: Known, roles: Sequence[str], site: ExpertSite, store: float) -> Known:
    """Return what one expert makes of some tokens, its gate, up and down in ``roles``."""
    gate, up = (through(x, role, site, store) for role in roles[:2])
    return through(known_hidden_of(gate, up, site.geometry, store), roles[2], site, store)


def _replayed_mixture(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    x, given = inputs["ffn_norm"], routed(inputs, site, store)
    found = _mixed(x, given.weights, site, store)
    return as_the_run_chose(found, _other_mixes(x, given, site, store), site.captured)


def _other_mixes(x: Known, given: Routed, site: ExpertSite, store: float) -> Mapping[int, Known | None]:
    """Return what a token becomes by each choice that is open, where the run shows which it made."""
    if site.captured is None:
        return dict.fromkeys(given.others)
    return {
        token: None
        if weights is None
        else _mixed(rows(x, np.full(len(weights.value), token)), weights, site, store)
        for token, weights in given.others.items()
    }


def _replayed_last(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)[None]
    router = inputs["moe_router"]
    weights = Known(value=router.value[None], sigma=sigma_of(router)[None])
    found = _mixed(rows(inputs["ffn_norm"], LAST), spread(weights, chosen, site), site, store)
    return Known(value=found.value[0], sigma=sigma_of(found)[0])


def _one_expert(site: Site, x: Array, expert: int) -> Array:
    return _through_expert(site, x, [f"{role}.{expert}" for role in EXPERT_ROLES])


def _through_expert(site: Site, x: Array, roles: Sequence[str]) -> Array:
    gate, up = (projected_by(site, x, role) for role in roles[:2])
    return projected_by(site, hidden_of(gate, up, site.geometry), roles[2])


def _all_experts(site: Site, x: Array, weights: Array) -> Array:
    """Return the weighted sum of the experts, and the shared one where there is one."""
    found = mixture(x, weights, partial(_one_expert, site), site.geometry.weighted_input)
    if not site.geometry.shared_intermediate:
        return found
    shared = _through_expert(site, x, SHARED_ROLES)
    if site.geometry.shared_gated:
        shared = shared * sigmoid(site.project(x, "shared_router"))
    return np.asarray(found + shared)


def _mixture_values(node: Node, inputs: Inputs, site: Site) -> Array:
    return _all_experts(site, inputs["ffn_norm"], inputs["router_weights"])


def _last_values(node: Node, inputs: Inputs, site: Site) -> Array:
    chosen = as_experts(inputs["moe_router_indices"], site.geometry)[None]
    weights = by_expert(chosen, inputs["moe_router"][None], site.geometry.experts)
    last = _all_experts(site, inputs["ffn_norm"][LAST], weights)
    return np.asarray(last[0])


def _mixed_text(stage: str, x: str, weights: str, geometry: Geometry) -> Lines:
    def bias(part: str) -> str:
        return f" + expert_{part}_bias[e]" if geometry.expert_bias else ""

    share, before = f"{weights}[token, e] * ", geometry.weighted_input

    def matrix(part: str) -> str:
        given = f"({share}{x}[token])" if before else f"{x}[token]"
        return f"{given} @ expert_{part}_weight[e].T{bias(part)}"

    return (
        f"{stage} = np.zeros_like({x})",
        f"for token, e in zip(*np.nonzero({weights})):",
        *(f"    {line}" for line in hidden_text(geometry, matrix("gate"), matrix("up"))),
        f"    {stage}[token] += {'' if before else share}(hidden @ expert_down_weight[e].T{bias('down')})",
        *_shared_text(stage, x, geometry),
    )


def _shared_text(stage: str, x: str, geometry: Geometry) -> Lines:
    if not geometry.shared_intermediate:
        return ()
    gated = ("shared = shared / (1 + np.exp(-(" + x + " @ shared_router_weight.T)))",)
    return (
        *hidden_text(geometry, f"{x} @ shared_gate_weight.T", f"{x} @ shared_up_weight.T"),
        "shared = hidden @ shared_down_weight.T",
        *(gated if geometry.shared_gated else ()),
        f"{stage} = {stage} + shared",
    )


def _mixture_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return _mixed_text(node.stage, "ffn_norm", "router_weights", geometry)


def _last_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "last = ffn_norm[-1:]",
        f"weights = np.zeros((1, {geometry.experts}))",
        "np.add.at(weights[0], moe_router_indices.astype(int), moe_router)",
        *_mixed_text("mixed", "last", "weights", geometry),
        f"{node.stage} = mixed[0]",
    )


MIXTURE = MixtureOperator(
    name="mixture",
    values=_mixture_values,
    text=_mixture_text,
    operation=Operation.PROJECTION,
    replayed=_replayed_mixture,
)
LAST_MIXTURE = MixtureOperator(
    name="last_mixture",
    values=_last_values,
    text=_last_text,
    operation=Operation.PROJECTION,
    replayed=_replayed_last,
)
