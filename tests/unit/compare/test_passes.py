"""Runs in passes: right ones are never accused; what a cache, a mask or a position does wrong is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.subjects.embedded import as_defined, capture
from apr_falsify.subjects.kernel import RuntimeSite, arithmetic_named
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.sampling import in_turn
from tests.unit.oracle.conftest import OpenCheckpoint, checkpoint

pytestmark = pytest.mark.bare

__all__ = ["checkpoint"]

Values = npt.NDArray[Any]
S = 12
DECODE = Passes(sizes=(9, 1, 1, 1))
CHUNKS = Passes(sizes=(5, 5, 2))
PADDED = Passes(sizes=(10, 1, 1), padding=4)


def request_of(model: Model, passes: Passes) -> Request:
    drawn = np.random.default_rng(S).integers(3, model.geometry.vocab, S)
    tokens = tuple(map(int, drawn))
    return Request(tokens=tokens, layers=range(3), stages=tuple(STAGES), in_passes=passes)


Step = Callable[[Key, Inputs, RuntimeSite], Array]


def run(model: Model, passes: Passes, step: Step = as_defined, arithmetic: str = "f32") -> Trace:
    request = request_of(model, passes)
    return capture(model, request, MemorySink(), arithmetic=arithmetic_named(arithmetic), step=step)


RIGHT = ("llama", "gemma3", "gpt2-by-layer-upcast", "phi3-longrope-partial-window", "deepseek_v2", "qwen2")


@pytest.mark.parametrize(("name", "passes"), in_turn(RIGHT, [DECODE, CHUNKS, PADDED]))
def test_a_right_run_is_never_accused(name: str, passes: Passes, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    oracle = run(model, replace(passes, sizes=(S,)))
    for arithmetic in ("f32", "f16", "f32; f16 q and k"):
        found = bisect(
            oracle, run(model, passes, arithmetic=arithmetic), weights=model.weights, arithmetic=arithmetic
        )
        assert (found.kind, found.sources) == (Kind.CONSISTENT, ()), (arithmetic, found.findings)


# --- what a cache hands out wrongly ---------------------------------------------------------------------

Spoil = Callable[[Values], None]


def of_cache(stage: str, argument: str, spoil: Spoil) -> Step:
    """Spoil what layer 1 reads of its cache in every pass after the first; values are the last columns."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        if key == Key(1, stage) and site.passes.unseen:
            held = np.array(inputs[argument])
            width = site.geometry.kv_heads * site.geometry.head_dim
            spoil(held[:, -width:])
            inputs = {**inputs, argument: held}
        return as_defined(key, inputs, site)

    return step


def keys(spoil: Spoil) -> Step:
    return of_cache("attn_scores", "k_post_rope", spoil)


def values(spoil: Spoil) -> Step:
    return of_cache("attention", "qkv_bias", spoil)


def put(at: Any, source: Any) -> Spoil:
    def spoil(held: Values) -> None:
        held[at] = held[source] if source is not None else 0

    return spoil


def foreign(held: Values) -> None:
    held[4] = np.random.default_rng(1).normal(size=held.shape[1])


CACHES: Mapping[str, tuple[Step, str, str]] = {
    "stale-key": (keys(put(4, 1)), "attn_scores", "position 4 with that of 1"),
    "swapped-keys": (keys(put([2, 5], [5, 2])), "attn_scores", "keys of positions 2 and 5 exchanged"),
    "shifted-keys": (
        keys(put(slice(1, -1), slice(0, -2))),
        "attn_scores",
        "shifted by 1: positions 1 to 10 with the keys of 1 before them",
    ),
    "evicted-key": (keys(put(0, None)), "attn_scores", "no cached key at position 0"),
    "foreign-key": (keys(foreign), "attn_scores", "key 4"),
    "stale-value": (values(put(4, 1)), "attention", "position 4 with that of 1"),
    "swapped-values": (values(put([2, 5], [5, 2])), "attention", "values of positions 2 and 5 exchanged"),
    "evicted-value": (values(put(0, None)), "attention", "position 0 with no value"),
    "foreign-value": (values(foreign), "attention", "value at position 4 that is none of this run's"),
}


def one_source(found: Bisection) -> tuple[int | None, str, str]:
    (source,) = found.sources
    return source.layer, source.stages[-1], source.explanation


@pytest.mark.parametrize("case", CACHES)
def test_what_a_cache_hands_out_wrongly_is_named_with_its_cached_position(
    case: str, checkpoint: OpenCheckpoint
) -> None:
    step, stage, words = CACHES[case]
    model = checkpoint("llama")
    found = bisect(run(model, Passes.whole(S)), run(model, DECODE, step), weights=model.weights)
    layer, accused, said = one_source(found)
    assert (layer, accused) == (1, stage)
    assert words in said


# --- masks and positions ---------------------------------------------------------------------------------


def masked(visible: Callable[[Passes], Values]) -> Step:
    """Use another mask in layer 1: [S, S] of the passes so far."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        made = as_defined(key, inputs, site)
        if key != Key(1, "attn_softmax"):
            return made
        seen = visible(site.passes)[site.passes.unseen :]
        scores = np.where(seen, inputs["attn_scores"], -np.inf)
        raised = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        return np.asarray(raised / np.sum(raised, axis=-1, keepdims=True), dtype=made.dtype)

    return step


def causal(passes: Passes) -> Values:
    return np.tri(passes.tokens, dtype=np.bool_)


def top_left(passes: Passes) -> Values:
    start = np.repeat(passes.starts, passes.sizes)
    at = np.arange(passes.tokens)
    return at[None] <= (at - start)[:, None]


MASKS: Mapping[str, tuple[Passes, Callable[[Passes], Values], str]] = {
    "padding-seen": (PADDED, causal, "a mask that lets tokens see the padding"),
    "top-left": (CHUNKS, top_left, "aligned to the first key"),
    "no-mask-in-a-chunk": (CHUNKS, lambda passes: passes.met(), "no mask among the tokens of a pass"),
    "cache-not-read": (
        CHUNKS,
        lambda p: causal(p) & (np.arange(p.tokens)[None] >= np.repeat(p.starts, p.sizes)[:, None]),
        "only the keys of the pass itself seen",
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_that_does_not_know_passes_or_padding_is_named(case: str, checkpoint: OpenCheckpoint) -> None:
    passes, visible, words = MASKS[case]
    model = checkpoint("llama")
    found = bisect(run(model, passes), run(model, passes, masked(visible)), weights=model.weights)
    layer, accused, said = one_source(found)
    assert (layer, accused) == (1, "attn_softmax")
    assert words in said


def placed(at: Callable[[Passes], list[float]]) -> Step:
    """Turn q and k, or take learned positions, by other positions."""

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        if key.stage in ("q_post_rope", "k_post_rope", "embedding"):
            other = replace(site.passes, positions=tuple(int(each) for each in at(site.passes)))
            site = replace(site, model=replace(site.model, in_passes=other))
        return as_defined(key, inputs, site)

    return step


def restarted(passes: Passes) -> list[float]:
    return list(passes.at - np.repeat(passes.at[list(passes.starts)], passes.sizes))


def one_too_far(passes: Passes) -> list[float]:
    return list(passes.at + (np.arange(passes.tokens) >= passes.sizes[0]))


def run_on(passes: Passes) -> list[float]:
    return list(range(passes.tokens))


QK = {"q_post_rope", "k_post_rope"}
COUNTED = "run on through the 4 tokens of padding"
POSITIONS: Mapping[str, tuple[str, Passes, Callable[[Passes], list[float]], str, set[str]]] = {
    "decode-at-zero": (
        "llama",
        DECODE,
        restarted,
        "begin again at 0 in each pass",
        {"q_post_rope", "k_post_rope"},
    ),
    "one-too-far": (
        "llama",
        DECODE,
        one_too_far,
        "tokens 9 to 11 at positions 10 to 12",
        {"q_post_rope", "k_post_rope"},
    ),
    "padding-counted": (
        "llama",
        PADDED,
        run_on,
        "run on through the 4 tokens of padding",
        {"q_post_rope", "k_post_rope"},
    ),
    "learned-padding-counted": (
        "gpt2",
        PADDED,
        run_on,
        "run on through the 4 tokens of padding",
        {"embedding"},
    ),
    "learned-decode-at-zero": ("gpt2", DECODE, restarted, "begin again at 0 in each pass", {"embedding"}),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_positions_that_forget_a_pass_or_count_padding_are_named(
    case: str, checkpoint: OpenCheckpoint
) -> None:
    name, passes, at, words, stages = POSITIONS[case]
    model = checkpoint(name)
    found = bisect(run(model, passes), run(model, passes, placed(at)), weights=model.weights)
    assert {source.stages[-1] for source in found.sources} == stages
    assert all(words in source.explanation for source in found.sources), found.sources


def last_step(trace: Trace) -> Trace:
    """Return the last pass of a run alone, as where nobody recorded the others."""
    first = trace.passes.starts[-1]
    stages = {}
    for key, array in trace.stages.items():
        axes, values = STAGES[key.stage].axes, array.data
        if "tokens" in axes:
            values = values.take(range(first, S), axes.index("tokens"))
        stages[key] = replace(array, data=values)
    return replace(trace, stages=stages, in_passes=replace(trace.passes, unseen=first))


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (restarted, "token 11 at position 0, or not rotated at all"),
        (one_too_far, "token 11 at position 12"),
    ],
)
def test_a_wrong_position_shows_in_a_decode_step_alone(
    at: Callable[[Passes], list[float]], words: str, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint("llama")
    oracle = run(model, Passes.whole(S))
    right = bisect(oracle, last_step(run(model, DECODE)), weights=model.weights)
    assert (right.kind, right.findings) == (Kind.CONSISTENT, ())
    found = bisect(oracle, last_step(run(model, DECODE, placed(at))), weights=model.weights)
    named = [source for source in found.sources if source.stages[-1] in QK]
    assert len(named) == 6
    assert all(words in source.explanation for source in named), found.sources


def test_positions_that_are_said_to_run_on_through_padding_are_told(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("llama")
    passes = replace(PADDED, positions=tuple(range(S)))
    found = bisect(run(model, passes), run(model, passes), weights=model.weights)
    assert found.kind is Kind.CONSISTENT
    assert any("stands at 4, as is said" in line for line in found.not_checked)


@pytest.mark.parametrize("case", [*CACHES, "own-pass-alone", "hides-itself"])
def test_a_cache_or_a_mask_is_judged_by_a_decode_step_alone(case: str, checkpoint: OpenCheckpoint) -> None:
    """It has fewer rows than keys, and every cause that is tried must know that."""
    model = checkpoint("llama")
    step, stage = CACHES[case][:2] if case in CACHES else (masked(STEP_MASKS[case]), "attn_softmax")
    found = bisect(run(model, Passes.whole(S)), last_step(run(model, DECODE, step)), weights=model.weights)
    assert found.breakdowns == ()
    assert {(source.layer, source.stages[-1]) for source in found.sources} == {(1, stage)}


STEP_MASKS: Mapping[str, Callable[[Passes], Values]] = {
    "own-pass-alone": lambda p: causal(p) & (np.arange(p.tokens) >= p.unseen),
    "hides-itself": lambda p: causal(p) & ~(np.eye(p.tokens, dtype=np.bool_) & (p.unseen > 0)),
}


@pytest.mark.parametrize("per", ["head", "tensor", "channel"])
def test_a_cache_with_a_scale_over_tokens_is_right_pass_by_pass(per: str, checkpoint: OpenCheckpoint) -> None:
    """What a pass adds to the cache has a scale of its own: those of later tokens are not known yet."""
    model, stated = (
        checkpoint("llama"),
        f"f32; int8 k cache, a scale per {per}; int8 v cache, a scale per {per}",
    )
    oracle = run(model, Passes.whole(S))
    for passes in (DECODE, CHUNKS):
        right = run(model, passes, arithmetic=stated)
        found = bisect(oracle, right, weights=model.weights, arithmetic=stated)
        assert (found.kind, found.findings) == (Kind.CONSISTENT, ()), passes
    # The scales of another run are wrong in this one: those of all tokens at once.
    other = bisect(oracle, replace(right, in_passes=DECODE), weights=model.weights, arithmetic=stated)
    assert other.sources
