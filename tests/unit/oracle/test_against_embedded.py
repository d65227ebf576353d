"""The HuggingFace model and the embedded runtime, in f64, agree on every stage of every family."""

from __future__ import annotations

import numpy as np
import pytest

from apr_falsify.formats.weights import Model
from apr_falsify.model.families import graph_of
from apr_falsify.model.stages import STAGES, canonical_shape
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.checkpoints import RECIPES
from tests.sampling import one_in
from tests.unit.oracle.conftest import OpenCheckpoint

pytestmark = pytest.mark.bare

TOLERANCE = 1e-6
"""transformers does norms, rotary angles and softmax in f32 whatever the model's number format."""

_SCANS = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "granitemoehybrid", "nemotron_h")
WIDER = dict.fromkeys(_SCANS, 1e-5)
"""Families of which it does the states of linear attention in f32 besides, which each layer adds to."""

_ALL = ("router_logits", "moe_router", "router_weights")
_IN_F32 = ("decay",)
UPCAST = {
    "mixtral": ("moe_router", "router_weights"),
    "granitemoe": ("router_logits",),
    "glm4_moe": _ALL,
    **dict.fromkeys(("dots1", "solar_open", "exaone_moe"), _ALL),
    "granitemoeshared": ("router_logits",),
    "granitemoehybrid": ("router_logits", *_IN_F32),
    "nemotron_h": ("lm_head", *_IN_F32),
    "minimax_m2": ("moe_router", "router_weights"),
    "ernie4_5_moe": ("router_logits",),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"), _ALL),
}
"""What a family's router, or its scan, computes in f32 and leaves so."""


def both(model: Model, tokens: int) -> tuple[Trace, Trace]:
    """Return the oracle's trace and the embedded runtime's of the same random tokens, in f64."""
    ids = np.random.default_rng(tokens).integers(0, model.geometry.vocab, tokens)
    request = Request(
        tokens=tuple(int(token) for token in ids), layers=range(model.geometry.layers), stages=tuple(STAGES)
    )
    return (
        capture(model, request, MemorySink(), dtype="f64"),
        embedded.capture(model, request, MemorySink(), dtype="f64"),
    )


def differences(oracle: Trace, subject: Trace) -> dict[str, float]:
    return {
        f"{layer} {name}": float(
            np.linalg.norm(array.data - subject.stages[layer, name].data)
            / (np.linalg.norm(array.data) or 1.0)  # the one expert of a token may be the first
        )
        for (layer, name), array in oracle.stages.items()
    }


@pytest.mark.parametrize(
    ("name", "tokens"), [*((name, 13) for name in RECIPES), *((name, 1) for name in one_in(4, RECIPES))]
)
def test_every_stage_agrees_with_the_embedded_runtime(
    name: str, tokens: int, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    oracle, subject = both(model, tokens)

    assert set(oracle.stages) == set(subject.stages)
    dims = model.geometry.dims(tokens)
    for (_, stage), array in oracle.stages.items():
        upcast = (name, stage) == ("gpt2-by-layer-upcast", "attn_scores")  # as the config asks for
        upcast |= stage == "moe_router_indices" or stage in UPCAST.get(model.geometry.family, ())
        assert array.data.dtype == (np.float32 if upcast else np.float64)
        assert array.data.shape == canonical_shape(stage, dims)
    allowed = WIDER.get(model.geometry.family, TOLERANCE)
    too_far = {key: far for key, far in differences(oracle, subject).items() if not far <= allowed}
    assert not too_far


@pytest.mark.parametrize(
    "name",
    [
        "mistral",
        "qwen2-tied-yarn-window",
        "qwen3-biased-yarn-window",
        "llama",
        "phi3",
        "gpt2",
        "gemma2",
        "gemma3",
        "qwen3_moe-dense-layer-window",
        "olmo3-biased-tied-yarn",
        "smollm3-listed-biased-untied-window",
        "cohere2",
        "phi",
        "gpt_neox",
        "glm4",
        "qwen2_moe-normed-unbiased-dense-layer-window",
        "gpt_oss",
        "deepseek_v2",
        "deepseek_v3",
        "llama4_text",
        "qwen3_next",
    ],
)
def test_a_prompt_much_longer_than_the_window_agrees(name: str, checkpoint: OpenCheckpoint) -> None:
    model = checkpoint(name)
    oracle, subject = both(model, 70)

    allowed = WIDER.get(model.geometry.family, TOLERANCE)
    too_far = {key: far for key, far in differences(oracle, subject).items() if not far <= allowed}
    assert not too_far


def test_longrope_divides_by_other_numbers_beyond_the_original_context(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("phi3-longrope-partial-window")
    context = int(model.geometry.rope.parameters["original_max_position_embeddings"])
    within, beyond = (both(model, tokens) for tokens in (context, context + 1))

    for oracle, subject in (within, beyond):
        assert max(differences(oracle, subject).values()) <= TOLERANCE
    turned = [oracle.stages[0, "k_post_rope"].data for oracle, _ in (within, beyond)]
    half = [model.geometry.head_dim // 2, model.geometry.head_dim]
    assert all(
        np.array_equal(k[:, half[0] : half[1]], _keys(t)[:, half[0] : half[1]])
        for k, t in zip(turned, (within[0], beyond[0]), strict=True)
    )


def _keys(trace: Trace) -> np.ndarray:
    g = trace.geometry
    first = g.heads * g.head_dim
    return trace.stages[0, "qkv_matmul"].data[:, first : first + g.kv_heads * g.head_dim]


@pytest.mark.parametrize(
    ("name", "windowed"),
    [
        ("mistral", [True, True, True]),
        ("qwen2-tied-yarn-window", [False, True, True]),
        ("qwen3-biased-yarn-window", [True, False, True]),
        ("mistral-linear", [False, False, False]),
        ("phi3-longrope-partial-window", [True, True, True]),
        ("gemma2", [True, False, True]),
        ("gemma3", [True, False, True]),
        ("gemma3-capped-pattern", [True, False, True]),
        ("qwen3_moe", [False, False, False]),
        ("qwen3_moe-dense-layer-window", [True, True, True]),
        ("ministral", [False, True, True]),
        ("olmo3", [True, True, True]),
        ("olmo3-biased-tied-yarn", [False, True, False]),
        ("cwm", [False, True, True]),
        ("exaone4", [True, False, True]),
        ("cohere2", [True, False, True]),
        ("smollm3-listed-biased-untied-window", [True, False, True]),
        ("qwen2_moe-normed-unbiased-dense-layer-window", [True, False, True]),
        ("gpt_oss", [True, False, True]),
    ],
)
def test_the_window_is_on_the_layers_that_the_config_names(
    name: str, windowed: list[bool], checkpoint: OpenCheckpoint
) -> None:
    oracle, _ = both(checkpoint(name), 13)

    first_keys = [oracle.stages[layer, "attn_softmax"].data[:, -1, 0] for layer in range(3)]
    assert [bool(np.all(weights == 0)) for weights in first_keys] == windowed


def test_biases_in_the_hundreds_are_what_the_qwen2_recipe_has(checkpoint: OpenCheckpoint) -> None:
    model = checkpoint("qwen2")

    assert np.abs(model.weights.vector("k_bias", 0)).max() > 400
    assert np.abs(model.weights.vector("v_bias", 0)).max() > 400


@pytest.mark.parametrize(
    ("name", "rotated"),
    [
        ("llama", [True, True, True]),
        ("smollm3", [True, False, True]),
        ("smollm3-listed-biased-untied-window", [False, True, False]),
        ("exaone4-tied-unwindowed", [True, True, True]),
        ("cohere2", [True, False, True]),
        ("cohere2-biased-untied", [False, True, True]),
    ],
)
def test_the_layers_that_the_config_names_are_not_rotated(
    name: str, rotated: list[bool], checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint(name)
    graph = graph_of(model.geometry)
    oracle, _ = both(model, 13)

    for layer, turned in enumerate(rotated):
        (source,) = graph.at(layer)["q_post_rope"].inputs.values()
        after = oracle.stages[layer, "q_post_rope"].data
        before = oracle.stages[layer, source].data[:, : after.shape[1]]
        assert np.array_equal(before, after) is not turned
