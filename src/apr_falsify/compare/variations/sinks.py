"""What goes wrong with attention sinks, the learned logit that stands in each head's denominator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words
from apr_falsify.operators.attention import attention_softmax
from apr_falsify.operators.choices import f64
from apr_falsify.operators.sinks import sink_softmax

_ALIKE = 1e-3


def has_sinks(case: Case) -> bool:
    """Whether the stage is a softmax with sinks."""
    return case.name == "attn_softmax" and case.geometry.sinks


def other_sinks(case: Case) -> Iterator[Guess]:
    """Yield the softmax without its sinks, with those of other heads, and with such as the rows show."""
    assert case.layer is not None
    scores, window = case.inputs["attn_scores"], case.geometry.windows[case.layer]
    sinks = case.vector("sinks")

    def with_sinks(says: str, other: F64) -> Guess:
        return case.guess(says, f64(sink_softmax(scores, other, window)))

    yield case.guess("the sinks left out", f64(attention_softmax(scores, window)))
    yield with_sinks("the sink of head 0 in every head", np.full_like(sinks, sinks[0]))
    yield with_sinks("the sinks of the heads in reverse order", sinks[::-1])
    measured = _measured(case, scores)
    if not np.all(np.isfinite(measured)):
        return
    if float(np.ptp(measured)) <= _ALIKE * (1 + float(np.max(np.abs(measured)))):
        middle = float(np.median(measured))
        near = round(middle) if abs(middle - round(middle)) < _ALIKE else middle
        yield with_sinks(f"one sink of {near:.5g} in every head alike", np.full_like(sinks, near))
    factor = float(sinks @ measured) / float(sinks @ sinks)
    yield with_sinks(f"the sinks x {factor_words(factor)}", sinks * factor)
    added = float(np.median(measured - sinks))
    yield with_sinks(f"the sinks + {added:.5g}", sinks + added)
    heads = np.flatnonzero(np.abs(measured - sinks) > _ALIKE * (1 + np.abs(sinks)))
    if 0 < len(heads) < len(sinks):
        other = np.where(np.isin(np.arange(len(sinks)), heads), measured, sinks)
        listed = ", ".join(f"{measured[h]:.5g} in head {h}" for h in heads[:4])
        yield with_sinks(f"other sinks in some heads: {listed}", other)


def _measured(case: Case, scores: F64) -> F64:
    """Return the sink of each head that the sums of the subject's rows show; NaN where they reach 1."""
    visible = case.expected > 0
    subject = np.where(visible, np.nan_to_num(case.subject), 0.0)
    top = np.max(np.where(visible, scores, -np.inf), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        raised = np.where(visible, np.exp(scores - top[..., None]), 0.0)
        share = np.sum(subject, axis=-1)
        found = top + np.log(np.sum(raised, axis=-1)) + np.log((1 - share) / share)
        return np.asarray(np.median(found, axis=-1), dtype=np.float64)
