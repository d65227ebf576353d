"""What goes wrong with a multiplier that a model declares: on the embedding, the scores or the logits.

Granite (Granite Team 2024) has one on each; Gemma scales its embedding by sqrt(E). A stage that is multiplied
with m by right and with x in the subject is x / m times the replay: x is solved for, and compared with what
is easily made of m. Under a soft-cap c the scores are c * tanh(x * q.k / c), and x comes from their atanh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from apr_falsify.compare.variations import caps, latents
from apr_falsify.compare.variations.case import Case, Guess, factor_words

_NEAR = 1e-3
"""How near a measured multiplier must be to a named one for that to be tried."""

_NOUNS = {
    "embedding": "the embedding multiplier",
    "attn_scores": "the attention multiplier",
    "attn_scores_uncapped": "the attention multiplier",
}
STAGES = (*_NOUNS, "lm_head")


def forms(noun: str, scale: float) -> Iterator[tuple[float, str]]:
    """Yield what may be multiplied with in place of ``scale``, and what that is called."""
    yield 1.0, f"{noun} {scale:.6g} left out"
    yield scale**2, f"{noun} {scale:.6g} applied twice"
    yield 1 / scale, f"division by {noun} {scale:.6g}"


def declared(case: Case) -> float:
    """Return the multiplier that the model declares for a stage, 1 for none."""
    geometry = case.geometry
    if case.name.startswith("attn_scores"):
        return geometry.attn_scale_at(case.layer)
    return geometry.logit_scale if case.name == "lm_head" else geometry.embed_scale


def is_declared(case: Case) -> bool:
    """Whether a stage has a multiplier that is more than 1/sqrt(D) on scores without a cap."""
    if case.name == "embedding" and case.geometry.positions:
        return False
    if caps.cap_of(case) is not None or (case.name.startswith("attn_scores") and case.geometry.kv_latent):
        return True
    usual = case.geometry.head_dim**-0.5 if case.name.startswith("attn_scores") else 1.0
    return not math.isclose(declared(case), usual)


def named_multiplier(case: Case) -> Iterator[Guess]:
    """Yield the stage with what is easily made of its multiplier, where the measured one is near."""
    measured = caps.factor(case) * declared(case)
    for value, says in _named(case):
        if abs(measured - value) <= _NEAR * value and not math.isclose(value, declared(case)):
            yield caps.scaled(case, value / declared(case), says)


def _named(case: Case) -> Iterator[tuple[float, str]]:
    scale, size = declared(case), case.geometry.head_dim
    if case.name == "lm_head":
        if scale != 1:
            by = f"{1 / scale:.6g}"
            yield 1.0, f"the logits not divided by {by}"
            yield scale**2, f"the logits divided by {by} twice"
            yield 1 / scale, f"the logits multiplied by {by}, not divided"
        return
    noun = _NOUNS[case.name]
    if case.name.startswith("attn_scores"):
        yield from latents.scales(case.geometry, case.layer)
        if case.geometry.kv_latent:
            return  # its scale is no multiplier of the model's: what else is wrong with it is a factor
    yield from forms(noun, scale)
    if case.name.startswith("attn_scores"):
        yield size**-0.5, f"1/sqrt(head_dim) for {noun} {scale:.6g}"
        yield 1 / size, f"1/head_dim for {noun} {scale:.6g}"


def measured_multiplier(case: Case) -> Iterator[Guess]:
    """Yield the stage with the multiplier that it has, to a few digits and to all."""
    scale = declared(case)
    measured = caps.factor(case) * scale
    if not 0 < measured < math.inf or abs(measured / scale - 1) < _NEAR * _NEAR:
        return
    for value in dict.fromkeys([*(float(f"{measured:.{digits}g}") for digits in (2, 3, 5)), measured]):
        yield caps.scaled(case, value / scale, _other_words(case, value))


def _other_words(case: Case, value: float) -> str:
    scale = declared(case)
    if case.name == "lm_head" and scale == 1:
        return f"the logits x {factor_words(value)} before their soft-cap"
    if case.name == "lm_head":
        return f"the logits divided by {factor_words(1 / value)}, not by {1 / scale:.6g}"
    return f"{_NOUNS[case.name]} {factor_words(value)} for {scale:.6g}"
