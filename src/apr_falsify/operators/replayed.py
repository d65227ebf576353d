"""An operator within a mixture of experts: replayed by itself, with the rounding of everything within it.

Its values under one rule decide what becomes of a token: which experts it is given to is a choice, and a
replay takes the one that the run made, as far as rounding leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from apr_falsify.model.graph import Node
from apr_falsify.numerics.operand_rules import Rule
from apr_falsify.operators.choices import Choice, choice_of, f64, score_growth, score_variance, sigma_of
from apr_falsify.operators.expert import bias_of
from apr_falsify.operators.linear import projected, started_at
from apr_falsify.operators.norms import norm_variance
from apr_falsify.operators.operator import Operator
from apr_falsify.operators.roundoff import F64, UNIT, Array, Ins, Known, NoisySite, lost
from apr_falsify.operators.routing import Indices, by_expert, chosen_weights, scores_of
from apr_falsify.operators.site import Site


class ExpertSite(NoisySite, Protocol):
    """What the replay of a mixture asks of its place."""

    rules: tuple[Rule, ...]
    input_sigma: F64 | None

    @property
    def captured(self) -> F64 | None:
        """The stage itself as it was captured; ``None`` where it was not, or is computed for another one."""

    @property
    def last_weights(self) -> F64 | None:
        """The last token's weights of its experts as they were captured, in the order of its experts."""

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, once per rule."""


def _refuse(node: Node, ins: Ins, y: F64, site: NoisySite, store: float) -> F64:
    """Refuse: ``replay_mixture`` counts it, and a guess at a product takes the sigma of the replay."""
    raise NotImplementedError("the rounding within a mixture is counted where it is replayed")


Replayed = Callable[[Mapping[str, Known], ExpertSite, float], Known]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOperator(Operator):
    """An operator within a mixture.

    Attributes:
        replayed: computes it in f64 under the place's one rule, with its rounding, from the inputs of the
            span of nodes that it ends.
        variance: refuses; ``replay_mixture`` counts it.

    """

    variance: Callable[[Node, Ins, F64, NoisySite, float], F64] = _refuse
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
    return np.stack([known.value for known in found]), np.sqrt(np.square(sigma_of(found[0])) + lost(store))


def through(x: Known, role: str, site: ExpertSite, store: float) -> Known:
    """Return ``x`` through the projection in ``role``, with its bias where it has one."""
    site.input_sigma = x.sigma
    values, noise = f64(site.project(x.value, role)[0]), site.noise.pop()
    if (bias := bias_of(role, site.geometry)) is not None:
        added = site.vector(bias)
        values, noise = values + added, noise + started_at(added, x.value.shape[-1])
    return Known(value=values, sigma=np.sqrt(projected(noise, values, store) + lost(store)))


def rows(known: Known, tokens: Indices | slice) -> Known:
    """Return some tokens' rows."""
    sigma = None if known.sigma is None else known.sigma[tokens]
    return Known(value=known.value[tokens], sigma=sigma)


LAST = slice(-1, None)
"""The last token."""


def logits_of(inputs: Mapping[str, Known], tokens: slice, site: ExpertSite, store: float) -> Known:
    """Return the router's logits of some tokens: as captured, else computed through."""
    if "router_logits" in inputs:
        return rows(inputs["router_logits"], tokens)
    return through(rows(inputs["ffn_norm"], tokens), "router", site, store)


def correction_of(site: Site | NoisySite) -> Array | None:
    """Return what the experts' scores are raised by when they are chosen [X], ``None`` for nothing."""
    return site.vector("router_correction").reshape(-1) if site.geometry.router_corrected else None


def weights_of(logits: Known, chosen: Indices, site: NoisySite, store: float) -> Known:
    """Return the weights of the experts ``chosen`` [S, k]; a softmax is counted as that of attention is."""
    geometry = site.geometry
    scores = f64(scores_of(logits.value, geometry))
    weights = f64(chosen_weights(scores, chosen, geometry))
    relative = np.take_along_axis(score_variance(logits, scores, geometry), chosen, axis=-1)
    growth = score_growth(logits.value, geometry)
    grown = np.square(UNIT * np.take_along_axis(growth, chosen, axis=-1))
    if geometry.router_scoring == "sigmoid" and geometry.norm_topk_prob:
        shares = weights / np.sum(weights, axis=-1, keepdims=True)
        relative = relative + np.sum(np.square(shares) * (relative + grown), axis=-1, keepdims=True)
    own = norm_variance(weights, logits.value.shape[-1], max(store, UNIT)) + np.square(weights) * grown
    return Known(value=weights, sigma=np.sqrt(np.square(weights) * relative + own + lost(store)))


def routed(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Routed:
    """Return every token's weights, as captured or computed through, and what they may be instead."""
    if "router_weights" in inputs:
        return Routed(weights=inputs["router_weights"], others={})
    logits = logits_of(inputs, slice(None), site, store)
    choice = choice_of(logits, correction_of(site), site.geometry, store)
    return routed_by(logits, choice, site, store)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What each token is given to.

    Attributes:
        weights: [S, X], 0 of the experts that it is not given to.
        others: token -> the rows that it may have besides, [choices, X]; ``None`` where they are too many.

    """

    weights: Known
    others: Mapping[int, Known | None]


def routed_by(logits: Known, choice: Choice, site: NoisySite, store: float) -> Routed:
    """Return the weights of the experts of ``choice``, and of each that rounding leaves open."""
    others: dict[int, Known | None] = {}
    for token, chosen in choice.others.items():
        if chosen is None:
            others[token] = None
        else:
            of_token = rows(logits, np.full(len(chosen), token))
            others[token] = spread(weights_of(of_token, chosen, site, store), chosen, site)
    return Routed(
        weights=spread(weights_of(logits, choice.chosen, site, store), choice.chosen, site), others=others
    )


def spread(weights: Known, chosen: Indices, site: NoisySite) -> Known:
    """Return weights [S, k] of the experts ``chosen`` in one column an expert: [S, X]."""
    experts = site.geometry.experts
    variance = by_expert(chosen, np.square(sigma_of(weights)), experts)
    return Known(value=f64(by_expert(chosen, weights.value, experts)), sigma=np.sqrt(variance))


def as_the_run_chose(found: Known, others: Mapping[int, Known | None], captured: F64 | None) -> Known:
    """Return ``found`` [S, n], of each token in ``others`` that of its rows which is nearest to the captured
    one.

    Where nothing was captured, or the choices are too many, such a token says nothing: its sigma is as large
    as it is.
    """
    value, sigma = found.value.copy(), sigma_of(found).copy()
    kept = 0 if captured is None else len(captured)
    for token, rows_of in others.items():
        at = token - len(value) + kept
        if rows_of is None or captured is None or at < 0:
            sigma[token] = np.abs(value[token]) + np.sqrt(np.mean(np.square(value[token])))
            continue
        distance = np.sum(np.square(np.nan_to_num(rows_of.value - captured[at])), axis=-1)
        nearest = int(np.argmin(distance))
        value[token], sigma[token] = rows_of.value[nearest], sigma_of(rows_of)[nearest]
    return Known(value=value, sigma=sigma)
