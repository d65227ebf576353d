"""The convention solver: is a stage wrong, or only stored in a way that the runtime does not declare?

A closed list of conventions is tried on the subject's stages. One fits where every stage that it
touches, *and every stage that is computed from those*, then agrees with its replay. The second half tells a
storage convention from a runtime fault: scores that are stored unscaled leave the softmax right, scores
that were computed unscaled do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.structure import consumers
from apr_falsify.stages import Layout, stored_shape
from apr_falsify.trace import Key, StageArray, Trace
from apr_falsify.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """A way to store stages.

    Attributes:
        name: what reports call it.
        word: the layout word that it adds, or takes away where it was declared.
        stages: the stages that it concerns, together.

    """

    name: str
    word: Layout
    stages: tuple[str, ...]


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="rotary pairs interleaved in q and k",
        word=Layout.INTERLEAVED,
        stages=("qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope"),
    ),
    Convention(
        name="rotary pairs interleaved after RoPE",
        word=Layout.INTERLEAVED,
        stages=("q_post_rope", "k_post_rope"),
    ),
    Convention(name="scores stored before 1/sqrt(D)", word=Layout.UNSCALED, stages=("attn_scores",)),
    Convention(name="scores zero above the diagonal", word=Layout.CAUSAL_ZEROED, stages=("attn_scores",)),
    Convention(name="q and k head-major", word=Layout.HEAD_MAJOR, stages=("q_post_rope", "k_post_rope")),
    Convention(name="q head-major", word=Layout.HEAD_MAJOR, stages=("q_post_rope",)),
    Convention(name="k head-major", word=Layout.HEAD_MAJOR, stages=("k_post_rope",)),
    Convention(name="attention head-major", word=Layout.HEAD_MAJOR, stages=("attention",)),
    Convention(name="scores transposed", word=Layout.TRANSPOSED, stages=("attn_scores",)),
    Convention(name="softmax transposed", word=Layout.TRANSPOSED, stages=("attn_softmax",)),
    Convention(
        name="scores and softmax transposed", word=Layout.TRANSPOSED, stages=("attn_scores", "attn_softmax")
    ),
    Convention(
        name="channel-major", word=Layout.TRANSPOSED, stages=("attn_norm", "attn_out", "ffn_norm", "ffn_out")
    ),
)
"""What is tried, singly and in pairs."""


Solved = tuple[Trace, dict[Key, Judged]]
"""A trace in some layout, and stages of it that were judged in that."""


def declared_or_solved(
    trace: Trace,
    weights: Weights | None,
    keys: Sequence[Key],
    arithmetic: str | None = None,
    attempts: Attempts = LOUD,
) -> tuple[Trace, dict[Key, Judged], list[Finding]]:
    """Judge ``trace`` as declared; where stages fail, look for a convention that mends them.

    Returns:
        The trace in the layout it was judged in, its judged stages, and a finding for each convention
        that fits and is not declared. One that breaks down, which ``attempts`` notes, does not fit.

    """
    judged = judge(trace, weights, keys, arithmetic, attempts)
    findings: list[Finding] = []
    pending = list(_trials())
    while pending and any(entry.in_error for entry in judged.values()):
        trial = pending.pop(0)
        if not all(_plausible(convention, trial, judged) for convention in trial):
            continue
        name = " with ".join(repr(convention.name) for convention in trial)
        within = attempts.within(f"the convention {name}", decisive=False)
        solve = partial(_solved, trace, trial, weights, keys, arithmetic, within)
        solved = attempts.trying(f"the convention {name}").made(solve, None)
        if solved is not None:
            trace, judged = solved[0], {**judged, **solved[1]}
            findings += [_finding(convention) for convention in trial]
            pending = list(_trials())  # what did not fit may do so now that its consumers are read rightly
    return trace, judged, findings


def _solved(
    trace: Trace,
    trial: Sequence[Convention],
    weights: Weights | None,
    keys: Sequence[Key],
    arithmetic: str | None,
    attempts: Attempts,
) -> Solved | None:
    """Return ``trace`` read by the conventions of ``trial``, ``None`` where they do not fit."""
    touched = _touched(trace, trial, keys)
    changed = stored_as(trace, trial)
    if changed is None:
        return None
    again = judge(changed, weights, touched, arithmetic, attempts)
    fits = again and all(entry.fit is not None and not entry.in_error for entry in again.values())
    return (changed, again) if fits else None


def _trials() -> Iterator[tuple[Convention, ...]]:
    yield from ((convention,) for convention in CONVENTIONS)
    for first, second in itertools.combinations(CONVENTIONS, 2):
        if first.word is not second.word:
            yield first, second


_REORDERED = (Layout.INTERLEAVED, Layout.HEAD_MAJOR, Layout.TRANSPOSED)

_SAME_NORM = 0.05
"""How far the norm of a stage that is only reordered may be from its replay's, 4-bit rounding included."""


def _plausible(convention: Convention, trial: Sequence[Convention], judged: Mapping[Key, Judged]) -> bool:
    """Whether a stage of the convention fails its replay, and in a way that reordering could mend.

    The norm tells nothing of a stage that another convention of the trial rescales, or puts zeros into.
    """
    resized = {name for one in trial if one.word not in _REORDERED for name in one.stages}
    failing = [entry for entry in judged.values() if entry.key[1] in convention.stages and entry.in_error]
    if convention.word not in _REORDERED:
        return bool(failing)
    ratios = [
        1.0 if entry.key[1] in resized else entry.introduced.norm_ratio
        for entry in failing
        if entry.introduced is not None
    ]
    return bool(ratios) and all(abs(ratio - 1) <= _SAME_NORM for ratio in ratios)


def _touched(trace: Trace, trial: Iterable[Convention], keys: Sequence[Key]) -> list[Key]:
    """Return the captured stages that the conventions concern, and what is computed from them."""
    names = {name for convention in trial for name in convention.stages}
    fed = consumers(keys, trace.geometry)
    own = [key for key in keys if key[1] in names and key in trace.stages]
    after = [consumer for key in own for consumer in fed.get(key, ()) if consumer in trace.stages]
    return list(dict.fromkeys([*own, *after]))


def stored_as(trace: Trace, trial: Sequence[Convention]) -> Trace | None:
    """Return a trace read by other conventions; ``None`` where the sizes do not allow it."""
    words: dict[str, set[Layout]] = {}
    for convention in trial:
        for name in convention.stages:
            words.setdefault(name, set()).add(convention.word)
    stages = dict(trace.stages)
    for key in trace.stages:
        if key[1] in words:
            array = _toggled(trace, key, words[key[1]])
            if array is None:
                return None
            stages[key] = array
    return replace(trace, stages=stages)


def _toggled(trace: Trace, key: Key, words: set[Layout]) -> StageArray | None:
    array = trace.stages[key]
    layout = tuple(word for word in Layout if (word in array.layout) != (word in words))
    shape = stored_shape(key[1], layout, trace.geometry.dims(len(trace.tokens)), array.data.size)
    return None if shape is None else StageArray(data=array.data.reshape(shape), layout=layout)


def _finding(convention: Convention) -> Finding:
    return Finding(
        type=FindingType.LAYOUT,
        stages=convention.stages,
        explanation=f"{convention.name}: the stages and what is computed from them fit so, not as declared",
        advice="declare the layout of this runtime; nothing is wrong with the computation",
    )
