"""What goes wrong between rotated q and k and the mixed values: heads, mask, softmax, cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.compare.replay import Replay
from apr_falsify.compare.variations import masks
from apr_falsify.compare.variations.case import F64, Case, Guess
from apr_falsify.compare.variations.common import Indices, moves, nearest_heads, parts, width_of_heads
from apr_falsify.model.stages import Key, Layout
from apr_falsify.numerics.operand_rules import PLAIN, Operation
from apr_falsify.operators.heads import values_of

Mask = masks.Mask

_SHARED = {"attn_scores": "k_post_rope", "attention": "qkv_bias"}
"""Stage -> the input whose kv heads its query heads share."""


def is_apart(case: Case) -> bool:
    """Whether scores and mix are known apart from each other."""
    return case.operation is not Operation.ATTENTION


def _kv(case: Case) -> F64:
    """Return the shared heads: [S, K, D]."""
    value = case.inputs[_SHARED[case.name]]
    if case.name == "attention":
        value = values_of(value, case.geometry)
    return value.reshape(len(value), -1, width_of_heads(case))


def _with_mapping(case: Case, says: str, mapping: Indices, instead: str = "") -> Guess:
    """Return the stage where query head h reads kv head mapping[h]."""
    heads = _kv(case)[:, mapping].reshape(len(_kv(case)), -1)
    geometry = replace(case.geometry, kv_heads=case.geometry.heads)
    return case.evaluated(says, {_SHARED[case.name]: heads}, geometry, instead=instead)


def other_mapping(case: Case) -> Iterator[Guess]:
    """Yield other rules by which query heads read kv heads, then the mapping that fits head by head."""
    heads, kv = case.geometry.heads, case.geometry.kv_heads
    query, right = np.arange(heads), np.arange(heads) // (heads // kv)
    rules = {
        "query head h reading kv head h % K": query % kv,
        "kv heads in reverse order": kv - 1 - right,
        "every query head reading kv head 0": 0 * query,
        "query head h reading the kv head after its own": (right + 1) % kv,
    }
    instead = "the model's query head h reads kv head h // (H / K)"
    if kv == 1 or _SHARED[case.name] not in case.known:
        return
    for says, mapping in rules.items():
        if not np.array_equal(mapping, right):
            yield _with_mapping(case, says, mapping, instead)
    measured = _measured_mapping(case)
    if not np.array_equal(measured, right):
        says = f"query heads reading the kv heads {', '.join(map(str, measured))}"
        yield _with_mapping(case, says, measured, instead)


def _measured_mapping(case: Case) -> Indices:
    """Return for each query head the kv head with which it comes nearest to the subject."""
    heads, kv = case.geometry.heads, case.geometry.kv_heads
    subject = _by_head(case, case.subject)
    tried = []
    for index in range(kv):
        guess = _with_mapping(case, "", np.full(heads, index))
        tried.append(_by_head(case, case.shaped(guess.values)))
    return np.array(
        [nearest_heads(np.stack([t[h] for t in tried]), subject[h : h + 1])[0] for h in range(heads)]
    )


def _by_head(case: Case, x: F64) -> F64:
    if case.name == "attn_scores":
        return x.reshape(len(x), -1)
    return x.reshape(len(x), -1, width_of_heads(case)).swapaxes(0, 1).reshape(case.geometry.heads, -1)


def unrotated_scores(case: Case) -> Iterator[Guess]:
    """Yield scores of q or k as they are before RoPE."""
    fused = case.captured("qkv_bias" if case.geometry.qkv_bias else "qkv_matmul")
    if fused is None or "q_post_rope" not in case.known:
        return
    bare = {f"{role}_post_rope": fused[:, parts(case)[role]] for role in "qk"}
    yield case.evaluated("q and k before RoPE", bare)
    for role, value in bare.items():
        yield case.evaluated(f"{role[0]} before RoPE", {role: value})


def seen_rightly(case: Case) -> Mask:
    """Return which keys the rows of the case may see: [rows, S]."""
    assert case.layer is not None
    passes = case.replayer.trace.passes
    return passes.visible(case.geometry.windows[case.layer])[passes.unseen :]


def masked_scores(case: Case) -> Iterator[Guess]:
    """Yield scores that are stored after the mask: whatever is far below zero beyond the visible keys."""
    assert case.layer is not None
    visible = seen_rightly(case)
    hidden = case.subject[:, ~visible]
    if hidden.size and np.all(hidden <= -1e4):
        values = np.where(visible, case.expected, case.subject)
        yield Guess(says="scores stored after the mask", values=values, sigma=case.sigma)


_HALF = {Layout.CAUSAL_ZEROED, Layout.VISIBLE_ONLY}


def of_scores(guesses: Callable[[Case], Iterator[Guess]]) -> Callable[[Case], Iterator[Guess]]:
    """Return a variation of the softmax that takes scores, for runs that show none: computed, then taken."""

    def with_scores(case: Case) -> Iterator[Guess]:
        return guesses(case if "attn_scores" in case.known else case.after("attn_scores"))

    return with_scores


def _scores(case: Case) -> F64:
    """Return the scores, with those above the diagonal computed where the runtime stores no data there."""
    scores, key = case.inputs["attn_scores"], Key(case.layer, "attn_scores")
    array = case.replayer.trace.stages.get(key)
    if array is None or not _HALF.intersection(array.layout):
        return scores
    found = case.replayer.replay(key, (PLAIN,))
    passes = case.replayer.trace.passes
    kept = passes.visible(None)[passes.unseen :]
    return np.where(kept, scores, found.values[0]) if isinstance(found, Replay) else scores


def _sinks(case: Case) -> F64 | None:
    """Return the logit of each head's sink, [H, 1, 1], ``None`` where the model has none."""
    return case.vector("sinks")[:, None, None] if case.geometry.sinks else None


def _weights(scores: F64, visible: Mask, axis: int = -1, sinks: F64 | None = None) -> F64:
    """Return softmax over ``axis`` where visible; 0 elsewhere, and in what sees nothing."""
    masked = np.where(visible, scores, -np.inf)
    top = np.max(masked, axis=axis, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks)
    raised = np.where(visible, np.exp(masked - np.where(np.isfinite(top), top, 0.0)), 0.0)
    total = np.sum(raised, axis=axis, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - top)
    return np.asarray(raised / np.where(total > 0, total, 1.0))


def other_mask(case: Case) -> Iterator[Guess]:
    """Yield softmax under other masks: a token more or less, none, another window."""
    scores = _scores(case)
    assert case.layer is not None
    window = case.geometry.windows[case.layer]
    instead = f"the model's window is {window}" if window else "a token sees itself and all before"
    for says, visible in _masks(case, scores.shape[-1], window):
        values = _weights(scores, visible, sinks=_sinks(case))
        yield case.guess(says, values, {"attn_scores": scores}, instead=instead)
    yield from _soft_masks(case, scores)
    seen = np.any(case.subject > 0, axis=0)
    token = int(np.argmax(np.any(seen != np.any(case.expected > 0, axis=0), axis=1)))
    keys = ", ".join(map(str, np.flatnonzero(seen[token])[:_LISTED])) or "none"
    says = f"another mask (token {token} sees the keys {keys})"
    values = _weights(scores, seen, sinks=_sinks(case))
    yield case.guess(says, values, {"attn_scores": scores}, instead=instead)


_LISTED = 8


def _masks(case: Case, tokens: int, window: int | None) -> Iterator[tuple[str, Mask]]:
    rows = slice(case.replayer.trace.passes.unseen, None)
    yield from ((says, mask[rows]) for says, mask in masks.of_passes(case.replayer.trace.passes, window))
    yield from ((says, mask[rows]) for says, mask in masks.usual(tokens, window))
    seen = int(np.max(np.count_nonzero(case.subject, axis=-1)))
    if seen < tokens and seen != window:
        yield f"a window of {seen}", (masks.back(tokens) >= 0) & (masks.back(tokens) < seen)


def _soft_masks(case: Case, scores: F64) -> Iterator[Guess]:
    """Yield masks that are no masks: hidden scores count as 0, or cut off after the softmax."""
    passes = case.replayer.trace.passes
    visible, everything = (mask[passes.unseen :] for mask in (passes.visible(None), passes.met()))
    bare = np.where(visible, scores, 0.0)
    zeroed = _weights(bare, everything)
    inputs = {"attn_scores": bare}
    yield case.guess("hidden scores that count as 0, not as -inf,", zeroed, inputs)
    yield case.guess("hidden scores that count as 0, then cut off,", np.where(visible, zeroed, 0.0), inputs)
    cut = np.where(visible, _weights(scores, everything), 0.0)
    yield case.guess("the mask applied after the softmax", cut, {"attn_scores": scores})


def padding(case: Case) -> Iterator[Guess]:
    """Yield softmax whose denominator counts further keys of score 0: 1, up to a block, or as measured."""
    if case.geometry.sinks:  # what else stands in the sum is measured as a sink
        return
    scores = case.inputs["attn_scores"]
    top = np.max(np.where(case.expected > 0, scores, -np.inf), axis=-1, keepdims=True)
    total = np.sum(np.where(case.expected > 0, np.exp(scores - top), 0.0), axis=-1, keepdims=True)
    tokens = scores.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        more = total * (1 / np.sum(case.subject, axis=-1, keepdims=True) - 1) * np.exp(top)
    measured = float(np.median(more[np.isfinite(more)])) if np.isfinite(more).any() else 0.0
    counts = [1, *(-tokens % block for block in (8, 16, 32, 64, 128, 256)), round(min(max(measured, 0), 1e6))]
    for count in dict.fromkeys(count for count in counts if count > 0):
        values = case.expected * total / (total + count * np.exp(-top))
        keys = "a sink: one more key" if count == 1 else f"{count} padded keys"
        yield case.guess(f"{keys} of score 0 in the sum", values)


_TEMPERATURES: Mapping[str, Callable[[int], float]] = {
    "sqrt(D)": lambda d: math.sqrt(d),
    "1/sqrt(D)": lambda d: 1 / math.sqrt(d),
    "ln 2 (2^x for e^x)": lambda d: math.log(2),
    "2": lambda d: 2.0,
    "1/2": lambda d: 0.5,
}
_NEAR = 1e-3


def temperature(case: Case) -> Iterator[Guess]:
    """Yield softmax of the scores times a constant, measured on the logarithms of the weights."""
    scores, subject = case.inputs["attn_scores"], np.nan_to_num(case.subject)
    used = (subject > 0) & (case.expected > 0)
    share = np.where(used, subject, 0.0)
    logs = np.log(np.where(used, subject, 1.0))
    x, y = (_centred(values, share) for values in (scores, logs))
    energy = float(np.sum(share * x * x))
    if energy == 0:
        return
    measured = float(np.sum(share * x * y)) / energy
    named = {label: f(case.geometry.head_dim) for label, f in _TEMPERATURES.items()}
    near = {label: value for label, value in named.items() if abs(measured - value) < _NEAR * value}
    for label, value in {**near, f"{measured:.5g}": measured}.items():
        values = _weights(scores * value, case.expected > 0, sinks=_sinks(case))
        yield case.guess(f"scores x {label} before the softmax", values, {"attn_scores": scores * value})


def _centred(values: F64, share: F64) -> F64:
    total = np.sum(share, axis=-1, keepdims=True)
    mean = np.sum(share * values, axis=-1, keepdims=True) / np.where(total > 0, total, 1.0)
    return np.asarray(values - mean)


def other_axis(case: Case) -> Iterator[Guess]:
    """Yield softmax over the queries, over all of a head's scores, and over the heads; and none."""
    scores = case.inputs["attn_scores"]
    visible = case.expected > 0
    yield case.guess("softmax over the queries", _weights(scores, visible, axis=-2))
    yield case.guess("softmax over the heads", _weights(scores, visible, axis=0))
    flat = _weights(scores.reshape(len(scores), -1), visible.reshape(len(scores), -1))
    yield case.guess("softmax over all of a head's scores", flat.reshape(scores.shape))
    yield case.guess("no softmax", np.where(visible, scores, 0.0))
    with np.errstate(over="ignore"):
        yield case.guess("exponentials that are not normalised", np.where(visible, np.exp(scores), 0.0))


def other_mixing(case: Case) -> Iterator[Guess]:
    """Yield the mix with transposed or unnormalised weights, or with q or k in the place of v."""
    weights, fused = case.inputs["attn_softmax"], case.inputs["qkv_bias"]
    visible = np.tril(np.ones(weights.shape[-2:]))
    yield case.evaluated("transposed attention weights", {"attn_softmax": weights.swapaxes(1, 2)})
    even = np.broadcast_to(visible / visible.sum(axis=-1, keepdims=True), weights.shape)
    yield case.evaluated("the plain mean of the visible values", {"attn_softmax": even})
    own = np.broadcast_to(np.eye(weights.shape[-1]), weights.shape)
    yield case.evaluated("each token's own value, unmixed,", {"attn_softmax": own})
    scores = case.captured("attn_scores")
    if scores is not None:
        yield case.evaluated("scores for weights (no softmax)", {"attn_softmax": np.tril(scores)})
    width = case.geometry.kv_heads * case.geometry.value_dim
    seen = {parts(case)["v"].start}
    starts = {"k": parts(case)["k"].start, "q": 0, "v before k": parts(case)["k"].start}
    for says, start in starts.items():
        if start not in seen:
            seen.add(start)
            yield case.evaluated(
                f"v taken from the columns of {says}", {"qkv_bias": fused[:, start : start + width]}
            )
    rotated = case.captured("k_post_rope")
    if rotated is not None and case.geometry.value_dim == case.geometry.head_dim:
        yield case.evaluated("the rotated k in the place of v", {"qkv_bias": rotated})


def stale_values(case: Case) -> Iterator[Guess]:
    """Yield the mix of values of other tokens, as a stale cache has them."""
    fused = case.inputs["qkv_bias"]
    for says, order in moves(len(fused)):
        yield case.evaluated(f"v of other tokens: {says}", {"qkv_bias": fused[order]})
