"""Each stage's formula against torch in f64, transformers' rotary tables, and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from apr_falsify.errors import StageError
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import graph_of
from apr_falsify.model.passes import Passes
from apr_falsify.model.rope import Rope, rope_of_config
from apr_falsify.model.stages import LAYER_INPUT, STAGES, Key, Scope
from apr_falsify.model.wiring import inputs_of, stages_of
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.attention import attention, attention_scores, attention_softmax, visible_keys
from apr_falsify.operators.feedforward import silu
from apr_falsify.operators.norms import rms_norm
from apr_falsify.operators.rotation import rope_frequencies, rotate
from apr_falsify.operators.site import embedding, linear
from apr_falsify.operators.table import check_operators, operation_at
from tests.unit.helpers import CONFIG, KNOBS, TINY, small_geometry

RNG = np.random.default_rng(7)
EXACT = {"rtol": 1e-13, "atol": 1e-13}


def normal(*shape: int) -> npt.NDArray[np.float64]:
    return RNG.normal(size=shape)


def tensor(data: npt.NDArray[Any]) -> PlainTensor:
    return PlainTensor(name="w", type="f64", data=data)


# projections, norms, activations


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (7,), (2, 3, 7)])
def test_linear_is_torchs(shape: tuple[int, ...], bias: bool) -> None:
    x, weight, b = normal(*shape), normal(11, 7), normal(11) if bias else None
    expected = F.linear(
        *(torch.from_numpy(a) for a in (x, weight)), None if b is None else torch.from_numpy(b)
    )
    np.testing.assert_allclose(linear(x, tensor(weight), b), expected.numpy(), **EXACT)


def test_linear_by_blocks_is_linear_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(3, 10), normal(23, 10)
    whole = linear(x, tensor(weight))
    monkeypatch.setattr("apr_falsify.operators.site._BLOCK_VALUES", 40)  # a million values are one block
    np.testing.assert_allclose(linear(x, tensor(weight)), whole, **EXACT)


def test_linear_computes_in_the_format_of_its_input() -> None:
    x = normal(2, 4)
    assert linear(x.astype(np.float32), tensor(normal(3, 4)), normal(3)).dtype == np.float32
    assert linear(x, PlainTensor(name="w", type="f16", data=np.ones((3, 4), np.float16))).dtype == np.float64


def test_linear_by_hand() -> None:
    weight = tensor(np.array([[1.0, 2.0], [3.0, 4.0], [0.0, -1.0]]))
    found = linear(np.array([[10.0, 1.0]]), weight, np.array([0.5, 0.0, 0.0]))
    np.testing.assert_array_equal(found, [[12.5, 34.0, -1.0]])


def test_rms_norm_is_torchs() -> None:
    x, weight = normal(5, 16) * 100, normal(16)
    expected = F.rms_norm(torch.from_numpy(x), (16,), torch.from_numpy(weight), 1e-5).numpy()
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), expected, **EXACT)


def test_rms_norm_by_hand_and_of_zeros() -> None:
    np.testing.assert_allclose(
        rms_norm(np.array([3.0, 4.0]), np.array([1.0, 2.0]), 0.0), [0.6 * 2**0.5, 1.6 * 2**0.5]
    )
    np.testing.assert_array_equal(rms_norm(np.zeros(4), np.ones(4), 1e-6), np.zeros(4))


@given(st.floats(0.01, 100))
def test_rms_norm_does_not_see_a_scale(scale: float) -> None:
    x, weight = np.linspace(-1, 2, 8), np.linspace(1, 2, 8)
    np.testing.assert_allclose(rms_norm(x * scale, weight, 0.0), rms_norm(x, weight, 0.0), rtol=1e-12)


def test_silu_is_torchs_far_out_too() -> None:
    x = np.concatenate([normal(100) * 10, [0.0, -1e3, 1e3, -1e30, 1e30, -750.0]])
    np.testing.assert_allclose(silu(x), F.silu(torch.from_numpy(x)).numpy(), rtol=1e-12, atol=1e-300)
    assert silu(x.astype(np.float32)).dtype == np.float32


def test_embedding_takes_rows() -> None:
    table = tensor(np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(embedding((2, 0, 2), table, np.float64), [[6, 7, 8], [0, 1, 2], [6, 7, 8]])


# rotary embedding

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 1e6},
    "linear": {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "yarn": {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "yarn-all": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    },
    "yarn-attention-factor": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "attention_factor": 0.7,
        },
    },
    "yarn-mscale": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
        },
    },
    "yarn-ramp-beyond-the-last-pair": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10**9},
    },
    "yarn-tiny-context": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4},
    },
}


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("knobs", ROPES.values(), ids=list(ROPES))
def test_rope_frequencies_are_those_of_transformers(knobs: dict[str, Any], head_dim: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    values = {**CONFIG, **knobs, "head_dim": head_dim}
    config = transformers.AutoConfig.for_model(**values)
    kind = config.rope_parameters["rope_type"]
    rule = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, factor = rule(config, device="cpu")
    frequencies, ours = rope_frequencies(rope_of_config(values), head_dim)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=2e-6)
    assert ours == pytest.approx(factor, rel=1e-12)


def test_rope_frequencies_by_hand() -> None:
    frequencies, factor = rope_frequencies(Rope(theta=100.0), 4)
    np.testing.assert_allclose(frequencies, [1.0, 0.1])
    assert factor == 1.0
    divided, _ = rope_frequencies(Rope(theta=100.0, kind="divided", divisors=(1.0, 8.0)), 4)
    np.testing.assert_allclose(divided, [1.0, 0.0125])


@pytest.mark.parametrize("knobs", ROPES.values(), ids=list(ROPES))
def test_rotation_is_that_of_transformers(knobs: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    values = {**CONFIG, **knobs, "head_dim": 16}
    x = normal(6, 3 * 16)
    heads = torch.from_numpy(x.reshape(1, 6, 3, 16)).transpose(1, 2)
    rotary = LlamaRotaryEmbedding(transformers.AutoConfig.for_model(**values))
    cos, sin = rotary(heads, torch.arange(6)[None])
    turned, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
    expected = turned.transpose(1, 2).reshape(6, -1).numpy()
    found = rotate(x, rope_of_config(values), 16)
    assert np.linalg.norm(found - expected) < 3e-7 * np.linalg.norm(expected)  # its angles are f32


def test_rotation_by_hand() -> None:
    x = np.tile([1.0, 0.0, 0.0, 2.0], (2, 1))  # pairs (0, 2) and (1, 3)
    found = rotate(x, Rope(theta=100.0), 4)
    np.testing.assert_array_equal(found[0], x[0])
    c, s = math.cos(0.1), math.sin(0.1)
    np.testing.assert_allclose(found[1], [math.cos(1), -2 * s, math.sin(1), 2 * c], **EXACT)


@given(st.integers(0, 10_000))
def test_rotation_keeps_the_norm_of_each_pair_and_products_of_equal_distance(position: int) -> None:
    rope, x = Rope(theta=1e4), np.linspace(-1, 1, 16).reshape(2, 8)
    passes = Passes(sizes=(2,), positions=(position, position + 1))
    first, later = rotate(x, rope, 8), rotate(x, rope, 8, passes)
    pairs = np.hypot(later[:, :4], later[:, 4:])
    np.testing.assert_allclose(pairs, np.hypot(x[:, :4], x[:, 4:]), rtol=1e-12)
    np.testing.assert_allclose(later[0] @ later[1], first[0] @ first[1], rtol=1e-9)


# attention


def heads_of(x: npt.NDArray[np.float64], head_dim: int) -> torch.Tensor:
    return torch.from_numpy(x.reshape(1, len(x), -1, head_dim)).transpose(1, 2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_attention_is_torchs_with_grouped_heads(heads: int, kv_heads: int) -> None:
    geometry = small_geometry(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=10)
    q, qkv = normal(7, heads * 10), normal(7, (heads + 2 * kv_heads) * 10)
    k, v = qkv[:, heads * 10 : (heads + kv_heads) * 10], qkv[:, (heads + kv_heads) * 10 :]
    scores = attention_scores(q, k, geometry, 0)
    found = attention(attention_softmax(scores, None), qkv, geometry)
    expected = F.scaled_dot_product_attention(
        *(heads_of(x, 10) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    np.testing.assert_allclose(found, expected.transpose(1, 2).reshape(7, -1).numpy(), **EXACT)


def test_scores_by_hand_with_a_head_dim_that_is_no_power_of_two() -> None:
    geometry = small_geometry(num_attention_heads=2, num_key_value_heads=1, head_dim=6)
    q, k = normal(3, 12), normal(3, 6)
    scores = attention_scores(q, k, geometry, 0)
    assert scores.shape == (2, 3, 3)
    for head in range(2):
        for row in range(3):
            for column in range(3):
                expected = q[row, 6 * head : 6 * head + 6] @ k[column] / math.sqrt(6)
                assert scores[head, row, column] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
def test_softmax_is_torchs_over_the_visible_keys(window: int | None) -> None:
    scores = normal(2, 7, 7) * 30
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    if window is not None:
        seen &= torch.ones(7, 7, dtype=torch.bool).triu(1 - window)
    expected = torch.from_numpy(scores).masked_fill(~seen, -math.inf).softmax(-1).numpy()
    found = attention_softmax(scores, window)
    np.testing.assert_allclose(found, expected, **EXACT)
    np.testing.assert_array_equal(visible_keys(7, window), seen.numpy())
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-14)
    assert (found[:, ~seen.numpy()] == 0).all()


@given(st.integers(1, 12), st.none() | st.integers(1, 15), st.floats(0.1, 1000))
def test_softmax_rows_sum_to_one_and_see_at_most_the_window(
    tokens: int, window: int | None, scale: float
) -> None:
    scores = np.random.default_rng(tokens).normal(size=(1, tokens, tokens)) * scale
    weights = attention_softmax(scores, window)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-12)
    assert (np.count_nonzero(weights[0], axis=-1) <= (window or tokens)).all()
    assert (np.diagonal(weights[0]) >= 0).all()
    assert not np.triu(weights[0], 1).any()


def test_the_window_is_that_of_transformers() -> None:
    from transformers.masking_utils import create_sliding_window_causal_mask

    config = transformers.AutoConfig.for_model(**{**CONFIG, "model_type": "mistral", "sliding_window": 3})
    config._attn_implementation = "eager"
    mask = create_sliding_window_causal_mask(
        config=config, inputs_embeds=torch.zeros(1, 8, 16), attention_mask=None, past_key_values=None
    )
    np.testing.assert_array_equal(visible_keys(8, 3), mask[0, 0].numpy() == 0)


def test_the_first_token_attends_to_itself_alone() -> None:
    geometry, qkv = small_geometry(), normal(5, 32)
    found = attention(attention_softmax(normal(4, 5, 5), None), qkv, geometry)
    np.testing.assert_allclose(found[0], np.repeat(qkv[0, -8:].reshape(2, 4), 2, axis=0).ravel(), **EXACT)


# who feeds whom


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_inputs_are_stages_that_exist_and_are_computed_before(knobs: dict[str, Any]) -> None:
    geometry = small_geometry(**knobs)
    names = stages_of(geometry)
    per_layer = [name for name in names if STAGES[name].scope is Scope.LAYER]
    done = {Key(0, "embedding")}
    order = [Key(layer, name) for layer in range(geometry.layers) for name in per_layer]
    for layer, name in [*order, Key(None, "final_norm"), Key(None, "lm_head")]:
        inputs = inputs_of(name, geometry, layer)
        assert set(inputs.values()) <= done, name
        done.add(Key(layer, name))
    assert inputs_of("embedding", geometry, 0) == {}


def test_a_stage_without_bias_reads_what_comes_before_it() -> None:
    geometry = small_geometry()
    assert inputs_of("q_post_rope", geometry, 1) == {"qkv_bias": Key(1, "qkv_matmul")}
    assert inputs_of("attention", geometry, 1)["qkv_bias"] == Key(1, "qkv_matmul")
    biased = small_geometry(model_type="qwen2")
    assert inputs_of("q_post_rope", biased, 1) == {"qkv_bias": Key(1, "qkv_bias")}


def test_a_layers_input_is_the_embedding_or_the_layer_before() -> None:
    geometry = small_geometry()
    assert inputs_of("attn_norm", geometry, 0) == {LAYER_INPUT: Key(0, "embedding")}
    assert inputs_of("attn_norm", geometry, 1) == {LAYER_INPUT: Key(0, "post_ffn_residual")}
    assert inputs_of("final_norm", geometry, None) == {"post_ffn_residual": Key(1, "post_ffn_residual")}
    assert inputs_of("lm_head", geometry, None) == {"final_norm": Key(None, "final_norm")}


@pytest.mark.parametrize("name", ["qkv_bias", "moe_router"])
def test_inputs_of_a_stage_that_the_model_lacks_are_refused(name: str) -> None:
    with pytest.raises(StageError, match=f"no stage {name}"):
        inputs_of(name, small_geometry(), 0)


INNER = {name for name, stage in STAGES.items() if stage.inner}


def test_the_stages_of_a_model() -> None:
    assert set(STAGES) - set(stages_of(small_geometry(model_type="qwen2"))) == {
        *INNER,
        "moe_router",
        "moe_ffn_out",
        "moe_router_indices",
    }
    assert "qkv_bias" not in stages_of(small_geometry())
    absent = set(STAGES) - set(stages_of(open_model(TINY).geometry))
    assert absent == {*INNER, "moe_router", "moe_ffn_out", "moe_router_indices"}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_every_node_has_an_operator_and_a_stage_says_whether_it_is_a_product(knobs: dict[str, Any]) -> None:
    geometry = small_geometry(**knobs)
    graph = graph_of(geometry)
    check_operators(graph)
    places: list[int | None] = [*range(geometry.layers), None]
    for layer in places:
        for stage in graph.at(layer):
            product = operation_at(stage, geometry, layer) is not Operation.ELEMENTWISE
            assert product == STAGES[stage].product, stage
