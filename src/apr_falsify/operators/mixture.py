"""A mixture of experts: its router, its experts' weighted sum, and the rounding of everything within them.

What happens inside a mixture is no stage: the rounding of router, gate, up, activation, down and the weighted
sum is carried through to its end, each as its own operator counts it.

Which experts a token is given to is a choice. Where the logits of two experts are nearer to each other than
rounding may have moved them, either is right, and the stage says nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.model.graph import Node
from apr_falsify.model.shape import EXPERT_ROLES, SHARED_ROLES, Geometry
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.feedforward import (
    FUNCTIONS,
    activated,
    activation_imports,
    activation_text,
    multiplied,
)
from apr_falsify.operators.linear import projected
from apr_falsify.operators.norms import norm_variance
from apr_falsify.operators.operator import Inputs, Lines, Operator
from apr_falsify.operators.roundoff import F64, FEW, TINY, UNIT, Ins, Known, NoisySite, lost, squared, stored
from apr_falsify.operators.routing import (
    Indices,
    as_experts,
    chosen_weights,
    mixture,
    routing,
    sigmoid,
    softmax,
)
from apr_falsify.operators.site import Site

Array = npt.NDArray[np.floating[Any]]

_NEAR = 8.0
"""Two logits whose distance is less than this many sigmas may have changed places."""


class ExpertSite(NoisySite, Protocol):
    """What the replay of a mixture asks of its place."""

    rules: tuple[Rule, ...]
    input_sigma: F64 | None

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, once per rule."""


def _f64(values: Array) -> F64:
    return values.astype(np.float64, copy=False)


def _sigma(known: Known) -> F64:
    return np.zeros_like(known.value) if known.sigma is None else known.sigma


def _through(x: Known, role: str, site: ExpertSite, store: float) -> Known:
    site.input_sigma = x.sigma
    values = _f64(site.project(x.value, role)[0])
    return Known(value=values, sigma=np.sqrt(projected(site.noise.pop(), values, store) + lost(store)))


def _routed(logits: Known, chosen: Indices, site: ExpertSite, store: float) -> Known:
    """Return the weights of the experts ``chosen``; the softmax is counted as that of attention is."""
    probabilities = softmax(logits.value)
    weights = _f64(chosen_weights(probabilities, chosen, site.geometry))
    sigma = _sigma(logits)
    moved = np.sum(np.square(probabilities * sigma), axis=-1, keepdims=True)
    relative = np.square(np.take_along_axis(sigma, chosen, axis=-1)) + 2 * moved
    chosen_logits = np.take_along_axis(logits.value, chosen, axis=-1)
    raised = np.square(weights * UNIT * (np.max(logits.value, axis=-1, keepdims=True) - chosen_logits))
    own = norm_variance(weights, logits.value.shape[-1], max(store, UNIT)) + raised + lost(store)
    return Known(value=weights, sigma=np.sqrt(np.square(weights) * relative + own))


def _undecided(logits: Known, chosen: int) -> npt.NDArray[np.bool_]:
    """Return which of the ranks 0 to ``chosen`` of each token may have changed places with the next one.

    Their logits may have, or their probabilities: exp of the distance to the largest logit is rounded.
    """
    values, sigma = _ranked(logits, chosen)
    distance = values[..., :-1] - values[..., 1:]
    below = values[..., :1] - values[..., 1:]
    return np.asarray(
        distance
        <= _NEAR * np.sqrt(np.square(sigma[..., :-1]) + np.square(sigma[..., 1:]))
        + _NEAR * UNIT * (below + FEW)
    )


def _ranked(logits: Known, chosen: int) -> tuple[F64, F64]:
    """Return the logits of the ranks 0 to ``chosen`` and their sigma."""
    order = np.argsort(-logits.value, axis=-1, kind="stable")[..., : chosen + 1]
    values, sigma = (np.take_along_axis(a, order, axis=-1) for a in (logits.value, _sigma(logits)))
    return values, sigma


def _lost(logits: Known, chosen: int) -> npt.NDArray[np.bool_]:
    """Return which ranks have a probability that f32 may have lost: one expert of none is like another."""
    values, _ = _ranked(logits, chosen)
    total = np.sum(np.exp(logits.value - values[..., :1]), axis=-1, keepdims=True)
    return np.asarray(np.exp(values[..., :-1] - values[..., :1]) / total < 2 * TINY)


def _mixed(x: Known, chosen: Indices, weights: Known, site: ExpertSite, store: float) -> Known:
    total = np.zeros_like(x.value)
    variance = np.zeros_like(x.value)
    for expert in np.unique(chosen):
        tokens, slots = np.nonzero(chosen == expert)
        own = Known(value=x.value[tokens], sigma=None if x.sigma is None else x.sigma[tokens])
        made = _expert(own, [f"{role}.{expert}" for role in EXPERT_ROLES], site, store)
        share, doubt = (a[tokens, slots, None] for a in (weights.value, _sigma(weights)))
        weighted = share * made.value
        total[tokens] += weighted
        variance[tokens] += multiplied(made, Known(value=share, sigma=doubt), weighted, store)
        variance[tokens] += np.square(total[tokens] * max(store, UNIT)) / 3 + lost(store)
    found = Known(value=total, sigma=np.sqrt(variance))
    return _with_shared(found, x, site, store) if site.geometry.shared_intermediate else found


def _with_shared(found: Known, x: Known, site: ExpertSite, store: float) -> Known:
    """Return ``found`` with what the shared expert makes of every token."""
    made = _expert(x, SHARED_ROLES, site, store)
    variance, unit = squared(_sigma(made)), max(store, UNIT)
    if site.geometry.shared_gated:
        logits = _through(x, "shared_router", site, store)
        share = _f64(sigmoid(logits.value))
        slope = share * (1 - share)
        own = squared(share * UNIT * (np.abs(logits.value) + FEW)) + stored(share, unit) + lost(store)
        doubt = np.sqrt(squared(slope * _sigma(logits)) + own)
        weighted = share * made.value
        variance = multiplied(made, Known(value=share, sigma=doubt), weighted, store)
        made = Known(value=weighted, sigma=None)
    total = found.value + made.value
    return Known(value=total, sigma=np.sqrt(squared(_sigma(found)) + variance + stored(total, unit)))


def _expert(x: Known, roles: Sequence[str], site: ExpertSite, store: float) -> Known:
    """Return what one expert makes of some tokens, its gate, up and down in ``roles``."""
    gate, up = (_through(x, role, site, store) for role in roles[:2])
    activation = site.geometry.activation
    value = _f64(FUNCTIONS[activation](gate.value))
    active = Known(value=value, sigma=np.sqrt(activated(gate, value, activation, store)))
    product = active.value * up.value
    sigma = np.sqrt(multiplied(active, up, product, store))
    return _through(Known(value=product, sigma=sigma), roles[2], site, store)


def _last(known: Known) -> Known:
    return Known(value=known.value[-1:], sigma=None if known.sigma is None else known.sigma[-1:])


def _replayed_mixture(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    x, geometry = inputs["ffn_swigl"], site.geometry
    logits = _through(x, "router", site, store)
    chosen, _ = routing(logits.value, geometry)
    found = _mixed(x, chosen, _routed(logits, chosen, site, store), site, store)
    undecided = _undecided(logits, geometry.experts_per_token)  # where all are chosen, none stands beyond
    either = np.any(undecided[:, geometry.experts_per_token - 1 :], axis=-1, keepdims=True)
    size = np.sqrt(np.mean(np.square(found.value), axis=-1, keepdims=True))
    sigma = np.where(either, np.abs(found.value) + size, _sigma(found))
    return Known(value=found.value, sigma=sigma)


def _replayed_indices(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = _through(_last(inputs["ffn_norm"]), "router", site, store)
    chosen, _ = routing(logits.value, site.geometry)
    rank = site.geometry.experts_per_token
    after = (_undecided(logits, rank) | _lost(logits, rank))[0]
    either = np.zeros(len(chosen[0]), dtype=bool)
    either[: len(after)] |= after[: len(either)]
    either[1:] |= after[: len(either) - 1]
    sigma = np.where(either, float(site.geometry.experts), UNIT)
    return Known(value=chosen[0].astype(np.float64), sigma=sigma)


def _replayed_router(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = _through(_last(inputs["ffn_norm"]), "router", site, store)
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)
    found = _routed(logits, chosen[None], site, store)
    return Known(value=found.value[0], sigma=_sigma(found)[0])


def _replayed_last(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)
    router = inputs["moe_router"]
    weights = Known(value=router.value[None], sigma=_sigma(router)[None])
    found = _mixed(_last(inputs["ffn_norm"]), chosen[None], weights, site, store)
    return Known(value=found.value[0], sigma=_sigma(found)[0])


def _one_expert(site: Site, x: Array, expert: int) -> Array:
    return _through_expert(site, x, [f"{role}.{expert}" for role in EXPERT_ROLES])


def _through_expert(site: Site, x: Array, roles: Sequence[str]) -> Array:
    gate, up = (site.project(x, role) for role in roles[:2])
    return site.project(FUNCTIONS[site.geometry.activation](gate) * up, roles[2])


def _all_experts(site: Site, x: Array, chosen: Indices, weights: Array) -> Array:
    """Return the weighted sum of the chosen experts, and the shared one where there is one."""
    found = mixture(x, chosen, weights, partial(_one_expert, site))
    if not site.geometry.shared_intermediate:
        return found
    shared = _through_expert(site, x, SHARED_ROLES)
    if site.geometry.shared_gated:
        shared = shared * sigmoid(site.project(x, "shared_router"))
    return np.asarray(found + shared)


def _mixture_values(node: Node, inputs: Inputs, site: Site) -> Array:
    x = inputs["ffn_swigl"]
    chosen, weights = routing(site.project(x, "router"), site.geometry)
    return _all_experts(site, x, chosen, weights)


def _indices_values(node: Node, inputs: Inputs, site: Site) -> Array:
    last = inputs["ffn_norm"][-1:]
    chosen, _ = routing(site.project(last, "router"), site.geometry)
    return np.asarray(chosen[0], dtype=last.dtype)


def _router_values(node: Node, inputs: Inputs, site: Site) -> Array:
    probabilities = softmax(site.project(inputs["ffn_norm"][-1:], "router"))
    chosen = as_experts(inputs["moe_router_indices"], site.geometry)
    return np.asarray(chosen_weights(probabilities, chosen[None], site.geometry)[0])


def _last_values(node: Node, inputs: Inputs, site: Site) -> Array:
    chosen, weights = as_experts(inputs["moe_router_indices"], site.geometry), inputs["moe_router"]
    last = _all_experts(site, inputs["ffn_norm"][-1:], chosen[None], weights[None])
    return np.asarray(last[0])


def _routing_text(x: str) -> Lines:
    return (
        f"logits = {x} @ router_weight.T",
        "odds = np.exp(logits - np.max(logits, axis=-1, keepdims=True))",
        "odds = odds / np.sum(odds, axis=-1, keepdims=True)",
    )


def _chosen_text(stage: str, geometry: Geometry) -> Lines:
    taken = f"{stage} = np.take_along_axis(odds, chosen, axis=-1)"
    if not geometry.norm_topk_prob:
        return (taken,)
    return taken, f"{stage} = {stage} / np.sum({stage}, axis=-1, keepdims=True)"


def _mixed_text(stage: str, x: str, geometry: Geometry) -> Lines:
    return (
        *activation_imports(geometry),
        f"{stage} = np.zeros_like({x})",
        "for token, experts in enumerate(chosen):",
        "    for slot, e in enumerate(experts):",
        f"        gate = {x}[token] @ expert_gate_weight[e].T",
        f"        hidden = {activation_text('gate', geometry)} * ({x}[token] @ expert_up_weight[e].T)",
        f"        {stage}[token] += shares[token, slot] * (hidden @ expert_down_weight[e].T)",
        *_shared_text(stage, x, geometry),
    )


def _shared_text(stage: str, x: str, geometry: Geometry) -> Lines:
    if not geometry.shared_intermediate:
        return ()
    gated = ("shared = shared / (1 + np.exp(-(" + x + " @ shared_router_weight.T)))",)
    return (
        f"gate = {x} @ shared_gate_weight.T",
        f"hidden = {activation_text('gate', geometry)} * ({x} @ shared_up_weight.T)",
        "shared = hidden @ shared_down_weight.T",
        *(gated if geometry.shared_gated else ()),
        f"{stage} = {stage} + shared",
    )


_CHOICE = "chosen = np.argsort(-odds, axis=-1, kind='stable')[:, :experts_per_token]"


def _mixture_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    x = "ffn_swigl"
    return (
        *_routing_text(x),
        _CHOICE,
        *_chosen_text("shares", geometry),
        *_mixed_text(node.stage, x, geometry),
    )


def _indices_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (*_routing_text("ffn_norm[-1:]"), _CHOICE, "moe_router_indices = chosen[0]")


def _router_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        *_routing_text("ffn_norm[-1:]"),
        "chosen = moe_router_indices[None].astype(int)",
        *_chosen_text("shares", geometry),
        "moe_router = shares[0]",
    )


def _last_text(node: Node, geometry: Geometry, layer: int | None) -> Lines:
    return (
        "last = ffn_norm[-1:]",
        "chosen, shares = moe_router_indices[None].astype(int), moe_router[None]",
        *_mixed_text("mixed", "last", geometry),
        "moe_ffn_out = mixed[0]",
    )


Replayed = Callable[[Mapping[str, Known], ExpertSite, float], Known]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOperator(Operator):
    """An operator within a mixture.

    Attributes:
        replayed: computes it in f64 under the place's one rule, with its rounding.

    """

    replayed: Replayed


def replay_mixture(
    operator: MixtureOperator,
    inputs: Mapping[str, Known],
    site: ExpertSite,
    rules: Sequence[Rule],
    store: float,
) -> tuple[F64, F64]:
    """Return a stage of a mixture under each of ``rules``, [rules, ...], and its sigma."""
    found = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is data
        for rule in rules:
            site.rules = (rule,)
            found.append(operator.replayed(inputs, site, store))
    return np.stack([known.value for known in found]), np.sqrt(np.square(_sigma(found[0])) + lost(store))


def _operator(
    name: str,
    values: Callable[[Node, Inputs, Site], Array],
    text: Callable[[Node, Geometry, int | None], Lines],
    replayed: Replayed,
) -> MixtureOperator:
    return MixtureOperator(
        name=name,
        values=values,
        variance=_not_apart,
        text=text,
        operation=Operation.PROJECTION,
        replayed=replayed,
    )


def _not_apart(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Refuse: ``replay_mixture`` counts it, and a guess at a product takes the sigma of the replay."""
    raise NotImplementedError("the rounding within a mixture is counted where it is replayed")


MIXTURE = _operator("mixture", _mixture_values, _mixture_text, _replayed_mixture)
CHOSEN_EXPERTS = _operator("chosen_experts", _indices_values, _indices_text, _replayed_indices)
EXPERT_WEIGHTS = _operator("expert_weights", _router_values, _router_text, _replayed_router)
LAST_MIXTURE = _operator("last_mixture", _last_values, _last_text, _replayed_last)
