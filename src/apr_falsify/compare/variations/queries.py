"""What goes wrong between RoPE and the scores: the norm that follows it, and the attention temperature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words
from apr_falsify.model.wiring import has_stage
from apr_falsify.operators.temperature import own_temperatures, temperatures

TEMPERED = ("q_tempered", "attn_scores")
NORMED = ("q_l2_norm", "k_l2_norm", "attn_scores")


def is_tempered(case: Case) -> bool:
    """Whether the queries of the layer have a temperature."""
    return has_stage("q_tempered", case.geometry, case.layer)


def other_temperature(case: Case) -> Iterator[Guess]:
    """Yield queries, or scores, of other temperatures, at last of one whose growth is solved for."""
    g, passes, rows = case.geometry, case.replayer.trace.passes, case.expected.shape[-2]
    own = own_temperatures(g, passes, rows)
    scale, floor = g.temperature_scale, g.temperature_floor
    counted = np.arange(passes.tokens - rows, passes.tokens)[:, None] + 1.0
    others: Mapping[str, F64] = {
        "the attention temperature left out": np.ones_like(own),
        "tokens counted from 0 in the attention temperature": 1 + scale * np.log1p((counted - 1) // floor),
        "an attention temperature without the floor": 1 + scale * np.log1p(counted / floor),
        "the attention temperature applied twice": own**2,
        "the largest attention temperature for all tokens": np.full_like(own, own.max()),
    }
    for says, other in others.items():
        yield case.guess(says, case.expected * (other / own))
    bare = case.expected / own
    grown = bare * (temperatures(1.0, floor, passes, rows) - 1)
    solved = case.scalar(grown, case.subject - case.shaped(bare))
    if math.isfinite(solved):
        says = f"an attention temperature that grows by {factor_words(solved)}"
        yield case.guess(says, bare + solved * grown, instead=f"the model's grows by {scale:.6g}")


def is_normed(case: Case) -> bool:
    """Whether q and k of the layer pass a norm after RoPE."""
    return has_stage("q_l2_norm", case.geometry, case.layer)


def without_norm(case: Case) -> Iterator[Guess]:
    """Yield q or k, or the scores, without the norm after RoPE, or with a sum of squares for their mean."""
    if case.name != "attn_scores":
        (bare,) = case.inputs.values()
        yield case.guess("no norm after RoPE", bare)
        by_sum = case.expected / math.sqrt(case.geometry.head_dim)
        yield case.guess("the sum of squares for their mean in the norm after RoPE", by_sum)
        return
    found = {f"{role}_post_rope": case.captured(f"{role}_post_rope") for role in "qk"}
    plain = {name: value for name, value in found.items() if value is not None}
    if len(plain) == len(found):
        yield case.evaluated("q and k not normed after RoPE", plain)
    for name, value in plain.items():
        yield case.evaluated(f"{name[0]} not normed after RoPE", {name: value})
