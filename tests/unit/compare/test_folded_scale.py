"""The scale of the scores folded into q and k is a way to compute, proved by what is computed from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.bisection import FindingType, Kind
from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.sampling import one_in
from tests.unit.compare.ports import (
    EVERY,
    FOLDS,
    TOKENS,
    Array,
    Runs,
    accused,
    changed,
    columns_of,
    factor_of,
    fold,
    judged,
    port,
)
from tests.unit.oracle.requests import request_for

pytestmark = pytest.mark.bare

# --- scores stored before the scale of their own layer ----------------------------------------------


@pytest.mark.parametrize("name", ["gpt2-by-layer-upcast", "gemma3"])
def test_scores_stored_before_the_scale_of_their_own_layer_are_right(name: str, runs: Runs) -> None:
    model, run = runs[name]
    scales = [model.geometry.attn_scale_at(layer) for layer in range(model.geometry.layers)]
    bare = changed(run, "attn_scores", lambda x, n: x / np.float32(scales[n]), Layout.UNSCALED)
    found = judged(model, run, port(run, bare))
    assert (found.kind, int(found.exit_code), found.findings) == (Kind.CONSISTENT, 0, ())
    key = Key(1, "attn_scores")
    wrong = {**bare, key: replace(bare[key], data=bare[key].data * np.float32(1.02))}
    assert key in accused(judged(model, run, port(run, wrong)))


ALWAYS = ("into q", "into k", "its root into q and k")
FOLDED = [
    *((name, way) for name in ("llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3") for way in ALWAYS),
    *((name, way) for name in ("llama", "mistral", "gemma2") for way in FOLDS if "the weights" in way),
    *(
        (name, way)
        for name in ("gpt2-by-layer-upcast", "gemma3")
        for way in ("into q", "1/sqrt(D) of it into q")
    ),
    ("gpt2-by-layer-upcast", "into the weights of q"),
    ("qwen2", "into q with its bias"),
    ("gemma2", "over the soft-cap into q"),
]


@pytest.mark.parametrize(("name", "way"), one_in(2, FOLDED))
def test_a_port_that_folds_the_scale_of_the_scores_is_right(name: str, way: str, runs: Runs) -> None:
    model, run = runs[name]
    found = judged(model, run, port(run, fold(model, run, way)))
    assert (found.kind, int(found.exit_code), accused(found)) == (Kind.CONSISTENT, 0, set())
    (finding,) = found.findings
    assert finding.type is FindingType.RECORDING
    assert FOLDS[way][2] in finding.advice


@pytest.mark.parametrize(("name", "way"), one_in(2, FOLDED, start=1))
def test_a_port_that_says_so_has_no_finding(name: str, way: str, runs: Runs) -> None:
    model, run = runs[name]
    word = Layout(FOLDS[way][2])
    said = {key: replace(array, layout=(*array.layout, word)) for key, array in fold(model, run, way).items()}
    found = judged(model, run, port(run, said))
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    row = next(row for row in found.rows if (row.layer, row.stage) == (1, FOLDS[way][0][-1]))
    assert row.layout == (word,)
    assert row.accumulated is not None
    assert row.accumulated.rel_l2 < 1e-6


@pytest.mark.parametrize("missing", [("attn_scores",), ("attn_scores", "attn_softmax")])
def test_a_later_reader_proves_it_where_the_scores_were_not_recorded(
    missing: tuple[str, ...], runs: Runs
) -> None:
    model, run = runs["llama"]
    subject = port(run, fold(model, run, "into q"))
    kept = {key: array for key, array in subject.stages.items() if key[1] not in missing}
    found = judged(model, run, replace(subject, stages=kept))
    assert (found.kind, accused(found)) == (Kind.CONSISTENT, set())


def test_without_a_reader_nothing_proves_it(runs: Runs) -> None:
    model, run = runs["llama"]
    subject = port(run, fold(model, run, "into q"))
    before = ("embedding", "attn_norm", "qkv_matmul", "q_post_rope", "k_post_rope")
    kept = {key: array for key, array in subject.stages.items() if key[1] in before}
    found = judged(model, run, replace(subject, stages=kept))
    assert accused(found) == {Key(layer, "q_post_rope") for layer in EVERY}


Fault = Callable[[Key, Array], Array]


def faulty(model: Model, way: str, fault: Fault) -> tuple[Trace, Trace]:
    """Return a right run, and one that folds the scale and has ``fault``, with all that follows from it."""
    held, roles, word = FOLDS[way]
    factor = factor_of(model, word)

    def step(key: Key, inputs: embedded.Inputs, site: embedded.RuntimeSite) -> embedded.Array:
        by = np.float32(factor(key[0] or 0))
        if key[1] == "attn_scores":
            inputs = {name: x / by if name in held else x for name, x in inputs.items()}
        value = fault(key, embedded.as_defined(key, inputs, site))
        if key[1] in held and not (key[1].endswith("rope") and held[0] == "qkv_matmul"):
            value = np.array(value)
            value[:, columns_of(model.geometry, key[1], roles)] *= by
        return value

    request = request_for(model, tokens=TOKENS)
    right = embedded.capture(model, request, MemorySink())
    return right, port(embedded.capture(model, request, MemorySink(), step=step))


def in_layers(layers: tuple[int, ...], name: str, change: Callable[[Array], Array]) -> Fault:
    return lambda key, x: change(x) if key[1] == name and key[0] in layers else x


FAULTS: dict[str, tuple[Fault, set[Key]]] = {
    "scores 2 % off in one layer": (
        in_layers((1,), "attn_scores", lambda x: x * np.float32(1.02)),
        {Key(1, "attn_scores")},
    ),
    "scores a tenth off in every layer": (
        in_layers(EVERY, "attn_scores", lambda x: x * np.float32(1.1)),
        {Key(n, "attn_scores") for n in EVERY},
    ),
    "q of the token before in one layer": (
        in_layers((1,), "q_post_rope", lambda x: np.roll(x, 1, axis=0)),
        {Key(1, "q_post_rope")},
    ),
    "k of the token before in every layer": (
        in_layers(EVERY, "k_post_rope", lambda x: np.roll(x, 1, axis=0)),
        {Key(n, "k_post_rope") for n in EVERY},
    ),
    "one head of the scores of another": (
        in_layers(EVERY, "attn_scores", lambda x: x[[1, 1, *range(2, len(x))]]),
        {Key(n, "attn_scores") for n in EVERY},
    ),
    "a softmax that is not one": (
        in_layers((2,), "attn_softmax", lambda x: x * np.float32(0.99)),
        {Key(2, "attn_softmax")},
    ),
    "a wrong ffn_up": (in_layers((0,), "ffn_up", lambda x: x * np.float32(1.01)), {Key(0, "ffn_up")}),
}


FAULTY_PORTS = (
    *itertools.product(("llama", "gpt2-by-layer-upcast"), ("into q", "its root into q and k")),
    ("llama", "into the weights of q"),
)


@pytest.mark.parametrize(
    ("name", "way", "fault"),
    one_in(2, ((name, way, fault) for (name, way), fault in itertools.product(FAULTY_PORTS, FAULTS))),
)
def test_a_fault_beside_a_folded_scale_is_located(name: str, way: str, fault: str, runs: Runs) -> None:
    change, truth = FAULTS[fault]
    model, _ = runs[name]
    assert accused(judged(model, *faulty(model, way, change))) == truth


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2-by-layer-upcast"])
def test_a_scale_that_is_applied_twice_is_a_fault_of_q(name: str, runs: Runs) -> None:
    model, _ = runs[name]
    scales = [model.geometry.attn_scale_at(layer) for layer in range(model.geometry.layers)]

    def step(key: Key, inputs: embedded.Inputs, site: embedded.RuntimeSite) -> embedded.Array:
        value = embedded.as_defined(key, inputs, site)
        return value * np.float32(scales[key[0] or 0]) if key[1] == "q_post_rope" else value

    request = request_for(model, tokens=TOKENS)
    right = embedded.capture(model, request, MemorySink())
    wrong = embedded.capture(model, request, MemorySink(), step=step)
    assert accused(judged(model, right, port(wrong))) == {Key(n, "q_post_rope") for n in range(3)}


def test_a_scale_that_is_missing_is_a_fault_of_the_scores(runs: Runs) -> None:
    model, _ = runs["llama"]
    missing = in_layers(EVERY, "attn_scores", lambda x: x * np.float32(model.geometry.head_dim**0.5))
    request = request_for(model, tokens=TOKENS)
    right = embedded.capture(model, request, MemorySink())
    wrong = embedded.capture(
        model,
        request,
        MemorySink(),
        step=lambda key, ins, site: missing(key, embedded.as_defined(key, ins, site)),
    )
    assert accused(judged(model, right, port(wrong))) == {Key(n, "attn_scores") for n in EVERY}
