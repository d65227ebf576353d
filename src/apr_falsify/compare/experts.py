"""The stages of a mixture of experts, replayed: values, and the rounding of everything within them.

What happens inside a mixture is no stage: the rounding of router, gate, up, activation, down and the weighted
sum is carried through to its end, each as ``compare.floor`` counts it.

Which experts a token is given to is a choice. Where the logits of two experts are nearer to each other than
rounding may have moved them, either is right, and the stage says nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import activated, multiplied, norm_variance, projected
from apr_falsify.compare.roundoff import FEW, TINY, UNIT, Known, NoisySite, lost
from apr_falsify.model.mixture import Indices, as_experts, chosen_weights, routing, softmax
from apr_falsify.numerics.operand_rules import Rule
from apr_falsify.operators.ops import ACTIVATIONS

F64 = npt.NDArray[np.float64]
Array = npt.NDArray[np.floating[Any]]

_NEAR = 8.0
"""Two logits whose distance is less than this many sigmas may have changed places."""


class ExpertSite(NoisySite, Protocol):
    """What the replay of a mixture asks of its place."""

    rules: tuple[Rule, ...]
    input_sigma: F64 | None

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, once per rule."""


def replay_mixture(
    name: str, inputs: Mapping[str, Known], site: ExpertSite, rules: Sequence[Rule], store: float
) -> tuple[F64, F64]:
    """Return a stage of a mixture under each of ``rules``, [rules, ...], and its sigma."""
    found = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is data
        for rule in rules:
            site.rules = (rule,)
            found.append(STAGES_OF_MIXTURE[name](inputs, site, store))
    return np.stack([known.value for known in found]), np.sqrt(np.square(_sigma(found[0])) + lost(store))


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
        made = _expert(own, int(expert), site, store)
        share, doubt = (a[tokens, slots, None] for a in (weights.value, _sigma(weights)))
        weighted = share * made.value
        total[tokens] += weighted
        variance[tokens] += multiplied(made, Known(value=share, sigma=doubt), weighted, store)
        variance[tokens] += np.square(total[tokens] * max(store, UNIT)) / 3 + lost(store)
    return Known(value=total, sigma=np.sqrt(variance))


def _expert(x: Known, expert: int, site: ExpertSite, store: float) -> Known:
    gate, up = (_through(x, f"{role}.{expert}", site, store) for role in ("expert_gate", "expert_up"))
    activation = site.geometry.activation
    value = _f64(ACTIVATIONS[activation](gate.value))
    active = Known(value=value, sigma=np.sqrt(activated(gate, value, activation, store)))
    product = active.value * up.value
    sigma = np.sqrt(multiplied(active, up, product, store))
    return _through(Known(value=product, sigma=sigma), f"expert_down.{expert}", site, store)


def _last(known: Known) -> Known:
    return Known(value=known.value[-1:], sigma=None if known.sigma is None else known.sigma[-1:])


def _ffn_out(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    x, geometry = inputs["ffn_swigl"], site.geometry
    logits = _through(x, "router", site, store)
    chosen, _ = routing(logits.value, geometry)
    found = _mixed(x, chosen, _routed(logits, chosen, site, store), site, store)
    undecided = _undecided(logits, geometry.experts_per_token)  # where all are chosen, none stands beyond
    either = np.any(undecided[:, geometry.experts_per_token - 1 :], axis=-1, keepdims=True)
    size = np.sqrt(np.mean(np.square(found.value), axis=-1, keepdims=True))
    sigma = np.where(either, np.abs(found.value) + size, _sigma(found))
    return Known(value=found.value, sigma=sigma)


def _indices(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = _through(_last(inputs["ffn_norm"]), "router", site, store)
    chosen, _ = routing(logits.value, site.geometry)
    rank = site.geometry.experts_per_token
    after = (_undecided(logits, rank) | _lost(logits, rank))[0]
    either = np.zeros(len(chosen[0]), dtype=bool)
    either[: len(after)] |= after[: len(either)]
    either[1:] |= after[: len(either) - 1]
    sigma = np.where(either, float(site.geometry.experts), UNIT)
    return Known(value=chosen[0].astype(np.float64), sigma=sigma)


def _router(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    logits = _through(_last(inputs["ffn_norm"]), "router", site, store)
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)
    found = _routed(logits, chosen[None], site, store)
    return Known(value=found.value[0], sigma=_sigma(found)[0])


def _mixture_output(inputs: Mapping[str, Known], site: ExpertSite, store: float) -> Known:
    chosen = as_experts(inputs["moe_router_indices"].value, site.geometry)
    router = inputs["moe_router"]
    weights = Known(value=router.value[None], sigma=_sigma(router)[None])
    found = _mixed(_last(inputs["ffn_norm"]), chosen[None], weights, site, store)
    return Known(value=found.value[0], sigma=_sigma(found)[0])


STAGES_OF_MIXTURE: Mapping[str, Callable[[Mapping[str, Known], ExpertSite, float], Known]] = {
    "ffn_out": _ffn_out,
    "moe_router_indices": _indices,
    "moe_router": _router,
    "moe_ffn_out": _mixture_output,
}
"""Stage of a mixture -> its replay."""
