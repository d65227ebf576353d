"""What goes wrong inside attention of which only q, k, v and the result were captured: fused kernels.

Every hypothesis changes one thing within - the scale, the cap, what a token sees, which kv head a query head
reads, a sink, what is cached - and is carried through to the result. Scale and cap are solved for; the first
key that each token sees is found by sums over its keys from the last one back. Several may fit where values
are coarse: that which leaves least comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.floor import sigma_of
from apr_falsify.compare.fused import rounded_weights, step
from apr_falsify.compare.site import ReplaySite
from apr_falsify.compare.variations import attend, latents, masks
from apr_falsify.compare.variations.case import F64, Case, Guess, factor_words
from apr_falsify.compare.variations.common import moves
from apr_falsify.numerics.operand_rules import Operation, Rule
from apr_falsify.operators.heads import by_head, for_queries, values_of
from apr_falsify.operators.roundoff import UNIT, Known

Indices = npt.NDArray[np.intp]


def is_fused(case: Case) -> bool:
    """Whether the case is attention from rotated q and k on."""
    return case.operation is Operation.ATTENTION


def inside(case: Case) -> Iterator[Guess]:
    """Yield attention with one thing changed within it, that which comes nearest first.

    What was solved for may come nearest by its free number alone: a fixed one that leaves as much goes first.
    """
    steps = _Steps(case)
    fixed, solved = (
        sorted(((case.residual(guess), guess) for find in finders for guess in find(case, steps)), key=_left)
        for finders in ((_scales, _caps, _masks, _sinks, _mappings, _caches), (_scale, _cap, _sink, _mapping))
    )
    nearest = _AS_MUCH * min((left for left, _ in (*fixed[:1], *solved[:1])), default=0.0)
    first = [guess for left, guess in fixed if left <= nearest]
    rest = sorted([*fixed[len(first) :], *solved], key=_left)
    yield from (*first, *(guess for _, guess in rest))


_AS_MUCH = 1.05


def _left(one: tuple[float, Guess]) -> float:
    return one[0]


class _Steps:
    """Scores and weights within attention as one, and the mix of other weights."""

    def __init__(self, case: Case) -> None:
        self.case = case
        trace = case.replayer.trace
        self.site = ReplaySite(
            weights=case.replayer.weights,
            geometry=trace.geometry,
            layer=case.layer,
            tokens=trace.tokens,
            in_passes=trace.passes,
        )
        self.operands = case.replayer.operands(case.layer)
        self.inner = case.replayer.store if case.rule.rounds_steps else UNIT
        made = dict(case.known)
        for node in case.span[:-1]:
            ins = {name: made[source] for name, source in node.inputs.items()}
            made[node.stage] = step(node, ins, case.rule, self.site, self.operands, self.inner)
        self.scores, self.weights = made["attn_scores"], made["attn_softmax"]
        self.softmax = case.span[-2]
        self.visible = np.asarray(self.weights.value > 0)

    @property
    def rule(self) -> Rule:
        """The arithmetic of the mix."""
        return self.case.rule.of(Operation.MIX)

    def case_of_mix(self) -> Case:
        """Return the case as it is where the weights are known."""
        known = {"attn_softmax": self._rounded(self.weights), "qkv_bias": self.case.known["qkv_bias"]}
        return replace(self.case, known=known, rule=self.rule)

    def weighed(self, visible: npt.NDArray[np.bool_], more: F64 | float = 0.0) -> F64:
        """Return softmax over other keys, with ``more`` in its sum [H, S, 1] of exponentials."""
        scores = np.where(visible, self.scores.value, -np.inf)
        top = np.max(scores, axis=-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        raised = np.exp(scores - top)
        total = np.sum(raised, axis=-1, keepdims=True) + more * np.exp(-top)
        return np.asarray(raised / np.where(total > 0, total, 1.0))

    def mixed(self, says: str, weights: F64, **words: str) -> Guess:
        """Return the mix of other weights."""
        replayer, key = self.case.replayer, self.case.key
        sigma = sigma_of(self.softmax, {"attn_scores": self.scores}, weights, self.site, self.inner)
        known = {
            "attn_softmax": self._rounded(Known(value=weights, sigma=sigma)),
            "qkv_bias": self.case.known["qkv_bias"],
        }
        found = replayer.evaluate(key, known, (self.rule,))
        return Guess(says=says, values=found.values[0], sigma=found.sigma, **words)

    def _rounded(self, weights: Known) -> Known:
        return rounded_weights(weights, self.case.replayer.store)


# --- one number is wrong: it is solved for -----------------------------------------------------------


def _scaled(case: Case, by: float, says: str = "") -> Guess:
    geometry, own = case.geometry, case.geometry.attn_scale_at(case.layer)
    wrong = replace(geometry, attn_scales=(own * by,) * geometry.layers)
    return case.evaluated(
        says, geometry=wrong, name="attention-scale", instead=f"the model's scale is {own:.6g}"
    )


def _named_scales(case: Case) -> dict[str, float]:
    """Return what the scale may be instead -> in units of the model's."""
    geometry, own = case.geometry, case.geometry.attn_scale_at(case.layer)
    return {
        "no scale": 1 / own,
        "the scale applied twice": own,
        "the scale 1/D": 1 / geometry.head_dim / own,
        "the scale 1/sqrt(D)": geometry.head_dim**-0.5 / own,
        "the scale of the hidden size": geometry.hidden**-0.5 / own,
        "the scale of hidden / heads": (geometry.hidden / geometry.heads) ** -0.5 / own,
        "exponentials of base 2": math.log(2),
        **{says: value / own for value, says in latents.scales(geometry, case.layer)},
    }


def _scales(case: Case, steps: _Steps) -> Iterator[Guess]:
    for says, by in _named_scales(case).items():
        if not math.isclose(by, 1):
            yield _scaled(case, by, says)


def _scale(case: Case, steps: _Steps) -> Iterator[Guess]:
    by = _solved(case, lambda value: _scaled(case, value).values, [1.0, *_named_scales(case).values()])
    if by is not None:
        yield _scaled(case, by, f"scores x {factor_words(by)} before the softmax")


_USUAL_CAPS = (10.0, 15.0, 20.0, 30.0, 50.0, 100.0)


def _caps(case: Case, steps: _Steps) -> Iterator[Guess]:
    own = case.geometry.attn_softcap
    if own is not None:
        yield _capped(case, None, f"no soft-cap of {own:g}")
    for cap in _USUAL_CAPS:
        if cap != own:
            yield _capped(case, cap, f"scores soft-capped at {cap:g}")


def _cap(case: Case, steps: _Steps) -> Iterator[Guess]:
    cap = _solved(case, lambda value: _capped(case, value).values, _USUAL_CAPS)
    if cap is not None:
        yield _capped(case, cap, f"scores soft-capped at {cap:.5g}")


def _capped(case: Case, cap: float | None, says: str = "") -> Guess:
    own = case.geometry.attn_softcap
    instead = "the model has none" if own is None else f"the model's is {own:g}"
    wrong = replace(case.geometry, attn_softcap=cap)
    return case.evaluated(says, geometry=wrong, name="soft-cap", instead=instead)


_STEPS = 8
_NUDGE = 1e-4
_FARTHEST = 1.0
_SETTLED = 1e-10


def _solved(case: Case, values_at: Callable[[float], F64], starts: Sequence[float]) -> float | None:
    """Return the positive number for which attention comes nearest to the subject.

    Gauss-Newton on its logarithm from the best of ``starts``; each value counts in its own rounding.
    """
    sigma, seen = case.shaped_sigma, np.isfinite(case.subject)

    def left(at: float) -> F64:
        found = case.shaped(values_at(math.exp(at)))
        return np.where(seen & np.isfinite(found), (case.subject - found) / sigma, 0.0)

    def size(rest: F64) -> float:
        return float(np.sum(np.square(rest)))

    at = min((math.log(start) for start in starts), key=lambda each: size(left(each)))
    rest = left(at)
    for _ in range(_STEPS):
        slope = (left(at - _NUDGE) - left(at + _NUDGE)) / (2 * _NUDGE)
        energy = size(slope)
        change = float(np.sum(slope * rest)) / energy if energy else 0.0
        change = min(max(change, -_FARTHEST), _FARTHEST)
        after = left(at + change)
        if not size(after) < size(rest):
            break
        at, rest = at + change, after
        if abs(change) <= _SETTLED:
            break
    return math.exp(at) if math.isfinite(at) else None


# --- which keys a token sees ------------------------------------------------------------------------


def _masks(case: Case, steps: _Steps) -> Iterator[Guess]:
    assert case.layer is not None
    passes = case.replayer.trace.passes
    window, tokens = case.geometry.windows[case.layer], passes.tokens
    instead = f"the model's window is {window}" if window else "a token sees itself and all before"
    tried = {**dict(masks.of_passes(passes, window)), **dict(masks.usual(tokens, window))}
    if passes.plain:
        tried.update(masks.of_starts(_first_keys(case, steps), tokens, window))
    for says, visible in tried.items():
        seen = steps.weighed(visible[passes.unseen :])
        yield steps.mixed(says, seen, name="mask", instead=instead)


_ROWS = 48
"""Of as many tokens, the last ones and some before, the first key that they see is looked for."""


def _first_keys(case: Case, steps: _Steps) -> dict[int, int]:
    """Return for some tokens the first key from which on the keys up to them give the subject's values."""
    tokens = len(case.subject)
    if tokens != len(case.expected):  # the last token alone
        return {}
    rows = np.unique(np.linspace(0, tokens - 1, min(_ROWS, tokens)).astype(int))
    geometry = case.geometry
    v, size = values_of(case.inputs["qkv_bias"], geometry), geometry.value_dim
    values = for_queries(by_head(steps.rule.held_right(v, geometry.kv_heads, size), size), geometry)
    subject = by_head(case.subject, size)
    found: dict[int, int] = {}
    for row in rows:
        scores = steps.scores.value[:, row, : row + 1]
        raised = np.exp(scores - np.max(scores, axis=-1, keepdims=True))[:, ::-1]
        total = np.cumsum(raised, axis=-1)[..., None]
        mixed = np.cumsum(raised[..., None] * values[:, row::-1], axis=1) / np.where(total > 0, total, 1.0)
        left = np.sum(np.square(mixed - subject[:, row : row + 1]), axis=(0, 2))
        found[int(row)] = int(row - np.argmin(left))
    return found


# --- sinks, heads and caches ------------------------------------------------------------------------

_KEYS = (1, 2, 4)


def _sinks(case: Case, steps: _Steps) -> Iterator[Guess]:
    tokens = len(case.replayer.trace.tokens)
    padded = (-tokens % block for block in (8, 16, 32, 64, 128, 256))
    for count in dict.fromkeys([*_KEYS, *(each for each in padded if each)]):
        says = (
            "a sink: one more key of score 0 in the sum" if count == 1 else f"{count} padded keys of score 0"
        )
        yield steps.mixed(says, steps.weighed(steps.visible, float(count)), name="sink")


def _sink(case: Case, steps: _Steps) -> Iterator[Guess]:
    logits = _measured_sinks(case, steps)
    if logits is not None:
        shown = ", ".join(f"{value:.3g}" for value in logits[:_SHOWN])
        says = f"a sink in each head (of score {shown}{', ...' if len(logits) > _SHOWN else ''})"
        more = np.exp(logits)[:, None, None]
        yield steps.mixed(says, steps.weighed(steps.visible, more), name="sink")


_SHOWN = 8
_LEAST = 1e-6
"""A sink that takes a smaller share than this is none."""


def _measured_sinks(case: Case, steps: _Steps) -> F64 | None:
    """Return the score of one more key in each head's sum that takes from its values what is missing."""
    geometry = case.geometry
    if len(case.subject) != len(case.expected):
        return None
    right, subject = (by_head(x, geometry.value_dim) for x in (case.shaped(case.expected), case.subject))
    scores = np.where(steps.visible, steps.scores.value, -np.inf)
    top = np.max(scores, axis=-1)
    total = np.sum(np.exp(scores - top[..., None]), axis=-1)
    energy = np.sum(np.square(right), axis=-1)
    share = np.sum(right * subject, axis=-1) / np.where(energy > 0, energy, 1.0)
    used = (share > _LEAST) & (share < 1 - _LEAST)
    if not used.any(axis=1).all():
        return None
    logits = np.log(total * (1 / np.where(used, share, 0.5) - 1)) + top
    return np.array([np.median(row[which]) for row, which in zip(logits, used, strict=True)])


def _named_mappings(heads: int, kv: int) -> dict[str, Indices]:
    query, right = np.arange(heads), np.arange(heads) // (heads // kv)
    return {
        "query head h reading kv head h % K": query % kv,
        "kv heads in reverse order": kv - 1 - right,
        "every query head reading kv head 0": 0 * query,
        "query head h reading the kv head after its own": (right + 1) % kv,
    }


def _mappings(case: Case, steps: _Steps) -> Iterator[Guess]:
    heads, kv = case.geometry.heads, case.geometry.kv_heads
    right = np.arange(heads) // (heads // kv)
    for says, mapping in _named_mappings(heads, kv).items() if kv > 1 else ():
        if not np.array_equal(mapping, right):
            yield _mapped(case, says, mapping, mapping)
            yield _mapped(case, f"{says}, in k alone", mapping, right)
            yield _mapped(case, f"{says}, in v alone", right, mapping)


def _mapping(case: Case, steps: _Steps) -> Iterator[Guess]:
    """Yield attention where each query head reads the kv head with which it comes nearest."""
    geometry = case.geometry
    if geometry.kv_heads == 1:
        return
    subject, left = by_head(case.subject, geometry.value_dim), []
    for one in range(geometry.kv_heads):
        alone = np.full(geometry.heads, one)
        found = by_head(case.shaped(_mapped(case, "", alone, alone).values), geometry.value_dim)
        left.append(np.sum(np.square(found - subject), axis=(1, 2)))
    measured = np.argmin(np.stack(left), axis=0)
    says = f"query heads reading the kv heads {', '.join(map(str, measured))}"
    yield _mapped(case, says, measured, measured)


def _mapped(case: Case, says: str, of_k: Indices, of_v: Indices) -> Guess:
    """Return attention where query head h reads the kv heads of_k[h] and of_v[h]."""
    geometry = case.geometry
    k, v = case.inputs["k_post_rope"], values_of(case.inputs["qkv_bias"], geometry)
    read = {
        "k_post_rope": k.reshape(len(k), -1, geometry.head_dim)[:, of_k].reshape(len(k), -1),
        "qkv_bias": v.reshape(len(v), -1, geometry.value_dim)[:, of_v].reshape(len(v), -1),
    }
    wide = replace(geometry, kv_heads=geometry.heads)
    instead = "the model's query head h reads kv head h // (H / K)"
    return case.evaluated(says, read, wide, name="head-mapping", instead=instead)


def _caches(case: Case, steps: _Steps) -> Iterator[Guess]:
    """Yield keys and values of other tokens, q or k before RoPE, and the mix of other values or weights."""
    k, v = case.inputs["k_post_rope"], case.inputs["qkv_bias"]
    for says, order in moves(len(k)):
        moved = {"k_post_rope": k[order], "qkv_bias": v[order]}
        for what, inputs in (("k and v", moved), ("k", {"k_post_rope": k[order]})):
            yield case.evaluated(f"{what} of other tokens: {says}", inputs, name="stale-cache")
    for guess in attend.unrotated_scores(case):
        yield replace(guess, name="rope-not-applied")
    of_mix = steps.case_of_mix()
    for guess in attend.other_mixing(of_mix):
        yield replace(guess, name="mixing")
    for guess in attend.stale_values(of_mix):
        yield replace(guess, name="stale-cache")
