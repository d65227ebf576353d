"""What goes wrong in latent attention: norms of latents, the order of a head's parts, YaRN in the scale.

DeepSeek-AI 2024 (the report on DeepSeek-V2), section 2.1. Few runtimes show a latent: where none was
captured, it is computed, made otherwise, and carried through to q|k|v.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.common import Indices, parts
from apr_falsify.compare.variations.norms import EPSILONS, FORMS, scaled
from apr_falsify.compare.variations.turning import declared, rotated_guess, unrotated
from apr_falsify.model.graph import Node
from apr_falsify.model.settings import yarn_in_scale
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.operators.norms import eps_of
from apr_falsify.operators.roundoff import Known

_ROTATED = ("q_post_rope", "k_post_rope")
STAGES = ("q_up", "qkv_matmul", *_ROTATED)


def is_latent(case: Case) -> bool:
    """Whether the model's q, k and v are made of latents."""
    return case.geometry.kv_latent > 0


def has_norms(case: Case) -> bool:
    """Whether the norm of a latent is within what is replayed."""
    return bool(_norms(case))


def _norms(case: Case) -> list[Node]:
    return [node for node in case.span[:-1] if node.stage.endswith("_latent_norm")]


def other_norm(case: Case) -> Iterator[Guess]:
    """Yield the stage with the norm of a latent skipped or made otherwise."""
    for node in _norms(case):
        latent, part = _latent(case, node), node.stage.partition("_")[0]
        weight, own = case.vector(node["role"]), eps_of(node, case.geometry)
        for says, form in FORMS.items():
            words = f"{says.rstrip(',')}, of {part}'s latent,"
            yield _with_norm(case, node, latent, form(latent.value, weight, own), words)
        for eps in dict.fromkeys((case.geometry.norm_eps, *EPSILONS)):
            if eps != own:
                words = f"epsilon {eps:.3g} in the norm of {part}'s latent"
                guess = _with_norm(case, node, latent, scaled(latent.value, eps) * weight, words)
                yield replace(guess, name="epsilon", instead=f"that of latents is {own:g}")


def _latent(case: Case, node: Node) -> Known:
    """Return what a norm takes: as captured, or computed from what the stage is computed from."""
    (stage,) = node.inputs.values()
    if stage in case.known:
        return case.known[stage]
    found = case.replayer.evaluate(Key(case.layer, stage), case.known, (case.rule,))
    return Known(value=found.values[0], sigma=found.sigma)


def _with_norm(case: Case, node: Node, latent: Known, values: F64, says: str) -> Guess:
    """Return the stage with other ``values`` after a latent's norm, of the latent's relative rounding."""
    sigma = latent.sigma
    if sigma is not None:
        before, after = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (latent.value, values))
        sigma = sigma * np.divide(after, before, out=np.zeros_like(before), where=before > 0)
    known = {**case.known, node.stage: Known(value=values, sigma=sigma)}
    found = case.replayer.evaluate(case.key, known, (case.rule,))
    return Guess(says=says, values=found.values[0], sigma=found.sigma)


def other_parts(case: Case) -> Iterator[Guess]:
    """Yield heads whose rotated part comes first: in what is rotated, or in what is written."""
    geometry = case.geometry
    pairs = geometry.rope.width(geometry.head_dim) // 2
    last = f"the last {2 * pairs} of {geometry.head_dim}"
    if case.name in _ROTATED:
        own = declared(case)
        ahead = _rolled(geometry, unrotated(case), 2 * pairs)
        turned = rotated_guess(case, "", own, x=_rolled(geometry, unrotated(case), -2 * pairs))
        says = f"the first {2 * pairs} channels of each head rotated"
        yield _back(case, turned, 2 * pairs, says, f"the model rotates {last}")
        yield rotated_guess(case, f"{says}, then put last,", own, f"{last} are the rotated ones", x=ahead)
    for who, columns in _columns(case).items():
        for by, words in ((2 * pairs, "first"), (-2 * pairs, "behind what follows it")):
            order = np.arange(case.expected.shape[1])
            order[columns] = _rolled(geometry, order[columns][None], by)[0]
            says = f"the rotated part of each {who}head {words}"
            yield _gathered(case, order, says, f"the model has it last: {last}")


def _columns(case: Case) -> dict[str, slice]:
    if case.name != "qkv_matmul":
        return {"": slice(None)}
    own = parts(case)
    return {"q and k ": slice(0, own["v"].start), "q ": own["q"], "k ": own["k"]}


def _rolled(geometry: Geometry, x: F64 | Indices, by: int) -> F64:
    """Return [S, heads * D] with the channels of each head moved on by ``by``, the last ones first."""
    heads = x.reshape(len(x), -1, geometry.head_dim)
    return np.asarray(np.roll(heads, by, axis=-1).reshape(x.shape))


def _back(case: Case, guess: Guess, by: int, says: str, instead: str) -> Guess:
    assert guess.sigma is not None
    values, sigma = (_rolled(case.geometry, each, by) for each in (guess.values, guess.sigma))
    return replace(guess, says=says, instead=instead, values=values, sigma=sigma)


def _gathered(case: Case, order: Indices, says: str, instead: str) -> Guess:
    return Guess(says=says, values=case.expected[:, order], sigma=case.sigma[:, order], instead=instead)


def other_split(case: Case) -> Iterator[Guess]:
    """Yield q|k|v where each head's own part of k and its v are taken from each other's place."""
    geometry, columns = case.geometry, parts(case)
    everything = np.arange(case.expected.shape[1])
    k, v = (everything[columns[part]].reshape(geometry.kv_heads, -1) for part in "kv")
    own = geometry.rotary_start(case.layer)
    up = np.concatenate((k[:, :own], v), axis=-1)
    swapped = np.concatenate((up[:, geometry.value_dim :], k[:, own:]), axis=-1), up[:, : geometry.value_dim]
    order = np.concatenate((everything[columns["q"]], *(part.reshape(-1) for part in swapped)))
    yield _gathered(case, order, "v before k in each head of kv_b", "the model has k's own part first")


def scales(geometry: Geometry, layer: int | None) -> Iterator[tuple[float, str]]:
    """Yield what a port of latent attention may multiply q.k with, and what that is called."""
    if not geometry.kv_latent:
        return
    own, yarn = geometry.attn_scale_at(layer), yarn_in_scale(geometry.rope_at(layer))
    what = "YaRN's mscale"
    if yarn != 1.0:
        yield own / yarn, f"{what} left out of the scale of the scores"
        yield own / math.sqrt(yarn), f"{what} once, not squared, in the scale of the scores"
        yield own * yarn, f"{what} twice in the scale of the scores"
    widths = {"k's own part": geometry.rotary_start(layer), "v": geometry.value_dim}
    for (words, width), also in itertools.product(widths.items(), dict.fromkeys((yarn, 1.0))):
        without = "" if also == yarn else f", and without {what}"
        yield width**-0.5 * also, f"the width of {words}, {width}, in the scale of the scores{without}"
