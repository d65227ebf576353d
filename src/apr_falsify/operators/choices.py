"""Which experts a token may have been given to: the choice, and what rounding may have made of it instead.

Where two experts stand nearer to each other than rounding may have moved them, either is right. So a token
has a choice, and often no other; where it has others, each of them is a set of experts that a correct runtime
may take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from apr_falsify.model.shape import Geometry
from apr_falsify.operators.roundoff import F64, FEW, UNIT, Known
from apr_falsify.operators.routing import (
    Array,
    Indices,
    best,
    by_score,
    group_standing,
    scores_of,
    within_groups,
)

Bools = npt.NDArray[np.bool_]

NEAR = 8.0
"""Two experts whose distance is less than this many sigmas may have changed places."""

MOST = 64
"""So many choices of one token are distinguished; where there are more, it is not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScores:
    """What experts, or groups of them, are chosen by.

    Attributes:
        value: [S, n], the largest are chosen.
        sigma: the rounding that it carries.
        slack: what its own computation may move it by beyond that.

    """

    value: F64
    sigma: F64
    slack: F64

    def at(self, token: int) -> ChoiceScores:
        """Return that of one token: [n]."""
        return ChoiceScores(value=self.value[token], sigma=self.sigma[token], slack=self.slack[token])

    def near(self, upper: Indices, lower: Indices) -> Bools:
        """Whether what stands at ``upper`` may have changed places with what stands at ``lower`` below it."""
        values, sigma, slack = (
            [np.take_along_axis(each, at, axis=-1) for at in (upper, lower)]
            for each in (self.value, self.sigma, self.slack)
        )
        with np.errstate(invalid="ignore"):  # of minus infinity, outside the chosen groups
            allowed = NEAR * np.hypot(*sigma) + NEAR * np.maximum(*slack)
            return np.asarray(values[0] - values[1] <= allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The experts of each token.

    Attributes:
        chosen: the k experts, the largest score first: [S, k].
        others: token -> every choice that it may have made, [choices, k]; ``None`` where they are too many.

    """

    chosen: Indices
    others: Mapping[int, Indices | None]


def f64(values: Array) -> F64:
    """Return ``values`` in f64."""
    return values.astype(np.float64, copy=False)


def sigma_of(known: Known) -> F64:
    """Return the rounding that ``known`` carries, 0 where it was captured."""
    return np.zeros_like(known.value) if known.sigma is None else known.sigma


def score_variance(logits: Known, scores: F64, geometry: Geometry) -> F64:
    """Return the variance of the scores, relative to them, that the logits carry."""
    sigma = sigma_of(logits)
    if geometry.router_scoring == "sigmoid":
        return np.square((1 - scores) * sigma)
    moved = np.sum(np.square(scores * sigma), axis=-1, keepdims=True)
    return np.asarray(np.square(sigma) + 2 * moved)


def score_growth(logits: F64, geometry: Geometry) -> F64:
    """Return how many roundings exp brings into a score: its relative error grows with its argument."""
    sigmoid = geometry.router_scoring == "sigmoid"
    return np.asarray(np.abs(logits) if sigmoid else np.max(logits, axis=-1, keepdims=True) - logits)


def _slack(logits: F64, geometry: Geometry, store: float) -> F64:
    """Return how far exp and what follows may take a score, relative to it.

    A runtime may keep scores in its own format, of unit roundoff ``store``, before it chooses.
    """
    return UNIT * (score_growth(logits, geometry) + FEW) + _coarser(store)


def _coarser(store: float) -> float:
    return store if store > UNIT else 0.0


def standing_of(logits: Known, correction: Array | None, geometry: Geometry, store: float) -> ChoiceScores:
    """Return what the experts are chosen by, in f64.

    The scores of a softmax that nothing is added to stand as their logits do, which keep their digits where
    scores vanish.
    """
    value = logits.value.astype(np.float64, copy=False)
    slack = _slack(value, geometry, store)
    if _by_logits(correction, geometry):
        return ChoiceScores(value=value, sigma=sigma_of(logits), slack=slack)
    scores = f64(scores_of(value, geometry))
    sigma = f64(scores * np.sqrt(score_variance(logits, scores, geometry)))
    raised = scores if correction is None else f64(scores + correction)
    return ChoiceScores(value=raised, sigma=sigma, slack=scores * slack + max(store, UNIT) * np.abs(raised))


def _by_logits(correction: Array | None, geometry: Geometry) -> bool:
    return correction is None and geometry.expert_groups == 1 and geometry.router_scoring == "softmax"


def choice_of(logits: Known, correction: Array | None, geometry: Geometry, store: float) -> Choice:
    """Return the experts of each token, by its ``logits`` [S, X] and the experts' ``correction`` [X]."""
    standing = standing_of(logits, correction, geometry, store)
    order = logits.value if _by_logits(correction, geometry) else f64(scores_of(logits.value, geometry))
    inside, undecided = standing, np.zeros(len(order), dtype=np.bool_)
    if geometry.expert_groups > 1:
        groups = _group_standing(standing, geometry)
        taken = best(groups.value, geometry.expert_groups_chosen)
        inside = replace(standing, value=f64(within_groups(standing.value, taken, geometry)))
        undecided = _undecided_at_edge(groups, geometry.expert_groups_chosen)
    chosen = by_score(order, best(inside.value, geometry.experts_per_token))
    undecided |= _undecided_at_edge(inside, geometry.experts_per_token)
    others = {
        token: _choices(standing.at(token), order[token], geometry)
        for token in np.flatnonzero(undecided).tolist()
    }
    return Choice(chosen=chosen, others=others)


def _group_standing(standing: ChoiceScores, geometry: Geometry) -> ChoiceScores:
    def sized(each: F64) -> F64:
        grouped = each.reshape(*each.shape[:-1], geometry.expert_groups, -1)
        return np.asarray(np.max(grouped, axis=-1))

    count = geometry.group_best
    return ChoiceScores(
        value=f64(group_standing(standing.value, geometry)),
        sigma=math.sqrt(count) * sized(standing.sigma),
        slack=count * sized(standing.slack),
    )


def _undecided_at_edge(standing: ChoiceScores, count: int) -> Bools:
    """Whether the last that are chosen of each token may have changed places with the next."""
    if count == standing.value.shape[-1]:
        return np.zeros(len(standing.value), dtype=np.bool_)
    ranks = best(standing.value, count + 1)
    return standing.near(ranks[:, -2:-1], ranks[:, -1:])[:, 0]


def _choices(standing: ChoiceScores, scores: F64, geometry: Geometry) -> Indices | None:
    """Return every choice of one token, [choices, k], the largest score first; ``None`` for too many."""
    found: set[tuple[int, ...]] = set()
    for inside in _group_choices(standing, geometry):
        for experts in _sets(inside, geometry.experts_per_token):
            found.add(tuple(sorted(experts)))
            if len(found) > MOST:
                return None
    return by_score(scores[None], np.array(sorted(found)))


def _group_choices(standing: ChoiceScores, geometry: Geometry) -> Iterator[ChoiceScores]:
    if geometry.expert_groups == 1:
        yield standing
        return
    rows = ChoiceScores(value=standing.value[None], sigma=standing.sigma[None], slack=standing.slack[None])
    for groups in _sets(_group_standing(rows, geometry).at(0), geometry.expert_groups_chosen):
        taken = np.array(groups)[None]
        yield replace(standing, value=f64(within_groups(rows.value, taken, geometry)[0]))


def _sets(standing: ChoiceScores, count: int) -> Iterator[tuple[int, ...]]:
    """Give every set of ``count`` that rounding may have made the best of one token's."""
    order = best(standing.value, len(standing.value))
    inside, outside = order[:count], order[count:]
    if not len(outside):
        yield tuple(inside.tolist())
        return
    near = partial(_near_one, standing)
    leaving = [int(at) for at in inside if near(int(at), int(outside[0]))]
    entering = [int(at) for at in outside if near(int(inside[-1]), int(at))]
    staying = [int(at) for at in inside if int(at) not in leaving]
    for some in itertools.islice(itertools.combinations((*leaving, *entering), len(leaving)), MOST + 1):
        yield (*staying, *some)


def _near_one(standing: ChoiceScores, upper: int, lower: int) -> bool:
    return bool(standing.near(np.array([upper]), np.array([lower]))[0])


def exchangeable(logits: Known, count: int, geometry: Geometry, store: float) -> Bools:
    """Return which of each token's ranks 0 to ``count`` may have changed places with the next."""
    plain = replace(geometry, expert_groups=1, expert_groups_chosen=1)
    standing = standing_of(logits, None, plain, store)
    ranks = best(standing.value, count + 1)
    return standing.near(ranks[:, :-1], ranks[:, 1:])
